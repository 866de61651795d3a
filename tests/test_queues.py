"""A sweep in a queue: every job is followed to its end, whatever happens to it, to the queue or to the sweep."""

import contextlib
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_queue
import pytest
from fake_queue import flag, jobs, wait_for
from test_sweeps import FakeCore, raise_, statuses, written

from vaebench.cli import main
from vaebench.cli.sweep import follow, launchers
from vaebench.cli.sweep import run as sweep
from vaebench.cli.sweep.follow import Follower, collapsed
from vaebench.cli.sweep.job import SweepJob, SweepTask
from vaebench.cli.sweep.live import view_of
from vaebench.cli.sweep.queues import QueueState
from vaebench.cli.sweep.records import JobRecord, Records, SubmittedJob
from vaebench.cli.sweep.table import JobRow
from vaebench.config import compose, run_folder, to_yaml
from vaebench.errors import RunFailed
from vaebench.records import RunFolder

LASTING, SHORT = "fake_queue.FakeQueue", "fake_queue.ShortQueue"


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCore]:
    """Queues of processes in ``tmp_path``, and a training that takes no time."""
    fake = FakeCore()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vaebench.train.session.train", fake.train)
    for target in (LASTING, SHORT):
        monkeypatch.setitem(launchers.QUEUES, target, ("json", "slurm"))
    for name, seconds in {"POLL": 0.05, "FIRST_LOOK": 0.05, "SOON": 0.1, "GRACE": 0.4, "ELSEWHERE": 0.1}.items():
        monkeypatch.setattr(follow, name, seconds)
    yield fake
    fake_queue.ended()


def run(*words: str, queue: str = LASTING) -> int:
    return main(["train", "-m", "hydra/launcher=submitit_slurm", f"hydra.launcher._target_={queue}", *words])


def start(*words: str, queue: str = LASTING) -> int:
    """Start a sweep in another process, with its output in the file ``screen``; return its process id."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        output = os.open("screen", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        code = 99
        try:
            code = run(*words, queue=queue)
        finally:
            os._exit(code)
    return pid


def end(pid: int) -> int:
    """Wait for a sweep in another process; return its exit code, negative after a kill."""
    return os.waitstatus_to_exitcode(wait_for(lambda: (found := os.waitpid(pid, os.WNOHANG))[0] and found)[1])


def screen() -> str:
    return Path("screen").read_text() if Path("screen").exists() else ""


def begun(*seeds: int) -> bool:
    return all(Path(f"begun-{seed}").exists() for seed in seeds)


def until(name: str, seed: int = 0) -> Callable[[], Any]:
    """Return an act of a job: it waits until the file ``name`` exists."""
    return lambda: (Path(f"begun-{seed}").touch(), wait_for(Path(name).exists))


def once(act: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``act`` for a job's first start; later it does nothing."""

    def acts() -> None:
        mark = Path(f"mark-{id(act)}")
        if not mark.exists():
            mark.touch()
            act()

    return acts


def kill() -> None:
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


# Every job is followed to its end.


def test_the_screen_shows_each_change(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    """With a preset of the user's own, which builds on ours."""
    preset = Path("conf/hydra/launcher/mine.yaml")
    preset.parent.mkdir(parents=True)
    preset.write_text(f"defaults:\n  - submitit_slurm\n  - _self_\n_target_: {LASTING}\n")
    core.acts[1] = until("queue/running", 1)
    flag("held-job_0")
    threading.Thread(target=lambda: (wait_for(lambda: begun(1)), looked(), flag("running"), free("held-job_0"))).start()
    assert main(["train", "-m", "--config-dir", "conf", "hydra/launcher=mine", "seed=0,1"]) == 0
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in capfd.readouterr().out.splitlines()]
    host = os.uname().nodename
    found = [
        "submitted 2 jobs (1-2) as job_[0-1]",
        f"logs: {Path('queue').absolute()}",
        "queued: job 1, PENDING (Priority)"
        if "queued: job 1, PENDING (Priority)" in lines
        else "queued: 2 jobs (1-2), ",
        f"job 2 of 2 (seed=1): running on {host}, 1:01:01 left",
        "job 2 of 2 (seed=1): finished in 0:00:0",
        "job 1 of 2 (seed=0): finished in 0:00:0",
    ]
    assert [start for start in found if not any(line.startswith(start) for line in lines)] == []
    assert "2 jobs: 2 finished" in lines
    assert [job["id"] for job in written()["jobs"]] == ["job_0", "job_1"]
    assert "== job 1 of 2: seed=0" in Path("queue/job_0.out").read_text()


def looked() -> None:
    """Wait until a sweep has looked at the queue three more times, the last two after the records of now."""
    calls = Path("queue/calls")
    before = calls.read_text().count("look")
    wait_for(lambda: calls.read_text().count("look") >= before + 3)


def test_a_terminal_shows_the_queue(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    views: list[str] = []

    @contextlib.contextmanager
    def recording(rows: Callable[[], list[JobRow]]) -> Iterator[None]:
        def look() -> None:
            wait_for(lambda: begun(0))
            wait_for(lambda: views.append(view_of(rows(), 24)) or "1 running, 1 queued" in views[-1])
            free("held-job_1")
            Path("go").touch()

        thread = threading.Thread(target=look)
        thread.start()
        yield
        thread.join()

    monkeypatch.setattr(sweep, "shows_live", lambda: True)
    monkeypatch.setattr(sweep, "shown", recording)
    core.acts[0] = until("go")
    flag("held-job_1")
    assert run("seed=0,1") == 0
    assert f"{os.uname().nodename}, 1:01:01 left" in views[-1]
    assert "job_1 PENDING (Priority)" in views[-1]
    assert not list(Path("outputs/.sweeps").glob("*/jobs/*.log"))  # the queue has them


def free(name: str) -> None:
    Path("queue", name).unlink()


def test_a_dead_job_does_not_make_the_sweep_forget_the_others(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    """Seed 0 dies once, seed 1 always; seed 2 is at work until both have ended."""
    core.acts |= {0: once(kill), 1: kill, 2: lambda: wait_for(lambda: len(ended_jobs()) == 4)}
    assert run("seed=0,1,2") == 1
    assert statuses() == ["finished", "failed", "finished"]
    assert len(jobs()) == 5
    error = "ended twice without a result: OUT_OF_MEMORY"
    assert written()["jobs"][1]["error"] == error
    out = capfd.readouterr().out
    assert "(seed=0): ended without a result (OUT_OF_MEMORY): submitting it again" in out
    log = Path("queue/job_1.out").absolute()
    assert f"\n    log: {log}\n    == job 2 of 3: seed=1\n    the last words\n" in out
    assert f"{error}; log:" in out.rpartition("3 jobs: ")[2]


def ended_jobs() -> list[dict[str, Any]]:
    return [job for job in jobs() if job["ended"]]


def put_back() -> None:
    """Save and end, as after a signal; the queue starts this job again when ``held-job_0`` is gone."""
    looked()
    flag("again-job_0")
    flag("held-job_0")
    raise SystemExit(143)


def requeue(core: FakeCore, wait: Callable[[], Any]) -> int:
    """Run a sweep whose job is put back, and is held until ``wait`` returns."""
    core.acts[0] = once(put_back)
    mark = Path("queue/held-job_0")
    threading.Thread(target=lambda: (wait_for(mark.exists), wait(), free(mark.name))).start()
    return run("seed=0")


def test_a_job_that_the_queue_puts_back_is_not_submitted_again(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    """Its record says "interrupted", and its process is gone."""
    assert requeue(core, looked) == 0
    assert statuses() == ["finished"]
    assert len(jobs()) == 1
    assert "job 1 of 1: requeued: PENDING (Priority)" in capfd.readouterr().out


def test_control_the_record_alone_does_not_tell(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    """Without the queue's word for a waiting job, the record of a job that was put back is that of a dead one."""

    def state(self: fake_queue.FakeQueue, each: str) -> QueueState:
        return QueueState("?", ended=fake_queue.state_of(each)["word"] != "RUNNING")

    monkeypatch.setattr(fake_queue.FakeQueue, "_state", state)
    requeue(core, lambda: wait_for(lambda: len(jobs()) == 2))


def ended_too_early(core: FakeCore, monkeypatch: pytest.MonkeyPatch) -> int:
    """The queue forgets job 0 and says that the node of job 1 has failed; both work until the sweep has decided."""
    shown = Follower._print

    def noted(self: Follower, text: str) -> None:
        shown(self, text)
        for seed in (0, 1):
            if f"(seed={seed}): " in text and "its process still works" in text:
                Path(f"kept-{seed}").touch()

    monkeypatch.setattr(Follower, "_print", noted)

    def decided(seed: int) -> Any:
        return wait_for(lambda: Path(f"kept-{seed}").exists() or len(jobs()) > 2)

    core.acts |= {
        0: lambda: (flag("lost-job_0"), decided(0)),
        1: lambda: (flag("says-job_1", "NODE_FAIL"), decided(1)),
    }
    return run("seed=0,1")


def test_a_job_that_works_is_not_given_up(
    core: FakeCore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert ended_too_early(core, monkeypatch) == 0
    assert statuses() == ["finished", "finished"]
    assert len(jobs()) == 2
    out = capfd.readouterr().out
    assert "(seed=0): gone from the queue, but its process still works (another run is training in " in out
    assert "(seed=1): NODE_FAIL, but its process still works (" in out


def test_control_the_queue_alone_does_not_tell(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(follow, "skip_reason", lambda run, config: None)
    ended_too_early(core, monkeypatch)
    assert len(jobs()) > 2


def test_a_record_may_appear_after_the_end(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    """As on a network file system: the sweep does not see the record and the run until later."""
    seen = Records.path
    late = time.monotonic() + 2.0
    monkeypatch.setattr(follow, "GRACE", 4.0)
    sweep = os.getpid()

    def path(self: Records, key: str, suffix: str = ".json") -> Path:
        hidden = os.getpid() == sweep and time.monotonic() < late
        return seen(self, f"hidden-{key}" if hidden else key, suffix)

    monkeypatch.setattr(Records, "path", path)
    assert run("seed=0") == 0
    assert len(jobs()) == 1


def test_a_queue_that_does_not_answer_settles_nothing(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.acts[0] = lambda: (flag("silent"), looked(), free("silent"), kill())
    assert run("seed=0,1") == 1
    assert statuses() == ["failed", "finished"]
    out = capfd.readouterr().out
    assert out.count("the queue does not answer, asking again until it does: Unable to contact the controller") in (
        1,
        2,
    )
    assert "the queue answers again" in out
    assert len(jobs()) == 3


def test_a_job_that_was_cancelled_is_not_submitted_again(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.acts[0] = lambda: (flag("cancelled-job_0"), raise_(SystemExit(143)))
    assert run("seed=0,1") == 1
    assert statuses() == ["interrupted", "finished"]
    assert len(jobs()) == 2
    assert "CANCELLED; run the same sweep again to resume it" in capfd.readouterr().out.rpartition("2 jobs: ")[2]


def test_a_preempted_job_is_submitted_as_often_as_needed(core: FakeCore):
    def preempted() -> None:
        if len(jobs()) < 4:
            flag(f"says-job_{len(jobs()) - 1}", "PREEMPTED")
            raise SystemExit(143)

    core.acts[0] = preempted
    assert run("seed=0") == 0
    assert len(jobs()) == 4


# Which jobs are submitted.


def test_a_busy_job_is_submitted_once_it_is_free(core: FakeCore):
    """It is looked at here: no job in the queue finds it busy."""
    config = compose(["seed=0"])
    lock = (other := RunFolder(run_folder(config)).create(to_yaml(config))).lock()
    lock.__enter__()
    other.write_status("running")
    core.acts[1] = until("queue/free", 1)
    threading.Thread(target=lambda: (wait_for(lambda: begun(1)), lock.__exit__(None, None, None), flag("free"))).start()
    assert run("seed=0,1", "sweep.wait=true") == 0
    assert statuses() == ["finished", "finished"]
    assert [job["key"] for job in jobs()] == [1, 0]


def test_a_sweep_that_waits_for_another_process_says_so_once(core: FakeCore):
    config = compose(["seed=0"])
    with (other := RunFolder(run_folder(config)).create(to_yaml(config))).lock():
        other.write_status("running")
        sweep = start("seed=0", "sweep.wait=true")
        wait_for(lambda: "waiting for job 1: another run is training in " in screen())
        time.sleep(0.5)
        assert screen().count("waiting for") == 1
        other.write_status("finished")
    assert end(sweep) == 0
    assert "job 1 of 1: finished elsewhere" in screen()


def test_a_busy_job_is_not_submitted(core: FakeCore):
    config = compose(["seed=0"])
    with (other := RunFolder(run_folder(config)).create(to_yaml(config))).lock():
        other.write_status("running")
        assert run("seed=0,1") == 0
    assert statuses() == ["busy", "finished"]
    assert len(jobs()) == 1


@pytest.mark.parametrize(("queue", "words", "most"), [(LASTING, ["hydra.sweeper.max_batch_size=1"], 1), (SHORT, [], 2)])
def test_no_more_jobs_than_the_queue_may_hold(queue: str, words: list[str], most: int, core: FakeCore):
    def act() -> None:
        with open("at-once", "a") as file:
            file.write(f"{sum(job['word'] == 'RUNNING' for job in jobs())}\n")
        time.sleep(0.1)

    core.acts = dict.fromkeys(range(3), act)
    assert run("seed=0,1,2", *words, queue=queue) == 0
    assert max(int(line) for line in Path("at-once").read_text().split()) <= most
    tasks = [pickle.loads(path.read_bytes()) for path in Path("queue").glob("*.pkl")]
    assert {task.sweep.worker for task in tasks} == set(range(most))  # GPUs are dealt out by these numbers
    assert len(jobs()) == 3


def test_fail_fast_cancels_what_has_not_begun(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.acts = {0: lambda: (wait_for(lambda: begun(1)), raise_(RunFailed("no"))), 1: until("queue/cancelled-job_2", 1)}
    flag("held-job_2")
    assert run("seed=0,1,2", "sweep.fail_fast=true") == 1
    assert statuses() == ["failed", "finished", "not started"]
    assert "cancelled job 3" in capfd.readouterr().out
    core.acts.clear()
    free("held-job_2")
    assert run("seed=0,1,2") == 0
    assert statuses() == ["finished", "skipped", "finished"]


# Refusals.


def test_a_refusal(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    flag("refuses")
    assert run("seed=0,1") == 2
    assert "hydra.launcher.partition=gpu does not exist" in capfd.readouterr().err
    assert statuses() == ["not started", "not started"]
    free("refuses")
    flag("silent")
    assert run("seed=0") == 1
    assert "Unable to contact the controller" in capfd.readouterr().err


@pytest.mark.parametrize("words", [[], ["hydra/launcher=submitit_slurm", f"hydra.launcher._target_={SHORT}"]])
def test_only_a_lasting_queue_can_be_left(words: list[str], core: FakeCore, capfd: pytest.CaptureFixture[str]):
    assert main(["train", "-m", "seed=0,1", "sweep.submit_only=true", *words]) == 2
    assert "sweep.submit_only=true needs a queue that runs jobs without this process" in capfd.readouterr().err
    assert not core.trained


# Left and typed again.


def test_submit_only_and_collecting(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.acts = {0: until("go"), 1: once(kill), 2: until("go", 2)}
    flag("held-job_2")
    assert run("seed=0,1,2", "sweep.submit_only=true") == 0
    assert set(statuses()) <= {"queued", "running"}
    out = capfd.readouterr().out
    assert "submitted 3 jobs (1-3) as job_[0-2]" in out
    assert "run the same command again to collect results" in out
    wait_for(lambda: begun(0) and ended_jobs())
    assert run("seed=0,1,2", "sweep.submit_only=true") == 0
    assert statuses() == ["running", "queued", "queued"]
    out = capfd.readouterr().out
    assert "already in the queue: 2 jobs (1, 3) as job_[0, 2]" in out
    assert "submitted job 2 as job_3" in out
    assert "job_2 PENDING (Priority)" in out.rpartition("3 jobs: ")[2]
    Path("go").touch()
    free("held-job_2")
    assert run("seed=0,1,2,3") == 0
    assert set(statuses()) <= {"finished", "skipped"}
    assert len(jobs()) == 5


def test_the_waiting_command_is_killed_and_typed_again(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    """Meanwhile, seed 0 works on, seed 1 waits, and seed 2 dies."""
    core.acts = {0: until("go"), 2: once(lambda: (wait_for(Path("gone").exists), kill()))}
    flag("held-job_1")
    sweep = start("seed=0,1,2")
    wait_for(lambda: begun(0) and "3 jobs (1-3)" in screen())
    os.kill(sweep, signal.SIGKILL)
    assert end(sweep) == -signal.SIGKILL
    Path("gone").touch()
    wait_for(ended_jobs)
    threading.Thread(
        target=lambda: (wait_for(lambda: len(jobs()) == 4), Path("go").touch(), free("held-job_1"))
    ).start()
    assert run("seed=0,1,2") == 0
    assert statuses() == ["finished"] * 3
    assert len(jobs()) == 4
    out = capfd.readouterr().out
    assert "already in the queue: 2 jobs (1-2) as job_[0-1]" in out


def test_two_waiting_commands_share_their_jobs(core: FakeCore):
    core.acts[0] = until("go")
    sweep = start("seed=0,1")
    wait_for(lambda: begun(0))
    threading.Thread(target=lambda: (time.sleep(1), Path("go").touch())).start()
    assert run("seed=0,1,2") == 0
    assert end(sweep) == 0
    assert len(jobs()) == 3


def test_two_commands_in_the_same_instant_train_once(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    """Neither knows what the other has submitted: the run's lock decides, and the sweep follows the winner."""
    core.acts[0] = lambda: (note("trained"), until("go")())
    sweep = start("seed=0")
    wait_for(lambda: begun(0))
    look = Follower._adopt
    monkeypatch.setattr(follow, "skip_reason", blind(follow.skip_reason))
    monkeypatch.setattr(Follower, "_adopt", lambda self: True if len(jobs()) < 2 else look(self))
    threading.Thread(
        target=lambda: (wait_for(lambda: len(ended_jobs()) == 1), time.sleep(0.5), Path("go").touch())
    ).start()
    assert run("seed=0") == 0
    assert end(sweep) == 0
    assert Path("trained").read_text() == "x"
    assert len(jobs()) == 2
    assert statuses() == ["finished"]


def note(name: str) -> None:
    with open(name, "a") as file:
        file.write("x")


def blind(skip_reason: Callable[..., JobRecord | None]) -> Callable[..., JobRecord | None]:
    """Return a function that does not see, before the second submission, that a run is busy."""
    return lambda run, config: None if len(jobs()) < 2 else skip_reason(run, config)


# Stopped by a signal.


def test_ctrl_c_leaves_running_jobs_to_a_lasting_queue(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.acts[0] = until("go")
    flag("held-job_1")
    sweep = start("seed=0,1")
    wait_for(lambda: begun(0) and "(seed=0): running" in screen())
    os.kill(sweep, signal.SIGINT)
    assert end(sweep) == 130
    out = screen()
    assert "cancelled job 2" in out
    assert "left in the queue: job 1;" in out
    assert "to cancel: fcancel job_0" in out
    assert "2 jobs: 1 running, 1 not started" in out
    wait_for(lambda: jobs()[1]["word"] == "CANCELLED")
    threading.Thread(target=lambda: (wait_for(lambda: len(jobs()) == 3), Path("go").touch())).start()
    free("held-job_1")
    assert run("seed=0,1") == 0
    assert "already in the queue: job 1 as job_0" in capfd.readouterr().out
    assert len(jobs()) == 3


def test_a_closed_terminal_leaves_every_job_to_a_lasting_queue(core: FakeCore):
    core.acts[0] = until("go")
    flag("held-job_1")
    sweep = start("seed=0,1")
    wait_for(lambda: begun(0) and "(seed=0): running" in screen())
    os.kill(sweep, signal.SIGHUP)
    assert end(sweep) == 129
    assert "left in the queue: 2 jobs (1-2);" in screen()
    assert "to cancel: fcancel job_0 job_1" in screen()
    Path("go").touch()
    free("held-job_1")
    assert run("seed=0,1") == 0
    assert len(jobs()) == 2


def test_ctrl_c_does_not_cancel_jobs_for_which_another_command_waits(core: FakeCore):
    flag("held-job_0")
    first = start("seed=0,1")
    wait_for(lambda: "finished" in screen())
    Path("screen").unlink()
    second = start("seed=0,2")
    wait_for(lambda: "(seed=2): finished" in screen())
    os.kill(second, signal.SIGINT)
    assert end(second) == 130
    assert "left in the queue: job 1;" in screen()
    free("held-job_0")
    assert end(first) == 0


def test_a_job_that_began_continues_after_its_sweep_was_stopped(core: FakeCore):
    """The queue puts it back, as at its time limit. A job that has not begun ends without work."""
    core.acts[0] = until("go")
    sweep = start("seed=0")
    wait_for(lambda: begun(0) and "running" in screen())
    os.kill(sweep, signal.SIGINT)
    assert end(sweep) == 130
    flag("again-job_0")
    flag("held-job_0")
    os.kill(jobs()[0]["pid"], signal.SIGTERM)
    wait_for(lambda: jobs()[0]["word"] == "PENDING")
    Path("go").touch()
    threading.Thread(target=lambda: (looked(), free("held-job_0"))).start()
    assert run("seed=0") == 0
    assert statuses() == ["finished"]
    assert len(jobs()) == 1


def test_ctrl_c_stops_the_jobs_of_a_queue_that_ends_with_the_sweep(core: FakeCore):
    core.acts = {0: until("never"), 1: until("never", 1)}
    sweep = start("seed=0,1,2", queue=SHORT)
    wait_for(lambda: begun(0, 1))
    os.kill(sweep, signal.SIGINT)
    assert end(sweep) == 130
    assert statuses() == ["interrupted", "interrupted", "not started"]
    assert len(jobs()) == 2


def test_a_second_ctrl_c_exits_at_once(core: FakeCore):
    core.acts[0] = lambda: (signal.signal(signal.SIGTERM, signal.SIG_IGN), until("never")())
    sweep = start("seed=0", queue=SHORT)
    wait_for(lambda: begun(0))
    os.kill(sweep, signal.SIGINT)
    wait_for(lambda: "press Ctrl-C again to exit now" in screen())
    os.kill(sweep, signal.SIGINT)
    assert end(sweep) == 130
    assert "1 job: 1 " in screen()


# Parts.


def test_a_job_does_not_grow_with_the_sweep():
    config = compose([])
    sizes = [
        len(pickle.dumps(SweepTask.of(SweepJob(Path("x"), {str(n): n for n in range(jobs)}), config, [], "1", 0)))
        for jobs in (1, 2000)
    ]
    assert sizes[0] == sizes[1]


def test_ids_of_an_array_are_one_word():
    assert collapsed(["7_0", "7_1", "7_2", "8_5", "7_9", "local"]) == "local, 7_[0-2, 9], 8_5"


def test_an_id_that_a_command_would_take_for_an_option_is_left_out(tmp_path: Path):
    records = Records(tmp_path)
    records.add_submitted([SubmittedJob("0-a", each, "q") for each in ("--all", "12_3")])
    with open(tmp_path / "submitted.jsonl", "a") as file:
        file.write('{"key": "cut off')
    assert [job.id for job in records.submitted()] == ["12_3"]


def test_records_of_earlier_versions_are_read(tmp_path: Path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/0-a.json").write_text('{"status": "running", "pid": 3, "host": "n", "results": []}')
    assert Records(tmp_path).read("0-a") == JobRecord("running", pid=3, host="n")


def test_jobs_at_work_are_no_success(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    """No path leads there; if one did, the exit code would say it."""
    core.acts[0] = until("go")
    monkeypatch.setattr(Follower, "_in_queue", lambda self: [])
    assert run("seed=0") == 1
    assert statuses() == ["queued"]


def test_a_stopped_sweep_with_a_folder_of_its_own_starts_again(core: FakeCore):
    Path("mine").mkdir()
    Path("mine/stop").touch()
    assert main(["train", "-m", "seed=0,1", "hydra.sweep.dir=mine"]) == 0
    assert core.trained == [0, 1]


def test_records_that_changed(tmp_path: Path):
    records, seen = Records(tmp_path), {}
    assert records.changed(seen) == []
    records.write("0-a", JobRecord("running"))
    assert records.changed(seen) == ["0-a"]
    assert records.changed(seen) == []
    with contextlib.suppress(FileNotFoundError):
        records.forget("1-b")
    records.write("0-a", JobRecord("finished"))
    assert records.changed(seen) == ["0-a"]
