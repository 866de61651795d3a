"""The outcomes of the self-test as text and as JSON, without torch."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vaebench.records.text import counted, table
from vaebench.selftest.catalog import CHECKS
from vaebench.selftest.rows import Row

if TYPE_CHECKING:
    from vaebench.selftest.running import Outcome

__all__ = ["as_json", "as_text", "failures", "summary", "title"]

HEAD = ("", "expected", "got", "tolerance", "passed")


def title(check: str) -> str:
    """Return the line before the rows of a check."""
    return f"{check}: {CHECKS[check]}"


def as_text(outcome: "Outcome") -> str:
    """Return the table of a check; its last line is the exception that ended the check, if any."""
    rows: list[Sequence[str] | str] = [_cells(row) for row in outcome.rows]
    if outcome.error is not None:
        rows.append(f"the check ended early: {outcome.error}")
    styles = {"NO": "bold red", "MISSED": "bold red"}
    return table(HEAD, rows, wrap="", keep=("passed",), styles=styles, hint="-o FILE.json")


def _cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row; a control that passes was ``caught``."""
    yes, no = ("caught", "MISSED") if row.control else ("yes", "NO")
    return row.name, f"{row.expected:.6g}", f"{row.got:.6g}", f"{row.tolerance:.0e}", yes if row.passed else no


def summary(outcomes: Sequence["Outcome"], seconds: float) -> str:
    """Return the last line: the numbers of checks, rows, controls and failures."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    controls, failed = sum(row.control for row in rows), len(failures(outcomes))
    counts = f"{counted(len(outcomes), 'check')}, {counted(len(rows), 'row')}, {counted(controls, 'control')}"
    verdict = f"{counted(failed, 'check')} failed" if failed else "all passed"
    return f"{counts}; {verdict}; {seconds:.0f} s"


def failures(outcomes: Sequence["Outcome"]) -> list[str]:
    """Return the names of the checks that failed."""
    return [outcome.check for outcome in outcomes if not outcome.passed]


def as_json(outcomes: Sequence["Outcome"], about: dict[str, Any]) -> dict[str, Any]:
    """Return all outcomes as plain containers; NaN and inf become strings."""
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
