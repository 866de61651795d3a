"""`vaebench board`: start TensorBoard on runs."""

import contextlib
import io
import os
import signal
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Never, Protocol

from vaebench.cli.flags import BOARD, whole
from vaebench.cli.selection import selection
from vaebench.errors import UserError
from vaebench.records.text import counted
from vaebench.signals import stopping_signals

if TYPE_CHECKING:
    from vaebench.records import RunFolder
    from vaebench.report.filters import Condition

__all__ = ["run"]

HELP = """usage: vaebench board [RUN ...] [FLAGS]

Start TensorBoard on the runs in a folder (default: outputs) and print its address; Ctrl-C stops it.
Runs that start later are shown too, if they are in a given folder and meet the conditions.

flags:
  --port N             default: first free port from 6006
  --host NAME          default: localhost; 0.0.0.0 allows connections from other machines
  --filter CONDITION   as in `vaebench compare`; repeat it to require several conditions
  --names NAMES        settings (default): what differs among the runs, for example `encoder=hvm k=16 seed=0`;
                       folder: the names of the run folders
  --open               open a browser

tabs: Custom Scalars shows the bound, reconstruction and KL of all runs, each in a chart. HParams has one row for each
configuration, with its seeds together. Images shows samples and reconstructions. Text shows each run's configuration
and results.

examples:
  vaebench board
  vaebench board outputs/mnist --filter encoder=gaussian,hvm --port 7000
"""
_LOOK_SECONDS = 5.0
"""Between two looks for new runs. TensorBoard itself looks for new events as often."""


def run(words: list[str]) -> int:
    """Carry out ``vaebench board <words>`` and return the exit code."""
    chosen = selection(words, BOARD, HELP)
    flags = chosen.flags
    port = whole(flags["--port"], "--port", 1, 65535) if "--port" in flags else None
    shown = Shown([Path(path) for path in chosen.paths], chosen.filters)
    folders = shown.look()
    if not folders:
        raise UserError("no run meets the conditions of --filter")
    names = FolderNames(shown) if flags.get("--names") == "folder" else SettingsNames()
    try:
        with stopped_by_signals(), linked(names.of(folders)) as links:
            address = launched(links.place, port, flags.get("--host", "localhost"))
            print(f"TensorBoard on {counted(len(folders), 'run')} at {address} (Ctrl-C stops it)", flush=True)
            if "--open" in flags:
                webbrowser.open(address)
            follow(shown, names, links)
    except Stopped as stop:
        # The interpreter's own exit can wait without end for threads of TensorBoard and gRPC.
        os._exit(stop.exit_code)


def follow(shown: "Shown", names: "Names", links: "Links") -> Never:
    """Add links to new runs, and renew those of runs with new results, until a signal stops the command."""
    while True:
        began = time.monotonic()
        links.renew()
        links.add(names.of(shown.look()))
        # A look at thousands of runs must not take all the time.
        end = time.monotonic() + max(_LOOK_SECONDS, 10 * (time.monotonic() - began))
        while time.monotonic() < end:
            # Python runs a signal's handler in this thread alone. The system may deliver the signal to another
            # thread, and this sleep then runs to its end.
            time.sleep(0.5)


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


class Shown:
    """The runs at or below some folders that meet the conditions, also runs that start later."""

    def __init__(self, paths: Sequence[Path], filters: Sequence[str]) -> None:
        self.paths, self._filters = paths, filters
        self._conditions: list[Condition] | None = None
        self._seen: dict[Path, int] = {}
        """For each run folder that was looked at, the time of its last change of state, or 0 if it is shown."""

    def look(self) -> "list[RunFolder]":
        """Return the runs that were not returned before.

        Raises:
            UserError: at the first call, if there is no run below a path or a condition is invalid.
        """
        from vaebench.records import RunFolder

        if self._conditions is not None:
            return [folder for folder in self._found() if self._is_new(folder)]
        folders = RunFolder.find(self.paths)
        self._conditions = []
        if self._filters:
            from vaebench.report.filters import matching_runs, parse
            from vaebench.report.runs import read_runs

            self._seen = {folder.path.resolve(): _changed(folder) for folder in folders}
            folders = [run.folder for run in matching_runs(read_runs(self.paths)[0], self._filters)]
            self._conditions = [condition for text in self._filters for condition in parse(text)]
        self._seen |= {folder.path.resolve(): 0 for folder in folders}
        return folders

    def _found(self) -> "Iterator[RunFolder]":
        from vaebench.records import RunFolder

        for path in self.paths:
            with contextlib.suppress(UserError, OSError):  # a folder was moved or deleted
                yield from RunFolder.find([path])

    def _is_new(self, folder: "RunFolder") -> bool:
        """Whether the run was not shown before and meets the conditions; a run is read again when its state changes."""
        place, changed = folder.path.resolve(), _changed(folder)
        if self._seen.get(place) in (0, changed):
            return False
        self._seen[place] = changed
        if self._conditions:
            from vaebench.report.filters import meets
            from vaebench.report.runs import Run

            with contextlib.suppress(UserError):  # a damaged run meets no condition
                if meets(Run.read(folder), self._conditions):
                    self._seen[place] = 0
            return self._seen[place] == 0
        self._seen[place] = 0
        return True


def _changed(folder: "RunFolder") -> int:
    """Return the time of the last change of the run's state, in ns; 1 before its first state."""
    try:
        return folder.status.stat().st_mtime_ns
    except OSError:
        return 1


class Names(Protocol):
    """How TensorBoard names runs."""

    def of(self, folders: "Sequence[RunFolder]") -> dict[Path, str]:
        """Return the name of each run, by its folder without links."""
        ...


class SettingsNames:
    """Names by the settings that differ; see `vaebench.report.run_names.RunNames`."""

    def __init__(self) -> None:
        from vaebench.report.run_names import RunNames

        self._names = RunNames()

    def of(self, folders: "Sequence[RunFolder]") -> dict[Path, str]:
        """Return the name of each run. A run with a damaged config.yaml has the name of its folder."""
        from vaebench.config import read

        configs, damaged = {}, list[Path]()
        for folder in folders:
            try:
                configs[folder.path.resolve()] = read(folder.path)
            except UserError:
                damaged.append(folder.path.resolve())
        names = self._names.add(configs) if configs else {}
        return names | {path: self._names.unique(f"damaged {path.parent.name} {path.name}", "") for path in damaged}


class FolderNames:
    """The names of the run folders, below the folder that all given paths share."""

    def __init__(self, shown: Shown) -> None:
        from vaebench.records import RunFolder

        folders = [path.resolve() for path in shown.paths]
        self._base = Path(os.path.commonpath([p.parent if RunFolder(p).config.exists() else p for p in folders]))

    def of(self, folders: "Sequence[RunFolder]") -> dict[Path, str]:
        """Return the name of each run."""
        places = [folder.path.resolve() for folder in folders]
        return {place: str(place.relative_to(self._base)) for place in places}


class Links:
    """Links to runs in a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._targets: dict[Path, Path] = {}
        self._removed: list[Path] = []
        self._results: dict[Path, set[str]] = {}

    def add(self, names: Mapping[Path, str]) -> None:
        """Make a link to each run. UserError if the system allows no links."""
        for target, name in names.items():
            path = self.place / name
            self._targets[path], self._results[path] = target, _result_files(target)
            self._make(path)

    def renew(self) -> None:
        """Remove the link of each run whose results were replaced, and make the links that the last call removed.

        TensorBoard shows the results of deleted event files until their run is gone.
        """
        for path in self._removed:
            self._make(path)
        self._removed = []
        for path, target in self._targets.items():
            old, self._results[path] = self._results[path], _result_files(target)
            if old - self._results[path]:
                path.unlink(missing_ok=True)
                self._removed.append(path)

    def _make(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.symlink_to(self._targets[path], target_is_directory=True)
        except OSError as error:
            raise UserError(
                f"cannot create links to the runs ({error.strerror}): run `tensorboard --logdir FOLDER`, "
                "which shows the names of the run folders"
            ) from error


def _result_files(folder: Path) -> set[str]:
    from vaebench.records.events import result_files

    return {path.name for path in result_files(folder)}


@contextlib.contextmanager
def linked(names: Mapping[Path, str]) -> Iterator[Links]:
    """Yield links to the runs in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="vaebench-board-") as temporary:
        links = Links(Path(temporary))
        links.add(names)
        yield links


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
