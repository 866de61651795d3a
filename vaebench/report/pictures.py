"""The pictures of a run: the images in its TensorBoard events, and the PNG files in its pictures folder."""

import base64
import struct
from typing import NamedTuple

from vaebench.report.runs import Run

__all__ = ["Picture", "pictures"]

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
    """Return the latest picture of each kind, without those that are too large for a page."""
    # here, because TensorBoard's readers are slow to import
    from vaebench.records.events import read_pictures

    found = [Picture(tag, f"step {step:,}", data) for tag, (step, data) in read_pictures(run.folder.path).items()]
    for path in sorted((run.folder.path / FOLDER).glob("*.png")):
        title = _TITLES.get(path.stem, path.stem.replace("_", " "))
        found.append(Picture(title, f"{FOLDER}/{path.name}", path.read_bytes()))
    return [picture for picture in found if picture.data.startswith(_PNG) and len(picture.data) <= _MOST_BYTES]
