"""`vaebench reconstruct`: images beside their reconstructions as a PNG."""

from vaebench.cli.pictures import COMMON, run_picture
from vaebench.config.pictures import Reconstruct

__all__ = ["run"]

HELP = f"""usage: vaebench reconstruct RUN... [KEY=VALUE ...] [-o FILE.png]

Encode images with a run's best weights, decode draws of z, and show each image with the pixel means to its right.
RUN is a run folder, or a folder that holds run folders: each gets a picture.

keys: n (images: 32), columns (images in a row: 4), draws (reconstructions of each: 1),
      split (train|validation|test), images (their numbers in the split, as in [3,17], in place of the first n),
{COMMON.format(place="RUN/pictures/reconstruct.png")}
examples:
  vaebench reconstruct outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench reconstruct outputs/mnist draws=7 columns=1 n=8 split=validation
  vaebench reconstruct outputs/mnist 'images=[3,17,42]' scale=6
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench reconstruct <words>`` and return the exit code."""
    return run_picture(words, Reconstruct, HELP)
