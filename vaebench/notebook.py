"""Train, evaluate and read runs from Python: what the commands do, with objects that a notebook shows.

The functions are `vaebench.train`, `vaebench.evaluate` and `vaebench.runs`. Results are never bare numbers: each keeps
its direction, estimator, protocol and standard error.
"""

import contextlib
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, overload

from vaebench.cli.argv import command_line, lasting_flags
from vaebench.config import Config, compose
from vaebench.config.words import for_hydra, is_zip, key_of, override
from vaebench.direction import Direction
from vaebench.errors import UserError
from vaebench.records import ResultRecord, RunFolder, format_line, read_per_image
from vaebench.records.text import counted, with_error, with_sign
from vaebench.report.conditions import Result
from vaebench.report.filters import matching_runs
from vaebench.report.frames import curves_frame, method_names, results_frame, runs_frame
from vaebench.report.runs import LeftOut, Run, read_runs
from vaebench.typed import clipped

if TYPE_CHECKING:
    import numpy
    import pandas

    from vaebench.experiment import Experiment

__all__ = ["LabelledResult", "Results", "Runs", "TrainedRun", "evaluate", "runs", "train"]

Words = str | Iterable[str]
RunOrPath = Union["TrainedRun", str, Path]


# Objects --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class LabelledResult:
    """One result of a run, with everything that its number means. It is no number: take `mean` for that."""

    folder: Path
    """The run folder."""
    record: ResultRecord
    """All fields, as in results.json."""

    @property
    def mean(self) -> float:
        """The mean over images, nats per image."""
        return self.record.mean

    @property
    def stderr(self) -> float:
        """The standard error of the mean over images, nats."""
        return self.record.stderr

    @property
    def direction(self) -> Direction:
        """Whether the mean is exact, a lower bound, an upper bound or an estimate, in expectation."""
        return self.record.direction

    @property
    def quantity(self) -> str:
        return self.record.quantity

    @property
    def estimator(self) -> str:
        return self.record.estimator

    @property
    def k(self) -> int | None:
        """Importance samples; None if the estimator has none."""
        return self.record.k

    @property
    def protocol(self) -> str:
        """Data set, binarization and subset, for example ``mnist/dynamic-v1``."""
        return self.record.protocol

    @property
    def split(self) -> str:
        return self.record.split

    @property
    def n_images(self) -> int:
        return self.record.n_images

    @cached_property
    def per_image(self) -> "numpy.ndarray":
        """The value of each image, averaged over repeats, (N,), in nats; `mean` is their mean.

        Raises:
            UserError: the run folder has no readable file with them.
        """
        return read_per_image(RunFolder.open(self.folder), self.record).values

    def __str__(self) -> str:
        return format_line(self.record)

    def __repr__(self) -> str:
        return f"<{self}>"

    def _repr_html_(self) -> str:
        return Results([self])._repr_html_()


class Results(list[LabelledResult]):
    """Results, shown as lines of text or as a table."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no results"

    __repr__ = __str__

    def frame(self) -> "pandas.DataFrame":
        """Return a table with one row for each result; see `Runs.results`."""
        read = {folder: Run.read(RunFolder.open(folder)) for folder in {one.folder for one in self}}
        return results_frame([Result(read[one.folder], one.record) for one in self])

    def _repr_html_(self) -> str:
        head = ("result", "nats per image ± standard error", "estimator", "protocol", "images", "run")
        return _html_table(head, [_html_cells(one) for one in self])


def _html_cells(one: LabelledResult) -> list[str]:
    record = one.record
    numbers = {"k": record.k, "inner_k": record.inner_k, **record.settings}
    words = [record.estimator, *(f"{name}={value}" for name, value in numbers.items() if value is not None)]
    number = with_sign(record.direction, with_error(record.mean, record.stderr, sign="±"))
    quantity = f"{record.split} {record.measure.named(record.quantity)}"
    cells = [quantity, f"{number} ({record.direction.replace('_', ' ')})", ", ".join(words), record.protocol]
    return [*cells, f"{record.n_images:,}", str(one.folder)]


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, cells: Iterable[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A run folder. Its state and results are read when they are asked for."""

    folder: Path

    def read(self) -> Run:
        """Return the contents of the folder now: config, status, results and manifest. UserError if one is corrupt."""
        return Run.read(RunFolder.open(self.folder))

    @property
    def config(self) -> Config:
        return self.read().config

    @property
    def state(self) -> str:
        """running, finished, failed, interrupted, or "not started"."""
        return self.read().state

    @property
    def seed(self) -> int:
        return self.read().seed

    @property
    def results(self) -> Results:
        """The results of the weights, the code and the data that the run has now."""
        return Results(LabelledResult(self.folder, record) for record in self.read().results)

    def frame(self) -> "pandas.DataFrame":
        """Return a table of one row; see `Runs.frame`."""
        return runs_frame([self.read()])

    def curves(self) -> "pandas.DataFrame":
        """Return every recorded number of the run; see `Runs.curves`."""
        return curves_frame([self.read()])

    def load(self) -> "Experiment":
        """Return the run's objects with its best weights, as `vaebench.load` does."""
        from vaebench.experiment import load

        return load(self.folder)

    def __repr__(self) -> str:
        run = self.read()
        (name,) = method_names([run])
        lines = [f"run {self.folder}: {name}, {run.config.dataset.name}, seed {run.seed}, {run.state}"]
        return "\n  ".join([*lines, *map(str, self.results)])

    def _repr_html_(self) -> str:
        run = self.read()
        (name,) = method_names([run])
        trained = f"{run.epochs_done:.4g} of {run.config.trainer.epochs}"
        facts = (name, run.config.dataset.name, str(run.seed), run.state, trained, str(self.folder))
        text = _html_table(("method", "data", "seed", "state", "epochs", "run"), [facts])
        return text + (self.results._repr_html_() if run.results else "<p>no results</p>")


class Runs(Sequence[TrainedRun]):
    """Runs as they were when `runs` read them: call it again after a training or an evaluation."""

    def __init__(self, read: Sequence[Run], unreadable: Sequence[LeftOut] = ()) -> None:
        self.read = list(read)
        self.unreadable = list(unreadable)
        """Folders of runs with a corrupt file, each with the reason."""

    @overload
    def __getitem__(self, index: int) -> TrainedRun: ...

    @overload
    def __getitem__(self, index: slice) -> "Runs": ...

    def __getitem__(self, index: int | slice) -> "TrainedRun | Runs":
        if isinstance(index, slice):
            return Runs(self.read[index])
        return TrainedRun(self.read[index].folder.path)

    def __len__(self) -> int:
        return len(self.read)

    @property
    def folders(self) -> list[Path]:
        """The run folders."""
        return [run.folder.path for run in self.read]

    def frame(self) -> "pandas.DataFrame":
        """Return a table with one row for each run: its state, a result of log p(x), and its settings.

        The result has its columns ``direction``, ``estimator``, ``protocol`` and ``stderr``. If a run has several, it
        is the latest of the kind that most runs have.
        """
        return runs_frame(self.read)

    def curves(self) -> "pandas.DataFrame":
        """Return every recorded number in a row: run, method, seed, step, epoch, seconds, quantity, direction, value.

        Raises:
            UserError: a line of a run's metrics is corrupt.
        """
        return curves_frame(self.read)

    def results(self) -> "pandas.DataFrame":
        """Return all current results, one in each row, in nats per image."""
        return results_frame([Result(run, record) for run in self.read for record in run.results])

    def __repr__(self) -> str:
        lines = [counted(len(self), "run"), *(str(folder) for folder in self.folders[:_SHOWN])]
        lines += [f"and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        return "\n  ".join([*lines, *self._warnings()])

    def _repr_html_(self) -> str:
        frame = self.frame()
        shown = ("method", "seed", "state", "direction", "mean", "stderr", "estimator", "result.k", "protocol", "run")
        text = frame[[name for name in shown if name in frame]].to_html(max_rows=_SHOWN)
        return text + "".join(f"<p>{html.escape(line)}</p>" for line in self._warnings())

    def _warnings(self) -> Iterator[str]:
        yield from (f"left out: {folder}: {reason}" for folder, reason in self.unreadable)


_SHOWN = 20  # runs of a collection


# Functions ------------------------------------------------------------------------------------------------


def train(*words: Words, fresh: bool = False, **settings: Any) -> TrainedRun:
    """Train one run and evaluate it, as ``vaebench train`` does; the same call again resumes it or shows its results.

    For example ``vaebench.train("encoder=hvm", "trainer.epochs=10", objective="iwae", k=16)``.

    Args:
        words: settings as on the command line, or lists of them.
        fresh: train from the start; an earlier run is kept under another name.
        settings: further settings; a dictionary sets the keys of a group: ``trainer={"epochs": 10}``.

    Raises:
        UserError: an invalid setting or combination, missing data or device.
        RunFailed: the training failed; the files written before are kept.
        KeyboardInterrupt: it was interrupted, and its state is saved.
    """
    overrides = _overrides(words, settings)
    for word in overrides:
        if is_zip(word) or override(for_hydra(word), "train").is_sweep_override():
            raise UserError(f"'{clipped(word)}' gives several values: use one call for each, or a list in brackets")
    from vaebench.train.session import train as train_run

    config = compose(overrides)
    # The recorded command trains this run from a shell.
    with _as_call(), command_line(["vaebench", "train", *lasting_flags(), *overrides]):
        return TrainedRun(train_run(config, fresh=fresh))


def evaluate(run: RunOrPath | Iterable[RunOrPath], *words: Words, **settings: Any) -> Results:
    """Evaluate runs with their best weights, as ``vaebench evaluate`` does, and return the new results.

    For example ``vaebench.evaluate(run, "estimator=iwae", "estimator.k=5000")``. The results are added to the run
    folders. If one of several evaluations fails, its error is printed, and the others are done.

    Args:
        run: a run, a run folder, a folder of runs, or several of them.
        words: settings as on the command line, or lists of them; several values mean several evaluations.
        settings: further settings; a dictionary sets the keys of a group: ``estimator={"k": 5000}``.

    Raises:
        UserError: an invalid setting, or a path that holds no run.
        RunFailed: an estimate is not finite or must not be reported, or some of several evaluations failed.
        KeyboardInterrupt: it was interrupted; finished images are saved, and the same call resumes.
    """
    overrides = _overrides(words, settings)
    from vaebench.cli.each_run import RunJob, each_run
    from vaebench.cli.evaluate import evaluations_of

    found = Results()

    def noting(job: RunJob) -> RunJob:
        def do() -> None:
            records: Any = job.do()
            found.extend(LabelledResult(job.folder, record) for record in records)

        return job._replace(do=do)

    folders = [folder.path for folder in RunFolder.find(_paths(run))]
    with _as_call():
        each_run([noting(job) for folder in folders for job in evaluations_of(folder, overrides)], "evaluations")
    return found


def runs(*paths: RunOrPath | Iterable[RunOrPath], filters: Words = ()) -> Runs:
    """Return the runs at or below the paths (default: ``outputs``).

    Args:
        paths: runs, run folders, folders of runs, or lists of them.
        filters: conditions that must all hold, for example ``["encoder=hvm,iwhvi", "k>=5"]``; also ``state`` and
            ``seed``.

    Raises:
        UserError: a path holds no run, or a filter is not a condition or names a setting that no run has.
    """
    given = [path for one in paths for path in _paths(one)] or [Path("outputs")]
    read, unreadable = read_runs(given)
    return Runs(matching_runs(read, [filters] if isinstance(filters, str) else filters), unreadable)


def _paths(given: RunOrPath | Iterable[RunOrPath]) -> list[Path]:
    if isinstance(given, str | Path):
        return [Path(given).expanduser()]
    return [given.folder] if isinstance(given, TrainedRun) else [path for one in given for path in _paths(one)]


def _overrides(words: Iterable[Words], settings: Mapping[str, Any]) -> list[str]:
    """Return the settings of a call as words of the command line, as typed.

    Raises:
        UserError: a word is a flag, or a setting of hydra.
    """
    found = [word for one in words for word in ([one] if isinstance(one, str) else one)]
    found += [f"{key}={_typed(value)}" for key, value in _flat(settings)]
    for word in found:
        if word.startswith("-"):
            raise UserError(f"{clipped(word)} is a flag of the command line: give settings only (KEY=VALUE)")
        if key_of(word).startswith("hydra"):
            raise UserError(f"{clipped(word)} is a setting of hydra, which a call from Python does not use: remove it")
    return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _typed(value: Any) -> str:
    """Return a value as it is typed: null for None, true for True, [1,2] for (1, 2); a text as it is."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    return str(value)


@contextlib.contextmanager
def _as_call() -> Iterator[None]:
    """Restore global settings after the block, and turn the exit of an interrupted command into KeyboardInterrupt."""
    from vaebench.isolation import isolated

    try:
        with isolated():
            yield
    except SystemExit as stop:
        if stop.code != 130:  # another signal than SIGINT: the process has to end
            raise
        raise KeyboardInterrupt("interrupted; the state is saved, and the same call resumes") from stop
