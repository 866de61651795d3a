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
from vaebench.encoders import Direction
from vaebench.errors import RunFailed
from vaebench.evaluation import PerImage, log_likelihoods
from vaebench.experiment.assembly import Experiment, build, load_weights
from vaebench.records import ResultRecord, RunFolder, append_result, format_line, read_results
from vaebench.records.files import write_whole
from vaebench.training.checkpoint import Checkpoints
from vaebench.training.trainer import Interrupted

__all__ = ["estimate", "evaluate", "print_results"]

SAVE_EVERY = 15.0  # seconds


def evaluate(folder: str | Path, overrides: Sequence[str] = ()) -> list[ResultRecord]:
    """Estimate log p(x) under a run's best weights, add the result to its results.json, and print it.

    Args:
        folder: a run folder.
        overrides: as in ``estimator=iwae estimator.k=5000``.

    Raises:
        UserError: not a run folder, a wrong setting, no usable checkpoint.
        SystemExit: a signal stopped it; the images done are kept, and the same command goes on.
    """
    run = RunFolder.open(Path(folder))
    experiment = build(for_evaluation(read(run.path), list(overrides)))
    loaded = Checkpoints(run.checkpoints).load(
        "best", identity=identity(experiment.config), map_location=experiment.device
    )
    load_weights(experiment, loaded.state)
    interruption = runtime.Interruption()
    with interruption.watching():
        try:
            record = estimate(experiment, run, loaded.state["epoch"], interruption)
        except (Interrupted, KeyboardInterrupt) as error:
            print("interrupted; the images done are kept, and the same command goes on from there", flush=True)
            raise SystemExit(interruption.exit_code if interruption.signal else 130) from error
    append_result(run, record)
    print_results(run, [record])
    return [record]


def print_results(folder: RunFolder, records: Sequence[ResultRecord] | None = None) -> None:
    """Print one line per result, with estimator, direction, protocol and error."""
    for record in read_results(folder) if records is None else records:
        print(format_line(record), flush=True)


def estimate(
    experiment: Experiment, folder: RunFolder, epoch: int, interruption: runtime.Interruption
) -> ResultRecord:
    """Run the configured estimator on the experiment's weights, of ``epoch``; the caller keeps the record."""
    settings, data = experiment.config.estimator, experiment.data
    hierarchical = experiment.encoder.direction is Direction.UPPER_BOUND
    inner_k = experiment.inner_k if settings.inner_k is None else settings.inner_k
    inner_k = inner_k if hierarchical else 0
    chosen = _subset(len(data.split(settings.split)), settings.images, settings.seed)
    protocol = str(data.protocol)
    if chosen is not None:
        # A subset is another test set: a random 1,000 of MNIST's 10,000 can be a nat off.
        protocol += f"/random{len(chosen)}-seed{settings.seed}"
    key = [identity(experiment.config), epoch, data.fingerprint, protocol, settings.split]
    key += [settings.k, inner_k, settings.seed, experiment.config.trainer.precision]
    partial = _Partial(folder.path / "evaluations", key)
    started = time.monotonic()
    values = _values(experiment, chosen, inner_k, partial, interruption)
    result = PerImage(values)
    if not bool(values.isfinite().all()):
        raise RunFailed(
            f"{int((~values.isfinite()).sum())} of {len(values)} images have no finite estimate of log p(x)"
        )
    return ResultRecord(
        estimator="DIWHVI" if hierarchical else "IWAE",
        k=settings.k,
        inner_k=inner_k if hierarchical else None,
        split=settings.split,
        protocol=protocol,
        mean=result.mean,
        stderr=result.stderr,
        n_images=len(values),
        repeats=1,
        direction=experiment.encoder.direction.of_log_likelihood,
        epoch=epoch,
        seconds=partial.seconds + time.monotonic() - started,
    )


def _values(
    experiment: Experiment,
    chosen: Tensor | None,
    inner_k: int,
    partial: "_Partial",
    interruption: runtime.Interruption,
) -> Tensor:
    settings, data = experiment.config.estimator, experiment.data
    intensities = data.split(settings.split)
    intensities = intensities if chosen is None else intensities[chosen]
    values, first = partial.read(len(intensities))
    if settings.split == "train" and not data.continuous:
        # The training images of a dynamic protocol are grey: they are drawn once, by the evaluation's seed.
        generator = torch.Generator().manual_seed(runtime.derived_seed(settings.seed, "train"))
        intensities = data.observe(intensities, generator).mul(255).to(torch.uint8)
    intensities = intensities.to(experiment.device)
    experiment.modules.eval()
    bar = tqdm(
        total=len(values),
        initial=first,
        unit="image",
        desc=f"{settings.split} log p(x)",
        disable=None if experiment.config.trainer.progress else True,
        dynamic_ncols=True,
    )
    with bar, partial.writing(values), experiment.autocast():
        for part, batch in log_likelihoods(
            experiment.model,
            experiment.encoder,
            data.observe,
            intensities,
            k=settings.k,
            inner_k=inner_k,
            seed=settings.seed,
            batch=settings.batch,
            chunk=settings.chunk,
            images=chosen,
            first=first,
        ):
            values[part] = batch.cpu()
            partial.done(part.stop)
            bar.update(part.stop - bar.n)
            if interruption.signal is not None:
                raise Interrupted
    return values


def _subset(count: int, wanted: int | None, seed: int) -> Tensor | None:
    """Return ``wanted`` random image numbers, sorted; None for all."""
    if wanted is None or wanted >= count:
        return None
    generator = torch.Generator().manual_seed(runtime.derived_seed(seed, "subset"))
    return torch.randperm(count, generator=generator)[:wanted].sort().values


class _Partial:
    """Per-image values on disk, so that an evaluation that was stopped goes on; kept when it is complete."""

    def __init__(self, folder: Path, key: Sequence[object]) -> None:
        digest = hashlib.sha256(repr(list(key)).encode()).hexdigest()[:12]
        self.path = folder / f"{digest}.npz"
        self.seconds = 0.0
        """Time spent by earlier sessions."""
        self._finished = 0
        self._values = torch.empty(0)

    def read(self, count: int) -> tuple[Tensor, int]:
        """Return the values so far, (count,) float64, and how many of them are there."""
        values = torch.zeros(count, dtype=torch.float64)
        try:
            with numpy.load(self.path, allow_pickle=False) as stored:
                finished, kept = int(stored["finished"]), stored["values"]
                self.seconds = float(stored["seconds"])
        except FileNotFoundError:
            return values, 0
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            print(f"{self.path} is damaged; this evaluation starts anew", flush=True)
            return values, 0
        values[:finished] = torch.from_numpy(kept[:finished])
        self._finished = finished
        return values, finished

    @contextlib.contextmanager
    def writing(self, values: Tensor) -> Iterator[None]:
        """Write now and then, and at the end of the block, however it ends."""
        self._values, self._since, self._started = values, time.monotonic(), time.monotonic()
        try:
            yield
        finally:
            self._write()

    def done(self, finished: int) -> None:
        """Note that the first ``finished`` values are final."""
        self._finished = finished
        if time.monotonic() - self._since > SAVE_EVERY:
            self._write()

    def _write(self) -> None:
        self._since = time.monotonic()
        buffer = io.BytesIO()
        seconds = self.seconds + self._since - self._started
        numpy.savez(buffer, values=self._values.numpy(), finished=self._finished, seconds=seconds)
        self.path.parent.mkdir(exist_ok=True)
        write_whole(self.path, buffer.getvalue())
