"""Separate the words of ``vaebench tune`` into fixed settings and search spaces."""

from collections.abc import Sequence
from dataclasses import dataclass

from vaebench.config.words import for_hydra, override, values_of
from vaebench.errors import UserError

__all__ = ["Space", "split_spaces"]


@dataclass(frozen=True)
class Space:
    """The values to try for one setting: a list of choices, or an interval."""

    key: str
    word: str
    """As typed."""
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """Whether to try integers only."""

    def example(self) -> str:
        """Return the setting with one of its values, to check it before the search starts."""
        low = int(self.low) if self.whole else self.low
        return f"{self.key}={self.choices[0] if self.choices else low}"


def split_spaces(words: Sequence[str]) -> tuple[list[str], list[Space]]:
    """Return (fixed settings, search spaces).

    Raises:
        UserError: a word cannot be read, or an interval is empty.
    """
    fixed, spaces = [], []
    for word in words:
        parsed = override(for_hydra(word), "train")
        if not parsed.is_sweep_override():
            fixed.append(word)
        elif parsed.is_interval_sweep():
            spaces.append(_interval(parsed.key_or_group, word, parsed.value()))
        else:
            spaces.append(Space(parsed.key_or_group, word, tuple(values_of(parsed))))
    return fixed, spaces


def _interval(key: str, word: str, interval: object) -> Space:
    low, high = getattr(interval, "start", None), getattr(interval, "end", None)
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
        raise UserError(f"'{word}': an interval must be interval(LOW,HIGH) with LOW < HIGH")
    log, whole = "log" in getattr(interval, "tags", ()), isinstance(low, int) and isinstance(high, int)
    if log and low <= 0:
        raise UserError(f"'{word}': a logarithmic interval must start above 0, got {low}")
    return Space(key, word, low=low, high=high, log=log, whole=whole)
