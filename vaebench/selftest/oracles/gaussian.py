"""The linear-Gaussian model and Gaussian hierarchical encoders.

The model: z ~ N(0, I_2), x|z ~ N(W z + b, s^2 I_3). The columns of W are orthogonal, so the posterior is a diagonal
Gaussian. The hierarchies: psi|x and z|psi,x are affine and Gaussian.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vaebench.distributions import Bernoulli, DiagonalNormal
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.model import GenerativeModel
from vaebench.nets.heads import Conditional, NormalLikelihood
from vaebench.priors import StandardNormalPrior

__all__ = [
    "PSI",
    "AffineConditional",
    "AffineGaussian",
    "ConstantDecoder",
    "LinearGaussian",
    "X",
    "Z",
    "exact_gaussian",
    "exact_hierarchical",
    "gaussian",
    "hierarchical",
    "linear_gaussian",
    "one_image",
    "posterior_parts",
    "sivi",
    "wide_parts",
]

X, Z, PSI = 3, 2, 2
"""Widths of x, z and psi."""
SHARE = 0.4
"""The share of the posterior's variance that psi explains in :func:`posterior_parts`."""


class LinearGaussian(GenerativeModel):
    """p(z) p(x|z), with log p(x) and p(z|x) in closed form."""

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
    """Return the model with posterior variances 1/2 and 2/3."""
    weight = torch.tensor([[2.0, 1.0], [2.0, -0.5], [1.0, -1.0]])
    weight = weight / weight.norm(dim=0) * torch.tensor([0.8, 0.8 * 0.5**0.5])
    return LinearGaussian(weight, torch.tensor([0.1, -0.2, 0.3]), 0.8)


def one_image(replicates: int) -> Tensor:
    """Return the same x, (B, X), in ``replicates`` rows: B independent repetitions."""
    return torch.tensor([0.9, 0.2, -0.4]).expand(replicates, X)


class ConstantDecoder(nn.Module):
    """p(x|z) = p(x), the same for every z."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, z: Tensor) -> Bernoulli:
        return Bernoulli(self.logits.expand(*z.shape[:-1], -1))


class AffineGaussian(nn.Module):
    """x -> N(A x + a, diag(scale^2)).

    Parameters may have a leading axis of replicates, (B, D). The gradient of each row is then an independent sample.
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


def gaussian(widen: float = 1.4) -> GaussianEncoder:
    """Return a diagonal Gaussian near the linear-Gaussian model's posterior, ``widen`` times its scale."""
    gain, constant, variance = linear_gaussian().posterior()
    return GaussianEncoder(AffineGaussian(0.8 * gain, constant + 0.1, widen * variance.diagonal().sqrt()))


def exact_gaussian() -> GaussianEncoder:
    """Return the linear-Gaussian model's posterior."""
    gain, constant, variance = linear_gaussian().posterior()
    return GaussianEncoder(AffineGaussian(gain, constant, variance.diagonal().sqrt()))


def posterior_parts(share: float = SHARE) -> tuple[AffineGaussian, AffineConditional]:
    """Return q(psi|x) and q(z|psi,x) whose marginal q(z|x) is the linear-Gaussian model's posterior.

    Args:
        share: the share of the posterior's variance that psi explains.
    """
    gain, constant, variance = linear_gaussian().posterior()
    v = variance.diagonal()
    mixing = AffineGaussian(torch.zeros(PSI, X), torch.zeros(PSI), torch.ones(PSI))
    return mixing, AffineConditional((share * v).sqrt().diag(), gain, constant, ((1 - share) * v).sqrt())


def exact_hierarchical() -> HierarchicalEncoder:
    """Return a hierarchy whose marginal is the linear-Gaussian model's posterior, with tau = q(psi|z,x).

    q(psi|z,x) = N((share / v)^(1/2) (z - E[z|x]), 1 - share), where v is the posterior's variance.
    """
    gain, constant, variance = linear_gaussian().posterior()
    slope = (SHARE / variance.diagonal()).sqrt().diag()
    scale = torch.full((PSI,), (1 - SHARE) ** 0.5)
    return HierarchicalEncoder(*posterior_parts(), AffineConditional(slope, -slope @ gain, -slope @ constant, scale))


def wide_parts(strength: float = 1.0) -> tuple[AffineGaussian, AffineConditional]:
    """Return q(psi|x) and q(z|psi,x) whose marginal is wider than the linear-Gaussian model's posterior.

    Args:
        strength: psi moves z in proportion to it.
    """
    gain, constant, _ = linear_gaussian().posterior()
    mixing = AffineGaussian(torch.tensor([[0.2, 0.0, 0.1], [0.0, -0.1, 0.1]]), torch.tensor([0.1, 0.0]), torch.ones(2))
    # The slope is a rotation times a diagonal, and the noise is isotropic: q(psi|z,x) is then diagonal, q(z|x) is not.
    c, s = math.cos(0.6), math.sin(0.6)
    slope = strength * torch.tensor([[c, -s], [s, c]]) @ torch.diag(torch.tensor([0.5, 0.3]))
    return mixing, AffineConditional(slope, 0.8 * gain, constant + 0.1, 1.05 * torch.ones(2))


def hierarchical() -> HierarchicalEncoder:
    """Return the encoder of HVM and IWHVI; its reverse model is near q(psi|z,x), but not exact.

    The reverse model is narrower than q(psi|z,x), so that weights have a finite variance.
    """
    slope, on_x = torch.tensor([[0.21, 0.15], [-0.1, 0.15]]), torch.tensor([[0.0, -0.07, 0.1], [-0.02, -0.01, 0.18]])
    reverse = AffineConditional(slope, on_x, torch.tensor([0.18, -0.12]), torch.tensor([0.72, 0.77]))
    return HierarchicalEncoder(*wide_parts(), reverse)


def sivi(share_psi: bool = False) -> HierarchicalEncoder:
    """Return the encoder of SIVI."""
    return HierarchicalEncoder(*wide_parts(), None, share_psi=share_psi)
