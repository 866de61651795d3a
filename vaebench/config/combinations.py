"""Refuse settings that are valid one by one but contradict each other.

These checks read yaml files and need no torch. Checks that need an encoder or an objective are in `experiment.build`.
"""

from vaebench import plugins
from vaebench.config.catalog import config_folders, described, own_keys
from vaebench.config.schema import Config
from vaebench.datasets.protocol import check_words
from vaebench.errors import UserError

__all__ = ["check_combinations", "hierarchical_encoder_needed"]


def hierarchical_encoder_needed(objective: str) -> UserError:
    """Return the error for an objective that needs inner samples with an encoder that has none."""
    folders = config_folders()
    encoders = [c.choice for c in described("encoder", folders) if "inner_k" in own_keys("encoder", c.choice, folders)]
    return UserError(f"objective={objective} needs a hierarchical encoder: encoder={'|'.join(encoders)}")


def check_combinations(config: Config, objective_inner_k: int | None) -> None:
    """Refuse settings that contradict each other.

    Args:
        config: all settings.
        objective_inner_k: the default of encoder.inner_k that the objective's yaml sets. 0: the objective is a bound
            without inner samples; more: it needs inner samples; None: it accepts both.

    Raises:
        UserError: a combination is invalid.
    """
    check_words(config.dataset.name, config.dataset.binarization, config.dataset.split, config.dataset.seed)
    ours = plugins.find("likelihood", config.likelihood.name) is None  # `experiment.build` asks the class of a plug-in
    if ours and config.likelihood.name != "bernoulli" and config.dataset.binarization != "none":
        raise UserError(
            f"likelihood={config.likelihood.name} needs grey levels, but dataset.binarization="
            f"{config.dataset.binarization} makes pixels binary: set dataset.binarization=none, or use "
            "likelihood=bernoulli"
        )
    name, trainer = config.objective.name, config.trainer
    inner_ks = {config.encoder.inner_k, *(trainer.inner_k_schedule or {}).values()}
    if objective_inner_k == 0 and inner_ks != {0}:
        raise UserError(
            f"objective={name} is the bound without inner samples: remove encoder.inner_k and inner_k_schedule, "
            "or use objective=iwhvi or objective=sivi"
        )
    if objective_inner_k and inner_ks == {0}:
        raise UserError(
            f"objective={name} needs inner samples: set encoder.inner_k={objective_inner_k}, or use objective=hvm, "
            "which has none"
        )
    if config.optimizer.name == "rmsprop" and config.optimizer.betas[0] != 0:
        raise UserError(
            f"optimizer=rmsprop has no average of the gradient: optimizer.betas must start with 0, got "
            f"{list(config.optimizer.betas)}"
        )
    if trainer.validate_every > trainer.epochs:
        raise UserError(
            f"trainer.validate_every must be <= trainer.epochs={trainer.epochs}, got {trainer.validate_every}: "
            "validation chooses the best weights"
        )
