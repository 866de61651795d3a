"""The linear-Gaussian model and Gaussian hierarchies: every density and every divergence in closed form.

Linear-Gaussian model: z ~ N(0, I_2), x|z ~ N(W z + b, s^2 I_3), with orthogonal columns of W, so that the
posterior is a diagonal Gaussian. Gaussian hierarchical encoders: psi|x and z|psi,x affine and Gaussian, so that
q(z|x) and q(psi|z,x) are known.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vaebench.distributions import Bernoulli, DiagonalNormal
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.model import GenerativeModel
from vaebench.nets.dense import Conditional, NormalLikelihood
from vaebench.priors import StandardNormalPrior

__all__ = [
    "PSI",
    "AffineConditional",
    "AffineGaussian",
    "ConstantDecoder",
    "Hierarchy",
    "IgnoringZ",
    "LinearGaussian",
    "X",
    "Z",
    "exact_gaussian",
    "exact_hierarchical",
    "exact_reverse",
    "gaussian",
    "learned",
    "linear_gaussian",
    "mixing_as_reverse",
    "one_image",
    "posterior_hierarchy",
    "sivi",
    "wide_hierarchy",
]

X, Z, PSI = 3, 2, 2
"""Widths of x, z and psi in everything here that is made without arguments."""
# The linear-Gaussian model --------------------------------------------------------------------------------


class LinearGaussian(GenerativeModel):
    """p(z) p(x|z) with log p(x) and p(z|x) in closed form."""

    def __init__(self, weight: Tensor, bias: Tensor, scale: float) -> None:
        super().__init__(StandardNormalPrior(weight.shape[1]), NormalLikelihood(weight, bias, scale))
        self.scale = scale

    @property
    def weight(self) -> Tensor:
        """W."""
        return self.decoder.weight.detach()  # pyright: ignore[reportReturnType, reportCallIssue]

    @property
    def bias(self) -> Tensor:
        """b."""
        return self.decoder.bias.detach()  # pyright: ignore[reportReturnType, reportCallIssue]

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) = log N(x; b, W W' + s^2 I), (B,)."""
        covariance = self.weight @ self.weight.T + self.scale**2 * _identity(self.weight.T)
        return MultivariateNormal(self.bias, covariance).log_prob(x)

    def posterior(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (A, a, V) of p(z|x) = N(A x + a, V)."""
        precision = _identity(self.weight) + self.weight.T @ self.weight / self.scale**2
        variance = torch.linalg.inv(precision)
        gain = variance @ self.weight.T / self.scale**2
        return gain, -gain @ self.bias, variance


def _identity(weight: Tensor) -> Tensor:
    """Return I as wide as ``weight``."""
    return torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)


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

    def information(self) -> Tensor:
        """Return I(z; psi) = 1/2 log |C|/|S|, C the covariance of q(z|x), a scalar."""
        a, p, s = self.factors
        return 0.5 * (torch.logdet(a @ p @ a.T + s) - torch.logdet(s))

    def divergence_of(self, tau: AffineConditional, x: Tensor) -> Tensor:
        """Return E_q(z|x) KL(q(psi|z,x) || tau(psi|z,x)), (B,): how far the HVM bound lies below the ELBO.

        Both are Gaussian, and their means differ by D z + d with z ~ q(z|x):
        (tr(R^-1 V) - n + log |R|/|V| + E (Dz + d)' R^-1 (Dz + d)) / 2.
        """
        to_z, to_x, constant, variance = self.reverse_posterior()
        precision = torch.diag((-2 * tau.log_scale.detach()).exp())
        slope = to_z - tau.u_weight.detach()
        offset = x @ (to_x - tau.x_weight.detach()).T + constant - tau.bias.detach()
        marginal = self.marginal(x)
        mean = marginal.mean @ slope.T + offset
        spread = slope @ marginal.covariance_matrix @ slope.T
        expected_square = (mean @ precision * mean).sum(-1) + (spread @ precision).diagonal(dim1=-2, dim2=-1).sum(-1)
        log_ratio = -torch.logdet(precision) - torch.logdet(variance)
        return 0.5 * ((precision @ variance).trace() - len(variance) + log_ratio + expected_square)

    def exact_reverse(self) -> AffineConditional:
        """Return tau = q(psi|z,x); it has to be diagonal."""
        to_z, to_x, constant, variance = self.reverse_posterior()
        assert torch.allclose(variance, torch.diag(variance.diagonal()))
        return AffineConditional(to_z, to_x, constant, variance.diagonal().sqrt())

    def rough_reverse(self) -> AffineConditional:
        """Return a tau that is off in slope, offset and scale, and narrower, so that weights stay bounded."""
        exact = self.exact_reverse()
        shift = exact.bias.new_tensor([0.15, -0.1])
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


# Encoders -------------------------------------------------------------------------------------------------


def gaussian(widen: float = 1.4) -> GaussianEncoder:
    """Return a diagonal Gaussian near the linear-Gaussian model's posterior, ``widen`` times its scale."""
    gain, constant, variance = linear_gaussian().posterior()
    return GaussianEncoder(AffineGaussian(0.8 * gain, constant + 0.1, widen * variance.diagonal().sqrt()))


def exact_gaussian() -> GaussianEncoder:
    """Return the linear-Gaussian model's posterior."""
    gain, constant, variance = linear_gaussian().posterior()
    return GaussianEncoder(AffineGaussian(gain, constant, variance.diagonal().sqrt()))


def exact_hierarchical() -> HierarchicalEncoder:
    """Return a hierarchy whose marginal is the linear-Gaussian model's posterior, with its exact reverse model."""
    toy = posterior_hierarchy()
    return HierarchicalEncoder(toy.mixing, toy.conditional, toy.exact_reverse())


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
