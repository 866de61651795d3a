"""scripts/reliability: its short form finds no fault, and it notices the faults that it is there to find."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reliability.content import differences
from reliability.damage import KINDS, damages
from reliability.processes import forked
from reliability.table import BEGIN, END, Part, table, written
from reliability.write_points import Fault, WritePoints

SCRIPTS = Path(__file__).parents[1] / "scripts"
DOCS = Path(__file__).parents[1] / "docs" / "reliability.md"


def run_script(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=SCRIPTS)


@pytest.fixture(scope="module")
def short_form(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The counts of the short form; tests/test_command_lines.py has its command lines."""
    path = tmp_path_factory.mktemp("counts") / "counts.json"
    parts = ["train", "evaluate", "sweep", "tune", "damage"]
    ended = run_script(str(SCRIPTS / "reliability"), *parts, "--quick", "-o", str(path))
    assert path.exists(), ended.stderr
    return json.loads(path.read_text())


@pytest.mark.slow
def test_the_short_form_finds_no_fault(short_form: list[dict[str, Any]]):
    assert [line for part in short_form for lines in part["faults"].values() for line in lines] == []


@pytest.mark.slow
def test_the_short_form_has_every_part(short_form: list[dict[str, Any]]):
    names = {part["name"] for part in short_form}
    assert {"`train`", "`evaluate`", "`sweep`", "`tune`", "finished runs", "an interrupted run", "a search"} <= names
    assert all(part["cases"] > 0 for part in short_form)


# A writer that writes over the old file instead of replacing it whole.
CONTROL = """
import os, sys
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
import contextlib
from pathlib import Path
import torch
torch.set_num_threads(1)
from reliability.stops import SCENARIOS, stopped_everywhere
from vaebench.records import files

@contextlib.contextmanager
def over_the_old_file(path, *, keep_old_as=None):
    yield path

def patch():
    files.replacing = over_the_old_file

work = Path(sys.argv[1])
os.environ["XDG_CACHE_HOME"] = str(work / "cache")
(work / "cases").mkdir()
counts = stopped_everywhere(SCENARIOS["evaluate"], work / "cases", work / "data", kinds=["torn"], patch=patch)
print("faults:", sum(len(lines) for lines in counts.faults.values()))
"""


@pytest.mark.slow
def test_a_file_that_is_not_replaced_whole_is_noticed(tmp_path: Path):
    ended = run_script("-c", CONTROL, str(tmp_path))
    assert int(ended.stdout.split("faults:")[1]) > 0, ended.stderr


def changed(folder: Path, fault: Fault | None) -> Any:
    """Write two files in ``folder``, in a forked process with a fault, and return how it ended."""

    def work() -> list[Any]:
        points = WritePoints(folder, fault)
        points.install()
        (folder / "a").write_bytes(b"0123456789")
        descriptor = os.open(folder / "b", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"abcdef")
        os.rename(folder / "b", folder / "c")
        points.end()
        return points.log

    return forked(work, 10)


def test_every_change_of_a_file_is_counted(tmp_path: Path):
    assert changed(tmp_path, None).answer == [
        ["create", "a", 0],
        ["write", "a", 10],
        ["create", "b", 0],
        ["write", "b", 6],
        ["rename", "c", 0],
    ]


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        (Fault("kill", 1), {"a": b""}),
        (Fault("torn", 1), {"a": b"01234"}),
        (Fault("kill", 2), {"a": b"0123456789"}),
        (Fault("torn", 3), {"a": b"0123456789", "b": b"abc"}),
        (Fault("kill", 5), {"a": b"0123456789", "c": b"abcdef"}),
    ],
)
def test_a_kill_leaves_the_changes_before_it(tmp_path: Path, fault: Fault, left: dict[str, bytes]):
    assert changed(tmp_path, fault).code == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == left


def test_a_full_disk_refuses_every_later_write(tmp_path: Path):
    ended = changed(tmp_path, Fault("full", 1))
    assert "No space left on device" in ended.output
    assert (tmp_path / "a").read_bytes() == b"01234"


def test_a_process_that_does_not_end_is_ended():
    assert forked(lambda: signal.pause(), 0.1).timed_out


def test_a_traceback_is_found_with_its_place():
    ended = forked(lambda: json.loads("["), 10)
    assert "JSONDecodeError" in (ended.traceback or "")


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "config.yaml"])
def test_a_file_is_damaged_in_every_way(tmp_path: Path, name: str):
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / name).write_text('{"mean": -80.5, "epoch": 3}\n')
    (tmp_path / "other").write_text('{"mean": -90.5, "epoch": 3}\n')
    made = list(damages(tmp_path / "run", name, tmp_path / "other", tmp_path / "outside", seed=0, variants=3))
    assert {one.kind for one in made} == set(KINDS)
    contents = set()
    for one in made:
        target = tmp_path / "copy" / name
        target.parent.mkdir()
        target.write_bytes((tmp_path / "run" / name).read_bytes())
        one.apply(target)
        if one.kind not in ("missing", "folder", "link"):
            contents.add(target.read_bytes())
        shutil.rmtree(target.parent)
    assert (tmp_path / "run" / name).read_bytes() not in contents


def test_differences_name_the_file():
    assert differences({"a": [1, 2], "b": 1}, {"a": [1], "c": 1}) == [
        "a: 2 entries, got 1; missing [2], new []",
        "b is missing",
        "c is new",
    ]


def test_the_page_names_every_kind_of_damage():
    rows = [line.split("|")[1] for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    assert set(KINDS) <= {word.strip() for row in rows for word in row.split(",")}


def test_the_table_counts_every_fault_once():
    part = Part("`train`", "2 changes", 4, 1.0, {"doubled": ["x"], "endless": ["y", "z"]})
    assert table([part]).splitlines()[-1] == "| all | | 4 | 0 | 1 | 0 | 0 | 0 | 2 |"
    page = written(f"above {BEGIN} old {END} below", [part])
    assert (page[:5], page[-5:]) == ("above", "below")
    assert "old" not in page
