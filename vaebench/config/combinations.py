"""Choices that are fine one by one and impossible together: each is refused in one line."""

from collections.abc import Iterator

from vaebench.config.catalog import config_dir, own_keys
from vaebench.config.schema import Config
from vaebench.datasets.protocol import protocol_for
from vaebench.errors import UserError

__all__ = ["check_combinations", "refuse_pairing"]

# Bounds that fix how the reverse model is made, and the encoders that make it so.
# Means of log weights: of these stl is the unbiased path gradient, of all others dreg.
LINEAR_BOUNDS = ("elbo", "beta", "free_bits")
NEEDED_ENCODERS = {"sivi": ("sivi",), "iwhvi": ("adgm", "hvm", "iwhvi")}


def refuse_pairing(objective: str, encoder: str, hierarchical: bool) -> None:
    """Raise UserError if this objective cannot train this encoder; both are names."""
    if objective == "hvm" and not hierarchical:
        raise UserError(f"objective=hvm needs a hierarchical encoder: encoder={'|'.join(hierarchical_encoders())}")
    needed = NEEDED_ENCODERS.get(objective)
    if needed and encoder not in needed:
        raise UserError(f"objective={objective} needs encoder={'|'.join(needed)}, not encoder={encoder}")


def hierarchical_encoders() -> Iterator[str]:
    """Yield the encoder choices that have inner samples."""
    for path in sorted((config_dir() / "encoder").glob("*.yaml")):
        if "inner_k" in own_keys("encoder", path.stem, [config_dir()]):
            yield path.stem


def check_combinations(config: Config) -> None:
    """Raise UserError for settings that contradict each other."""
    protocol_for(config.dataset.name, config.dataset.binarization, config.dataset.split, config.dataset.seed)
    check_inner_samples(config)
    check_gradient(config)
    check_trainer(config)


def check_inner_samples(config: Config) -> None:
    """Refuse inner samples where the objective or the encoder has none, and none where it needs them."""
    objective, inner_k = config.objective.name, config.encoder.inner_k
    schedule = config.trainer.inner_k_schedule
    hierarchical = "psi_dim" in config.encoder.arguments
    if schedule and not hierarchical:
        raise UserError(f"trainer.inner_k_schedule needs a hierarchical encoder, not encoder={config.encoder.name}")
    if objective == "hvm" and (inner_k > 0 or any((schedule or {}).values())):
        raise UserError(
            "objective=hvm is the bound without inner samples, so encoder.inner_k or an inner_k_schedule "
            "contradicts it: leave it out, or choose objective=iwhvi or objective=sivi"
        )
    if objective in NEEDED_ENCODERS and inner_k == 0 and not schedule:
        raise UserError(
            f"objective={objective} needs inner samples: encoder.inner_k=5 or more (objective=hvm has none)"
        )


def check_gradient(config: Config) -> None:
    """Refuse gradient estimators that are biased or undefined for the bound."""
    bound, gradient = config.objective.bound, config.objective.gradient
    largest_k = max(config.k_by_epoch.values())
    if gradient == "stl" and bound not in LINEAR_BOUNDS and largest_k > 1:
        raise UserError(
            f"objective.gradient=stl is biased for objective={config.objective.name} with k={largest_k}: "
            "use objective.gradient=dreg"
        )
    if gradient == "dreg" and bound in LINEAR_BOUNDS:
        raise UserError(
            "objective.gradient=dreg belongs to importance-weighted bounds, and "
            f"objective={config.objective.name} maximises an elbo: use objective.gradient=stl"
        )


def check_trainer(config: Config) -> None:
    """Refuse a course of training that cannot be carried out."""
    trainer = config.trainer
    if trainer.validate_every > trainer.epochs:
        raise UserError(
            f"trainer.validate_every={trainer.validate_every} never comes in {trainer.epochs} epochs, "
            "and the best weights are chosen by validation: lower it"
        )
