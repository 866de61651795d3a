"""A run as one file: a zip archive of its configuration, results, curves and best weights. Imports no torch.

The archive ends in its SHA-256, as a checkpoint does. It is unpacked into a run folder beside it, which every command
reads like another run folder. No name of a member becomes a path: the names are those below, and no other.
"""

import io
import os
import shutil
import struct
import sys
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from vaebench.config.run import changed, from_yaml, to_yaml
from vaebench.errors import UserError
from vaebench.files import member_of
from vaebench.records.files import write_failed
from vaebench.records.provenance import seal_fault, sealed
from vaebench.records.stored import LARGEST, Unreadable, read_whole

__all__ = ["CONFIG", "ENDING", "MANIFEST", "METRICS", "RESULTS", "STATUS", "WEIGHTS", "packed", "unpacked"]

ENDING = ".vae.zip"
CONFIG, MANIFEST, METRICS = "config.yaml", "manifest.json", "metrics.jsonl"
RESULTS, STATUS, WEIGHTS = "results.json", "status.json", "checkpoints/best.pt"

_NAMES = (CONFIG, MANIFEST, METRICS, RESULTS, STATUS, WEIGHTS)
_LARGEST_FILE = 1 << 30


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return the content of the file, for the content of each member; equal content gives equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in _NAMES:
            # Weights hardly shrink. A ZipInfo without a time has a fixed one.
            kind = zipfile.ZIP_STORED if name == WEIGHTS else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name), files[name], kind)
    return sealed(buffer.getvalue())


def unpacked(file: Path) -> Path:
    """Verify ``file`` and return its run folder, which has its name without ``.zip``; unpack it if there is none.

    The configuration gets the reader's data folder: $VAEBENCH_DATA_DIR, or ``data``.

    Raises:
        UserError: the file is corrupt, too large, or not one that `packed` made; or the folder is that of another run.
    """
    try:
        members = _members(read_whole(file.resolve(), _LARGEST_FILE))
        config = from_yaml(members[CONFIG].decode(), CONFIG)
    except (Unreadable, UnicodeDecodeError, UserError) as fault:
        raise UserError(
            f"cannot read {file}: {fault}. Download it again, or make it again with `vaebench export`."
        ) from fault
    folder = file.with_suffix("")
    if not os.path.lexists(folder):
        local = changed(config, {"data_dir": os.environ.get("VAEBENCH_DATA_DIR") or "data"})
        _write(folder, members | {CONFIG: to_yaml(local).encode()})
        print(f"{file} is intact: unpacked to {folder}, where new results are added", file=sys.stderr)
    if any(_content(folder / name) != members[name] for name in (MANIFEST, WEIGHTS)):
        raise UserError(f"{folder} is not the run in {file}: move it away, and run the same command again.")
    return folder


def _members(data: bytes) -> dict[str, bytes]:
    """Return the content of each member. Unreadable for every fault; no more is unpacked than the limits allow."""
    if fault := seal_fault(data):
        raise Unreadable(f"it {fault}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = archive.infolist()
            if sorted(member.filename for member in found) != sorted(_NAMES):
                names = ", ".join(member.filename for member in found)
                raise Unreadable(f"it has the members {names[:200]!r}, expected {', '.join(_NAMES)}")
            for member in found:
                limit = len(data) if member.filename == WEIGHTS else LARGEST
                if member.file_size > limit:
                    raise Unreadable(f"its {member.filename} has {member.file_size} bytes, more than {limit}")
            return {member.filename: member_of(archive, member) for member in found}
    # RuntimeError: a password, or an unknown compression.
    except (EOFError, RuntimeError, ValueError, OverflowError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise Unreadable(f"it is not as `vaebench export` writes it ({error})") from error


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make ``folder`` with ``files``, whole or not at all; another process may make the same one."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        temporary.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise write_failed(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _content(path: Path) -> bytes | None:
    try:
        return read_whole(path, _LARGEST_FILE)
    except (OSError, Unreadable):
        return None
