"""The files of TensorBoard's projector in a run folder. Imports no torch.

The plugin reads ``projector_config.pbtxt`` beside the event files. It names the other files, whose names have a digest
of their content. It is written last: so a kill leaves the old embedding or the new one, never parts of both.
"""

# pyright: reportAttributeAccessIssue=false
# (protobuf creates its classes at import, so a type checker cannot see them)

import hashlib
import math
import re
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from vaebench.files import remove
from vaebench.records.files import exclusive, write_failed, write_whole
from vaebench.records.folder import RunFolder
from vaebench.records.latents import Latents
from vaebench.records.pictures import png
from vaebench.records.provenance import Provenance

__all__ = ["LARGEST_SIDE", "write_projector"]

LARGEST_SIDE = 8192
"""Pixels: browsers draw no larger sprite."""
_WAIT_SECONDS = 60.0  # for another process that writes the embedding of the same run
_OWN = re.compile(r"([0-9a-f]{16})\.(?:tensors\.tsv|metadata\.tsv|sprite\.png)")


def write_projector(folder: RunFolder, latents: Latents, pictures: np.ndarray, title: str, made_by: Provenance) -> Path:
    """Write the means of ``latents`` as the embedding of a run, and delete the files of the one before.

    Args:
        folder: of the run.
        latents: the means, and the labels if there are any.
        pictures: the images as the encoder sees them, (N, H, W) or (N, H, W, 3) bytes.
        title: the name of the embedding in TensorBoard.
        made_by: is written into the sprite.

    Returns:
        the path of projector_config.pbtxt.

    Raises:
        UserError: a file cannot be written.
    """
    contents = {"tensors.tsv": _tensors(latents), "metadata.tsv": _metadata(latents)}
    if _side(len(pictures)) * max(pictures.shape[1:3]) <= LARGEST_SIDE:
        contents["sprite.png"] = png(_sprite(pictures), title, made_by)
    digest = hashlib.sha256(b"".join(contents.values())).hexdigest()[:16]
    config = ProjectorConfig()
    embedding = config.embeddings.add(tensor_name=title, tensor_shape=latents.mean.shape)
    embedding.tensor_path = f"projector/{digest}.tensors.tsv"
    embedding.metadata_path = f"projector/{digest}.metadata.tsv"
    if "sprite.png" in contents:
        embedding.sprite.image_path = f"projector/{digest}.sprite.png"
        embedding.sprite.single_image_dim.extend([pictures.shape[2], pictures.shape[1]])
    place = folder.path / "projector"
    with exclusive(folder.path / ".projector.lock", wait=_WAIT_SECONDS, busy=lambda who: f"{who} writes {place}: wait"):
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise write_failed(place, error) from error
        for name, content in contents.items():
            write_whole(place / f"{digest}.{name}", content)
        write_whole(folder.projector, text_format.MessageToString(config).encode())
        for path in place.iterdir():
            if (found := _OWN.fullmatch(path.name)) and found[1] != digest:
                remove(path)
    return folder.projector


def _tensors(latents: Latents) -> bytes:
    return "".join("\t".join(f"{value:.6g}" for value in row) + "\n" for row in latents.mean.tolist()).encode()


def _metadata(latents: Latents) -> bytes:
    """Return the labels and numbers of the images; a single column must have no header."""
    columns = {**latents.labels, "image": latents.images}
    rows = zip(*(map(_cell, column.tolist()) for column in columns.values()), strict=True)
    head = ["\t".join(columns)] if len(columns) > 1 else []
    return "".join(line + "\n" for line in [*head, *("\t".join(row) for row in rows)]).encode()


def _cell(value: object) -> str:
    return re.sub(r"\s", " ", str(value)) or "-"


def _side(count: int) -> int:
    """Return the columns and rows of a sprite: the plugin takes it for a square."""
    return math.ceil(math.sqrt(count))


def _sprite(pictures: np.ndarray) -> np.ndarray:
    """Return pictures in rows from the upper left, without gaps."""
    count, height, width, *channels = pictures.shape
    side = _side(count)
    sheet = np.zeros((side, height, side, width, *channels), np.uint8)
    for number, picture in enumerate(pictures):
        sheet[number // side, :, number % side] = picture
    return sheet.reshape(side * height, side * width, *channels)
