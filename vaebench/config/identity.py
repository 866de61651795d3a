"""The identity of a run: a hash of all settings that define the trained model, and the run folder that it names."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vaebench.config.schema import Config

__all__ = [
    "SeedlessConfig",
    "defining",
    "defining_with_nulls",
    "digest",
    "identity",
    "is_elbo",
    "is_elbo_by_k",
    "model_identity",
    "run_folder",
]

# These settings change the place, the output or the speed of a run, and not the model that it trains.
NOT_DEFINING = ("device", "data_dir", "output_dir", "name", "estimator", "sweep", "published")
NOT_DEFINING_IN_DATASET = ("path", "shape")  # of own images: the fingerprint of their pixels says more
NOT_DEFINING_IN_TRAINER = (
    "threads",
    "progress",
    "log_every",
    "image_every",
    "checkpoint_every",
    "evaluate",
    "microbatch",
    "compile",
    "graph",
)


ADDED_LATER = {"likelihood": {"name": "bernoulli"}, "budget": 1}
"""Groups and keys that early versions did not have, each with the value that these versions always had."""
ADDED_LATER_IN_ENCODER = {"basis_bound": 0}
"""The same for keys of encoders."""


def defining(config: Config) -> dict[str, Any]:
    """Return the part of the configuration that defines the trained model, as plain containers.

    Settings that are null are left out. So a new setting with the default null does not change the identity of
    earlier runs. A key of `ADDED_LATER` is left out if it has the value of the earlier runs.
    """
    values = _without(ADDED_LATER, defining_with_nulls(config))
    return without_nulls(values | {"encoder": _without(ADDED_LATER_IN_ENCODER, values["encoder"])})


def _without(entries: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` without the keys that have the value in ``entries``."""
    return {key: value for key, value in values.items() if key not in entries or entries[key] != value}


def defining_with_nulls(config: Config) -> dict[str, Any]:
    """Return every setting that can define the trained model, also those that `defining` leaves out."""
    values = {key: value for key, value in config.to_dict().items() if key not in NOT_DEFINING}
    values["trainer"] = {k: v for k, v in values["trainer"].items() if k not in NOT_DEFINING_IN_TRAINER}
    values["dataset"] = {k: v for k, v in values["dataset"].items() if k not in NOT_DEFINING_IN_DATASET}
    return values


def without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts without the keys whose value is None."""
    nested = {key: without_nulls(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in nested.items() if value is not None}


def identity(config: Config, *, with_seed: bool = True) -> str:
    """Return 8 hex digits that identify the trained model; with ``with_seed=False``, the model without its seed."""
    return digest(defining(config), with_seed=with_seed)


def digest(values: Mapping[str, Any], *, with_seed: bool) -> str:
    """Return the identity of a configuration whose `defining` part is ``values``."""
    kept = {key: value for key, value in values.items() if with_seed or key != "seed"}
    return hashlib.sha256(canonical(kept).encode()).hexdigest()[:8]


ELBO_AT_ONE_SAMPLE = ("iwae", "miwae", "piwae", "ciwae", "vr_max", "renyi", "tvo")
"""The bounds that are the ELBO for k=1."""


def is_elbo_by_k(config: Config) -> bool:
    """Whether the objective is the ELBO only because k=1."""
    return config.objective.bound in ELBO_AT_ONE_SAMPLE and set(config.k_by_epoch.values()) == {1}


def is_elbo(config: Config) -> bool:
    """Whether the objective maximises the ELBO, also under another name: IWAE with k=1, or a weight of 1."""
    bound, arguments = config.objective.bound, config.objective.arguments
    unweighted = {"elbo": True, "beta": arguments.get("kl_weight") == 1, "free_bits": arguments.get("nats") == 0}
    return is_elbo_by_k(config) or unweighted.get(bound, False)


def model_identity(config: Config, values: dict[str, Any] | None = None) -> str:
    """Return 8 hex digits that trainings of the same model share, but for the seed, whatever the objective's name.

    ``values``: the `defining` part of the configuration, where the caller has it.
    """
    elbo = {"bound": "elbo", "gradient": config.objective.gradient}
    values = defining(config) if values is None else values
    return digest(values | ({"objective": elbo} if is_elbo(config) else {}), with_seed=False)


@dataclass(frozen=True, eq=False)
class SeedlessConfig:
    """What configurations share that differ only in the seed; the runs of a method have one object of it."""

    config: Config
    """With any seed."""

    @cached_property
    def defining(self) -> dict[str, Any]:
        """The `defining` part without the seed. It must not be changed."""
        return {key: value for key, value in defining(self.config).items() if key != "seed"}

    @cached_property
    def method(self) -> str:
        """The hash that runs share which differ only in the seed."""
        return digest(self.defining, with_seed=False)

    @cached_property
    def model(self) -> str:
        """The hash that trainings of the same model share, whatever their seed and the name of their objective."""
        return model_identity(self.config, self.defining) if is_elbo(self.config) else self.method

    @cached_property
    def _canonical(self) -> dict[str, str]:
        return {key: canonical(value) for key, value in self.defining.items()}

    def identity(self, seed: int) -> str:
        """Return `identity` of the configuration with this seed."""
        texts = self._canonical | {"seed": str(seed)}
        text = ",".join(f'"{key}":{texts[key]}' for key in sorted(texts))
        return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()[:8]


def canonical(values: Any) -> str:
    """Return JSON that is independent of the order of keys, and equal for 1 and 1.0."""
    return json.dumps(_whole_floats_as_ints(values), sort_keys=True, separators=(",", ":"))


def _whole_floats_as_ints(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _whole_floats_as_ints(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_floats_as_ints(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def run_folder(config: Config) -> Path:
    """Return ``<output_dir>/<dataset>/<encoder>-<objective>-k<k>/<seed>-<identity>``."""
    method = f"{config.encoder.name}-{config.objective.name}-k{config.k}"
    return Path(config.output_dir) / config.dataset.name / method / f"{config.seed}-{identity(config)}"
