"""Estimates of log p(x) for the best weights of runs, resumable image by image."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.config import for_evaluation, identity, read
from vaebench.errors import Interrupted, RunFailed
from vaebench.estimators.importance import PerImage
from vaebench.evaluate.job import Estimate, EstimatorJob, at_a_time
from vaebench.evaluate.loop import Numbers, gather, planned, tasks
from vaebench.evaluate.workers import shared
from vaebench.experiment import Experiment, build, load_best
from vaebench.records import PerImageFile, ResultRecord, RunFolder, append_result, format_line, read_results

__all__ = ["estimate", "evaluate", "over_repeats", "planned", "print_results"]


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
    """Print one line per result, with estimator, direction, protocol and error, and what is to be known of it."""
    for record in read_results(folder) if records is None else records:
        print(format_line(record), flush=True)
        if record.note:
            print(f"  {record.note}", flush=True)


def estimate(
    experiment: Experiment, folder: RunFolder, epoch: int, interruption: runtime.Interruption
) -> list[ResultRecord]:
    """Run the configured estimator on the experiment's weights, of ``epoch``; the caller keeps the records.

    Raises:
        Interrupted: a signal came; what is done is kept.
        RunFailed: an estimate is not finite, or not fit to be reported.
        UserError: the estimator makes no sense for this run.
    """
    settings, numbers = experiment.config.estimator, Numbers(experiment)
    plan = numbers.plan(0)
    file = PerImageFile(_place(experiment, folder, epoch, plan), plan.rows, plan.images.numpy(), settings.repeats)
    if not file.read():
        print(f"{file.path} is damaged; this evaluation starts anew", flush=True)
    left = file.done[: settings.repeats]
    todo = tasks(left, at_a_time(experiment, plan.batch, int((~left).sum())))
    several = settings.processes > 1 and len(todo) > 1
    source = shared(experiment.config, folder.path) if several else numbers.alone
    bar = f"{plan.split} {settings.name}" if experiment.config.trainer.progress else None
    gather(file, todo, source, interruption, bar=bar)
    if interruption.signal is not None:
        raise Interrupted
    # Repetitions side by side, as if there were so many more images.
    estimates = plan.summarise(torch.from_numpy(file.numbers[:, : settings.repeats]).flatten(1))
    seconds = float(file.seconds[: settings.repeats].sum())
    values = [_finite(estimate).view(settings.repeats, -1) for estimate in estimates]
    places = file.conclude([value.numpy() for value in values])
    return [
        _record(plan, estimate, value, epoch=epoch, seconds=seconds, per_image=place, precision=settings.precision)
        for estimate, value, place in zip(estimates, values, places, strict=True)
    ]


def _place(experiment: Experiment, folder: RunFolder, epoch: int, plan: EstimatorJob) -> Path:
    """Return the file of the images' numbers, named by all that these depend on."""
    config = experiment.config
    key = [2, identity(config), epoch, experiment.data.fingerprint, plan.protocol, plan.split]
    key += [config.estimator.image_seed, config.estimator.precision, *plan.key]
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    return folder.path / "evaluations" / f"{digest}.npz"


def _finite(estimate: Estimate) -> Tensor:
    values = estimate.values.cpu()
    if not bool(values.isfinite().all()):
        raise RunFailed(
            f"{int((~values.isfinite()).sum())} of {len(values)} images have no finite estimate of {estimate.quantity}"
        )
    return values


def _record(
    plan: EstimatorJob,
    estimate: Estimate,
    values: Tensor,
    *,
    epoch: int,
    seconds: float,
    per_image: str,
    precision: str,
) -> ResultRecord:
    """Return the record of one estimate; its values are (n, N)."""
    repeats = len(values)
    averaged = PerImage(values.mean(0))
    return ResultRecord(
        estimator=estimate.estimator,
        k=estimate.k,
        inner_k=estimate.inner_k,
        split=plan.split,
        protocol=plan.protocol,
        mean=averaged.mean,
        stderr=averaged.stderr,
        n_images=values.shape[1],
        repeats=repeats,
        quantity=estimate.quantity,
        direction=estimate.direction,
        epoch=epoch,
        seconds=seconds,
        precision=precision,
        settings=estimate.settings,
        extra=estimate.extra | over_repeats(values.mean(1)),
        note=estimate.note,
        per_image=per_image,
    )


def over_repeats(means: Tensor) -> dict[str, Any]:
    """Return how the means of the repetitions, (n,), differ; nothing where there is one."""
    if len(means) == 1:
        return {}
    spread = means.std().item()
    return {"repeat_means": means.tolist(), "repeat_std": spread, "repeat_stderr": spread / len(means) ** 0.5}
