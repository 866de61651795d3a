"""Measure the gain of each optimisation: a step with and without it, alternately, and the time in each operator."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmark.cases import EVALUATED_IMAGES, Bench, evaluation, grey_images
from benchmark.cost import take
from benchmark.measure import seconds_of, side_by_side
from benchmark.report import table
from vaebench import gradients, runtime
from vaebench.config import compose
from vaebench.datasets import dataset
from vaebench.distributions import Bernoulli
from vaebench.experiment import build
from vaebench.nets.activations import ACTIVATIONS
from vaebench.train.compile import compiled_where_it_pays
from vaebench.train.updates import course_of, updates

__all__ = ["OPTIMISATIONS", "Gain", "Optimisation", "gain", "gains_text"]

SHOWN = 8
MOST_PROFILED = 10

Step = Callable[[], None]


@dataclass(frozen=True)
class Optimisation:
    """One thing that makes a step faster."""

    name: str
    words: Sequence[str]
    """What follows ``vaebench train``, or ``vaebench evaluate RUN``, before and after."""
    before: Sequence[str] = ()
    """Settings without the optimisation."""
    after: Sequence[str] = ()
    """Settings with it."""
    plain: Callable[[], AbstractContextManager[object]] = nullcontext
    """Puts the plain way in its place, for what is no setting."""
    evaluates: bool = False
    """Whether an evaluation of 100 images takes the place of the step."""


@dataclass(frozen=True)
class Gain:
    """One optimisation, measured."""

    name: str
    settings: str
    before: float
    """Milliseconds for a step of all updates, pixels drawn, or for an evaluation."""
    after: float
    ratio: float
    """Median over rounds of the rate of steps with the optimisation over the rate without it."""
    profile: dict[str, tuple[float, float]]
    """Milliseconds for a step in each operator itself, before and after; the slowest operators."""


def _log_prob_of_three_tensors(self: Bernoulli, value: Tensor) -> Tensor:
    logits = self.logits
    return -F.binary_cross_entropy_with_logits(logits, value.expand_as(logits), reduction="none").sum(-1)


def _pixels_from_probabilities(intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.bernoulli(intensities.float() / 255, generator=generator)


OPTIMISATIONS = [
    Optimisation(
        "products in bf16",
        ["objective=iwae", "k=16"],
        before=["trainer.precision=float32"],
        after=["trainer.precision=bf16"],
    ),
    Optimisation(
        "a likelihood with its own backward pass",
        ["objective=iwae", "k=16", "trainer.precision=bf16"],
        plain=lambda: patch.object(Bernoulli, "log_prob", _log_prob_of_three_tensors),
    ),
    Optimisation(
        "DReG's factor in closed form",
        ["objective=iwae", "k=50", "objective.gradient=dreg"],
        plain=lambda: patch.dict(gradients.CLOSED_FORMS, clear=True),
    ),
    Optimisation(
        "pixels from random bytes",
        ["trainer.precision=bf16"],
        plain=lambda: patch.object(dataset, "binarize", _pixels_from_probabilities),
    ),
    Optimisation(
        "a compiled loss",
        ["trainer.precision=bf16"],
        before=["trainer.compile=false"],
        after=["trainer.compile=true"],
    ),
    Optimisation(
        "elu from vectorised functions",
        ["encoder=avb_ac"],
        plain=lambda: patch.dict(ACTIVATIONS, elu=F.elu),
    ),
    Optimisation(
        "softplus from vectorised functions",
        ["decoder=iwhvi"],
        plain=lambda: patch.dict(ACTIVATIONS, softplus=F.softplus),
    ),
    Optimisation(
        "a compiled p(x, z)",
        ["estimator=iwae", "estimator.k=80", "precision=bf16"],
        before=["compile=false"],
        after=["compile=true"],
        evaluates=True,
    ),
    Optimisation(
        "a compiled gradient of p(x, z)",
        # One short move: nearly all of the time goes to the pilot run.
        ["estimator=ais", "estimator.temperatures=1", "estimator.leapfrog=1"],
        before=["compile=false"],
        after=["compile=true"],
        evaluates=True,
    ),
]


def gain(optimisation: Optimisation, bench: Bench) -> Gain:
    """Measure a step with and without the optimisation, alternately, and profile both."""
    runtime.set_threads(bench.threads)
    made = _evaluation if optimisation.evaluates else _step
    steps = {
        "before": made([*optimisation.words, *optimisation.before], bench, optimisation.plain),
        "after": made([*optimisation.words, *optimisation.after], bench, nullcontext),
    }
    for step in steps.values():
        step()
    each = seconds_of(steps["before"], bench.device)
    count, profiled = max(1, round(bench.seconds / each)), max(1, min(MOST_PROFILED, round(1 / each)))
    works = {name: partial(_times, count, step) for name, step in steps.items()}
    timing = side_by_side(works, bench.rounds, bench.device)
    before, after = (_profiled(profiled, step, bench.device) for step in steps.values())
    costly = sorted(before.keys() | after.keys(), key=lambda name: -max(before.get(name, 0), after.get(name, 0)))
    return Gain(
        optimisation.name,
        " ".join(optimisation.words),
        1e3 / timing.rate("before"),
        1e3 / timing.rate("after"),
        timing.ratio("after", "before"),
        {name: (before.get(name, 0.0), after.get(name, 0.0)) for name in costly},
    )


def _step(words: Sequence[str], bench: Bench, way: Callable[[], AbstractContextManager[object]]) -> Step:
    """Return a function that draws pixels and takes one step of every update of a run."""
    common = [f"device={bench.device}", f"trainer.threads={bench.threads}", "trainer.progress=false"]
    if not any("compile" in word for word in words):
        common.append("trainer.compile=false")
    with way():
        run = build(compose([*words, *common, f"trainer.batch_size={bench.batch}"]))
    shares = compiled_where_it_pays(run, updates(run), course_of(run), lambda line: None)
    raw, settings = grey_images(bench.batch).to(bench.device), course_of(run).settings(0)
    generator = torch.Generator(bench.device)

    def step() -> None:
        with way():
            take(shares, run.data.observe(raw, generator), settings)

    return step


def _evaluation(words: Sequence[str], bench: Bench, way: Callable[[], AbstractContextManager[object]]) -> Step:
    """Return a function that evaluates images under fresh weights."""
    run = build(compose([f"device={bench.device}", f"trainer.threads={bench.threads}", "trainer.progress=false"]))
    numbers = evaluation(run, grey_images(EVALUATED_IMAGES), words)

    def step() -> None:
        with way():
            numbers()

    return step


def _times(count: int, step: Step) -> float:
    for _ in range(count):
        step()
    return float(count)


def _profiled(count: int, step: Step, device: torch.device) -> dict[str, float]:
    """Return the milliseconds that a step spends in each operator itself."""
    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as found:
        _times(count, step)
    spent: dict[str, float] = {}
    for event in found.key_averages():
        name = "compiled kernels" if "CompiledFxGraph" in event.key else event.key
        spent[name] = spent.get(name, 0) + (event.self_device_time_total if on_cuda else event.self_cpu_time_total)
    return {name: microseconds / 1e3 / count for name, microseconds in spent.items()}


def gains_text(gains: Sequence[Gain]) -> str:
    """Return markdown: a table of all optimisations, and one of operators for each."""
    ranked = sorted(gains, key=lambda one: -one.ratio)
    rows = [
        [one.name, f"`{one.settings}`", f"{one.before:.2f}", f"{one.after:.2f}", f"{one.ratio:.2f}"] for one in ranked
    ]
    lines = table(["optimisation", "settings", "before, ms", "after, ms", "times as fast"], rows)
    for one in ranked:
        rows = [
            [f"`{name}`", f"{before:.2f}", f"{after:.2f}"]
            for name, (before, after) in list(one.profile.items())[:SHOWN]
        ]
        lines += ["", f"{one.name}, `{one.settings}`:", ""]
        lines += table(["operator itself", "before, ms", "after, ms"], rows)
    return "\n".join(lines)
