"""The installed package: its public names, its types and its metadata."""

import runpy
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import vaebench

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "docs" / "constraints.txt"


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


def pins() -> dict[str, Version]:
    """Return the versions of docs/constraints.txt, by name."""
    lines = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}


def unpinned(lines: list[str]) -> list[str]:
    """Return the requirements without a version in docs/constraints.txt that they admit."""
    wanted = [Requirement(line) for line in lines]
    found = pins()
    return [
        str(each)
        for each in wanted
        if each.name != "vaebench" and (each.name not in found or found[each.name] not in each.specifier)
    ]


def test_the_lock_has_a_version_of_every_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    assert unpinned(project["dependencies"] + extras) == []
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda")) or name == "triton"]


def test_control_a_requirement_that_the_lock_does_not_meet_is_found():
    assert unpinned(["torch>=99", "no-such-package", "numpy>=1.26"]) == ["torch>=99", "no-such-package"]


def test_the_page_on_installing_names_the_versions_of_the_lock():
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    assert f"torch=={pins()['torch']} torchvision=={pins()['torchvision']}\n" in page


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_workflow_runs_the_scripts():
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["test"]["steps"][-1]["run"] == "scripts/test"
    assert jobs["short"]["steps"][-1]["run"] == "scripts/test_python .venv"
    assert jobs["short"]["strategy"]["matrix"]["python-version"] == ["3.12", "3.13"]


def test_pre_commit_runs_the_checks_of_the_test_script():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"]: hook["entry"].removeprefix("python -m ") for repo in config["repos"] for hook in repo["hooks"]}
    script = (ROOT / "scripts/test").read_text(encoding="utf-8")
    assert set(hooks) == {"ruff", "ruff-format", "pyright"}
    for entry in hooks.values():
        command = " ".join(word for word in entry.split() if not word.startswith("--"))
        assert f'run "$python" -m {command}' in script
