"""Overrides -> Config, through hydra; every value is checked before anything is built from it."""

import os
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaebench.config.catalog import config_dir, own_keys
from vaebench.config.check import build, convert, like_default, unknown_key
from vaebench.config.combinations import check_combinations, refuse_pairing
from vaebench.config.explain import explain
from vaebench.config.schema import Choice, Compile, Config, Count, Estimator, Precision
from vaebench.errors import UserError

__all__ = ["compose", "for_evaluation", "from_hydra"]

HYDRA_VERSION = "1.3"
PATHS = ("data_dir", "output_dir")
OPEN_GROUPS: dict[str, type[Choice]] = {
    f.name: f.type for f in fields(Config) if isinstance(f.type, type) and issubclass(f.type, Choice)
}


def compose(overrides: Sequence[str]) -> Config:
    """Return the configuration of ``vaebench train <overrides>``; UserError says what is wrong with them."""
    return from_hydra(*_composed("train", overrides))


def from_hydra(cfg: DictConfig, hydra: DictConfig | None = None) -> Config:
    """Check what hydra composed and return it as Config.

    Args:
        cfg: the job's configuration, without hydra's own part.
        hydra: hydra's part; inside a hydra job it is found without being given.

    Raises:
        UserError: an unknown key (+foo=1 too), a wrong type, a value out of range, an impossible combination.
    """
    hydra = _current_hydra() if hydra is None else hydra
    values = _resolved(cfg)
    refuse_pairing(_name(values, "objective"), _name(values, "encoder"), "psi_dim" in values["encoder"])
    for group, schema in OPEN_GROUPS.items():
        values[group] = _checked_choice(group, schema, values, cfg, hydra)
    values |= {key: os.path.expanduser(values[key]) for key in PATHS if isinstance(values.get(key), str)}
    config = build(Config, values)
    check_combinations(config)
    return config


def for_evaluation(config: Config, overrides: Sequence[str]) -> Config:
    """Return a run's ``config`` with what ``vaebench evaluate RUN <overrides>`` asks for.

    Without ``estimator=...`` the run's own estimator is the one that ``estimator.k=100`` and the like change.
    """
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    chosen = "estimator" in given
    words = overrides if chosen else [f"estimator={config.estimator.name}", *overrides]
    cfg, hydra = _composed_for_evaluation(tuple(words))
    values = _resolved(cfg)
    if not chosen:
        saved, own = config.to_dict()["estimator"], values["estimator"]
        own |= {key: saved[key] for key in saved if key in own and f"estimator.{key}" not in given}
    values["estimator"] = _checked_choice("estimator", Estimator, values, cfg, hydra)
    # Not settings of one estimator or another, and so not in their yaml files.
    for key, kind in (("processes", Count), ("precision", Precision), ("compile", Compile)):
        values["estimator"][key] = convert(values[key], kind, key)
    whole = config.to_dict() | {key: values[key] for key in ("device", "estimator")}
    if values["data_dir"] is not None:
        whole["data_dir"] = os.path.expanduser(str(values["data_dir"]))
    whole["trainer"] |= {key: values[key] for key in ("threads", "progress")}
    return build(Config, whole)


@cache
def _composed_for_evaluation(overrides: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
    """Return what hydra makes of the words, once for all runs: it takes a tenth of a second."""
    return _composed("evaluate", overrides)


def _composed(name: str, overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """Return what hydra makes of ``configs/<name>.yaml`` and the overrides: the job and hydra's own."""
    import hydra
    from hydra.errors import HydraException

    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base=HYDRA_VERSION):
            whole = hydra.compose(name, list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, name, overrides) from error
    return OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]), whole.hydra


def _current_hydra() -> DictConfig:
    from hydra.core.hydra_config import HydraConfig

    node: Any = HydraConfig.instance().cfg
    assert node is not None, "from_hydra(cfg) without hydra's part works inside a hydra job only"
    return node.hydra


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return ``cfg`` as plain containers, interpolations resolved."""
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{place}{str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _name(values: dict[str, Any], group: str) -> str:
    """Return the name in a group, which must be a choice with settings."""
    node = values.get(group)
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        raise UserError(f"{group} needs a choice: `vaebench list {group}` shows them")
    return node["name"]


def _checked_choice(
    group: str, schema: type[Choice], values: dict[str, Any], cfg: DictConfig, hydra: DictConfig
) -> dict[str, Any]:
    """Return the values of one open group, its own arguments checked against the yaml of the choice."""
    given, declared = values[group] if _name(values, group) else {}, _declared(group, cfg, hydra)
    typed = {f.name for f in fields(schema)}
    for key in given:
        if key not in declared:
            raise unknown_key(f"{group}.", str(key), declared)
    for key, default in declared.items():
        if key not in given:
            raise UserError(f"{group}.{key} is missing: give it a value, {group}.{key}=...")
        if key == "name" and given[key] != default:
            raise UserError(f"{group}.name is fixed by the choice: write {group}={given[key]}")
    return {k: v if k in typed else like_default(v, declared[k], f"{group}.{k}") for k, v in given.items()}


def _declared(group: str, cfg: DictConfig, hydra: DictConfig) -> dict[str, Any]:
    """Return the settings that the chosen yaml declares, with their defaults, resolved beside ``cfg``."""
    sources = [Path(urlparse(s.path).path if "://" in s.path else s.path) for s in hydra.runtime.config_sources]
    context = cfg.copy()
    OmegaConf.set_struct(context, False)
    context[group] = own_keys(group, hydra.runtime.choices[group], sources)
    return _resolved(context)[group]
