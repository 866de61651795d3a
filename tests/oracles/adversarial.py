"""An adversarial encoder over two states, whose discriminator has a known optimum."""

from typing import Any

import torch
from torch import Tensor, nn

from oracles.finite import PRIOR, Scripted
from vaebench.encoders.adversarial import AdversarialEncoder
from vaebench.nets.adversarial import LogRatio, Sampler
from vaebench.selftest.oracles.families import Affine, Quadratic
from vaebench.train.losses import AuxiliaryUpdateLoss
from vaebench.train.schedules import StepSettings
from vaebench.train.update import Update

__all__ = [
    "DUAL_LOSS",
    "SETTINGS",
    "T_STAR",
    "Affine",
    "Q",
    "Quadratic",
    "StatePrior",
    "StateTable",
    "States",
    "train_discriminator",
]

SETTINGS = StepSettings(k=1, inner_k=0, beta=1.0)


def train_discriminator(
    encoder: AdversarialEncoder, x: Tensor, steps: int, lr: float, *, sgd: bool = False, momentum: float = 0.0
) -> float:
    """Train the discriminator alone, with the package's own losses and updates; return its last loss."""
    player = encoder.auxiliary_losses()["discriminator"]
    optimizer = (
        torch.optim.SGD(player.parameters, lr, momentum=momentum) if sgd else torch.optim.Adam(player.parameters, lr)
    )
    # The rate falls to 0, so that the remaining sampling noise averages out.
    rate = (lambda epoch: lr) if sgd else (lambda epoch: lr * (1 - epoch) ** 2)
    update = Update("discriminator", AuxiliaryUpdateLoss(player), optimizer, rate)
    loss = torch.nan
    for step in range(steps):
        loss = update.step(x, SETTINGS, step / steps, with_norm=False).value.item()
    return loss


Q = (0.61, 0.39)
"""q(z|x) of the finite states."""
T_STAR = (0.7096764825, -0.5849336055)
"""log q(z|x) - log p(z) of both states, nats."""
DUAL_LOSS = 1.2877233595
"""The discriminator's loss at its optimum: 2 log 2 - 2 JSD(q, p(z)), nats."""


class States(Sampler):
    """States 0 and 1 over 100 images, with frequencies exactly equal to ``probabilities``."""

    def __init__(self, probabilities: tuple[float, float]) -> None:
        super().__init__()
        self.ones = round(100 * probabilities[1])

    def condition(self, x: Tensor) -> Tensor:
        return x

    def forward(self, conditioned: Tensor, k: int) -> Tensor:
        states = (torch.arange(len(conditioned), device=conditioned.device) < self.ones).to(conditioned.dtype)
        return states.view(1, -1, 1).expand(k, -1, -1)

    def moments(self, conditioned: Tensor, *, full: bool = False) -> tuple[Tensor, Tensor]:
        raise AssertionError("no contrast here")


class StatePrior(nn.Module):
    """p(z); the frequencies of its draws are exactly its probabilities."""

    def __init__(self, probabilities: tuple[float, float] = PRIOR) -> None:
        super().__init__()
        self.register_buffer("probabilities", torch.tensor(probabilities))
        self.probabilities: Tensor

    def forward(self) -> Scripted:
        return _AsOftenAsProbable(self.probabilities, [])


class _AsOftenAsProbable(Scripted):
    def sample(self, sample_shape: Any = ()) -> Tensor:
        sampler = States(tuple(self.probabilities.tolist()))  # pyright: ignore[reportArgumentType]
        return sampler(self.probabilities.new_zeros(sample_shape[-1], 1), sample_shape[0])


class StateTable(LogRatio):
    """T(z) as one number for each state."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(2))

    def forward(self, z: Tensor, conditioned: Tensor) -> Tensor:
        del conditioned
        return self.values[z.squeeze(-1).long()]
