"""Parse the words that a user types: KEY=VALUE, and hydra's grammar for several values."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vaebench.config.explain import explained
from vaebench.errors import UserError
from vaebench.typed import clipped

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

__all__ = [
    "MOST_VALUES",
    "all_as_typed",
    "all_for_hydra",
    "as_typed",
    "for_hydra",
    "is_text",
    "is_zip",
    "key_of",
    "key_value",
    "override",
    "values_of",
]

TEXTS = ("data_dir", "output_dir", "name", "dataset.path")
"""Settings whose value is a path or a name: hydra's syntax does not apply to it."""

_ZIPS = "hydra.sweeper.zips"
"""The list with the words ``zip(A,B)=(a,b),...``, which hydra's grammar cannot read."""

MOST_VALUES = 10_000
"""The most values of a setting, and the most jobs of a sweep: each job is composed before the first one starts."""

# Plain words to hydra: it takes no letter of them for syntax, and none of them for a number.
_PLAIN = re.compile(r"(?!(true|false|null|inf|nan)$)[A-Za-z/][A-Za-z0-9_./-]*", re.IGNORECASE)
_QUOTED = re.compile(r"""(['"]).*\1""", re.DOTALL)
_SEVERAL = re.compile(r"(choice|shuffle|sort|tag)\(.*\)", re.DOTALL)


def key_value(word: str) -> tuple[str, str | None]:
    """Return the two sides of ``KEY=VALUE``; the value of a word without ``=`` is None."""
    key, equals, value = word.partition("=")
    return key, value if equals else None


def key_of(word: str) -> str:
    """Return the key of ``KEY=VALUE`` or ``+KEY=VALUE``."""
    return key_value(word)[0].lstrip("+")


def is_text(key: str, value: str) -> bool:
    """Whether the value of ``key`` is a text as typed: not null, not in quotes, and not choice(A,B) of a sweep."""
    return key in TEXTS and not (value == "null" or _QUOTED.fullmatch(value) or _SEVERAL.fullmatch(value))


def for_hydra(word: str) -> str:
    """Return a setting with its value quoted if it is a text that hydra would read in another way."""
    key, value = key_value(word)
    if value is None or not is_text(key.lstrip("+"), value) or _PLAIN.fullmatch(value):
        return word
    from hydra.core.override_parser.types import Quote, QuotedString

    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def is_zip(word: str) -> bool:
    """Whether a word gives values to several keys of a sweep: ``zip(objective,k)=(elbo,1),(iwae,16)``."""
    return word.startswith("zip(")


def all_for_hydra(words: Iterable[str]) -> list[str]:
    """Return the words of a command as `for_hydra` does; flags stay as they are, ``zip(...)`` becomes a list."""
    words = list(words)
    zips = [word for word in words if is_zip(word)]
    others = [word if word.startswith("-") else for_hydra(word) for word in words if not is_zip(word)]
    if not zips:
        return others
    from hydra.core.override_parser.types import Quote, QuotedString

    return [*others, f"{_ZIPS}=[{','.join(QuotedString(each, Quote.single).with_quotes() for each in zips)}]"]


def all_as_typed(words: Iterable[str]) -> list[str]:
    """Return the words that `all_for_hydra` changed as they were typed; ``zip(...)`` comes last."""
    words = list(words)
    zips: list[str] = []
    for word in words:
        if key_value(word)[0] == _ZIPS:
            value = override(word, "train").value()
            zips += map(str, value) if isinstance(value, list) else []
    return [*(as_typed(word) for word in words if key_value(word)[0] != _ZIPS), *zips]


def as_typed(word: str) -> str:
    """Return the setting that `for_hydra` quoted; other settings are returned as they are."""
    key, value = key_value(word)
    if value is None or key.lstrip("+") not in TEXTS or not _QUOTED.fullmatch(value):
        return word
    text = f"{key}={override(word, 'train').value()}"
    return text if for_hydra(text) == word else word


def override(word: str, command: str) -> "Override":
    """Parse one setting of ``vaebench <command>`` by hydra's grammar.

    Raises:
        UserError: hydra cannot read the word.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with explained(command, [word]):
        (parsed,) = OverridesParser.create().parse_overrides([word])
    return parsed


def values_of(parsed: "Override") -> Sequence[str]:
    """Return the values that a setting lists, for example the 1 and 16 of ``k=1,16``.

    Raises:
        UserError: the setting gives an interval, a pattern, no value, or more than `MOST_VALUES` values.
    """
    word = str(parsed.input_line)
    if not parsed.is_discrete_sweep() or "glob(" in word:
        raise UserError(f"'{clipped(word)}' does not list its values: write {parsed.key_or_group}=A,B")
    with explained("train", [word]):
        values = list(itertools.islice(parsed.sweep_string_iterator(), MOST_VALUES + 1))
    if len(values) > MOST_VALUES:
        raise UserError(f"'{clipped(word)}' has more than {MOST_VALUES} values: give fewer")
    if not values:
        raise UserError(f"'{clipped(word)}' has no value: give at least one")
    return values
