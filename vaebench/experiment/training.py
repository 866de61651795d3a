"""One training run, from configuration to result line."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vaebench import replicas, runtime
from vaebench.config import Config, from_yaml, identity, read, run_folder, to_yaml
from vaebench.config.identity import defining
from vaebench.encoders import Player
from vaebench.errors import RunFailed, UserError
from vaebench.evaluation import log_likelihoods
from vaebench.evaluation.diagnostics import Activity, Spread, spread
from vaebench.experiment.assembly import Experiment, Modules, build, load_best
from vaebench.experiment.compiling import compiled_where_it_pays
from vaebench.experiment.evaluating import estimate, planned, print_results
from vaebench.experiment.losses import BoundLoss, PlayerLoss
from vaebench.experiment.pictures import reconstructions, samples
from vaebench.experiment.story import header
from vaebench.records import Manifest, Recorder, ResultRecord, RunFolder, append_result
from vaebench.replicas import Replicas
from vaebench.training import schedules
from vaebench.training.batches import Batches
from vaebench.training.checkpoint import Checkpoints
from vaebench.training.display import Display
from vaebench.training.trainer import GivenUp, Interrupted, Plan, Progress, Trainer
from vaebench.training.update import ALONE, Loss, Settings, Update

__all__ = ["resume", "train", "trainer_for", "updates"]

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

DIAGNOSED_IMAGES, DIAGNOSED_DRAWS = 500, 20


Watch = Callable[[int, float], bool]


def unwatched(epoch: int, value: float) -> bool:
    """Let every run go on to its end."""
    del epoch, value
    return False


def resume(folder: str | Path) -> Path:
    """Go on with the run in ``folder``, where it is."""
    run = RunFolder.open(Path(folder))
    return _train(read(run.path), run)


def train(config: Config, watch: Watch = unwatched) -> Path:
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


def _train(config: Config, folder: RunFolder, watch: Watch = unwatched) -> Path:
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
        state = processes.tell()
        if state is not None:
            validate = partial(_validate, experiment, processes, None)
            trainer = trainer_for(experiment, None, None, interruption, validate=validate, processes=processes)
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
        planned(experiment)  # what makes no sense says so before the training
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
            validate=partial(_validate, experiment, processes, manifest),
            processes=processes,
            diagnose=partial(_diagnose, experiment),
            watch=watch,
        )
        processes.tell(found.state if found else {})
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
    watch: Watch = unwatched,
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
        pictures=partial(_record_pictures, experiment, recorder),
        replicas=processes,
    )


def plan_of(config: Config) -> Plan:
    trainer = config.trainer
    return Plan(
        epochs=trainer.epochs,
        k=schedules.piecewise(config.k, trainer.k_schedule),
        inner_k=schedules.piecewise(config.encoder.inner_k, trainer.inner_k_schedule),
        beta=schedules.kl_weight(trainer.kl_warmup),
        ema=trainer.ema,
        patience=trainer.patience,
        validate_every=trainer.validate_every,
        log_every=trainer.log_every,
        image_every=trainer.image_every,
        checkpoint_every=trainer.checkpoint_every,
    )


def updates(experiment: Experiment, processes: Replicas = ALONE) -> list[Update]:
    """The main update, one for the encoder where its objective is another, and one for each player it brings."""
    model, encoder, objective = experiment.model, experiment.encoder, experiment.objective
    players = encoder.players()
    theirs = {id(p) for player in players.values() if player.exclusive for p in player.parameters}
    shares = [("main", objective, experiment.modules)]
    if objective.encoder_target is not None:
        shares = [("main", objective, model), ("encoder", objective.for_encoder(), encoder)]
    updates = []
    alone = _epochs_alone(experiment, players)
    for name, share, module in shares:
        parameters = [p for p in module.parameters() if id(p) not in theirs]
        loss = BoundLoss(share, model, encoder, experiment.autocast)
        updates.append(_update(experiment, name, loss, parameters, starts=alone))
    for name, player in players.items():
        updates.append(
            _update(
                experiment,
                name,
                PlayerLoss(player, experiment.autocast),
                list(player.parameters),
                repeats=player.repeats,
                lr=player.lr,
                betas=player.betas,
                ends=player.until,
            )
        )
    return [replace(update, replicas=processes) for update in updates]


def _epochs_alone(experiment: Experiment, players: dict[str, Player]) -> int:
    """Return for how many epochs the main loss rests, while players learn."""
    alone = max((player.alone for player in players.values()), default=0)
    epochs = experiment.config.trainer.epochs
    if alone >= epochs:
        raise UserError(
            f"trainer.epochs={epochs} ends within the warm-up of {alone} epochs, before anything is trained"
        )
    return alone


def _update(
    experiment: Experiment,
    name: str,
    loss: Callable[[Tensor, Settings], Loss],
    parameters: list[nn.Parameter],
    *,
    repeats: int = 1,
    lr: float | None = None,
    betas: tuple[float, float] | None = None,
    starts: float = 0.0,
    ends: float = math.inf,
) -> Update:
    settings, trainer = experiment.config.optimizer, experiment.config.trainer
    lr = settings.lr if lr is None else lr
    optimizer = torch.optim.Adam(
        parameters,
        lr=lr,
        betas=betas or settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    rate = schedules.learning_rate(
        settings.schedule,
        lr,
        decay=settings.decay,
        decay_epochs=settings.decay_epochs,
        final_lr=settings.final_lr * lr / settings.lr,
        epochs=trainer.epochs,
    )
    return Update(name, loss, optimizer, rate, repeats, trainer.clip_norm, starts, ends, trainer.microbatch)


def _validate(experiment: Experiment, processes: Replicas, manifest: Manifest | None, modules: Modules) -> float:
    """The one fixed estimate by which weights are chosen: same images, k and noise at every epoch."""
    images = experiment.data.validation
    own = processes.part(len(images))
    settings = experiment.config.trainer
    inner_k = experiment.inner_k if settings.validation_inner_k is None else settings.validation_inner_k
    if manifest is not None:
        manifest.save()
    modules.eval()
    with experiment.autocast():
        parts = log_likelihoods(
            modules.model,
            modules.encoder.proposal(),
            experiment.data.observe,
            images[: own.stop].to(experiment.device),
            k=settings.validation_k,
            inner_k=inner_k,
            first=own.start,
        )
        values = processes.joined_up(torch.cat([values for _, values in parts]), len(images))
    modules.train()
    return values.mean().item()


@torch.no_grad()
def _diagnose(experiment: Experiment, modules: Modules) -> dict[str, float]:
    """What draws show of the posterior, by name: no decoder runs for it, so that it costs little beside a validation.

    ``active_units`` is the count of ``vaebench diagnose``, from few draws: weak units may not be counted yet.
    ``posterior_std`` is the root of the mean variance of q(z_d|x): near the prior's, q has collapsed.
    """
    found = Spread.joined(list(_spreads(experiment, modules)))
    return {
        "active_units": float(Activity.of(found).active().sum()),
        "posterior_std": found.variances.mean().sqrt().item(),
    }


def _spreads(experiment: Experiment, modules: Modules) -> Iterator[Spread]:
    """Yield the posterior's moments for the same random validation images, with the same noise at every epoch."""
    data, device = experiment.data, experiment.device
    order = torch.Generator().manual_seed(runtime.derived_seed(0, "validation diagnostics"))
    numbers = torch.randperm(len(data.validation), generator=order)[:DIAGNOSED_IMAGES]
    modules.eval()
    with experiment.autocast(), runtime.forked_randomness(device, seed=0):
        for some in numbers.split(100):
            x = data.observe(data.validation[some].to(device))
            yield spread(modules.encoder, x, DIAGNOSED_DRAWS, images=some)
    modules.train()


def _record_pictures(experiment: Experiment, recorder: Recorder | None, modules: Modules, step: int) -> None:
    if recorder is None:
        return
    recorder.image("samples", samples(experiment, modules), step)
    recorder.image("reconstructions", reconstructions(experiment, modules), step)
