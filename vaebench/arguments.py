"""Checks of arguments. Each raises ValueError with a message that names the argument, its range and its value.

A class of the maths knows its own argument names and no configuration key. ``vaebench.experiment.build`` adds the group
of the key, so that ``steps must be >= 0, got -1`` becomes ``encoder.steps must be >= 0, got -1``.
"""

from collections.abc import Iterable
from typing import Any

from vaebench.errors import did_you_mean

__all__ = ["above", "at_least", "between", "one_of", "widths"]


def at_least(least: float, /, **arguments: float) -> None:
    """Raise ValueError if an argument is less than ``least``."""
    for name, value in arguments.items():
        if not value >= least:
            raise ValueError(f"{name} must be >= {least}, got {value}")


def above(bound: float, /, **arguments: float) -> None:
    """Raise ValueError unless every argument is greater than ``bound``."""
    for name, value in arguments.items():
        if not value > bound:
            raise ValueError(f"{name} must be > {bound}, got {value}")


def between(low: float, high: float, /, **arguments: float) -> None:
    """Raise ValueError unless every argument is greater than ``low`` and less than ``high``."""
    for name, value in arguments.items():
        if not low < value < high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def one_of(choices: Iterable[str | int], /, **arguments: Any) -> None:
    """Raise ValueError if an argument is not one of ``choices``."""
    known = list(choices)
    words = [str(choice) for choice in known]
    for name, value in arguments.items():
        if value not in known:
            hint = did_you_mean(str(value), words)
            raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}{hint}")


def widths(**arguments: Any) -> None:
    """Raise ValueError if an argument is not a list of one or more widths of layers."""
    for name, value in arguments.items():
        if not isinstance(value, list | tuple) or not value or not all(type(v) is int and v > 0 for v in value):
            raise ValueError(f"{name} must be a list of widths >= 1 such as [100, 100], got {value!r}")
