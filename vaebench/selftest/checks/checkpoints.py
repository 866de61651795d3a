"""A checkpoint loads bitwise, and a corrupt one is detected."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from vaebench.errors import UserError
from vaebench.records.checkpoint import Checkpoints
from vaebench.selftest.rows import CheckRow, distance, exact
from vaebench.selftest.running import Bench

__all__ = ["check"]


def check(bench: Bench) -> Iterator[CheckRow]:
    """Compare loaded with saved numbers; a refusal counts as 1."""
    with bench.device:
        weights = torch.randn(50, 7)
    checkpoints = Checkpoints(bench.folder)
    checkpoints.save({"identity": "a", "weights": weights - 1})
    checkpoints.save({"identity": "a", "weights": weights})
    loaded = checkpoints.load(identity="a", map_location=bench.device).state["weights"]
    yield exact("max |loaded - saved|", 0, distance(loaded, weights), 0)
    yield exact("refused: from another config", 1, _refused(lambda: checkpoints.load(identity="b")), 0)
    damage(bench.folder / "last.pt")
    older = checkpoints.load(map_location=bench.device)
    yield exact("one byte altered: detected", 1, float(older.notice is not None), 0)
    yield exact("one byte altered: |loaded - previous|", 0, distance(older.state["weights"], weights - 1), 0)
    damage(bench.folder / "last.previous.pt")
    yield exact("refused: both copies altered", 1, _refused(checkpoints.load), 0)
    path = checkpoints.save({"weights": weights}, "best")
    path.write_bytes(path.read_bytes()[:-100])
    yield exact("refused: truncated", 1, _refused(lambda: checkpoints.load("best")), 0)


def damage(path: Path) -> None:
    """Alter one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _refused(load: Callable[[], object]) -> float:
    try:
        load()
    except UserError:
        return 1.0
    return 0.0
