"""What a training step costs by count, before any clock: operations, and memory kept for the backward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from vaebench.benchmark.cases import Bench, grey_images
from vaebench.benchmark.measure import seconds_of
from vaebench.benchmark.report import matrix_rate
from vaebench.config import compose
from vaebench.errors import UserError
from vaebench.experiment.assembly import build
from vaebench.experiment.training import updates
from vaebench.training.update import Settings, Update

__all__ = ["Cost", "cost", "costs_text"]

TRIES = 5


@dataclass(frozen=True)
class Cost:
    """One step of a run, all its updates together."""

    name: str
    flops: float
    """Of the matrix products, for each image."""
    kept: float
    """Bytes kept for the backward pass of the update that keeps most, for each image."""
    predicted: float
    """Images per second if the matrix products ran at the machine's rate and nothing else took time."""
    measured: float
    """Images per second of the updates alone, without logs and checkpoints."""


def cost(words: Sequence[str], bench: Bench) -> Cost | None:
    """Count and time the step of ``vaebench train <words>``; None where the words do not go together."""
    common = [f"device={bench.device}", f"trainer.threads={bench.threads}", "trainer.progress=false"]
    try:
        run = build(compose([*words, *common]))
    except UserError:
        return None
    x = run.data.observe(grey_images(bench.batch).to(bench.device))
    settings = Settings(run.config.k, run.config.encoder.inner_k, 1.0)
    shares = updates(run)
    take(shares, x, settings)
    with FlopCounterMode(display=False) as counter:
        take(shares, x, settings)
    flops = float(counter.get_total_flops()) / bench.batch
    rate = matrix_rate(bench.batch * run.config.k, bench.device, torch.float32)
    seconds = median(seconds_of(lambda: take(shares, x, settings), bench.device) for _ in range(TRIES))
    kept = max(kept_bytes(share, x, settings) for share in shares) / bench.batch
    return Cost(" ".join(words), flops, kept, rate / flops, bench.batch / seconds)


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
        "kept KiB/image",
        "predicted images/s",
        "measured images/s",
        "measured : predicted",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in costs:
        cells = [f"`{one.name}`", f"{one.flops / 1e6:.2f}", f"{one.kept / 1024:.1f}"]
        cells += [f"{one.predicted:,.0f}", f"{one.measured:,.0f}", f"{one.measured / one.predicted:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
