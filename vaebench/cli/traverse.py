"""`vaebench traverse`: draw an image with one latent coordinate changed at a time as a PNG."""

from vaebench.cli.pictures import help_text, run_picture
from vaebench.config.pictures import Traverse

__all__ = ["run"]

HELP = help_text(
    "traverse",
    """Encode an image with a run's best weights, and decode it with one coordinate of z changed. Each row shows one
coordinate; by default those with the largest standard deviation over images.""",
    """n (coordinates: 10), steps (9), reach (standard deviations to either side: 2.5),
      split (train|validation|test), image (its index: 0), coordinates (their indices, for example [0,5])""",
    "outputs/mnist image=17 'coordinates=[0,5]' reach=4",
)


def run(words: list[str]) -> int:
    """Carry out ``vaebench traverse <words>`` and return the exit code."""
    return run_picture(words, Traverse, HELP)
