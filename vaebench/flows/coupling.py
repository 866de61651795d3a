"""Coupling flows: a function of one half of the coordinates and of the image transforms the other half."""

from abc import abstractmethod

import torch
from torch import Tensor

from vaebench.arguments import at_least
from vaebench.distributions import at_least_float32
from vaebench.flows.flow import Flow, FlowContext, StepParameters, Transformed, gradient_of, small_linear
from vaebench.nets.dense import AdditiveMLP

__all__ = ["Coupling"]


class Coupling(Flow):
    """z'_i = t(z_i; network(kept half, x)) for each coordinate of the other half, t increasing. Abstract.

    Source: Dinh, Krueger and Bengio 2015, https://arxiv.org/abs/1410.8516

    Args:
        context: the widths of the step; the halves swap roles from step to step.
        settings_per_coordinate: P, the number of settings of ``transform`` for one coordinate.
        width: hidden units in a layer of the network.
        depth: hidden layers.

    Raises:
        ValueError: an argument is out of range, or there are fewer than two coordinates.
    """

    def __init__(self, context: FlowContext, settings_per_coordinate: int, width: int, depth: int) -> None:
        super().__init__()
        at_least(1, width=width, depth=depth)
        if context.latent_dim < 2:
            raise ValueError(f"latent_dim must be >= 2 for coupling flows, got {context.latent_dim}")
        self.cut = context.latent_dim // 2
        self.moves_second = context.index % 2 == 0
        kept = self.cut if self.moves_second else context.latent_dim - self.cut
        self.settings = settings_per_coordinate
        self.network = AdditiveMLP(context.features, kept, [width] * depth, context.activation)
        self.head = small_linear(width, (context.latent_dim - kept) * settings_per_coordinate)

    @abstractmethod
    def transform(self, value: Tensor, settings: Tensor) -> tuple[Tensor, Tensor]:
        """Return t(value) and log t'(value), (..., N) each, for settings (..., P, N), which are about 0 at first."""

    @abstractmethod
    def restore(self, value: Tensor, settings: Tensor) -> Tensor:
        """Return the inverse of t at ``value``."""

    def condition(self, features: Tensor) -> StepParameters:
        """Return the features' share of the network's first layer, (B, width)."""
        return (self.network.condition(features),)

    def forward(self, z: Tensor, conditioned: StepParameters) -> Transformed:
        kept, moved = self._halves(z)
        moved, log_slope = self.transform(moved, self._settings(kept, conditioned))
        return Transformed(self._joined(kept, moved), log_slope.sum(-1))

    def inverse(self, z: Tensor, conditioned: StepParameters) -> Tensor:
        """Return the input of ``forward``, in one pass."""
        kept, moved = self._halves(z)
        return self._joined(kept, self.restore(moved, self._settings(kept, conditioned)))

    def solve_transposed(self, z: Tensor, transformed: Tensor, conditioned: StepParameters, gradient: Tensor) -> Tensor:
        """Solve the block triangular system: first for the moved half, then for the kept half."""
        del conditioned
        # Given the kept half, each moved coordinate depends on itself alone, so the gradient of the sum is t'.
        moved = self._halves(transformed)[1]
        slope = self._halves(gradient_of(moved.sum(), z))[1]
        kept_gradient, moved_gradient = self._halves(gradient)
        solved = moved_gradient / slope
        through_network = self._halves(gradient_of((moved * solved).sum(), z))[0]
        return self._joined(kept_gradient - through_network, solved)

    def _settings(self, kept: Tensor, conditioned: StepParameters) -> Tensor:
        """Return (K, B, P, N); with N last, CPUs vectorise operations over P."""
        raw = self.head(self.network(kept, conditioned[0]))
        return at_least_float32(raw).unflatten(-1, (self.settings, -1))

    def _halves(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept and the moved coordinates."""
        first, second = z[..., : self.cut], z[..., self.cut :]
        return (first, second) if self.moves_second else (second, first)

    def _joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved] if self.moves_second else [moved, kept], -1)
