"""What the commands have in common that draw pictures of runs."""

from functools import partial
from pathlib import Path

from vaebench.cli.each_run import RunJob, each_run
from vaebench.cli.evaluate import split_paths
from vaebench.cli.flags import PICTURE, parse, settings
from vaebench.config.pictures import Look
from vaebench.errors import UserError

__all__ = ["COMMON", "run_picture"]

COMMON = """      scale (pixels for one of an image's: 3), seed, device, data_dir, threads

flags:
  -o, --output FILE.png    where to, for one RUN; {place} if left out
"""
"""The end of each help text's keys, and its flags."""


def run_picture(words: list[str], schema: type[Look], help_text: str) -> int:
    """Carry out one of the commands and return the exit code; everything is checked before torch is imported.

    Args:
        words: behind the command.
        schema: the command's settings.
        help_text: printed for --help.
    """
    parsed = parse(words, PICTURE)
    if "--help" in parsed.flags:
        print(help_text, end="")
        return 0
    paths, given = split_paths(parsed.rest)
    look = settings(given, schema)
    if not paths:
        raise UserError("missing RUN: give a run folder or a folder of runs")
    from vaebench.records import RunFolder

    folders = [folder.path for folder in RunFolder.find(paths)]
    output = target(parsed.flags.get("--output"), len(folders))

    def work(folder: Path) -> None:
        from vaebench.draw import draw

        print(draw(look, folder, output), flush=True)

    return each_run([RunJob(folder, [], partial(work, folder)) for folder in folders], "pictures")


def target(output: str | None, runs: int) -> Path | None:
    """Return the file that -o names, if it is one that can be written."""
    if output is None:
        return None
    path = Path(output).expanduser()
    if runs > 1:
        raise UserError(f"-o names one file, and there are {runs} runs: leave it out, and each gets its own picture")
    if path.suffix.lower() != ".png":
        raise UserError(f"-o {output}: pictures are PNG files, so the name has to end in .png")
    if path.is_dir():
        raise UserError(f"-o {output}: that is a folder")
    return path
