"""The direction of imports, file by file: no circle, no import from a lower room, maths that knows tensors alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "vaebench"

ROOMS = [
    {"errors", "arguments", "callable_package", "direction", "files", "plugins", "signals", "typed", "__version__"},
    {"bounds", "noise", "batch", "progress", "runtime", "isolation", "compiler", "config", "datasets"},
    {"distributions", "hmc", "records", "gradients"},
    {"nets", "model", "report"},
    {"flows", "likelihoods"},
    {"priors"},
    {"encoders"},
    {"images"},
    {"objective"},
    {"estimators"},
    {"registry"},
    {"experiment"},
    {"evaluate", "draw", "encode"},
    {"train"},
    {"diagnose", "tune", "selftest", "testing"},
    {"cli", "notebook", "plot"},
    {"__main__"},
]
"""First names under ``vaebench.`` by level: a file imports from its own level and those above it in this list."""

MATHS = {"bounds", "batch", "noise", "distributions", "hmc", "nets", "flows", "model", "priors", "encoders"}
MATHS |= {"gradients", "likelihoods", "objective", "estimators", "arguments", "images"}
"""Tensors in, tensors out."""
NOT_OF_MATHS = {"config", "records", "train", "evaluate", "cli", "experiment", "registry", "datasets", "report"}

Source = tuple[str, str]
"""A module's full name and its text."""


def sources() -> list[Source]:
    """Return every module of the package except its root."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "vaebench":
            found.append((name, path.read_text(encoding="utf-8")))
    return found


def imports(name: str, text: str) -> Iterator[str]:
    """Yield the full names that a module imports from the package or from torch.distributed, at any depth."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import; write vaebench.…"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_package(name: str, text: str) -> Iterator[str]:
    return (target for target in imports(name, text) if target.startswith("vaebench."))


def room(name: str) -> str:
    return name.split(".")[1]


def level(name: str) -> int:
    """Return the index in ``ROOMS`` of the room of a module."""
    found = [index for index, rooms in enumerate(ROOMS) if room(name) in rooms]
    assert found, f"{room(name)} has no level in {Path(__file__).name}: add it to ROOMS"
    return found[0]


def violations(modules: list[Source]) -> list[str]:
    """Return a sentence for each import of a lower room."""
    return [
        f"{name} imports {target}, which lies below it"
        for name, text in modules
        for target in of_package(name, text)
        if level(target) > level(name)
    ]


def circles(modules: list[Source]) -> list[str]:
    """Return files that import one another in a circle, or depend on such files; empty if there are none.

    Imports for type checkers alone count too: a reader follows them as well.
    """
    names = {name for name, _ in modules}
    edges: dict[str, set[str]] = {}
    for name, text in modules:
        targets = of_package(name, text)
        # ``from vaebench.a import b`` names the file a.b, or a name in the file a.
        files = {target if target in names else target.rpartition(".")[0] for target in targets}
        edges[name] = {target for target in files if target in names and target != name}
    left = set(edges)
    while free := {name for name in left if not edges[name] & left}:
        left -= free
    return sorted(left)


def impure(modules: list[Source]) -> list[str]:
    """Return a sentence for each import by which the maths would know of runs, files, processes or commands."""
    return [
        f"{name} imports {target}"
        for name, text in modules
        if room(name) in MATHS
        for target in imports(name, text)
        if target.startswith("torch.distributed.")
        or target == "torch.distributed"
        or (target.startswith("vaebench.") and room(target) in NOT_OF_MATHS)
    ]


def test_every_module_has_a_level():
    for name, _ in sources():
        level(name)


def test_imports_go_upwards():
    assert violations(sources()) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles(sources()) == []


def test_maths_knows_tensors_alone():
    assert impure(sources()) == []


def test_no_module_has_a_name_that_says_nothing():
    nothing = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}
    assert [name for name, _ in sources() if set(name.split(".")) & nothing] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vaebench.bounds", "from vaebench.objective import evidence"),
        ("vaebench.nets.dense", "import vaebench.encoders.base"),
        ("vaebench.flows.new", "def f():\n    from vaebench import priors"),
        ("vaebench.evaluate.new", "from vaebench.train.trainer import Trainer"),
        ("vaebench.priors", "from vaebench.encoders.base import Encoder"),
    ],
)
def test_control_a_wrong_import_is_found(name: str, text: str):
    assert len(violations([(name, text)])) == 1


def test_control_a_room_without_a_level_is_found():
    with pytest.raises(AssertionError, match="stranger has no level"):
        violations([("vaebench.model", "import torch\nfrom vaebench.stranger import x")])


@pytest.mark.parametrize(
    "text",
    ["import torch.distributed as dist", "from torch.distributed import all_reduce", "from vaebench import config"],
)
def test_control_impure_maths_is_found(text: str):
    assert len(impure([("vaebench.estimators.new", text)])) == 1
    assert impure([("vaebench.train.new", text)]) == []


def test_control_a_circle_of_files_is_found():
    modules = [
        ("vaebench.noise", "from vaebench.bounds import elbo"),
        ("vaebench.bounds", "def f():\n    from vaebench import noise"),
        ("vaebench.nets.dense", "from vaebench import noise"),
    ]
    # A file that depends on the circle is returned too.
    assert circles(modules) == ["vaebench.bounds", "vaebench.nets.dense", "vaebench.noise"]
    assert circles(modules[1:]) == []


def test_control_a_circle_within_a_room_is_found():
    modules = [
        ("vaebench.cli.a", "from vaebench.cli.b import f"),
        ("vaebench.cli.b", "from vaebench.cli import a"),
        ("vaebench.cli.c", ""),
    ]
    assert circles(modules) == ["vaebench.cli.a", "vaebench.cli.b"]
