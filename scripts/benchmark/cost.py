"""Predict the time of a training step from its counts and the machine's rates, and compare it with the measured time.

A step is its matrix products, its passes over memory and its calls of kernels:

    seconds = FLOPs / matrix rate + bytes / elementwise rate + kernels x overhead

The counts cover one step: forward, backward and optimiser. The rates are measured once by short calibrations, which
do not depend on the models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmark.cases import Bench, grey_images
from benchmark.counting import Count, count
from benchmark.measure import seconds_of
from benchmark.report import SHAPES, matrix_rate
from vaebench.config import compose
from vaebench.errors import UserError
from vaebench.experiment import build
from vaebench.train.schedules import StepSettings
from vaebench.train.update import Update
from vaebench.train.updates import updates

__all__ = ["Cost", "Rates", "calibrated", "cost", "costs_text"]

TRIES = 5


@dataclass(frozen=True)
class Rates:
    """The rates of a machine."""

    matrix: float
    """FLOP per second in products of the networks' shapes, forward and backward."""
    elementwise: float
    """Bytes per second read and written by elementwise operations on a layer's activations."""
    overhead: float
    """Seconds for a call of a nearly empty kernel, with its part of autograd's work."""

    def seconds(self, counts: Count) -> float:
        """Return the predicted time."""
        return counts.flops / self.matrix + counts.moved / self.elementwise + counts.kernels * self.overhead


@dataclass(frozen=True)
class Cost:
    """One step of a run, all its updates together."""

    name: str
    flops: float
    """Of the matrix products, for each image."""
    moved: float
    """Bytes that all other kernels read and write, for each image."""
    kernels: int
    """Calls of kernels in a step."""
    kept: float
    """Bytes kept for the backward pass of the update that keeps most, for each image."""
    limit: float
    """Images per second if the matrix products ran at the machine's rate and nothing else took time."""
    predicted: float
    """Images per second by the model."""
    measured: float
    """Images per second of the updates alone, without logs and checkpoints."""


def cost(words: Sequence[str], bench: Bench) -> Cost | None:
    """Count, predict and time the step of ``vaebench train <words>``; None for an invalid combination of words."""
    common = [f"device={bench.device}", f"trainer.threads={bench.threads}", "trainer.progress=false"]
    try:
        run = build(compose([*words, *common]))
    except UserError:
        return None
    x = run.data.observe(grey_images(bench.batch).to(bench.device))
    settings = StepSettings(run.config.k, run.config.encoder.inner_k, 1.0)
    shares = updates(run)

    def step() -> None:
        take(shares, x, settings)

    step()
    counts = count(step)
    kept = max(kept_bytes(share, x, settings) for share in shares) / bench.batch
    rates = calibrated(bench.batch * run.config.k, bench.device, bench.threads)
    seconds = median(seconds_of(step, bench.device) for _ in range(TRIES))
    return Cost(
        " ".join(words),
        counts.flops / bench.batch,
        counts.moved / bench.batch,
        counts.kernels,
        kept,
        limit=bench.batch * matrix_rate(bench.batch * run.config.k, bench.device, torch.float32) / counts.flops,
        predicted=bench.batch / rates.seconds(counts),
        measured=bench.batch / seconds,
    )


@cache
def calibrated(rows: int, device: torch.device, threads: int) -> Rates:
    """Measure the machine's rates for activations with this number of rows."""
    del threads  # they are set; other threads are another calibration
    return Rates(_product_rate(rows, device), _elementwise_rate(rows, device), _overhead(device))


def _product_rate(rows: int, device: torch.device) -> float:
    """Return FLOP per second over a layer's three products: forward, to its weights and to its input.

    The last two have transposed operands, and run at three quarters of the rate of the first on some processors.
    """
    layers = [(torch.randn(b, a, device=device), torch.randn(rows, a, device=device)) for a, b in SHAPES]

    def work() -> None:
        for weight, x in layers:
            out = x.mm(weight.t())
            out.t().mm(x)
            out.mm(weight)

    return _rate(work, device, count(work).flops)


def _elementwise_rate(rows: int, device: torch.device) -> float:
    """Return bytes per second over what a layer does beside its product: an activation and its backward pass, a product
    of two tensors and a sum."""
    a = torch.randn(rows, 300, device=device)
    b = torch.randn(rows, 300, device=device)

    def work() -> None:
        torch.nn.functional.silu(a).mul(b).sum()
        a.sigmoid().mul_(b)

    return _rate(work, device, count(work).moved)


def _overhead(device: torch.device) -> float:
    """Return the seconds for each of many tiny kernels, forward and backward."""
    a = torch.ones(4, device=device, requires_grad=True)

    def work() -> None:
        value = a
        for _ in range(50):
            value = value * a + a
        value.sum().backward()

    return 1 / _rate(work, device, count(work).kernels)


def _rate(work: Callable[[], object], device: torch.device, amount: float) -> float:
    work()
    repeats = max(1, round(0.02 / seconds_of(work, device)))

    def many() -> None:
        for _ in range(repeats):
            work()

    return repeats * amount / median(seconds_of(many, device) for _ in range(TRIES))


def take(shares: Sequence[Update], x: Tensor, settings: StepSettings) -> None:
    """Take one step of every update."""
    for share in shares:
        for _ in range(share.repeats):
            share.step(x, settings, 0.0, with_norm=False)


def kept_bytes(share: Update, x: Tensor, settings: StepSettings) -> float:
    """Return the bytes that autograd keeps between the forward and the backward pass, parameters not counted."""
    weights = {p.untyped_storage().data_ptr() for p in share.parameters}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = share.loss(x, settings)
    del loss
    return float(sum(seen.values()))


def costs_text(costs: Sequence[Cost]) -> str:
    """Return a markdown table."""
    head = [
        "settings",
        "MFLOP/image",
        "moved KiB/image",
        "kept KiB/image",
        "kernels/step",
        "matrix limit images/s",
        "predicted images/s",
        "measured images/s",
        "predicted : measured",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in costs:
        cells = [f"`{one.name}`", f"{one.flops / 1e6:.2f}", f"{one.moved / 1024:.0f}", f"{one.kept / 1024:.1f}"]
        cells += [f"{one.kernels:,}", f"{one.limit:,.0f}", f"{one.predicted:,.0f}", f"{one.measured:,.0f}"]
        lines.append(f"| {' | '.join([*cells, f'{one.predicted / one.measured:.2f}'])} |")
    within = sum(abs(one.predicted / one.measured - 1) <= 0.25 for one in costs)
    return "\n".join([*lines, "", f"{within} of {len(costs)} predictions within 25 % of what was measured"])
