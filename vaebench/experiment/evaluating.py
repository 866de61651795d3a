"""Estimates of log p(x) for the best weights of runs, resumable image by image."""

import contextlib
import hashlib
import io
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor
from tqdm import tqdm

from vaebench import runtime
from vaebench.config import for_evaluation, identity, read
from vaebench.errors import RunFailed
from vaebench.evaluation import PerImage
from vaebench.experiment.assembly import Experiment, build, load_best, registered
from vaebench.experiment.estimators import ESTIMATORS, Finding, Plan
from vaebench.records import ResultRecord, RunFolder, append_result, format_line, read_results
from vaebench.records.files import write_whole
from vaebench.training.trainer import Interrupted

__all__ = ["estimate", "evaluate", "planned", "print_results"]

SAVE_EVERY = 15.0  # seconds


def evaluate(folder: str | Path, overrides: Sequence[str] = ()) -> list[ResultRecord]:
    """Estimate log p(x) under a run's best weights, add the results to its results.json, and print them.

    Args:
        folder: a run folder.
        overrides: as in ``estimator=iwae estimator.k=5000``.

    Raises:
        UserError: not a run folder, a wrong setting, no usable checkpoint.
        RunFailed: an estimate is not finite, or not fit to be reported.
        SystemExit: a signal stopped it; the images done are kept, and the same command goes on.
    """
    run = RunFolder.open(Path(folder))
    experiment = build(for_evaluation(read(run.path), list(overrides)))
    epoch = load_best(experiment, run)
    interruption = runtime.Interruption()
    with interruption.watching():
        try:
            records = estimate(experiment, run, epoch, interruption)
        except (Interrupted, KeyboardInterrupt) as error:
            print("interrupted; the images done are kept, and the same command goes on from there", flush=True)
            raise SystemExit(interruption.exit_code if interruption.signal else 130) from error
    for record in records:
        append_result(run, record)
    print_results(run, records)
    return records


def print_results(folder: RunFolder, records: Sequence[ResultRecord] | None = None) -> None:
    """Print one line per result, with estimator, direction, protocol and error."""
    for record in read_results(folder) if records is None else records:
        print(format_line(record), flush=True)


def planned(experiment: Experiment) -> Plan:
    """Return what the configured estimator is going to do; UserError if it makes no sense for this run."""
    return registered("estimator", ESTIMATORS, experiment.config.estimator.name)(experiment)


def estimate(
    experiment: Experiment, folder: RunFolder, epoch: int, interruption: runtime.Interruption
) -> list[ResultRecord]:
    """Run the configured estimator on the experiment's weights, of ``epoch``; the caller keeps the records."""
    plan = planned(experiment)
    key = [identity(experiment.config), epoch, experiment.data.fingerprint, plan.protocol, plan.split]
    key += [experiment.config.trainer.precision, *plan.key]
    partial = _Partial(folder.path / "evaluations", key, plan.rows)
    started = time.monotonic()
    rows = _rows(experiment, plan, partial, interruption)
    seconds = partial.seconds + time.monotonic() - started
    return [_record(plan, finding, epoch, seconds) for finding in plan.conclude(rows)]


def _record(plan: Plan, finding: Finding, epoch: int, seconds: float) -> ResultRecord:
    values = finding.values
    if not bool(values.isfinite().all()):
        raise RunFailed(
            f"{int((~values.isfinite()).sum())} of {len(values)} images have no finite estimate of {finding.quantity}"
        )
    averaged = PerImage(values)
    return ResultRecord(
        estimator=finding.estimator,
        k=finding.k,
        inner_k=finding.inner_k,
        split=plan.split,
        protocol=plan.protocol,
        mean=averaged.mean,
        stderr=averaged.stderr,
        n_images=len(values),
        repeats=1,
        quantity=finding.quantity,
        direction=finding.direction,
        epoch=epoch,
        seconds=seconds,
        settings=finding.settings,
        extra=finding.extra,
    )


def _rows(experiment: Experiment, plan: Plan, partial: "_Partial", interruption: runtime.Interruption) -> Tensor:
    """Return the numbers of all images, (R, N) float64, those of an earlier session included."""
    rows, first = partial.read(plan.count)
    experiment.modules.eval()
    bar = tqdm(
        total=plan.count,
        initial=first,
        unit="image",
        desc=f"{plan.split} log p(x)",
        disable=None if experiment.config.trainer.progress else True,
        dynamic_ncols=True,
    )
    with bar, partial.writing(rows), experiment.autocast():
        for part, numbers in plan.batches(first):
            rows[:, part] = numbers.cpu()
            partial.done(part.stop)
            bar.update(part.stop - bar.n)
            if interruption.signal is not None:
                raise Interrupted
    return rows


class _Partial:
    """Per-image numbers on disk, so that an evaluation that was stopped goes on; kept when it is complete."""

    def __init__(self, folder: Path, key: Sequence[object], names: Sequence[str]) -> None:
        digest = hashlib.sha256(repr(list(key)).encode()).hexdigest()[:12]
        self.path = folder / f"{digest}.npz"
        self.seconds = 0.0
        """Time spent by earlier sessions."""
        self._names = tuple(names)
        self._finished = 0
        self._rows = torch.empty(0)

    def read(self, count: int) -> tuple[Tensor, int]:
        """Return the numbers so far, (R, count) float64, and how many images have theirs."""
        rows = torch.zeros(len(self._names), count, dtype=torch.float64)
        try:
            with numpy.load(self.path, allow_pickle=False) as stored:
                finished, seconds = int(stored["finished"]), float(stored["seconds"])
                kept = numpy.stack([stored[name] for name in self._names])
        except FileNotFoundError:
            return rows, 0
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            print(f"{self.path} is damaged; this evaluation starts anew", flush=True)
            return rows, 0
        rows[:, :finished] = torch.from_numpy(kept[:, :finished])
        self._finished, self.seconds = finished, seconds
        return rows, finished

    @contextlib.contextmanager
    def writing(self, rows: Tensor) -> Iterator[None]:
        """Write now and then, and at the end of the block, however it ends."""
        self._rows, self._since, self._started = rows, time.monotonic(), time.monotonic()
        try:
            yield
        finally:
            self._write()

    def done(self, finished: int) -> None:
        """Note that the numbers of the first ``finished`` images are final."""
        self._finished = finished
        if time.monotonic() - self._since > SAVE_EVERY:
            self._write()

    def _write(self) -> None:
        self._since = time.monotonic()
        buffer = io.BytesIO()
        seconds = self.seconds + self._since - self._started
        named = dict(zip(self._names, self._rows.numpy(), strict=True))
        numpy.savez(buffer, finished=self._finished, seconds=seconds, **named)
        self.path.parent.mkdir(exist_ok=True)
        write_whole(self.path, buffer.getvalue())
