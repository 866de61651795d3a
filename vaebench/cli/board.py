"""`vaebench board`: TensorBoard on runs."""

import contextlib
import io
import os
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vaebench.cli.flags import BOARD, parse, take
from vaebench.errors import UserError

if TYPE_CHECKING:
    from vaebench.records import RunFolder

__all__ = ["run"]

HELP = """usage: vaebench board [RUN ...] [FLAGS]

Start TensorBoard on the runs in a folder (default: outputs), print its address, and stop with Ctrl-C. With several RUN
words or a filter it shows these runs alone; of one folder it shows new runs too, as they come.

flags:
  --port N             the first free one from 6006 on, unless you say
  --host NAME          localhost; 0.0.0.0 lets other machines in
  --filter CONDITION   as in `vaebench compare`; may be repeated
  --open               open a browser as well

where to look: Custom Scalars has the bound, reconstruction and KL of all runs in one chart; HParams has a row for each
configuration, its seeds together; Images has samples and reconstructions; Text has each run's configuration.

examples:
  vaebench board
  vaebench board outputs/mnist --filter encoder=gaussian,hvm --port 7000
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench board <words>`` and return the exit code."""
    filters, words = take(words, "--filter", 1)
    parsed = parse(words, BOARD)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    port = checked_port(parsed.flags.get("--port"))
    from vaebench.cli.selection import DEFAULT_FOLDER

    paths = [Path(path) for path in parsed.rest or [DEFAULT_FOLDER]]
    folders = chosen_folders(paths, [condition for (condition,) in filters])
    with logdir(paths, folders, everything=not filters) as place:
        address = launched(place, port, parsed.flags.get("--host", "localhost"))
        count = f"{len(folders)} run{'s' * (len(folders) != 1)}"
        print(f"TensorBoard on {count} at {address} (Ctrl-C ends it)", flush=True)
        if "--open" in parsed.flags:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    return 0


def checked_port(text: str | None) -> int | None:
    """Return the port, None where none was given."""
    if text is None:
        return None
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UserError(f"--port must be a number from 1 to 65535, not '{text}'")
    return int(text)


def chosen_folders(paths: Sequence[Path], filters: Sequence[str]) -> "list[RunFolder]":
    """Return the runs to show. UserError when there is none."""
    from vaebench.records import RunFolder

    if not filters:
        return RunFolder.find(paths)
    from vaebench.report.filters import matching_runs
    from vaebench.report.runs import read_runs

    folders = [run.folder for run in matching_runs(read_runs(paths)[0], filters)]
    if not folders:
        raise UserError("no run meets the conditions, so there is nothing to show")
    return folders


@contextlib.contextmanager
def logdir(paths: Sequence[Path], folders: "Sequence[RunFolder]", *, everything: bool) -> Iterator[Path]:
    """Yield a folder that holds these runs alone: the one given, or one of links to them, for as long as it lasts."""
    if everything and len(paths) == 1:
        yield paths[0].resolve()
        return
    places = [folder.path.resolve() for folder in folders]
    base = Path(os.path.commonpath([place.parent for place in places]))
    with tempfile.TemporaryDirectory(prefix="vaebench-board-") as temporary:
        for place in places:
            link = Path(temporary) / place.relative_to(base)
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                link.symlink_to(place, target_is_directory=True)
            except OSError as error:
                raise UserError(
                    f"cannot make links to runs here ({error.strerror}): give one folder of runs and no filter"
                ) from error
        yield Path(temporary)


def launched(place: Path, port: int | None, host: str) -> str:
    """Start TensorBoard in threads of this process and return its address. UserError when the port is taken."""
    import logging

    from tensorboard import default, program
    from tensorboard.program import TensorBoardServerException

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    board = program.TensorBoard(default.get_plugins())
    words = ["vaebench board", f"--logdir={place}", f"--host={host}"]
    board.configure([*words, *([] if port is None else [f"--port={port}"])])
    try:
        # It says at each start that its fast reader is an experiment; what goes wrong is raised.
        with contextlib.redirect_stderr(io.StringIO()):
            return board.launch()
    except TensorBoardServerException as error:
        raise UserError(f"{error}; choose another port or host: --port N, --host NAME") from error
