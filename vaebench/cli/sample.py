"""`vaebench sample`: draws from a run's prior as a PNG."""

from vaebench.cli.pictures import COMMON, run_picture
from vaebench.config.pictures import Sample

__all__ = ["run"]

HELP = f"""usage: vaebench sample RUN... [KEY=VALUE ...] [-o FILE.png]

Draw z from the prior of a run's best weights and show the pixel means, in a grid.
RUN is a run folder, or a folder that holds run folders: each gets a picture.

keys: n (images: 64), columns (8),
{COMMON.format(place="RUN/pictures/sample.png")}
examples:
  vaebench sample outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench sample outputs/mnist n=100 columns=10 seed=3
  vaebench sample outputs/mnist/iwhvi-iwhvi-k1/0-1a2b3c4d -o samples.png
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench sample <words>`` and return the exit code."""
    return run_picture(words, Sample, HELP)
