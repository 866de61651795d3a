"""The pictures of a run: the images in its TensorBoard events, and the PNG files in its pictures folder."""

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vaebench.report.runs import Run

__all__ = ["Picture", "outdated_pictures", "pictures"]

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
    """Return the latest picture of each kind, without pictures of earlier weights or too large for a page."""
    # here, because TensorBoard's readers are slow to import
    from vaebench.records.events import read_pictures

    found = [Picture(tag, f"step {step:,}", data) for tag, (step, data) in read_pictures(run.folder.path).items()]
    for path, data, fault in _files(run):
        if fault is None:
            title = _TITLES.get(path.stem, path.stem.replace("_", " "))
            found.append(Picture(title, f"{FOLDER}/{path.name}", data))
    return [picture for picture in found if picture.data.startswith(_PNG) and len(picture.data) <= _MOST_BYTES]


def outdated_pictures(run: Run) -> list[str]:
    """Return what is wrong with each file that `pictures` leaves out: it was made with earlier weights, for example."""
    return [fault for _, _, fault in _files(run) if fault is not None]


def _files(run: Run) -> Iterator[tuple[Path, bytes, str | None]]:
    """Yield the PNG files of a run, each with its bytes and what is wrong with its provenance, if anything is."""
    from vaebench.records.pictures import provenance_of  # here, because it imports numpy

    for path in sorted((run.folder.path / FOLDER).glob("*.png")):
        data = path.read_bytes()
        made_by = provenance_of(data)
        # A picture of an early version does not say its epoch.
        yield path, data, None if made_by is None else run.current.fault(made_by, made_by.epoch)
