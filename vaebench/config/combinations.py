"""Refuse settings that are valid one by one but contradict each other.

These checks read yaml files and need no torch. Checks that need an encoder or an objective are in `experiment.build`.
"""

from collections.abc import Iterator
from dataclasses import replace

from vaebench.config.catalog import config_dir, own_keys
from vaebench.config.schema import Config
from vaebench.datasets.protocol import protocol_for
from vaebench.errors import UserError

__all__ = ["SCHEDULES", "check_combinations", "check_objective", "without_late_entries"]

# Bounds that are linear in the log weights: the mean of K of them has the gradient of a single one.
LINEAR_BOUNDS = ("elbo", "beta", "free_bits")
SCHEDULES = ("k_schedule", "inner_k_schedule")
# Objectives that take inner samples, and the encoders that draw them so.
NEEDED_ENCODERS = {"sivi": ("sivi",), "iwhvi": ("adgm", "hvm", "iwhvi")}


def check_objective(objective: str, encoder: str, *, inner_samples: bool) -> None:
    """Raise UserError if this objective cannot train this encoder.

    Args:
        objective: its name.
        encoder: its name.
        inner_samples: whether the encoder has inner samples.
    """
    if objective == "hvm" and not inner_samples:
        raise UserError(f"objective=hvm needs a hierarchical encoder: encoder={'|'.join(hierarchical_encoders())}")
    needed = NEEDED_ENCODERS.get(objective)
    if needed and encoder not in needed:
        raise UserError(f"objective={objective} needs encoder={'|'.join(needed)}, got encoder={encoder}")


def hierarchical_encoders() -> Iterator[str]:
    """Yield the encoder choices that have inner samples."""
    for path in sorted((config_dir() / "encoder").glob("*.yaml")):
        if "inner_k" in own_keys("encoder", path.stem, [config_dir()]):
            yield path.stem


def check_combinations(config: Config, *, inner_samples: bool) -> None:
    """Raise UserError for settings that contradict each other; ``inner_samples``: whether the encoder has them."""
    protocol_for(config.dataset.name, config.dataset.binarization, config.dataset.split, config.dataset.seed)
    check_inner_samples(config, inner_samples)
    check_gradient(config)
    check_trainer(config)


def check_inner_samples(config: Config, inner_samples: bool) -> None:
    """Refuse inner samples if the objective or the encoder has none, and no inner samples if it needs them."""
    objective, inner_k = config.objective.name, config.encoder.inner_k
    schedule = config.trainer.inner_k_schedule
    if schedule and not inner_samples:
        raise UserError(f"trainer.inner_k_schedule needs a hierarchical encoder, got encoder={config.encoder.name}")
    if objective == "hvm" and (inner_k > 0 or any((schedule or {}).values())):
        raise UserError(
            "objective=hvm is the bound without inner samples: remove encoder.inner_k and trainer.inner_k_schedule, "
            "or use objective=iwhvi or objective=sivi"
        )
    if objective in NEEDED_ENCODERS and inner_k == 0 and not schedule:
        raise UserError(
            f"objective={objective} needs inner samples: set encoder.inner_k=5, or use objective=hvm, which has none"
        )


def check_gradient(config: Config) -> None:
    """Refuse gradient estimators that are biased or undefined for the bound."""
    bound, gradient = config.objective.bound, config.objective.gradient
    largest_k = max(config.k, *(config.trainer.k_schedule or {0: 1}).values())
    if gradient == "stl" and bound not in LINEAR_BOUNDS and largest_k > 1:
        raise UserError(
            f"objective.gradient=stl is biased for objective={config.objective.name} with k={largest_k}: "
            "use objective.gradient=dreg"
        )
    if gradient == "dreg" and bound in LINEAR_BOUNDS:
        raise UserError(
            "objective.gradient=dreg is defined for importance-weighted bounds, and "
            f"objective={config.objective.name} is an ELBO: use objective.gradient=stl"
        )


def check_trainer(config: Config) -> None:
    """Refuse a training without validation."""
    trainer = config.trainer
    if trainer.validate_every > trainer.epochs:
        raise UserError(
            f"trainer.validate_every must be <= trainer.epochs={trainer.epochs}, got {trainer.validate_every}: "
            "validation chooses the best weights"
        )


def without_late_entries(config: Config) -> Config:
    """Return the configuration without the schedule entries that start after the last epoch."""
    trainer = config.trainer
    reached = {
        key: {epoch: value for epoch, value in schedule.items() if epoch < trainer.epochs} or None
        for key in SCHEDULES
        if (schedule := getattr(trainer, key))
    }
    return replace(config, trainer=replace(trainer, **reached)) if reached else config
