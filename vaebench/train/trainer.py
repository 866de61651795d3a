"""The trainer: it runs updates over batches. It depends on no encoder, objective or data set."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from vaebench.errors import GivenUp, Interrupted, RunFailed
from vaebench.records import Recorder
from vaebench.records.checkpoint import Checkpoints
from vaebench.signals import Interruption
from vaebench.train.batches import Batches
from vaebench.train.display import Display
from vaebench.train.schedules import Course
from vaebench.train.step import AveragedWeights, MetricMeans, Moment, Step
from vaebench.train.update import Update

__all__ = ["Callbacks", "Progress", "Trainer", "Watch", "never_stop"]

_AGREE_EVERY = 10
"""Steps after which processes tell each other about signals."""
_SMALLEST_BREAKDOWN = 10.0
"""Nats of the validation log-likelihood. A smaller fall is no breakdown, however small the numbers are."""

Watch = Callable[[int, float], bool]
"""Maps (epoch, validation log-likelihood in nats) to whether to end the run."""


TakeStep = Callable[[Tensor, Moment], None]
"""Takes a step for images x, (B, X)."""


def never_stop(epoch: int, value: float) -> bool:
    """Default callback: never stop a run early."""
    del epoch, value
    return False


@dataclass(frozen=True)
class Callbacks:
    """The functions that a trainer calls at a validation; ``modules`` are the weights to validate and keep."""

    validate: Callable[[Any], float]
    """Maps modules to a fixed estimate of the validation log-likelihood, nats."""
    diagnose: Callable[[Any], dict[str, float]] = lambda modules: {}
    """Maps modules to numbers by name, which are recorded only."""
    draw: Callable[[Any, int], None] = lambda modules, step: None
    """Records images drawn from the modules at a step."""
    watch: Watch = never_stop


@dataclass
class Progress:
    """How far a training has come."""

    epoch: int = 0
    """Epochs completed."""
    position: int = 0
    """Batches done in the current epoch."""
    step: int = 0
    """Steps completed."""
    best: float = float("-inf")
    """The best validation log-likelihood, nats."""
    best_epoch: int = 0
    peak: float = float("-inf")
    """The best validation log-likelihood since the schedules ended, nats; early stopping compares with it."""
    without_gain: int = 0
    """Validations since ``peak``."""
    broken_epoch: int = 0
    """The last epoch that showed a breakdown: a validation far below the best until then; 0 if none did."""
    stopped: bool = False
    """Whether training stopped early."""
    seconds: float = 0.0
    """Training time of all sessions."""

    @property
    def broken(self) -> bool:
        """Whether the training broke down, and has found no better weights since."""
        return self.best_epoch < self.broken_epoch

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "Progress":
        """Return the progress in a checkpoint, which may come from a version without ``peak``.

        TypeError if it is not of these fields and types.
        """
        progress = cls(**{"peak": state["best"], **state})
        for each in fields(cls):
            if type(value := getattr(progress, each.name)) is not type(each.default):
                raise TypeError(f"progress.{each.name} must be of type {type(each.default).__name__}, got {value!r}")
        return progress


@dataclass
class Trainer:
    """Runs updates over batches, validates, records and saves; a resumed run is bitwise equal to an uninterrupted one.

    Only the first process of a run has a recorder and checkpoints.
    """

    modules: nn.Module
    """Everything with weights, for checkpoints and averaging."""
    updates: list[Update]
    """The optimisers' shares of a step, in order; the first is the main one."""
    batches: Batches
    course: Course
    callbacks: Callbacks
    display: Display
    interruption: Interruption
    identity: str
    """Names the configuration in every checkpoint."""
    recorder: Recorder | None = None
    checkpoints: Checkpoints | None = None
    progress: Progress = field(default_factory=Progress)
    graphs: Callable[[Step], TakeStep] | None = None
    """Maps the function that takes a step eagerly to one that uses graphs; None: steps run eagerly."""

    def __post_init__(self) -> None:
        ema = self.course.ema
        self.averaged = None if ema is None else AveragedWeights(self.modules, ema)
        self._steps = len(self.batches)
        self._replicas = self.updates[0].replicas
        self._metrics = MetricMeans(self.batches.intensities.device)
        self._changing = self.course.changing()
        self._take = self._taker()
        self._restart_clock()

    def _taker(self) -> TakeStep:
        """Return the function that takes a step. Its graphs hold tensors of the optimisers, which loading replaces."""
        step = Step(self.modules, self.updates, self._metrics, self.averaged)
        return step if self.graphs is None else self.graphs(step)

    @property
    def evaluated(self) -> nn.Module:
        """The modules to validate and keep: the averaged ones, if weights are averaged."""
        return self.modules if self.averaged is None else self.averaged.module

    @property
    def kept(self) -> str:
        """The state that a failure leaves, in words."""
        saved = self.checkpoints is not None and self.checkpoints.exists()
        return "checkpoints/last.pt holds earlier weights" if saved else "nothing was saved"

    def run(self) -> Progress:
        """Train to the end of the course.

        Raises:
            RunFailed: a loss, or every validation log-likelihood, was not finite.
            UserError: the disk is full.
            Interrupted: a signal came; the state is saved.
            GivenUp: ``callbacks.watch`` ended the run; the state is saved.
        """
        progress = self.progress
        with self.display.training(self.course.epochs, self._steps, progress.step):
            while progress.epoch < self.course.epochs and not progress.stopped:
                self.epoch()
        if not math.isfinite(progress.best):
            raise RunFailed(
                f"no validation log-likelihood of {progress.epoch} epochs was finite, so there are no weights to keep. "
                "Try a lower optimizer.lr."
            )
        return progress

    def epoch(self) -> None:
        """Train to the end of the current epoch; see :meth:`run`."""
        progress, started = self.progress, time.monotonic() - self.progress.seconds
        self._restart_clock()
        for x in self.batches.epoch(progress.epoch, progress.position):
            self._step(x)
            progress.seconds = time.monotonic() - started
            if progress.step % self.course.log_every == 0:
                self._log()
            if self._is_interrupted():
                self._save_last()
                raise Interrupted
        progress.epoch, progress.position = progress.epoch + 1, 0
        self._finish_epoch()
        progress.seconds = time.monotonic() - started

    def _is_interrupted(self) -> bool:
        noted = self.interruption.signal is not None
        if self._replicas.count == 1:
            return noted
        return self.progress.step % _AGREE_EVERY == 0 and self._replicas.any(noted)

    def _step(self, x: Tensor) -> None:
        progress = self.progress
        epoch = progress.epoch + progress.position / self._steps
        progress.step += 1
        progress.position += 1
        with_norm = progress.step % self.course.log_every == 0
        self._images += len(x)
        self._take(x, Moment(progress.step, epoch, self.course.settings(epoch), with_norm))

    def _restart_clock(self) -> None:
        """Measure speed from now on, for example after a validation."""
        self._images, self._since = 0, time.monotonic()

    def _log(self) -> None:
        self._check_finite()
        progress, epoch = self.progress, self.progress.epoch + self.progress.position / self._steps
        values = self._metrics.take()
        values["train/images_per_second"] = self._images / max(1e-9, time.monotonic() - self._since)
        self._restart_clock()
        values["train/learning_rate"] = self.updates[0].optimizer.param_groups[0]["lr"]
        settings = self.course.settings(epoch)
        values |= {f"train/{name}": getattr(settings, name) for name in self._changing}
        self._record(epoch, values)
        self.display.step(progress.step, values)

    def _record(self, epoch: float, values: dict[str, float]) -> None:
        if self.recorder is not None:
            self.recorder.scalars(self.progress.step, epoch, values, self.progress.seconds)

    def _finish_epoch(self) -> None:
        self._check_finite()
        progress, course = self.progress, self.course
        last = progress.epoch == course.epochs
        if progress.epoch % course.validate_every == 0 or last:
            value = self._validate()
            if self.callbacks.watch(progress.epoch, value) and not last:
                self._save_last()
                raise GivenUp
        if course.image_every and (progress.epoch % course.image_every == 0 or last or progress.stopped):
            self.callbacks.draw(self.evaluated, progress.step)
        if progress.epoch % course.checkpoint_every == 0 or last or progress.stopped:
            self._save_last()

    def _validate(self) -> float:
        progress, course = self.progress, self.course
        value = self.callbacks.validate(self.evaluated)
        if self.recorder is not None:
            values = {"log_likelihood": value, **self.callbacks.diagnose(self.evaluated)}
            self._record(progress.epoch, {f"validation/{name}": number for name, number in values.items()})
        self._notice_breakdown(value)
        if value > progress.best:
            progress.best, progress.best_epoch = value, progress.epoch
            if self.checkpoints is not None:
                self.checkpoints.save(self._best_state(), "best")
        # While the objective changes, a fall says nothing about the training to come.
        if value > progress.peak or progress.epoch <= course.settled:
            progress.peak, progress.without_gain = value, 0
        else:
            progress.without_gain += 1
        patient = course.patience is None or progress.without_gain < course.patience
        progress.stopped = not patient and progress.epoch < course.epochs
        self.display.validated(progress.epoch, course.epochs, value, progress.best_epoch)
        return value

    def _notice_breakdown(self, value: float) -> None:
        """Warn if a validation lost more than the best one's own size, once until there is a better one."""
        progress = self.progress
        if progress.broken or value >= progress.best - max(abs(progress.best), _SMALLEST_BREAKDOWN):
            return
        progress.broken_epoch = progress.epoch
        self.display.note(
            f"warning: the validation log-likelihood fell from {progress.best:.2f} (epoch {progress.best_epoch}) to "
            f"{value:.2f} (epoch {progress.epoch}): the training broke down. The weights of epoch "
            f"{progress.best_epoch} are kept. Try trainer.clip_norm at four times the usual train/gradient_norm, or a "
            "lower optimizer.lr."
        )

    def _check_finite(self) -> None:
        bad = self._metrics.first_bad_step()
        if bad is None:
            return
        raise RunFailed(
            f"the loss was not finite at step {bad} (epoch {(bad - 1) // self._steps + 1}); {self.kept}. "
            "Try a lower optimizer.lr, trainer.clip_norm=10, or trainer.kl_warmup=10."
        )

    def _save_last(self) -> None:
        self._check_finite()
        if self.checkpoints is not None:
            self.checkpoints.save(self.state_dict())

    def _best_state(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "validation_log_likelihood": self.progress.best,
            "modules": self.evaluated.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything on which the rest of the training depends, and what was recorded.

        Random numbers have no state: they depend on the seed, the epoch and the batch.
        """
        return {
            "identity": self.identity,
            "progress": asdict(self.progress),
            "recorded": [] if self.recorder is None else self.recorder.tags(self.progress.step),
            "modules": self.modules.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizers": {update.name: update.optimizer.state_dict() for update in self.updates},
            "written": None if self.recorder is None else {**self.recorder.written},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.progress = Progress.restored(state["progress"])
        self.modules.load_state_dict(state["modules"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        for update in self.updates:
            update.optimizer.load_state_dict(state["optimizers"][update.name])
        self._take = self._taker()
