"""The settings of `vaebench diagnose`; free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import yaml

from vaebench.config.check import build
from vaebench.config.schema import Count, Device, Natural, Rule, Seed, Several, Word
from vaebench.errors import UserError, did_you_mean

__all__ = ["Diagnosis"]

Halves = Annotated[int, Rule("an even number from 4 on: two halves", lambda value: value >= 4 and value % 2 == 0)]
Gradients = Annotated[int, Rule("0 (none) or 4 and more", lambda value: value == 0 or value >= 4)]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What to look at, and how closely."""

    split: Literal["train", "validation", "test"] = "test"
    images: Several | None = 500
    """At random; None for all."""
    draws: Halves = 100
    """Of q(z|x) for each image, in two independent halves."""
    k: Count | None = None
    """Weights whose effective number is estimated, and that a gradient is made of; None: as in training."""
    inner_k: Natural | None = None
    """None: as in training."""
    gradients: Gradients = 100
    seed: Seed = 0
    batch: Count | None = None
    """Images at a time; changes time and memory, never a result."""
    device: Device = "auto"
    data_dir: Word | None = None
    """None: the run's."""
    threads: Count | None = None
    progress: bool = True

    @classmethod
    def of(cls, words: Sequence[str]) -> "Diagnosis":
        """Read ``["images=200", "seed=1"]``; UserError for an unknown key or a value out of range."""
        known, values = [f.name for f in fields(cls)], {}
        for word in words:
            key, equals, text = word.partition("=")
            if key not in known or not equals:
                raise UserError(f"unknown key {key}{did_you_mean(key, known)}; keys: {', '.join(known)}")
            values[key] = _value(key, text)
        return build(cls, values)


def _value(key: str, text: str) -> Any:
    """Return what yaml makes of one word, as hydra's settings are read."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{key} must be one value, not {text!r}") from None
