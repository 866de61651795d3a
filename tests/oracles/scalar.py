"""Exact expectations of bounds of one-dimensional encoders, by quadrature."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from vaebench import bounds
from vaebench.bounds import Bound, log_mean_exp
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.selftest.oracles.gaussian import AffineConditional, AffineGaussian
from vaebench.selftest.oracles.scalar import GAUSSIAN, HIERARCHICAL, IMAGE, Replicated, model

__all__ = [
    "GAUSSIAN",
    "HIERARCHICAL",
    "IMAGE",
    "SIVI",
    "Named",
    "Replicated",
    "exact_bound",
    "exact_gradient",
    "expected_iwae",
    "model",
    "normal_nodes",
    "posterior_divergence",
    "standard_hierarchy",
]

SIVI = {key: value for key, value in HIERARCHICAL.items() if not key.startswith("reverse")}


def _log_normal(value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    return -0.5 * ((value - mean) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


def _draw(values: Mapping[str, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return z and log_q, (N,), from noise (N, 1) for a Gaussian and (N, 2 + L) for a hierarchy."""
    if "mean" in values:
        z = values["mean"] + values["log_scale"].exp() * noise[:, 0]
        return z, _log_normal(z, values["mean"], values["log_scale"])
    mean, log_scale = values["mixing_mean"], values["mixing_log_scale"]
    psi_0 = mean + log_scale.exp() * noise[:, 0]
    z = values["slope"] * psi_0 + values["offset"] + values["log_scale"].exp() * noise[:, 1]
    tau_mean, tau_log_scale = mean, log_scale
    if "reverse_slope" in values:
        tau_mean = values["reverse_slope"] * z + values["reverse_offset"]
        tau_log_scale = values["reverse_log_scale"]
    inner = [tau_mean + tau_log_scale.exp() * noise[:, column] for column in range(2, noise.shape[1])]
    log_r = [
        _log_normal(psi, mean, log_scale)
        + _log_normal(z, values["slope"] * psi + values["offset"], values["log_scale"])
        - _log_normal(psi, tau_mean, tau_log_scale)
        for psi in [psi_0, *inner]
    ]
    return z, log_mean_exp(torch.stack(log_r))


def _log_weight(values: Mapping[str, Tensor], noise: Tensor, beta: float) -> Tensor:
    z, log_q = _draw(values, noise)
    zero = torch.zeros(())
    log_likelihood = _log_normal(torch.tensor(IMAGE), 0.9 * z + 0.1, torch.tensor(0.7).log())
    return log_likelihood + beta * (_log_normal(z, zero, zero) - log_q)


@dataclass(frozen=True)
class Named:
    """A bound and its exact expectation for independent weights."""

    kind: str
    k: int
    argument: float = 0.0

    @property
    def function(self) -> Bound:
        """The library's bound."""
        choices: dict[str, Bound] = {
            "elbo": bounds.elbo,
            "iwae": bounds.iwae,
            "miwae": partial(bounds.miwae, groups=round(self.argument) if self.kind == "miwae" else 1),
            "ciwae": partial(bounds.ciwae, beta=self.argument),
            "renyi": partial(bounds.renyi, alpha=self.argument),
        }
        return choices[self.kind]

    def expectation(self, log_w: Tensor, probability: Tensor) -> Tensor:
        """Return the expectation of the bound, given one log weight at quadrature nodes."""
        elbo = (probability * log_w).sum()
        if self.kind == "elbo":
            return elbo
        if self.kind == "miwae":
            return expected_iwae(log_w, probability, self.k // int(self.argument))
        if self.kind == "renyi":
            power = 1 - self.argument
            return expected_iwae(power * log_w, probability, self.k) / power
        beta = self.argument
        return beta * elbo + (1 - beta) * expected_iwae(log_w, probability, self.k)


NODES = {1: 1001, 2: 81, 3: 33}
"""Quadrature nodes per dimension of the noise of one sample."""


def exact_bound(values: Mapping[str, float], bound: Named, inner_k: int = 0, beta: float = 1.0) -> float:
    """Return the expectation of ``bound`` by quadrature, without the package's encoders and models."""
    dims = 1 if "mean" in values else 2 + inner_k
    nodes, probability = normal_nodes(dims, NODES[dims])
    tensors = {key: torch.tensor(value) for key, value in values.items()}
    return bound.expectation(_log_weight(tensors, nodes, beta), probability).item()


def exact_gradient(values: Mapping[str, float], bound: Named, inner_k: int = 0, beta: float = 1.0) -> dict[str, float]:
    """Return central differences of :func:`exact_bound` in every parameter; cached."""
    return _exact_gradient(tuple(values.items()), bound, inner_k, beta)


@cache
def _exact_gradient(items: tuple[tuple[str, float], ...], bound: Named, inner_k: int, beta: float) -> dict[str, float]:
    values, step, gradient = dict(items), 1e-3, {}
    for key, value in items:
        above, below = ({**values, key: value + shift} for shift in (step, -step))
        difference = exact_bound(above, bound, inner_k, beta) - exact_bound(below, bound, inner_k, beta)
        gradient[key] = difference / (2 * step)
    return gradient


# Quadrature -----------------------------------------------------------------------------------------------


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


# Asymptotes -----------------------------------------------------------------------------------------------


def chi_square(mean: float, variance: float, q_mean: float, q_variance: float) -> float:
    """Return chi^2(N(mean, variance) || N(q_mean, q_variance)) = E_q (p/q)^2 - 1."""
    widened = 2 * q_variance - variance
    exponent = (mean - q_mean) ** 2 / widened
    return q_variance / math.sqrt(variance * widened) * math.exp(exponent) - 1


def posterior_divergence() -> float:
    """Return chi^2(p(z|x) || q) of the scalar Gaussian toy."""
    gain, constant, variance = model().posterior()
    mean = gain.item() * IMAGE + constant.item()
    return chi_square(mean, variance.item(), GAUSSIAN["mean"], math.exp(2 * GAUSSIAN["log_scale"]))


def standard_hierarchy() -> HierarchicalEncoder:
    """Return SIVI with z = .8 psi + .6 epsilon, whose marginal is N(0, 1)."""
    mixing = AffineGaussian(torch.zeros(1, 1), torch.zeros(1), torch.ones(1))
    conditional = AffineConditional(torch.tensor([[0.8]]), torch.zeros(1, 1), torch.zeros(1), torch.tensor([0.6]))
    return HierarchicalEncoder(mixing, conditional, None)
