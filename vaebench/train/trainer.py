"""The one trainer: it knows updates, batches and schedules, and no encoder, objective or dataset."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vaebench import runtime
from vaebench.errors import GivenUp, Interrupted, RunFailed
from vaebench.records import Recorder
from vaebench.records.checkpoint import Checkpoints
from vaebench.train.batches import Batches
from vaebench.train.display import Display
from vaebench.train.replicas import Replicas
from vaebench.train.update import ALONE, Settings, Update

__all__ = ["Plan", "Progress", "Trainer"]

# Steps between two times that processes ask each other whether a signal came.
_AGREE_EVERY = 10


@dataclass(frozen=True)
class Plan:
    """The course of a training; functions take an epoch, which may be fractional."""

    epochs: int
    k: Callable[[float], int]
    inner_k: Callable[[float], int]
    beta: Callable[[float], float]
    """Weight of the KL term."""
    ema: float | None = None
    """Decay of the averaged weights that are validated and kept, or None."""
    patience: int | None = None
    """Validations without a gain before training stops, or None."""
    validate_every: int = 1
    log_every: int = 50
    """Steps."""
    image_every: int = 0
    checkpoint_every: int = 1

    def settings(self, epoch: float) -> Settings:
        """Return what the schedules say at an epoch."""
        return Settings(self.k(epoch), self.inner_k(epoch), self.beta(epoch))


@dataclass
class Progress:
    """How far a training has come."""

    epoch: int = 0
    """Epochs completed."""
    position: int = 0
    """Batches done of the epoch under way."""
    step: int = 0
    best: float = float("-inf")
    """The best validation log-likelihood, nats."""
    best_epoch: int = 0
    without_gain: int = 0
    stopped: bool = False
    """Whether training stopped early."""
    seconds: float = 0.0
    """Time spent in all sessions."""


class Trainer:
    """Runs updates over batches, validates, records, and saves so that a resumed run is bitwise the same.

    Args:
        modules: everything with weights, for checkpoints and averaging.
        updates: the optimisers' shares of a step, taken in this order; the first is the main one.
        batches: the training images.
        plan: the course of the training.
        validate: a fixed estimate of the validation log-likelihood of these modules, in nats.
        recorder: where metrics go; None in all processes of a run but the first.
        checkpoints: where states go; likewise.
        identity: names the configuration in every checkpoint.
        device: of the modules.
        display: shows progress to a person.
        interruption: notes signals.
        pictures: draws images of these modules at a step.
        replicas: the processes of this run, which divide every batch among themselves.
        watch: is told (epoch, validation log-likelihood in nats) after each validation; True ends the run.
        diagnose: numbers by name, recorded with each validation of these modules; they choose nothing.
    """

    def __init__(
        self,
        modules: nn.Module,
        updates: list[Update],
        batches: Batches,
        plan: Plan,
        *,
        validate: Callable[[Any], float],
        recorder: Recorder | None,
        checkpoints: Checkpoints | None,
        identity: str,
        device: torch.device,
        display: Display,
        interruption: runtime.Interruption,
        pictures: Callable[[Any, int], None],
        replicas: Replicas = ALONE,
        diagnose: Callable[[Any], dict[str, float]] = lambda modules: {},
        watch: Callable[[int, float], bool] = lambda epoch, value: False,
    ) -> None:
        self.modules = modules
        self.updates = updates
        self.batches = batches
        self.plan = plan
        self.validate = validate
        self.recorder = recorder
        self.checkpoints = checkpoints
        self.identity = identity
        self.device = device
        self.display = display
        self.interruption = interruption
        self.pictures = pictures
        self.replicas = replicas
        self.diagnose = diagnose
        self.watch = watch
        self.progress = Progress()
        self.averaged = _averaged(modules, plan.ema)
        self._window = _Window(device)
        self._batches_per_epoch = len(batches)
        # What does not change needs no curve.
        self._scheduled = [
            name
            for name in ("k", "inner_k", "beta")
            if len({getattr(plan, name)(epoch) for epoch in range(plan.epochs + 1)}) > 1
        ]

    @property
    def evaluated(self) -> nn.Module:
        """The modules that are validated and kept: the averaged ones where there are."""
        return self.modules if self.averaged is None else self.averaged.module

    def run(self) -> Progress:
        """Train to the end of the plan.

        Raises:
            RunFailed: a loss was not finite.
            UserError: the disk is full.
            Interrupted: a signal came; the state is saved.
        """
        progress = self.progress
        with self.display.training(self.plan.epochs * len(self.batches), progress.step):
            while progress.epoch < self.plan.epochs and not progress.stopped:
                self.epoch()
        return progress

    def epoch(self) -> None:
        """Train to the end of the epoch under way; see :meth:`run`."""
        progress, started = self.progress, time.monotonic() - self.progress.seconds
        self._window.restart_clock()
        for x in self.batches.epoch(progress.epoch, progress.position):
            self._step(x)
            progress.seconds = time.monotonic() - started
            if progress.step % self.plan.log_every == 0:
                self._log()
            if self._is_interrupted():
                self._save_last()
                raise Interrupted
        progress.epoch, progress.position = progress.epoch + 1, 0
        self._finish_epoch()
        progress.seconds = time.monotonic() - started

    def _is_interrupted(self) -> bool:
        noted = self.interruption.signal is not None
        if self.replicas.count == 1:
            return noted
        return self.progress.step % _AGREE_EVERY == 0 and self.replicas.any(noted)

    def _step(self, x: Tensor) -> None:
        progress = self.progress
        epoch = progress.epoch + progress.position / self._batches_per_epoch
        settings = self.plan.settings(epoch)
        progress.step += 1
        progress.position += 1
        due = progress.step % self.plan.log_every == 0
        self._window.images += len(x)
        for index, update in enumerate(self.updates):
            prefix = "train" if index == 0 else update.name
            for _ in range(update.repeats):
                loss = update.step(x, settings, epoch, with_norm=due)
                self._window.add(prefix, loss.value, loss.metrics, progress.step)
        if self.averaged is not None:
            self.averaged.update_parameters(self.modules)

    def _log(self) -> None:
        self._check_finite()
        progress, epoch = self.progress, self.progress.epoch + self.progress.position / self._batches_per_epoch
        values = self._window.take()
        values["train/learning_rate"] = self.updates[0].optimizer.param_groups[0]["lr"]
        values |= {f"train/{name}": getattr(self.plan, name)(epoch) for name in self._scheduled}
        self._record(epoch, values)
        self.display.step(progress.step, values)

    def _record(self, epoch: float, values: dict[str, float]) -> None:
        if self.recorder is not None:
            self.recorder.scalars(self.progress.step, epoch, values, self.progress.seconds)

    def _finish_epoch(self) -> None:
        self._check_finite()
        progress, plan = self.progress, self.plan
        last = progress.epoch == plan.epochs
        if progress.epoch % plan.validate_every == 0 or last:
            value = self._validate()
            if self.watch(progress.epoch, value) and not last:
                self._save_last()
                raise GivenUp
        if plan.image_every and (progress.epoch % plan.image_every == 0 or last or progress.stopped):
            self.pictures(self.evaluated, progress.step)
        if progress.epoch % plan.checkpoint_every == 0 or last or progress.stopped:
            self._save_last()

    def _validate(self) -> float:
        progress = self.progress
        value = self.validate(self.evaluated)
        if self.recorder is not None:
            values = {"log_likelihood": value, **self.diagnose(self.evaluated)}
            self._record(progress.epoch, {f"validation/{name}": number for name, number in values.items()})
        if value > progress.best:
            progress.best, progress.best_epoch, progress.without_gain = value, progress.epoch, 0
            if self.checkpoints is not None:
                self.checkpoints.save(self._best_state(), "best")
        else:
            progress.without_gain += 1
        progress.stopped = self.plan.patience is not None and progress.without_gain >= self.plan.patience
        self.display.validated(progress.epoch, self.plan.epochs, value, progress.best_epoch)
        return value

    def _check_finite(self) -> None:
        bad = self._window.first_bad_step()
        if bad is None:
            return
        saved = self.checkpoints is not None and self.checkpoints.exists()
        kept = "the weights before it are in checkpoints/last.pt" if saved else "nothing was saved"
        raise RunFailed(
            f"the loss was not finite at step {bad} (epoch {self.progress.epoch + 1}); {kept}. "
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
        """Return all that the rest of the training depends on."""
        return {
            "identity": self.identity,
            "progress": asdict(self.progress),
            "modules": self.modules.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizers": {update.name: update.optimizer.state_dict() for update in self.updates},
            "batches": self.batches.state_dict(),
            "random": runtime.random_state(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.progress = Progress(**state["progress"])
        self.modules.load_state_dict(state["modules"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        for update in self.updates:
            update.optimizer.load_state_dict(state["optimizers"][update.name])
        self.batches.load_state_dict(state["batches"])
        runtime.set_random_state(state["random"], self.device)


def _averaged(modules: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    return AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(decay))


class _Window:
    """Means of metrics since the last log line, kept on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure speed from here, as after a pause for validation."""
        self.images, self._since = 0, time.monotonic()

    def add(self, prefix: str, loss: Tensor, metrics: dict[str, Tensor], step: int) -> None:
        """Add one step's numbers and note the first loss that is not finite."""
        fresh = (self._bad < 0) & ~loss.isfinite()
        self._bad = torch.where(fresh, step, self._bad)
        for key, value in metrics.items():
            total, count = self._sums.get(f"{prefix}/{key}", (torch.zeros_like(value), 0))
            self._sums[f"{prefix}/{key}"] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """Return the means and the speed, and start again."""
        values = {key: float(total) / count for key, (total, count) in self._sums.items()}
        values["train/images_per_second"] = self.images / max(1e-9, time.monotonic() - self._since)
        self._sums = {}
        self.restart_clock()
        return values

    def first_bad_step(self) -> int | None:
        """Return the first step with a loss that is not finite."""
        bad = int(self._bad)
        return None if bad < 0 else bad
