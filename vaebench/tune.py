"""Search for the settings with the best validation log-likelihood; each trial is an ordinary run.

optuna chooses the settings (https://arxiv.org/abs/1907.10902) and keeps a journal of JSON lines.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vaebench.config import Config, compose, run_folder
from vaebench.config.search import Space
from vaebench.errors import GivenUp, RunFailed, UserError
from vaebench.files import regular
from vaebench.isolation import isolated
from vaebench.records import RunFolder, read_manifest, read_metrics
from vaebench.records.current import VALIDATION
from vaebench.records.files import Appender, exclusive
from vaebench.records.provenance import checksum, unaltered
from vaebench.records.stored import Unreadable, read_whole
from vaebench.train.session import train

if TYPE_CHECKING:
    import optuna

__all__ = ["Search", "TrialResult", "trial_results"]

TRIALS_BEFORE_PRUNING = 5
_LARGEST = 1 << 30  # bytes of a journal, far more than any search writes


@dataclass(frozen=True)
class TrialResult:
    """The state and the value of one trial."""

    number: int
    state: str
    """``finished``, ``given up``, ``failed`` or ``interrupted``."""
    value: float | None
    """The best validation log-likelihood so far, in nats."""
    words: list[str]
    """The searched settings, as in ``k=5``."""
    folder: str | None
    error: str | None = None


class JournalError(UserError):
    """A journal that cannot be read or written."""


class Journal:
    """The steps of a search as JSON lines: a backend of optuna's JournalStorage for one process that holds a lock.

    Each line carries its checksum; lines of earlier versions have none.

    A process that is killed, or a power cut, can leave an incomplete last line. It is cut with a notice.

    Raises:
        JournalError: another line is corrupt, or the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = read_whole(path, _LARGEST)
        except FileNotFoundError:
            content = b""
        except Unreadable as fault:
            raise JournalError(f"cannot read {path}: {fault}. Move it away.") from fault
        *lines, rest = content.split(b"\n")
        self._steps = [self._step(line, number) for number, line in enumerate(lines, 1)]
        self._size = len(content) - len(rest)
        if rest:
            print(f"{path}: cut an incomplete last line ({len(rest)} bytes)", flush=True)
            self._cut()
        self._file = Appender(path)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the steps from that number on; optuna calls it."""
        yield from self._steps[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write steps; optuna calls it. JournalError if they cannot be written, and the file is as it was."""
        # Some network file systems lock for the processes of one machine only.
        if not self.path.exists() or self.path.stat().st_size != self._size:
            raise JournalError(
                f"{self.path} was changed by another process: run a search on one machine only, and run the same "
                "command again"
            )
        sealed = [{**step, "checksum": checksum(step)} for step in logs]
        data = b"".join(json.dumps(step, separators=(",", ":")).encode() + b"\n" for step in sealed)
        try:
            self._file.write(data)
        except UserError as error:
            self._cut()
            raise JournalError(str(error)) from error
        self._size += len(data)
        self._steps += [json.loads(json.dumps(step)) for step in logs]

    def corrupt(self, reason: str) -> JournalError:
        """Return the error of a file that is not the journal of a search."""
        return JournalError(
            f"{self.path} is corrupt ({reason}): move it to another folder and run the same command again; it chooses "
            "the same settings, and uses the runs that exist"
        )

    def close(self) -> None:
        self._file.close()

    def _step(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            step = json.loads(line)
        except (ValueError, RecursionError):
            step = None
        if not isinstance(step, dict) or not unaltered(step):
            raise self.corrupt(f"line {number}")
        return {name: value for name, value in step.items() if name != "checksum"}

    def _cut(self) -> None:
        """Remove what follows the last whole line. The next start does it where this one cannot."""
        with contextlib.suppress(OSError), open(self.path, "rb+", opener=regular) as file:
            file.truncate(self._size)


class Search:
    """One search. Its journal is in ``<output_dir>/.studies``, and the same settings resume it.

    Args:
        fixed: the settings of all trials.
        spaces: the settings to search, with their values.
        prune: stop a trial whose value is below the median of the earlier trials at the same epoch.
        seed: the seed of the choice of settings.

    Raises:
        UserError: optuna is not installed, or a setting is invalid.
    """

    def __init__(self, fixed: Sequence[str], spaces: Sequence[Space], *, prune: bool, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError("vaebench tune needs optuna: pip install 'vaebench[tune]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.fixed, self.spaces, self.prune, self.seed = list(fixed), list(spaces), prune, seed
        digest = hashlib.sha256(repr(sorted([*fixed, *(space.word for space in spaces)])).encode()).hexdigest()
        self.name = digest[:12]
        self._folder = Path(self._config([space.example() for space in spaces]).output_dir) / ".studies"

    def _config(self, words: Sequence[str]) -> Config:
        # Test images must not influence the choice of settings.
        return compose([*self.fixed, *words, "trainer.evaluate=false"])

    @contextlib.contextmanager
    def opened(self) -> Iterator["optuna.Study"]:
        """Yield the study and hold its lock. Busy if another process holds it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        busy = "another process runs this search ({}): wait for it, or change the settings to search."
        with exclusive(self._folder / f"{self.name}.lock", wait=0.5, busy=busy.format):
            journal = Journal(self._folder / f"{self.name}.jsonl")
            try:
                study = self._study(journal)
            except JournalError:
                raise
            except Exception as error:  # optuna carries out what the file says, and fails in many ways
                raise journal.corrupt(f"{type(error).__name__}: {str(error)[:100]}") from error
            with contextlib.closing(journal):
                yield study

    def _study(self, journal: Journal) -> "optuna.Study":
        """Return the study in a journal, or a new one."""
        import optuna

        storage = optuna.storages.JournalStorage(cast(Any, journal))
        names = [study.study_name for study in storage.get_all_studies()]
        if names not in ([], [self.name]):
            raise journal.corrupt("it belongs to another search")
        if not names:
            optuna.create_study(storage=storage, study_name=self.name, direction="maximize")
        pruner = optuna.pruners.MedianPruner(TRIALS_BEFORE_PRUNING) if self.prune else optuna.pruners.NopPruner()
        study = optuna.load_study(study_name=self.name, storage=storage, pruner=pruner)
        if study.direction.name != "MAXIMIZE":
            raise journal.corrupt("it belongs to another search")
        for trial in study.trials:
            if not _complete(trial):
                raise journal.corrupt(f"trial {trial.number + 1}")
        return study

    def run(self, study: "optuna.Study", trials: int) -> Iterator[TrialResult]:
        """Run trials until the study has ``trials`` in all, and yield the result of each new one.

        Raises:
            SystemExit: a signal; the current trial is saved, and the same search resumes it.
            JournalError: the journal cannot be written.
        """
        while sum(one.state != "interrupted" for one in trial_results(study)) < trials:
            trial = _interrupted(study) or study.ask()
            words = [self._suggested(trial, position) for position in range(len(self.spaces))]
            trial.set_user_attr("words", words)
            print(f"\n== trial {trial.number + 1}: {' '.join(words)}", flush=True)
            self._train(study, trial, words)
            yield _result(study.trials[trial.number])

    def _suggested(self, trial: "optuna.Trial", position: int) -> str:
        """Return one setting, with the value that optuna chooses.

        Its random numbers depend on the seed, the trial's number and the setting's position alone. So an interrupted
        search chooses as one that was not, wherever it was interrupted. Settings are therefore drawn one by one.
        """
        import numpy as np
        import optuna

        seed = int(np.random.SeedSequence([self.seed, trial.number, position]).generate_state(1)[0])
        trial.study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=False)
        space = self.spaces[position]
        if space.choices:
            return f"{space.key}={trial.suggest_categorical(space.key, space.choices)}"
        if space.whole:
            return f"{space.key}={trial.suggest_int(space.key, int(space.low), int(space.high), log=space.log)}"
        return f"{space.key}={trial.suggest_float(space.key, space.low, space.high, log=space.log)!r}"

    def _train(self, study: "optuna.Study", trial: "optuna.Trial", words: Sequence[str]) -> None:
        """Train one trial and record in the study how it ended."""
        from optuna.trial import TrialState

        reported = set(study.trials[trial.number].intermediate_values)

        def watch(epoch: int, value: float) -> bool:
            if not reported:
                _refuse_other_measure(trial)
            if epoch not in reported:
                trial.report(value, epoch)
                reported.add(epoch)
            return self.prune and trial.should_prune()

        try:
            config = self._config(words)
            folder = run_folder(config)
            trial.set_user_attr("folder", str(folder))
            # The process may have been stopped after a validation was saved and before it was reported.
            for epoch, value in validations(RunFolder(folder)):
                if watch(epoch, value):
                    raise GivenUp
            with isolated():
                folder = train(config, watch=watch)
        except JournalError:
            raise
        except GivenUp:
            study.tell(trial, state=TrialState.PRUNED)
        except (RunFailed, UserError) as error:
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, best_validation(RunFolder(folder)))


def _refuse_other_measure(trial: "optuna.Trial") -> None:
    """Raise UserError if p(x) is another thing in this trial's run than in the run of an earlier trial.

    The values of such trials cannot be compared: a density is not a probability.
    """
    folders = [each.user_attrs.get("folder") for each in trial.study.trials[: trial.number] if each.value is not None]
    own = _measure(trial.user_attrs["folder"])
    if other := next((found for folder in folders if folder and (found := _measure(folder)) not in ("", own)), None):
        raise UserError(f"p(x) is of the kind '{own}' here and '{other}' in other trials: these cannot be compared")


def _measure(folder: str) -> str:
    """Return what p(x) is in a run; "" if it has not recorded it."""
    return read_manifest(RunFolder(Path(folder))).get("measure", "")


def validations(folder: RunFolder) -> list[tuple[int, float]]:
    """Return the epochs and log-likelihoods, in nats, of a run's validations so far."""
    return [(int(line["epoch"]), line[VALIDATION]) for line in read_metrics(folder) if VALIDATION in line]


def best_validation(folder: RunFolder) -> float:
    """Return the best validation log-likelihood of a run, in nats."""
    return max(value for _, value in validations(folder))


def _interrupted(study: "optuna.Study") -> "optuna.Trial | None":
    """Return the trial whose process was stopped, or None; it keeps its number, and its run resumes."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        return optuna.Trial(study, trial._trial_id)
    return None


def _complete(trial: Any) -> bool:
    """Whether a trial that was read from a journal has fields such as a search writes."""
    words, folder, error = (trial.user_attrs.get(name) for name in ("words", "folder", "error"))
    numbers = [*trial.intermediate_values.values(), *([trial.value] if trial.state.name == "COMPLETE" else [])]
    return (
        (words is None or (isinstance(words, list) and all(isinstance(word, str) for word in words)))
        and all(text is None or isinstance(text, str) for text in (folder, error))
        and all(isinstance(number, int | float) for number in numbers)
    )


def trial_results(study: "optuna.Study") -> list[TrialResult]:
    """Return the results of the trials so far, in their order."""
    return [_result(trial) for trial in study.trials if trial.state.name != "WAITING"]


def _result(trial: Any) -> TrialResult:
    error = trial.user_attrs.get("error")
    names = {"COMPLETE": "finished", "PRUNED": "given up", "FAIL": "failed" if error else "interrupted"}
    value = trial.value if trial.state.name == "COMPLETE" else max(trial.intermediate_values.values(), default=None)
    words, folder = trial.user_attrs.get("words", []), trial.user_attrs.get("folder")
    return TrialResult(trial.number + 1, names.get(trial.state.name, "interrupted"), value, words, folder, error)
