"""A training step: all updates, the means of their metrics, and the averaged weights. No part waits for the device."""

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench.train.schedules import StepSettings
from vaebench.train.update import Loss, Update

__all__ = ["AveragedWeights", "MetricMeans", "Moment", "Step"]


class Moment(NamedTuple):
    """A step of a training, and what the schedules say of it."""

    number: int
    """The first step of a training has number 1."""
    epoch: float
    settings: StepSettings
    with_norm: bool
    """Whether to log the norm of the gradient."""


class MetricMeans:
    """Means of metrics since the last log line. They stay on the device, so that no step waits for it.

    The tensors are never replaced, so that a graph of a step can add to them. The counts are kept on the host.
    """

    _NEVER = torch.iinfo(torch.int64).max

    def __init__(self, device: torch.device) -> None:
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        """The number of the current step."""
        self._bad = torch.full_like(self.number, self._NEVER)
        self._sums: dict[str, Tensor] = {}
        self._counts = Counter[str]()

    def add(self, prefix: str, loss: Loss) -> list[str]:
        """Add the numbers of one update and return their names; remember the first step with a loss that is not finite.

        Nothing on the host changes, except that a name is added at its first use.
        """
        # On a CPU a look at the number costs less than the kernels, and waits for nothing.
        if loss.value.device.type != "cpu":
            torch.minimum(self._bad, torch.where(loss.value.isfinite(), self._NEVER, self.number), out=self._bad)
        elif not math.isfinite(loss.value):
            torch.minimum(self._bad, self.number, out=self._bad)
        values = {f"{prefix}/{key}": value for key, value in loss.metrics.items()}
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(value)
        if values:
            sums = [self._sums[name] for name in values]
            torch._foreach_add_(sums, [*values.values()])  # pyright: ignore[reportPrivateImportUsage]
        return [*values]

    def count(self, names: list[str]) -> None:
        """Note on the host that the numbers of these names were added."""
        self._counts.update(names)

    def take(self) -> dict[str, float]:
        """Return the means, and reset them."""
        names = list(self._counts)
        totals = torch.stack([self._sums[name].reshape(()) for name in names]).tolist() if names else []
        for total in self._sums.values():
            total.zero_()
        means = {name: total / self._counts[name] for name, total in zip(names, totals, strict=True)}
        self._counts.clear()
        return means

    def first_bad_step(self) -> int | None:
        """Return the first step with a loss that was not finite, or None."""
        bad = int(self._bad)
        return None if bad == self._NEVER else bad

    def tensors(self) -> list[Tensor]:
        """Return the tensors that steps change."""
        return [self._bad, *self._sums.values()]


class AveragedWeights:
    """The exponential moving average of the weights of ``modules``, in a copy of them.

    The first average is the weights after the first step. Buffers are copied, not averaged.

    Args:
        modules: whose weights to average; they must not be replaced.
        decay: factor of the average at each step.
    """

    def __init__(self, modules: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(modules)
        self.count = 0
        """Steps averaged. It is kept on the host, so that no step copies it to the device."""
        self._decay = decay
        self._averages, self._weights = _detached(self.module.parameters()), _detached(modules.parameters())
        self._buffers, self._sources = list(self.module.buffers()), list(modules.buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights of a step to the average; the caller then adds 1 to ``count``."""
        if self.count == 0:
            torch._foreach_copy_(self._averages, self._weights)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_lerp_(self._averages, self._weights, 1 - self._decay)  # pyright: ignore[reportPrivateImportUsage]
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._sources)  # pyright: ignore[reportPrivateImportUsage]

    def tensors(self) -> list[Tensor]:
        """Return the tensors that :meth:`update` changes."""
        return self._averages + self._buffers

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state with the keys of torch's ``AveragedModel``, which earlier checkpoints have."""
        weights = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.count), **weights}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.count = int(state["n_averaged"])
        names = [name for name in state if name != "n_averaged"]
        self.module.load_state_dict({name.removeprefix("module."): state[name] for name in names})


def _detached(parameters: Any) -> list[Tensor]:
    return [parameter.detach() for parameter in parameters]


@dataclass
class Step:
    """Takes training steps; the trainer calls it, and a graph records it."""

    modules: nn.Module
    """Everything with weights."""
    updates: list[Update]
    """The optimisers' shares of a step, in order; the first is the main one."""
    means: MetricMeans
    averaged: AveragedWeights | None

    def __call__(self, x: Tensor, at: Moment) -> None:
        """Take a step for images x, (B, X)."""
        self.means.number.fill_(at.number)
        self.count(self.compute(x, at))

    def compute(self, x: Tensor, at: Moment) -> list[str]:
        """Do what a step does on the device; return the names of the metrics, for :meth:`count`."""
        names = []
        for index, update in enumerate(self.updates):
            prefix = "train" if index == 0 else update.name
            for _ in range(update.repeats):
                loss = update.step(x, at.settings, at.epoch, with_norm=at.with_norm)
                names += self.means.add(prefix, loss)
        if self.averaged is not None:
            self.averaged.update()
        return names

    def count(self, names: list[str]) -> None:
        """Do what a step does on the host."""
        self.means.count(names)
        if self.averaged is not None:
            self.averaged.count += 1

    def tensors(self) -> dict[str, list[Tensor]]:
        """Return the tensors that a step changes, by kind."""
        found = {
            "weights": [*self.modules.parameters(), *self.modules.buffers()],
            "averaged weights": [] if self.averaged is None else self.averaged.tensors(),
            "metrics": self.means.tensors(),
        }
        for update in self.updates:
            for state in update.optimizer.state.values():
                for name, value in state.items():
                    if isinstance(value, Tensor):
                        found.setdefault(f"{name} of {update.name}", []).append(value)
        return found
