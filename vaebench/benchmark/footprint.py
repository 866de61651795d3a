"""Start-up and memory, measured from outside: each in a process of its own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

__all__ = ["Footprint", "memory", "start_up"]

TINY = ["trainer.progress=false", "trainer.evaluate=false", "trainer.epochs=1", "trainer.log_every=1"]


@dataclass(frozen=True)
class Footprint:
    """One number about a process."""

    name: str
    value: float
    unit: str
    target: str
    """What it is meant to be."""

    def text(self) -> str:
        return f"{self.name:<58} {self.value:>9.2f} {self.unit:<4} ({self.target})"


def start_up(tries: int) -> list[Footprint]:
    """Measure what a user waits for: medians over ``tries``."""
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


PEAK = """
import resource, sys, torch
torch.set_num_threads(1)
from vaebench import experiment
from vaebench.config import compose
{work}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak / (2**20 if sys.platform == "darwin" else 2**10))
"""
EVALUATING = """
from vaebench.evaluation import log_likelihood
run = experiment.build(compose(["device=cpu", "trainer.progress=false"]))
x = run.data.observe(run.data.test[:4])
log_likelihood(run.model, run.encoder, x, k={k}, seed=0)
"""
TRAINING = """
from vaebench.experiment.training import updates
from vaebench.training.update import Settings
words = ["objective=iwae", "k=64", "device=cpu", "trainer.progress=false", "trainer.microbatch={microbatch}"]
run = experiment.build(compose(words))
x = run.data.observe(run.data.train[:256])
for update in updates(run):
    update.step(x, Settings(64, 0, 1.0), 0.0, with_norm=False)
"""


def memory() -> list[Footprint]:
    """Measure the peak resident memory of evaluations and of training steps, each in a fresh process."""
    few, many = (peak(EVALUATING.format(k=k)) for k in (50, 50_000))
    whole, parts = (peak(TRAINING.format(microbatch=size)) for size in ("null", 32))
    return [
        Footprint("peak memory, evaluating at k=50", few, "MiB", ""),
        Footprint("peak memory, evaluating at k=50,000", many, "MiB", f"within 5 % of it; {many / few - 1:+.1%}"),
        Footprint("peak memory, a training step at k=64, batch 256", whole, "MiB", ""),
        Footprint("peak memory, the same with trainer.microbatch=32", parts, "MiB", "less"),
    ]


def peak(work: str) -> float:
    """Return the most memory, MiB, that a process used for ``work``."""
    done = subprocess.run([sys.executable, "-c", PEAK.format(work=work)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
