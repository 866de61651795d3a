"""metrics.jsonl and nested settings, read; knows nothing of TensorBoard, so that reading starts at once."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vaebench.errors import UserError
from vaebench.records.folder import RunFolder

__all__ = ["flatten", "read_metrics", "stored_lines"]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool | None]:
    """Return nested mappings as one, with dotted keys; lists and other objects become their text."""
    flat: dict[str, str | float | bool | None] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str | int | float | None) else str(value)
    return flat


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, [] when there is none; nan and inf come back as floats.

    A last line that a crash tore is left out. UserError when another line is damaged.
    """
    return [_restored(line) for line in stored_lines(folder)]


def _restored(line: dict[str, Any]) -> dict[str, Any]:
    strange = line.get("nonfinite", {})
    return {k: v for k, v in line.items() if k != "nonfinite"} | {k: float(v) for k, v in strange.items()}


def stored_lines(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """Yield the lines of metrics.jsonl as they stand, without a torn last one."""
    try:
        lines = folder.metrics.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline there is nothing, or a torn line
        try:
            yield json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} of {folder.metrics} is damaged ({error}): delete that line.") from error
