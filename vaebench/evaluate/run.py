"""Estimates for the best weights of runs, resumable image by image."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.config import for_evaluation, identity, read
from vaebench.config.words import key_of
from vaebench.direction import Measure
from vaebench.errors import Interrupted, RunFailed
from vaebench.estimators.importance import PerImage
from vaebench.evaluate.job import Estimate, EstimatorInputs, EstimatorJob
from vaebench.evaluate.loop import Evaluator, run_tasks, unfinished_tasks
from vaebench.experiment import Experiment, build, load_best, notices, provenance
from vaebench.records import (
    PerImageFile,
    Provenance,
    ResultRecord,
    RunFolder,
    append_result,
    format_line,
    read_results,
)
from vaebench.records.current import left_out, split_results
from vaebench.records.manifest import require_plugins
from vaebench.records.result_events import show_results
from vaebench.records.results import bits_per_dimension
from vaebench.records.text import with_error, with_sign
from vaebench.signals import Interruption

__all__ = ["estimate", "evaluate", "over_repeats", "print_results"]


def evaluate(folder: str | Path, overrides: Sequence[str] = ()) -> list[ResultRecord]:
    """Run an estimator on a run's best weights, add the results to its results.json and TensorBoard, and print them.

    Args:
        folder: a run folder.
        overrides: as in ``estimator=iwae estimator.k=5000``.

    Raises:
        UserError: not a run folder, an invalid setting, no usable checkpoint.
        RunFailed: an estimate is not finite, or must not be reported.
        SystemExit: a signal interrupted it; finished images are saved, and the same command resumes.
    """
    run = RunFolder.open(Path(folder))
    require_plugins(run, estimator=not any(key_of(word) == "estimator" for word in overrides))
    # Read now, to fail before the evaluation if the result could not be added.
    before = {record.key(): record for record in read_results(run)}
    experiment = build(for_evaluation(read(run.path), list(overrides)))
    made_by = provenance(experiment, run, load_best(experiment, run), precision=experiment.config.estimator.precision)
    for line in notices(experiment, run, made_by):
        print(line, flush=True)
    interruption = Interruption()
    with interruption.watching():
        try:
            records = estimate(experiment, run, made_by, interruption)
        except (Interrupted, KeyboardInterrupt) as error:
            print("interrupted; finished images are saved: run the same command to resume", flush=True)
            raise SystemExit(interruption.exit_code if interruption.signal else 130) from error
    for record in records:
        append_result(run, record)
    show_results(run, made_by.run)
    print_results(run, records)
    for record in records:
        if record.key() in before:
            print(f"  {_compared(before[record.key()], record)}", flush=True)
    return records


def _compared(old: ResultRecord, new: ResultRecord) -> str:
    """Return a line about an earlier number of the same quantity by the same estimator."""
    difference = "the same" if old.mean == new.mean else f"the new mean minus the old is {new.mean - old.mean:.2g}"
    return f"{old.quantity} before: {with_sign(old.direction, with_error(old.mean, old.stderr))}, {difference}"


def print_results(folder: RunFolder, records: Sequence[ResultRecord] | None = None) -> None:
    """Print one line per result, with estimator, direction, protocol and error, and its note below it.

    ``records`` is None for all results of the run as it is now; a last line then counts the others.
    """
    outdated: list[tuple[ResultRecord, str]] = []
    if records is None:
        records, outdated = split_results(folder, identity(read(folder.path)))
    for record in records:
        print(format_line(record), flush=True)
        if record.note:
            print(f"  {record.note}", flush=True)
    for line in left_out((folder, fault) for _, fault in outdated):
        print(line, flush=True)


def estimate(
    experiment: Experiment, folder: RunFolder, made_by: Provenance, interruption: Interruption
) -> list[ResultRecord]:
    """Run the configured estimator on the experiment's weights; the caller saves the records.

    Raises:
        Interrupted: a signal stopped it; finished images are saved.
        RunFailed: an estimate is not finite, or must not be reported.
        UserError: the settings of the estimator are invalid for this run.
    """
    code = experiment.estimator_code
    made_by = replace(made_by, estimator_code=code, estimator_plugin=experiment.config.estimator.name if code else None)
    inputs = EstimatorInputs.of(experiment)
    settings, evaluator = inputs.settings, Evaluator(inputs)
    job, repeats = evaluator.job(0), settings.repeats
    file = PerImageFile(_file(experiment, folder, made_by, job), job.rows, job.images.numpy(), repeats, made_by)
    if not file.read():
        print(f"{file.path} is corrupt; restarting this evaluation", flush=True)
    left = file.done[:repeats]
    todo = unfinished_tasks(left, inputs.images_per_task(job.batch, int((~left).sum())))
    if settings.precision == "bf16" and todo:
        print(runtime.bf16_note(experiment.device, "precision"), flush=True)
    runner = evaluator.run
    if settings.processes > 1 and len(todo) > 1:
        from vaebench.evaluate import workers

        runner = workers.worker_pool(experiment.config, folder.path, made_by.weights)
    title = f"{job.split} {settings.name}" if experiment.config.trainer.progress else None
    run_tasks(file, todo, runner, interruption, title=title)
    if interruption.signal is not None:
        raise Interrupted
    # Repeats are concatenated, like more images.
    estimates = job.summarise(torch.from_numpy(file.numbers[:, :repeats]).flatten(1))
    seconds = float(file.seconds[:repeats].sum())
    values = [_finite(estimate).view(repeats, -1) for estimate in estimates]
    places = file.conclude([value.numpy() for value in values])
    known = {"split": job.split, "protocol": job.protocol, "epoch": made_by.epoch, "precision": settings.precision}
    known |= {"provenance": made_by, "measure": experiment.measure}
    dimensions = math.prod(experiment.data.image_shape) if experiment.measure is Measure.EIGHT_BIT else None
    return [
        _record(estimate, value, dimensions, seconds=seconds, per_image=place, **known)
        for estimate, value, place in zip(estimates, values, places, strict=True)
    ]


def _file(experiment: Experiment, folder: RunFolder, made_by: Provenance, job: EstimatorJob) -> Path:
    """Return the file of the images' numbers; its name is a hash of all settings that change them."""
    config = experiment.config
    key = [3, made_by.run, made_by.weights, made_by.code, made_by.data, job.protocol, job.split]
    key += [config.estimator.image_seed, config.estimator.precision, *job.key]
    key += [] if made_by.estimator_code is None else [made_by.estimator_code]
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    return folder.path / "evaluations" / f"{digest}.npz"


def _finite(estimate: Estimate) -> Tensor:
    values = estimate.values.cpu()
    if not bool(values.isfinite().all()):
        raise RunFailed(
            f"{estimate.quantity} is not finite for {int((~values.isfinite()).sum())} of {len(values)} images"
        )
    return values


def _record(estimate: Estimate, values: Tensor, dimensions: int | None, **known: Any) -> ResultRecord:
    """Return the record of one estimate with values (n, N); ``known`` holds further fields of the record.

    ``dimensions``: numbers of an 8-bit image, for bits per dimension; None for other images.
    """
    averaged = PerImage(values.mean(0))
    extra = estimate.extra | over_repeats(values.mean(1))
    if dimensions is not None and estimate.quantity == "log p(x)":
        extra |= bits_per_dimension(averaged.mean, averaged.stderr, dimensions)
    return ResultRecord(
        **estimate.record_fields() | {"extra": extra},
        mean=averaged.mean,
        stderr=averaged.stderr,
        n_images=values.shape[1],
        repeats=len(values),
        **known,
    )


def over_repeats(means: Tensor) -> dict[str, Any]:
    """Return the spread of the means of the repeats, (n,); {} for a single repeat."""
    if len(means) == 1:
        return {}
    spread = means.std().item()
    return {"repeat_means": means.tolist(), "repeat_std": spread, "repeat_stderr": spread / len(means) ** 0.5}
