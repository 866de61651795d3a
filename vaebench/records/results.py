"""results.json: estimates, each with its direction, its protocol and its standard error."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from vaebench.direction import Direction, checked_direction
from vaebench.records.files import exclusive, reading, write_json
from vaebench.records.folder import RunFolder
from vaebench.records.text import counted, decimals, with_error, with_sign
from vaebench.typed import printable

__all__ = ["ResultRecord", "append_result", "format_line", "read_results"]

PRECISIONS = ("", "float32", "bf16")

_OLD_PROPOSALS = {"GaussianEncoder": "moments", "AdversarialEncoder": "own"}
"""Class names that earlier versions wrote as the proposal of an adversarial encoder."""

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", checked_direction(self.direction))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS[1:])}, not {self.precision!r}")
        for each in fields(self):
            value, least = getattr(self, each.name), each.metadata.get("least")
            if value == "" and each.default != "":
                raise ValueError(f"a result needs its {each.name}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{each.name} must be finite, got {value}")
            if least is not None and value is not None and value < least:
                raise ValueError(f"{each.name} must be >= {least}, got {value}")

    def key(self) -> str:
        """Return the fields that define the quantity and its estimator, as text."""
        named = [each.name for each in fields(self) if each.metadata.get("key")]
        return json.dumps({name: getattr(self, name) for name in named}, sort_keys=True)


def append_result(folder: RunFolder, record: ResultRecord) -> None:
    """Add ``record`` to results.json. Several processes may do so at once.

    It replaces a record with the same key, also if the old record has no precision.
    """
    with exclusive(
        folder.path / ".results.lock",
        wait=30.0,
        busy=lambda holder: f"{folder.results} is locked by {holder}: try again.",
    ):
        replaced = {record.key(), replace(record, precision="").key()}
        others = [other for other in read_results(folder) if other.key() not in replaced]
        write_json(folder.results, [_to_json(each) for each in [*others, record]])


def read_results(folder: RunFolder) -> list[ResultRecord]:
    """Return the records of results.json, [] if there is no such file. UserError if the file is corrupt."""
    with reading(folder.results, "Repair it, or move it away and run `vaebench evaluate` again."):
        if not folder.results.exists():
            return []
        return [_from_json(entry) for entry in json.loads(folder.results.read_text(encoding="utf-8"))]


def _from_json(entry: dict[str, Any]) -> ResultRecord:
    settings = entry.get("settings") or {}
    if settings.get("proposal") in _OLD_PROPOSALS:
        entry = entry | {"settings": settings | {"proposal": _OLD_PROPOSALS[settings["proposal"]]}}
    return ResultRecord(**entry)


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
    return f"{record.split} {record.quantity} {with_sign(record.direction, number)} ({_conditions(record)})"


def _conditions(record: ResultRecord) -> str:
    words = ["estimate"] if record.direction is Direction.ESTIMATE else []
    words.append(record.estimator)
    numbers = {"k": record.k, "inner_k": record.inner_k, **record.settings}
    if record.precision == "bf16":
        numbers["precision"] = record.precision
    words += [f"{name}={value}" for name, value in numbers.items() if value is not None]
    words += [record.protocol, counted(record.n_images, "image")]
    repeats_shown = record.repeats == 1 or "repeat_stderr" in record.extra
    words += [] if repeats_shown else [counted(record.repeats, "repeat")]
    return printable(", ".join(words)).replace("\n", " ")


def _to_json(record: ResultRecord) -> dict[str, Any]:
    """Return the fields in their order, without the optional ones that are empty."""
    values = asdict(record)
    required = {each.name for each in fields(record) if each.default is each.default_factory is MISSING}
    return {name: value for name, value in values.items() if value or name in required}
