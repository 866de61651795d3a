"""`vaebench interpolate`: draw paths between images through latent space as a PNG."""

from vaebench.cli.pictures import help_text, run_picture
from vaebench.config.pictures import Interpolate

__all__ = ["run"]

HELP = help_text(
    "interpolate",
    """Encode pairs of images with a run's best weights, and decode points on the path between their latents. The two
images are at the ends of each row. An image's latent is the mean of q(z|x) if known, otherwise one sample.""",
    """n (pairs: 8), steps (points, including both ends: 8), path (linear|spherical),
      split (train|validation|test), images (indices in the split, for example [3,17]; default: the first 2n)""",
    "outputs/mnist path=spherical steps=12",
    "outputs/mnist 'images=[3,17]' scale=6",
)


def run(words: list[str]) -> int:
    """Carry out ``vaebench interpolate <words>`` and return the exit code."""
    return run_picture(words, Interpolate, HELP)
