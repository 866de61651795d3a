"""The contract of an objective: what it reports is a bound on log p(x), and its gradient is that of what it maximises.

Shapes: K samples first, B images; nats.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vaebench import noise
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.gradients import GradientEstimator, is_curved
from vaebench.objective import Objective, evidence
from vaebench.selftest.oracles.gaussian import gaussian, linear_gaussian, one_image
from vaebench.selftest.rows import CheckRow, Mean, distance, exact, near
from vaebench.testing.contract import Contract, no_problem, verify

__all__ = ["check_objective", "objective_contract"]

KS = (1, 4, 16)
REPLICATES = 10_000
BATCHES, BATCH = 60, 100
STEP = 1e-5

Build = Callable[[GradientEstimator], Objective]


def check_objective(build: Callable[..., Objective], /, **settings: Any) -> None:
    """Print the checks of an objective, and raise AssertionError with one line for each that fails.

    Args:
        build: what the entry point of the objective names: (gradient, **settings) -> the objective.
        settings: the keys of its yaml besides ``name``, ``bound`` and ``gradient``.
    """
    verify(objective_contract(build, settings))


def objective_contract(build: Callable[..., Objective], settings: Mapping[str, Any] | None = None) -> Contract:
    """Return the checks of an objective; for the arguments see :func:`check_objective`."""
    make = partial(build, **(settings or {}))
    return {check.__name__: partial(check, make) for check in (values, bound, parts, gradients)}


def _ks(objective: Objective) -> list[int]:
    """Return the numbers of samples of ``KS`` for which the objective is defined."""

    def defined(k: int) -> bool:
        try:
            functions = (objective.bound, objective.maximised, objective.for_encoder().maximised)
            return all(function(torch.zeros(k, 2)).shape == (2,) for function in functions)
        except ValueError:
            return False

    return [k for k in KS if defined(k)]


def values(make: Build) -> Iterator[CheckRow]:
    """Both functions of the log weights are finite and move with them; the bound of equal weights is their value."""
    objective = make(GradientEstimator.REPARAM)
    ks = _ks(objective)
    wrong = [f"it is defined for none of k={', '.join(map(str, KS))}, with one number for each image"] * (not ks)
    yield no_problem(f"defined for k={', '.join(map(str, ks))}", wrong)
    for k in ks[-1:]:
        log_w = torch.randn(k, 6) * 3
        for name, function in {"bound": objective.bound, "maximised": objective.maximised}.items():
            wide = torch.cat([torch.tensor([[0.0], [-1e4]])[torch.arange(k) % 2], log_w[:, :1] - 1e5], 1)
            wrong = [f"got {function(wide).tolist()}"] * (not bool(function(wide).isfinite().all()))
            yield no_problem(f"{name} of weights down to exp(-1e5) is finite, k={k}", wrong)
            yield exact(
                f"{name} of 7 log w - (7 + {name}), k={k}", 0, distance(function(log_w + 7), function(log_w) + 7)
            )
        equal = torch.full((k, 2), -3.0)
        yield exact(f"bound of equal weights, k={k}", -3, objective.bound(equal)[0].item())


@torch.no_grad()
def bound(make: Build) -> Iterator[CheckRow]:
    """On a model with a known log p(x), the reported bound lies below it and does not fall with k."""
    objective = make(GradientEstimator.REPARAM)
    model, encoder, x = linear_gaussian(), gaussian(), one_image(REPLICATES)
    with noise.keyed(0, torch.arange(REPLICATES)):
        log_w = evidence(model, encoder, x, max(KS)).log_weights() - model.log_evidence(x)
    by_k = {k: objective.bound(log_w[:k]) for k in _ks(objective)}
    for k, found in by_k.items():
        yield near(f"reported bound - log p(x), k={k}", 0, Mean.of(found), "<=")
    for (low, below), (high, above) in pairwise(by_k.items()):
        yield near(f"reported bound at k={high} - at k={low}", 0, Mean.of(above - below), ">=")


def parts(make: Build) -> Iterator[CheckRow | str]:
    """The objective of a batch is made of those of its parts, if it is additive."""
    objective = make(GradientEstimator.REPARAM)
    model, encoder, x = linear_gaussian(), gaussian(), torch.randn(8, 3)
    k = _ks(objective)[-1]

    def value(part: slice) -> Tensor:
        with noise.keyed(1, torch.arange(8)[part]):
            return objective(model, encoder, x[part], k)[0].detach()

    wrong = [f"it has shape {tuple(value(slice(0, 8)).shape)}, not (8,)"] * (value(slice(0, 8)).shape != (8,))
    yield no_problem("one value for each image", wrong)
    if not objective.additive:
        yield "it is not additive: trainer.microbatch is refused, and nothing was compared"
        return
    found = torch.cat([value(slice(0, 3)), value(slice(3, 8))])
    yield exact("values of parts of a batch - values of the batch", 0, distance(value(slice(0, 8)), found))


def gradients(make: Build) -> Iterator[CheckRow | str]:
    """The gradient against finite differences; DReG against them in the mean; model and encoder have gradients."""
    objective = make(GradientEstimator.REPARAM)
    k, model, encoder = min(4, _ks(objective)[-1]), linear_gaussian(), gaussian()
    for name, module in {"model": model, "encoder": encoder}.items():
        of_part = objective.for_encoder() if name == "encoder" else objective
        value, _ = of_part(model, encoder, torch.randn(5, 3), k)
        slopes = torch.autograd.grad(value.mean(), list(module.parameters()), allow_unused=True)
        lacking = [number for number, slope in enumerate(slopes) if slope is None or not bool((slope != 0).any())]
        yield no_problem(f"the {name} has gradients", [f"{len(lacking)} parameters have none"] * bool(lacking))
    yield near(f"E[reparam] / finite difference - 1, k={k}", 0, _errors(make(GradientEstimator.REPARAM), encoder, k))
    if not is_curved(objective.for_encoder().maximised, k):
        yield near(f"E[stl] / finite difference - 1, k={k}", 0, _errors(make(GradientEstimator.STL), encoder, k))
        return
    try:
        yield near(f"E[dreg] / finite difference - 1, k={k}", 0, _errors(make(GradientEstimator.DREG), encoder, k))
    except ValueError as error:
        yield f"DReG was not compared: {error}"


def _errors(objective: Objective, encoder: GaussianEncoder, k: int) -> Mean:
    """Return the mean over batches of derivative / central difference - 1, along the encoder's mean gradient."""
    objective, model, x = objective.for_encoder(), linear_gaussian(), one_image(BATCH)
    parameters = list(encoder.parameters())

    def value(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return objective(model, encoder, x, k)[0].mean()

    slopes = [torch.autograd.grad(value(seed), parameters) for seed in range(BATCHES)]
    direction = [torch.stack(each).mean(0) for each in zip(*slopes, strict=True)]
    found = [sum((slope * step).sum().item() for slope, step in zip(each, direction, strict=True)) for each in slopes]
    ends: list[list[float]] = []
    with torch.no_grad():
        for shift in (STEP, -2 * STEP, STEP):
            for parameter, step in zip(parameters, direction, strict=True):
                parameter += shift * step
            ends.append([value(seed).item() for seed in range(BATCHES)])
    truth = (torch.tensor(ends[0]) - torch.tensor(ends[1])) / (2 * STEP)
    return Mean.of((torch.tensor(found) - truth) / truth.mean())
