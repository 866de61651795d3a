"""What `vaebench tune` searches: words in hydra's grammar, told apart into fixed settings and spaces."""

from collections.abc import Sequence
from dataclasses import dataclass

from vaebench.config.explain import explain
from vaebench.errors import UserError

__all__ = ["Space", "split_paths"]


@dataclass(frozen=True)
class Space:
    """The values that one setting may take: choices, or an interval."""

    key: str
    word: str
    """As typed."""
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """Whether the interval is one of whole numbers."""

    def example(self) -> str:
        """Return the setting with one of its values, for a look before anything starts."""
        low = int(self.low) if self.whole else self.low
        return f"{self.key}={self.choices[0] if self.choices else low}"


def split_paths(words: Sequence[str]) -> tuple[list[str], list[Space]]:
    """Return the settings that are fixed, and the spaces.

    Raises:
        UserError: a word that cannot be read, or an interval without room.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    fixed, spaces = [], []
    for word in words:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([word])
        except HydraException as error:
            raise explain(error, "train", [word]) from error
        if not parsed.is_sweep_override():
            fixed.append(word)
        elif parsed.is_interval_sweep():
            spaces.append(_interval(parsed.key_or_group, word, parsed.value()))
        elif "glob(" in word:
            raise UserError(f"'{word}' does not say which values: write them out, {parsed.key_or_group}=A,B")
        else:
            spaces.append(Space(parsed.key_or_group, word, tuple(parsed.sweep_string_iterator())))
    return fixed, spaces


def _interval(key: str, word: str, interval: object) -> Space:
    low, high = getattr(interval, "start", None), getattr(interval, "end", None)
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
        raise UserError(f"'{word}': an interval is interval(LOW,HIGH) with LOW below HIGH")
    log, whole = "log" in getattr(interval, "tags", ()), isinstance(low, int) and isinstance(high, int)
    if log and low <= 0:
        raise UserError(f"'{word}': a logarithmic interval begins above 0")
    return Space(key, word, low=low, high=high, log=log, whole=whole)
