"""What a training step costs: counted before any clock, and predicted from the machine's rates.

A step is its matrix products, its passes over memory and its calls of kernels:

    seconds = FLOPs / matrix rate + bytes / elementwise rate + kernels x overhead

The counts are those of one step, forward, backward and optimiser. The rates are measured once by short calibrations
that know nothing of the models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from vaebench.benchmark.cases import Bench, grey_images
from vaebench.benchmark.measure import seconds_of
from vaebench.benchmark.report import SHAPES, matrix_rate
from vaebench.config import compose
from vaebench.errors import UserError
from vaebench.experiment.assembly import build
from vaebench.experiment.training import updates
from vaebench.training.update import Settings, Update

__all__ = ["Cost", "Count", "Rates", "calibrated", "cost", "costs_text", "counted_step"]

TRIES = 5


@dataclass(frozen=True)
class Count:
    """What some work asks of a machine."""

    flops: float
    """Of the matrix products."""
    moved: float
    """Bytes read and written by everything else, the optimiser included."""
    kernels: int
    """Calls that compute something; views are free."""


@dataclass(frozen=True)
class Rates:
    """What a machine does."""

    matrix: float
    """FLOP per second in products of the networks' shapes, forward and backward."""
    elementwise: float
    """Bytes per second read and written by elementwise operations on a layer's activations."""
    overhead: float
    """Seconds for a call of a kernel that has next to nothing to do, with its part of autograd's work."""

    def seconds(self, count: Count) -> float:
        """Return the predicted time."""
        return count.flops / self.matrix + count.moved / self.elementwise + count.kernels * self.overhead


@dataclass(frozen=True)
class Cost:
    """One step of a run, all its updates together."""

    name: str
    flops: float
    """Of the matrix products, for each image."""
    moved: float
    """Bytes that everything else reads and writes, for each image."""
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
    """Count, predict and time the step of ``vaebench train <words>``; None where the words do not go together."""
    common = [f"device={bench.device}", f"trainer.threads={bench.threads}", "trainer.progress=false"]
    try:
        run = build(compose([*words, *common]))
    except UserError:
        return None
    x = run.data.observe(grey_images(bench.batch).to(bench.device))
    settings = Settings(run.config.k, run.config.encoder.inner_k, 1.0)
    shares = updates(run)

    def step() -> None:
        take(shares, x, settings)

    step()
    count = counted_step(step)
    kept = max(kept_bytes(share, x, settings) for share in shares) / bench.batch
    rates = calibrated(bench.batch * run.config.k, bench.device, bench.threads)
    seconds = median(seconds_of(step, bench.device) for _ in range(TRIES))
    return Cost(
        " ".join(words),
        count.flops / bench.batch,
        count.moved / bench.batch,
        count.kernels,
        kept,
        limit=bench.batch * matrix_rate(bench.batch * run.config.k, bench.device, torch.float32) / count.flops,
        predicted=bench.batch / rates.seconds(count),
        measured=bench.batch / seconds,
    )


def counted_step(step: Callable[[], object]) -> Count:
    """Count what ``step()`` does, in its backward pass too."""
    with _Traffic() as traffic:
        step()
    return Count(float(traffic.flops), float(traffic.moved), traffic.kernels)


class _Traffic(TorchDispatchMode):
    """Adds up the operations of matrix products, and the bytes of what all others read and write.

    Not torch's FlopCounterMode: it follows modules by hooks, which flows that take derivatives do not bear.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        made = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        places = {one.untyped_storage().data_ptr() for one in given}
        view = bool(made) and all(one.untyped_storage().data_ptr() in places for one in made)
        if (view and not func._schema.is_mutable) or not given + made:
            return result
        self.kernels += 1
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        else:
            # What is changed in place is read and written.
            changed = given if func._schema.is_mutable and not made else []
            self.moved += sum(map(_bytes, [*given, *made, *changed]))
        return result


def _bytes(tensor: Tensor) -> int:
    """Return the bytes behind a tensor: of an expanded one, those that are there."""
    held = tensor.untyped_storage().nbytes()
    return min(held, tensor.numel() * tensor.element_size())


@cache
def calibrated(rows: int, device: torch.device, threads: int) -> Rates:
    """Measure the machine's rates for activations of so many rows."""
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

    return _rate(work, device, counted_step(work).flops)


def _elementwise_rate(rows: int, device: torch.device) -> float:
    """Return bytes per second over what a layer does beside its product: an activation and its backward pass, a product
    of two tensors and a sum."""
    a = torch.randn(rows, 300, device=device)
    b = torch.randn(rows, 300, device=device)

    def work() -> None:
        torch.nn.functional.silu(a).mul(b).sum()
        a.sigmoid().mul_(b)

    count = counted_step(work)
    return _rate(work, device, count.moved)


def _overhead(device: torch.device) -> float:
    """Return the seconds for each of many tiny kernels, forward and backward."""
    a = torch.ones(4, device=device, requires_grad=True)

    def work() -> None:
        value = a
        for _ in range(50):
            value = value * a + a
        value.sum().backward()

    return 1 / _rate(work, device, counted_step(work).kernels)


def _rate(work: Callable[[], object], device: torch.device, amount: float) -> float:
    work()
    repeats = max(1, round(0.02 / seconds_of(work, device)))

    def many() -> None:
        for _ in range(repeats):
            work()

    return repeats * amount / median(seconds_of(many, device) for _ in range(TRIES))


def take(shares: Sequence[Update], x: Tensor, settings: Settings) -> None:
    """Take one step of every update."""
    for share in shares:
        for _ in range(share.repeats):
            share.step(x, settings, 0.0, with_norm=False)


def kept_bytes(share: Update, x: Tensor, settings: Settings) -> float:
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
