"""The outcomes of the self-test as text and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vaebench.records.text import counted, table
from vaebench.selftest.catalog import CHECKS
from vaebench.selftest.rows import CheckRow
from vaebench.selftest.running import Outcome

__all__ = ["as_json", "as_text", "failures", "summary", "title"]

HEAD = ("", "expected", "got", "tolerance", "passed")


def title(check: str) -> str:
    """Return the line before the rows of a check."""
    return f"{check}: {CHECKS[check]}"


def as_text(outcome: Outcome) -> str:
    """Return the table of a check; its last line is the exception that ended the check, if any."""
    rows: list[Sequence[str] | str] = [_cells(row) for row in outcome.rows]
    rows += outcome.notes
    if outcome.error is not None:
        rows.append(f"the check ended early: {outcome.error}")
    styles = {"NO": "bold red", "MISSED": "bold red"}
    return table(HEAD, rows, wrap="", keep=("passed",), styles=styles, hint="-o FILE.json")


def _cells(row: CheckRow) -> tuple[str, ...]:
    """Return the cells of a row; a control that passes was ``caught``."""
    yes, no = ("caught", "MISSED") if row.control else ("yes", "NO")
    side = "" if row.side == "=" else f"{row.side} "
    return row.name, f"{side}{row.expected:.6g}", f"{row.got:.6g}", f"{row.tolerance:.0e}", yes if row.passed else no


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    """Return the last line: the numbers of checks, rows, controls and failures."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    controls, failed = sum(row.control for row in rows), len(failures(outcomes))
    counts = f"{counted(len(outcomes), 'check')}, {counted(len(rows), 'row')}, {counted(controls, 'control')}"
    verdict = f"{counted(failed, 'check')} failed" if failed else "all passed"
    return f"{counts}; {verdict}; {seconds:.0f} s"


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the names of the checks that failed."""
    return [outcome.check for outcome in outcomes if not outcome.passed]


def as_json(outcomes: Sequence[Outcome], about: dict[str, Any]) -> dict[str, Any]:
    """Return all outcomes as plain containers; NaN and inf become strings."""
    checks = [
        {
            "name": outcome.check,
            "passed": outcome.passed,
            "seconds": round(outcome.seconds, 2),
            "error": outcome.error,
            "rows": [_plain(row) for row in outcome.rows],
        }
        for outcome in outcomes
    ]
    return {**about, "passed": not failures(outcomes), "checks": checks}


def _plain(row: CheckRow) -> dict[str, Any]:
    values = asdict(row) | {"passed": row.passed}
    return {key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
