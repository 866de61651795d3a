"""Measure start-up times and memory, each in a new process."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmark.memory import EVALUATING, TRAINING, Added, in_a_fresh_process

__all__ = ["Footprint", "memory", "start_up"]

TINY = ["trainer.progress=false", "trainer.evaluate=false", "trainer.epochs=1", "trainer.log_every=1"]


@dataclass(frozen=True)
class Footprint:
    """One number about a process."""

    name: str
    value: float
    unit: str
    target: str
    """The aim, in words."""

    def text(self) -> str:
        return f"{self.name:<58} {self.value:>9.2f} {self.unit:<4} ({self.target})"


def start_up(tries: int) -> list[Footprint]:
    """Measure start-up times: medians over ``tries``."""
    completing = {"COMP_LINE": "vaebench train encoder="}
    return [
        Footprint("vaebench --help", waited(["--help"], tries), "s", "under 0.4"),
        Footprint("TAB", waited(["-sc", "query=bash"], tries, completing), "s", "under 0.3"),
        Footprint("vaebench train --cfg job", waited(["train", "--cfg", "job"], tries), "s", ""),
        Footprint(
            "from Enter to the first training step", median(until_first_step() for _ in range(tries)), "s", "under 4"
        ),
    ]


def waited(words: Sequence[str], tries: int, environment: Mapping[str, str] | None = None) -> float:
    """Return the median seconds that a command takes."""
    command, environ = [sys.executable, "-m", "vaebench", *words], os.environ | dict(environment or {})
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, env=environ, check=True)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def until_first_step() -> float:
    """Return the seconds until a new run has recorded its first step."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "-m", "vaebench", "train", f"output_dir={folder}", *TINY]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not any(path.stat().st_size for path in Path(folder).glob("*/*/*/metrics.jsonl")):
                if process.poll() is not None:
                    raise RuntimeError("the training ended before its first step")
                time.sleep(0.005)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def memory(device: str = "auto", threads: int | None = None) -> list[Footprint]:
    """Measure the peak memory of evaluations and training steps, without that of imports, data and model."""
    words = [f"device={device}", f"trainer.threads={threads or 'null'}"]
    few, many = (in_a_fresh_process(EVALUATING, k, words) for k in (50, 50_000))
    ks = (16, 32, 64)
    whole = [in_a_fresh_process(TRAINING, k, words) for k in ks]
    parts = in_a_fresh_process(TRAINING, ks[-1], [*words, "trainer.microbatch=32"])
    slopes = [_size(b) - _size(a) for a, b in pairwise(whole)]
    aims = ["", "", f"from k=32 on 2 times as much more as from 16 on, if linear; {slopes[1] / slopes[0]:.2f}"]
    # By the count of tensors: the interpreter's own memory grows by a MiB, a tenth of the total.
    flat = f"the count within 5 % of it; {many.tensors / few.tensors - 1:+.1%}"
    return [
        _footprint("evaluating 100 images at k=50", few, ""),
        _footprint("evaluating 100 images at k=50,000", many, flat),
        *(
            _footprint(f"a training step, batch 256, k={k}", one, aim)
            for k, one, aim in zip(ks, whole, aims, strict=True)
        ),
        _footprint(
            "the same with trainer.microbatch=32", parts, f"less; 1/{_size(whole[-1]) / _size(parts):.1f} of it"
        ),
    ]


def _size(found: Added) -> float:
    return found.tensors if found.resident is None else found.resident


def _footprint(name: str, found: Added, aim: str) -> Footprint:
    counted = f"tensors {found.tensors:.1f}"
    return Footprint(f"memory, {name}", _size(found), "MiB", f"{counted}; {aim}" if aim else counted)
