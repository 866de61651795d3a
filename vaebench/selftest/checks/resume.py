"""An interrupted and resumed training is bitwise equal to an uninterrupted one."""

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vaebench.errors import Interrupted
from vaebench.experiment import build
from vaebench.records import Recorder, RunFolder
from vaebench.records.checkpoint import Checkpoints
from vaebench.runtime import seed_everything
from vaebench.selftest.rows import CheckRow, differs, exact
from vaebench.selftest.running import Bench, default_dtype
from vaebench.signals import Interruption
from vaebench.train.session import trainer_for
from vaebench.train.trainer import Callbacks, Trainer
from vaebench.train.update import ALONE

__all__ = ["check"]

SETTINGS = [
    "encoder=iwhvi",
    "objective=iwae",
    "objective.gradient=dreg",
    "k=2",
    "encoder.inner_k=2",
    "encoder.hidden=[16]",
    "decoder.hidden=[16]",
    "latent_dim=3",
    "trainer.epochs=1",
    "trainer.batch_size=1334",
    "trainer.ema=0.9",
    "trainer.compile=false",
    "trainer.image_every=0",
    "trainer.progress=false",
]
STEPS = 3
"""Batches of 1,334 in an epoch of mnist5k's 4,000 training images."""
_TIMED = {"seconds", "chain"}
"""Keys of a checkpoint that depend on the clock."""


def check(bench: Bench) -> Iterator[CheckRow]:
    """Count the numbers that differ after three steps on real images, with and without an interruption."""
    with default_dtype(torch.float32):
        whole = _trainer(bench, "whole")
        whole.run()
        interrupted = _trainer(bench, "stopped")
        interrupted.interruption.signal = signal.SIGINT
        stopped = False
        try:
            interrupted.run()
        except Interrupted:
            stopped = True
        yield exact("interrupted after the first step", 1, float(stopped and interrupted.progress.step == 1), 0)
        assert interrupted.checkpoints is not None
        saved = interrupted.checkpoints.load().state
        resumed = _resumed(bench, saved, "resumed")
        yield exact("steps after resuming", STEPS, resumed.progress.step, 0)
        yield exact("differing numbers, resumed", 0, _different(whole.state_dict(), resumed.state_dict()), 0)
        careless = _resumed(bench, saved, "careless", seed=1)
        different = _different(whole.state_dict(), careless.state_dict())
        yield differs("differing numbers, resumed with other random numbers", 0, different, 0)


def _resumed(bench: Bench, state: dict[str, Any], name: str, seed: int | None = None) -> Trainer:
    """Resume from ``state`` as a new process does: starting with other weights and another random state.

    ``seed`` replaces the seed of the batches.
    """
    seed_everything(99)
    trainer = _trainer(bench, name)
    trainer.load_state_dict(state)
    if seed is not None:
        trainer.batches.seed = seed
    trainer.run()
    return trainer


def _trainer(bench: Bench, name: str) -> Trainer:
    folder = bench.folder / name
    experiment = build([*SETTINGS, f"device={bench.device}", f"data_dir={bench.folder}", f"output_dir={folder}"])
    recorder = Recorder(RunFolder(folder).create("selftest: true\n"))
    checkpoints = Checkpoints(folder / "checkpoints")
    return trainer_for(experiment, Callbacks(lambda modules: 0.0), Interruption(), ALONE, recorder, checkpoints)


def _different(one: Any, other: Any) -> int:
    """Count the numbers in which two states differ; seconds, and what depends on them, are ignored."""
    if isinstance(one, Tensor):
        return int((one != other).sum()) if one.shape == other.shape else one.numel()
    if isinstance(one, dict):
        compared = one.keys() - _TIMED
        return sum(_different(one[key], other[key]) for key in compared) + len(one.keys() ^ other.keys())
    if isinstance(one, list | tuple):
        return sum(map(_different, one, other)) + abs(len(one) - len(other))
    return int(one != other)
