"""Scale a training: its length and every schedule, together. Imports no torch."""

from dataclasses import replace

from vaebench.config.check import build
from vaebench.config.schema import Config, OptimizerSettings, TrainerSettings
from vaebench.errors import UserError

__all__ = ["scaled"]

_ENCODER_EPOCHS = ("tau_warmup",)
"""The settings of encoders that are lengths in epochs."""
_SMALLEST = 1e-300
"""The smallest factor of a learning rate in an epoch: the config must stay positive."""


def scaled(config: Config) -> Config:
    """Return the config with all lengths of the training multiplied by ``config.budget``, at least one epoch each.

    Lengths in epochs are rounded. An exponential learning rate keeps its values exactly. ``trainer.patience``, a number
    of validations, lasts the same share of the training, and ``trainer.ema`` averages the same share. The stages of
    ``optimizer.schedule=burda`` are no setting: `vaebench.train.schedules` scales them. A cosine follows
    ``trainer.epochs``. A setting of a plug-in stays as it is.

    Raises:
        UserError: a scaled length is out of range.
    """
    budget, encoder = config.budget, config.encoder
    if budget == 1:
        return config
    lengths = {key: _length(value, budget) for key, value in encoder.arguments.items() if key in _ENCODER_EPOCHS}
    found = replace(
        config,
        trainer=_trainer(config.trainer, budget),
        optimizer=_optimizer(config.optimizer, budget),
        encoder=replace(encoder, arguments=encoder.arguments | lengths),
    )
    try:
        return build(Config, found.to_dict())
    except UserError as error:
        raise UserError(f"{error} (scaled by budget={budget:g})") from None


def _length(epochs: int, budget: float) -> int:
    """Return a scaled length; 0 stays 0, because it switches something off."""
    return max(1, round(epochs * budget)) if epochs else 0


def _schedule(values: dict[int, int] | None, budget: float) -> dict[int, int] | None:
    """Return a schedule with scaled epochs; of several values at one epoch, the last one stays."""
    return None if values is None else {_length(epoch, budget): value for epoch, value in sorted(values.items())}


def _ema(decay: float | None, budget: float) -> float | None:
    """Return the decay whose average spans ``budget`` times as many steps, 1 / (1 - decay); None for one or fewer.

    An average over 1,000 steps takes old weights into a short training: 0.7 nats in 20 epochs of MNIST.
    """
    if decay is None:
        return None
    found = round(1 - (1 - decay) / budget, 12)  # 0.99, not 0.9900000000000001
    return found if 0 < found < 1 else None


def _trainer(settings: TrainerSettings, budget: float) -> TrainerSettings:
    every = _length(settings.validate_every, budget)
    patience = settings.patience and max(1, round(settings.patience * settings.validate_every * budget / every))
    return replace(
        settings,
        epochs=_length(settings.epochs, budget),
        kl_warmup=_length(settings.kl_warmup, budget),
        k_schedule=_schedule(settings.k_schedule, budget),
        inner_k_schedule=_schedule(settings.inner_k_schedule, budget),
        ema=_ema(settings.ema, budget),
        patience=patience,
        validate_every=every,
        image_every=_length(settings.image_every, budget),
        checkpoint_every=_length(settings.checkpoint_every, budget),
    )


def _optimizer(settings: OptimizerSettings, budget: float) -> OptimizerSettings:
    """Return the settings with the same learning rate at each share of the training."""
    epochs = _length(settings.decay_epochs, budget)
    decay = settings.decay ** (epochs / (settings.decay_epochs * budget))
    return replace(settings, decay_epochs=epochs, decay=max(decay, _SMALLEST))
