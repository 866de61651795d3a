"""A config in words: the lines that a run's header and its summary share, and its row in HParams. Imports no torch."""

from collections.abc import Iterator
from dataclasses import fields
from types import NoneType
from typing import Any, get_args

from omegaconf import OmegaConf

from vaebench.config.catalog import config_folders, own_keys
from vaebench.config.identity import defining_with_nulls, identity, is_elbo_by_k
from vaebench.config.schema import Choice, Config

__all__ = [
    "budget",
    "by_epoch",
    "decoder",
    "hparams",
    "hparams_title",
    "network",
    "objective",
    "schedules_past_the_end",
    "training",
]

BURDA_EPOCHS = 3280


def network(trunk: str, hidden: tuple[int, ...], activation: str) -> str:
    """Return a network's kind, widths and activation, for example ``mlp 300-300 silu``."""
    return f"{trunk} {'-'.join(map(str, hidden))} {activation}"


def decoder(config: Config) -> str:
    """Return the generative model: its network, number of latent coordinates and prior."""
    part = config.decoder
    words = network(part.name, part.hidden, part.activation)
    return f"{words}, latent_dim={config.latent_dim}, prior {config.prior.name}"


def likelihood(config: Config) -> str:
    """Return the family of p(x|z) with its settings, for example ``logistic_mixture (components=5)``."""
    settings = ", ".join(f"{key}={str(value).lower()}" for key, value in config.likelihood.arguments.items())
    return config.likelihood.name + (f" ({settings})" if settings else "")


def objective(config: Config) -> str:
    """Return the objective, its number of samples and its gradient estimator."""
    same = f" ({config.objective.bound} with k=1 is the ELBO)" if is_elbo_by_k(config) else ""
    return f"{config.objective.name}, {by_epoch('k', config.k_by_epoch)}{same}, gradient {config.objective.gradient}"


def training(config: Config) -> str:
    """Return the length of the training, its batch size, its seed, and its budget if that is not 1."""
    epochs = f"{config.trainer.epochs} epoch{'s' * (config.trainer.epochs > 1)}"
    return ", ".join(
        filter(None, [epochs, f"batches of {config.trainer.batch_size}", f"seed {config.seed}", budget(config)])
    )


def budget(config: Config) -> str:
    """Return the budget, for example ``budget=0.01``, or nothing for 1."""
    return "" if config.budget == 1 else f"budget={config.budget:g}"


def validation(config: Config) -> str:
    """Return what a validation estimates, for example ``lower bound by IWAE, k=50``."""
    trained, given = list(config.inner_k_by_epoch.values())[-1], config.trainer.validation_inner_k
    inner_k = trained if given is None else given
    return f"lower bound by IWAE, k={config.trainer.validation_k}" + (f", inner_k={inner_k}" if inner_k else "")


def by_epoch(name: str, values: dict[int, int]) -> str:
    """Return the values of a schedule, for example ``k=1, 16 from epoch 100``."""
    first, *later = values.items()
    return f"{name}={first[1]}" + "".join(f", {value} from epoch {epoch}" for epoch, value in later)


def schedules_past_the_end(config: Config) -> Iterator[str]:
    """Yield a note for each schedule that reaches past ``trainer.epochs``, and for a patience that it disables."""
    trainer, optimizer = config.trainer, config.optimizer
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
    if trainer.patience is not None and config.schedules_end >= trainer.epochs:
        yield f"trainer.patience={trainer.patience} has no effect: the schedules of the objective last the whole run"
    burda = max(1, round(BURDA_EPOCHS * config.budget))
    if optimizer.schedule == "burda" and trainer.epochs < burda:
        yield f"optimizer.schedule=burda takes {burda} epochs, but trainer.epochs={trainer.epochs}"
    if optimizer.schedule == "exponential" and trainer.epochs < optimizer.decay_epochs:
        rate = optimizer.lr * optimizer.decay ** (trainer.epochs / optimizer.decay_epochs)
        yield (
            f"optimizer.decay_epochs={optimizer.decay_epochs} is longer than trainer.epochs={trainer.epochs}: "
            f"the learning rate ends at {rate:.3g}"
        )


def hparams(config: Config) -> dict[str, Any]:
    """Return the settings that can define the model and the run's name, nested, as TensorBoard's HParams shows them.

    The seed is left out, because runs that differ only in the seed share a row. A value of a setting that may be null
    is text: TensorBoard can neither sort nor filter a column with texts and numbers.
    """
    values = defining_with_nulls(config) | {"name": config.name}
    del values["seed"]
    for group, part in values.items():
        if isinstance(part, dict):
            nullable = _nullable(config, group)
            values[group] = {key: _as_text(value) if key in nullable else value for key, value in part.items()}
    return values


def hparams_title(config: Config) -> str:
    """Return the title of the run's row in HParams: its name, its method and a hash of the settings without the seed.

    Runs with other names have rows of their own: TensorBoard shows the settings of one run for the whole row.
    """
    method = f"{config.encoder.name}-{config.objective.name}-k{config.k} {identity(config, with_seed=False)}"
    return method if config.name is None else f"{config.name} {method}"


def _nullable(config: Config, group: str) -> set[str]:
    """Return the settings of a group that may be null: by their type, or by their default in the yaml of the choice."""
    part = getattr(config, group)
    found = {field.name for field in fields(part) if NoneType in get_args(field.type)}
    if not isinstance(part, Choice):
        return found
    folders = [folder for folder in config_folders() if (folder / group / f"{part.name}.yaml").is_file()]
    if not folders:  # of a folder of --config-dir
        return found
    declared = OmegaConf.to_container(own_keys(group, part.name, folders))  # references stay as they are
    assert isinstance(declared, dict)
    return found | {str(key) for key, value in declared.items() if value is None}


def _as_text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
