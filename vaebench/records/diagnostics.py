"""diagnostics.json: what was seen of a run's posterior and gradients, each number with its definition."""

import json
import math
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vaebench.direction import Direction, checked_direction
from vaebench.errors import UserError
from vaebench.records.files import write_json
from vaebench.records.folder import RunFolder
from vaebench.records.text import SIGNS, with_error

__all__ = ["Diagnostics", "Measure", "format_table", "read_diagnostics", "write_diagnostics"]


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
    direction: Direction = Direction.ESTIMATE
    """What the value is to the quantity: in expectation itself, a bound on it, or neither is known."""
    stderr: float | None = None
    unit: str = ""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Numbers that belong to it: a cap, a noise floor, how many are undecided."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", checked_direction(self.direction))
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


def format_table(found: Diagnostics, width: int | None = None) -> str:
    """Return the diagnostics as text: each number, and beside it its definition."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    settings = ", ".join(f"{name}={value}" for name, value in found.settings.items())
    lines = [f"epoch {found.epoch}, {found.split}, {found.protocol}, {found.n_images} images, {settings}"]
    for measure in found.measures.values():
        left = f"  {measure.title:<29} {_number(measure):<22} "
        beside = textwrap.wrap(measure.definition, max(40, width - len(left)))
        lines += [left + beside[0], *(" " * len(left) + line for line in beside[1:])]
    return "\n".join(lines + _coordinate_lines(found, width))


def _number(measure: Measure) -> str:
    if measure.value is None:
        return "-"
    if measure.unit.startswith("of ") and measure.stderr is None:
        return f"   {measure.value:.0f} {measure.unit}"
    places = 3 if abs(measure.value) < 1 else 2
    plain = f"{measure.value:.{places}f}"
    shown = plain if measure.stderr is None else with_error(measure.value, measure.stderr, places=places)
    unit = f" {measure.unit}" if measure.unit.startswith("of ") else ""
    return f"{SIGNS[measure.direction]:<3}{shown}{unit}"


def _coordinate_lines(found: Diagnostics, width: int) -> list[str]:
    """Return the numbers of each coordinate, the most active first."""
    variances = found.coordinates["variance_of_mean"]
    order = sorted(range(len(variances)), key=lambda d: -variances[d])
    names = {
        "variance_of_mean": "Var_x(E_q[z_d|x])",
        "mean_variance": "E_x Var_q(z_d|x)",
        "kl": "E_x KL(q(z_d|x) || p(z_d)), nats",
        "kl_gaussian_approximation": "the same KL by moments (Gaussian approximation), nats",
    }
    lines = ["  by coordinate, the most active first"]
    for name, words in names.items():
        if name in found.coordinates:
            numbers = " ".join(f"{found.coordinates[name][d]:.2f}" for d in order)
            lines.append(f"    {words}:")
            lines += textwrap.wrap(numbers, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines
