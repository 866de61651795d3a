"""The contract of every invertible step, and what the families share.

A step maps z to z' given features of an image, and returns log|det dz'/dz| from the same pass: a flow posterior
only ever needs the density of its own draws.

Shapes: K samples first, B images, D latent coordinates, F features; nats.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench.nets.trunks import linear

__all__ = [
    "Conditioned",
    "Flow",
    "FlowContext",
    "Moved",
    "above_minus_one",
    "gradient_of",
    "increasing_root",
    "small_linear",
]

Conditioned = tuple[Tensor, ...]
"""What a step needs to know of the images: tensors of (B, *), computed once for any number of draws."""

# Steps start near the identity, but not at it: with every weight at zero some would be saddle points.
_SMALL = 0.01
# 1 + above_minus_one(.) >= this: one step never shrinks a volume by more than the factor.
_MARGIN = 1e-3
# Halvings of a bracket; enough for float64.
_HALVINGS = 70


class Moved(NamedTuple):
    """Where a step takes its input."""

    z: Tensor
    """z', (K, B, D)."""
    log_det: Tensor
    """log|det dz'/dz| at the input, (K, B), float32 or better."""


class FlowContext(NamedTuple):
    """Where in an encoder a step stands."""

    features: int
    """Width F of the features of x."""
    dim: int
    """Latent coordinates D."""
    index: int
    """Number of the step, from 0: steps that treat coordinates in an order or in halves alternate."""
    activation: str
    """Of the step's own network, where it has one."""


class Flow(nn.Module, ABC):
    """One invertible step. Abstract: the families are final classes, built by ``build(place, **settings)``."""

    @abstractmethod
    def condition(self, features: Tensor) -> Conditioned:
        """Do what depends on the images alone, for features (B, F)."""

    @abstractmethod
    def forward(self, z: Tensor, conditioned: Conditioned) -> Moved:
        """Map z, (K, B, D), forward, and score the map."""

    @abstractmethod
    def inverse(self, z: Tensor, conditioned: Conditioned) -> Tensor:
        """Return the input that ``forward`` maps to z, (K, B, D); without gradient where it is iterative."""

    @abstractmethod
    def solve_transposed(self, z: Tensor, moved: Tensor, conditioned: Conditioned, gradient: Tensor) -> Tensor:
        """Return J^-T gradient, (K, B, D), with J = dz'/dz: how a gradient in z reads as one in z'.

        Args:
            z: the input of ``forward``, a leaf that requires gradients.
            moved: z', with the graph that leads back to z.
            conditioned: as for ``forward``.
            gradient: (K, B, D).
        """

    def push_score(self, z: Tensor, conditioned: Conditioned, score: Tensor) -> Tensor:
        """Return grad log q'(z') from ``score`` = grad log q(z), both (K, B, D), as numbers without history.

        log q'(z') = log q(z) - log|det J(z)|, so grad log q'(z') = J^-T (score - grad log|det J(z)|): exact, and
        no inverse is computed.
        """
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            conditioned = tuple(part.detach() for part in conditioned)
            moved, log_det = self(z, conditioned)
            gradient = score - gradient_of(log_det.sum(), z)
            return self.solve_transposed(z, moved, conditioned, gradient).detach()


def gradient_of(value: Tensor, z: Tensor) -> Tensor:
    """Return d value / dz; zero where a scalar does not depend on z. The graph is kept."""
    if not value.requires_grad:
        return torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(value, z, retain_graph=True, materialize_grads=True)
    return gradient


def small_linear(inputs: int, outputs: int, bias: Any = 0.0) -> nn.Linear:
    """Make a last layer that returns about ``bias``, a number or (outputs,), whatever its input."""
    layer = linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.mul_(_SMALL)
        layer.bias.copy_(torch.as_tensor(bias))
    return layer


def above_minus_one(value: Tensor) -> Tensor:
    """Map the reals to (-1, inf), increasing, 0 to 0: slopes that keep 1 + slope tanh' positive."""
    # softplus(log(e - 1)) = 1.
    positive = nn.functional.softplus(value + 0.5413248546129181)
    return (1 - _MARGIN) * (positive - 1)


def increasing_root(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return where an increasing elementwise ``function`` is zero between ``low`` and ``high``, by bisection."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beyond = function(middle) > 0
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return (low + high) / 2
