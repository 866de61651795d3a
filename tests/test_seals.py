"""Files that belong to a run: links, locks, temporaries and identities are checked."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from made_runs import made_run, record
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from vaebench.cli import main
from vaebench.cli.sweep.records import JobRecord, Records, skip_reason
from vaebench.config import identity, read, to_yaml
from vaebench.errors import UserError
from vaebench.files import clean_temporaries, replacing
from vaebench.records import Recorder, RunFolder, append_result, read_manifest, read_metrics, write_json
from vaebench.records.events import read_pictures
from vaebench.records.files import Appender, exclusive, is_held
from vaebench.records.folder import State
from vaebench.records.metrics import Written
from vaebench.records.pictures import png
from vaebench.report.run_summary import run_summary
from vaebench.report.runs import Run

# links


def private(folder: Path) -> Path:
    """Return a file of the user outside the run."""
    path = folder / "bashrc"
    path.write_text("export A=1\n")
    return path


@pytest.mark.parametrize("name", [".lock", ".results.lock", "metrics.jsonl", "status.json", "config.yaml"])
def test_a_linked_file_of_a_run_is_refused_and_its_target_kept(name: str, tmp_path: Path):
    run, target = made_run(tmp_path / "runs"), private(tmp_path)
    if name == "config.yaml":
        target.write_text(run.read_config())
    text = target.read_text()
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(target)
    for use in (
        lambda: RunFolder.open(run.path),
        lambda: run.opened(run.read_config()).__enter__(),
        lambda: append_result(run, record(-3.0)) if name == ".results.lock" else run.refuse_links(),
    ):
        with pytest.raises(UserError, match="symbolic link"):
            use()
    assert target.read_text() == text


@pytest.mark.parametrize("name", ["checkpoints", "evaluations", "pictures"])
def test_a_linked_folder_of_a_run_is_refused(name: str, tmp_path: Path):
    run, elsewhere = made_run(tmp_path / "runs"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    if (run.path / name).exists():
        (run.path / name).rmdir()
    (run.path / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{name} is a symbolic link"):
        RunFolder.open(run.path)


def test_control_a_run_reached_through_a_link_is_a_run(tmp_path: Path):
    run = made_run(tmp_path / "runs")
    (tmp_path / "short").symlink_to(run.path)
    (run.path / "notes").symlink_to(tmp_path)  # not a file of vaebench
    assert RunFolder.open(tmp_path / "short").read_status().state == "finished"


def test_a_file_that_is_not_a_lock_is_not_overwritten(tmp_path: Path):
    """A hard link cannot be told from a file."""
    target = private(tmp_path)
    os.link(target, tmp_path / ".lock")
    with (
        pytest.raises(UserError, match="is not a lock that vaebench wrote"),
        exclusive(tmp_path / ".lock", wait=0, busy=str),
    ):
        pass
    assert target.read_text() == "export A=1\n"


def test_no_log_is_opened_through_a_link(tmp_path: Path):
    target = private(tmp_path)
    (tmp_path / "log").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    for name in ("log", "pipe"):
        with pytest.raises(UserError, match=f"cannot write {tmp_path / name}"):
            Appender(tmp_path / name).write(b"x")
    assert target.read_text() == "export A=1\n"
    assert not is_held(tmp_path / "log")


def test_a_stop_mark_does_not_touch_the_target_of_a_link(tmp_path: Path):
    (tmp_path / "stop").symlink_to(tmp_path / "new")
    with pytest.raises(OSError, match="symbolic link"):
        Records(tmp_path).stop()
    assert not (tmp_path / "new").exists()


# the lock comes first

HOLD = """
import sys, time
from pathlib import Path
from vaebench.records import RunFolder
with RunFolder(Path(sys.argv[1])).opened(sys.argv[2]):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_refused_process_does_not_rewrite_the_configuration(tmp_path: Path):
    run = made_run(tmp_path)
    first = run.read_config()
    other = to_yaml(replace(read(run.path), device="cpu", output_dir="elsewhere"))
    command = [sys.executable, "-c", HOLD, str(run.path), first]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another run is training"), run.opened(other, lambda _: 0):
            pass
        assert run.read_config() == first
        holder.kill()
    with run.opened(other, lambda _: 0):  # control: a process that gets the lock writes it
        assert run.read_config() == other


# temporaries

KILLED = """
import os, signal, sys
from pathlib import Path
from vaebench.files import replacing
for folder in sys.argv[1:]:
    writing = replacing(Path(folder) / "a.json")
    writing.__enter__().write_text("half")
    kept = globals().setdefault("kept", []); kept.append(writing)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_lock_holder_deletes_the_temporaries_of_a_killed_writer(tmp_path: Path):
    run = made_run(tmp_path)
    folders = [run.path, *(run.path / name for name in ("checkpoints", "evaluations", "pictures"))]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", KILLED, *map(str, folders)], check=False)
    assert len(list(run.path.rglob(".*.tmp"))) == len(folders)
    with run.opened(run.read_config()):
        assert list(run.path.rglob(".*.tmp")) == []


def test_a_sweep_deletes_the_temporaries_of_killed_sweeps(tmp_path: Path):
    """Each sweep has a new folder, so it cleans those of the others; a folder elsewhere is not its own."""
    sweeps = [tmp_path / ".sweeps" / time for time in ("1", "2")]
    elsewhere = tmp_path / "elsewhere"
    folders = [*sweeps, *(sweep / "jobs" for sweep in sweeps), elsewhere]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / ".sweeps" / "link").symlink_to(elsewhere)
    subprocess.run([sys.executable, "-c", KILLED, *map(str, folders)], check=False)
    with replacing(sweeps[0] / "sweep.json") as living:
        living.write_text("{}")
        Records(sweeps[1]).clean()
        kept = [*elsewhere.glob(".*.tmp")]
        assert len(kept) == 1
        assert {*tmp_path.rglob(".*.tmp")} == {living, *kept}
    Records(elsewhere / "sweep").clean()
    assert [*elsewhere.glob(".*.tmp")] == kept


def test_a_writer_deletes_the_temporaries_of_killed_writers_of_the_same_file(tmp_path: Path):
    """Such as `diagnose`, the pictures, `-o FILE` and the cache of pixels, which hold no lock."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (tmp_path / ".a.json.mine.tmp").touch()
    with replacing(tmp_path / "b.json") as other:
        other.touch()
        assert len([*tmp_path.glob(".a.json.*.tmp")]) == 2
    with replacing(tmp_path / "a.json") as first, replacing(tmp_path / "a.json") as second:
        first.write_text("first")
        second.write_text("second")
        assert {*tmp_path.glob(".a.json.*.tmp")} == {first, second, tmp_path / ".a.json.mine.tmp"}
    assert (tmp_path / "a.json").read_text() == "first"


CROWD = """
import sys
from pathlib import Path
from vaebench.files import clean_temporaries, replacing
path = Path(sys.argv[1])
for number in range(100):
    with replacing(path) as temporary:
        temporary.write_text("whole")
    clean_temporaries(path.parent)
"""


def test_many_processes_write_and_clean_one_file(tmp_path: Path):
    words = [sys.executable, "-c", CROWD, str(tmp_path / "a.json")]
    writers = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(3)]
    assert [writer.communicate()[1] for writer in writers] == [b""] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_control_the_temporary_of_a_living_writer_stays(tmp_path: Path):
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("whole")
        clean_temporaries(tmp_path)
    assert (tmp_path / "a.json").read_text() == "whole"


# identity


def test_a_copied_run_with_an_edited_seed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = made_run(tmp_path, results=[record(-90.0)])
    facts = json.loads(run.manifest.read_text())
    run.manifest.write_text(json.dumps(facts | {"identity": identity(read(run.path))}))
    assert main(["compare", str(tmp_path)]) == 0
    assert "-90.0" in capsys.readouterr().out
    run.config.write_text(to_yaml(replace(read(run.path), seed=7)))
    with pytest.raises(UserError, match="is not the configuration of this run"):
        read_manifest(run, identity(read(run.path)))
    main(["compare", str(tmp_path)])
    out = capsys.readouterr()
    assert "is not the configuration of this run" in out.out + out.err
    assert "-90.0" not in out.out


def test_control_a_manifest_of_an_early_version_has_no_identity(tmp_path: Path):
    run = made_run(tmp_path, unknown={"of a later version": 1})
    assert read_manifest(run, "00000000")["unknown"] == {"of a later version": 1}


# one bad run

STATUS = {"state": "finished", "error": None, "pid": 1, "host": "h", "started": "2026-01-31T12:00:00+00:00"}
BAD = {
    "status.json": ["{", "[" * 100_000, "[]", json.dumps(STATUS), json.dumps(STATUS | {"updated": "yesterday"})],
    "manifest.json": [
        "3",
        '{"wall_seconds": 1e999}',
        '{"dataset": 3}',
        '{"restarts": [1]}',
        '{"parameters": {"a": "b"}}',
    ],
    "metrics.jsonl": ["[]\n", '{"step": 1}\n', '{"step": 1, "epoch": 1, "wall": 1, "a": "b"}\n', "[" * 100_000 + "\n"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_one_bad_run_ends_no_command_for_the_others(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = {"step": 1, "epoch": 1.0, "wall": 1.0, "train/bound": -3.0}
    good = made_run(tmp_path, results=[record(-90.0)], metrics=[line])
    bad = made_run(tmp_path, seed=1, results=[record(-91.0)], metrics=[line])
    (bad.path / name).write_text(text)
    page = tmp_path / "page.html"
    assert main(["list", "runs", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert "1 finished" in listed
    assert "1 damaged" in listed
    assert main(["report", str(tmp_path), "-o", str(page)]) == 0
    assert str(bad.path / name) in page.read_text()
    assert main(["show", str(bad.path), str(good.path)]) == 1
    shown = capsys.readouterr()
    assert "-90.0" in shown.out
    assert f"{name}" in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "short", "huge"])
def test_one_bad_picture_is_named_and_ends_no_report(kind: str, tmp_path: Path):
    good, bad = (made_run(tmp_path, seed=seed, results=[record(-90.0)]) for seed in (0, 1))
    picture = png(numpy.zeros((30, 30), numpy.uint8))
    for run in (good, bad):
        (run.path / "pictures").mkdir(exist_ok=True)
    (good.path / "pictures" / "sample.png").write_bytes(picture)
    path = bad.path / "pictures" / "sample.png"
    contents = {"short": picture[:20], "huge": picture + bytes(4_000_000)}
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "link":
        path.symlink_to(good.path / "pictures" / "sample.png")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "-o", str(page)]) == 0
    text = page.read_text()
    assert str(path) in text
    assert "data:image/png" in text
    assert str(good.path / "pictures") not in text  # control: the good one is not named


def test_the_record_of_a_corrupt_job_is_a_failed_job(tmp_path: Path):
    records = Records(tmp_path)
    records.write("a", JobRecord("finished", 1.0, ["x"], None, os.getpid(), "host"))
    assert records.read("a") == JobRecord("finished", 1.0, ["x"], None, os.getpid(), "host")
    for text in ["[" * 100_000, '{"status": "good"}', '{"status": "running", "pid": -1}', "{"]:
        records.path("a").write_text(text)
        found = records.read("a")
        assert found is not None
        assert found.status == "failed"
        assert str(records.path("a")) in str(found.error)
    run = made_run(tmp_path / "runs")
    run.status.write_text("[1]")
    found = skip_reason(run, read(run.path))
    assert found is not None
    assert (found.status, str(run.status) in str(found.error)) == ("failed", True)


# what a power cut loses


def recorded(folder: RunFolder, count: int) -> tuple[list[bytes], Path, Written]:
    """Record ``count`` steps; return the lines of the metrics, the event file and what the checkpoint holds."""
    with Recorder(folder) as recorder:
        for step in range(1, count + 1):
            recorder.scalars(step, step / 10, {"bound": 1.0 / step}, wall=float(step))
    (path,) = folder.path.glob("events.out.*")
    return folder.metrics.read_bytes().splitlines(keepends=True), path, recorder.written


def test_lost_metrics_are_told_at_resume(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    lines, _, written = recorded(folder, 5)
    folder.metrics.write_bytes(b"".join(lines[:3]) + lines[3][:7])
    with Recorder(folder, resume_step=5, written=written) as recorder:
        assert [notice.partition(" (")[0] for notice in recorder.notices] == [
            f"{folder.metrics} lost 2 of its 5 lines up to step 5"
        ]
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3]


def test_control_whole_metrics_are_kept_as_bytes_without_a_notice(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    lines, _, written = recorded(folder, 5)
    for expected in (written, None):
        with Recorder(folder, resume_step=5, written=expected) as recorder:
            assert recorder.notices == []
            assert recorder.written == written
    assert folder.metrics.read_bytes() == b"".join(lines)


def test_changed_metrics_are_told_at_resume_and_by_show(tmp_path: Path):
    """The digest goes on from that of the checkpoint, so the change is seen after the end of the run too."""
    run = made_run(tmp_path)
    run.metrics.unlink()
    lines, _, written = recorded(run, 5)
    changed = [*lines[:2], lines[2].replace(b"0.333", b"0.332"), *lines[3:]]
    assert changed != lines
    for content, notices in ((changed, [f"{run.metrics} was changed since the run wrote it"]), (lines, [])):
        run.metrics.write_bytes(b"".join(content))
        with Recorder(run, resume_step=5, written=written) as recorder:
            assert [notice.partition(":")[0] for notice in recorder.notices] == notices
            recorder.scalars(6, 0.6, {"bound": 2.0}, wall=6.0)
        write_json(run.manifest, {**read_manifest(run), "written": recorder.written})
        assert bool(Run.read(run).metrics_fault) == bool(notices)
        assert ("is not as the run wrote it" in run_summary(Run.read(run))) == bool(notices)


@pytest.mark.parametrize(("state", "fault"), [("finished", True), ("interrupted", False)])
def test_control_an_unfinished_run_has_further_metrics(state: State, fault: bool, tmp_path: Path):
    run = made_run(tmp_path, state=state)
    _, _, written = recorded(run, 5)
    write_json(run.manifest, {**read_manifest(run), "written": written})
    assert Run.read(run).metrics_fault == ""
    run.metrics.write_bytes(run.metrics.read_bytes() * 2)
    assert bool(Run.read(run).metrics_fault) == fault


@pytest.mark.parametrize("damage", ["emptied", "cut", "deleted"])
def test_lost_events_are_told_at_resume(damage: str, tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    _, path, written = recorded(folder, 5)
    data = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "emptied" else b"".join(records_of(data)[:-3]))  # the last is the end
    lost = 2 if damage == "cut" else 5
    with Recorder(folder, resume_step=5, written=written) as recorder:
        assert [notice.partition(": ")[0] for notice in recorder.notices] == [
            f"the event files in {folder.path} lost {lost} of their 5 points up to step 5"
        ]


def records_of(data: bytes) -> list[bytes]:
    found = []
    while data:
        end = 16 + int.from_bytes(data[:8], "little")
        found.append(data[:end])
        data = data[end:]
    return found


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("where", ["value", "length", "garbage"])
def test_a_damaged_event_is_cut_with_a_notice_and_gets_no_fresh_checksum(where: str, tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    _, path, _ = recorded(folder, 5)
    parts = records_of(path.read_bytes())
    first = next(n for n, part in enumerate(parts) if b"bound" in part)
    target = first + 2  # step 3
    position = {"value": -6, "length": 0, "garbage": 12}[where] % len(parts[target])
    broken = b"\xff" * 40 if where == "garbage" else flipped(parts[target], position)
    path.write_bytes(b"".join([*parts[:target], broken, *parts[target + 1 :]]))
    with Recorder(folder, resume_step=5) as recorder:
        assert len(recorder.notices) == 1
        assert recorder.notices[0].startswith(f"{path} is damaged at byte {sum(map(len, parts[:target]))}")
    kept = records_of(path.read_bytes())
    assert kept[1:] == parts[first:target]  # as bytes; the first is the version
    assert all(part[-4:] == masked_crc32c(part[12:-4]).to_bytes(4, "little") for part in kept)


def test_control_an_intact_event_file_is_copied_without_a_notice(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    _, path, _ = recorded(folder, 5)
    with Recorder(folder, resume_step=5) as recorder:
        assert recorder.notices == []
    assert len(records_of(path.read_bytes())) == 6


def test_a_damaged_picture_is_left_out(tmp_path: Path):
    folder = RunFolder(tmp_path).create("k: 1\n")
    with Recorder(folder) as recorder:
        recorder.image("samples", numpy.full((1, 784), 0.5), 1)
    (path,) = folder.path.glob("events.out.*")
    assert list(read_pictures(tmp_path)) == ["samples"]
    data = path.read_bytes()
    path.write_bytes(flipped(data, data.index(b"PNG") + 40))
    assert read_pictures(tmp_path) == {}
    path.unlink()
    path.mkdir()
    assert read_pictures(tmp_path) == {}
