"""`vaebench interpolate`: ways between images through latent space as a PNG."""

from vaebench.cli.pictures import COMMON, run_picture
from vaebench.config.pictures import Interpolate

__all__ = ["run"]

HELP = f"""usage: vaebench interpolate RUN... [KEY=VALUE ...] [-o FILE.png]

Encode pairs of images with a run's best weights and decode points on the way from one to the other, between the images
themselves. An image's place is the mean of q(z|x) where that is known, else one draw.
RUN is a run folder, or a folder that holds run folders: each gets a picture.

keys: n (pairs: 8), steps (points, both ends included: 8), path (linear|spherical),
      split (train|validation|test), images (their numbers in the split, as in [3,17], in place of the first 2n),
{COMMON.format(place="RUN/pictures/interpolate.png")}
examples:
  vaebench interpolate outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench interpolate outputs/mnist path=spherical steps=12
  vaebench interpolate outputs/mnist 'images=[3,17]' scale=6
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench interpolate <words>`` and return the exit code."""
    return run_picture(words, Interpolate, HELP)
