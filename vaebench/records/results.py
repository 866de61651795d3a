"""results.json: estimates, each with its direction, its protocol and its standard error."""

import json
import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any

from vaebench.direction import Direction, Measure, checked_direction, checked_measure
from vaebench.errors import UserError
from vaebench.records.files import exclusive, write_json
from vaebench.records.folder import RunFolder
from vaebench.records.provenance import Provenance, checksum, unaltered
from vaebench.records.stored import read_json
from vaebench.records.text import counted, decimals, with_error, with_sign
from vaebench.typed import Checker, printable, shown

__all__ = [
    "ResultRecord",
    "append_result",
    "bits_per_dimension",
    "conditions",
    "format_line",
    "read_results",
    "results_locked",
    "to_json",
]

ADVICE = "Repair it, or move it away and run `vaebench evaluate` again."
PRECISIONS = ("", "float32", "bf16")

_OLD_PROPOSALS = {"GaussianEncoder": "moments", "AdversarialEncoder": "own"}
"""Class names that earlier versions wrote as the proposal of an adversarial encoder."""

WITHOUT_WEIGHTS = ("ELBO of q", "ELBO of the best Gaussian", "ELBO of q*", "amortisation gap", "bound gap")
"""The quantities of the estimator ``gaps`` that use no importance weights. Earlier versions wrote a k beside them."""

_KEY = {"key": True}
"""Marks a field that is part of the key: it defines the quantity or its estimator."""


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """One estimate of the mean of log p(x), or of another quantity, over the images of a split, in nats per image.

    The fields are the keys of results.json, in this order. Optional fields that are empty are not written.

    Raises:
        ValueError: a field is invalid.
    """

    estimator: str = field(metadata=_KEY)
    k: int | None = field(metadata=_KEY | {"least": 1})
    """Importance samples; None if the estimator has none."""
    inner_k: int | None = field(metadata=_KEY | {"least": 0})
    """Inner samples of a hierarchical encoder; None if the estimator has none."""
    split: str = field(metadata=_KEY)
    protocol: str = field(metadata=_KEY)
    """Data set, binarization and subset, for example ``mnist/dynamic-v1``."""
    mean: float
    """Over images, of the mean over repeats."""
    stderr: float = field(metadata={"least": 0})
    """Standard error of ``mean`` over images. The one over repeats is ``repeat_stderr`` in ``extra``."""
    n_images: int = field(metadata=_KEY | {"least": 1})
    direction: Direction = field(metadata=_KEY)
    epoch: int = field(metadata=_KEY | {"least": 0})
    """The epoch of the weights."""
    seconds: float = field(metadata={"least": 0})
    repeats: int = field(default=1, metadata=_KEY | {"least": 1})
    """Independent repetitions, averaged for each image."""
    quantity: str = field(default="log p(x)", metadata=_KEY)
    measure: Measure = field(default=Measure.PROBABILITY, metadata=_KEY)
    """What p(x) is. Numbers of different measures are never compared."""
    precision: str = field(default="", metadata=_KEY)
    """Of the networks: float32 or bf16. Empty in records of early versions: the precision of the training."""
    settings: Mapping[str, Any] = field(default_factory=dict, metadata=_KEY)
    """Other settings that define the estimator, for example the number of temperatures."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Diagnostics of the estimate."""
    note: str = ""
    """One line about the diagnostics."""
    per_image: str | None = None
    """The file in the run folder, and the array in it, with the value of each image; see `read_per_image`."""
    log_q: Direction | None = None
    """The direction of the encoder that made the weighted draws; None if the number does not depend on log q(z|x), and
    in records of early versions."""
    provenance: Provenance | None = None
    """What made the number; None in records of early versions."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", checked_direction(self.direction))
        object.__setattr__(self, "measure", checked_measure(self.measure))
        if self.log_q is not None:
            object.__setattr__(self, "log_q", checked_direction(self.log_q))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS[1:])}, not {self.precision!r}")
        for name, default, least in _limits():
            value: Any = getattr(self, name)
            if value == "" and default != "":
                raise ValueError(f"a result needs its {name}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
            if least is not None and isinstance(value, int | float) and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")

    def key(self) -> str:
        """Return the fields that define the quantity and its estimator, as text."""
        named = [each.name for each in fields(self) if each.metadata.get("key")]
        return json.dumps({name: getattr(self, name) for name in named}, sort_keys=True)


def results_locked(folder: RunFolder) -> AbstractContextManager[None]:
    """Hold the lock of results.json. Busy if another process holds it for longer than 30 s."""
    return exclusive(
        folder.path / ".results.lock",
        wait=30.0,
        busy=lambda holder: f"{folder.results} is locked by {holder}: try again.",
    )


@cache
def _limits() -> list[tuple[str, Any, int | None]]:
    """Return the name, the default and the least value of each field; cached, because thousands of results are read."""
    return [(each.name, each.default, each.metadata.get("least")) for each in fields(ResultRecord)]


def append_result(folder: RunFolder, record: ResultRecord) -> None:
    """Add ``record`` to results.json. Several processes may do so at once.

    It replaces a record with the same key, also if the old record has no precision; it does not replace a record of
    other code.
    """
    with results_locked(folder):
        # The others stay as they are stored: what was altered must not get a fresh checksum.
        others = [entry for entry, other in _stored(folder) if not _replaces(record, other)]
        write_json(folder.results, [*others, to_json(record)])


def _replaces(new: ResultRecord, old: ResultRecord) -> bool:
    same = old.key() in {new.key(), replace(new, precision="").key()}
    return same and len({record.provenance.code for record in (new, old) if record.provenance}) < 2


def read_results(folder: RunFolder) -> list[ResultRecord]:
    """Return the records of results.json, [] if there is no such file. UserError if the file is corrupt."""
    return [record for _, record in _stored(folder)]


def _stored(folder: RunFolder) -> list[tuple[dict[str, Any], ResultRecord]]:
    """Return each record of results.json, as it is stored and as it is read."""
    try:
        entries = read_json(folder.results, list[dict[str, Any]], ADVICE)
    except FileNotFoundError:
        return []
    try:
        return [(entry, _from_json(entry)) for entry in entries]
    except UserError as fault:
        raise UserError(f"cannot read {folder.results}: {fault}. {ADVICE}") from fault


def _from_json(entry: dict[str, Any]) -> ResultRecord:
    if not unaltered(entry):
        raise UserError(f"the result with the mean {shown(entry.get('mean'))} was altered after it was written")
    settings = entry.get("settings")
    if isinstance(settings, dict) and settings.get("proposal") in [*_OLD_PROPOSALS]:
        entry = entry | {"settings": settings | {"proposal": _OLD_PROPOSALS[settings["proposal"]]}}
    if entry.get("estimator") == "gaps" and entry.get("quantity") in WITHOUT_WEIGHTS:
        entry = entry | {"k": None}
    if "measure" not in entry and isinstance(protocol := entry.get("protocol"), str):
        entry = entry | {"measure": Measure.of_early_version(protocol).value}
    return Checker().build(ResultRecord, entry)


def format_line(record: ResultRecord) -> str:
    """Return the record as one line.

    For example ``test log p(x) >= -86.41 +- 0.07 (DIWHVI, k=5000, inner_k=100, mnist/dynamic-v1, 10000 images)``; with
    repeats ``... >= -86.41 +- 0.07 (images) +- 0.01 (10 repeats) (...)``.
    """
    over_repeats = record.extra.get("repeat_stderr")
    places = decimals(record.stderr, over_repeats)
    number = with_error(record.mean, record.stderr, places=places)
    if over_repeats is not None:
        number += f" (images) +- {over_repeats:.{places}f} ({counted(record.repeats, 'repeat')})"
    quantity = record.measure.named(record.quantity)
    return f"{record.split} {quantity} {with_sign(record.direction, number)} ({_conditions(record)})"


def bits_per_dimension(mean: float, stderr: float, dimensions: int) -> dict[str, float]:
    """Return -log2 p(x) for each pixel and channel, and its standard error, for nats per image."""
    scale = dimensions * math.log(2)
    return {"bits_per_dimension": -mean / scale, "bits_per_dimension_stderr": stderr / scale}


def _bits(record: ResultRecord) -> list[str]:
    """Return the bits per dimension in words. A lower bound on log p(x) is an upper bound on them."""
    bits, error = (record.extra.get(name) for name in ("bits_per_dimension", "bits_per_dimension_stderr"))
    if bits is None or error is None:
        return []
    number = with_error(bits, error, places=max(3, decimals(error)))
    return [f"{with_sign(record.direction.negated, number)} bits per dimension"]


def _conditions(record: ResultRecord) -> str:
    words = ["estimate"] if record.direction is Direction.ESTIMATE else []
    words += [*_bits(record), record.estimator, *conditions(record), counted(record.n_images, "image")]
    repeats_shown = record.repeats == 1 or "repeat_stderr" in record.extra
    words += [] if repeats_shown else [counted(record.repeats, "repeat")]
    return printable(", ".join(words)).replace("\n", " ")


def conditions(record: ResultRecord, *, without: Collection[str] = ()) -> list[str]:
    """Return the settings of the estimator, except those named in ``without``, and the protocol."""
    numbers = {"k": record.k, "inner_k": record.inner_k, **record.settings}
    if record.precision == "bf16":
        numbers["precision"] = record.precision
    words = [f"{name}={value}" for name, value in numbers.items() if value is not None and name not in without]
    return [*words, record.protocol]


def to_json(record: ResultRecord) -> dict[str, Any]:
    """Return the fields in their order, without the optional ones that are empty."""
    values = json.loads(json.dumps(asdict(record)))
    required = {each.name for each in fields(record) if each.default is each.default_factory is MISSING}
    entry = {name: value for name, value in values.items() if value or name in required}
    return entry | {"checksum": checksum(entry)}
