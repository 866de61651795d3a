"""The run folder is entered only when it fits, and its numbers never lose their labels."""

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_by

from vaebench import records
from vaebench.errors import Busy, UserError
from vaebench.records import (
    Manifest,
    ResultRecord,
    RunFolder,
    append_result,
    files,
    format_line,
    read_results,
    write_json,
)
from vaebench.records.manifest import git_state


def record(**changes: Any) -> ResultRecord:
    fields: dict[str, Any] = {
        "estimator": "DIWHVI",
        "k": 5000,
        "inner_k": 100,
        "split": "test",
        "protocol": "mnist/dynamic-v1",
        "mean": -86.412,
        "stderr": 0.07,
        "n_images": 10000,
        "direction": "lower_bound",
        "epoch": 50,
        "seconds": 1.0,
    }
    return ResultRecord(**{**fields, **changes})


def in_child(code: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# the folder


def test_create_then_open(tmp_path: Path):
    folder = RunFolder(tmp_path / "a" / "b").create("k: 1\n")
    assert folder.create("k: 1\n") == folder
    assert RunFolder.open(folder.path).read_config() == "k: 1\n"
    assert folder.checkpoints.is_dir()


def test_another_configuration_is_refused_and_kept(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\ndevice: cpu\n")
    with pytest.raises(UserError, match="another configuration"):
        folder.create("k: 2\ndevice: cpu\n")
    assert folder.read_config() == "k: 1\ndevice: cpu\n"


def test_identity_decides_what_another_configuration_is(tmp_path: Path):
    def first_line(text: str) -> str:
        return text.splitlines()[0]

    folder = RunFolder(tmp_path).create("k: 1\ndevice: cpu\n", first_line)
    folder.create("k: 1\ndevice: cuda\n", first_line)
    assert folder.read_config() == "k: 1\ndevice: cuda\n"
    with pytest.raises(UserError, match="another configuration"):
        folder.create("k: 2\ndevice: cuda\n", first_line)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_way(tmp_path: Path, name: str):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Choose a folder that you can write to"):
        RunFolder(tmp_path / name).create("k: 1\n")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_an_unwritable_folder():
    with pytest.raises(UserError, match="cannot write /proc/vaebench"):
        RunFolder(Path("/proc/vaebench")).create("k: 1\n")


def test_open_says_what_is_missing_and_what_is_near(tmp_path: Path):
    run = RunFolder(tmp_path / "sweep" / "1-abc").create("k: 1\n")
    with pytest.raises(UserError, match=r"has no config.yaml; the run folders below it are .*1-abc"):
        RunFolder.open(tmp_path / "sweep")
    with pytest.raises(UserError, match=r"it is inside the run folder .*1-abc"):
        RunFolder.open(run.checkpoints)
    with pytest.raises(UserError, match=r"there is no folder .*did you mean 'sweep'"):
        RunFolder.open(tmp_path / "swep")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="`vaebench train` creates run folders"):
        RunFolder.open(tmp_path / "empty")


def test_find_looks_below_and_names_no_run_twice(tmp_path: Path):
    paths = [tmp_path / "mnist" / "a" / "1", tmp_path / "mnist" / "b" / "1"]
    for path in paths:
        RunFolder(path).create("k: 1\n")
    hydra = tmp_path / "mnist" / ".hydra"  # hydra's own config.yaml is not a run
    hydra.mkdir()
    (hydra / "config.yaml").write_text("k: 1\n")
    found = RunFolder.find([paths[1], tmp_path])
    assert [run.path for run in found] == [paths[1], paths[0]]
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.find([tmp_path, paths[0] / "checkpoints"])


# the lock and the status

HOLD = """
import sys, time
from pathlib import Path
from vaebench.records import RunFolder
folder = RunFolder(Path(sys.argv[1]))
with folder.lock():
    folder.write_status("running")
    print("locked", flush=True)
    time.sleep(60)
"""


def test_only_one_process_trains_and_a_killed_one_frees_the_folder(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    with in_child(HOLD, tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"process {child.pid} on "), folder.lock():
            pass
        assert folder.read_status().state == "running"
        child.send_signal(signal.SIGKILL)
        child.wait()
    status = folder.read_status()
    assert status.state == "interrupted"
    assert f"process {child.pid}" in str(status.error)
    with folder.lock():  # free again
        folder.write_status("running")
        assert folder.read_status().state == "running"


def test_the_lock_excludes_this_process_too_and_ends_with_the_context(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    with folder.lock(), pytest.raises(UserError, match="another run is training"), folder.lock():
        pass
    with folder.lock():
        pass


def test_a_run_that_is_replaced_keeps_its_files_under_another_name(tmp_path: Path):
    folder = RunFolder(tmp_path / "run").create("k: 1\n")
    first = folder.set_aside()
    second = folder.create("k: 2\n").set_aside()
    folder.create("k: 3\n")
    assert [kept.path.name for kept in (first, second)] == ["run.replaced-1", "run.replaced-2"]
    assert first.read_config() == "k: 1\n"
    assert RunFolder.find([tmp_path]) == [folder]
    assert RunFolder.find([first.path]) == [first]
    with folder.lock(), pytest.raises(Busy):
        folder.set_aside()
    assert folder.read_config() == "k: 3\n"


def test_without_flock_a_replaced_run_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "fcntl", None)
    kept = RunFolder(tmp_path / "run").create("k: 1\n").set_aside()
    with kept.lock():
        pass


def test_without_flock_a_marker_file_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "fcntl", None)
    folder = RunFolder(tmp_path).create("k: 1\n")
    with folder.lock():
        folder.write_status("running")
        assert folder.read_status().state == "running"
        with pytest.raises(UserError, match=r"if that process does not exist, delete .*\.lock\.held"), folder.lock():
            pass
    assert folder.read_status().state == "interrupted"
    with folder.lock():
        pass


def test_a_file_system_without_flock_uses_the_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(descriptor: int, operation: int):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    assert files.fcntl is not None
    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    folder = RunFolder(tmp_path).create("k: 1\n")
    with folder.lock():
        assert (tmp_path / ".lock.held").exists()
        with pytest.raises(UserError, match="another run is training"), folder.lock():
            pass
    assert not (tmp_path / ".lock.held").exists()


def test_status_keeps_when_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = RunFolder(tmp_path).create("k: 1\n")
    monkeypatch.setattr("vaebench.records.folder.now", lambda: "2026-01-31T12:00:00+00:00")
    folder.write_status("running")
    monkeypatch.setattr("vaebench.records.folder.now", lambda: "2026-01-31T13:00:00+00:00")
    folder.write_status("failed", "the loss is nan")
    status = folder.read_status()
    assert (status.state, status.error) == ("failed", "the loss is nan")
    assert (status.started, status.updated) == ("2026-01-31T12:00:00+00:00", "2026-01-31T13:00:00+00:00")
    with pytest.raises(ValueError, match="state must be one of"):
        folder.write_status("done")  # type: ignore[arg-type]


# writing whole files


def full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_file_and_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"a\.json: the disk is full"):
        write_json(tmp_path / "a.json", {"new": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_json_has_no_nan(tmp_path: Path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": math.nan})
    assert not list(tmp_path.iterdir())


LIMITED = """
import resource, signal, sys
from pathlib import Path
from vaebench import records
from vaebench.errors import Busy, UserError
from vaebench.records.files import Appender, write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
folder = Path(sys.argv[1])
write_whole(folder / "a", b"old")
log = Appender(folder / "log")
for write in (lambda: write_whole(folder / "a", bytes(5000)), lambda: log.write(bytes(5000))):
    try:
        write()
    except UserError as error:
        print(error)
"""


def test_a_real_limit_on_file_size(tmp_path: Path):
    with in_child(LIMITED, tmp_path) as child:
        out, _ = child.communicate(timeout=30)
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        f"cannot write {tmp_path}/a",
        f"cannot write {tmp_path}/log",
    ]
    assert (tmp_path / "a").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "log"]


# results


def test_a_result_line_carries_direction_and_protocol():
    expected = "test log p(x) >= -86.41 +- 0.07 (DIWHVI, k=5000, inner_k=100, mnist/dynamic-v1, 10000 images)"
    assert format_line(record()) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"direction": "upper_bound"}, "test log p(x) <= -86.41 +- 0.07 (DIWHVI,"),
        ({"direction": "exact"}, "test log p(x) = -86.41 +- 0.07 (DIWHVI,"),
        ({"direction": "estimate"}, "test log p(x) ~ -86.41 +- 0.07 (estimate, DIWHVI,"),
        ({"inner_k": None}, "(DIWHVI, k=5000, mnist/dynamic-v1, 10000 images)"),
        ({"repeats": 3, "n_images": 1}, "mnist/dynamic-v1, 1 image, 3 repeats)"),
        ({"settings": {"temperatures": 1000}}, "inner_k=100, temperatures=1000, mnist"),
        ({"stderr": 0.0012}, "-86.412 +- 0.001 "),
        ({"stderr": 0.0}, "-86.41 +- 0.00 "),
    ],
)
def test_variants_of_the_line(changes: dict[str, Any], expected: str):
    assert expected in format_line(record(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": math.nan}, "mean must be finite, got nan"),
        ({"mean": math.inf}, "mean must be finite, got inf"),
        ({"stderr": -0.1}, "stderr must be >= 0, got -0.1"),
        ({"stderr": math.nan}, "stderr must be finite"),
        ({"seconds": -1.0}, "seconds must be >= 0"),
        ({"direction": "bound"}, "direction must be one of"),
        ({"precision": "fp8"}, "precision must be one of float32, bf16"),
        ({"n_images": 0}, "n_images must be >= 1, got 0"),
        ({"repeats": 0}, "repeats must be >= 1, got 0"),
        ({"epoch": -1}, "epoch must be >= 0, got -1"),
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"inner_k": -1}, "inner_k must be >= 0, got -1"),
        ({"protocol": ""}, "a result needs its protocol"),
        ({"quantity": ""}, "a result needs its quantity"),
    ],
)
def test_a_record_with_an_invalid_field_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        record(**changes)


OTHER_ESTIMATES = [
    {"estimator": "IWAE"},
    {"k": 1},
    {"inner_k": None},
    {"split": "validation"},
    {"protocol": "mnist/static-v1"},
    {"epoch": 1},
    {"n_images": 5},
    {"repeats": 2},
    {"direction": "estimate"},
    {"quantity": "a gap"},
    {"measure": "density"},
    {"precision": "bf16"},
    {"settings": {"seed": 1}},
]
SAME_ESTIMATE = [
    {"mean": -1.0},
    {"stderr": 1.0},
    {"seconds": 9.0},
    {"extra": {"ess": 3.0}},
    {"note": "trusted"},
    {"per_image": "evaluations/a.npz:values"},
    {"log_q": "exact"},
    {"provenance": made_by()},
]


def test_the_key_has_the_fields_that_define_an_estimate():
    assert len({record(**changes).key() for changes in ({}, *OTHER_ESTIMATES)}) == len(OTHER_ESTIMATES) + 1
    assert {record(**changes).key() for changes in SAME_ESTIMATE} == {record().key()}
    changed = {name for changes in (*OTHER_ESTIMATES, *SAME_ESTIMATE) for name in changes}
    assert changed == {each.name for each in dataclasses.fields(ResultRecord)}


def test_a_result_replaces_its_own_kind_only(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    assert read_results(folder) == []
    kinds = [{}, {"k": 1}, {"inner_k": None}, {"split": "validation"}, {"protocol": "mnist/static-v1"}]
    kinds += [{"epoch": 1}, {"n_images": 5}, {"estimator": "IWAE"}, {"settings": {"seed": 1}}]
    for kind in kinds:
        append_result(folder, record(**kind))
    append_result(folder, record(mean=-80.0, extra={"ess": 3.0}))
    results = read_results(folder)
    assert len(results) == len(kinds)
    assert [r.mean for r in results if r.key() == record().key()] == [-80.0]
    assert results[-1].extra == {"ess": 3.0}
    assert "settings" not in json.loads(folder.results.read_text())[0]


APPEND = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_records import record
from vaebench.records import RunFolder, append_result
for k in range(1, 11):
    append_result(RunFolder(Path(sys.argv[1])), record(k=k, epoch=int(sys.argv[2])))
"""


def test_processes_that_add_results_at_once_lose_none(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    children = [in_child(APPEND, tmp_path, epoch, Path(__file__).parent) for epoch in range(3)]
    for child in children:
        with child:
            assert child.wait(timeout=60) == 0
    assert len(read_results(folder)) == 30


@pytest.mark.parametrize("text", ["[{", '[{"estimator": "IWAE"}]', '{"a": 1}', "[1]"])
def test_damaged_results_are_named_and_never_overwritten(tmp_path: Path, text: str):
    folder = RunFolder(tmp_path).create("k: 1\n")
    folder.results.write_text(text)
    with pytest.raises(UserError, match=r"cannot read .*results\.json"):
        append_result(folder, record())
    assert folder.results.read_text() == text


# the manifest


def manifest(folder: RunFolder, **changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "device": "cpu",
        "protocol": "mnist5k/dynamic-v1",
        "fingerprint": "0123",
        "parameters": {"encoder": 3, "decoder": 4},
        "command": ["vaebench", "train"],
    }
    return Manifest(folder, **{**facts, **changes})


def test_the_manifest_sums_sessions_and_lists_restarts(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    first = manifest(folder)
    time.sleep(0.05)
    first.save()
    before = json.loads(folder.manifest.read_text())
    second = manifest(folder, device="cuda", resume_step=70)
    time.sleep(0.05)
    second.save()
    second.save()  # once for each checkpoint: the time is not counted twice
    after = json.loads(folder.manifest.read_text())
    assert before["restarts"] == []
    assert before["parameters"] == {"encoder": 3, "decoder": 4, "total": 7}
    assert before["versions"]["torch"]
    assert (after["device"], after["time"]) == ("cpu", before["time"])
    assert [(r["step"], r["device"]) for r in after["restarts"]] == [(70, "cuda")]
    assert before["wall_seconds"] + 0.04 <= after["wall_seconds"] < before["wall_seconds"] + 5


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    manifest(folder).save()
    with pytest.raises(UserError, match="cannot resume with other data"):
        manifest(folder, fingerprint="4567", resume_step=5)


def test_git_state_is_that_of_the_files_own_checkout(tmp_path: Path):
    def git(*arguments: str):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    source, installed = tmp_path / "source.py", tmp_path / "installed.py"
    source.write_text("1\n")
    assert git_state(source) is None
    git("init")
    git("add", "source.py")
    git("commit", "-m", "x")
    installed.write_text("lies in a checkout but is not part of it\n")
    clean = git_state(source)
    assert clean is not None
    assert (len(clean["commit"]), clean["dirty"]) == (40, False)
    source.write_text("2\n")
    assert git_state(source) == {**clean, "dirty": True}
    assert git_state(installed) is None


def test_every_name_of_the_records_can_be_imported():
    for name in records._FILES:
        assert getattr(records, name) is not None
        assert name in dir(records)
    with pytest.raises(AttributeError, match="has no attribute 'Recoder'"):
        records.Recoder  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_a_name_of_the_records_imports_only_its_file():
    code = "import sys; from vaebench.records import RunFolder; "
    code += "print(sorted(m for m in sys.modules if m.startswith('vaebench.records.')))"
    with in_child(code) as child:
        out, _ = child.communicate(timeout=60)
    files = ("files", "folder", "process", "stored")
    assert out == f"{[f'vaebench.records.{name}' for name in files]}\n"


def test_importing_the_records_imports_no_torch():
    code = "import sys, vaebench.records; print('torch' in sys.modules, 'tensorflow' in sys.modules)"
    with in_child(code) as child:
        out, _ = child.communicate(timeout=60)
    assert out == "False False\n"
