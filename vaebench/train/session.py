"""One training run, from configuration to result line."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from vaebench import runtime
from vaebench.config import Config, from_yaml, identity, read, run_folder, to_yaml
from vaebench.config.identity import defining
from vaebench.errors import GivenUp, Interrupted, RunFailed
from vaebench.evaluate.job import EstimatorInputs, job_for
from vaebench.evaluate.run import estimate, print_results
from vaebench.experiment import Experiment, Modules, build, load_best
from vaebench.records import Manifest, Recorder, ResultRecord, RunFolder, append_result
from vaebench.records.checkpoint import Checkpoints
from vaebench.train import replicas
from vaebench.train.batches import Batches
from vaebench.train.compile import compiled_where_it_pays
from vaebench.train.display import Display
from vaebench.train.header import header
from vaebench.train.replicas import Replicas
from vaebench.train.trainer import Progress, Trainer
from vaebench.train.update import ALONE
from vaebench.train.updates import plan_of, updates
from vaebench.train.validation import diagnose, record_pictures, validate

__all__ = ["resume", "train", "trainer_for"]

# What TensorBoard shows of all runs in one chart, by category.
CHARTS = {
    "bound": {
        "bound, reconstruction and KL": ("train/bound", "train/reconstruction", "train/kl"),
        "bound": ("train/bound",),
        "reconstruction": ("train/reconstruction",),
        "KL": ("train/kl",),
    },
    "log-likelihood": {
        "validation": ("validation/log_likelihood",),
        "test": ("test/log_likelihood", "test/lower_bound", "test/upper_bound"),
    },
}

Watch = Callable[[int, float], bool]


def never_stop(epoch: int, value: float) -> bool:
    """Let every run go on to its end."""
    del epoch, value
    return False


def resume(folder: str | Path) -> Path:
    """Go on with the run in ``folder``, where it is."""
    run = RunFolder.open(Path(folder))
    return _train(read(run.path), run)


def train(config: Config, watch: Watch = never_stop) -> Path:
    """Train, evaluate, and return the run folder; a folder with a checkpoint is gone on with.

    Args:
        config: the run.
        watch: is told (epoch, validation log-likelihood in nats) after each validation, and ends the run by True.

    Raises:
        GivenUp: ``watch`` ended it; it is saved as interrupted.
        UserError: the request cannot be carried out.
        RunFailed: the training failed; what was written before stands.
        SystemExit: a signal stopped the run, which is saved; 130 for SIGINT, 143 for SIGTERM.
    """
    return _train(config, RunFolder(run_folder(config)), watch)


def _train(config: Config, folder: RunFolder, watch: Watch = never_stop) -> Path:
    with replicas.joined(config.device) as processes:
        experiment = build(config)
        processes.same_start(experiment.modules)
        if not processes.leads:
            return _follow(experiment, folder, processes)
        try:
            return _lead(experiment, folder, processes, watch)
        finally:
            processes.release()


def _follow(experiment: Experiment, folder: RunFolder, processes: Replicas) -> Path:
    """Take part in a run that another process leads, and keep and say nothing."""
    interruption = runtime.Interruption()
    with interruption.watching():
        state = processes.broadcast()
        if state is not None:
            trainer = trainer_for(
                experiment,
                None,
                None,
                interruption,
                validate=partial(validate, experiment, processes, None),
                processes=processes,
            )
            if state:
                trainer.load_state_dict(state)
            try:
                trainer.run()
            except Interrupted as error:
                raise SystemExit(interruption.exit_code if interruption.signal else 130) from error
            except RunFailed as error:
                raise SystemExit(1) from error  # the leader says it
    return folder.path


def _lead(experiment: Experiment, folder: RunFolder, processes: Replicas, watch: Watch) -> Path:
    config = experiment.config
    if config.trainer.evaluate:
        job_for(EstimatorInputs.of(experiment))  # fail now, not after training, if the estimator does not fit the run
    folder.create(to_yaml(config), identity=lambda text: identity(from_yaml(text)))
    interruption = runtime.Interruption()
    with folder.lock(), interruption.watching():
        print(header(experiment, folder.path), flush=True)
        if processes.count > 1:
            print(f"processes  {processes.count}, which divide each batch among themselves", flush=True)
        if _is_done(folder):
            print("this run is finished; its results:")
            print_results(folder)
            return folder.path
        with _status(folder, interruption):
            _run(experiment, folder, interruption, processes, watch)
    return folder.path


def _is_done(folder: RunFolder) -> bool:
    return folder.status.exists() and folder.read_status().state == "finished"


@contextlib.contextmanager
def _status(folder: RunFolder, interruption: runtime.Interruption) -> Iterator[None]:
    """Keep status.json true, however the block ends."""
    folder.write_status("running")
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        folder.write_status("interrupted")
        print(f"interrupted; saved in {folder.path}; the same command goes on from here", flush=True)
        raise SystemExit(interruption.exit_code if interruption.signal else 130) from error
    except GivenUp:
        folder.write_status("interrupted", "given up by a search; trained by itself it goes on from here")
        raise
    except BaseException as error:
        with contextlib.suppress(Exception):  # a full disk must not hide what went wrong first
            folder.write_status("failed", str(error) or type(error).__name__)
        raise
    folder.write_status("finished")


def _run(
    experiment: Experiment,
    folder: RunFolder,
    interruption: runtime.Interruption,
    processes: Replicas,
    watch: Watch,
) -> None:
    config = experiment.config
    checkpoints = Checkpoints(folder.checkpoints)
    found = None
    if checkpoints.exists():
        found = checkpoints.load(identity=identity(config))
        if found.notice:
            print(found.notice, flush=True)
    step = found.state["progress"]["step"] if found else None
    manifest = Manifest(
        folder,
        device=_describe(experiment.device, processes),
        protocol=str(experiment.data.protocol),
        fingerprint=experiment.data.fingerprint,
        parameters=experiment.parameters,
        resume_step=step,
    )
    manifest.save()
    group = identity(config, with_seed=False)
    # Runs that differ in their seed share a row, which has no one seed to show.
    hparams = {key: value for key, value in defining(config).items() if key != "seed"}
    with Recorder(folder, resume_step=step, hparams=hparams, group=group) as recorder:
        recorder.config_table(config.to_dict())
        recorder.charts(CHARTS)
        trainer = trainer_for(
            experiment,
            recorder,
            checkpoints,
            interruption,
            validate=partial(validate, experiment, processes, manifest),
            processes=processes,
            diagnose=partial(diagnose, experiment),
            watch=watch,
        )
        processes.broadcast(found.state if found else {})
        if found:
            # The modules' weights are the checkpoint's from here on, the generators' states too.
            trainer.load_state_dict(found.state)
            print(f"going on from epoch {trainer.progress.epoch}, step {step}", flush=True)
        progress = trainer.run()
        load_best(experiment, folder)
        if config.trainer.evaluate:
            _evaluate_at_end(experiment, folder, recorder, progress, interruption)
    manifest.save()


def _evaluate_at_end(
    experiment: Experiment,
    folder: RunFolder,
    recorder: Recorder,
    progress: Progress,
    interruption: runtime.Interruption,
) -> None:
    if not experiment.config.trainer.compile:
        experiment = experiment.estimating(compile=False)
    records = estimate(experiment, folder, progress.best_epoch, interruption)
    for record in records:
        append_result(folder, record)
        tag = f"{record.split}/{_tag(record, alone=sum(record.quantity == other.quantity for other in records) == 1)}"
        recorder.scalars(progress.step, progress.epoch, {tag: record.mean}, progress.seconds)
    print_results(folder, records)


def _tag(record: ResultRecord, *, alone: bool) -> str:
    """Name a result in the metrics: each of a pair of bounds by its direction, another quantity by its own name."""
    if record.quantity != "log p(x)":
        name = record.quantity.replace(" ", "_")
        return name if alone else f"{name}_{record.direction}"
    return "log_likelihood" if alone else record.direction


def _describe(device: torch.device, processes: Replicas) -> str:
    words = runtime.describe(device)
    return words if processes.count == 1 else f"{words}, {processes.count} processes"


def trainer_for(
    experiment: Experiment,
    recorder: Recorder | None,
    checkpoints: Checkpoints | None,
    interruption: runtime.Interruption,
    *,
    validate: Callable[[Modules], float],
    processes: Replicas = ALONE,
    diagnose: Callable[[Modules], dict[str, float]] = lambda modules: {},
    watch: Watch = never_stop,
) -> Trainer:
    """Return the trainer of a run, at its first step; a process that does not lead has no recorder, no checkpoints."""
    config, data = experiment.config, experiment.data
    batches = Batches(data.train.to(experiment.device), data.observe, config.trainer.batch_size, config.seed)
    plan, display = plan_of(config), Display(config.trainer.progress and processes.leads)
    return Trainer(
        experiment.modules,
        compiled_where_it_pays(experiment, updates(experiment, processes), plan, display.note),
        batches,
        plan,
        validate=validate,
        diagnose=diagnose,
        watch=watch,
        recorder=recorder,
        checkpoints=checkpoints,
        identity=identity(config),
        device=experiment.device,
        display=display,
        interruption=interruption,
        pictures=partial(record_pictures, experiment, recorder),
        replicas=processes,
    )
