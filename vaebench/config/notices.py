"""Schedules that a run does not complete: one line each, for the header of the run and for reports; free of torch."""

from collections.abc import Iterator

from vaebench.config.schema import Config

__all__ = ["notices"]

BURDA_EPOCHS = 3280


def notices(config: Config) -> list[str]:
    """Return a line for each schedule that is longer than the run, and for a ``trainer.patience`` without effect."""
    return [*_objective(config), *_learning_rate(config)]


def _objective(config: Config) -> Iterator[str]:
    trainer, epochs = config.trainer, config.trainer.epochs
    longer = f"is longer than trainer.epochs={epochs}"
    if trainer.kl_warmup > epochs:
        yield f"trainer.kl_warmup={trainer.kl_warmup} {longer}: the KL weight ends at {epochs / trainer.kl_warmup:.2g}"
    schedules = (
        ("k_schedule", trainer.k_schedule, "k", config.k_by_epoch),
        ("inner_k_schedule", trainer.inner_k_schedule, "inner_k", config.inner_k_by_epoch),
    )
    for key, schedule, name, reached in schedules:
        late = [epoch for epoch in schedule or {} if epoch >= epochs]
        if late:
            left_out = f"epoch{'s' * (len(late) > 1)} {', '.join(map(str, late))} left out"
            yield f"trainer.{key} {longer}: {left_out}; {name} ends at {reached[max(reached)]}"
    if trainer.patience is not None and config.schedules_end >= epochs:
        yield f"trainer.patience={trainer.patience} has no effect: the schedules of the objective last the whole run"


def _learning_rate(config: Config) -> Iterator[str]:
    optimizer, epochs = config.optimizer, config.trainer.epochs
    if optimizer.schedule == "burda" and epochs < BURDA_EPOCHS:
        yield f"optimizer.schedule=burda takes {BURDA_EPOCHS} epochs, but trainer.epochs={epochs}"
    if optimizer.schedule == "exponential" and epochs < optimizer.decay_epochs:
        rate = optimizer.lr * optimizer.decay ** (epochs / optimizer.decay_epochs)
        yield (
            f"optimizer.decay_epochs={optimizer.decay_epochs} is longer than trainer.epochs={epochs}: "
            f"the learning rate ends at {rate:.3g}"
        )
