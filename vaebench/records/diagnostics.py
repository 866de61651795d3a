"""diagnostics.json: what was seen of a run's posterior and gradients, each number with its definition."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from vaebench.errors import UserError
from vaebench.records.files import write_json
from vaebench.records.folder import RunFolder
from vaebench.records.results import Direction

__all__ = ["Diagnostics", "Measure", "read_diagnostics", "write_diagnostics"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One diagnostic.

    ``value`` is None where it was refused; ``definition`` then says why. ValueError when a field cannot be right.
    """

    title: str
    """As a table shows it."""
    value: float | None
    definition: str
    """What exactly was computed, and how it can mislead."""
    direction: Direction = "estimate"
    """What the value is to the quantity: in expectation itself, a bound on it, or neither is known."""
    stderr: float | None = None
    unit: str = ""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Numbers that belong to it: a cap, a noise floor, how many are undecided."""

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, not {self.direction!r}")
        if not self.title or not self.definition:
            raise ValueError("a diagnostic needs its title and its definition")
        for name, value in {"value": self.value, "stderr": self.stderr, **self.extra}.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{self.title}: {name} must be finite, not {value}")


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """One diagnosis of one run's best weights."""

    epoch: int
    """Of the weights."""
    split: str
    protocol: str
    n_images: int
    seconds: float
    settings: Mapping[str, Any]
    """All that the numbers depend on beside the run: draws, k, inner_k, gradients, seed."""
    measures: Mapping[str, Measure]
    """By a name that does not change."""
    coordinates: Mapping[str, list[float]] = field(default_factory=dict)
    """Numbers for each latent coordinate, by name."""


def write_diagnostics(folder: RunFolder, diagnostics: Diagnostics) -> None:
    """Write diagnostics.json, in place of an earlier one."""
    write_json(folder.diagnostics, asdict(diagnostics))


def read_diagnostics(folder: RunFolder) -> Diagnostics | None:
    """Return what diagnostics.json holds, None where there is none. UserError when it is damaged."""
    try:
        stored = json.loads(folder.diagnostics.read_text(encoding="utf-8"))
        measures = {name: Measure(**entry) for name, entry in stored.pop("measures").items()}
        return Diagnostics(measures=measures, **stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"cannot read {folder.diagnostics}: {error}. Delete it and diagnose again.") from error
