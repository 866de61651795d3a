"""One training run, from its configuration to its results."""

import contextlib
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vaebench import plugins, runtime
from vaebench.config import Config, changed, describe, from_yaml, identity, read, run_folder, to_yaml
from vaebench.direction import Measure
from vaebench.errors import GivenUp, Interrupted, RunFailed, TakenOver
from vaebench.evaluate.job import EstimatorInputs, job_for
from vaebench.evaluate.run import estimate, print_results
from vaebench.experiment import Experiment, build, code_notice, load_best, provenance
from vaebench.records import Manifest, Provenance, Recorder, ResultRecord, RunFolder, append_result, read_manifest
from vaebench.records.checkpoint import Checkpoints, Loaded
from vaebench.records.manifest import require_plugins
from vaebench.records.metrics import Written
from vaebench.records.result_events import drop_outdated, results_shown
from vaebench.signals import Interruption
from vaebench.train import replicas
from vaebench.train.batches import Batches
from vaebench.train.compile import compiled_where_it_pays
from vaebench.train.display import Display
from vaebench.train.graph import check_graph, graphs_of
from vaebench.train.header import header
from vaebench.train.lengthen import lengthen
from vaebench.train.replicas import Replicas
from vaebench.train.trainer import Callbacks, Progress, Trainer, Watch, never_stop
from vaebench.train.update import ALONE
from vaebench.train.updates import course_of, updates
from vaebench.train.validation import described, diagnose, log_likelihood_of_pixel_means, record_pictures, validate
from vaebench.typed import Checker

__all__ = ["resume", "train", "trainer_for"]

CHARTS = {
    "bounds": {"validation log-likelihood": ("validation/log_likelihood$",), "training bound": ("train/bound$",)},
    "parts of the training bound": {"reconstruction": ("train/reconstruction$",), "KL": ("train/kl$",)},
}
"""TensorBoard's charts that show several runs, by category: patterns of tags.

Each chart has one quantity, so that the runs can be told apart. Test results are not there: TensorBoard draws no single
points in these charts.
"""


def resume(folder: str | Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Resume the run in ``folder``, and return its folder; raises the same errors as :func:`train`.

    Args:
        folder: a run folder.
        changes: values by key, which replace those of the run: ``device``, ``data_dir``, ``trainer.epochs``. Another
            number of epochs makes another run, in a folder beside ``folder``. It starts from the run's last checkpoint,
            unless its schedules differ from the start.
    """
    run = RunFolder.open(Path(folder))
    require_plugins(run, estimator=True)
    old = read(run.path)
    config = changed(old, changes or {})
    if identity(config) == identity(old):
        return _train(config, run)
    target = RunFolder(run.path.parent / run_folder(config).name)
    return _train(config, target, prepare=partial(_lengthen, run, target, config))


def train(config: Config, watch: Watch = never_stop, *, fresh: bool = False) -> Path:
    """Train, evaluate, and return the run folder; resumes if the folder has a checkpoint.

    Args:
        config: of the run.
        watch: called with (epoch, validation log-likelihood in nats) after each validation; True ends the run.
        fresh: train from the start; a run in the folder is kept under another name.

    Raises:
        GivenUp: ``watch`` ended the run, which is saved as interrupted.
        UserError: an invalid request.
        RunFailed: the training failed; the files written before are kept.
        SystemExit: a signal stopped the run, which is saved; 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
    """
    folder = RunFolder(run_folder(config))
    if not fresh:
        return _train(config, folder, watch)
    return _train(config, folder, watch, prepare=partial(_set_aside, folder), fresh=True)


def _nothing() -> None:
    """Leave the run folder as it is."""


def _lengthen(source: RunFolder, target: RunFolder, config: Config) -> None:
    if not Checkpoints(target.checkpoints).exists():
        print(lengthen(source, target, config), flush=True)


def _set_aside(folder: RunFolder) -> None:
    if folder.path.exists():
        print(f"the earlier run is kept in {folder.set_aside().path}", flush=True)


def _train(
    config: Config,
    folder: RunFolder,
    watch: Watch = never_stop,
    *,
    prepare: Callable[[], None] = _nothing,
    fresh: bool = False,
) -> Path:
    """Train; the first process calls ``prepare`` when the request is valid, before it uses the folder.

    ``fresh``: the same command trains from the start, so messages name another command to resume.
    """
    with replicas.joined(config.device) as processes:
        experiment = build(config)
        reduced = config.trainer.precision == "tf32"
        if reduced:
            runtime.require_tf32(experiment.device)
        check_graph(experiment, processes)  # fail now, before the run folder exists
        processes.same_start(experiment.modules)
        with runtime.tf32(experiment.device, reduced):  # also in the backward pass, which autocast does not cover
            if not processes.leads:
                return _follow(experiment, folder, processes)
            try:
                return _lead(experiment, folder, processes, watch, prepare, fresh)
            finally:
                processes.release()


def _follow(experiment: Experiment, folder: RunFolder, processes: Replicas) -> Path:
    """Take part in a run that another process leads; write and print nothing."""
    interruption = Interruption()
    with interruption.watching():
        state = processes.broadcast()
        if state is not None:
            callbacks = Callbacks(partial(validate, experiment, processes))
            trainer = trainer_for(experiment, callbacks, interruption, processes)
            if state:
                trainer.load_state_dict(state)
            try:
                trainer.run()
            except Interrupted as error:
                raise SystemExit(_exit_code(interruption)) from error
            except RunFailed as error:
                raise SystemExit(1) from error  # the first process prints the message
    return folder.path


def _lead(
    experiment: Experiment,
    folder: RunFolder,
    processes: Replicas,
    watch: Watch,
    prepare: Callable[[], None],
    fresh: bool,
) -> Path:
    config = experiment.config
    if config.trainer.evaluate:
        job_for(EstimatorInputs.of(experiment))  # fail now, not after training, if the estimator does not fit the run
    prepare()
    opened = folder.opened(to_yaml(config), identity=lambda text: identity(from_yaml(text)))
    interruption = Interruption()
    with opened, interruption.watching():
        print(header(experiment, folder.path), flush=True)
        if processes.count > 1:
            print(f"processes  {processes.count}, each with a part of every batch", flush=True)
        if folder.status.exists() and folder.read_status().state == "finished":
            for line in code_notice(experiment, folder):
                print(line, flush=True)
            print(f"this run is finished{_where_stopped(folder)}; its results:")
            print_results(folder)
            return folder.path
        with _status(folder, interruption, fresh):
            _run(experiment, folder, interruption, processes, watch)
    return folder.path


def _where_stopped(folder: RunFolder) -> str:
    stopped = read_manifest(folder).get("stopped_early")
    return f" (stopped early at epoch {stopped['epoch']} of {stopped['of']})" if stopped else ""


@contextlib.contextmanager
def _status(folder: RunFolder, interruption: Interruption, fresh: bool) -> Iterator[None]:
    """Write the status of the run, whichever way the block ends."""
    folder.write_status("running")
    try:
        with folder.claimed():
            yield
    except TakenOver:
        raise
    except (Interrupted, KeyboardInterrupt) as error:
        folder.write_status("interrupted")
        how = f"`{_resuming(folder)}`" if fresh else "the same command"
        print(f"interrupted; state saved in {folder.path}; run {how} to resume", flush=True)
        raise SystemExit(_exit_code(interruption)) from error
    except GivenUp:
        folder.write_status("interrupted", f"given up by a search; to complete it, run `{_resuming(folder)}`")
        raise
    except BaseException as error:
        with contextlib.suppress(Exception):  # a full disk must not hide the first error
            folder.write_status("failed", str(error) or type(error).__name__)
        raise
    folder.write_status("finished")


def _resuming(folder: RunFolder) -> str:
    """Return the command that resumes the run, for the shell."""
    return shlex.join(["vaebench", "train", *plugins.flags(), "--resume", str(folder.path)])


def _exit_code(interruption: Interruption) -> int:
    return interruption.exit_code if interruption.signal else 130


def _run(
    experiment: Experiment,
    folder: RunFolder,
    interruption: Interruption,
    processes: Replicas,
    watch: Watch,
) -> None:
    config, checkpoints = experiment.config, Checkpoints(folder.checkpoints, before_save=folder.check_claim)
    found = checkpoints.load(identity=identity(config)) if checkpoints.exists() else None
    if found and found.notice:
        print(found.notice, flush=True)
    step, tags, written = _recorded(found) if found else (None, None, None)
    for line in code_notice(experiment, folder):
        print(line, flush=True)
    device = runtime.describe(experiment.device)
    manifest = Manifest(
        folder,
        device=device if processes.count == 1 else f"{device}, {processes.count} processes",
        protocol=str(experiment.data.protocol),
        fingerprint=experiment.data.fingerprint,
        parameters=experiment.parameters,
        code=experiment.code,
        identity=identity(config),
        resume_step=step,
        used=experiment.remembered_plugins,
    )
    _, manifest.facts["validation"] = described(experiment)
    manifest.facts["measure"] = experiment.measure
    folder.check_claim()
    manifest.save()

    def watched(epoch: int, value: float) -> bool:
        folder.check_claim()
        manifest.save()
        drop_outdated(folder, identity(config))
        return watch(epoch, value)

    hparams, title = describe.hparams(config), describe.hparams_title(config)
    with (
        results_shown(folder, identity(config)),
        Recorder(folder, resume_step=step, resume_tags=tags, hparams=hparams, group=title, written=written) as recorder,
    ):
        for notice in recorder.notices:
            print(notice, flush=True)
        manifest.facts["written"] = recorder.written  # the recorder counts on: every later save has the count so far
        recorder.config_table(config.to_dict())
        recorder.charts(CHARTS)
        callbacks = Callbacks(
            partial(validate, experiment, processes),
            partial(diagnose, experiment),
            partial(record_pictures, experiment, recorder),
            watched,
        )
        trainer = trainer_for(experiment, callbacks, interruption, processes, recorder, checkpoints)
        if found:
            with found.fitting():
                trainer.load_state_dict(found.state)
        processes.broadcast(found.state if found else {})
        if found:
            print(f"resuming from epoch {trainer.progress.epoch}, step {step}", flush=True)
            if "random" in found.state:
                print("note: the version that saved this checkpoint would draw other random numbers", flush=True)
        with _explaining_memory(experiment, trainer):
            progress = trainer.run()
        folder.check_claim()
        if progress.stopped:
            _tell_stopped(config, progress, manifest)
        _tell_doubts(experiment, progress, manifest)
        best = load_best(experiment, folder)
        manifest.facts["best"] = {"epoch": best.epoch, "weights": best.weights}
        if config.trainer.evaluate:
            made_by = provenance(experiment, folder, best, precision=config.estimator.precision, state="finished")
            _evaluate_at_end(experiment, folder, recorder, progress, made_by, interruption)
    manifest.save()


def _recorded(found: Loaded) -> tuple[int, list[str] | None, Written | None]:
    """Return the step of a checkpoint, the tags recorded at it, and what was written up to it.

    A checkpoint of an early version has neither tags nor the last.
    """
    with found.fitting():
        check = Checker().convert
        tags = check(found.state.get("recorded"), list[str] | None, "recorded")
        written = check(found.state.get("written"), Written | None, "written")
        return Progress.restored(found.state["progress"]).step, tags, written


def _tell_stopped(config: Config, progress: Progress, manifest: Manifest) -> None:
    """Say in a line and in the manifest that the run stopped early."""
    epochs, count = config.trainer.epochs, progress.without_gain
    manifest.facts["stopped_early"] = {"epoch": progress.epoch, "of": epochs}
    manifest.save()
    without = "validation" if count == 1 else f"{count} validations"
    reason = f"no gain in the last {without} (trainer.patience={config.trainer.patience})"
    print(f"stopped early at epoch {progress.epoch} of {epochs}: {reason}", flush=True)


@contextlib.contextmanager
def _explaining_memory(experiment: Experiment, trainer: Trainer) -> Iterator[None]:
    """Turn an error for want of memory in a training into RunFailed with a setting that needs less."""
    try:
        yield
    except Exception as error:
        if not runtime.out_of_memory(error):
            raise
        raise RunFailed(
            f"out of memory at step {trainer.progress.step} on {experiment.device}; {trainer.kept}. "
            f"{_setting_with_less_memory(experiment)}."
        ) from error


def _setting_with_less_memory(experiment: Experiment) -> str:
    batch_size, microbatch = experiment.config.trainer.batch_size, experiment.config.trainer.microbatch
    images = min(microbatch or batch_size, batch_size)
    if images == 1:
        return "Use a device with more memory, or smaller networks"
    if experiment.objective.additive:
        setting = f"trainer.microbatch={images // 2}"
        return f"Run the same command, without --fresh, with {setting} to resume with the same gradients"
    return f"Train a new run with trainer.batch_size={images // 2}"


def _tell_doubts(experiment: Experiment, progress: Progress, manifest: Manifest) -> None:
    """Say in a line and in the manifest why the model may be useless, if it may."""
    trainer, doubts = experiment.config.trainer, []
    binary = experiment.measure in (Measure.PROBABILITY, Measure.CROSS_ENTROPY)
    baseline = log_likelihood_of_pixel_means(experiment.data) if binary else -math.inf
    if progress.best < baseline:
        doubts.append(
            f"the validation log-likelihood {progress.best:.6g} is below {baseline:.6g}, that of independent pixels "
            "with the means of the training images"
        )
    if progress.best_epoch <= min(trainer.validate_every, trainer.epochs) < progress.epoch:
        doubts.append(f"the validation log-likelihood never rose above that of epoch {progress.best_epoch}")
    if progress.broken:
        doubts.append(f"the training broke down after its best epoch {progress.best_epoch}")
    if doubts:
        manifest.facts["doubts"] = doubts
        manifest.save()
        print(f"warning: {'; '.join(doubts)}: try a lower optimizer.lr, trainer.clip_norm or more epochs", flush=True)


def _evaluate_at_end(
    experiment: Experiment,
    folder: RunFolder,
    recorder: Recorder,
    progress: Progress,
    made_by: Provenance,
    interruption: Interruption,
) -> None:
    if not experiment.config.trainer.compile:
        experiment = experiment.estimating(compile=False)
    records = estimate(experiment, folder, made_by, interruption)
    folder.check_claim()
    for record in records:
        append_result(folder, record)
        # Training records "validation/log_likelihood", of other weights and by another estimator.
        group = record.split if record.split == "test" else f"final_{record.split}"
        tag = f"{group}/{_tag(record, alone=sum(record.quantity == other.quantity for other in records) == 1)}"
        # TensorBoard gets the results at the step of their weights, with estimator and direction: `show_results`.
        recorder.scalars(progress.step, progress.epoch, {tag: record.mean}, progress.seconds, events_too=False)
    print_results(folder, records)


def _tag(record: ResultRecord, *, alone: bool) -> str:
    """Return the name of a result in the metrics: its quantity, and its direction if it is one of a pair of bounds."""
    if record.quantity != "log p(x)":
        name = record.quantity.replace(" ", "_")
        return name if alone else f"{name}_{record.direction}"
    return "log_likelihood" if alone else record.direction


def trainer_for(
    experiment: Experiment,
    callbacks: Callbacks,
    interruption: Interruption,
    processes: Replicas = ALONE,
    recorder: Recorder | None = None,
    checkpoints: Checkpoints | None = None,
) -> Trainer:
    """Return the trainer of a run at its first step. Only the first process has a recorder and checkpoints."""
    config, data = experiment.config, experiment.data
    course, display = course_of(experiment), Display(config.trainer.progress and processes.leads)
    return Trainer(
        experiment.modules,
        compiled_where_it_pays(experiment, updates(experiment, processes), course, display.note),
        Batches(data.train.to(experiment.device), data.observe, config.trainer.batch_size, config.seed),
        course,
        callbacks,
        display,
        interruption,
        identity(config),
        recorder,
        checkpoints,
        graphs=graphs_of(experiment, processes, display.note),
    )
