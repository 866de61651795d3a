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
    "trainer.epochs=6",
    "trainer.batch_size=400",
    "trainer.log_every=1",
    "trainer.compile=false",
    "trainer.progress=false",
    "trainer.validation_k=2",
    "estimator.k=2",
    "estimator.images=20",
    "device=cpu",
]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=60"]
# The files of a job that was killed are on this disk, so the sweep need not wait for a record.
COMMAND = (
    "from vaebench.cli.sweep import follow; follow.GRACE = follow.ELSEWHERE = 1.0; "
    "from vaebench.cli import main; raise SystemExit(main())"
)
PATIENCE = 120
STARTED: list["subprocess.Popen[str]"] = []
"""The commands of the current test."""
pytestmark = pytest.mark.slow


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
def _environment(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, default_data_dir: Path
) -> Iterator[None]:
    """Let Slurm's commands and the sweeps find the cluster and the data; end what a failed test leaves."""
    monkeypatch.setenv("VAEBENCH_DATA_DIR", str(default_data_dir))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if "cluster" not in request.fixturenames:
        yield
        return
    cluster = request.getfixturevalue("cluster")
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield
    for process in STARTED:
        process.kill()
    STARTED.clear()
    cluster.command("scancel", "--user", str(os.getuid()))
    wait_for(lambda: not cluster.command("squeue", "-h"))


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """Return settings as in hydra.launcher."""
    own = {"submitit_folder": str(folder / "jobs"), "name": "vaebench", "timeout_min": 5, "max_num_timeout": 2}
    own |= {"signal_delay_s": 60, "cpus_per_task": 1, "stderr_to_stdout": True, "additional_parameters": {}}
    return own | more


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
    assert (states[short].ended, states[short].seconds_left) == (False, 300)
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


def test_a_node_that_dies_takes_nothing_of_another_cluster(tmp_path: Path):
    """Two test processes may each have a cluster on this machine, with nodes of the same names."""
    clusters = [Cluster(tmp_path / name) for name in "ab"]
    jobs = []
    try:
        for cluster in clusters:
            environment = {**cluster.environment, "SLURMD_NODENAME": "c1"}
            jobs.append(subprocess.Popen(["sleep", "60"], env=environment))
        for cluster, job in zip(clusters, jobs, strict=True):
            wait_for(lambda cluster=cluster, job=job: cluster.processes("c1") == [job.pid])
            assert cluster.processes("c2") == []
    finally:
        for job in jobs:
            job.kill()
            job.wait()


# Sweeps ---------------------------------------------------------------------------------------------------------------


def command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", COMMAND, "train", "-m", *words, *TINY]


def start(folder: Path, words: Sequence[str]) -> "subprocess.Popen[str]":
    """Start a sweep on Slurm in ``folder``."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    STARTED.append(subprocess.Popen(command([*SLURM, *words]), cwd=folder, **pipes))
    return STARTED[-1]


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """Return what a sweep printed."""
    out, _ = process.communicate(timeout=2 * PATIENCE)
    print(out)
    assert process.returncode == code, out
    return out


def sweep(folder: Path, words: Sequence[str], code: int = 0) -> str:
    """Run a sweep on Slurm to its end; return what it printed."""
    return finish(start(folder, words), code)


def runs(folder: Path) -> dict[str, Path]:
    """Return the run folders by seed."""
    return {path.name.split("-")[0]: path for path in folder.glob("outputs/mnist5k/*/*") if path.is_dir()}


def numbers(run: Path) -> tuple[list[Any], list[Any]]:
    """Return the bound of each step, and all weights of the last and the best checkpoint."""
    metrics = [(line["step"], line["train/bound"]) for line in read_metrics(RunFolder(run)) if "train/bound" in line]
    states = [Checkpoints(run / "checkpoints").load(name).state["modules"] for name in ("last", "best")]
    return metrics, states


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> dict[str, Any]:
    """The numbers of a sweep without a launcher, by seed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    environment = {**os.environ, "VAEBENCH_DATA_DIR": str(default_data_dir), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run(command(["seed=0,1,2,3,4,5"]), cwd=folder, env=environment, check=True, capture_output=True)
    return {seed: numbers(run) for seed, run in runs(folder).items()}


def assert_undisturbed(folder: Path, undisturbed: dict[str, Any], seeds: str) -> None:
    """Hold that the runs in ``folder`` have the steps and the weights of an undisturbed sweep, bit for bit."""
    for seed in seeds.split(","):
        (metrics, states), (whole, wholes) = numbers(runs(folder)[seed]), undisturbed[seed]
        assert metrics == whole  # no step was lost or taken twice
        for state, expected in zip(states, wholes, strict=True):
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[key], expected[key]) for key in state)


def held(*jobs: tuple[Path, str]) -> list[int]:
    """Stop each run, given as folder and seed, with SIGSTOP after its first checkpoint; return the processes' ids.

    Look at all of them in turn: one that starts first would end while another is waited for. Slurm sends SIGCONT with
    its other signals.
    """
    pids: dict[tuple[Path, str], int] = {}

    def look() -> bool:
        for folder, seed in jobs:
            run = runs(folder).get(seed)
            if (folder, seed) not in pids and run and (run / "checkpoints/last.pt").exists():
                pids[folder, seed] = RunFolder(run).read_status().pid
                os.kill(pids[folder, seed], signal.SIGSTOP)
                assert RunFolder(run).read_status().state == "running", "it had ended"
        return len(pids) == len(jobs)

    wait_for(look)
    return [pids[job] for job in jobs]


def ids(folder: Path) -> dict[str, str]:
    """Return Slurm's ids of the jobs by seed, the newest of each."""
    lines = [line for path in sorted(folder.glob("outputs/.sweeps/*/submitted.jsonl")) for line in path.open()]
    return {job["key"].split("-")[0]: job["id"] for job in map(json.loads, lines)}


def log(folder: Path, seed: str) -> str:
    """Return what the newest job of a seed printed."""
    return next(folder.glob(f"outputs/.sweeps/*/.submitit/{ids(folder)[seed]}_0_log.out")).read_text()


def test_a_killed_a_requeued_and_a_cancelled_job(cluster: Cluster, tmp_path: Path, undisturbed: dict[str, Any]):
    process = start(tmp_path, ["seed=0,1,2,3"])
    pids = held(*((tmp_path, seed) for seed in "012"))
    os.kill(pids[0], signal.SIGKILL)
    cluster.command("scontrol", "requeue", ids(tmp_path)["1"])
    cluster.command("scancel", ids(tmp_path)["2"])
    for pid in pids[1:]:
        os.kill(pid, signal.SIGCONT)
    out = finish(process, 1)
    assert "4 jobs: 2 resumed, 1 interrupted, 1 finished" in out
    assert "Requeued" not in log(tmp_path, "2")
    out = sweep(tmp_path, ["seed=0,1,2,3"])
    assert "4 jobs: 3 skipped, 1 resumed" in out
    assert_undisturbed(tmp_path, undisturbed, "0,1,2,3")


def test_a_job_at_its_time_limit(cluster: Cluster, tmp_path: Path, undisturbed: dict[str, Any]):
    process = start(tmp_path, ["seed=0", "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=5"])
    held((tmp_path, "0"))
    out = finish(process)
    assert "1 job: 1 resumed" in out
    assert "requeued" in out
    assert_undisturbed(tmp_path, undisturbed, "0")


@pytest.mark.parametrize(
    ("user_signal", "partitions"),
    [
        (True, ["low"]),
        # PreemptMode=REQUEUE, CANCEL, and GraceTime=0: Slurm puts the job back before the job knows of it.
        (False, ["low", "cancelled", "low0"]),
    ],
)
def test_a_preempted_job(
    cluster: Cluster, tmp_path: Path, undisturbed: dict[str, Any], user_signal: bool, partitions: list[str]
):
    cluster.configure(SlurmctldParameters="preempt_send_user_signal" if user_signal else "")
    folders = [tmp_path / partition for partition in partitions]
    for folder in folders:
        folder.mkdir()
    sweeps = [start(folder, ["seed=0", f"hydra.launcher.partition={folder.name}"]) for folder in folders]
    held(*((folder, "0") for folder in folders))
    cluster.command("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    for folder, process in zip(folders, sweeps, strict=True):
        out = finish(process)
        assert "1 job: 1 resumed" in out
        assert "requeued" in out
        assert_undisturbed(folder, undisturbed, "0")


def test_a_node_that_dies(cluster: Cluster, tmp_path: Path, undisturbed: dict[str, Any]):
    process = start(tmp_path, ["seed=0,1"])
    held(*((tmp_path, seed) for seed in "01"))
    node = cluster.command("squeue", "-h", "-t", "R", "-o", "%N").split()[0]
    cluster.configure(SlurmdTimeout="6")  # seconds until a silent node is down
    cluster.kill_node(node)
    try:
        out = finish(process)
    finally:
        cluster.start_node(node)
        cluster.configure()
    assert "2 jobs: 2 resumed" in out
    assert_undisturbed(tmp_path, undisturbed, "0,1")


def test_a_killed_sweep_and_one_that_is_stopped(cluster: Cluster, tmp_path: Path, undisturbed: dict[str, Any]):
    """Typed again, the command collects what runs, and cancels only what has not begun."""
    words = ["seed=0,1,2,3,4,5"]
    process = start(tmp_path, words)
    pids = held(*((tmp_path, seed) for seed in "0123"))
    process.kill()
    process.communicate()
    process = start(tmp_path, words)
    lines = read_until(process, "PENDING")
    assert "already in the queue: 6 jobs (1-6) as " in lines
    process.send_signal(signal.SIGINT)
    out = lines + finish(process, 130)
    assert "cancelled 2 jobs (5-6)" in out
    assert re.search(r"to cancel: scancel '\d+_\[0-3\]'", out)
    process = start(tmp_path, words)
    read_until(process, "submitted 2 jobs (5-6) as ")
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert "6 jobs: 6 finished" in finish(process)
    assert_undisturbed(tmp_path, undisturbed, "0,1,2,3,4,5")


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Return what a sweep prints, up to the line with ``text``."""
    assert process.stdout is not None
    lines = ""
    for line in process.stdout:
        lines += line
        if text in line:
            print(lines)
            return lines
    raise AssertionError(lines)


def test_submit_only_and_collecting(
    cluster: Cluster, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_NUM_THREADS")
    words = ["seed=0,1"]
    out = sweep(tmp_path, [*words, "sweep.submit_only=true"])
    assert "2 jobs: 2 queued" in out
    out = sweep(tmp_path, [*words, "sweep.submit_only=true"])
    assert "already in the queue: 2 jobs (1-2)" in out
    assert "submitted" not in out
    pids = held(*((tmp_path, seed) for seed in "01"))
    os.kill(pids[1], signal.SIGKILL)
    process = start(tmp_path, words)
    read_until(process, "already in the queue: ")
    os.kill(pids[0], signal.SIGCONT)
    assert "2 jobs: 1 finished, 1 resumed" in finish(process)
    assert "2 jobs: 2 skipped" in sweep(tmp_path, words)
    assert_undisturbed(tmp_path, undisturbed, "0,1")
    manifests = [json.loads((run / "manifest.json").read_text()) for run in runs(tmp_path).values()]
    assert all("(1 thread)" in manifest["device"] for manifest in manifests)  # as cpus_per_task says


def test_jobs_that_are_busy_elsewhere_are_not_submitted(cluster: Cluster, tmp_path: Path, undisturbed: dict[str, Any]):
    elsewhere = subprocess.Popen(command(["seed=0"]), cwd=tmp_path, stdout=subprocess.DEVNULL)
    (pid,) = held((tmp_path, "0"))
    out = sweep(tmp_path, ["seed=0,1"])
    assert "2 jobs: 1 busy, 1 finished" in out
    process = start(tmp_path, ["seed=0,1", "sweep.wait=true"])
    wait_for(lambda: len(list(tmp_path.glob("outputs/.sweeps/*/sweep.json"))) == 2)
    time.sleep(2)  # it looks at busy jobs every second
    os.kill(pid, signal.SIGCONT)
    assert elsewhere.wait(PATIENCE) == 0
    assert "2 jobs: 2 skipped" in finish(process)
    assert list(ids(tmp_path)) == ["1"]
    assert_undisturbed(tmp_path, undisturbed, "0,1")


def test_a_cluster_with_accounting(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    undisturbed: dict[str, Any],
):
    """A job that the controller has forgotten is known to the accounting."""
    from vaebench.cli.sweep.slurm import _recorded

    with started(tmp_path_factory, accounting=True) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        process = start(tmp_path, ["seed=0,1"])
        os.kill(held((tmp_path, "1"))[0], signal.SIGKILL)
        killed = ids(tmp_path)["1"]
        assert "2 jobs: 1 finished, 1 resumed" in finish(process)
        assert_undisturbed(tmp_path, undisturbed, "0,1")
        known = wait_for(lambda: _recorded([killed, "4711"]))  # the accounting is late
        assert {id: state.word for id, state in known.items()} == {killed: "FAILED"}
