"""A small encoder of each family, near the linear-Gaussian model's posterior, so that E[w] = p(x) can be seen."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vaebench import noise
from vaebench.encoders.adversarial import AdversarialEncoder
from vaebench.encoders.base import Encoder
from vaebench.encoders.flow import FlowEncoder
from vaebench.encoders.full_gaussian import FullGaussianEncoder
from vaebench.encoders.hamiltonian import HamiltonianEncoder, StepSizes, Tempering
from vaebench.encoders.langevin import LangevinEncoder
from vaebench.encoders.two_layers import LadderEncoder, Layers, TwoLayerEncoder
from vaebench.encoders.uivi import UnbiasedEncoder
from vaebench.flows.flow import Flow, FlowContext
from vaebench.nets.adversarial import LogRatio, Sampler
from vaebench.nets.dense import MLP, AdditiveGaussian, TrunkGaussian
from vaebench.priors import StandardNormalPrior
from vaebench.registry import FLOWS
from vaebench.selftest.oracles.gaussian import (
    AffineConditional,
    AffineGaussian,
    X,
    Z,
    gaussian,
    hierarchical,
    linear_gaussian,
    one_image,
    sivi,
)

__all__ = [
    "FAMILIES",
    "FLOW_SETTINGS",
    "Affine",
    "Quadratic",
    "TwoCoordinates",
    "adversarial",
    "flow",
    "flow_step",
    "full_gaussian",
    "hamiltonian",
    "ladder",
    "langevin",
    "top_down",
    "two_layer",
    "unbiased",
    "widened",
]

_Head = TypeVar("_Head", TrunkGaussian, AdditiveGaussian)


def widened(module: _Head, raw_scale: float = 0.7) -> _Head:
    """Shrink the means and set the scales near softplus(``raw_scale``), so that weights have a finite variance."""
    with torch.no_grad():
        module.head.affine.weight *= 0.3
        module.head.affine.bias[len(module.head.affine.bias) // 2 :] += raw_scale
    return module


def full_gaussian() -> FullGaussianEncoder:
    """Return a Gaussian encoder with a network and correlated coordinates."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        encoder = FullGaussianEncoder(widened(TrunkGaussian(MLP(X, [4], "tanh"), Z)), Z)
    assert encoder.mixing is not None
    with torch.no_grad():
        encoder.mixing.bias.add_(0.4)
    return encoder


_SYLVESTER = {"rank": 1, "reflections": 2}
FLOW_SETTINGS: dict[str, dict[str, Any]] = {
    "planar": {},
    "radial": {},
    "householder": {},
    "sylvester-orthogonal": {**_SYLVESTER, "variant": "orthogonal"},
    "sylvester-householder": {**_SYLVESTER, "variant": "householder"},
    "sylvester-triangular": {**_SYLVESTER, "variant": "triangular"},
    "realnvp": {"width": 6, "depth": 2},
    "iaf": {"width": 6, "depth": 2},
    "nsf": {"width": 6, "depth": 2, "bins": 4, "bound": 4.0},
}
"""Small settings for every step. The part of a name after a dash names a variant."""


def flow_step(name: str, place: FlowContext) -> Flow:
    """Return a step, given a name in ``FLOW_SETTINGS``."""
    return FLOWS[name.partition("-")[0]](place, **FLOW_SETTINGS[name])


def flow(name: str) -> FlowEncoder:
    """Return a Gaussian encoder with a network and two steps of a flow, away from their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        posterior = widened(TrunkGaussian(MLP(X, [4], "tanh"), Z), 0.8)
        steps = [flow_step(name, FlowContext(4, Z, index, "tanh")) for index in (0, 1)]
        with torch.no_grad():
            for step in steps:
                for parameter in step.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
    return FlowEncoder(posterior, steps)


def unbiased() -> UnbiasedEncoder:
    """Return the encoder of UIVI."""
    return UnbiasedEncoder(sivi(), hmc_burn_in=1, hmc_samples=2, leapfrog_steps=2, step_size=0.5)


def hamiltonian(tempering: str = "none", learned_reverse: bool = True) -> HamiltonianEncoder:
    """Return an encoder with three leapfrog steps towards the linear-Gaussian model's posterior."""
    reverse = AffineConditional(torch.eye(Z) * 0.1, torch.zeros(Z, X), torch.zeros(Z), 0.9 * torch.ones(Z))
    return HamiltonianEncoder(
        gaussian().posterior,
        linear_gaussian(),
        StepSizes(Z, 0.2, 0.5),
        Tempering(tempering, 3, 0.7),
        reverse if learned_reverse else None,
        steps=3,
    )


def langevin() -> LangevinEncoder:
    """Return an encoder with three Langevin steps towards the linear-Gaussian model's posterior."""
    return LangevinEncoder(gaussian().posterior, linear_gaussian(), StepSizes(Z, 0.3, 0.8), steps=3)


def _on_coordinate(coordinate: int, widen: float) -> AffineGaussian:
    """Return N(a x + b, s^2) of one coordinate near the linear-Gaussian model's posterior."""
    one, whole = slice(coordinate, coordinate + 1), gaussian(widen).posterior
    assert isinstance(whole, AffineGaussian)
    return AffineGaussian(*(part.detach()[one] for part in (whole.weight, whole.bias, whole.log_scale.exp())))


def two_layer() -> TwoLayerEncoder:
    """Return q(z1|x) q(z2|z1), one coordinate each."""
    upper = AffineGaussian(torch.tensor([[0.3]]), torch.tensor([0.1]), torch.tensor([1.1]))
    return TwoLayerEncoder(_on_coordinate(0, 1.4), upper)


class TwoCoordinates(nn.Module):
    """x -> N(a x + b, s^2) for z1 and for z2."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = _on_coordinate(0, 1.8), _on_coordinate(1, 1.4)

    def forward(self, x: Tensor) -> Layers:
        return Layers(self.lower(x), self.upper(x))


def top_down() -> AffineGaussian:
    return AffineGaussian(torch.tensor([[0.3]]), torch.tensor([0.1]), torch.tensor([1.6]))


def ladder() -> LadderEncoder:
    """Return q(z2|x) q(z1|z2,x), one coordinate each; its top-down network is not the model's."""
    return LadderEncoder(TwoCoordinates(), top_down())


class Affine(Sampler):
    """z = A x + a + L epsilon: q(z|x) = N(A x + a, L L')."""

    def __init__(self, weight: Tensor, bias: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.factor = nn.Parameter(factor)

    def condition(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias

    def forward(self, conditioned: Tensor, k: int) -> Tensor:
        return conditioned + noise.standard_normal((k, *conditioned.shape), conditioned) @ self.factor.T

    def moments(self, conditioned: Tensor, *, full: bool = False) -> tuple[Tensor, Tensor]:
        covariance = self.factor @ self.factor.T
        moments = covariance if full else covariance.diagonal()
        return conditioned, moments.expand(len(conditioned), *moments.shape)


class Quadratic(LogRatio):
    """T(z) = z' A z + b' z + c; it ignores x."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.zeros(dim, dim))
        self.slope, self.offset = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, conditioned: Tensor) -> Tensor:
        del conditioned
        return ((z @ self.square) * z).sum(-1) + z @ self.slope + self.offset


def adversarial() -> AdversarialEncoder:
    """Return AVB's encoder with the optimal log-ratio T* = log q(z|x) - log p(z), for the x of :func:`one_image`."""
    q = gaussian().encode(one_image(1))
    mean = q.mean.detach()[0]
    factor = torch.linalg.cholesky(torch.diag(q.variance.detach()[0]) + 0.1)
    precision = torch.cholesky_inverse(factor)
    ratio = Quadratic(Z)
    with torch.no_grad():
        ratio.square.copy_(0.5 * (torch.eye(Z) - precision))
        ratio.slope.copy_(precision @ mean)
        ratio.offset.copy_(-0.5 * mean @ precision @ mean - factor.diagonal().log().sum())
    return AdversarialEncoder(Affine(torch.zeros(Z, X), mean, factor), ratio, StandardNormalPrior(Z))


FAMILIES: dict[str, tuple[Callable[[], Encoder], int]] = {
    "gaussian": (gaussian, 0),
    "full_gaussian": (full_gaussian, 0),
    "iaf": (lambda: flow("iaf"), 0),
    "iwhvi": (hierarchical, 4),
    "sivi": (sivi, 4),
    "uivi": (unbiased, 3),
    "hvae": (lambda: hamiltonian("free", False), 0),
    "langevin": (langevin, 0),
    "two_layer": (two_layer, 0),
    "ladder": (ladder, 0),
    "avb": (adversarial, 0),
}
"""One encoder of each family, and its number of inner samples."""
