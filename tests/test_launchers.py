"""Every launcher really runs, where its plugin is installed; a job that is pre-empted goes on."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from vaebench.config import compose
from vaebench.records import RunFolder, read_metrics
from vaebench.records.checkpoint import Checkpoints
from vaebench.train.session import train

ROOT = Path(__file__).parents[1]
TINY = [
    "latent_dim=2",
    "decoder.hidden=[8]",
    "trainer.validation_k=2",
    "trainer.progress=false",
    "estimator.k=2",
    "estimator.images=20",
    "device=cpu",
]


def needs(plugin: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(f"hydra_plugins.{plugin}") is None, reason=f"{plugin} is not installed"
    )


def start(folder: Path, data: Path, words: Sequence[str]) -> "subprocess.Popen[str]":
    """Start a sweep in ``folder``."""
    settings = {"PYTHONPATH": str(ROOT), "VAEBENCH_DATA_DIR": str(data)}
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | settings
    return subprocess.Popen(
        [sys.executable, "-m", "vaebench", "train", "-m", *words, *TINY],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """Return what a sweep printed."""
    out, _ = process.communicate(timeout=600)
    assert process.returncode == code, out
    return out


def jobs(folder: Path) -> list[dict[str, Any]]:
    (record,) = (folder / "outputs/.sweeps").glob("*/sweep.json")
    return json.loads(record.read_text())["jobs"]


def threads(folder: Path) -> set[int]:
    """Return how many CPU threads the runs had."""
    manifests = folder.glob("outputs/*/*/*/manifest.json")
    return {int(json.loads(path.read_text())["device"].split("(")[1].split()[0]) for path in manifests}


@needs("hydra_joblib_launcher")
@pytest.mark.slow
def test_joblib(tmp_path: Path, default_data_dir: Path):
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "trainer.epochs=1"]
    out = finish(start(tmp_path, default_data_dir, [*words, "encoder=gaussian,foo"]), 2)
    assert "there is no encoder=foo" in out
    out = finish(start(tmp_path, default_data_dir, [*words, "objective=elbo,iwae", "objective.gradient=dreg"]), 1)
    assert [job["status"] for job in jobs(tmp_path)] == ["failed", "finished", "failed", "finished"]
    assert len({job["pid"] for job in jobs(tmp_path)} - {None}) == 2
    assert "4 jobs: 2 failed, 2 finished" in out
    assert threads(tmp_path) == {max(1, len(os.sched_getaffinity(0)) // 2)}


def statuses(folder: Path) -> set[str]:
    """Return the states in the records of a sweep's jobs."""
    return {json.loads(path.read_text())["status"] for path in folder.glob("outputs/.sweeps/*/jobs/*.json")}


@needs("hydra_joblib_launcher")
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_jobs_of_joblib_stop_with_a_killed_sweep(tmp_path: Path, default_data_dir: Path):
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.epochs=100000", "trainer.compile=false"]
    words.append("seed=0,1,2")
    sweep = start(tmp_path, default_data_dir, words)
    run = RunFolder(first_checkpoint(tmp_path, sweep))
    sweep.kill()
    sweep.communicate()
    end = time.monotonic() + 60
    while (state := run.read_status().state) == "running" and time.monotonic() < end:
        time.sleep(0.1)
    assert state == "interrupted"
    while (states := statuses(tmp_path)) != {"interrupted"} and time.monotonic() < end:
        time.sleep(0.1)
    # The third job did not start.
    assert (states, len(list(tmp_path.glob("outputs/.sweeps/*/jobs/*.json")))) == ({"interrupted"}, 2)


@needs("hydra_joblib_launcher")
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups")
def test_ctrl_c_while_a_worker_of_joblib_is_idle(tmp_path: Path, default_data_dir: Path):
    """The signal reaches every process. The job under way saves its state; each line of a job names its job."""
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.epochs=1,100000", "trainer.compile=false"]
    # Slow steps: the job is in the middle of one when the signal comes.
    words += ["trainer.batch_size=1000", "objective=iwae", "k=20"]
    sweep = start(tmp_path, default_data_dir, words)
    first_checkpoint(tmp_path, sweep)
    end = time.monotonic() + 300
    while statuses(tmp_path) != {"finished", "running"} and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(sweep.pid, signal.SIGINT)
    out = finish(sweep, 130)
    assert [job["status"] for job in jobs(tmp_path)] == ["finished", "interrupted"], out
    of_jobs, _, of_sweep = out.partition("stopping: ")
    assert "[job 2/2] interrupted; state saved in " in of_sweep
    assert all(line.startswith(("[job 1/2] ", "[job 2/2] ")) for line in of_jobs.splitlines()), of_jobs


def first_checkpoint(folder: Path, process: "subprocess.Popen[str]") -> Path:
    """Wait for a run's first checkpoint and return the run folder."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        for path in folder.glob("outputs/*/*/*/checkpoints/last.pt"):
            return path.parents[1]
        time.sleep(0.05)
    raise AssertionError(finish(process))


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
@pytest.mark.slow
def test_submitit_local_puts_a_pre_empted_job_back_and_it_goes_on(tmp_path: Path, default_data_dir: Path):
    """The signal comes in the middle of the training, and the run is bitwise that of an undisturbed one."""
    words = ["trainer.epochs=8", "trainer.log_every=1", "trainer.threads=1", "objective=iwae", "k=2"]
    sweep = start(tmp_path, default_data_dir, [*words, "hydra/launcher=submitit_local"])
    run = first_checkpoint(tmp_path, sweep)
    os.kill(RunFolder(run).read_status().pid, signal.SIGUSR2)
    assert "1 job: 1 resumed" in finish(sweep)
    log = next(tmp_path.glob("outputs/.sweeps/*/.submitit/*.out")).read_text()
    assert "this job is preempted" in log
    assert int(log.split("resuming from epoch ")[1].split(", step ")[1].split()[0]) < 8 * 40
    whole = train(compose([*words, *TINY, f"output_dir={tmp_path / 'whole'}", f"data_dir={default_data_dir}"]))
    last, best = [
        [Checkpoints(path / "checkpoints").load(name).state["modules"] for path in (run, whole)]
        for name in ("last", "best")
    ]
    assert all(torch.equal(pair[0][key], pair[1][key]) for pair in (last, best) for key in pair[0])
    # No step was lost or taken twice.
    steps = [line["step"] for line in read_metrics(RunFolder(run)) if "train/bound" in line]
    assert steps == list(range(1, 8 * 40 + 1))
