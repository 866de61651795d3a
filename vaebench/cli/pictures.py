"""The commands that draw pictures of runs: `vaebench sample`, `reconstruct`, `interpolate` and `traverse`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from vaebench.cli.each_run import RunJob, each_run, run_words
from vaebench.cli.flags import PICTURE, settings
from vaebench.config.pictures import Interpolate, PictureSettings, Reconstruct, Sample, Traverse
from vaebench.errors import UserError

__all__ = ["interpolate", "reconstruct", "sample", "traverse"]

HELP = """usage: vaebench {command} RUN... [KEY=VALUE ...] [-o FILE.png]

{description}
RUN is a run folder or a folder of runs; each run gets a picture.

keys: {keys},
      scale (pixels of the PNG for each pixel of an image: 3), seed, device, data_dir, threads

flags:
  -o, --output FILE.png    the file to write, for one RUN (default: RUN/pictures/{command}.png)

examples:
  vaebench {command} outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
{examples}
"""


def picture_command(
    schema: type[PictureSettings], description: str, keys: str, *examples: str
) -> Callable[[list[str]], int]:
    """Return the function that runs one command.

    Args:
        schema: the command's settings; its name is the command's.
        description: for the help text.
        keys: for the help text; the keys of all pictures are added.
        examples: words after the command.
    """
    command = schema.__name__.lower()
    lines = "\n".join(f"  vaebench {command} {example}" for example in examples)
    return partial(run, schema, HELP.format(command=command, description=description, keys=keys, examples=lines))


def run(schema: type[PictureSettings], help_text: str, words: list[str]) -> int:
    """Carry out one of the commands and return the exit code; settings are checked before torch is imported."""
    given = run_words(words, PICTURE, help_text)
    look = settings(given.settings, schema)
    output = target(given.flags.get("--output"), len(given.folders))
    jobs = [RunJob(folder, [], partial(draw_run, look, folder, output)) for folder in given.folders]
    return each_run(jobs, "pictures")


def draw_run(look: PictureSettings, folder: Path, output: Path | None) -> None:
    """Draw the picture of one run and print its path."""
    from vaebench.draw import draw

    print(draw(look, folder, output), flush=True)


def target(output: str | None, runs: int) -> Path | None:
    """Return the path after -o. UserError unless it can be the PNG file of a single run."""
    if output is None:
        return None
    path = Path(output).expanduser()
    if runs > 1:
        raise UserError(f"-o names one file, but there are {runs} runs: leave -o out to write one picture for each run")
    if path.suffix.lower() != ".png":
        raise UserError(f"-o {output}: the name must end in .png")
    if path.is_dir():
        raise UserError(f"-o {output}: this is a folder, give a file name")
    return path


sample = picture_command(
    Sample,
    "Sample z from the prior with a run's best weights, and draw the pixel means in a grid.",
    "n (images: 64), columns (8)",
    "outputs/mnist n=100 columns=10 seed=3",
    "outputs/mnist/iwhvi-iwhvi-k1/0-1a2b3c4d -o samples.png",
)
reconstruct = picture_command(
    Reconstruct,
    "Encode images with a run's best weights, decode samples of z, and draw their pixel means beside each image.",
    """n (images: 32), columns (images in a row: 4), draws (reconstructions of each image: 1),
      split (train|validation|test), images (indices in the split, for example [3,17]; default: the first n)""",
    "outputs/mnist draws=7 columns=1 n=8 split=validation",
    "outputs/mnist 'images=[3,17,42]' scale=6",
)
interpolate = picture_command(
    Interpolate,
    """Encode pairs of images with a run's best weights, and decode points on the path between their latents. The two
images are at the ends of each row. An image's latent is the mean of q(z|x) if known, otherwise one sample.""",
    """n (pairs: 8), steps (points, including both ends: 8), path (linear|spherical),
      split (train|validation|test), images (indices in the split, for example [3,17]; default: the first 2n)""",
    "outputs/mnist path=spherical steps=12",
    "outputs/mnist 'images=[3,17]' scale=6",
)
traverse = picture_command(
    Traverse,
    """Encode an image with a run's best weights, and decode it with one coordinate of z changed. Each row shows one
coordinate; by default those with the largest standard deviation over images.""",
    """n (coordinates: 10), steps (9), reach (standard deviations to either side: 2.5),
      split (train|validation|test), image (its index: 0), coordinates (their indices, for example [0,5])""",
    "outputs/mnist image=17 'coordinates=[0,5]' reach=4",
)
