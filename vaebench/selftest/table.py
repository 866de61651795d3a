"""How the self-test reads on a terminal, and as JSON. Free of torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vaebench.selftest.catalog import CHECKS
from vaebench.selftest.rows import Row

if TYPE_CHECKING:
    from vaebench.selftest.running import Outcome

__all__ = ["HEADER", "as_json", "failures", "lines", "summary", "title"]

WIDTH = 58
"""Of the names."""
HEADER = f"{'':2}{'check':<{WIDTH}} {'expected':>14} {'got':>14} {'tolerance':>10}  {'rule':<15} pass"


def title(check: str) -> str:
    """Return the line that opens a check."""
    return f"{check}: {CHECKS[check]}"


def lines(outcome: "Outcome") -> Iterator[str]:
    """Yield a line for each row, and one for what the check raised."""
    for row in outcome.rows:
        yield _line(row)
    if outcome.error is not None:
        yield f"  the check ended early: {outcome.error}"


def _line(row: Row) -> str:
    rule = f"not, {row.rule}" if row.control else row.rule
    name = row.name if len(row.name) <= WIDTH else row.name[: WIDTH - 1] + "…"
    numbers = f"{_number(row.expected):>14} {_number(row.got):>14} {row.tolerance:>10.1e}"
    return f"  {name:<{WIDTH}} {numbers}  {rule:<15} {'yes' if row.passed else 'NO'}"


def _number(value: float) -> str:
    """Return a number to ten decimals, or in powers of ten where that would show none of it."""
    if not math.isfinite(value) or (value and not 1e-6 <= abs(value) < 1e4):
        return f"{value:.3e}"
    return f"{value:.0f}" if value == int(value) else f"{value:.10f}"


def summary(outcomes: Sequence["Outcome"], seconds: float) -> str:
    """Return the last line: how much was checked and what failed."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    controls = sum(row.control for row in rows)
    failed = failures(outcomes)
    counts = f"{len(rows)} rows of {len(outcomes)} checks, {controls} of them wrong formulas that have to be caught"
    return f"{counts}; {'all passed' if not failed else f'{len(failed)} checks failed'}; {seconds:.0f} s"


def failures(outcomes: Sequence["Outcome"]) -> list[str]:
    """Return the names of the checks that failed."""
    return [outcome.check for outcome in outcomes if not outcome.passed]


def as_json(outcomes: Sequence["Outcome"], about: dict[str, Any]) -> dict[str, Any]:
    """Return everything as plain containers; numbers that are not finite become words."""
    return {**about, "passed": not failures(outcomes), "checks": [_check(outcome) for outcome in outcomes]}


def _check(outcome: "Outcome") -> dict[str, Any]:
    rows = [{key: _plain(value) for key, value in asdict(row).items()} | {"passed": row.passed} for row in outcome.rows]
    return {
        "name": outcome.check,
        "passed": outcome.passed,
        "seconds": round(outcome.seconds, 2),
        "error": outcome.error,
        "rows": rows,
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
