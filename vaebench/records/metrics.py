"""Read metrics.jsonl. Does not import TensorBoard, which takes long."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, TypedDict, cast

from vaebench.errors import UserError
from vaebench.files import regular
from vaebench.records.folder import RunFolder
from vaebench.records.stored import Unreadable, parse_json
from vaebench.typed import Rule, clipped, shown

__all__ = [
    "Line",
    "MetricsTail",
    "Natural",
    "Written",
    "are_altered",
    "chained",
    "flatten",
    "last_metrics",
    "read_metrics",
    "stored_lines",
]

_LONGEST = 1 << 16  # bytes: more than the longest line
_NUMBERS = (float, int)
_USUAL = 1 << 12  # bytes: more than two lines of most runs
Natural = Annotated[int, Rule(">= 0", lambda value: value >= 0)]


class Written(TypedDict):
    """What a run has recorded so far. Checkpoints and manifest.json hold it, so that a loss or a change is noticed."""

    lines: Natural
    """In metrics.jsonl."""
    chain: str
    """The digest of these lines; see `chained`."""
    points: Natural
    """Scalars and pictures in the event files."""


class _Stored(TypedDict):
    step: Natural
    epoch: Annotated[float, Rule(">= 0", lambda value: value >= 0)]
    wall: Annotated[float, Rule(">= 0", lambda value: value >= 0)]


class _WithNonfinite(_Stored, total=False):
    nonfinite: dict[str, Literal["nan", "inf", "-inf"]]


class Line(NamedTuple):
    """One line of metrics.jsonl."""

    raw: bytes
    """As written, with the newline."""
    values: dict[str, Any]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool | None]:
    """Return nested mappings as one mapping with dotted keys; convert lists and other objects to text."""
    flat: dict[str, str | float | bool | None] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str | int | float | None) else str(value)
    return flat


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, [] if there is no such file; nan and inf are floats.

    An incomplete last line (after a crash) is left out. UserError if another line is corrupt.
    """
    return [_restored(line.values) for line in stored_lines(folder)]


def last_metrics(folder: RunFolder) -> dict[str, Any] | None:
    """Return the last complete line of metrics.jsonl without reading the others; None if there is none."""
    try:
        with open(folder.metrics, "rb", buffering=0, opener=regular) as file:
            line = _last_line(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {folder.metrics}: {error.strerror}.") from error
    return _restored(_parsed(line, f"the last line of {folder.metrics}")) if line else None


def _last_line(file: BinaryIO) -> bytes:
    """Return the last complete line that is not empty; of a longer line than any, a part; b"" if there is none."""
    size, length = file.seek(0, os.SEEK_END), _USUAL
    while True:
        file.seek(max(0, size - length))
        lines = [line for line in file.read(length).split(b"\n")[:-1] if line]
        if length >= min(size, 2 * _LONGEST):
            return lines[-1] if lines else b""
        if len(lines) > 1:  # the first one may be a part
            return lines[-1]
        length = 2 * _LONGEST


class MetricsTail:
    """The last line of a run's metrics and the best value of one of them, while the run writes.

    Args:
        folder: the run folder.
        quantity: the name of the metric.
    """

    def __init__(self, folder: RunFolder, quantity: str) -> None:
        self.last: dict[str, Any] | None = None
        self.best: float | None = None
        self._folder, self._quantity, self._offset = folder, quantity, 0

    def read(self) -> None:
        """Read the lines that are new since the last call. UserError if one is corrupt or the file is not readable."""
        try:
            with open(self._folder.metrics, "rb", opener=regular) as file:
                if file.seek(0, os.SEEK_END) < self._offset:  # the run starts again
                    self._offset, self.last, self.best = 0, None, None
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"cannot read {self._folder.metrics}: {error.strerror}.") from error
        *lines, begun = text.split(b"\n")
        self._offset += len(text) - len(begun)
        tag, place = json.dumps(self._quantity).encode(), f"a line of {self._folder.metrics}"
        values = [_restored(_parsed(line, place)).get(self._quantity) for line in lines if tag in line]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        self.best = max([*finite, *([] if self.best is None else [self.best])], default=None)
        if lines:
            self.last = _restored(_parsed(lines[-1], place))


def chained(chain: str, line: bytes) -> str:
    """Return the digest of lines and one more: the SHA-256 of the digest so far, "" for no line, and the raw line.

    Unlike a digest of the whole file it can be continued without the earlier lines, even if these were changed.
    """
    return hashlib.sha256(chain.encode() + line).hexdigest()


def are_altered(folder: RunFolder, written: Written, *, complete: bool) -> bool:
    """Return whether metrics.jsonl does not start with the lines that the run wrote.

    Args:
        folder: the run folder.
        written: what the run had written.
        complete: whether the file must have no further line.
    """
    count, chain = 0, ""
    try:
        with open(folder.metrics, "rb", opener=regular) as file:
            while count < written["lines"] and (raw := file.readline(_LONGEST)):
                count, chain = count + 1, chained(chain, raw)
            further = complete and file.read(1) != b""
    except FileNotFoundError:
        return written["lines"] > 0
    except OSError as error:
        raise UserError(f"cannot read {folder.metrics}: {error.strerror}.") from error
    return further or (count, chain) != (written["lines"], written["chain"])


def stored_lines(folder: RunFolder) -> Iterator[Line]:
    """Yield the lines of metrics.jsonl as written, without an incomplete last line.

    Raises:
        UserError: a line is corrupt, or the file cannot be read.
    """
    try:
        with open(folder.metrics, "rb", opener=regular) as file:
            number, name = 0, str(folder.metrics)
            while raw := file.readline(_LONGEST):
                number += 1
                if raw.endswith(b"\n"):
                    yield Line(raw, _parsed(raw, f"line {number} of {name}"))
                elif len(raw) == _LONGEST:
                    raise _corrupt(f"line {number} of {name}", f"it is longer than {_LONGEST} bytes")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read {folder.metrics}: {error.strerror}.") from error


def _parsed(raw: bytes, place: str) -> dict[str, Any]:
    try:
        values: dict[str, Any] = cast(dict[str, Any], parse_json(raw, _WithNonfinite))
    except Unreadable as fault:
        raise _corrupt(place, str(fault)) from fault
    for tag, value in values.items():
        if type(value) not in _NUMBERS and value is not None and tag != "nonfinite":
            raise _corrupt(place, f"{clipped(repr(tag))} must be a number or null, got {shown(value)}")
    return values


def _corrupt(place: str, fault: str) -> UserError:
    return UserError(f"{place} is corrupt ({fault}): delete that line.")


def _restored(line: dict[str, Any]) -> dict[str, Any]:
    if "nonfinite" in line:
        line |= {tag: float(text) for tag, text in line.pop("nonfinite").items()}
    return line
