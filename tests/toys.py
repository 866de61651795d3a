"""Models and encoders whose every quantity is known exactly, for the tests.

Linear-Gaussian model: z ~ N(0, I_2), x|z ~ N(W z + b, s^2 I_3), with orthogonal columns of W, so that the
posterior is a diagonal Gaussian. Gaussian hierarchical encoders: psi|x and z|psi,x affine and Gaussian, so that
q(z|x) and q(psi|z,x) are known.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vaebench.bounds import log_mean_exp
from vaebench.distributions import Bernoulli, DiagonalNormal
from vaebench.encoders import (
    Direction,
    Draw,
    Encoder,
    FlowEncoder,
    FullGaussianEncoder,
    GaussianEncoder,
    HamiltonianEncoder,
    HierarchicalEncoder,
    LadderEncoder,
    LangevinEncoder,
    TwoLayerEncoder,
    UnbiasedEncoder,
)
from vaebench.encoders.hamiltonian import StepSizes, Tempering
from vaebench.encoders.implicit import MeanGiven, StochasticLayers
from vaebench.encoders.layered import Layers, combined
from vaebench.encoders.reverse import GatedReverse
from vaebench.flows import FLOWS, Place
from vaebench.gradients import GradientEstimator
from vaebench.model import GenerativeModel
from vaebench.nets import MLP, AdditiveGaussian, AdditiveMLP, Conditional, NormalLikelihood, TrunkGaussian
from vaebench.priors import StandardNormalPrior

X, Z, PSI = 3, 2, 2

_Head = TypeVar("_Head", TrunkGaussian, AdditiveGaussian)

# Statistics -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A Monte Carlo mean with its standard error, from independent replicates."""

    value: float
    stderr: float

    @classmethod
    def of(cls, replicates: Tensor) -> "Mean":
        """Average ``replicates``, any shape, all elements independent."""
        flat = replicates.detach().double().flatten()
        return cls(flat.mean().item(), (flat.std() / flat.numel() ** 0.5).item())

    def errors_above(self, truth: float) -> float:
        """Return how many standard errors the mean lies above ``truth``; rounding counts as no distance."""
        distance = self.value - truth
        return 0.0 if abs(distance) < 1e-12 else distance / max(self.stderr, 1e-300)


# The linear-Gaussian model --------------------------------------------------------------------------------


class LinearGaussian(GenerativeModel):
    """p(z) p(x|z) with log p(x) and p(z|x) in closed form."""

    def __init__(self, weight: Tensor, bias: Tensor, scale: float) -> None:
        super().__init__(StandardNormalPrior(weight.shape[1]), NormalLikelihood(weight, bias, scale))
        self.weight, self.bias, self.scale = weight.detach(), bias.detach(), scale

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) = log N(x; b, W W' + s^2 I), (B,)."""
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(len(self.weight))
        return MultivariateNormal(self.bias, covariance).log_prob(x)

    def posterior(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (A, a, V) of p(z|x) = N(A x + a, V)."""
        precision = torch.eye(self.weight.shape[1]) + self.weight.T @ self.weight / self.scale**2
        variance = torch.linalg.inv(precision)
        gain = variance @ self.weight.T / self.scale**2
        return gain, -gain @ self.bias, variance


def linear_gaussian() -> LinearGaussian:
    """Return the model of most tests: posterior variances 1/2 and 2/3."""
    weight = torch.tensor([[2.0, 1.0], [2.0, -0.5], [1.0, -1.0]])
    weight = weight / weight.norm(dim=0) * torch.tensor([0.8, 0.8 * 0.5**0.5])
    return LinearGaussian(weight, torch.tensor([0.1, -0.2, 0.3]), 0.8)


def one_image(replicates: int) -> Tensor:
    """Return the same x (one of moderate density) in ``replicates`` rows: B counts independent repetitions."""
    return torch.tensor([0.9, 0.2, -0.4]).expand(replicates, X)


class ConstantDecoder(nn.Module):
    """p(x|z) = p(x): any encoder's log p(x) is the decoder's."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, z: Tensor) -> Bernoulli:
        return Bernoulli(self.logits.expand(*z.shape[:-1], -1))


# Gaussian building blocks ---------------------------------------------------------------------------------


class AffineGaussian(nn.Module):
    """x -> N(A x + a, diag(scale^2)).

    Parameters may carry a leading axis of replicates, (B, D): then each row's gradient is one independent
    sample of the gradient.
    """

    def __init__(self, weight: Tensor, bias: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())
        self.log_scale = nn.Parameter(scale.log())

    def forward(self, x: Tensor) -> DiagonalNormal:
        mean = x @ self.weight.T + self.bias
        return DiagonalNormal(mean, self.log_scale.exp().expand_as(mean))


class AffineConditional(Conditional):
    """(u, x) -> N(U u + A x + a, diag(scale^2))."""

    def __init__(self, u_weight: Tensor, x_weight: Tensor, bias: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.u_weight = nn.Parameter(u_weight.clone())
        self.x_weight = nn.Parameter(x_weight.clone())
        self.bias = nn.Parameter(bias.clone())
        self.log_scale = nn.Parameter(scale.log())
        self.conditioned = 0

    def condition(self, x: Tensor) -> Tensor:
        self.conditioned += 1
        return x @ self.x_weight.T + self.bias

    def forward(self, u: Tensor, conditioned: Tensor) -> DiagonalNormal:
        mean = u @ self.u_weight.T + conditioned
        return DiagonalNormal(mean, self.log_scale.exp().expand_as(mean))


class IgnoringZ(Conditional):
    """tau(psi|z,x) = mixing(x), written as a reverse model."""

    def __init__(self, mixing: nn.Module) -> None:
        super().__init__()
        self.mixing = mixing

    def condition(self, x: Tensor) -> DiagonalNormal:
        return self.mixing(x)

    def forward(self, u: Tensor, conditioned: DiagonalNormal) -> DiagonalNormal:
        del u
        return conditioned


@dataclass(frozen=True)
class Hierarchy:
    """psi|x ~ N(M x + m, P), z|psi,x ~ N(A psi + B x + c, S), P and S diagonal, with its exact densities."""

    mixing: AffineGaussian
    conditional: AffineConditional

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (A, P, S)."""
        p, s = (2 * module.log_scale.detach() for module in (self.mixing, self.conditional))
        return self.conditional.u_weight.detach(), torch.diag(p.exp()), torch.diag(s.exp())

    def marginal(self, x: Tensor) -> MultivariateNormal:
        """Return q(z|x), batch shape (B,)."""
        a, p, s = self.factors
        with torch.no_grad():
            mean = self.mixing(x).mean @ a.T + self.conditional.condition(x)
        return MultivariateNormal(mean, a @ p @ a.T + s)

    def reverse_posterior(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (T, R, t, V) of q(psi|z,x) = N(T z + R x + t, V)."""
        a, p, s = self.factors
        variance = torch.linalg.inv(torch.linalg.inv(p) + a.T @ torch.linalg.inv(s) @ a)
        to_z = variance @ a.T @ torch.linalg.inv(s)
        from_psi = variance @ torch.linalg.inv(p)
        to_x = from_psi @ self.mixing.weight.detach() - to_z @ self.conditional.x_weight.detach()
        constant = from_psi @ self.mixing.bias.detach() - to_z @ self.conditional.bias.detach()
        return to_z, to_x, constant, variance

    def exact_reverse(self) -> AffineConditional:
        """Return tau = q(psi|z,x); it has to be diagonal."""
        to_z, to_x, constant, variance = self.reverse_posterior()
        assert torch.allclose(variance, torch.diag(variance.diagonal()))
        return AffineConditional(to_z, to_x, constant, variance.diagonal().sqrt())

    def rough_reverse(self) -> AffineConditional:
        """Return a tau that is off in slope, offset and scale, and narrower, so that weights stay bounded."""
        exact = self.exact_reverse()
        shift = torch.tensor([0.15, -0.1])
        return AffineConditional(exact.u_weight * 0.7, exact.x_weight, exact.bias + shift, exact.log_scale.exp() * 0.8)


def _rotation(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]])


def wide_hierarchy(strength: float = 1.0) -> Hierarchy:
    """A hierarchy with a rotated A, wider than the model's posterior; psi moves z in proportion to ``strength``."""
    gain, constant, _ = linear_gaussian().posterior()
    mixing = AffineGaussian(torch.tensor([[0.2, 0.0, 0.1], [0.0, -0.1, 0.1]]), torch.tensor([0.1, 0.0]), torch.ones(2))
    # S = s^2 I and A = rotation times diagonal keep q(psi|z,x) diagonal while q(z|x) is not.
    slope = strength * _rotation(0.6) @ torch.diag(torch.tensor([0.5, 0.3]))
    conditional = AffineConditional(slope, 0.8 * gain, constant + 0.1, 1.05 * torch.ones(2))
    return Hierarchy(mixing, conditional)


def posterior_hierarchy(share: float = 0.4) -> Hierarchy:
    """A hierarchy whose marginal is the linear-Gaussian model's posterior; psi explains ``share`` of it."""
    gain, constant, variance = linear_gaussian().posterior()
    v = variance.diagonal()
    mixing = AffineGaussian(torch.zeros(PSI, X), torch.zeros(PSI), torch.ones(PSI))
    conditional = AffineConditional((share * v).sqrt().diag(), gain, constant, ((1 - share) * v).sqrt())
    return Hierarchy(mixing, conditional)


# Encoder families -----------------------------------------------------------------------------------------


def gaussian(widen: float = 1.4) -> GaussianEncoder:
    """Return a diagonal Gaussian near the linear-Gaussian model's posterior, ``widen`` times its scale."""
    gain, constant, variance = linear_gaussian().posterior()
    return GaussianEncoder(AffineGaussian(0.8 * gain, constant + 0.1, widen * variance.diagonal().sqrt()))


def exact_gaussian() -> GaussianEncoder:
    """Return the linear-Gaussian model's posterior."""
    gain, constant, variance = linear_gaussian().posterior()
    return GaussianEncoder(AffineGaussian(gain, constant, variance.diagonal().sqrt()))


def learned() -> HierarchicalEncoder:
    """Return HVM and IWHVI's cell: a reverse model that is not exact."""
    toy = wide_hierarchy()
    return HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse())


def exact_reverse() -> HierarchicalEncoder:
    """Return a hierarchy with tau = q(psi|z,x)."""
    toy = wide_hierarchy()
    return HierarchicalEncoder(toy.mixing, toy.conditional, toy.exact_reverse())


def sivi(share_psi: bool = False) -> HierarchicalEncoder:
    """Return SIVI's cell."""
    toy = wide_hierarchy()
    return HierarchicalEncoder(toy.mixing, toy.conditional, None, share_psi=share_psi)


def mixing_as_reverse() -> HierarchicalEncoder:
    """Return SIVI's cell in its other spelling: a reverse model that returns mixing(x)."""
    toy = wide_hierarchy()
    return HierarchicalEncoder(toy.mixing, toy.conditional, IgnoringZ(toy.mixing))


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
        reverse = GatedReverse(encoder.reverse, encoder.mixing, PSI, bias=0.3)
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


def flow(family: str, **settings: object) -> FlowEncoder:
    """Return two steps of a flow on a Gaussian encoder with a real network, away from where they start."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        posterior = _widened(TrunkGaussian(MLP(X, [4], "tanh"), Z), 0.8)
        steps = [FLOWS[family](Place(4, Z, index, "tanh"), **settings) for index in (0, 1)]
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


def _flow_family(name: str, **settings: object) -> "Family":
    def make() -> FlowEncoder:
        return flow(name.partition("-")[0], **settings)

    return Family(name, make, (0,), lambda z, x: make().encode(x).log_prob(z))


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
    return layers.upper.log_prob(second) + combined(layers.lower, _top_down()(second)).log_prob(first)


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
    _flow_family("planar"),
    _flow_family("radial"),
    _flow_family("householder"),
    _flow_family("sylvester-orthogonal", variant="orthogonal", rank=1, reflections=2),
    _flow_family("sylvester-householder", variant="householder", rank=1, reflections=2),
    _flow_family("sylvester-triangular", variant="triangular", rank=1, reflections=2),
    _flow_family("realnvp", width=6, depth=2),
    _flow_family("iaf", width=6, depth=2),
    _flow_family("nsf", width=6, depth=2, bins=4, bound=4.0),
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


# Wrong encoders, for controls -----------------------------------------------------------------------------


class Miscounted(Encoder):
    """Divides the sum of L+1 ratios by L: log_q is too high by log((L+1)/L)."""

    direction = Direction.UPPER_BOUND

    def __init__(self, right: HierarchicalEncoder) -> None:
        super().__init__()
        self.right = right

    def encode(self, x: Tensor) -> object:
        return self.right.encode(x)

    def sample(
        self,
        context: object,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        draw = self.right.sample(context, k, inner_k=inner_k)  # pyright: ignore[reportArgumentType]
        return Draw(draw.z, draw.log_q + math.log((inner_k + 1) / inner_k))


class WithoutOwnPsi(Encoder):
    """Scores z with psi_1..L alone, all fresh from tau, as UIVI's evaluation does: the bound turns round."""

    direction = Direction.ESTIMATE

    def __init__(self, right: HierarchicalEncoder) -> None:
        super().__init__()
        self.right = right

    def encode(self, x: Tensor) -> Tensor:
        return x

    def sample(
        self, context: Tensor, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        mixing, conditional, reverse = self.right.mixing(context), self.right.conditional, self.right.reverse
        conditioned = conditional.condition(context)
        z = conditional(mixing.rsample((k,)), conditioned).rsample()
        tau = mixing if reverse is None else reverse(z, reverse.condition(context))
        psi = tau.rsample((inner_k, k) if len(tau.batch_shape) < z.dim() - 1 else (inner_k,))
        log_joint = mixing.log_prob(psi) + conditional(psi, conditioned).log_prob(z)
        return Draw(z, log_mean_exp(log_joint - tau.log_prob(psi)))


# Exact expectations of bounds -----------------------------------------------------------------------------


def expected_iwae(log_w: Tensor, probability: Tensor, k: int) -> Tensor:
    """Return L_K = E log (1/K) sum_k w_k for K independent weights, by one-dimensional quadrature.

    log s = integral_0^inf (exp(-t) - exp(-t s)) / t dt makes the expectation of the log of a sum of
    independent weights a matter of phi(t) = E exp(-t w) alone, which enters as phi(t)^K.

    Args:
        log_w: log weights at the nodes of a quadrature over one sample's noise, (N,).
        probability: the nodes' weights, (N,), adding up to 1.
        k: number of samples K.
    """
    step = 0.2
    # t = exp(u); the ends are where the integrand is below 1e-12.
    u = torch.arange(-30.0, 40.0, step)
    centre = log_w.max().detach()
    weights = (log_w - centre).exp()
    phi = torch.stack([(probability * torch.exp(-t * weights)).sum() for t in u.exp()])
    integral = ((-u.exp()).exp() - phi**k).sum() * step
    return integral + centre - math.log(k)


def normal_nodes(dims: int, count: int, reach: float = 7.0) -> tuple[Tensor, Tensor]:
    """Return nodes (N, dims) and weights (N,) of the trapezoidal rule for E f(epsilon), epsilon ~ N(0, I)."""
    line = torch.linspace(-reach, reach, count)
    density = torch.exp(-0.5 * line**2)
    density = density / density.sum()
    grids = torch.meshgrid(*[line] * dims, indexing="ij")
    weights = torch.meshgrid(*[density] * dims, indexing="ij")
    nodes = torch.stack([grid.flatten() for grid in grids], -1)
    return nodes, torch.stack([weight.flatten() for weight in weights], -1).prod(-1)
