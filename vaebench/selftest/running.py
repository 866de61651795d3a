"""Run the checks, one after another."""

import importlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from vaebench.runtime import forked_randomness
from vaebench.selftest.rows import CheckRow

__all__ = ["Bench", "Outcome", "default_dtype", "outcome_of", "run"]


@dataclass(frozen=True)
class Bench:
    """The argument of every check. New tensors within ``with bench.device:`` are on the device."""

    device: torch.device
    folder: Path
    """An empty folder, deleted after the check."""
    seed: int = 0
    """For functions with a seed argument. Torch's generators are seeded with it before the check."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set the default dtype within the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class Outcome:
    """The result of one check."""

    check: str
    rows: tuple[CheckRow, ...]
    seconds: float
    error: str | None = None
    """The exception that ended the check, if any."""
    notes: tuple[str, ...] = ()
    """Sentences about what was not compared, and why."""

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
        module = importlib.import_module(f"vaebench.selftest.checks.{name}")
        with tempfile.TemporaryDirectory() as folder:
            yield outcome_of(name, partial(module.check, Bench(device, Path(folder), seed)), device, seed)


def outcome_of(name: str, check: Callable[[], Iterable[CheckRow | str]], device: torch.device, seed: int) -> Outcome:
    """Return the outcome of a check, which yields rows and notes; its default dtype and random state are its own."""
    found: list[CheckRow | str] = []
    error, started = None, time.monotonic()
    with default_dtype(torch.float64), forked_randomness(device, seed):
        try:
            found.extend(check())
        except Exception as raised:
            # Every exception is a finding, and the other checks must still run.
            error = f"{type(raised).__name__}: {raised}"
    rows = tuple(row for row in found if isinstance(row, CheckRow))
    notes = tuple(note for note in found if isinstance(note, str))
    return Outcome(name, rows, time.monotonic() - started, error, notes)
