"""Every family of encoders, small and near the linear-Gaussian model's posterior, so that E[w] = p(x) can be seen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vaebench.encoders.base import Encoder
from vaebench.encoders.flow import FlowEncoder
from vaebench.encoders.full_gaussian import FullGaussianEncoder
from vaebench.encoders.gated_reverse import GatedReverse
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hamiltonian import HamiltonianEncoder, StepSizes, Tempering
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.encoders.implicit_mixing import MeanGiven, StochasticLayers
from vaebench.encoders.langevin import LangevinEncoder
from vaebench.encoders.two_layers import LadderEncoder, Layers, TwoLayerEncoder, gaussian_product
from vaebench.encoders.uivi import UnbiasedEncoder
from vaebench.flows.flow import Flow, FlowContext
from vaebench.gradients import GradientEstimator
from vaebench.nets.dense import MLP, AdditiveGaussian, AdditiveMLP, TrunkGaussian
from vaebench.registry import FLOWS
from vaebench.selftest.oracles.gaussian import (
    PSI,
    AffineConditional,
    AffineGaussian,
    X,
    Z,
    exact_reverse,
    gaussian,
    learned,
    linear_gaussian,
    mixing_as_reverse,
    sivi,
    wide_hierarchy,
)

__all__ = [
    "CELLS",
    "FAMILIES",
    "FLOW_SETTINGS",
    "GRADIENT_CELLS",
    "Family",
    "doubly_reparameterised",
    "flow_step",
    "full_gaussian",
    "gated_hierarchy",
    "hamiltonian",
    "implicit_hierarchy",
    "ladder",
    "langevin",
    "name",
    "network_gaussian",
    "network_hierarchy",
    "two_layer",
    "unbiased",
]

_Head = TypeVar("_Head", TrunkGaussian, AdditiveGaussian)


def network_gaussian() -> GaussianEncoder:
    """Return the Gaussian encoder with a real network."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return GaussianEncoder(_widened(TrunkGaussian(MLP(X, [4], "tanh"), Z)))


def network_hierarchy() -> HierarchicalEncoder:
    """Return IWHVI's encoder with real networks: q(z|x) is not Gaussian."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        mixing = _widened(TrunkGaussian(MLP(X, [4], "softplus"), PSI))
        conditional = _widened(AdditiveGaussian(AdditiveMLP(X, PSI, [4, 4], "softplus"), Z))
        reverse = _widened(AdditiveGaussian(AdditiveMLP(X, Z, [4, 4], "softplus"), PSI), 0.5)
    return HierarchicalEncoder(mixing, conditional, reverse)


def gated_hierarchy() -> HierarchicalEncoder:
    """Return a network hierarchy whose reverse model is gated, and half open."""
    encoder = network_hierarchy()
    assert isinstance(encoder.reverse, AdditiveGaussian)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        reverse = GatedReverse(encoder.reverse, encoder.mixing, PSI, tau_gate=0.3)
    return HierarchicalEncoder(encoder.mixing, encoder.conditional, reverse)


def implicit_hierarchy() -> HierarchicalEncoder:
    """Return SIVI's encoder with coin flips through layers in place of a Gaussian q(psi|x)."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        mixing, conditional = StochasticLayers(X, Z, (3, 2), [4], "tanh"), MeanGiven(X, Z, [4], "tanh")
    with torch.no_grad():
        mixing.mean.weight.mul_(0.6)
        conditional.raw_scale.bias.add_(0.7)
    encoder = HierarchicalEncoder(mixing, conditional, None)
    encoder.no_path_gradient = "no density of psi"
    return encoder


def doubly_reparameterised() -> HierarchicalEncoder:
    """Return IWHVI's cell with DReG for its reverse model."""
    toy = wide_hierarchy()
    return HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse(), tau_gradient="dreg")


def unbiased() -> UnbiasedEncoder:
    """Return UIVI."""
    return UnbiasedEncoder(sivi(), burn_in=1, samples=2, leapfrog_steps=2, step_size=0.5)


def hamiltonian(tempering: str = "none", learned_reverse: bool = True) -> HamiltonianEncoder:
    """Return three leapfrog steps towards the linear-Gaussian model's posterior."""
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
    """Return three Langevin steps towards the linear-Gaussian model's posterior."""
    return LangevinEncoder(gaussian().posterior, linear_gaussian(), StepSizes(Z, 0.3, 0.8), steps=3)


def flow(name: str) -> FlowEncoder:
    """Return two steps of a flow on a Gaussian encoder with a real network, away from where they start."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        posterior = _widened(TrunkGaussian(MLP(X, [4], "tanh"), Z), 0.8)
        steps = [flow_step(name, FlowContext(4, Z, index, "tanh")) for index in (0, 1)]
        with torch.no_grad():
            for step in steps:
                for parameter in step.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
    return FlowEncoder(posterior, steps)


def full_gaussian() -> FullGaussianEncoder:
    """Return a Gaussian with correlated coordinates and a real network."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        encoder = FullGaussianEncoder(_widened(TrunkGaussian(MLP(X, [4], "tanh"), Z)), Z)
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
"""Small settings for every step; what follows a dash only tells settings apart."""


def flow_step(name: str, place: FlowContext) -> Flow:
    """Make a step by a name in ``FLOW_SETTINGS``."""
    return FLOWS[name.partition("-")[0]](place, **FLOW_SETTINGS[name])


def _flow_families() -> "list[Family]":
    # A lambda in a comprehension would see the last name only.
    def family(name: str) -> Family:
        return Family(name, lambda: flow(name), (0,), lambda z, x: flow(name).encode(x).log_prob(z))

    return [family(name) for name in FLOW_SETTINGS]


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
    """What x says of z1 and of z2."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = _on_coordinate(0, 1.8), _on_coordinate(1, 1.4)

    def forward(self, x: Tensor) -> Layers:
        return Layers(self.lower(x), self.upper(x))


def _top_down() -> AffineGaussian:
    return AffineGaussian(torch.tensor([[0.3]]), torch.tensor([0.1]), torch.tensor([1.6]))


def ladder() -> LadderEncoder:
    """Return q(z2|x) q(z1|z2,x), one coordinate each, with a top-down network that is not the model's."""
    return LadderEncoder(TwoCoordinates(), _top_down())


def _two_layer_density(z: Tensor, x: Tensor) -> Tensor:
    encoder, (first, second) = two_layer(), z.split(1, -1)
    return encoder.lower(x).log_prob(first) + encoder.upper(first).log_prob(second)


def _ladder_density(z: Tensor, x: Tensor) -> Tensor:
    layers, (first, second) = TwoCoordinates()(x), z.split(1, -1)
    return layers.upper.log_prob(second) + gaussian_product(layers.lower, _top_down()(second)).log_prob(first)


def _widened(module: _Head, raw_scale: float = 0.7) -> _Head:
    """Damp the means and set the scales near softplus(``raw_scale``), so that no weight is heavy-tailed."""
    with torch.no_grad():
        module.head.affine.weight *= 0.3
        module.head.affine.bias[len(module.head.affine.bias) // 2 :] += raw_scale
    return module


@dataclass(frozen=True)
class Family:
    """One row of the tests that hold for every encoder: add a family here and nowhere else."""

    name: str
    make: Callable[[], Encoder]
    inner_ks: tuple[int, ...] = (0,)
    """The numbers of inner samples at which to test it."""
    log_density: Callable[[Tensor, Tensor], Tensor] | None = None
    """Exact log q(z|x), (K, B), for z (K, B, D) and x (B, X), where it is known."""
    gradients: tuple[GradientEstimator, ...] = tuple(GradientEstimator)
    """The gradient estimators that it supports for a bound of several samples."""
    converges: bool = True
    """Whether draws of z alone take an estimate to log p(x); where they share psi_1..L they do not."""


def _wide_marginal(z: Tensor, x: Tensor) -> Tensor:
    return wide_hierarchy().marginal(x).log_prob(z)


def _gaussian_density(z: Tensor, x: Tensor) -> Tensor:
    return gaussian().encode(x).log_prob(z)


FAMILIES = [
    Family("gaussian", gaussian, (0,), _gaussian_density),
    Family("gaussian-network", network_gaussian),
    Family("hierarchical-learned", learned, (0, 1, 4), _wide_marginal),
    Family("hierarchical-exact", exact_reverse, (0, 2), _wide_marginal),
    Family("hierarchical-sivi", sivi, (0, 1, 4), _wide_marginal),
    Family(
        "hierarchical-sivi-shared",
        lambda: sivi(share_psi=True),
        (1, 4),
        _wide_marginal,
        (GradientEstimator.REPARAM,),
        converges=False,
    ),
    Family("hierarchical-sivi-as-reverse", mixing_as_reverse, (2,), _wide_marginal),
    Family("hierarchical-network", network_hierarchy, (0, 3)),
    Family("full_gaussian", full_gaussian, (0,), lambda z, x: full_gaussian().encode(x).log_prob(z)),
    *_flow_families(),
    Family("hierarchical-gated", gated_hierarchy, (0, 3)),
    Family("hierarchical-implicit", implicit_hierarchy, (0, 3), gradients=(GradientEstimator.REPARAM,)),
    Family("hierarchical-tau-dreg", doubly_reparameterised, (3,), _wide_marginal, (GradientEstimator.REPARAM,)),
    Family("uivi", unbiased, (0, 3), _wide_marginal, (GradientEstimator.REPARAM,)),
    Family("hvi", hamiltonian, gradients=(GradientEstimator.REPARAM,)),
    Family("hvae-fixed", lambda: hamiltonian("fixed", False), gradients=(GradientEstimator.REPARAM,)),
    Family("hvae-free", lambda: hamiltonian("free", False), gradients=(GradientEstimator.REPARAM,)),
    Family("langevin", langevin, gradients=(GradientEstimator.REPARAM,)),
    Family("two_layer", two_layer, (0,), _two_layer_density),
    Family("ladder", ladder, (0,), _ladder_density),
]
"""Every family; each is within reach of the linear-Gaussian model's posterior and of N(0, I)."""

CELLS = [(family, inner_k) for family in FAMILIES for inner_k in family.inner_ks]
"""Every family at each of its numbers of inner samples."""

GRADIENT_CELLS = [(family, inner_k, gradient) for family, inner_k in CELLS for gradient in family.gradients]
"""The same, with each gradient estimator."""


def name(value: object) -> str | None:
    """Name a test's parameters: families and gradients by their names, numbers of inner samples as L."""
    if isinstance(value, Family):
        return value.name
    if isinstance(value, GradientEstimator):
        return value.value
    return f"L{value}" if isinstance(value, int) and not isinstance(value, bool) else None
