"""Networks of adversarial variational Bayes: samplers without a density, and the network of a log-ratio.

Shapes: K draws first, B images, D latent coordinates, E noise coordinates, M basis functions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebench import noise
from vaebench.distributions import DiagonalNormal, FullNormal, FullStudentT, at_least_float32, positive
from vaebench.nets.activations import elu
from vaebench.nets.dense import MLP, AdditiveMLP, Trunk, linear

__all__ = [
    "BasisSampler",
    "LogRatio",
    "NoiseFedSampler",
    "RatioNetwork",
    "Sampler",
    "matched",
]

# Added to the variance of a moment-matched Gaussian, so that a collapsed coordinate still has a density.
VARIANCE_FLOOR = 1e-4
# Above about this many nats a learned log-ratio grows like a logarithm.
RATIO_SCALE = 100.0


class Sampler(nn.Module, ABC):
    """z = f(x, noise): an approximate posterior that has draws and no density."""

    @abstractmethod
    def condition(self, x: Tensor) -> Any:
        """Compute the part that depends on the images x, (B, X), alone."""

    @abstractmethod
    def forward(self, conditioned: Any, k: int) -> Tensor:
        """Draw (K, B, D), differentiable in the parameters."""

    @abstractmethod
    def moments(self, conditioned: Any, *, full: bool = False) -> tuple[Tensor, Tensor]:
        """Return the mean and the variances of z, (B, D) each; with ``full`` the covariance, (B, D, D), instead."""


@torch.no_grad()
def matched(sampler: Sampler, conditioned: Any, *, full: bool) -> DiagonalNormal | FullStudentT:
    """Return the Gaussian with the sampler's mean and variances, or with ``full`` Student's t with its covariance.

    Draws and density use the same scale.
    """
    mean, moments = sampler.moments(conditioned, full=full)
    if full:
        floor = torch.full_like(at_least_float32(mean), VARIANCE_FLOOR)
        return FullStudentT(FullNormal.of_covariance(mean, moments + torch.diag_embed(floor)))
    return DiagonalNormal(mean, (moments + VARIANCE_FLOOR).sqrt())


class NoiseFedSampler(Sampler):
    """A network over x; Gaussian noise is added linearly to each layer.

    Args:
        network: maps noise (..., B, E) and x to features.
        noise_dim: E.
        dim: D.
        moment_draws: number of draws that estimate the moments of z, at least 2.
    """

    def __init__(self, network: AdditiveMLP, noise_dim: int, dim: int, moment_draws: int = 128) -> None:
        super().__init__()
        self.network = network
        self.head = linear(network.width, dim)
        self.noise_dim = noise_dim
        self.moment_draws = moment_draws

    def condition(self, x: Tensor) -> Tensor:
        return self.network.condition(x)

    def forward(self, conditioned: Tensor, k: int) -> Tensor:
        epsilon = noise.standard_normal((k, len(conditioned), self.noise_dim), at_least_float32(conditioned))
        return _in_full_precision(self.head, self.network(epsilon, conditioned))

    def moments(self, conditioned: Tensor, *, full: bool = False) -> tuple[Tensor, Tensor]:
        """Estimate the moments from ``moment_draws`` draws for each image."""
        draws = self(conditioned, self.moment_draws)
        variance, mean = torch.var_mean(draws, 0)
        return mean, _covariance((draws - mean).transpose(0, 1), self.moment_draws - 1) if full else variance


class BasisSampler(Sampler):
    """z = z0(x) + sum_i a_i(x) * v_i(epsilon_i), whose moments follow from the moments of the v_i:

    E z = z0 + sum_i a_i E v_i,  Cov z = sum_i (a_i a_i^T) * Cov v_i

    The v_i of the source are networks h_i. Two of them can take over, with draws that lie close to a surface of few
    dimensions: many nats of KL divergence from the Gaussian with the same moments, which a discriminator finds too
    late. With a ``bound`` b, v_i = noise + b tanh(h_i / b), with standard normal noise, which has at least
    1 / (1 + b^2) of each variance of z. So this KL divergence is at most log(1 + b^2) / 2 nats per coordinate: the
    entropy of z is no less than that of the noise, and the determinant of Cov z no more than the product of its
    diagonal.

    The moments of h_i are its batch moments over a bank of noise. In training the bank is drawn anew each time: the
    h_i would learn to be narrow on a fixed one and wide elsewhere, because log r rewards draws that are far out by its
    moments. After training it is one fixed bank, drawn when the sampler is built, so the moments of an image do not
    depend on other images or earlier draws. The log-ratio corrects the error of the finite bank.

    Source: the authors' code of https://arxiv.org/abs/1701.04722

    Args:
        trunk: maps x to features, from which z0 and the a_i are computed.
        dim: D.
        noise_dim: E, the width of each epsilon_i.
        count: M.
        hidden: widths of each h_i's layers.
        bound: b; None for v_i = h_i.
        bank: size of the bank of noise, at least 2.
    """

    def __init__(
        self,
        trunk: Trunk,
        dim: int,
        *,
        noise_dim: int,
        count: int,
        hidden: Sequence[int],
        bound: float | None = None,
        bank: int = 512,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.offset = linear(trunk.width, dim)
        self.coefficients = linear(trunk.width, count * dim)
        self.basis = _Basis(count, [noise_dim, *hidden, dim], bound)
        self.noise_dim, self.count, self.dim, self.noisy = noise_dim, count, dim, bound is not None
        self.register_buffer("bank", torch.randn(bank, noise_dim))
        self.bank: Tensor

    def condition(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z0(x), (B, D), and the positive a_i(x), (B, M, D)."""
        features = self.trunk(x)
        raw = _in_full_precision(self.coefficients, features).unflatten(-1, (self.count, self.dim))
        # The division keeps Var z independent of the number of basis functions.
        coefficients = positive(raw) / self.count**0.5
        return _in_full_precision(self.offset, features), coefficients

    def forward(self, conditioned: tuple[Tensor, Tensor], k: int) -> Tensor:
        offset, coefficients = conditioned
        batch = len(offset)
        epsilon = noise.standard_normal((k, batch, self.count * self.noise_dim), offset)
        values = self.basis(epsilon.reshape(k * batch, self.count, self.noise_dim).transpose(0, 1))
        values = values.transpose(0, 1).reshape(k, batch, self.count, self.dim)
        z = offset + (coefficients * values).sum(-2)
        if not self.noisy:
            return z
        # One draw for the sum of the independent noises of the v_i.
        return z + coefficients.square().sum(-2).sqrt() * noise.standard_normal((k, batch, self.dim), offset)

    def moments(self, conditioned: tuple[Tensor, Tensor], *, full: bool = False) -> tuple[Tensor, Tensor]:
        """Return the exact moments of z, given the moments of the h_i over a bank."""
        # Not from the noise of a batch: every process of a training has the same bank.
        bank = torch.randn_like(self.bank) if self.training else self.bank
        values = self.basis(bank.expand(self.count, -1, -1))
        variance, mean = torch.var_mean(values, 1, correction=0)
        offset, coefficients = conditioned
        center = offset + (coefficients * mean).sum(-2)
        noises = coefficients.square().sum(-2) if self.noisy else torch.zeros_like(center)
        if not full:
            return center, (coefficients.square() * variance).sum(-2) + noises
        covariance = torch.diag_embed(noises)
        covariances = _covariance(values - mean.unsqueeze(1), values.shape[1])
        # One basis function at a time: an einsum over all takes forty times as long on a CPU.
        for a, basis_covariance in zip(coefficients.unbind(1), covariances, strict=True):
            covariance = torch.addcmul(covariance, a.unsqueeze(-1) * a.unsqueeze(-2), basis_covariance)
        return center, covariance


def _covariance(offsets: Tensor, count: int) -> Tensor:
    """Return the sums of products of offsets from a mean, (..., N, D) -> (..., D, D), over ``count``."""
    with torch.autocast(offsets.device.type, enabled=False):
        return offsets.mT @ offsets / count


class _Basis(nn.Module):
    """M separate networks in one batch of matrices: noise (M, N, E) -> (M, N, D), values within ``bound`` if given."""

    def __init__(self, count: int, widths: Sequence[int], bound: float | None) -> None:
        super().__init__()
        self.bound = bound
        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList(_glorot(count, a, b) for a, b in pairs)
        self.biases = nn.ParameterList(torch.zeros(count, 1, b) for _, b in pairs)

    def forward(self, value: Tensor) -> Tensor:
        *inner, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in inner:
            value = elu(torch.baddbmm(bias, value, weight))
        value = _in_full_precision(lambda v: torch.baddbmm(last[1], v, last[0]), value)
        return value if self.bound is None else self.bound * torch.tanh(value / self.bound)


def _glorot(count: int, inputs: int, outputs: int) -> Tensor:
    limit = (6 / (inputs + outputs)) ** 0.5
    return torch.empty(count, inputs, outputs).uniform_(-limit, limit)


class LogRatio(nn.Module, ABC):
    """T(x, z), the discriminator: an estimate of the log-ratio of two densities of z given x."""

    def condition(self, x: Tensor) -> Any:
        """Compute the part that depends on the images x, (B, X), alone. The default returns x itself."""
        return x

    @abstractmethod
    def forward(self, z: Tensor, conditioned: Any) -> Tensor:
        """Return T, (K, B), for z of shape (K, B, D)."""


class RatioNetwork(LogRatio):
    """T(x, z) = g(theta(x) . s(z) + t(x) + u(z)) + 1/2 ||z||^2: the log-ratio of two densities of z given x.

    The optional last term is -log N(z; 0, I) up to a constant, so that the network need not learn that a log-ratio to
    the prior grows without bound. g(t) = c asinh(t / c) is the identity up to about c = 100 nats and a logarithm above.
    It prevents the divergence that users of the method report, and its slope is never 0.

    Source: the authors' code of https://arxiv.org/abs/1701.04722

    Args:
        x_dim, z_dim: widths of the inputs.
        hidden: widths of the layers of both networks, over x and over z.
        activation: a key of ``ACTIVATIONS``.
        quadratic: whether to add 1/2 ||z||^2.
    """

    def __init__(self, x_dim: int, z_dim: int, hidden: Sequence[int], activation: str, *, quadratic: bool) -> None:
        super().__init__()
        self.x_trunk = MLP(x_dim, hidden, activation)
        self.z_trunk = MLP(z_dim, hidden, activation)
        # theta(x) is the last hidden layer over x, s(z) a linear map of the last hidden layer over z.
        self.x_term = linear(self.x_trunk.width, 1)
        self.z_terms = linear(self.z_trunk.width, self.x_trunk.width + 1)
        self.quadratic = quadratic

    def condition(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor of the last hidden layer of z, (B, H), and the other terms, (B,), for x of shape (B, X).

        theta . s(z) + u(z) + t(x), with s(z) = S h(z) + s_0, equals h(z) . (S^T theta + ...) + .... So the product with
        S is computed once per image, and not for each z.
        """
        theta = self.x_trunk(x)
        share = self.x_trunk.width**-0.5  # so that T is near 0 at first for any width
        s, u = self.z_terms.weight.split([self.x_trunk.width, 1])
        s_0, u_0 = self.z_terms.bias.split([self.x_trunk.width, 1])
        slope = u + share * at_least_float32(theta @ s)
        weight, bias = self.x_term.weight + share * s_0, self.x_term.bias + u_0
        return slope, _in_full_precision(lambda v: F.linear(v, weight, bias), theta).squeeze(-1)

    def forward(self, z: Tensor, conditioned: tuple[Tensor, Tensor]) -> Tensor:
        slope, level = conditioned
        learned = (at_least_float32(self.z_trunk(z)) * slope).sum(-1) + level
        ratio = RATIO_SCALE * torch.asinh(learned / RATIO_SCALE)
        return ratio + 0.5 * at_least_float32(z).square().sum(-1) if self.quadratic else ratio


def _in_full_precision(layer: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Apply the last layer without autocast: latents in bf16 lie on a grid, which has no density."""
    with torch.autocast(value.device.type, enabled=False):
        return layer(at_least_float32(value))
