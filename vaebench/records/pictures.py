"""Images in rows, as bytes and as labelled PNG files. Imports no torch."""

import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Union

import numpy

from vaebench.errors import UserError
from vaebench.records.files import write_failed, write_whole

if TYPE_CHECKING:
    from PIL import ImageFont
    from torch import Tensor

__all__ = ["Images", "Sheet", "grid", "png"]

Images = Union[numpy.ndarray, "Tensor"]
"""(N, H*H), (N, H, W) or (N, 1, H, W); bytes, or floats from 0 to 1 (clipped; NaN is black)."""

WHITE, LINE, INK, FAINT = 255, 128, 30, 110
MARGIN = 14
FONT_SIZE = 13
LINE_HEIGHT = 19
GAP = 8
"""Between text and images."""


def grid(images: Images, columns: int) -> numpy.ndarray:
    """Lay out images in rows of ``columns``, one grey pixel apart.

    Returns (rows * (H + 1) - 1, columns * (W + 1) - 1) bytes.
    """
    cells = _cells(images)
    count, height, width = cells.shape
    return _filled(cells, _places(count, min(columns, count), height, width, 1), LINE)


def png(pixels: numpy.ndarray, about: str = "") -> bytes:
    """Return ``pixels``, (H, W) bytes, as a PNG file; ``about`` goes into it as its description."""
    from PIL import Image  # here, because reading results needs no pictures
    from PIL.PngImagePlugin import PngInfo

    buffer, info = io.BytesIO(), PngInfo()
    if about:
        info.add_text("Description", about)
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info, optimize=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class Sheet:
    """A picture of images in rows, enlarged and labelled, on white."""

    images: Images
    columns: int
    title: str = ""
    heads: Sequence[str] = ()
    """A label above each column."""
    sides: Sequence[str] = ()
    """A label to the left of each row."""
    breaks: Collection[int] = ()
    """Columns before which a wider gap stands."""
    scale: int = 3
    """Pixels of the picture for one of an image."""

    def pixels(self) -> numpy.ndarray:
        """Return the picture, (H, W) bytes."""
        from PIL import Image, ImageDraw, ImageFont

        cells = _cells(self.images).repeat(self.scale, 1).repeat(self.scale, 2)
        count, height, width = cells.shape
        columns, gap = min(self.columns, count), max(1, self.scale - 1)
        places = _places(count, columns, height, width, gap, self.breaks, 5 * self.scale)
        body, lines = _filled(cells, places, WHITE), self.title.splitlines()
        font = ImageFont.load_default(FONT_SIZE)
        left = MARGIN + max((_width(font, text) + GAP for text in self.sides), default=0)
        top = MARGIN + LINE_HEIGHT * (len(lines) + bool(self.heads)) + (GAP if lines else 0)
        right = max([left + body.shape[1], *(MARGIN + _width(font, line) for line in lines)])
        picture = Image.new("L", (right + MARGIN, top + body.shape[0] + MARGIN), WHITE)
        picture.paste(Image.fromarray(body), (left, top))
        draw = ImageDraw.Draw(picture)
        for number, line in enumerate(lines):
            below = (MARGIN, MARGIN - 4 + LINE_HEIGHT * number)
            draw.text(below, line, fill=FAINT if number else INK, font=font)
        end = -GAP
        for start, text in zip(places.lefts, self.heads, strict=False):
            half = _width(font, text) / 2
            middle = start + width / 2
            if middle - half < end + GAP / 2:
                continue  # small images have no room for each label
            draw.text((left + middle, top - 4), text, fill=INK, font=font, anchor="ms")
            end = middle + half
        for start, text in zip(places.tops, self.sides, strict=False):
            draw.text((left - GAP, top + start + height / 2), text, fill=INK, font=font, anchor="rm")
        return numpy.asarray(picture)

    def save(self, path: Path, about: str = "") -> None:
        """Write the picture as a PNG, with its folder where that is missing. UserError where it cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(path.parent, error) from error
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the PNG a file name")
        write_whole(path, png(self.pixels(), about))


def _width(font: "ImageFont.ImageFont | ImageFont.FreeTypeFont", text: str) -> int:
    return math.ceil(font.getlength(text))


class _Places(NamedTuple):
    """Where columns and rows of cells begin."""

    lefts: list[int]
    tops: list[int]


def _places(
    count: int, columns: int, height: int, width: int, gap: int, breaks: Collection[int] = (), wide: int = 1
) -> _Places:
    """Lay out ``count`` cells ``gap`` apart, ``wide`` before the columns in ``breaks``."""
    lefts = [0]
    for column in range(1, columns):
        lefts.append(lefts[-1] + width + (wide if column in breaks else gap))
    return _Places(lefts, [row * (height + gap) for row in range(math.ceil(count / columns))])


def _filled(cells: numpy.ndarray, places: _Places, line: int) -> numpy.ndarray:
    """Put cells, (N, H, W), at their places on a sheet of brightness ``line``."""
    _, height, width = cells.shape
    sheet = numpy.full((places.tops[-1] + height, places.lefts[-1] + width), line, dtype=numpy.uint8)
    for index, cell in enumerate(cells):
        row, column = divmod(index, len(places.lefts))
        top, left = places.tops[row], places.lefts[column]
        sheet[top : top + height, left : left + width] = cell
    return sheet


def _cells(images: Images) -> numpy.ndarray:
    """Return images as bytes, (N, H, W)."""
    if not isinstance(images, numpy.ndarray):
        images = images.detach().float().cpu().numpy() if images.is_floating_point() else images.cpu().numpy()
    return _bytes(_square(images))


def _square(images: numpy.ndarray) -> numpy.ndarray:
    """Return ``images`` as (N, H, W)."""
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim == 2:
        side = math.isqrt(images.shape[1])
        if side * side == images.shape[1]:
            images = images.reshape(-1, side, side)
    if images.ndim != 3 or not len(images):
        raise ValueError(f"images must be (N, H*H), (N, H, W) or (N, 1, H, W) with N > 0, not {images.shape}")
    return images


def _bytes(images: numpy.ndarray) -> numpy.ndarray:
    """Return ``images`` in 0..255."""
    if images.dtype == numpy.uint8:
        return images
    brightness = numpy.nan_to_num(images.astype(float), nan=0.0).clip(0.0, 1.0)
    return (255.0 * brightness).round().astype(numpy.uint8)
