"""Measure the peak memory of a piece of work, minus the memory that its process used before.

`python -m benchmark.memory WORK K [KEY=VALUE ...]` measures one piece in its own process and prints it as
JSON. The memory of imports, data and model does not count: it is in use before the work.
"""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmark.cases import grey_images
from benchmark.cost import take
from vaebench.config import compose
from vaebench.estimators.memory import peak_bytes
from vaebench.evaluate.job import EstimatorInputs
from vaebench.evaluate.loop import Evaluator, Task
from vaebench.experiment import Experiment, build
from vaebench.train.schedules import StepSettings
from vaebench.train.updates import updates

__all__ = ["EVALUATING", "TRAINING", "Added", "added", "in_a_fresh_process", "measured"]

EVALUATING, TRAINING = "evaluating", "training"
MIB = 2**20
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Let glibc return large blocks at once, so that the resident memory is the memory in use."""


@dataclass(frozen=True)
class Added:
    """MiB at the peak, minus the memory in use before."""

    tensors: float
    """The sum of the sizes of all live tensors; it does not depend on the allocator or the machine."""
    resident: float | None
    """Reported by the system or the GPU's allocator; None if unknown."""


def in_a_fresh_process(work: str, k: int, words: Sequence[str]) -> Added:
    """Measure in a new process; for the arguments see `measured`."""
    command = [sys.executable, "-m", "benchmark.memory", work, str(k), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ALLOCATOR, check=True)
    return Added(**json.loads(done.stdout.splitlines()[-1]))


def measured(work: str, k: int, words: Sequence[str] = (), images: int | None = None) -> Added:
    """Return what an evaluation, or a training step, with ``k`` samples adds to this process.

    Args:
        work: ``EVALUATING`` (estimating log p(x) of a batch as `vaebench evaluate` does) or ``TRAINING`` (one step).
        k: samples.
        words: further words of `vaebench train`.
        images: how many, 100 or 256 by default.
    """
    common = ["trainer.progress=false", f"estimator.k={k}", f"k={k}"]
    experiment = build(compose([*(["objective=iwae"] if work == TRAINING else []), *common, *words]))
    prepare = {EVALUATING: _evaluating, TRAINING: _training}[work]
    # Warm up first: memory that is loaded or allocated only once does not count.
    images = images or {EVALUATING: 100, TRAINING: 256}[work]
    peak_bytes(prepare(experiment, min(k, 50), images if work == EVALUATING else 1))
    return added(prepare(experiment, k, images), experiment.device)


def _evaluating(experiment: Experiment, k: int, images: int) -> Callable[[], object]:
    # Without a compiler, whose memory is allocated only once too.
    evaluator = Evaluator(EstimatorInputs.of(experiment.estimating(k=k, compile=False)))
    return lambda: evaluator.compute(Task(0, 0, images))


def _training(experiment: Experiment, k: int, images: int) -> Callable[[], object]:
    x = experiment.data.observe(grey_images(images).to(experiment.device))
    settings = StepSettings(k, experiment.config.encoder.inner_k, 1.0)
    shares = updates(experiment)
    return lambda: take(shares, x, settings)


def added(work: Callable[[], object], device: torch.device) -> Added:
    """Do ``work`` once and return the memory that it took at its peak beyond what was in use before."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        tensors = peak_bytes(work)
        return Added(tensors / MIB, (torch.cuda.max_memory_allocated(device) - before) / MIB)
    before = _reset_peak()
    tensors = peak_bytes(work)
    return Added(tensors / MIB, None if before is None else _in_status("VmHWM") - before)


def _reset_peak() -> float | None:
    """Reset the system's peak count and return the resident memory now, MiB; None if unsupported."""
    try:
        # Otherwise the work could reuse free blocks of the allocator, and its memory would not be counted.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _in_status("VmRSS")
    except (OSError, AttributeError):
        return None


def _in_status(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"Linux has {name} in /proc/self/status"
    return int(found[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(asdict(measured(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))))
