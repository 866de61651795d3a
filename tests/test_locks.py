"""One process at a time works in a folder: stale markers, and file systems whose locks exclude nobody."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from vaebench.errors import Busy, TakenOver
from vaebench.records import RunFolder, files, write_json
from vaebench.records import folder as folders
from vaebench.records.process import Process, this_process


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)


def can_lock(path: Path) -> bool:
    """Take and release the lock ``path``; ``is_held`` must agree."""
    held = files.is_held(path)
    with suppress(Busy), files.exclusive(path, wait=0, busy=str):
        assert not held
        return True
    assert held
    return False


def marked(path: Path, holder: Process | str) -> Path:
    """Write the marker of the lock ``path``."""
    marker = path.with_name(f"{path.name}.held")
    marker.write_text(holder if isinstance(holder, str) else holder.text)
    return marker


@contextmanager
def child(code: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # pyright: ignore[reportCallIssue, reportArgumentType]
        try:
            yield process
        finally:
            process.kill()


def told(process: "subprocess.Popen[str]") -> str:
    """Return the next line that a child prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


# processes


def test_a_process_is_read_back_exactly():
    me = this_process()
    assert Process.parse(me.text) == me
    assert (me.pid, str(me)) == (os.getpid(), f"process {os.getpid()} on {me.host}")
    earlier = Process(12, "node1")
    assert Process.parse(earlier.text) == Process.parse("process 12 on node1\n") == earlier
    assert Process.parse("") is Process.parse("process 0 on a") is Process.parse("process 9999999999 on a") is None


def test_it_is_known_whether_a_process_has_ended():
    me, parent = this_process(), Process(os.getppid(), this_process().host)
    place, start = me.instance.rsplit("-", 1)
    machine, _, namespace = place.split("-")
    with subprocess.Popen(["true"]) as ended:
        time.sleep(0.1)
        assert replace(parent, pid=ended.pid).has_ended()  # its parent has not asked for its exit code yet
    assert replace(parent, pid=ended.pid).has_ended()
    assert not parent.has_ended()  # of an earlier version: whether the number was used again is not known
    assert not me.has_ended()
    assert replace(me, instance=f"{place}-1{start}").has_ended()  # the number was used again
    assert replace(me, instance=f"{machine}-other-{namespace}-{start}").has_ended()  # the machine was restarted
    assert me.is_here()


@pytest.mark.parametrize("place", ["other-other-{2}", "-other-{2}", "{0}-{1}-other", "a-newer-format-of-the-{2}"])
def test_a_process_of_another_place_is_not_taken_for_ended(place: str):
    """Another machine with this host name, a machine or a container without an id, another container."""
    me = this_process()
    other = replace(me, instance=place.format(*me.instance.split("-")) + "-1")
    assert not other.has_ended()
    assert not other.is_here()
    assert not replace(me, host="elsewhere", pid=2**31 - 1).has_ended()


# markers: the locks where flock is missing

HOLD = """
import sys
from pathlib import Path
from vaebench.records import files
files.fcntl = None
with files.exclusive(Path(sys.argv[1]), wait=0, busy=str):
    print("locked", flush=True)
    input()
"""


@pytest.mark.parametrize("of_earlier_version", [False, True])
@pytest.mark.usefixtures("no_flock")
def test_the_marker_of_a_killed_process_is_taken_over(of_earlier_version: bool, tmp_path: Path):
    lock = tmp_path / ".lock"
    with child(HOLD, lock) as holder:
        assert told(holder) == "locked"
        if of_earlier_version:
            marked(lock, str(Process(holder.pid, this_process().host)))
        assert not can_lock(lock)  # control: the process still works
    assert (tmp_path / ".lock.held").exists()
    assert can_lock(lock)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_flock")
def test_a_marker_that_cannot_be_judged_is_named_with_what_to_do(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    for holder, words in {Process(12, "node1"): "process 12 on node1", "": "an unknown process"}.items():
        marker = marked(folder.lock_file, holder)
        assert not can_lock(folder.lock_file)
        assert f"({words}; if that process does not exist, delete {marker})" in folder.busy()
    marker.unlink()
    assert can_lock(folder.lock_file)


TAKE = """
import sys
from pathlib import Path
from vaebench.records import files
files.fcntl = None
took_over = files._took_over
def later(marker):
    if marker.suffix == ".held":
        print("stale", flush=True)
        input()
    if sys.argv[2] == "checked":
        return took_over(marker)
    files.remove(marker)
    return files._create(marker)
files._took_over = later
try:
    with files.exclusive(Path(sys.argv[1]), wait=0, busy=str):
        print("held", flush=True)
        input()
except files.Busy:
    print("busy", flush=True)
"""


@pytest.mark.parametrize(("how", "second"), [("checked", "busy"), ("control: not checked again", "held")])
def test_two_processes_that_find_a_marker_stale_do_not_both_take_it_over(how: str, second: str, tmp_path: Path):
    """The second one continues when the first one holds the lock."""
    marked(tmp_path / ".lock", Process(2**31 - 1, this_process().host))
    with child(TAKE, tmp_path / ".lock", how) as one, child(TAKE, tmp_path / ".lock", how) as other:
        assert [told(one), told(other)] == ["stale", "stale"]
        for process, state in ((one, "held"), (other, second)):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert told(process) == state


@pytest.mark.usefixtures("no_flock")
def test_a_process_that_was_killed_while_it_took_over_does_not_keep_the_lock(tmp_path: Path):
    ended = Process(2**31 - 1, this_process().host)
    marked(tmp_path / ".lock", ended)
    (tmp_path / ".lock.held.next").write_text(ended.text)
    assert can_lock(tmp_path / ".lock")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_flock")
def test_no_process_deletes_the_marker_of_another(tmp_path: Path):
    """``--fresh`` renames the folder; meanwhile another process may make it anew."""
    lock, other = tmp_path / ".lock", Process(12, "node1")
    with files.exclusive(lock, wait=0, busy=str):
        marker = marked(lock, other)
    files.release_marker(lock)
    assert marker.read_text() == other.text


def test_a_marker_counts_beside_flock(tmp_path: Path):
    """Of two mounts of one file system, one may have flock."""
    lock = tmp_path / ".lock"
    marker = marked(lock, Process(12, "node1"))
    assert not can_lock(lock)
    marked(lock, Process(2**31 - 1, this_process().host))
    assert can_lock(lock)
    assert not marker.exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL])
def test_every_error_of_a_missing_flock_leads_to_the_marker(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_locks(descriptor: int, operation: int):
        raise OSError(number, os.strerror(number))

    assert files.fcntl is not None
    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    lock = tmp_path / ".lock"
    with files.exclusive(lock, wait=0, busy=str):
        assert (tmp_path / ".lock.held").exists()
        assert not can_lock(lock)
    assert can_lock(lock)


# file systems whose locks exclude only the processes of one machine


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come faster, and are awaited for a shorter time."""
    for name, seconds in {"_SIGN_SECONDS": 0.02, "_WATCH_SECONDS": 0.3, "_LOOK_SECONDS": 0.01}.items():
        monkeypatch.setattr(folders, name, seconds)


def claimed_by(folder: RunFolder, process: Process, state: str = "running") -> None:
    """Write the status as another process does."""
    folder.write_status("running")
    status = vars(folder.read_status())
    write_json(folder.status, status | {"state": state, "error": None} | vars(process))


ELSEWHERE = Process(12, "node1", "0-1-2-3")


@contextmanager
def signs_of_life(folder: RunFolder) -> Iterator[None]:
    done = threading.Event()

    def give():
        while not done.wait(0.02):
            os.utime(folder.status)

    thread = threading.Thread(target=give)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.usefixtures("quick")
def test_a_run_that_works_on_another_machine_is_busy_although_the_lock_is_free(tmp_path: Path):
    folder = RunFolder(tmp_path / "run").create("k: 1\n")
    claimed_by(folder, ELSEWHERE)
    with signs_of_life(folder):
        for use in (folder.lock().__enter__, folder.opened("k: 2\n").__enter__, folder.set_aside):
            with pytest.raises(Busy, match="process 12 on node1"):
                use()
    assert folder.read_config() == "k: 1\n"
    with folder.lock():  # its process was killed, or was requeued to this machine
        pass


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("process", "state"),
    [
        (ELSEWHERE, "interrupted"),
        (ELSEWHERE, "finished"),
        (replace(ELSEWHERE, instance=""), "running"),  # of an earlier version, which gives no signs of life
        (replace(this_process(), pid=12), "running"),  # of this machine: the lock is enough
    ],
)
def test_control_other_runs_are_not_watched(process: Process, state: str, tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    claimed_by(folder, process, state)
    with signs_of_life(folder), folder.lock():
        pass


@pytest.mark.usefixtures("quick")
def test_a_process_gives_signs_of_life_until_another_one_claims_the_folder(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    folder.write_status("running")
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(TakenOver, match="process 12 on node1 now trains"))
        stack.enter_context(folder.claimed())
        first = folder.status.stat().st_mtime_ns
        time.sleep(0.1)
        assert folder.status.stat().st_mtime_ns > first
        claimed_by(folder, ELSEWHERE)
        written = folder.status.stat().st_mtime_ns
        time.sleep(0.1)
        assert folder.status.stat().st_mtime_ns == written


def test_a_folder_without_its_status_is_not_claimed(tmp_path: Path):
    """``--fresh`` on another machine renames the folder and makes it anew."""
    folder = RunFolder(tmp_path).create("k: 1\n")
    folder.write_status("running")
    folder.check_claim()
    folder.status.unlink()
    with pytest.raises(TakenOver, match="another process now trains in"):
        folder.check_claim()
