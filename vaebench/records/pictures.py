"""Arrange images in rows, as bytes or as labelled PNG files. Imports no torch."""

import io
import itertools
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy

from vaebench.errors import UserError
from vaebench.records.files import write_failed, write_whole
from vaebench.records.provenance import Provenance
from vaebench.records.stored import Unreadable, parse_json

if TYPE_CHECKING:
    from PIL import ImageFont
    from torch import Tensor

__all__ = ["Images", "Sheet", "grid", "png", "provenance_of"]

Images = Union[numpy.ndarray, "Tensor"]
"""(N, H*H), (N, H, W) or (N, C, H, W) with C = 1 or 3; bytes, or floats from 0 to 1 (clipped; NaN is black)."""

WHITE, GREY = 255, 128
DARK_GREY, BLACK = "#6e6e6e", "#1e1e1e"
"""Of text, in grey pictures and in those with colours."""
MARGIN, FONT_SIZE, LINE_HEIGHT = 14, 13, 19  # pixels
PROVENANCE = b"Provenance"
"""The keyword of the text chunk with the provenance."""
TEXT_GAP = 8
"""Pixels between text and images."""


# Not torchvision's make_grid: it has the same gap between all columns, and importing torchvision takes as long as
# importing torch.


def grid(images: Images, columns: int) -> numpy.ndarray:
    """Arrange images in rows of ``columns``, one grey pixel apart.

    Returns (rows * (H + 1) - 1, columns * (W + 1) - 1) bytes; colours have a third axis, of three.
    """
    cells = _cells(images)
    return _arranged(cells, _offsets(min(columns, len(cells)), cells.shape[2], 1), 1, GREY)


def png(pixels: numpy.ndarray, about: str = "", made_by: Provenance | None = None) -> bytes:
    """Return ``pixels``, (H, W) or (H, W, 3) bytes, as a PNG file with a description and the provenance as JSON."""
    from PIL import Image  # here, because the import takes long
    from PIL.PngImagePlugin import PngInfo

    buffer, info = io.BytesIO(), PngInfo()
    if about:
        info.add_text("Description", about)
    if made_by is not None:
        info.add_text(PROVENANCE.decode(), json.dumps(asdict(made_by)))
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info, optimize=True)
    return buffer.getvalue()


def provenance_of(data: bytes) -> Provenance | None:
    """Return the provenance in a PNG file; None if it has none that can be read."""
    start = data.find(b"tEXt" + PROVENANCE + b"\0")
    if start < 4:
        return None
    length = int.from_bytes(data[start - 4 : start], "big")
    try:
        return parse_json(data[start + 4 : start + 4 + length].partition(b"\0")[2], Provenance)
    except Unreadable:
        return None


@dataclass(frozen=True)
class Sheet:
    """Images in rows on white, enlarged, with a title and labels."""

    images: Images
    columns: int
    title: str = ""
    column_labels: Sequence[str] = ()
    row_labels: Sequence[str] = ()
    breaks: Collection[int] = ()
    """The columns with a wider gap before them."""
    scale: int = 3
    """Each pixel of an image becomes ``scale`` x ``scale`` pixels."""

    def pixels(self) -> numpy.ndarray:
        """Return the picture, (H, W) or (H, W, 3) bytes."""
        from PIL import Image, ImageDraw, ImageFont

        cells = _cells(self.images).repeat(self.scale, 1).repeat(self.scale, 2)
        count, height, width = cells.shape[:3]
        gap = max(1, self.scale - 1)
        lefts = _offsets(min(self.columns, count), width, gap, self.breaks, 5 * self.scale)
        body, lines = _arranged(cells, lefts, gap, WHITE), self.title.splitlines()
        font = ImageFont.load_default(FONT_SIZE)
        left = MARGIN + max((_width(font, label) + TEXT_GAP for label in self.row_labels), default=0)
        top = MARGIN + LINE_HEIGHT * (len(lines) + bool(self.column_labels)) + (TEXT_GAP if lines else 0)
        right = max([left + body.shape[1], *(MARGIN + _width(font, line) for line in lines)])
        size = (right + MARGIN, top + body.shape[0] + MARGIN)
        picture = Image.new("L" if body.ndim == 2 else "RGB", size, "white")
        picture.paste(Image.fromarray(body), (left, top))
        draw = ImageDraw.Draw(picture)
        for number, line in enumerate(lines):
            position = (MARGIN, MARGIN - 4 + LINE_HEIGHT * number)
            draw.text(position, line, fill=DARK_GREY if number else BLACK, font=font)
        end = -TEXT_GAP
        for start, label in zip(lefts, self.column_labels, strict=False):
            half, middle = _width(font, label) / 2, start + width / 2
            if middle - half < end + TEXT_GAP / 2:
                continue  # small images have no room for every label
            draw.text((left + middle, top - 4), label, fill=BLACK, font=font, anchor="ms")
            end = middle + half
        for row, label in enumerate(self.row_labels):
            middle = top + row * (height + gap) + height / 2
            draw.text((left - TEXT_GAP, middle), label, fill=BLACK, font=font, anchor="rm")
        return numpy.asarray(picture)

    def save(self, path: Path, about: str = "", made_by: Provenance | None = None) -> None:
        """Write the picture as a PNG file; create its folder if needed. UserError if it cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(path.parent, error) from error
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the PNG a file name")
        write_whole(path, png(self.pixels(), about, made_by))


def _width(font: "ImageFont.ImageFont | ImageFont.FreeTypeFont", text: str) -> int:
    return math.ceil(font.getlength(text))


def _offsets(columns: int, width: int, gap: int, breaks: Collection[int] = (), break_gap: int = 0) -> list[int]:
    """Return the left edges of ``columns`` cells, ``gap`` apart, but ``break_gap`` before the columns in ``breaks``."""
    gaps = [break_gap if column in breaks else gap for column in range(1, columns)]
    return list(itertools.accumulate(gaps, lambda left, gap: left + width + gap, initial=0))


def _arranged(cells: numpy.ndarray, lefts: Sequence[int], gap: int, background: int) -> numpy.ndarray:
    """Put cells, (N, H, W) or (N, H, W, 3), in rows with these left edges; the rows are ``gap`` apart."""
    count, height, width = cells.shape[:3]
    rows = math.ceil(count / len(lefts))
    size = (rows * (height + gap) - gap, lefts[-1] + width, *cells.shape[3:])
    arranged = numpy.full(size, background, dtype=numpy.uint8)
    for index, cell in enumerate(cells):
        row, column = divmod(index, len(lefts))
        top, left = row * (height + gap), lefts[column]
        arranged[top : top + height, left : left + width] = cell
    return arranged


def _cells(images: Images) -> numpy.ndarray:
    """Return images as bytes, (N, H, W), or (N, H, W, 3) for three channels."""
    if not isinstance(images, numpy.ndarray):
        images = images.detach().float().cpu().numpy() if images.is_floating_point() else images.cpu().numpy()
    return _bytes(_channels_last(images))


def _channels_last(images: numpy.ndarray) -> numpy.ndarray:
    """Return ``images`` as (N, H, W), or as (N, H, W, 3) if they have three channels."""
    if images.ndim == 4 and images.shape[1] in (1, 3):
        images = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
    elif images.ndim == 2:
        side = math.isqrt(images.shape[1])
        if side * side == images.shape[1]:
            images = images.reshape(-1, side, side)
    if images.ndim not in (3, 4) or not len(images) or images.shape[3:] not in ((), (3,)):
        shapes = "(N, H*H), (N, H, W), (N, 1, H, W) or (N, 3, H, W)"
        raise ValueError(f"images must be {shapes} with N > 0, not {images.shape}")
    return images


def _bytes(images: numpy.ndarray) -> numpy.ndarray:
    """Return ``images`` as bytes from 0 to 255."""
    if images.dtype == numpy.uint8:
        return images
    brightness = numpy.nan_to_num(images.astype(float), nan=0.0).clip(0.0, 1.0)
    return (255.0 * brightness).round().astype(numpy.uint8)
