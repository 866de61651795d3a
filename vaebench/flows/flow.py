"""The contract of every invertible step, and the functions that several families use.

A step maps z to z' given features of an image, and returns log|det dz'/dz| from the same pass, because a flow posterior
needs the density of its own draws alone.

Shapes: K samples first, B images, D latent coordinates, F features; nats.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from vaebench.nets.dense import linear

__all__ = [
    "Flow",
    "FlowContext",
    "StepParameters",
    "Transformed",
    "above_minus_one",
    "gradient_of",
    "increasing_root",
    "small_linear",
]

StepParameters = tuple[Tensor, ...]
"""The parameters of a step: tensors of (B, *), computed from the images once for any number of draws."""

# Steps are near the identity at first, but not equal to it: with all weights 0 some would be at a saddle point.
_SMALL = 0.01
# 1 + above_minus_one(.) >= this: no step shrinks a volume by more than this factor.
_MARGIN = 1e-3
# Halvings of a bracket, enough for float64.
_HALVINGS = 70


class Transformed(NamedTuple):
    """The result of a step."""

    z: Tensor
    """z', (K, B, D)."""
    log_det: Tensor
    """log|det dz'/dz| at the input, (K, B), float32 or better."""


class FlowContext(NamedTuple):
    """The first argument of every step's ``build``; the keys of the yaml follow as keyword arguments.

    ``build`` raises ValueError if an argument is out of range.
    """

    features: int
    """Width F of the features of x."""
    latent_dim: int
    """Latent coordinates D."""
    index: int
    """Number of the step, from 0; steps that order or halve the coordinates alternate."""
    activation: str
    """Activation of the step's network, if it has one."""


class Flow(nn.Module, ABC):
    """One invertible step. Abstract: each family is a final class, built by ``build(context, **settings)``."""

    @classmethod
    def build(cls, context: FlowContext, **settings: Any) -> Self:
        """Build the step; ``settings`` are the keys of the yaml, the other arguments of the class."""
        return cls(context, **settings)

    @abstractmethod
    def condition(self, features: Tensor) -> StepParameters:
        """Compute the step's parameters from features, (B, F)."""

    @abstractmethod
    def forward(self, z: Tensor, conditioned: StepParameters) -> Transformed:
        """Return z' for z, (K, B, D), and the log-determinant."""

    @abstractmethod
    def inverse(self, z: Tensor, conditioned: StepParameters) -> Tensor:
        """Return the input that ``forward`` maps to z, (K, B, D); an iterative inverse has no gradient."""

    @abstractmethod
    def solve_transposed(self, z: Tensor, transformed: Tensor, conditioned: StepParameters, gradient: Tensor) -> Tensor:
        """Return J^-T gradient, (K, B, D), with J = dz'/dz: the gradient in z' for a gradient in z.

        Args:
            z: the input of ``forward``, a leaf that requires gradients.
            transformed: z', with its graph.
            conditioned: as for ``forward``.
            gradient: (K, B, D).
        """

    def push_score(self, z: Tensor, conditioned: StepParameters, score: Tensor) -> Tensor:
        """Return grad log q'(z') from ``score`` = grad log q(z), both (K, B, D), without a graph.

        log q'(z') = log q(z) - log|det J(z)|, so grad log q'(z') = J^-T (score - grad log|det J(z)|). This is exact and
        computes no inverse.
        """
        with torch.enable_grad():
            z = z.detach()
            z.requires_grad = True  # not requires_grad_(), which torch.func refuses
            conditioned = tuple(part.detach() for part in conditioned)
            transformed, log_det = self(z, conditioned)
            gradient = score - gradient_of(log_det.sum(), z)
            return self.solve_transposed(z, transformed, conditioned, gradient).detach()


def gradient_of(value: Tensor, z: Tensor) -> Tensor:
    """Return d value / dz, zero if ``value`` does not depend on z; keep the graph."""
    if not value.requires_grad:
        return torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(value, z, retain_graph=True, materialize_grads=True)
    return gradient


def small_linear(inputs: int, outputs: int, bias: Any = 0.0) -> nn.Linear:
    """Make a last layer whose output is about ``bias``, a number or (outputs,), for any input."""
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
    """Return the root of an increasing elementwise ``function`` between ``low`` and ``high``, by bisection."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beyond = function(middle) > 0
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return (low + high) / 2
