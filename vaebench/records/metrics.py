"""Read metrics.jsonl. Does not import TensorBoard, which takes long."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from vaebench.errors import UserError
from vaebench.records.folder import RunFolder

__all__ = ["flatten", "last_metrics", "read_metrics", "stored_lines"]

_TAIL = 1 << 16  # bytes: more than the longest line


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
    return [_restored(line) for line in stored_lines(folder)]


def last_metrics(folder: RunFolder) -> dict[str, Any] | None:
    """Return the last complete line of metrics.jsonl without reading the others; None if there is none."""
    try:
        with open(folder.metrics, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    whole = [line for line in lines[:-1] if line]
    try:
        return _restored(json.loads(whole[-1])) if whole else None
    except ValueError as error:
        raise UserError(f"the last line of {folder.metrics} is corrupt ({error}): delete that line.") from error


def _restored(line: dict[str, Any]) -> dict[str, Any]:
    nonfinite = line.pop("nonfinite", {})
    return line | {tag: float(text) for tag, text in nonfinite.items()}


def stored_lines(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """Yield the lines of metrics.jsonl as written, without an incomplete last line."""
    try:
        lines = folder.metrics.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline: nothing, or an incomplete line
        try:
            yield json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} of {folder.metrics} is corrupt ({error}): delete that line.") from error
