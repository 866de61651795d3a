"""Filters: conditions on the settings of a run, such as ``encoder=iwhvi``, ``k>=5``, ``encoder=gaussian,hvm``."""

import contextlib
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import yaml

from vaebench.errors import UserError, did_you_mean
from vaebench.report.runs import Run, Scalar

__all__ = ["Condition", "all_hold", "check_known", "matching_runs", "meets", "parse"]

_WORDS = re.compile(r"(?P<key>[A-Za-z_][\w.]*)\s*(?P<sign>!=|>=|<=|=|>|<)\s*(?P<value>.+)", re.DOTALL)
_ORDER: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_OF_A_RUN: dict[str, Callable[[Run], Scalar]] = {
    "name": lambda run: run.config.name,
    "seed": lambda run: run.seed,
    "state": lambda run: run.state,
}
"""What conditions may use besides settings."""


@dataclass(frozen=True)
class Condition:
    """``key sign value``; ``=`` and ``!=`` allow several values."""

    key: str
    sign: str
    values: tuple[Scalar, ...]

    def holds(self, settings: Mapping[str, Scalar]) -> bool:
        """Whether the condition holds; a setting that a run does not have is null, for which no inequality holds."""
        value = settings.get(self.key)
        if self.sign in ("=", "!="):
            return any(_same(value, wanted) for wanted in self.values) == (self.sign == "=")
        wanted = self.values[0]
        if not isinstance(value, int | float) or not isinstance(wanted, int | float):
            return False
        return _ORDER[self.sign](value, wanted)

    def __str__(self) -> str:
        return f"{self.key}{self.sign}{','.join('null' if v is None else str(v) for v in self.values)}"


def parse(text: str) -> list[Condition]:
    """Return the conditions in ``text``, separated by commas: ``encoder=gaussian,hvm,k>1`` has two.

    Raises:
        UserError: the text has another form.
    """
    conditions: list[Condition] = []
    for piece in _pieces(text):
        if match := _WORDS.fullmatch(piece.strip()):
            key = match["key"].removesuffix(".name")
            conditions.append(Condition(key, match["sign"], (_value(match["value"], key),)))
        elif conditions and conditions[-1].sign in ("=", "!=") and piece.strip():
            last = conditions.pop()
            conditions.append(Condition(last.key, last.sign, (*last.values, _value(piece, last.key))))
        else:
            raise UserError(f"'{text}' is not a condition: write encoder=iwhvi, encoder=gaussian,hvm or 'k>=5'")
    for condition in conditions:
        if condition.sign in _ORDER and not isinstance(condition.values[0], int | float):
            raise UserError(f"{condition}: {condition.sign} needs a number")
    return conditions


def all_hold(conditions: Iterable[Condition], settings: Mapping[str, Scalar]) -> bool:
    """Whether every condition holds."""
    return all(condition.holds(settings) for condition in conditions)


def matching_runs(runs: Sequence[Run], texts: Iterable[str]) -> list[Run]:
    """Return the runs for which every condition holds; conditions may use settings, ``name``, ``seed`` and ``state``.

    Raises:
        UserError: a text is not a condition, or names a setting that no run has.
    """
    conditions = [condition for text in texts for condition in parse(text)]
    if runs and conditions:
        known = {*_OF_A_RUN, *(key for run in runs for key in run.settings)}
        check_known((condition.key for condition in conditions), known)
    return [run for run in runs if meets(run, conditions)]


def meets(run: Run, conditions: Iterable[Condition]) -> bool:
    """Whether every condition holds for the run."""
    return all_hold(conditions, {**run.settings, **{key: value(run) for key, value in _OF_A_RUN.items()}})


def check_known(keys: Iterable[str], known: Iterable[str]) -> None:
    """Raise UserError for a key that is not known."""
    names = set(known)
    for key in keys:
        if key not in names:
            raise UserError(f"no run has a setting '{key}'{did_you_mean(key, names)}; `vaebench show RUN` lists them")


def _same(value: Scalar, wanted: Scalar) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    # Lists are compared as text, with or without spaces.
    if isinstance(value, str) and isinstance(wanted, str):
        return value.replace(" ", "") == wanted.replace(" ", "")
    return value == wanted


def _value(text: str, key: str) -> Scalar:
    """Return a word as a config would hold it: numbers, true, false and null are not text, except as a run's name."""
    if key == "name":
        return None if text.strip() == "null" else text.strip().strip("'\"")
    try:
        value = yaml.safe_load(text.strip())
    except yaml.YAMLError:
        return text.strip()
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)  # YAML 1.1 reads 1e-3 as text
        return value
    return value if isinstance(value, int | float | None) else text.strip()


def _pieces(text: str) -> Sequence[str]:
    """Split at the commas outside brackets."""
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces
