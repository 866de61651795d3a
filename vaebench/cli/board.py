"""`vaebench board`: start TensorBoard on runs."""

import contextlib
import io
import os
import signal
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from vaebench.cli.flags import BOARD, whole
from vaebench.cli.selection import selection
from vaebench.errors import UserError
from vaebench.records.text import counted
from vaebench.signals import stopping_signals

if TYPE_CHECKING:
    from vaebench.records import RunFolder

__all__ = ["run"]

HELP = """usage: vaebench board [RUN ...] [FLAGS]

Start TensorBoard on the runs in a folder (default: outputs) and print its address; Ctrl-C stops it.
With one folder it also shows runs that start later. With several RUNs or a filter it shows exactly these runs.

flags:
  --port N             default: first free port from 6006
  --host NAME          default: localhost; 0.0.0.0 allows connections from other machines
  --filter CONDITION   as in `vaebench compare`; repeat it to require several conditions
  --open               open a browser

tabs: Custom Scalars shows the bound, reconstruction and KL of all runs in one chart. HParams has one row for each
configuration, with its seeds together. Images shows samples and reconstructions. Text shows each run's configuration.

examples:
  vaebench board
  vaebench board outputs/mnist --filter encoder=gaussian,hvm --port 7000
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench board <words>`` and return the exit code."""
    chosen = selection(words, BOARD, HELP)
    flags, paths = chosen.flags, [Path(path) for path in chosen.paths]
    port = whole(flags["--port"], "--port", 1, 65535) if "--port" in flags else None
    folders = chosen_folders(paths, chosen.filters)
    try:
        with stopped_by_signals(), logdir(paths, folders, everything=not chosen.filters) as place:
            address = launched(place, port, flags.get("--host", "localhost"))
            print(f"TensorBoard on {counted(len(folders), 'run')} at {address} (Ctrl-C stops it)", flush=True)
            if "--open" in flags:
                webbrowser.open(address)
            while True:
                # Python runs a signal's handler in this thread alone. The system may deliver the signal to another
                # thread, and this sleep then runs to its end.
                time.sleep(0.5)
    except Stopped as stop:
        # The interpreter's own exit can wait without end for threads of TensorBoard and gRPC.
        os._exit(stop.exit_code)


class Stopped(BaseException):
    """A signal that ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 0 if number == signal.SIGINT else 128 + number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise Stopped in the block at a stopping signal; ignore later signals until the block has ended."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    numbers = stopping_signals()
    kept = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def chosen_folders(paths: Sequence[Path], filters: Sequence[str]) -> "list[RunFolder]":
    """Return the runs to show. UserError if there is none."""
    from vaebench.records import RunFolder

    if not filters:
        return RunFolder.find(paths)
    from vaebench.report.filters import matching_runs
    from vaebench.report.runs import read_runs

    folders = [run.folder for run in matching_runs(read_runs(paths)[0], filters)]
    if not folders:
        raise UserError("no run meets the conditions of --filter")
    return folders


@contextlib.contextmanager
def logdir(paths: Sequence[Path], folders: "Sequence[RunFolder]", *, everything: bool) -> Iterator[Path]:
    """Yield a folder with exactly these runs: the given one, or a temporary one with links to them."""
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
                    f"cannot create links to the runs ({error.strerror}): give one folder of runs, without --filter"
                ) from error
        yield Path(temporary)


def launched(place: Path, port: int | None, host: str) -> str:
    """Start TensorBoard in threads of this process and return its address. UserError if the port is in use."""
    import logging

    from tensorboard import default, program
    from tensorboard.program import TensorBoardServerException

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    board = program.TensorBoard(default.get_plugins())
    words = ["vaebench board", f"--logdir={place}", f"--host={host}"]
    board.configure([*words, *([] if port is None else [f"--port={port}"])])
    try:
        # At each start it prints that its fast reader is experimental. Errors are raised and not printed.
        with contextlib.redirect_stderr(io.StringIO()):
            return board.launch()
    except TensorBoardServerException as error:
        raise UserError(f"{error}; use another port or host: --port N, --host NAME") from error
