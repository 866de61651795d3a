"""Gaussian hierarchies whose every density and divergence is known in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vaebench.distributions import DiagonalNormal
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.nets.heads import Conditional
from vaebench.selftest.oracles.gaussian import AffineConditional, AffineGaussian, posterior_parts, wide_parts

__all__ = [
    "Hierarchy",
    "IgnoringZ",
    "exact_reverse",
    "learned",
    "mixing_as_reverse",
    "posterior_hierarchy",
    "wide_hierarchy",
]


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
        """Return tau = q(psi|z,x), which must be diagonal."""
        to_z, to_x, constant, variance = self.reverse_posterior()
        assert torch.allclose(variance, torch.diag(variance.diagonal()))
        return AffineConditional(to_z, to_x, constant, variance.diagonal().sqrt())

    def rough_reverse(self) -> AffineConditional:
        """Return an inexact tau; it is narrower than q(psi|z,x), so that weights have a finite variance."""
        exact = self.exact_reverse()
        shift = exact.bias.new_tensor([0.15, -0.1])
        return AffineConditional(exact.u_weight * 0.7, exact.x_weight, exact.bias + shift, exact.log_scale.exp() * 0.8)


def wide_hierarchy(strength: float = 1.0) -> Hierarchy:
    """Return a hierarchy wider than the model's posterior; psi moves z in proportion to ``strength``."""
    return Hierarchy(*wide_parts(strength))


def posterior_hierarchy(share: float = 0.4) -> Hierarchy:
    """Return a hierarchy whose marginal is the linear-Gaussian model's posterior; psi explains ``share`` of it."""
    return Hierarchy(*posterior_parts(share))


def learned() -> HierarchicalEncoder:
    """Return the encoder of HVM and IWHVI, with an inexact reverse model."""
    toy = wide_hierarchy()
    return HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse())


def exact_reverse() -> HierarchicalEncoder:
    """Return a hierarchy with tau = q(psi|z,x)."""
    toy = wide_hierarchy()
    return HierarchicalEncoder(toy.mixing, toy.conditional, toy.exact_reverse())


def mixing_as_reverse() -> HierarchicalEncoder:
    """Return SIVI's encoder, written with a reverse model that returns mixing(x)."""
    toy = wide_hierarchy()
    return HierarchicalEncoder(toy.mixing, toy.conditional, IgnoringZ(toy.mixing))
