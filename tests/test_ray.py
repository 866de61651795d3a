"""Sweeps on ray. ray opens ports, so each scenario runs in a network namespace that has the loopback device alone.

A scenario is a function of this file that runs as a program, as the first process of a namespace of processes: when it
ends, the kernel kills all that it has started.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TINY = [
    "latent_dim=2",
    "decoder.hidden=[8]",
    "trainer.compile=false",
    "trainer.log_every=1",
    "trainer.validation_k=2",
    "trainer.progress=false",
    "estimator.k=2",
    "estimator.images=20",
    "device=cpu",
]
RAY = "hydra/launcher=ray"
INIT = "hydra.launcher.ray.init"
# The files of a job that was killed are on this disk, so the sweep need not wait for a record.
COMMAND = (
    "from vaebench.cli.sweep import follow; follow.GRACE = 1.0; from vaebench.cli import main; raise SystemExit(main())"
)
NAMESPACE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]


def cannot_run() -> str:
    """Return why no scenario can run here; "" if they can."""
    if importlib.util.find_spec("ray") is None:
        return "ray is not installed"
    try:
        subprocess.run([*NAMESPACE, "ip", "link", "set", "lo", "up"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "no network namespace with a loopback device: needs Linux, root, unshare and ip"
    return ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why := cannot_run()), reason=why)]


def play(scenario: Callable[[], None], folder: Path, data: Path) -> None:
    """Run a scenario in ``folder``."""
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, __file__, scenario.__name__]
    # A path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray") as temporary:
        settings = {"PYTHONPATH": str(ROOT), "VAEBENCH_DATA_DIR": str(data), "HOME": str(folder)}
        settings |= {"RAY_TMPDIR": temporary, "RAY_USAGE_STATS_ENABLED": "0", "TERM": "dumb"}
        kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS" and key[:4] != "RAY_"}
        done = subprocess.run(
            [*NAMESPACE, *inside],
            cwd=folder,
            env=kept | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout


def sweep(name: str, *words: str) -> "subprocess.Popen[str]":
    """Start a sweep in the folder ``name``, in a process group of its own, as a shell does."""
    Path(name).mkdir()
    with open(f"{name}.out", "w") as out:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, "train", "-m", *words, *TINY],
            cwd=name,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )


def ended(process: "subprocess.Popen[str]", name: str) -> tuple[int, str]:
    """Wait for a sweep; return its exit code and what it printed."""
    code = process.wait(timeout=240)
    print(text := Path(f"{name}.out").read_text())
    return code, text


def statuses(name: str) -> list[str]:
    (record,) = Path(name).glob("outputs/.sweeps/*/sweep.json")
    return [job["status"] for job in json.loads(record.read_text())["jobs"]]


def started(name: str, count: int) -> Iterator[tuple[Path, int]]:
    """Yield the run folder and the process of each of the sweep's first ``count`` jobs that has a checkpoint."""
    seen: set[Path] = set()
    end = time.monotonic() + 120
    while len(seen) < count:
        assert time.monotonic() < end, Path(f"{name}.out").read_text()
        time.sleep(0.02)
        for checkpoint in set(Path(name).glob("outputs/*/*/*/checkpoints/last.pt")) - seen:
            seen.add(checkpoint)
            run = checkpoint.parents[1]
            yield run, json.loads((run / "status.json").read_text())["pid"]


def command(pid: int) -> str:
    """Return the command line of a process; "" if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive() -> list[int]:
    """Return the processes of this namespace. Nobody waits for its orphans: they stay, without a command line."""
    return [pid for path in Path("/proc").iterdir() if path.name.isdigit() and command(pid := int(path.name))]


def threads(run: Path) -> str:
    return json.loads((run / "manifest.json").read_text())["device"]


def refusal(**init: Any) -> str:
    """Return the message of a queue that cannot start."""
    from vaebench.cli.sweep.ray_queue import RayQueue
    from vaebench.errors import UserError

    remote = init.pop("remote", {"num_cpus": 1})
    with pytest.raises(UserError) as error:
        RayQueue({"ray": {"init": init, "remote": remote}}).submit([])
    return str(error.value)


def on_this_machine() -> None:
    """ray starts here; Ctrl-C in the terminal saves the running job, and ends ray."""
    said = refusal(address="auto")
    assert said.startswith(f"{INIT}.address=auto: Could not find any running Ray")
    assert "`ray start --head`" in said
    assert refusal(address="127.0.0.1:1").startswith(f"{INIT}.address=127.0.0.1:1: [Errno 111] Connection refused")
    assert refusal(fast=1) == f"{INIT}.fast: Unknown keyword argument(s): fast"
    assert refusal(remote={"num_gpus": "x"}).startswith("hydra.launcher.ray.remote.num_gpus: The type of ")

    process = sweep("here", RAY, f"{INIT}.num_cpus=2", "trainer.epochs=1,100000")
    runs = dict(started("here", 2))
    while "job 1 of 2 (trainer.epochs=1): finished" not in Path("here.out").read_text():
        assert process.poll() is None, ended(process, "here")
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process, "here")[0] == 130
    assert statuses("here") == ["finished", "interrupted"]
    assert {threads(run) for run in runs} == {"cpu (1 thread)"}
    assert len(set(runs.values())) == 2
    logs = "".join(path.read_text() for path in Path("here").glob("outputs/.sweeps/*/jobs/*.log"))
    assert "interrupted; state saved in" in logs
    # ray's agents notice within seconds that their parent has ended.
    end = time.monotonic() + 60
    while others := [pid for pid in alive() if pid != os.getpid()]:
        assert time.monotonic() < end, [command(pid) for pid in others]
        time.sleep(0.1)


def on_two_nodes() -> None:
    """A worker and a node are killed; both jobs are submitted again, and resume on the other node."""
    alone = sweep("alone", "seed=0,1", "trainer.epochs=6", "trainer.threads=1")
    head = ["--head", "--port=6379", "--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    for words in (head, ["--address=127.0.0.1:6379", "--node-ip-address=127.0.0.2"]):
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", *words], check=True)
    assert ended(alone, "alone")[0] == 0
    assert refusal(address="auto", num_cpus=2).startswith(f"{INIT}.num_cpus: When connecting to an existing cluster")

    process = sweep("cluster", RAY, f"{INIT}.address=auto", "seed=0,1", "trainer.epochs=6")
    nodes: set[int] = set()
    for _, worker in started("cluster", 2):
        node = parent(worker)
        nodes.add(node)
        if "--node_ip_address=127.0.0.2" in command(node):
            os.kill(node, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
    assert len(nodes) == 2
    code, out = ended(process, "cluster")
    assert (code, statuses("cluster")) == (0, ["resumed", "resumed"])
    assert out.count("submitting it again") == 2
    assert "ended without a result (FAILED (WorkerCrashedError" in out
    assert "ended without a result (FAILED (NodeDiedError" in out


def test_on_this_machine(tmp_path: Path, default_data_dir: Path):
    play(on_this_machine, tmp_path, default_data_dir)


def test_two_nodes(tmp_path: Path, default_data_dir: Path):
    import torch

    from vaebench.records import RunFolder, read_metrics
    from vaebench.records.checkpoint import Checkpoints

    play(on_two_nodes, tmp_path, default_data_dir)
    for run in tmp_path.glob("cluster/outputs/*/*/*-*"):
        undisturbed = tmp_path / "alone" / run.relative_to(tmp_path / "cluster")
        for name in ("last", "best"):
            a, b = (Checkpoints(path / "checkpoints").load(name).state["modules"] for path in (run, undisturbed))
            assert all(torch.equal(a[key], b[key]) for key in b)
        steps = [line["step"] for line in read_metrics(RunFolder(run)) if "train/bound" in line]
        assert steps == list(range(1, 6 * 40 + 1))


if __name__ == "__main__":
    globals()[sys.argv[1]]()
