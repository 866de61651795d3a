"""A sweep in a queue: every job is followed to its end, whatever happens to it, to the queue or to the sweep."""

import time
from collections.abc import Iterator
from pathlib import Path

import fake_queue
import pytest
from test_sweeps import FakeCore, statuses

from vaebench.cli import main
from vaebench.cli.sweep import follow, launchers

QUEUE = ["hydra/launcher=submitit_slurm", "hydra.launcher._target_=fake_queue.FakeQueue"]
DYING = ["hydra/launcher=submitit_slurm", "hydra.launcher._target_=fake_queue.DyingQueue"]


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCore]:
    fake = FakeCore()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vaebench.train.session.train", fake.train)
    for name in ("FakeQueue", "DyingQueue"):
        monkeypatch.setitem(launchers.QUEUES, f"fake_queue.{name}", ("json", "slurm"))
    for name, seconds in {"POLL": 0.05, "FIRST_LOOK": 0.05, "SOON": 0.1, "GRACE": 0.3, "ELSEWHERE": 0.1}.items():
        monkeypatch.setattr(follow, name, seconds)
    yield fake
    fake_queue.ended()


def run(*words: str, queue: list[str] = QUEUE) -> int:
    return main(["train", "-m", *queue, *words])


def test_jobs_run_in_the_queue(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.acts[1] = lambda: time.sleep(0.3)
    assert run("seed=0,1,2") == 0
    assert statuses() == ["finished"] * 3
    assert "submitted 3 jobs (1-3) as job_[0-2]" in capfd.readouterr().out
