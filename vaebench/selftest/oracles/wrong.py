"""Encoders with known mistakes, for controls: a check must detect them. They ignore the options of a draw."""

import math
from typing import Any

from torch import Tensor

from vaebench.bounds import log_mean_exp
from vaebench.encoders.base import Direction, Draw, Encoder
from vaebench.encoders.hierarchical import HierarchicalEncoder

__all__ = ["Miscounted", "WithoutOwnPsi"]


class Miscounted(Encoder):
    """Divide the sum of L + 1 ratios by L: log_q is too high by log((L + 1)/L)."""

    direction = Direction.UPPER_BOUND

    def __init__(self, right: HierarchicalEncoder) -> None:
        super().__init__()
        self.right = right

    def encode(self, x: Tensor) -> object:
        return self.right.encode(x)

    def sample(self, encoded: object, k: int, *, inner_k: int = 0, **options: Any) -> Draw:
        draw = self.right.sample(encoded, k, inner_k=inner_k)  # pyright: ignore[reportArgumentType]
        return Draw(draw.z, draw.log_q + math.log((inner_k + 1) / inner_k))


class WithoutOwnPsi(Encoder):
    """Score z with psi_1..L only, all drawn from tau: the lower bound on log p(x) becomes an upper bound."""

    direction = Direction.ESTIMATE

    def __init__(self, right: HierarchicalEncoder) -> None:
        super().__init__()
        self.right = right

    def encode(self, x: Tensor) -> Tensor:
        return x

    def sample(self, encoded: Tensor, k: int, *, inner_k: int = 0, **options: Any) -> Draw:
        mixing, conditional, reverse = self.right.mixing(encoded), self.right.conditional, self.right.reverse
        conditioned = conditional.condition(encoded)
        z = conditional(mixing.rsample((k,)), conditioned).rsample()
        tau = mixing if reverse is None else reverse(z, reverse.condition(encoded))
        psi = tau.rsample((inner_k, k) if len(tau.batch_shape) < z.dim() - 1 else (inner_k,))
        log_joint = mixing.log_prob(psi) + conditional(psi, conditioned).log_prob(z)
        return Draw(z, log_mean_exp(log_joint - tau.log_prob(psi)))
