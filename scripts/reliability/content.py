"""What the runs below a folder say, without times and places, so that two folders can be compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from vaebench.config import from_yaml
from vaebench.config.identity import defining

__all__ = ["content", "differences"]

# Facts of a session, not of a run: they may differ after a restart.
_OF_A_SESSION = {
    "seconds",
    "wall",
    "wall_seconds",
    "chain",  # a digest of lines with times
    "train/images_per_second",
    "time",
    "made",
    "pid",
    "host",
    "instance",
    "started",
    "updated",
    "restarts",
    "command",
    "git",
    "commit",
    # Hashes of files that have such facts.
    "checksum",
    "checkpoint",
}
LEFTOVERS = (".tmp", ".held")


def content(root: Path) -> dict[str, Any]:
    """Return relative path -> what the file says. Event files of a run are read together.

    ``doubled``: points that TensorBoard would read twice, and lines of metrics.jsonl that are there twice.
    ``leftovers``: temporary files.
    """
    found: dict[str, Any] = {"doubled": [], "leftovers": []}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.suffix in LEFTOVERS:
            found["leftovers"].append(name)
        elif path.is_dir() or path.name.startswith("events.out") or ".sweeps" in name or ".studies" in name:
            continue
        elif path.name not in ("last.previous.pt",) and path.suffix != ".log":
            found[name] = _said(path)
        if path.name == "metrics.jsonl" and isinstance(found.get(name), list):
            found["doubled"] += [f"{name}: {line}" for line in _doubled(map(_metrics_key, found[name]))]
    for folder in sorted({path.parent for path in root.rglob("events.out*")}):
        points = _points(folder)
        found[f"{folder.relative_to(root)}/events"] = sorted(points)
        found["doubled"] += [f"{folder.name}: {point}" for point in _doubled(point.split("=")[0] for point in points)]
    return found


def differences(expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """Return one line for each file that says something else."""
    lines = []
    for name in sorted(expected.keys() | got.keys()):
        if name not in got:
            lines.append(f"{name} is missing")
        elif name not in expected:
            lines.append(f"{name} is new")
        elif expected[name] != got[name]:
            lines.append(f"{name}: {_first_difference(expected[name], got[name])}")
    return lines


def _first_difference(expected: Any, got: Any) -> str:
    if isinstance(expected, list) and isinstance(got, list):
        missing = [one for one in expected if one not in got]
        new = [one for one in got if one not in expected]
        if len(missing) == len(new) == 1:
            return _first_difference(missing[0], new[0])
        return f"{len(expected)} entries, got {len(got)}; missing {str(missing[:1])[:150]}, new {str(new[:1])[:150]}"
    if isinstance(expected, dict) and isinstance(got, dict):
        names = [name for name in {**expected, **got} if expected.get(name) != got.get(name)]
        return f"{names[0]}: {_first_difference(expected.get(names[0]), got.get(names[0]))}"
    return f"expected {str(expected)[:120]}, got {str(got)[:120]}"


def _said(path: Path) -> Any:
    try:
        if path.suffix == ".json":
            return _without_session(json.loads(path.read_text()))
        if path.suffix == ".jsonl":
            return [_without_session(json.loads(line)) for line in path.read_text().splitlines()]
        if path.suffix == ".pt":
            return digest(torch.load(path, map_location="cpu", weights_only=True))
        if path.suffix == ".npz":
            with numpy.load(path) as stored:
                arrays = {name: stored[name] for name in stored.files if name not in _OF_A_SESSION}
                return {name: _array(array) for name, array in arrays.items() if array.dtype.kind in "biuf"}
        if path.name == "config.yaml":
            return defining(from_yaml(path.read_text()))  # the others, such as how often to log, may be edited
    except Exception as error:
        return f"unreadable: {type(error).__name__}"
    return _pixels(path) if path.suffix == ".png" else None


def _pixels(path: Path) -> str:
    try:
        with Image.open(path) as picture:
            return hashlib.sha256(picture.tobytes()).hexdigest()
    except Exception as error:
        return f"unreadable: {type(error).__name__}"


def digest(state: Any) -> str:
    """Return a digest of nested containers of tensors and plain values, bit for bit, without times."""
    made = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            made.update(f"{value.dtype}{tuple(value.shape)}".encode())
            made.update(value.contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        elif isinstance(value, dict):
            for key in value:
                if key not in _OF_A_SESSION:
                    made.update(repr(key).encode())
                    add(value[key])
        elif isinstance(value, list | tuple):
            made.update(b"[")
            for each in value:
                add(each)
            made.update(b"]")
        else:
            made.update(repr(value).encode())

    add(state)
    return made.hexdigest()


def _array(array: numpy.ndarray) -> str:
    return f"{array.dtype}{array.shape}{hashlib.sha256(numpy.ascontiguousarray(array).tobytes()).hexdigest()[:16]}"


def _without_session(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_session(each) for key, each in value.items() if key not in _OF_A_SESSION}
    return [_without_session(each) for each in value] if isinstance(value, list) else value


def _metrics_key(line: Any) -> str:
    return f"step {line.get('step')}: {sorted(line)}" if isinstance(line, dict) else str(line)


def _points(folder: Path) -> list[str]:
    """Return every point of the event files as TAG@STEP=VALUE, read by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    points = []
    for path in sorted(folder.glob("events.out*")):
        try:
            events = [Event.FromString(record) for record in RawEventFileLoader(str(path)).Load()]
        except Exception as error:
            points.append(f"{path.name} is unreadable: {type(error).__name__}")
            continue
        for event in events:
            for value in event.summary.value:
                if value.tag.startswith("_hparams_"):
                    points.append(f"{value.tag}@{event.step}=")
                elif value.tag not in _OF_A_SESSION | {"config"}:  # config.yaml is compared by itself
                    payload = value.SerializeToString(deterministic=True)
                    points.append(f"{value.tag}@{event.step}={hashlib.sha256(payload).hexdigest()[:12]}")
    return points


def _doubled(keys: Any) -> list[str]:
    seen: set[str] = set()
    twice = []
    for key in keys:
        if key in seen:
            twice.append(key)
        seen.add(key)
    return twice
