"""The installed package: its public names, its types and its metadata."""

import runpy
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

import vaebench

ROOT = Path(__file__).parents[1]


SCRIPTS = [
    path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file() and b"python" in path.read_bytes()[:40]
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_finds_its_imports(script: Path):
    """pyright reads files that end in .py; these do not."""
    runpy.run_path(str(script), run_name="not main")


def test_completion_shows_the_public_names_before_they_are_imported():
    code = "import sys, vaebench; print(*dir(vaebench)); sys.exit('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {"load", "build", "evidence", "bounds"} <= set(found.stdout.split())
    assert set(found.stdout.split()) == set(vaebench.__all__)


def test_every_public_name_is_there():
    assert [name for name in dir(vaebench) if not hasattr(vaebench, name)] == []


def test_the_package_says_that_it_is_typed():
    assert files("vaebench").joinpath("py.typed").is_file()


def test_the_classifiers_are_the_supported_pythons():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {word.rpartition(" ")[2] for word in project["classifiers"] if ":: Python :: 3." in word}
    assert project["requires-python"] == ">=3.11,<3.14"
    assert named == {"3.11", "3.12", "3.13"}


def test_pre_commit_runs_the_checks_of_the_test_script():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"]: hook["entry"].removeprefix("python -m ") for repo in config["repos"] for hook in repo["hooks"]}
    script = (ROOT / "scripts/test").read_text(encoding="utf-8")
    assert set(hooks) == {"ruff", "ruff-format", "pyright"}
    for entry in hooks.values():
        command = " ".join(word for word in entry.split() if not word.startswith("--"))
        assert f'run "$python" -m {command}' in script
