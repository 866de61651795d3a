"""All encoders of the tests that hold for every family, small and near the linear-Gaussian model's posterior."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from oracles.gaussian import exact_reverse, learned, mixing_as_reverse, wide_hierarchy
from vaebench.encoders.base import Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.encoders.implicit import MeanGiven, StochasticLayers
from vaebench.encoders.layered import combined
from vaebench.encoders.reverse import GatedReverse
from vaebench.gradients import GradientEstimator
from vaebench.nets.heads import AdditiveGaussian, TrunkGaussian
from vaebench.nets.trunks import MLP, AdditiveMLP
from vaebench.selftest.oracles.families import (
    FLOW_SETTINGS,
    TwoCoordinates,
    flow,
    full_gaussian,
    hamiltonian,
    ladder,
    langevin,
    top_down,
    two_layer,
    unbiased,
    widened,
)
from vaebench.selftest.oracles.gaussian import PSI, X, Z, gaussian, sivi

__all__ = [
    "CELLS",
    "FAMILIES",
    "GRADIENT_CELLS",
    "Family",
    "doubly_reparameterised",
    "gated_hierarchy",
    "implicit_hierarchy",
    "name",
    "network_gaussian",
    "network_hierarchy",
]


def network_gaussian() -> GaussianEncoder:
    """Return a Gaussian encoder with a network."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return GaussianEncoder(widened(TrunkGaussian(MLP(X, [4], "tanh"), Z)))


def network_hierarchy() -> HierarchicalEncoder:
    """Return IWHVI's encoder with networks; q(z|x) is not Gaussian."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        mixing = widened(TrunkGaussian(MLP(X, [4], "softplus"), PSI))
        conditional = widened(AdditiveGaussian(AdditiveMLP(X, PSI, [4, 4], "softplus"), Z))
        reverse = widened(AdditiveGaussian(AdditiveMLP(X, Z, [4, 4], "softplus"), PSI), 0.5)
    return HierarchicalEncoder(mixing, conditional, reverse)


def gated_hierarchy() -> HierarchicalEncoder:
    """Return a network hierarchy with a gated reverse model, the gate half open."""
    encoder = network_hierarchy()
    assert isinstance(encoder.reverse, AdditiveGaussian)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        reverse = GatedReverse(encoder.reverse, encoder.mixing, PSI, bias=0.3)
    return HierarchicalEncoder(encoder.mixing, encoder.conditional, reverse)


def implicit_hierarchy() -> HierarchicalEncoder:
    """Return SIVI's encoder with an implicit q(psi|x): Bernoulli noise through layers."""
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
    """Return IWHVI's encoder with DReG for its reverse model."""
    toy = wide_hierarchy()
    return HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse(), tau_gradient="dreg")


def _flow_families() -> "list[Family]":
    # A lambda in a comprehension would see the last name only.
    def family(name: str) -> Family:
        return Family(name, lambda: flow(name), (0,), lambda z, x: flow(name).encode(x).log_prob(z))

    return [family(name) for name in FLOW_SETTINGS]


def _two_layer_density(z: Tensor, x: Tensor) -> Tensor:
    encoder, (first, second) = two_layer(), z.split(1, -1)
    return encoder.lower(x).log_prob(first) + encoder.upper(first).log_prob(second)


def _ladder_density(z: Tensor, x: Tensor) -> Tensor:
    layers, (first, second) = TwoCoordinates()(x), z.split(1, -1)
    return layers.upper.log_prob(second) + combined(layers.lower, top_down()(second)).log_prob(first)


@dataclass(frozen=True)
class Family:
    """One row of the tests that hold for every encoder; a new family needs only a row here."""

    name: str
    make: Callable[[], Encoder]
    inner_ks: tuple[int, ...] = (0,)
    """The numbers of inner samples at which to test it."""
    log_density: Callable[[Tensor, Tensor], Tensor] | None = None
    """Exact log q(z|x), (K, B), for z (K, B, D) and x (B, X), where it is known."""
    gradients: tuple[GradientEstimator, ...] = tuple(GradientEstimator)
    """The gradient estimators that it supports for a bound of several samples."""
    converges: bool = True
    """Whether the estimate tends to log p(x) as K grows; False if the draws share psi_1..L."""


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
"""All families; each is near the linear-Gaussian model's posterior and N(0, I)."""

CELLS = [(family, inner_k) for family in FAMILIES for inner_k in family.inner_ks]
"""All families with each number of inner samples."""

GRADIENT_CELLS = [(family, inner_k, gradient) for family, inner_k in CELLS for gradient in family.gradients]
"""``CELLS`` with each gradient estimator."""


def name(value: object) -> str | None:
    """Name a test's parameters: families and gradients by their names, numbers of inner samples as L."""
    if isinstance(value, Family):
        return value.name
    if isinstance(value, GradientEstimator):
        return value.value
    return f"L{value}" if isinstance(value, int) and not isinstance(value, bool) else None
