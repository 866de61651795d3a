"""Runs the checks, one after another."""

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
    """The result of one check."""

    check: str
    rows: tuple[Row, ...]
    seconds: float
    error: str | None = None
    """The exception that ended the check, if any."""

    @property
    def passed(self) -> bool:
        """Whether the check completed and every row passed."""
        return self.error is None and all(row.passed for row in self.rows)


def run(checks: Sequence[str], device: torch.device, seed: int = 0) -> Iterator[Outcome | str]:
    """Yield each check's name before it runs, then its outcome. An exception ends only the check that raised it.

    The default dtype within a check is float64. The global random state does not change.

    Args:
        checks: names in :data:`vaebench.selftest.CHECKS`.
        device: the device of the checks.
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
            # Every exception is a finding, and the other checks must still run.
            error = f"{type(raised).__name__}: {raised}"
    return Outcome(name, tuple(rows), time.monotonic() - started, error)
