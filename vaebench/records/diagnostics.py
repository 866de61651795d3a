"""diagnostics.json: diagnostics of a run's posterior and gradients, each number with its definition."""

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vaebench.direction import Direction, checked_direction
from vaebench.errors import UserError
from vaebench.records.files import write_json
from vaebench.records.folder import RunFolder
from vaebench.records.provenance import Provenance, checksum, unaltered
from vaebench.records.stored import read_json
from vaebench.records.text import counted, table, terminal_width, with_error, with_sign

__all__ = ["Diagnostic", "Diagnostics", "format_table", "read_diagnostics", "write_diagnostics"]


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """One number about a run's posterior or gradients, with its definition.

    Raises:
        ValueError: a field is invalid.
    """

    title: str
    """The name that tables show."""
    value: float | None
    """None if the number does not exist for this run; ``definition`` then gives the reason."""
    definition: str
    """The definition of the number, and its limits."""
    direction: Direction = Direction.ESTIMATE
    """How the expectation of the value relates to the quantity."""
    stderr: float | None = None
    """Standard error over images."""
    unit: str = ""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Numbers that help to read the value: a cap, a noise floor, the count of undecided coordinates."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", checked_direction(self.direction))
        if not self.title or not self.definition:
            raise ValueError("a diagnostic needs a title and a definition")
        for name, value in {"value": self.value, "stderr": self.stderr, **self.extra}.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{self.title}: {name} must be finite, got {value}")


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """All diagnostics of the best weights of one run: the content of diagnostics.json."""

    epoch: int
    """The epoch of the weights."""
    split: str
    protocol: str
    n_images: int
    seconds: float
    settings: Mapping[str, Any]
    """The settings that change the numbers: draws, k, inner_k, gradients, seed."""
    measures: Mapping[str, Diagnostic]
    """The diagnostics by name; docs/diagnostics.md lists the names."""
    coordinates: Mapping[str, list[float]] = field(default_factory=dict)
    """Lists with one number for each latent coordinate, by name."""
    provenance: Provenance | None = None
    """What made the numbers; None in files of early versions."""


def write_diagnostics(folder: RunFolder, diagnostics: Diagnostics) -> None:
    """Write diagnostics.json; replace an existing one."""
    entry = json.loads(json.dumps(asdict(diagnostics)))
    write_json(folder.diagnostics, entry | {"checksum": checksum(entry)})


def read_diagnostics(folder: RunFolder) -> Diagnostics | None:
    """Return the content of diagnostics.json, None if there is no such file. UserError if the file is corrupt."""
    advice = "Delete it and run `vaebench diagnose` again."
    try:
        stored = read_json(folder.diagnostics, dict[str, Any], advice)
        if not unaltered(stored):
            raise UserError(f"cannot read {folder.diagnostics}: it was altered after it was written. {advice}")
        return read_json(folder.diagnostics, Diagnostics, advice)
    except FileNotFoundError:
        return None


_SHORTEST_DEFINITION = 40  # characters in a line; in a narrower column a definition is hard to read
_COORDINATES = {
    "variance_of_mean": "Var_x(E_q[z_d|x])",
    "mean_variance": "E_x Var_q(z_d|x)",
    "kl": "E_x KL(q(z_d|x) || p(z_d)), nats",
    "kl_gaussian_approximation": "E_x KL of the Gaussian with the moments of q(z_d|x) to p(z_d), nats",
}


def format_table(diagnostics: Diagnostics, width: int | None = None) -> str:
    """Return the diagnostics as text; each definition is beside its number, or below it on a narrow terminal."""
    width = width or terminal_width()
    settings = ", ".join(f"{name}={value}" for name, value in diagnostics.settings.items())
    images = counted(diagnostics.n_images, "image")
    about = f"epoch {diagnostics.epoch}, {diagnostics.split}, {diagnostics.protocol}, {images}, {settings}"
    head, rows = ["diagnostic", "value", "definition"], []
    shown = [(one.title, _number(one), one.definition) for one in diagnostics.measures.values()]
    used = sum(max((len(row[column]) for row in shown), default=0) + 2 for column in (0, 1))
    if width - used >= _SHORTEST_DEFINITION:
        rows, wrapped = shown, "definition"
    else:
        head, wrapped = head[:2], None
        for *cells, definition in shown:
            rows += [cells, definition]
    lines = [*textwrap.wrap(about, width), table(head, rows, wrap=wrapped, width=width)]
    return "\n".join(lines + _coordinate_lines(diagnostics, width))


def _number(one: Diagnostic) -> str:
    if one.value is None:
        return "-"
    counts = one.unit.startswith("of ")
    unit = f" {one.unit}" if counts else ""
    if counts and one.stderr is None:
        return f"{one.value:.0f}{unit}"
    places = 3 if abs(one.value) < 1 else 2
    value = f"{one.value:.{places}f}" if one.stderr is None else with_error(one.value, one.stderr, places=places)
    return with_sign(one.direction, value + unit)


def _coordinate_lines(diagnostics: Diagnostics, width: int) -> list[str]:
    """Return the numbers of each latent coordinate; the most active coordinate is first."""
    variances = diagnostics.coordinates["variance_of_mean"]
    order = sorted(range(len(variances)), key=lambda d: -variances[d])
    lines = ["by latent coordinate, the most active first"]
    for name, definition in _COORDINATES.items():
        if name in diagnostics.coordinates:
            numbers = " ".join(f"{diagnostics.coordinates[name][d]:.2f}" for d in order)
            lines.append(f"  {definition}:")
            lines += textwrap.wrap(numbers, width, initial_indent=" " * 4, subsequent_indent=" " * 4)
    return lines
