"""What the commands have in common that draw pictures of runs."""

from pathlib import Path

from vaebench.cli.evaluate import told_apart
from vaebench.cli.failure import expected, tell
from vaebench.cli.flags import PICTURE, parse, settings
from vaebench.config.pictures import Look
from vaebench.errors import RunFailed, UserError

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
    paths, given = told_apart(parsed.rest)
    look = settings(given, schema)
    if not paths:
        command = schema.__name__.lower()
        raise UserError(f"which run? `vaebench {command} RUN`, RUN being a run folder or a folder of runs")
    from vaebench.records import RunFolder

    folders = [folder.path for folder in RunFolder.find(paths)]
    return draw_all(folders, look, target(parsed.flags.get("--output"), len(folders)))


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


def draw_all(folders: list[Path], look: Look, output: Path | None) -> int:
    """Draw each run; one that fails does not keep the others from it."""
    from vaebench.cli.core import core

    if len(folders) == 1:
        print(core().draw(look, folders[0], output), flush=True)
        return 0
    failed = sum(not drawn(folder, look) for folder in folders)
    if failed:
        raise RunFailed(f"{failed} of {len(folders)} pictures failed; the lines above say which and why")
    return 0


def drawn(folder: Path, look: Look) -> bool:
    """Draw one run of several and return whether that went well."""
    from vaebench.cli.core import core

    try:
        print(core().draw(look, folder), flush=True)
    except Exception as error:
        if not expected(error):
            raise
        tell(error, [str(folder)])
        return False
    return True
