"""The pictures of a run: the images in its TensorBoard events, and the PNG files in its pictures folder."""

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vaebench.records.stored import Unreadable, read_whole
from vaebench.report.runs import Run

__all__ = ["Picture", "outdated_pictures", "pictures", "unreadable_pictures"]

FOLDER = "pictures"
# Titles of the files that `vaebench sample`, `reconstruct`, `interpolate` and `traverse` write.
_TITLES = {
    "sample": "samples of the best weights",
    "reconstruct": "reconstructions by the best weights",
    "interpolate": "interpolations",
    "traverse": "latent traversals",
}
_MOST_BYTES = 4_000_000
_PNG = b"\x89PNG\r\n\x1a\n"


class Picture(NamedTuple):
    """A PNG with its caption."""

    title: str
    detail: str
    data: bytes

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.data).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG's header."""
        width, height = struct.unpack(">II", self.data[16:24])
        return width, height


def pictures(run: Run) -> list[Picture]:
    """Return the latest picture of each kind, without those of earlier weights, unreadable or too large for a page."""
    # here, because TensorBoard's readers are slow to import
    from vaebench.records.events import read_pictures

    found = [Picture(tag, f"step {step:,}", data) for tag, (step, data) in read_pictures(run.folder.path).items()]
    for path, data, fault in _files(run):
        if data and fault is None:
            title = _TITLES.get(path.stem, path.stem.replace("_", " "))
            found.append(Picture(title, path.name, data))
    return [picture for picture in found if _is_png(picture.data) and len(picture.data) <= _MOST_BYTES]


def outdated_pictures(run: Run) -> list[str]:
    """Return what is wrong with each file that `pictures` leaves out: it was made with earlier weights, for example."""
    return [fault for _, data, fault in _files(run) if data and fault is not None]


def unreadable_pictures(run: Run) -> list[str]:
    """Return a line about each file that `pictures` leaves out because it is no PNG file that a page can show."""
    return [
        f"{path}: {fault}, so it is left out. Move it away, or make the picture again."
        for path, data, fault in _files(run)
        if not data
    ]


def _files(run: Run) -> Iterator[tuple[Path, bytes, str | None]]:
    """Yield the PNG files of a run, each with its bytes and what is wrong with its provenance, if anything is.

    A file that cannot be shown has no bytes, and the fault is the reason.
    """
    from vaebench.records.pictures import provenance_of  # here, because it imports numpy

    for path in sorted((run.folder.path / FOLDER).glob("*.png")):
        try:
            data = read_whole(path, _MOST_BYTES)
        except (FileNotFoundError, Unreadable) as error:
            yield path, b"", "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            continue
        if not _is_png(data):
            yield path, b"", "it is not a PNG file"
            continue
        made_by = provenance_of(data)
        # A picture of an early version does not say its epoch.
        yield path, data, None if made_by is None else run.current.fault(made_by, made_by.epoch)


def _is_png(data: bytes) -> bool:
    """Return whether ``data`` starts as a PNG file does, up to the width and height."""
    return data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) >= 24
