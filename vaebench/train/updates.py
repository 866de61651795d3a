"""The updates of a run (one for the bound, one for each auxiliary loss of the encoder) and its course."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vaebench import runtime
from vaebench.config import Config
from vaebench.encoders.base import AuxiliaryLoss
from vaebench.errors import UserError
from vaebench.experiment import Experiment
from vaebench.train import schedules
from vaebench.train.losses import AuxiliaryUpdateLoss, BoundLoss
from vaebench.train.replicas import Replicas
from vaebench.train.schedules import Course
from vaebench.train.update import ALONE, LossFunction, Update

__all__ = ["course_of", "updates"]

_Group = tuple[float, list[nn.Parameter]]
"""The share of the learning rate that parameters take, and these parameters."""


def course_of(experiment: Experiment) -> Course:
    """Return the course of a run."""
    config, trainer = experiment.config, experiment.config.trainer
    return Course(
        epochs=trainer.epochs,
        k=schedules.piecewise(config.k_by_epoch),
        inner_k=schedules.piecewise(config.inner_k_by_epoch),
        beta=schedules.kl_weight(trainer.kl_warmup),
        settled=max(config.schedules_end, _warmup_epochs(experiment.encoder.auxiliary_losses())),
        ema=trainer.ema,
        patience=trainer.patience,
        validate_every=trainer.validate_every,
        log_every=trainer.log_every,
        image_every=trainer.image_every,
        checkpoint_every=trainer.checkpoint_every,
    )


def updates(experiment: Experiment, processes: Replicas = ALONE) -> list[Update]:
    """Return the main update, one for the encoder if its objective differs, and one for each auxiliary loss.

    Raises:
        UserError: the run ends before the auxiliary losses have warmed up.
    """
    config, model, encoder = experiment.config, experiment.model, experiment.encoder
    auxiliary_losses = encoder.auxiliary_losses()
    warmup = _warmup_epochs(auxiliary_losses)
    if warmup >= config.trainer.epochs:
        raise UserError(
            f"trainer.epochs={config.trainer.epochs} ends within the warm-up of {warmup} epochs, in which only the "
            "encoder's auxiliary losses are trained: increase trainer.epochs"
        )
    objective = experiment.objective
    shares: list[tuple[str, nn.Module]] = [("main", experiment.modules)]
    if objective.encoder_target is not None:
        shares = [("main", model), ("encoder", encoder)]
    exclusive = {id(p) for auxiliary in auxiliary_losses.values() if auxiliary.exclusive for p in auxiliary.parameters}
    autocast = runtime.autocast(experiment.device, config.trainer.precision)
    made = []
    for name, module in shares:
        loss = BoundLoss(objective if name == "main" else objective.for_encoder(), model, encoder, autocast)
        parameters = [p for p in module.parameters() if id(p) not in exclusive]
        made.append(replace(_update(config, name, loss, _groups(config, parameters, encoder)), starts=warmup))
    for name, auxiliary in auxiliary_losses.items():
        loss, parameters = AuxiliaryUpdateLoss(auxiliary, autocast), list(auxiliary.parameters)
        update = _update(config, name, loss, [(1.0, parameters)], lr=auxiliary.lr, betas=auxiliary.betas)
        made.append(replace(update, repeats=auxiliary.repeats, ends=auxiliary.stop_epoch))
    return [replace(update, replicas=processes) for update in made]


def _warmup_epochs(auxiliary_losses: dict[str, AuxiliaryLoss]) -> int:
    """Return the number of epochs in which only auxiliary losses are trained."""
    return max((auxiliary.warmup_epochs for auxiliary in auxiliary_losses.values()), default=0)


def _groups(config: Config, parameters: list[nn.Parameter], encoder: nn.Module) -> list[_Group]:
    """Return groups of the parameters; those of the encoder learn at ``optimizer.encoder_lr``."""
    optimizer = config.optimizer
    if optimizer.encoder_lr is None:
        return [(1.0, parameters)]
    own = {id(p) for p in encoder.parameters()}
    others = (1.0, [p for p in parameters if id(p) not in own])
    of_encoder = (optimizer.encoder_lr / optimizer.lr, [p for p in parameters if id(p) in own])
    return [group for group in (others, of_encoder) if group[1]]


def _update(
    config: Config,
    name: str,
    loss: LossFunction,
    groups: list[_Group],
    *,
    lr: float | None = None,
    betas: tuple[float, float] | None = None,
) -> Update:
    """Return an update; ``lr`` overrides the config's rate, and ``betas`` its optimiser: they are betas of Adam."""
    given, trainer = config.optimizer, config.trainer
    lr = given.lr if lr is None else lr
    kind, moments = ("adam" if betas else given.name), betas or given.betas
    parameters = [{"params": group} for _, group in groups]
    shared: dict[str, Any] = {"lr": lr, "eps": given.eps, "weight_decay": given.weight_decay}
    optimizers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adam": lambda: torch.optim.Adam(parameters, betas=moments, fused=True, **shared),
        "adamax": lambda: torch.optim.Adamax(parameters, betas=moments, **shared),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, alpha=moments[1], **shared),
    }
    optimizer = optimizers[kind]()
    rate = schedules.learning_rate(
        given.schedule,
        lr,
        decay=given.decay,
        decay_epochs=given.decay_epochs,
        final_lr=given.final_lr * lr / given.lr,
        epochs=trainer.epochs,
        budget=config.budget,
    )
    return Update(
        name,
        loss,
        optimizer,
        rate,
        shares=[share for share, _ in groups],
        clip_norm=trainer.clip_norm,
        microbatch=trainer.microbatch,
    )
