"""The updates of a run: one for the bound, and one for each auxiliary loss of the encoder."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from vaebench import runtime
from vaebench.config import Config
from vaebench.encoders.base import AuxiliaryLoss
from vaebench.errors import UserError
from vaebench.experiment import Experiment
from vaebench.train import schedules
from vaebench.train.losses import AuxiliaryUpdateLoss, BoundLoss
from vaebench.train.replicas import Replicas
from vaebench.train.trainer import Plan
from vaebench.train.update import ALONE, Loss, Settings, Update

__all__ = ["plan_of", "updates"]


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
    """The main update, one for the encoder where its objective is another, and one for each auxiliary it brings."""
    model, encoder, objective = experiment.model, experiment.encoder, experiment.objective
    auxiliary_losses = encoder.auxiliary_losses()
    theirs = {id(p) for auxiliary in auxiliary_losses.values() if auxiliary.exclusive for p in auxiliary.parameters}
    shares = [("main", objective, experiment.modules)]
    if objective.encoder_target is not None:
        shares = [("main", objective, model), ("encoder", objective.for_encoder(), encoder)]
    updates = []
    precision = runtime.autocast(experiment.device, experiment.config.trainer.precision)
    alone = _epochs_alone(experiment, auxiliary_losses)
    for name, share, module in shares:
        parameters = [p for p in module.parameters() if id(p) not in theirs]
        loss = BoundLoss(share, model, encoder, precision)
        updates.append(_update(experiment, name, loss, parameters, starts=alone))
    for name, auxiliary in auxiliary_losses.items():
        updates.append(
            _update(
                experiment,
                name,
                AuxiliaryUpdateLoss(auxiliary, precision),
                list(auxiliary.parameters),
                repeats=auxiliary.repeats,
                lr=auxiliary.lr,
                betas=auxiliary.betas,
                ends=auxiliary.stop_epoch,
            )
        )
    return [replace(update, replicas=processes) for update in updates]


def _epochs_alone(experiment: Experiment, auxiliary_losses: dict[str, AuxiliaryLoss]) -> int:
    """Return for how many epochs the main loss rests, while auxiliary_losses learn."""
    alone = max((auxiliary.warmup_epochs for auxiliary in auxiliary_losses.values()), default=0)
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
