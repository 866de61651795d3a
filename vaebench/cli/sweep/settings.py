"""Check the settings under ``hydra``: of the launcher, of the sweeper, and of the folders that hydra would write."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf

from vaebench.config.catalog import config_dir, described, own_keys
from vaebench.config.check import convert
from vaebench.config.explain import OPEN_SETTINGS, unknown_hydra_key
from vaebench.config.schema import Count, Natural, NonNegative, Positive, Word
from vaebench.errors import UserError
from vaebench.signals import note_for_next_job
from vaebench.typed import Rule, shown

__all__ = ["JOBLIB", "check_hydra"]

JOBLIB: dict[str, Any] = {"pre_dispatch": "n_jobs", "batch_size": 1, "initializer": note_for_next_job}
"""How the sweep uses joblib. Jobs are long: a worker gets the next job only when it is free."""

Text = Annotated[Any, Rule("a string or a number", lambda value: type(value) in (str, int, float) and value != "")]
One = Annotated[int, Rule("1 (one process trains a run)", lambda value: value == 1)]
SETTINGS: dict[str, Any] = {
    "sweeper.max_batch_size": Count,
    "sweeper.params": dict[str, Any],
    "sweeper.zips": list[str],
    "sweeper.dry_run": bool,
    "launcher.n_jobs": Annotated[int, Rule(">= 1 or < 0 (-1: one job for each core)", lambda value: value != 0)],
    "launcher.submitit_folder": Word,
    "launcher.name": Text,
    "launcher.timeout_min": Count,
    "launcher.max_num_timeout": Natural,
    "launcher.signal_delay_s": Natural,
    "launcher.cpus_per_task": Count,
    "launcher.gpus_per_node": Natural,
    "launcher.tasks_per_node": One,
    "launcher.nodes": One,
    "launcher.mem_gb": Positive,
    "launcher.array_parallelism": Count,
    "launcher.stderr_to_stdout": bool,
    "launcher.partition": Text,
    "launcher.qos": Text,
    "launcher.account": Text,
    "launcher.comment": Text,
    "launcher.constraint": Text,
    "launcher.exclude": Text,
    "launcher.gres": Text,
    "launcher.cpus_per_gpu": Count,
    "launcher.gpus_per_task": Natural,
    "launcher.mem_per_gpu": Text,
    "launcher.mem_per_cpu": Text,
    "launcher.additional_parameters": dict[str, Any],
    "launcher.setup": list[str],
    "launcher.ray.init.address": Word,
    "launcher.ray.init.num_cpus": Natural,
    "launcher.ray.init.num_gpus": Natural,
    "launcher.ray.init.include_dashboard": bool,
    "launcher.ray.init.log_to_driver": bool,
    "launcher.ray.remote.num_cpus": NonNegative,
    "launcher.ray.remote.num_gpus": NonNegative,
    "launcher.ray.remote.max_calls": Natural,
    "launcher.ray.remote.max_retries": Annotated[int, Rule(">= -1", lambda value: value >= -1)],
}
"""The type of each setting that our presets declare. Null is accepted too if it is the default."""

FIXED = {"output_subdir": None, "run.dir": ".", "sweep.subdir": "jobs", "job.chdir": False}
"""Where hydra itself would write files or change to; a path with ``..`` would leave the run folder."""


def check_hydra(hydra: DictConfig) -> None:
    """Check hydra's part of a configuration, except for launchers and sweepers of other packages.

    Raises:
        UserError: a key is unknown (also with ``+``), or a value has the wrong type or is out of range.
    """
    for key, value in FIXED.items():
        given = OmegaConf.select(hydra, key)
        if given != value:
            raise UserError(f"hydra.{key} must be {shown(value)}, got {shown(given)}: use output_dir=... instead")
    for group in ("launcher", "sweeper"):
        choice, settings = hydra.runtime.choices[f"hydra/{group}"], hydra[group]
        defaults = {"_target_": ""} if choice == "basic" else _defaults(group, settings._target_)
        if defaults is not None:
            _check(group, choice, OmegaConf.to_container(settings, resolve=True), defaults)


def _defaults(group: str, target: str) -> dict[str, Any] | None:
    """Return the settings of our preset with that target; None if no preset has it."""
    folders = [config_dir()]
    for listed in described(f"hydra/{group}", folders):
        preset: Any = OmegaConf.to_container(own_keys(f"hydra/{group}", listed.choice, folders))
        if preset["_target_"] == target:
            return dict(_leaves(preset, "", group))
    return None


def _check(group: str, choice: str, given: Any, defaults: Mapping[str, Any]) -> None:
    """Check the settings ``given`` of a launcher or sweeper."""
    prefix = f"hydra.{group}."
    for key, value in _leaves(given, "", group):
        if key not in defaults:
            if not (prefix + key).startswith(OPEN_SETTINGS):
                raise unknown_hydra_key(prefix + key, [prefix + each for each in defaults], choice)
        elif value is not None or defaults[key] is not None:
            convert(value, SETTINGS.get(f"{group}.{key}", Any), prefix + key)


def _leaves(values: Mapping[str, Any], prefix: str, group: str) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of each setting; a map is one setting if `SETTINGS` has it."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and f"{group}.{key}" not in SETTINGS:
            yield from _leaves(value, f"{key}.", group)
        else:
            yield key, value
