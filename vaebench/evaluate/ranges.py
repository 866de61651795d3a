"""The valid range of every number among an estimator's settings. This file does not import torch."""

from vaebench import plugins
from vaebench.config.schema import EstimatorSettings
from vaebench.errors import UserError

__all__ = ["check_ranges"]

LEAST = {
    "aggregate": 0,
    "batch": 1,
    "bdmc": 2,
    "chains": 1,
    "chunk": 1,
    "draws": 1,
    "fit_draws": 1,
    "image_seed": 0,
    "images": 2,
    "inner_k": 0,
    "k": 1,
    "leapfrog": 1,
    "processes": 1,
    "repeats": 1,
    "seed": 0,
    "steps": 1,
    "temperatures": 0,
}
"""The smallest value of each whole number. Two images are needed for a standard error; no temperature between the two
densities is importance sampling; an aggregate of 0 leaves the mutual information out."""
LARGEST_SEED = 2**32 - 1
MAY_BE_NULL = {"batch", "bdmc", "chunk", "image_seed", "images", "inner_k"}
POSITIVE = {"lr", "finetune_lr"}


def check_ranges(settings: EstimatorSettings) -> None:
    """Raise UserError with the key and the value of the first setting that is out of range."""
    # The estimator of a plug-in checks its own settings.
    own = settings.arguments if plugins.find("estimator", settings.name) is None else {}
    values = {**vars(settings), **own}
    for key, least in LEAST.items():
        if key in values:
            _check(settings.name, key, values[key], least)
    for key in POSITIVE & values.keys():
        if not isinstance(values[key], int | float) or not values[key] > 0:
            raise UserError(f"estimator.{key} must be > 0, got {_typed(values[key])}")


def _check(estimator: str, key: str, value: object, least: int) -> None:
    null = key in MAY_BE_NULL or (estimator, key) == ("sandwich", "temperatures")
    if value is None and null:
        return
    # What a user types: the number of processes is no setting of the estimator.
    word = key if key == "processes" else f"estimator.{key}"
    if type(value) is not int:
        kind = "a whole number or null" if null else "a whole number"
        raise UserError(f"{word} must be {kind}, got {_typed(value)}")
    if value < least:
        raise UserError(f"{word} must be >= {least}, got {value}")
    if "seed" in key and value > LARGEST_SEED:
        raise UserError(f"{word} must be <= {LARGEST_SEED}, got {value}")


def _typed(value: object) -> str:
    """Return a value as a user types it."""
    return "null" if value is None else str(value)
