"""What made a number: the weights, the data, the code and the machine. Imports no torch."""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["SEAL", "Provenance", "RunState", "checksum", "seal_fault", "seal_of", "sealed", "unaltered"]

RunState = Literal["running", "finished", "failed", "interrupted", "not started"]

SEAL = b"vaebench sha256 "
"""The start of the comment at the end of a zip archive of vaebench; its SHA-256 as 64 hex digits follows."""
_COMMENT_LENGTH = len(SEAL) + 64


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The run, the weights, the data, the code and the machine behind a number or a picture."""

    run: str
    """The identity of the configuration, with the seed."""
    weights: str
    """A digest of the evaluated tensors: names, dtypes, shapes and bytes."""
    checkpoint: str
    """The SHA-256 of the checkpoint that held them; `seal_of` reads that of a file."""
    epoch: int
    """The epoch of the weights."""
    state: RunState
    """Of the run when the number was made; "finished" from the end of the training on."""
    epochs_done: float
    """Epochs that the run had been trained for then."""
    epochs: int
    """Epochs that the run was planned to be trained for."""
    data: str
    """The fingerprint of the data."""
    code: str
    """A digest of the source of the model's classes; see `vaebench.records.source`."""
    version: str
    """Of vaebench."""
    commit: str | None
    """Of the git checkout of vaebench; None for an installed package."""
    dirty: bool | None
    """Whether the checkout had uncommitted changes."""
    torch: str
    """The version of torch."""
    device: str
    precision: str
    """Of the networks: float32 or bf16."""
    estimator_code: str | None = None
    """A digest of the source of a plug-in's estimator; None for other numbers."""
    estimator_plugin: str | None = None
    """The name of that estimator; None for other numbers, and in records of early versions."""

    @property
    def progress(self) -> str:
        """The state of the run and its progress, for example ``running, epoch 9 of 40``."""
        return f"{self.state}, epoch {self.epochs_done:.4g} of {self.epochs}"


def checksum(entry: Mapping[str, Any]) -> str:
    """Return 16 hex digits of an entry of a JSON file, without the field ``checksum``, in which they are kept."""
    text = json.dumps({name: value for name, value in entry.items() if name != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unaltered(entry: Mapping[str, Any]) -> bool:
    """Return whether ``entry`` has its checksum; entries of early versions have none, and any content passes."""
    return entry.get("checksum") in (None, checksum(entry))


def sealed(archive: bytes) -> bytes:
    """Return a zip archive without a comment, with its SHA-256 as its comment."""
    # A zip ends in a record of 22 bytes whose last two are the length of the comment that follows.
    if archive[-22:-18] != b"PK\x05\x06":
        raise AssertionError("the archive does not end in a zip end record")
    body = archive[:-2] + struct.pack("<H", _COMMENT_LENGTH)
    return body + SEAL + hashlib.sha256(body).hexdigest().encode()


def seal_fault(data: bytes) -> str | None:
    """Return why the bytes of a file are not those that `sealed` returned, or None if they are."""
    body, comment = data[:-_COMMENT_LENGTH], data[-_COMMENT_LENGTH:]
    if not comment.startswith(SEAL):
        return "is truncated, or was not written by vaebench"
    if comment[len(SEAL) :] != hashlib.sha256(body).hexdigest().encode():
        return "was altered after it was written (wrong checksum)"
    return None


def seal_of(path: Path) -> str | None:
    """Return the SHA-256 that the checkpoint ``path`` carries, unchecked; None if it carries none."""
    try:
        with path.open("rb") as file:
            file.seek(-_COMMENT_LENGTH, 2)
            comment = file.read()
    except OSError:
        return None
    return comment[len(SEAL) :].decode("ascii", "replace") if comment.startswith(SEAL) else None
