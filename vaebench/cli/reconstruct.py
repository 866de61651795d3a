"""`vaebench reconstruct`: draw images and their reconstructions as a PNG."""

from vaebench.cli.pictures import help_text, run_picture
from vaebench.config.pictures import Reconstruct

__all__ = ["run"]

HELP = help_text(
    "reconstruct",
    "Encode images with a run's best weights, decode samples of z, and draw their pixel means beside each image.",
    """n (images: 32), columns (images in a row: 4), draws (reconstructions of each image: 1),
      split (train|validation|test), images (indices in the split, for example [3,17]; default: the first n)""",
    "outputs/mnist draws=7 columns=1 n=8 split=validation",
    "outputs/mnist 'images=[3,17,42]' scale=6",
)


def run(words: list[str]) -> int:
    """Carry out ``vaebench reconstruct <words>`` and return the exit code."""
    return run_picture(words, Reconstruct, HELP)
