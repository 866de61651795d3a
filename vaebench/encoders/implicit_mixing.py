"""SIVI's implicit mixing distribution: a network that takes coin flips; it has draws and no density."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench import noise
from vaebench.distributions import DiagonalNormal, at_least_float32, positive
from vaebench.nets.activations import ACTIVATIONS
from vaebench.nets.dense import MLP, SCALE_FLOOR, Conditional, linear

__all__ = ["ImplicitMixing", "MeanGiven", "StochasticLayers"]


class _Stage(nn.Module):
    """Dense layers over u and x; u is noise and the output of the stage before."""

    def __init__(self, x_dim: int, u_dim: int, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        self.from_x = linear(x_dim, widths[0])
        self.from_u = linear(u_dim, widths[0], bias=False)
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[activation]

    def condition(self, x: Tensor) -> Tensor:
        """Compute the part that depends on x alone, once per image."""
        return self.from_x(x)

    def forward(self, u: Tensor, conditioned: Tensor) -> Tensor:
        value = self.activation(conditioned + self.from_u(u))
        for layer in self.layers:
            value = self.activation(layer(value))
        return value


class StochasticLayers(nn.Module):
    """x -> the implicit q(psi|x), psi of the width of z: a chain of networks, each of which takes fresh noise.

    h_1 = f_1(e_1, x),  h_i = f_i(h_{i-1}, e_i, x),  psi = W h_last + b,  e_i ~ Bernoulli(1/2)^n_i

    Source: Yin and Zhou 2018, https://arxiv.org/abs/1805.11183; their code has n = 150, 100, 50 and, for
    each h_i, a ReLU network of widths 500, 500.

    Args:
        x_dim: pixels.
        latent_dim: width of psi and of z.
        noise_dims: n_1, n_2, ...; h_i has the width n_i, and the last h has the last width of ``hidden``.
        hidden: widths of each network's hidden layers.
        activation: a key of ``ACTIVATIONS``.
    """

    def __init__(
        self, x_dim: int, latent_dim: int, noise_dims: Sequence[int], hidden: Sequence[int], activation: str
    ) -> None:
        super().__init__()
        before = [0, *noise_dims[:-1]]
        outputs = [*noise_dims[:-1], hidden[-1]]
        self.noise_dims = tuple(noise_dims)
        self.stages: Sequence[_Stage] = nn.ModuleList(  # pyright: ignore[reportAttributeAccessIssue]
            _Stage(x_dim, width + coins, [*hidden, output], activation)
            for width, coins, output in zip(before, noise_dims, outputs, strict=True)
        )
        self.mean = linear(hidden[-1], latent_dim)

    def forward(self, x: Tensor) -> "ImplicitMixing":
        """Return q(psi|x) for x of shape (B, X)."""
        return ImplicitMixing(self, tuple(stage.condition(x) for stage in self.stages), len(x))

    def draw(self, shape: Sequence[int], conditioned: tuple[Tensor, ...]) -> Tensor:
        """Return psi of (*shape, B, D); ``conditioned`` holds the result of ``condition`` of each stage."""
        value = None
        for stage, coins, own in zip(self.stages, self.noise_dims, conditioned, strict=True):
            like = self.mean.weight
            flips = (noise.uniform((*shape, len(own), coins), like) < 0.5).to(like.dtype)
            value = stage(flips if value is None else torch.cat([value, flips], -1), own)
        return self.mean(value)


class ImplicitMixing(Distribution):
    """q(psi|x) of :class:`StochasticLayers`, batch shape (B,); it has draws and no density."""

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)
    has_rsample = True

    def __init__(self, layers: StochasticLayers, conditioned: tuple[Tensor, ...], batch: int) -> None:
        self.layers, self.conditioned = layers, conditioned
        event = torch.Size([layers.mean.out_features])
        super().__init__(torch.Size([batch]), event, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, B, D), differentiable in the layers' weights."""
        return self.layers.draw(sample_shape, self.conditioned)

    def log_prob(self, value: Tensor) -> Tensor:
        del value
        raise NotImplementedError("an implicit mixing distribution has no density; it needs reverse=None (SIVI)")


class MeanGiven(Conditional):
    """q(z|psi,x) = N(psi, diag(scale(x)^2)): psi is the mean, and a network of x computes the scale."""

    def __init__(self, x_dim: int, latent_dim: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.trunk = MLP(x_dim, hidden, activation)
        self.raw_scale = linear(self.trunk.width, latent_dim)

    def condition(self, x: Tensor) -> Tensor:
        """Return the scale, (B, D)."""
        return positive(at_least_float32(self.raw_scale(self.trunk(x)))) + SCALE_FLOOR

    def forward(self, u: Tensor, conditioned: Tensor) -> DiagonalNormal:
        return DiagonalNormal(u, conditioned)
