"""Updates: all that a trainer knows of what is learned."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench.encoders import Encoder, Player
from vaebench.model import GenerativeModel
from vaebench.objective import Objective
from vaebench.training.schedules import LearningRate

__all__ = ["BoundLoss", "Loss", "PlayerLoss", "Settings", "Update"]


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
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, x: Tensor, settings: Settings, epoch: float, *, with_norm: bool) -> Loss:
        """Take one optimiser step; ``with_norm`` adds the gradient's norm (before clipping) to the metrics."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)
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


@dataclass(frozen=True)
class BoundLoss:
    """Minus the mean bound over a batch.

    The metrics are the bound itself with KL weight 1, its two parts, and, during a KL warm-up, the weighted
    bound that is being maximised.
    """

    objective: Objective
    model: GenerativeModel
    encoder: Encoder
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Precision of the networks; made anew for each step."""

    def __call__(self, x: Tensor, settings: Settings) -> Loss:
        """Return the loss for images x, (B, X)."""
        k, inner_k, beta = settings
        with self.autocast():
            value, drawn = self.objective(self.model, self.encoder, x, k, inner_k=inner_k, beta=beta)
        with torch.no_grad():
            metrics = {
                "bound": (value if beta == 1 else self.objective.bound(drawn.log_weights())).mean(),
                "reconstruction": drawn.log_likelihood.mean(),
                "kl": (drawn.log_q - drawn.log_prior).mean(),
            }
        if beta != 1:
            metrics["weighted_bound"] = value.mean()
        return Loss(-value.mean(), metrics)


@dataclass(frozen=True)
class PlayerLoss:
    """The loss of a player that an encoder brings along."""

    player: Player
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self, x: Tensor, settings: Settings) -> Loss:
        """Return the loss for images x, (B, X)."""
        del settings
        with self.autocast():
            value = self.player.loss(x)
        return Loss(value, {"loss": value})
