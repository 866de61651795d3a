"""The contract of a likelihood p(x|z): its values sum to one or its density integrates to one; draws follow it."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from vaebench.direction import Measure
from vaebench.nets.dense import Likelihood
from vaebench.selftest.rows import CheckRow, Mean, exact, near
from vaebench.testing.contract import Contract, no_problem, verify
from vaebench.testing.quadrature import grid

__all__ = ["check_likelihood", "likelihood_contract"]

PIXELS = 4
DRAWS = 20_000


def check_likelihood(build: Callable[..., Likelihood], /, **settings: Any) -> None:
    """Print the checks of a likelihood, and raise AssertionError with one line for each that fails.

    Args:
        build: what the entry point of the likelihood names: (**settings) -> the likelihood.
        settings: the keys of its yaml besides ``name``.
    """
    verify(likelihood_contract(build, settings))


def likelihood_contract(build: Callable[..., Likelihood], settings: Mapping[str, Any] | None = None) -> Contract:
    """Return the checks of a likelihood; for the arguments see :func:`check_likelihood`."""
    make = partial(build, **(settings or {}))
    return {check.__name__: partial(check, make) for check in (shapes, total, draws, gradients)}


def _outputs(likelihood: Likelihood, pixels: int = PIXELS, *shape: int) -> Tensor:
    """Return outputs of a decoder, (*shape, outputs * pixels), that differ from pixel to pixel."""
    first = likelihood.first_biases(torch.linspace(0.3, 0.6, pixels)).flatten()
    return first + 0.5 * torch.randn(*shape, likelihood.outputs * pixels)


def _values(likelihood: Likelihood) -> Tensor | None:
    """Return all values of a pixel, (V,); None for a density."""
    if likelihood.measure is Measure.PROBABILITY:
        return torch.tensor([0.0, 1.0])
    return torch.arange(256) / 255 if likelihood.measure is Measure.EIGHT_BIT else None


def shapes(make: Callable[[], Likelihood]) -> Iterator[CheckRow]:
    """Compare shapes of densities, draws, means and first biases."""
    likelihood, problems = make(), []
    p = likelihood(_outputs(likelihood, PIXELS, 3, 2))
    x = p.sample()
    found = {
        "a draw": (x.shape, (3, 2, PIXELS)),
        "the mean": (p.mean.shape, (3, 2, PIXELS)),
        "log_prob of images of (2, X)": (p.log_prob(x[0]).shape, (3, 2)),
        "first_biases": (likelihood.first_biases(torch.full((PIXELS,), 0.4)).shape, (likelihood.outputs, PIXELS)),
    }
    problems = [f"{name} has shape {tuple(got)}, not {right}" for name, (got, right) in found.items() if got != right]
    yield no_problem("shapes for outputs of (3, 2, outputs * X)", problems)
    measures = (Measure.PROBABILITY, Measure.EIGHT_BIT, Measure.DENSITY)
    wrong = [f"measure is {likelihood.measure}"] * (likelihood.measure not in measures)
    yield no_problem("measure is PROBABILITY, EIGHT_BIT or DENSITY", wrong)
    half = likelihood(_outputs(likelihood).to(torch.bfloat16)).log_prob(x[0, 0].float())
    yield no_problem("log_prob of bf16 outputs", [f"it is {half.dtype}"] * (half.dtype is torch.bfloat16))


def _single(likelihood: Likelihood) -> tuple[Distribution, Tensor, Tensor]:
    """Return the distribution of one pixel, all its values or points of quadrature, (V,), and their probabilities."""
    p, values = likelihood(_outputs(likelihood, 1)), _values(likelihood)
    if values is not None:
        return p, values, p.log_prob(values.unsqueeze(-1)).exp()
    inside, drawn = torch.linspace(0, 1, 20_001), p.sample((4000,)).flatten()
    if bool((drawn >= 0).all()) and bool((drawn <= 1).all()):
        points, sizes = inside, torch.full_like(inside, 1 / 20_000)
        sizes[[0, -1]] /= 2
    else:
        points, sizes = grid(drawn.median().unsqueeze(0), drawn.std().unsqueeze(0))
        points = points.flatten()
    return p, points, p.log_prob(points.unsqueeze(-1)).exp() * sizes


@torch.no_grad()
def total(make: Callable[[], Likelihood]) -> Iterator[CheckRow]:
    """Compare the sum of the probabilities of a pixel, or the integral of its density, with 1."""
    likelihood = make()
    name = "integral of p(x|z)" if _values(likelihood) is None else "sum of p(x|z) over all values"
    for number in range(3):
        _, _, probability = _single(likelihood)
        yield exact(f"{name}, pixel {number + 1}", 1, probability.sum().item(), 1e-3 if "integral" in name else 1e-6)


@torch.no_grad()
def draws(make: Callable[[], Likelihood]) -> Iterator[CheckRow]:
    """Compare means over draws with the sum or integral, and ``mean`` with both."""
    likelihood = make()
    p, values, probability = _single(likelihood)
    x = p.sample((DRAWS,)).flatten()
    yield near("E[x]", (values * probability).sum().item(), Mean.of(x))
    yield near("E[cos(3 x)]", ((3 * values).cos() * probability).sum().item(), Mean.of((3 * x).cos()))
    if likelihood.measure is not Measure.DENSITY:
        yield exact("mean - sum of x p(x|z)", 0, p.mean.item() - (values * probability).sum().item(), 1e-5)
    allowed = _values(likelihood)
    if allowed is not None:
        strange = (x.unsqueeze(-1) - allowed).abs().amin(-1) > 1e-6
        yield exact("draws that are no value of a pixel", 0, strange.sum().item(), 0)


def gradients(make: Callable[[], Likelihood]) -> Iterator[CheckRow]:
    """The gradient of log p(x|z) in the outputs against finite differences; it is finite for extreme outputs."""
    likelihood = make()
    outputs = _outputs(likelihood, PIXELS, 5).requires_grad_()
    x = likelihood(outputs).sample()
    (slope,) = torch.autograd.grad(likelihood(outputs).log_prob(x).sum(), outputs)
    step = torch.randn_like(outputs)
    with torch.no_grad():
        ends = [likelihood(outputs + shift * step).log_prob(x).sum() for shift in (1e-6, -1e-6)]
    truth = ((ends[0] - ends[1]) / 2e-6).item()
    yield exact(
        "gradient in the outputs - finite difference", 0, (slope * step).sum().item() - truth, 1e-4 * (1 + abs(truth))
    )
    yield no_problem("every output has a gradient", ["an output has none"] * (not bool((slope != 0).any(0).all())))
    problems = []
    for size in (-40.0, 40.0):
        extreme = torch.full((likelihood.outputs * PIXELS,), size, requires_grad=True)
        for value in (0.0, 1.0):
            log_p = likelihood(extreme).log_prob(torch.full((PIXELS,), value))
            (slope,) = torch.autograd.grad(log_p, extreme)
            fine = bool(log_p.isfinite()) and bool(slope.isfinite().all())
            problems += [f"not finite for outputs of {size:g} and pixels of {value:g}"] * (not fine)
    yield no_problem("outputs of -40 and 40 give finite numbers", problems)
