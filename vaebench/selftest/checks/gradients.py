"""Reparam, STL and DReG against the exact gradient of the exact expectation of a bound."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vaebench import bounds
from vaebench.encoders.base import Encoder
from vaebench.gradients import GradientEstimator
from vaebench.model import GenerativeModel
from vaebench.objective import Objective
from vaebench.priors import StandardNormalPrior
from vaebench.selftest.bench import Bench
from vaebench.selftest.oracles.gaussian import ConstantDecoder, X, exact_gaussian, exact_hierarchical, linear_gaussian
from vaebench.selftest.oracles.scalar import (
    HIERARCHICAL,
    IMAGE,
    Named,
    Replicated,
    exact_gradient,
    expected_iwae,
    model,
    normal_nodes,
)
from vaebench.selftest.rows import Mean, Row, differs, exact, near

__all__ = ["check"]

REPARAM, STL, DREG = GradientEstimator.REPARAM, GradientEstimator.STL, GradientEstimator.DREG
REPLICATES = 50_000
IWAE5 = Named("iwae", 5)


def check(bench: Bench) -> Iterator[Row]:
    """Compare mean gradients with derivatives of the exact bound, nats per unit."""
    with bench.device:
        yield from _published_example()
        yield from _hierarchy()
        yield from _at_the_optimum()


def _published_example() -> Iterator[Row]:
    """Posterior N(0, 1), q = N(.7, 1.3^2): d/dmean is -.7 at K = 1 and -.0929 at K = 5, STL's -.4523."""
    for gradient in (REPARAM, STL, DREG):
        yield near(f"d ELBO / d mean, {gradient.value}", -0.7, Mean.of(_example(1, gradient)))
    slope = (_expected(0.701) - _expected(0.699)) / 0.002
    for gradient in (REPARAM, DREG):
        yield near(f"d IWAE-5 / d mean, {gradient.value}", slope, Mean.of(_example(5, gradient)))
    yield differs("d IWAE-5 / d mean, stl", slope, Mean.of(_example(5, STL)))


def _expected(mean: float) -> float:
    nodes, probability = normal_nodes(1, 1001)
    z = mean + 1.3 * nodes[:, 0]
    return expected_iwae(-0.5 * z**2 + 0.5 * nodes[:, 0] ** 2 + math.log(1.3), probability, 5).item()


def _example(k: int, gradient: GradientEstimator) -> Tensor:
    flat = GenerativeModel(StandardNormalPrior(1), ConstantDecoder(torch.zeros(1)))
    toy = Replicated({"mean": 0.7, "log_scale": math.log(1.3)}, REPLICATES)
    value, _ = Objective(bounds.iwae, gradient)(flat, toy.encoder, torch.ones(REPLICATES, 1), k)
    value.sum().backward()
    return _of(toy.parameters, "mean")


def _hierarchy() -> Iterator[Row]:
    """IWHVI with one inner sample: a parameter of q(psi|x), one of q(z|psi,x), one of tau."""
    truth = exact_gradient(HIERARCHICAL, IWAE5, 1)
    for gradient in (REPARAM, DREG, STL):
        toy, x = Replicated(HIERARCHICAL, REPLICATES), torch.full((REPLICATES, 1), IMAGE)
        value, _ = Objective(IWAE5.function, gradient)(model(), toy.encoder, x, IWAE5.k, inner_k=1)
        value.sum().backward()
        for key in ("mixing_mean", "slope", "reverse_slope"):
            name, mean = f"d IWAE-5 / d {key}, iwhvi L=1, {gradient.value}", Mean.of(_of(toy.parameters, key))
            if gradient is not STL:
                yield near(name, truth[key], mean)
            elif key == "mixing_mean":
                yield differs(name, truth[key], mean)


def _of(parameters: Mapping[str, Tensor], key: str) -> Tensor:
    gradient = parameters[key].grad
    assert gradient is not None
    return gradient


def _at_the_optimum() -> Iterator[Row]:
    """Where q is the posterior, the path gradient of each single draw is zero."""
    for gradient in (STL, DREG):
        for name, encoder, inner_k in (("gaussian", exact_gaussian(), 0), ("iwhvi L=3", exact_hierarchical(), 3)):
            yield exact(
                f"max |gradient| at the posterior, {name}, {gradient.value}", 0, _largest(encoder, inner_k, gradient)
            )
    yield differs("max |gradient| at the posterior, gaussian, reparam", 0, _largest(exact_gaussian(), 0, REPARAM))


def _largest(encoder: Encoder, inner_k: int, gradient: GradientEstimator) -> float:
    """Return the largest gradient in the parameters of q, not in those of tau."""
    value, _ = Objective(bounds.iwae, gradient)(linear_gaussian(), encoder, torch.randn(5, X), 4, inner_k=inner_k)
    value.sum().backward()
    own = [parameter for key, parameter in encoder.named_parameters() if not key.startswith("reverse.")]
    return max(parameter.grad.abs().max().item() for parameter in own if parameter.grad is not None)
