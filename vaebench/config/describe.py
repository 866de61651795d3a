"""A config in words: the lines that a run's header and its summary share. Imports no torch."""

from collections.abc import Iterator

from vaebench.config.schema import Config

__all__ = ["decoder", "network", "objective", "schedules_past_the_end", "training"]


def network(trunk: str, hidden: tuple[int, ...], activation: str) -> str:
    """Return a network's kind, widths and activation, for example ``mlp 300-300 silu``."""
    return f"{trunk} {'-'.join(map(str, hidden))} {activation}"


def decoder(config: Config) -> str:
    """Return the generative model: its network, number of latent coordinates and prior."""
    part = config.decoder
    words = network(part.name, part.hidden, part.activation)
    return f"{words}, latent_dim={config.latent_dim}, prior {config.prior.name}"


def objective(config: Config) -> str:
    """Return the objective, its number of samples and its gradient estimator."""
    return f"{config.objective.name}, k={config.k}, gradient {config.objective.gradient}"


def training(config: Config) -> str:
    """Return the length of the training, its batch size and its seed."""
    return f"{config.trainer.epochs} epochs, batches of {config.trainer.batch_size}, seed {config.seed}"


def schedules_past_the_end(config: Config) -> Iterator[str]:
    """Yield a note for the KL warm-up and for each schedule that reaches past ``trainer.epochs``."""
    trainer = config.trainer
    if trainer.kl_warmup > trainer.epochs:
        weight = trainer.epochs / trainer.kl_warmup
        yield (
            f"trainer.kl_warmup={trainer.kl_warmup} is longer than trainer.epochs={trainer.epochs}: "
            f"the KL weight ends at {weight:.2g}, not at 1"
        )
    for key, schedule in (("k_schedule", trainer.k_schedule), ("inner_k_schedule", trainer.inner_k_schedule)):
        if late := [epoch for epoch in schedule or {} if epoch >= trainer.epochs]:
            epochs = f"epoch{'s' * (len(late) > 1)} {', '.join(map(str, late))}"
            yield f"trainer.{key}: no effect at {epochs}, because the run has trainer.epochs={trainer.epochs}"
