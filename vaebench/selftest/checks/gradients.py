"""Reparam, STL and DReG against the exact gradient of the exact expectation of a bound."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vaebench import bounds
from vaebench.encoders.base import Encoder
from vaebench.gradients import GradientEstimator
from vaebench.model import GenerativeModel
from vaebench.objective import Objective
from vaebench.priors import StandardNormalPrior
from vaebench.selftest.oracles.gaussian import ConstantDecoder, X, exact_gaussian, exact_hierarchical, linear_gaussian
from vaebench.selftest.oracles.scalar import GAUSSIAN, HIERARCHICAL, IMAGE, Replicated, model
from vaebench.selftest.rows import CheckRow, Mean, differs, exact, near
from vaebench.selftest.running import Bench

__all__ = ["check"]

REPARAM, STL, DREG = GradientEstimator.REPARAM, GradientEstimator.STL, GradientEstimator.DREG
REPLICATES = 50_000
K = 5
ELBO_SLOPE, IWAE_SLOPE = -0.7, -0.0928489
"""d bound / d mean for posterior N(0, 1) and q = N(0.7, 1.3^2), at K = 1 and K = 5."""
HIERARCHY_SLOPES = {"mixing_mean": -0.0234215, "slope": -0.0755108, "reverse_slope": 0.0410355}
"""d IWAE-5 / d parameter for ``HIERARCHICAL`` with one inner sample. The tests compute both constants by quadrature."""


def check(bench: Bench) -> Iterator[CheckRow]:
    """Compare mean gradients with derivatives of the exact bound, nats per unit."""
    with bench.device:
        yield from _gaussian()
        yield from _hierarchical()
        yield from _at_the_optimum()


def _gaussian() -> Iterator[CheckRow]:
    for gradient in (REPARAM, STL, DREG):
        yield near(f"d ELBO / d mean, {gradient.value}", ELBO_SLOPE, Mean.of(_of_the_mean(1, gradient)))
    for gradient in (REPARAM, DREG):
        yield near(f"d IWAE-5 / d mean, {gradient.value}", IWAE_SLOPE, Mean.of(_of_the_mean(K, gradient)))
    yield differs("d IWAE-5 / d mean, stl", IWAE_SLOPE, Mean.of(_of_the_mean(K, STL)))


def _of_the_mean(k: int, gradient: GradientEstimator) -> Tensor:
    flat = GenerativeModel(StandardNormalPrior(1), ConstantDecoder(torch.zeros(1)))
    toy = Replicated(GAUSSIAN, REPLICATES)
    value, _ = Objective(bounds.iwae, gradient)(flat, toy.encoder, torch.ones(REPLICATES, 1), k)
    value.sum().backward()
    return _of(toy.parameters, "mean")


def _hierarchical() -> Iterator[CheckRow]:
    """IWHVI with one inner sample: a parameter of q(psi|x), one of q(z|psi,x), one of tau."""
    for gradient in (REPARAM, DREG, STL):
        toy, x = Replicated(HIERARCHICAL, REPLICATES), torch.full((REPLICATES, 1), IMAGE)
        value, _ = Objective(bounds.iwae, gradient)(model(), toy.encoder, x, K, inner_k=1)
        value.sum().backward()
        for key, slope in HIERARCHY_SLOPES.items():
            name, mean = f"d IWAE-5 / d {key}, {gradient.value}", Mean.of(_of(toy.parameters, key))
            if gradient is not STL:
                yield near(name, slope, mean)
            elif key == "mixing_mean":
                yield differs(name, slope, mean)


def _of(parameters: Mapping[str, Tensor], key: str) -> Tensor:
    gradient = parameters[key].grad
    assert gradient is not None
    return gradient


def _at_the_optimum() -> Iterator[CheckRow]:
    """At the posterior, the path gradient of every draw is zero."""
    for gradient in (STL, DREG):
        for name, encoder, inner_k in (("gaussian", exact_gaussian(), 0), ("iwhvi", exact_hierarchical(), 3)):
            yield exact(f"gradient at q = p(z|x), {name}, {gradient.value}", 0, _largest(encoder, inner_k, gradient))
    yield differs("gradient at q = p(z|x), gaussian, reparam", 0, _largest(exact_gaussian(), 0, REPARAM))


def _largest(encoder: Encoder, inner_k: int, gradient: GradientEstimator) -> float:
    """Return the largest absolute gradient in the parameters of q; tau is left out."""
    value, _ = Objective(bounds.iwae, gradient)(linear_gaussian(), encoder, torch.randn(5, X), 4, inner_k=inner_k)
    value.sum().backward()
    own = [parameter for key, parameter in encoder.named_parameters() if not key.startswith("reverse.")]
    return max(parameter.grad.abs().max().item() for parameter in own if parameter.grad is not None)
