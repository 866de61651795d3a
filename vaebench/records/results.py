"""Results: likelihood numbers that never go without their direction and their protocol."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from vaebench.direction import Direction, checked_direction
from vaebench.errors import UserError
from vaebench.records.files import exclusive, write_json
from vaebench.records.folder import RunFolder
from vaebench.records.text import counted, decimals, with_error, with_sign

__all__ = ["ResultRecord", "append_result", "format_line", "read_results"]

PRECISIONS = ("", "float32", "bf16")

_MAY_BE_EMPTY = ("precision", "settings", "extra", "note", "per_image")


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """One estimate of the mean over a split of log p(x), or of another ``quantity``, in nats per image.

    ``repeats`` independent repetitions were averaged for each image; ``stderr`` is the standard error, over the
    ``n_images`` images, of the mean of these averages. The spread of the repetitions' own means is apart from it:
    ``repeat_std`` in ``extra``, and ``repeat_stderr``, the standard error that it leaves in ``mean``. ``k`` and
    ``inner_k`` are None where the estimator has none. ``settings`` holds what else defines the estimator (the number
    of temperatures, say); ``precision`` is that of the networks, float32 or bf16, and empty in records of versions that
    did not note it, where it is that of the training. ``extra`` holds diagnostics, which define nothing, and ``note``
    one line about them. ``per_image`` names the file in the run folder, and the array in it, with the numbers of each
    image: see `read_per_image`. ValueError when a field cannot be right.
    """

    estimator: str
    k: int | None
    inner_k: int | None
    split: str
    protocol: str
    mean: float
    stderr: float
    n_images: int
    direction: Direction
    epoch: int
    seconds: float
    repeats: int = 1
    quantity: str = "log p(x)"
    precision: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    per_image: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", checked_direction(self.direction))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS[1:])}, not {self.precision!r}")
        for name in ("estimator", "split", "protocol", "quantity"):
            if not getattr(self, name):
                raise ValueError(f"a result needs its {name}")
        for name in ("mean", "stderr", "seconds"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, not {getattr(self, name)}")
        for name, least in (("stderr", 0), ("seconds", 0), ("n_images", 1), ("repeats", 1), ("epoch", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name, least in (("k", 1), ("inner_k", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")

    def key(self) -> tuple[object, ...]:
        """What was estimated, and how: two records with one key are two tries at one number."""
        settings = json.dumps(dict(self.settings), sort_keys=True)
        names = (
            "estimator",
            "k",
            "inner_k",
            "split",
            "protocol",
            "epoch",
            "n_images",
            "repeats",
            "direction",
            "quantity",
            "precision",
        )
        return (*(getattr(self, name) for name in names), settings)


def append_result(folder: RunFolder, record: ResultRecord) -> None:
    """Add ``record`` to results.json in place of one with the same key; all others stay.

    One that does not say its precision, and has the same key otherwise, gives way too.
    Several processes may do so at once.
    """
    with exclusive(
        folder.path / ".results.lock",
        wait=30.0,
        busy=lambda holder: f"{folder.results} is in use ({holder}): try again.",
    ):
        same = {record.key(), replace(record, precision="").key()}
        others = [r for r in read_results(folder) if r.key() not in same]
        write_json(folder.results, [_to_json(r) for r in [*others, record]])


def read_results(folder: RunFolder) -> list[ResultRecord]:
    """Return the records of results.json, [] when there is none. UserError when it is damaged."""
    try:
        stored = json.loads(folder.results.read_text(encoding="utf-8"))
        return [ResultRecord(**entry) for entry in stored]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"cannot read {folder.results}: {error}. Repair it, or move it away and evaluate again."
        ) from error


def format_line(record: ResultRecord) -> str:
    """Return the record as one line, for example

    ``test log p(x) >= -86.41 +- 0.07 (DIWHVI, k=5000, inner_k=100, mnist/dynamic-v1, 10000 images)``, and with
    repeats ``... >= -86.41 +- 0.07 (images) +- 0.01 (10 repeats) (...)``.
    """
    repeated = record.extra.get("repeat_stderr")
    places = decimals(record.stderr, repeated)
    number = with_error(record.mean, record.stderr, places=places)
    if repeated is not None:
        number += f" (images) +- {repeated:.{places}f} ({counted(record.repeats, 'repeat')})"
    return (
        f"{record.split} {record.quantity} {with_sign(record.direction, number)} ({', '.join(_circumstances(record))})"
    )


def _circumstances(record: ResultRecord) -> list[str]:
    words = ["estimate"] if record.direction == "estimate" else []
    words.append(record.estimator)
    numbers = {"k": record.k, "inner_k": record.inner_k, **record.settings}
    if record.precision == "bf16":
        numbers["precision"] = record.precision
    words += [f"{name}={value}" for name, value in numbers.items() if value is not None]
    words += [record.protocol, counted(record.n_images, "image")]
    shown = record.repeats == 1 or "repeat_stderr" in record.extra
    return words if shown else [*words, counted(record.repeats, "repeat")]


def _to_json(record: ResultRecord) -> dict[str, Any]:
    """The fields in their order; of the last ones, those that say nothing are left out."""
    values = asdict(record)
    return {f.name: values[f.name] for f in fields(record) if f.name not in _MAY_BE_EMPTY or values[f.name]}
