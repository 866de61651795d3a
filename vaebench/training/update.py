"""Updates: all that a trainer knows of what is learned."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebench.training.schedules import LearningRate

__all__ = ["Loss", "Settings", "Update", "gradient_norm"]


class Settings(NamedTuple):
    """What the schedules say for one step."""

    k: int
    inner_k: int
    beta: float


class Loss(NamedTuple):
    """A scalar to minimise, and scalars to show beside it."""

    value: Tensor
    metrics: dict[str, Tensor]


@dataclass
class Update:
    """One optimiser's share of a training step."""

    name: str
    loss: Callable[[Tensor, Settings], Loss]
    """Maps images x, (B, X)."""
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    repeats: int = 1
    clip_norm: float | None = None
    starts: float = 0.0
    """The epoch before which it rests."""
    ends: float = math.inf
    """The epoch from which on it rests."""
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, x: Tensor, settings: Settings, epoch: float, *, with_norm: bool) -> Loss:
        """Take one optimiser step; ``with_norm`` adds the gradient's norm (before clipping) to the metrics."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)
        if not self.starts <= epoch < self.ends:
            return Loss(x.new_zeros(()), {})
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x, settings)
        loss.value.backward()
        metrics = {key: value.detach() for key, value in loss.metrics.items()}
        if self.clip_norm is not None:
            metrics["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        elif with_norm:
            metrics["gradient_norm"] = gradient_norm(self.parameters)
        self.optimizer.step()
        return Loss(loss.value.detach(), metrics)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of all gradients together."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
