"""Combine the words of a sweep to the overrides of its jobs: products of values, and ``zip(A,B)=(a,b),(c,d)``."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from vaebench.config.catalog import config_folders, described, groups
from vaebench.config.words import MOST_VALUES, for_hydra, is_zip, values_of
from vaebench.errors import UserError
from vaebench.typed import clipped

__all__ = ["jobs_of", "words_of_map"]

_ZIP = re.compile(r"zip\(([^()]*)\)=(.*)", re.DOTALL)
_EXAMPLE = "write, for example, 'zip(objective,k)=(elbo,1),(iwae,16)'"
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class _Axis:
    """Settings that change together."""

    word: str
    """As given."""
    keys: tuple[str, ...]
    rows: list[tuple[str, ...]]
    """The overrides of each job along this axis."""


def jobs_of(parser: OverridesParser, defaults: Iterable[str], words: Iterable[str]) -> list[list[str]]:
    """Return the overrides of each job: the product of all values, where each ``zip(...)`` is one factor.

    Args:
        parser: hydra's parser with its config loader, which patterns need.
        defaults: the words of ``hydra.sweeper.params``; ``words`` with the same keys replace them.
        words: the words of the command line.

    Raises:
        UserError: a word cannot be read or has no value, two words set one key, or there are too many jobs.
    """
    given = _without_replaced([_axis(parser, word) for word in words])
    keys = {key for axis in given for key in axis.keys}
    axes = [*(axis for axis in (_axis(parser, word) for word in defaults) if not keys.issuperset(axis.keys)), *given]
    _check_keys(axes)
    count = math.prod(len(axis.rows) for axis in axes)
    if count > MOST_VALUES:
        raise UserError(f"this sweep has {count:,} jobs, at most are {MOST_VALUES:,}: give fewer values")
    return [[word for row in rows for word in row] for rows in itertools.product(*(axis.rows for axis in axes))]


def words_of_map(params: Mapping[str, Any]) -> list[str]:
    """Return the words of ``hydra.sweeper.params``.

    Raises:
        UserError: a group has a map of values in place of a choice.
    """
    for key, value in params.items():
        if isinstance(value, Mapping) and key in groups(config_folders()):
            inner = next(iter(value), "KEY")
            raise UserError(f"hydra.sweeper.params.{key} is a map: write {key}.{inner} as its key, without nesting")
    return [f"{key}={'null' if value is None else value}" for key, value in params.items()]


def _without_replaced(axes: Sequence[_Axis]) -> list[_Axis]:
    """Return the axes without single values that a later single value replaces."""
    last = {axis.keys: axis for axis in axes if len(axis.rows) == 1}
    return [axis for axis in axes if len(axis.rows) > 1 or last[axis.keys] is axis]


def _check_keys(axes: Iterable[_Axis]) -> None:
    """Refuse a key that two words set: one of them would have no effect, and the sweep would be smaller."""
    setter: dict[str, str] = {}
    for axis in axes:
        for key in axis.keys:
            if key in setter:
                both = f"'{clipped(setter[key])}' and '{clipped(axis.word)}'"
                raise UserError(f"{both} both set {key}: remove one, or write the values in one word")
            setter[key] = axis.word


def _axis(parser: OverridesParser, word: str) -> _Axis:
    if is_zip(word):
        return _zipped(parser, word)
    (override,) = parser.parse_overrides([word])
    return _Axis(word, (_key(override),), [(each,) for each in _each_value(override)])


def _zipped(parser: OverridesParser, word: str) -> _Axis:
    """Return the axis of ``zip(A,B)=(a,b),(c,d)``; several values inside a row are combined."""
    match = _ZIP.fullmatch(word)
    keys = [key.strip() for key in match[1].split(",")] if match else []
    if match is None or len(keys) < 2 or not all(keys):
        raise UserError(f"cannot read '{clipped(word)}': it needs two or more keys and their values: {_EXAMPLE}")
    name = f"zip({','.join(keys)})"
    if len(set(keys)) < len(keys):
        raise UserError(f"{name} names a key twice: remove one")
    rows: list[tuple[str, ...]] = []
    for row in _split(match[2], word):
        if not (row.startswith("(") and row.endswith(")")):
            raise UserError(f"{name}: '{clipped(row)}' is not in parentheses: {_EXAMPLE}")
        values = _split(row[1:-1], word)
        if len(values) != len(keys):
            raise UserError(f"{name} needs {len(keys)} values in each (...), got {len(values)} in '{clipped(row)}'")
        pairs = [for_hydra(f"{key}={value}") for key, value in zip(keys, values, strict=True)]
        rows += itertools.product(*map(_each_value, parser.parse_overrides(pairs)))
    overrides = parser.parse_overrides([f"{key}=0" for key in keys])
    if any(override.is_hydra_override() for override in overrides):
        raise UserError(f"{name}: the settings of hydra are those of the whole sweep: set them outside of zip(...)")
    return _Axis(word, tuple(_key(override) for override in overrides), rows)


def _split(text: str, word: str) -> list[str]:
    """Split at the commas that are in no brackets and no quotes. An apostrophe within a word is no quote."""
    parts, open_brackets, quote, escaped, before = [""], [], "", False, ","
    for letter in text:
        ends = False
        if quote:
            quote = "" if letter == quote and not escaped else quote
        elif letter in "'\"" and before in ",:([{":
            quote = letter
        elif letter in _CLOSING:
            open_brackets.append(_CLOSING[letter])
        elif letter in _CLOSING.values():
            if not open_brackets or open_brackets.pop() != letter:
                raise UserError(f"cannot read '{clipped(word)}': '{letter}' closes no bracket; {_EXAMPLE}")
        elif letter == "," and not open_brackets:
            parts.append("")
            ends = True
        escaped = letter == "\\" and not escaped
        before = before if letter.isspace() else letter
        parts[-1] += "" if ends else letter
    if quote or open_brackets:
        missing = quote or open_brackets[-1]
        raise UserError(f"cannot read '{clipped(word)}': {missing} is missing; {_EXAMPLE}")
    return [part.strip() for part in parts]


def _key(override: Override) -> str:
    return override.key_or_group if override.package is None else f"{override.key_or_group}@{override.package}"


def _each_value(override: Override) -> list[str]:
    """Return ``KEY=VALUE`` for each value of an override."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    pattern = override.value()
    values = _matching(override, pattern) if isinstance(pattern, Glob) else values_of(override)
    return [f"{key}={value}" for value in values]


def _matching(override: Override, pattern: Glob) -> list[str]:
    """Return the choices that a pattern matches, also those in subfolders.

    Raises:
        UserError: it matches none.
    """
    group, word, loader = override.key_or_group, clipped(str(override.input_line)), override.config_loader
    choices = {listed.choice for listed in described(group, config_folders())}
    choices |= set(loader.get_group_options(group)) if loader is not None else set()
    if not choices:
        raise UserError(f"'{word}': {clipped(group)} is not a group, so it has no choices: write {clipped(group)}=A,B")
    found = pattern.filter(sorted(choices))
    if not found:
        raise UserError(f"'{word}' matches no choice of {group}; choices: {', '.join(sorted(choices))}")
    return found
