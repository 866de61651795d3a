"""The common part of the commands that draw pictures of runs."""

from functools import partial
from pathlib import Path

from vaebench.cli.each_run import RunJob, each_run, run_words
from vaebench.cli.flags import PICTURE, settings
from vaebench.config.pictures import PictureSettings
from vaebench.errors import UserError

__all__ = ["help_text", "run_picture"]

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


def help_text(command: str, description: str, keys: str, *examples: str) -> str:
    """Return the help text of one command; ``examples`` are words after the command."""
    lines = [f"  vaebench {command} {example}" for example in examples]
    return HELP.format(command=command, description=description, keys=keys, examples="\n".join(lines))


def run_picture(words: list[str], schema: type[PictureSettings], help_text: str) -> int:
    """Carry out one of the commands and return the exit code; settings are checked before torch is imported.

    Args:
        words: after the command.
        schema: the command's settings.
        help_text: printed for --help.
    """
    given = run_words(words, PICTURE, help_text)
    if given is None:
        return 0
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
