"""The direction of imports: a module imports from its own level and those above it, and never round in a circle."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "vaebench"

LEVELS = {
    "errors": 0,
    "direction": 0,
    "bounds": 0,
    "noise": 0,
    "distributions": 0,
    "nets": 0,
    "flows": 0,
    "hmc": 0,
    "datasets": 0,
    "replicas": 0,
    "compiler": 0,
    "runtime": 0,
    "priors": 1,
    "model": 1,
    "encoders": 1,
    "gradients": 2,
    "objective": 2,
    "evaluation": 2,
    "training": 3,
    "records": 3,
    "report": 4,
    "config": 4,
    "experiment": 4,
    "selftest": 4,
    "benchmark": 4,
    "cli": 4,
    "__main__": 4,
}
"""The room of each first name under ``vaebench.``; a new one is entered here."""

FORBIDDEN = [("training", "encoders")]
"""Pairs that the levels would allow: a trainer knows updates, and no encoder."""

Source = tuple[str, str]
"""A module's full name and its text."""


def sources() -> list[Source]:
    """Return every module of the package but its root."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "vaebench":
            found.append((name, path.read_text(encoding="utf-8")))
    return found


def imports(name: str, text: str) -> Iterator[str]:
    """Yield the full names of what a module imports from the package, wherever in it the import stands."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("vaebench."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import; write vaebench.…"
            if node.module == "vaebench":
                yield from (f"vaebench.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("vaebench."):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    return name.split(".")[1]


def violations(modules: list[Source], forbidden: list[tuple[str, str]] = FORBIDDEN) -> list[str]:
    """Return a sentence for each import that goes the wrong way."""
    found = []
    for name, text in modules:
        for target in imports(name, text):
            source_room, target_room = room(name), room(target)
            if target_room == "__version__":
                continue
            strangers = {source_room, target_room} - LEVELS.keys()
            if strangers:
                found.append(f"{strangers} have no level in {Path(__file__).name}")
            elif LEVELS[target_room] > LEVELS[source_room]:
                found.append(f"{name} imports {target}, which lies below it")
            elif (source_room, target_room) in forbidden:
                found.append(f"{name} imports {target}, which {source_room}/ must not know")
    return found


def circle(modules: list[Source]) -> list[str]:
    """Return rooms that import one another in a circle; empty if there are none."""
    edges: dict[str, set[str]] = {}
    for name, text in modules:
        targets = {room(target) for target in imports(name, text)}
        edges.setdefault(room(name), set()).update(targets - {room(name)})
    return _circle(edges)


def _circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Take away rooms that import nothing of what is left, until none such is left."""
    left = set(edges)
    while True:
        free = {name for name in left if not edges[name] & left}
        if not free:
            return sorted(left)
        left -= free


def test_every_module_has_a_level():
    assert {room(name) for name, _ in sources()} <= LEVELS.keys()


def test_imports_go_upwards():
    assert violations(sources()) == []


def test_no_two_rooms_import_each_other():
    assert circle(sources()) == []


def test_no_module_has_a_name_that_says_nothing():
    nothing = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}
    assert [name for name, _ in sources() if set(name.split(".")) & nothing] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vaebench.bounds", "from vaebench.objective import evidence"),
        ("vaebench.nets.heads", "import vaebench.encoders.base"),
        ("vaebench.encoders.new", "def f():\n    from vaebench import gradients"),
        ("vaebench.training.trainer", "from vaebench.encoders import Encoder"),
        ("vaebench.evaluation.new", "from vaebench.training.trainer import Trainer"),
        ("vaebench.model", "import torch\nfrom vaebench.stranger import x"),
    ],
)
def test_control_a_wrong_import_is_found(name: str, text: str):
    assert len(violations([(name, text)])) == 1


def test_control_a_circle_is_found():
    modules = [
        ("vaebench.noise", "from vaebench.bounds import elbo"),
        ("vaebench.bounds", "from vaebench import noise"),
        ("vaebench.nets.heads", "from vaebench import noise"),
    ]
    # Also those that depend on the circle are left.
    assert circle(modules) == ["bounds", "nets", "noise"]
    assert circle(modules[1:]) == []
