"""The words that the commands on many runs share: folders, filters, and what to compare."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vaebench.cli.flags import parse, take
from vaebench.errors import UserError

if TYPE_CHECKING:
    from vaebench.report import Comparison

__all__ = ["DEFAULT_FOLDER", "Selection", "comparison_options", "nothing_to_compare", "selection"]

DEFAULT_FOLDER = "outputs"
_REASONS_SHOWN = 5


class Selection(NamedTuple):
    """The runs that a command is about, and its flags."""

    paths: list[str]
    """Run folders, or folders of runs."""
    filters: list[str]
    flags: dict[str, str]


def selection(words: Sequence[str], allowed: Mapping[str, str], help_text: str) -> Selection:
    """Return the folders, filters and flags in ``words``; for ``--help`` print ``help_text`` and exit."""
    filters, rest = take(words, "--filter", 1)
    parsed = parse(rest, allowed, help_text)
    return Selection(parsed.rest or [DEFAULT_FOLDER], [condition for (condition,) in filters], parsed.flags)


def comparison_options(chosen: Selection) -> dict[str, Any]:
    """Return the keyword arguments of `compare` that the flags set."""
    return {
        "filters": chosen.filters,
        "quantity": chosen.flags.get("--quantity", "log p(x)"),
        "unfinished": "--unfinished" in chosen.flags,
        "baseline": chosen.flags.get("--baseline"),
    }


def nothing_to_compare(comparison: "Comparison") -> UserError:
    """Return the error that lists why no run is in a table."""
    reasons = [f"{folder}: {reason}" for folder, reason in comparison.left_out[:_REASONS_SHOWN]]
    if len(comparison.left_out) > len(reasons):
        reasons.append(f"and {len(comparison.left_out) - len(reasons)} more")
    if comparison.filtered:
        reasons.append(f"{comparison.filtered} runs do not meet the filters")
    reasons += comparison.notes
    return UserError("no results to compare:\n  " + "\n  ".join(reasons))
