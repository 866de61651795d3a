"""Coupling flows: one half of the coordinates is moved by what the other half and the image say."""

from abc import abstractmethod

import torch
from torch import Tensor

from vaebench.distributions import at_least_float32
from vaebench.errors import UserError
from vaebench.flows.flow import Conditioned, Flow, FlowContext, Moved, gradient_of, small_linear
from vaebench.nets.trunks import AdditiveMLP

__all__ = ["Coupling"]


class Coupling(Flow):
    """z'_i = t(z_i; network(kept half, x)) for each moved coordinate, t increasing. Abstract.

    Source: Dinh, Krueger and Bengio 2015, https://arxiv.org/abs/1410.8516

    Args:
        place: where the step stands; the halves change roles from step to step.
        settings_per_coordinate: P, the numbers that ``transform`` takes for one coordinate.
        width: hidden units in a layer of the network.
        depth: hidden layers.

    Raises:
        UserError: there are no two halves.
    """

    def __init__(self, place: FlowContext, settings_per_coordinate: int, width: int, depth: int) -> None:
        super().__init__()
        if place.dim < 2:
            raise UserError(
                "a coupling flow (encoder=realnvp|nsf) moves one half of the latent coordinates given the other, "
                f"so it needs latent_dim=2 or more, not {place.dim}; encoder=iaf takes any"
            )
        self.cut = place.dim // 2
        self.moves_second = place.index % 2 == 0
        kept = self.cut if self.moves_second else place.dim - self.cut
        self.settings = settings_per_coordinate
        self.network = AdditiveMLP(place.features, kept, [width] * depth, place.activation)
        self.head = small_linear(width, (place.dim - kept) * settings_per_coordinate)

    @abstractmethod
    def transform(self, value: Tensor, settings: Tensor) -> tuple[Tensor, Tensor]:
        """Return t(value) and log t'(value), (..., N) each, for settings (..., P, N), about 0 at the start."""

    @abstractmethod
    def restore(self, value: Tensor, settings: Tensor) -> Tensor:
        """Return the inverse of t at ``value``."""

    def condition(self, features: Tensor) -> Conditioned:
        """Return what the network's first layer makes of the features, (B, width)."""
        return (self.network.condition(features),)

    def forward(self, z: Tensor, conditioned: Conditioned) -> Moved:
        """Map (K, B, D) forward."""
        kept, moved = self._halves(z)
        moved, log_slope = self.transform(moved, self._settings(kept, conditioned))
        return Moved(self._joined(kept, moved), log_slope.sum(-1))

    def inverse(self, z: Tensor, conditioned: Conditioned) -> Tensor:
        """Map (K, B, D) backward, as fast as forward."""
        kept, moved = self._halves(z)
        return self._joined(kept, self.restore(moved, self._settings(kept, conditioned)))

    def solve_transposed(self, z: Tensor, moved: Tensor, conditioned: Conditioned, gradient: Tensor) -> Tensor:
        """Solve the block triangular system: the moved half first, then what it sends back to the kept half."""
        del conditioned
        # Given the kept half each moved coordinate depends on itself alone: the gradient of the sum is t'.
        slope = self._halves(gradient_of(self._halves(moved)[1].sum(), z))[1]
        kept_gradient, moved_gradient = self._halves(gradient)
        solved = moved_gradient / slope
        sent_back = self._halves(gradient_of((self._halves(moved)[1] * solved).sum(), z))[0]
        return self._joined(kept_gradient - sent_back, solved)

    def _settings(self, kept: Tensor, conditioned: Conditioned) -> Tensor:
        """Return (K, B, P, N): with N last, what runs over P is vectorised on CPUs."""
        raw = self.head(self.network(kept, conditioned[0]))
        return at_least_float32(raw).unflatten(-1, (self.settings, -1))

    def _halves(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept and the moved coordinates."""
        first, second = z[..., : self.cut], z[..., self.cut :]
        return (first, second) if self.moves_second else (second, first)

    def _joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved] if self.moves_second else [moved, kept], -1)
