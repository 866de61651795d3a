"""`vaebench sample`: draw samples from a run's prior as a PNG."""

from vaebench.cli.pictures import help_text, run_picture
from vaebench.config.pictures import Sample

__all__ = ["run"]

HELP = help_text(
    "sample",
    "Sample z from the prior with a run's best weights, and draw the pixel means in a grid.",
    "n (images: 64), columns (8)",
    "outputs/mnist n=100 columns=10 seed=3",
    "outputs/mnist/iwhvi-iwhvi-k1/0-1a2b3c4d -o samples.png",
)


def run(words: list[str]) -> int:
    """Carry out ``vaebench sample <words>`` and return the exit code."""
    return run_picture(words, Sample, HELP)
