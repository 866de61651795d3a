"""A search for settings by validation log-likelihood: every trial is an ordinary run.

The search itself is optuna's (https://arxiv.org/abs/1907.10902); its journal holds plain JSON.
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

__all__ = ["Outcome", "Search"]

VALIDATION = "validation/log_likelihood"
TRIALS_BEFORE_PRUNING = 5


@dataclass(frozen=True)
class Outcome:
    """What became of one trial."""

    number: int
    state: str
    """``finished``, ``given up``, ``failed`` or ``interrupted``."""
    value: float | None
    """The best validation log-likelihood that was seen, nats."""
    words: list[str]
    """The settings that were searched."""
    folder: str | None
    error: str | None = None


class Search:
    """One search, kept in ``<output_dir>/.studies``: the same words go on with it.

    Args:
        fixed: settings of all trials.
        spaces: what is searched.
        prune: give a trial up once it is below the median of the earlier ones at the same epoch.
        seed: of the choice of settings.
    """

    def __init__(self, fixed: Sequence[str], spaces: Sequence[Space], *, prune: bool, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError("vaebench tune needs a package: pip install 'vaebench[tune]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.fixed, self.spaces, self.prune, self.seed = list(fixed), list(spaces), prune, seed
        digest = hashlib.sha256(repr(sorted([*fixed, *(space.word for space in spaces)])).encode()).hexdigest()
        self.name = digest[:12]
        self.place = Path(self._config([space.example() for space in spaces]).output_dir) / ".studies"

    def _config(self, words: Sequence[str]) -> Config:
        # What is searched must never be chosen by test images.
        return compose([*self.fixed, *words, "trainer.evaluate=false"])

    @contextlib.contextmanager
    def opened(self) -> Iterator["optuna.Study"]:
        """Yield the study, with no other process at it."""
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        self.place.mkdir(parents=True, exist_ok=True)
        log = str(self.place / f"{self.name}.jsonl")
        busy = "another process is at this search ({}): wait for it, or search something else."
        with exclusive(self.place / f"{self.name}.lock", wait=0.5, busy=busy.format):
            storage = optuna.storages.JournalStorage(JournalFileBackend(log, lock_obj=JournalFileOpenLock(log)))
            study = optuna.create_study(
                storage=storage,
                study_name=self.name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(TRIALS_BEFORE_PRUNING) if self.prune else optuna.pruners.NopPruner(),
            )
            # A search that goes on must not draw again what it drew before.
            study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
            _retry_dead(study)
            yield study

    def run(self, study: "optuna.Study", trials: int) -> Iterator[Outcome]:
        """Try settings until ``trials`` are done in all; yield what becomes of each.

        Raises:
            SystemExit: a signal; the trial under way is saved, and the same search goes on with it.
        """
        while len([one for one in outcomes(study) if one.state != "interrupted"]) < trials:
            trial = study.ask()
            words = [self._suggested(trial, space) for space in self.spaces]
            trial.set_user_attr("words", words)
            print(f"\n== trial {trial.number + 1}: {' '.join(words)}", flush=True)
            self._tried(study, trial, words)
            yield outcomes(study)[-1]

    def _suggested(self, trial: "optuna.Trial", space: Space) -> str:
        if space.choices:
            return f"{space.key}={trial.suggest_categorical(space.key, space.choices)}"
        if space.whole:
            return f"{space.key}={trial.suggest_int(space.key, int(space.low), int(space.high), log=space.log)}"
        return f"{space.key}={trial.suggest_float(space.key, space.low, space.high, log=space.log)!r}"

    def _tried(self, study: "optuna.Study", trial: "optuna.Trial", words: Sequence[str]) -> None:
        """Train one trial, and tell the study how it ended."""
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


def best_validation(folder: RunFolder) -> float:
    """Return the best validation log-likelihood of a run, nats."""
    return max(line[VALIDATION] for line in read_metrics(folder) if VALIDATION in line)


def _retry_dead(study: "optuna.Study") -> None:
    """Take up again the trials whose process was stopped; their runs go on from their checkpoints."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def outcomes(study: "optuna.Study") -> list[Outcome]:
    """Return what became of the trials so far, in their order."""
    return [_outcome(trial) for trial in study.trials if trial.state.name != "WAITING"]


def _outcome(trial: Any) -> Outcome:
    error = trial.user_attrs.get("error")
    names = {"COMPLETE": "finished", "PRUNED": "given up", "FAIL": "failed" if error else "interrupted"}
    seen = trial.intermediate_values.values()
    value = trial.value if trial.state.name == "COMPLETE" else max(seen, default=None)
    words, folder = trial.user_attrs.get("words", []), trial.user_attrs.get("folder")
    return Outcome(trial.number + 1, names.get(trial.state.name, "interrupted"), value, words, folder, error)
