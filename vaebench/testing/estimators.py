"""The contract of an estimator, on a linear-Gaussian model whose log p(x) is known."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from vaebench.config.schema import EstimatorSettings
from vaebench.datasets.catalog import DatasetInfo
from vaebench.datasets.dataset import Dataset
from vaebench.datasets.protocol import Protocol
from vaebench.direction import Direction
from vaebench.evaluate.job import EstimatorInputs, EstimatorJob
from vaebench.selftest.oracles.gaussian import X, Z, gaussian, linear_gaussian
from vaebench.selftest.rows import CheckRow, Mean, Side, distance, exact, near
from vaebench.selftest.running import default_dtype
from vaebench.testing.contract import CPU, Contract, no_problem, verify

__all__ = ["check_estimator", "estimator_contract"]

IMAGES = 60
ROUNDING = 1e-6
"""Nats in float64. Long chains amplify rounding by ten million, so that in float32 parts of a batch would differ."""
LARGEST_GAP = 0.1
"""Nats by which a good estimate of log p(x) may differ from it on average, apart from its standard error."""


def check_estimator(job: Callable[[EstimatorInputs], EstimatorJob], /, **settings: Any) -> None:
    """Print the checks of an estimator, and raise AssertionError with one line for each that fails.

    Args:
        job: what the entry point of the estimator names: inputs -> the job.
        settings: the keys of its yaml besides ``name``.
    """
    verify(estimator_contract(job, settings))


def estimator_contract(
    job: Callable[[EstimatorInputs], EstimatorJob], settings: Mapping[str, Any] | None = None
) -> Contract:
    """Return the checks of an estimator; for the arguments see :func:`check_estimator`."""
    typed = {field.name for field in fields(EstimatorSettings)}
    given = {"name": "checked", **(settings or {}), "images": IMAGES, "compile": False}
    known = {key: value for key, value in given.items() if key in typed}
    arguments = {key: value for key, value in given.items() if key not in typed}
    subject = _Subject(job, EstimatorSettings(**known, arguments=arguments))
    return {check.__name__.replace("_", " "): partial(check, subject) for check in (numbers, log_likelihood)}


@dataclass(frozen=True)
class _Subject:
    """An estimator with its settings, the model in float64."""

    job: Callable[[EstimatorInputs], EstimatorJob]
    settings: EstimatorSettings

    @cached_property
    def images(self) -> Tensor:
        """Draws from the model, (N, X), rounded to the precision of a dataset."""
        with default_dtype(torch.float64):
            return linear_gaussian().simulate(IMAGES)[0].detach().float()

    def made(self, **changes: Any) -> EstimatorJob:
        """Return the job with other settings."""
        with default_dtype(torch.float64):
            inputs = _Inputs(
                settings=replace(self.settings, **changes),
                model=linear_gaussian(),
                encoder=gaussian(),
                encoder_name="gaussian",
                data=_dataset(self.images),
                device=CPU,
                latent_dim=Z,
                trained_k=1,
                trained_inner_k=0,
            )
            return self.job(inputs)

    @cached_property
    def found(self) -> Tensor:
        """The numbers of all images, (R, N)."""
        return self.numbers(self.made(), slice(0, IMAGES))

    def numbers(self, job: EstimatorJob, part: slice) -> Tensor:
        """Return the numbers of a part of the images."""
        with default_dtype(torch.float64):
            return job.numbers(part)


class _Inputs(EstimatorInputs):
    """Inputs whose images are float64."""

    def observed(self, part: slice) -> Tensor:
        return super().observed(part).double()

    def blank(self, count: int = 1) -> Tensor:
        return super().blank(count).double()


def _dataset(x: Tensor) -> Dataset:
    how = {"default": "draws from the model"}
    sizes = {"default": (len(x), len(x), len(x))}
    info = DatasetInfo("linear_gaussian", "draws from the model", sizes, how, ("none",), shape=(1, 1, X), floats=True)
    splits = {"train": x, "validation": x, "test": x}
    protocol = Protocol(info, "default", "none", 0)
    return Dataset(protocol, info.shape, **splits, grey=splits, fingerprint="", note="", cache=None)


def numbers(subject: _Subject) -> Iterator[CheckRow]:
    """Shapes and dtypes; the numbers of an image depend on the seed and the image alone."""
    job = subject.made()
    if job.split == "simulated":
        count = len(job.images)
        found = subject.numbers(job, slice(0, count))
    else:
        count, found = IMAGES, subject.found
    problems = [f"shape {tuple(found.shape)}, not {(len(job.rows), count)}"] * (found.shape != (len(job.rows), count))
    problems += [f"dtype {found.dtype}, not float64"] * (found.dtype != torch.float64)
    problems += ["the first number of an image is not finite"] * (not bool(found[0].isfinite().all()))
    yield no_problem(f"{len(job.rows)} numbers for each of {count} images: {', '.join(job.rows)}", problems)
    cut = max(1, count // 3)
    split = torch.cat([subject.numbers(job, part) for part in (slice(cut, count), slice(0, cut))], 1)
    split = torch.cat([split[:, count - cut :], split[:, : count - cut]], 1)
    yield exact(f"{job.rows[0]} in parts - at once", 0, distance(split[0], found[0]), ROUNDING)
    yield exact(
        f"{job.rows[0]} again", 0, distance(subject.numbers(subject.made(), slice(0, count))[0], found[0]), ROUNDING
    )
    other = subject.made(seed=subject.settings.seed + 1)
    wrong = ["another seed has the same key"] * (list(other.key) == list(job.key))
    yield no_problem("the key holds the seed", wrong)


def log_likelihood(subject: _Subject) -> Iterator[CheckRow | str]:
    """Compare estimates of log p(x) with the exact value, by their direction."""
    job = subject.made()
    if job.split == "simulated":
        yield "nothing was compared with log p(x): the images are drawn within the estimator"
        return
    truth = linear_gaussian().log_evidence(subject.images.double())
    compared = 0
    for estimate in job.summarise(subject.found):
        wrong = [f"values have shape {tuple(estimate.values.shape)}"] * (estimate.values.shape != (IMAGES,))
        yield no_problem(f"{estimate.estimator}: {estimate.quantity} of each image", wrong)
        if estimate.quantity != "log p(x)":
            continue
        compared += 1
        gap = Mean.of(estimate.values.double() - truth)
        name = f"{estimate.estimator} ({estimate.direction}) - log p(x)"
        side = _SIDES.get(estimate.direction)
        if side is not None:
            yield near(name, 0, gap, side)
        yield exact(f"size of {name}", LARGEST_GAP, abs(gap.value), 4 * gap.stderr, "<=")
    if not compared:
        yield "nothing was compared: no result is of log p(x)"


_SIDES: dict[Direction, Side] = {
    Direction.EXACT: "=",
    Direction.LOWER_BOUND: "<=",
    Direction.UPPER_BOUND: ">=",
}
"""How the mean over images relates to log p(x); an ESTIMATE promises nothing."""
