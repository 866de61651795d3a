"""How many files of the package a training step and each command enter: ceilings that only fall."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "files_entered"
CEILINGS = {"step": 13, "sample": 66}
"""Aims of the design: 13 for a step of a plain VAE, 60 for ``vaebench sample``."""


@pytest.fixture(scope="module")
def entered(default_data_dir: Path) -> dict[str, list[str]]:
    """Return the names of the entered files by row of the script's table."""
    environment = os.environ | {"VAEBENCH_DATA_DIR": str(default_data_dir)}
    command = [sys.executable, str(SCRIPT), "--list", "step", "sample"]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    files: dict[str, list[str]] = {}
    for line in filter(None, lines):
        if line.startswith(" "):
            files[list(files)[-1]].append(line.strip())
        else:
            files[line.split()[0]] = []
    return files


@pytest.mark.parametrize("row", CEILINGS)
def test_no_more_files_than_the_ceiling(row: str, entered: dict[str, list[str]]):
    assert len(entered[row]) <= CEILINGS[row], f"{row} enters more files: {entered[row]}"


def test_control_the_files_of_a_step_are_found(entered: dict[str, list[str]]):
    """A count that misses files would keep any ceiling."""
    assert {"train/trainer.py", "objective.py", "bounds.py", "encoders/gaussian.py"} <= set(entered["step"])
    assert {"cli/__init__.py", "draw.py", "records/folder.py"} <= set(entered["sample"])
