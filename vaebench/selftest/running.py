"""Running checks one after another."""

import importlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vaebench.runtime import forked_randomness
from vaebench.selftest.bench import Bench, default_dtype
from vaebench.selftest.rows import Row

__all__ = ["Outcome", "run"]


@dataclass(frozen=True)
class Outcome:
    """What became of one check."""

    check: str
    rows: tuple[Row, ...]
    seconds: float
    error: str | None = None
    """What the check raised, if it did not come to its end."""

    @property
    def passed(self) -> bool:
        """Whether the check came to its end and every row passed."""
        return self.error is None and all(row.passed for row in self.rows)


def run(checks: Sequence[str], device: torch.device, seed: int = 0) -> Iterator[Outcome | str]:
    """Yield each check's name as it starts, and its outcome; what a check raises ends that check alone.

    Float64 is the default within a check. No global random state is changed.

    Args:
        checks: names in :data:`vaebench.selftest.CHECKS`.
        device: where.
        seed: of the Monte Carlo checks.
    """
    for name in checks:
        yield name
        yield _outcome(name, device, seed)


def _outcome(name: str, device: torch.device, seed: int) -> Outcome:
    rows: list[Row] = []
    error = None
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, default_dtype(torch.float64), forked_randomness(device, seed):
        try:
            check = importlib.import_module(f"vaebench.selftest.checks.{name}").check
            rows.extend(check(Bench(device, Path(folder), seed)))
        except Exception as raised:
            # Whatever it is, it is what the self-test is for; the other checks may still say more.
            error = f"{type(raised).__name__}: {raised}"
    return Outcome(name, tuple(rows), time.monotonic() - started, error)
