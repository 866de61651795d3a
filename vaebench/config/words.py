"""Parse the words that a user types: KEY=VALUE, and hydra's grammar for several values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vaebench.config.explain import explain
from vaebench.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

__all__ = ["key_of", "key_value", "override", "values_of"]


def key_value(word: str) -> tuple[str, str | None]:
    """Return the two sides of ``KEY=VALUE``; the value of a word without ``=`` is None."""
    key, equals, value = word.partition("=")
    return key, value if equals else None


def key_of(word: str) -> str:
    """Return the key of ``KEY=VALUE`` or ``+KEY=VALUE``."""
    return key_value(word)[0].lstrip("+")


def override(word: str, command: str) -> "Override":
    """Parse one setting of ``vaebench <command>`` by hydra's grammar.

    Raises:
        UserError: hydra cannot read the word.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (parsed,) = OverridesParser.create().parse_overrides([word])
    except HydraException as error:
        raise explain(error, command, [word]) from error
    return parsed


def values_of(parsed: "Override") -> Sequence[str]:
    """Return the values that a setting lists, for example the 1 and 16 of ``k=1,16``.

    Raises:
        UserError: the setting gives an interval or a pattern.
    """
    word = str(parsed.input_line)
    if not parsed.is_discrete_sweep() or "glob(" in word:
        raise UserError(f"'{word}' does not list its values: write {parsed.key_or_group}=A,B")
    return list(parsed.sweep_string_iterator())
