"""Search for the settings with the best validation log-likelihood; each trial is an ordinary run.

optuna chooses the settings (https://arxiv.org/abs/1907.10902) and keeps a journal of JSON lines.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaebench.config import Config, compose, run_folder
from vaebench.config.search import Space
from vaebench.errors import GivenUp, RunFailed, UserError
from vaebench.isolation import isolated
from vaebench.records import RunFolder, read_metrics
from vaebench.records.files import exclusive
from vaebench.train.session import train

if TYPE_CHECKING:
    import optuna

__all__ = ["Search", "TrialResult", "trial_results"]

VALIDATION = "validation/log_likelihood"
TRIALS_BEFORE_PRUNING = 5


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
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        self._folder.mkdir(parents=True, exist_ok=True)
        journal = str(self._folder / f"{self.name}.jsonl")
        busy = "another process runs this search ({}): wait for it, or change the settings to search."
        with exclusive(self._folder / f"{self.name}.lock", wait=0.5, busy=busy.format):
            storage = optuna.storages.JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
            study = optuna.create_study(
                storage=storage,
                study_name=self.name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(TRIALS_BEFORE_PRUNING) if self.prune else optuna.pruners.NopPruner(),
            )
            # A resumed search must not draw the same settings again.
            study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
            _retry_interrupted(study)
            yield study

    def run(self, study: "optuna.Study", trials: int) -> Iterator[TrialResult]:
        """Run trials until the study has ``trials`` in all, and yield the result of each new one.

        Raises:
            SystemExit: a signal; the current trial is saved, and the same search resumes it.
        """
        while sum(one.state != "interrupted" for one in trial_results(study)) < trials:
            trial = study.ask()
            words = [_suggested(trial, space) for space in self.spaces]
            trial.set_user_attr("words", words)
            print(f"\n== trial {trial.number + 1}: {' '.join(words)}", flush=True)
            self._train(study, trial, words)
            yield trial_results(study)[-1]

    def _train(self, study: "optuna.Study", trial: "optuna.Trial", words: Sequence[str]) -> None:
        """Train one trial and record in the study how it ended."""
        from optuna.trial import TrialState

        def watch(epoch: int, value: float) -> bool:
            trial.report(value, epoch)
            return self.prune and trial.should_prune()

        try:
            config = self._config(words)
            trial.set_user_attr("folder", str(run_folder(config)))
            with isolated():
                folder = train(config, watch=watch)
        except GivenUp:
            study.tell(trial, state=TrialState.PRUNED)
        except (RunFailed, UserError) as error:
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, best_validation(RunFolder(folder)))


def _suggested(trial: "optuna.Trial", space: Space) -> str:
    """Return one setting, with the value that optuna chooses."""
    if space.choices:
        return f"{space.key}={trial.suggest_categorical(space.key, space.choices)}"
    if space.whole:
        return f"{space.key}={trial.suggest_int(space.key, int(space.low), int(space.high), log=space.log)}"
    return f"{space.key}={trial.suggest_float(space.key, space.low, space.high, log=space.log)!r}"


def best_validation(folder: RunFolder) -> float:
    """Return the best validation log-likelihood of a run, in nats."""
    return max(line[VALIDATION] for line in read_metrics(folder) if VALIDATION in line)


def _retry_interrupted(study: "optuna.Study") -> None:
    """Enqueue the trials whose process was stopped; their runs resume from their checkpoints."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def trial_results(study: "optuna.Study") -> list[TrialResult]:
    """Return the results of the trials so far, in their order."""
    return [_result(trial) for trial in study.trials if trial.state.name != "WAITING"]


def _result(trial: Any) -> TrialResult:
    error = trial.user_attrs.get("error")
    names = {"COMPLETE": "finished", "PRUNED": "given up", "FAIL": "failed" if error else "interrupted"}
    value = trial.value if trial.state.name == "COMPLETE" else max(trial.intermediate_values.values(), default=None)
    words, folder = trial.user_attrs.get("words", []), trial.user_attrs.get("folder")
    return TrialResult(trial.number + 1, names.get(trial.state.name, "interrupted"), value, words, folder, error)
