"""scripts/gpu_check: a part of its dry run, and parts that hang, fail or find a fault."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import gpu_check.__main__ as gpu_check
import pytest
from gpu_check.parts import PARTS

CHILD = """
import sys, time
with open(sys.argv[1].removeprefix("--rows="), "a") as rows:
    print('{"what": "first", "found": "1", "ok": true}', file=rows)
print("the last words", flush=True)
"""


def ran(code: str, logs: Path, limit: float = 20) -> gpu_check.Part:
    return gpu_check.run_part("steps", [sys.executable, "-c", CHILD + code], limit, logs, logs)


def test_every_part_has_a_limit_and_all_end_within_eight_minutes():
    assert list(PARTS) == list(gpu_check.LIMITS)
    assert gpu_check.WHOLE + 20 <= 8 * 60


def test_a_part_of_the_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The shortest part; the others run the same way."""
    target = tmp_path / "check.json"
    code = gpu_check.main(["memory", "--device=cpu", "--quick", f"--output={target}"])
    found: dict[str, Any] = json.loads(target.read_text())
    (part,) = found["parts"]
    assert (code, part["outcome"], part["rows"][0]["what"]) == (0, "ok", "free memory")
    assert found["machine"]["device"].startswith("cpu")
    assert "| | free memory | " in capsys.readouterr().out


def test_a_part_that_hangs_costs_its_own_time_and_keeps_its_rows(tmp_path: Path):
    began = time.monotonic()
    part = ran("time.sleep(60)", tmp_path, limit=2)
    assert time.monotonic() - began < 20
    assert (part.outcome, [row["what"] for row in part.rows], part.passed) == ("time limit of 2 s", ["first"], False)


@pytest.mark.parametrize(
    ("code", "outcome", "passed"),
    [("", "ok", True), ("sys.exit(3)", "failed (3)", False)],
)
def test_a_part_that_fails_shows_its_last_line(code: str, outcome: str, passed: bool, tmp_path: Path):
    part = ran(code, tmp_path)
    assert (part.outcome, part.passed) == (outcome, passed)
    assert part.error == ("" if passed else "the last words")


def test_a_fault_in_a_row_fails_the_part():
    part = gpu_check.Part("steps", "ok", rows=[{"what": "w", "found": "3 waits", "ok": False}])
    assert not part.passed
    assert "| | w | 3 waits | FAILED |" in gpu_check.table({}, [part])


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        gpu_check.main(["speed"])
    assert error.value.code == 2
    assert "unknown PART speed; choose from steps, graphs" in capsys.readouterr().err
