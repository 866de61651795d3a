"""`vaebench traverse`: one latent coordinate at a time as a PNG."""

from vaebench.cli.pictures import COMMON, run_picture
from vaebench.config.pictures import Traverse

__all__ = ["run"]

HELP = f"""usage: vaebench traverse RUN... [KEY=VALUE ...] [-o FILE.png]

Encode an image with a run's best weights and decode it with one coordinate of z moved, a row for each coordinate: those
in which images differ most, unless you name others.
RUN is a run folder, or a folder that holds run folders: each gets a picture.

keys: n (coordinates: 10), steps (9), reach (standard deviations to either side: 2.5),
      split (train|validation|test), image (its number: 0), coordinates (their numbers, as in [0,5]),
{COMMON.format(place="RUN/pictures/traverse.png")}
examples:
  vaebench traverse outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench traverse outputs/mnist image=17 'coordinates=[0,5]' reach=4
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench traverse <words>`` and return the exit code."""
    return run_picture(words, Traverse, HELP)
