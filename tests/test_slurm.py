"""A sweep on a real Slurm: whatever ends a job, the sweep's numbers are those of a sweep without a launcher."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from slurm_cluster import Cluster

from vaebench.errors import RunFailed, UserError
from vaebench.records import RunFolder, read_metrics
from vaebench.records.checkpoint import Checkpoints

pytest.importorskip("submitit")
ROOT = Path(__file__).parents[1]
TINY = [
    "latent_dim=2",
    "decoder.hidden=[8]",
    "objective=iwae",
    "k=2",
    "trainer.epochs=8",
    "trainer.log_every=1",
    "trainer.compile=false",
    "trainer.progress=false",
    "trainer.validation_k=2",
    "estimator.k=2",
    "estimator.images=20",
    "device=cpu",
]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=60"]
PATIENCE = 120
# One cluster and its tests in one process of xdist.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm without accounting."""
    with started(tmp_path_factory, accounting=False) as cluster:
        yield cluster


@contextlib.contextmanager
def started(folders: pytest.TempPathFactory, *, accounting: bool) -> Iterator[Cluster]:
    """Start a Slurm whose ``sinfo`` shows two idle nodes, or skip."""
    if missing := Cluster.missing(accounting=accounting):
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    if os.getuid() != 0:
        pytest.skip("slurmd needs root")
    with Cluster(folders.mktemp("slurm"), accounting=accounting).running() as cluster:
        assert cluster.command("sinfo", "-h", "-t", "idle", "-o", "%D").split() == ["2"]
        yield cluster


@pytest.fixture(autouse=True)
def _environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, default_data_dir: Path) -> None:
    """Let Slurm's commands and the sweeps find the cluster and the data."""
    for fixture in ("cluster", "accounted"):
        if fixture in request.fixturenames:
            for name, value in request.getfixturevalue(fixture).environment.items():
                monkeypatch.setenv(name, value)
    monkeypatch.setenv("VAEBENCH_DATA_DIR", str(default_data_dir))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """Return settings as in hydra.launcher."""
    own = {"submitit_folder": str(folder / "jobs"), "name": "vaebench", "timeout_min": 5, "max_num_timeout": 2}
    return {**own, "signal_delay_s": 60, "cpus_per_task": 1, "stderr_to_stdout": True, "additional_parameters": {}, **more}


def sleep(seconds: float) -> Any:
    """Return what stands for a job: it only waits."""
    return functools.partial(time.sleep, seconds)


def wait_for(found: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Return the first true value of ``found``."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value


# The queue alone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cpus_per_task": 64}, "sbatch refused hydra.launcher.cpus_per_task=64: "),
        ({"partition": "gpu"}, "sbatch refused hydra.launcher.partition=gpu: "),
        ({"gpus_per_node": 1}, "sbatch refused hydra.launcher.gpus_per_node=1: "),
        ({"mem_gb": 999}, "sbatch refused hydra.launcher.mem_gb=999: "),
        ({"timeout_min": 9999}, "sbatch refused hydra.launcher.timeout_min=9999: "),
        ({"constraint": "fast"}, "sbatch refused hydra.launcher.constraint=fast: "),
        ({"exclude": "c9"}, "sbatch refused hydra.launcher.exclude=c9: "),
        ({"additional_parameters": {"begin": "soon"}}, "sbatch refused the settings in hydra.launcher: "),
        ({"nodes": 2}, "hydra.launcher.nodes must be 1, got 2"),
        ({"mem_gb": "much"}, 'hydra.launcher: Parameter "mem_gb" expected'),
        ({"colour": 1}, "there is no hydra.launcher.colour"),
    ],
)
def test_a_refusal_names_the_setting(cluster: Cluster, tmp_path: Path, changed: dict[str, Any], message: str):
    from vaebench.cli.sweep.slurm import SlurmQueue

    with pytest.raises(UserError, match=re.escape(message)):
        SlurmQueue(settings(tmp_path, **changed)).submit([sleep(0)])


def test_too_large_an_array_is_refused_with_the_largest(cluster: Cluster, tmp_path: Path):
    from vaebench.cli.sweep.slurm import SlurmQueue

    queue = SlurmQueue(settings(tmp_path))
    with pytest.raises(UserError, match=r"an array of 21 jobs: set hydra\.sweeper\.max_batch_size=20"):
        queue.submit([sleep(0)] * 21)
    ids = [job.id for job in queue.submit([sleep(60)] * 20)]
    assert queue.cancel_command([*ids[:2], ids[4]]).startswith("scancel '")
    assert queue.cancel_command(["7", "8"]) == "scancel 7 8"
    queue.cancel(ids)


def test_a_queue_that_does_not_answer_does_not_say_that_jobs_are_gone(cluster: Cluster, tmp_path: Path):
    from vaebench.cli.sweep.slurm import SlurmQueue

    queue = SlurmQueue(settings(tmp_path))
    short, long, _ = ids = [job.id for job in queue.submit([sleep(0), sleep(60), sleep(60)])]
    states = queue.look([*ids, "4711"])
    assert sorted(states) == ids  # a job that the queue does not know is absent
    assert [(state.ended, state.seconds_left) for state in states.values()][0] == (False, 300)
    wait_for(lambda: queue.look([short])[short].word == "COMPLETED" and queue.look([long])[long].started)
    queue.cancel([long])
    assert wait_for(lambda: (state := queue.look([long])[long]).ended and state).word == "CANCELLED"
    cluster.stop_controller()
    try:
        for call in (lambda: queue.look(ids), lambda: queue.submit([sleep(0)]), lambda: queue.cancel(ids)):
            with pytest.raises(RunFailed, match="contact slurm controller"):
                call()
    finally:
        cluster.start_controller()
    assert queue.look([short])[short].ended
    queue.cancel(ids)
