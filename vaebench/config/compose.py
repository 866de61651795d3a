"""Compose overrides to a checked Config, through hydra."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from vaebench.config.budget import scaled
from vaebench.config.catalog import check_own_folder, config_dir, config_folders, described, own_keys, yaml_file
from vaebench.config.check import build, convert, same_type, unknown_key
from vaebench.config.combinations import check_combinations, hierarchical_encoder_needed
from vaebench.config.explain import explained
from vaebench.config.identity import identity
from vaebench.config.run import changed
from vaebench.config.schema import Choice, Compile, Config, EstimatorSettings, Precision, Processes
from vaebench.config.words import for_hydra, key_of
from vaebench.datasets.protocol import OWN
from vaebench.errors import UserError, did_you_mean
from vaebench.typed import clipped

__all__ = ["Chosen", "checked", "compose", "for_evaluation", "from_hydra"]

PATHS = ("data_dir", "output_dir")
OPEN_GROUPS: dict[str, type[Choice]] = {
    f.name: f.type for f in fields(Config) if isinstance(f.type, type) and issubclass(f.type, Choice)
}

FIXED = {"objective": ("name", "bound")}
"""The settings of a group that its choice fixes; of the other groups, ``name``."""


class Chosen(NamedTuple):
    """The yaml files that hydra composed a configuration from."""

    choices: Mapping[str, Any]
    """Group -> choice."""
    folders: Sequence[Path]
    """Where the yaml files are, in hydra's order."""

    @classmethod
    def of(cls, hydra: DictConfig) -> "Chosen":
        """Return it from hydra's own part of a configuration."""
        choices: Any = OmegaConf.to_container(hydra.runtime.choices)
        return cls(choices, [Path(source.path.removeprefix("file://")) for source in hydra.runtime.config_sources])


def compose(overrides: Sequence[str]) -> Config:
    """Return the configuration of ``vaebench train <overrides>``.

    Raises:
        UserError: an override is invalid.
    """
    return from_hydra(*_composed("train", overrides))


def from_hydra(cfg: DictConfig, hydra: DictConfig | None = None) -> Config:
    """Check a configuration that hydra composed, and return it as Config.

    Args:
        cfg: the job's configuration, without hydra's own part.
        hydra: hydra's part; by default from the current hydra job.

    Raises:
        UserError: a key is unknown (also with ``+``), a value has the wrong type or is out of range, or the settings
            contradict each other.
    """
    return checked(cfg, Chosen.of(_current_hydra() if hydra is None else hydra))


def checked(cfg: DictConfig, chosen: Chosen) -> Config:
    """Check a configuration as `from_hydra` does.

    Args:
        cfg: the job's configuration, without hydra's own part; it is changed and restored meanwhile.
        chosen: what it was composed from.

    Raises:
        UserError: as `from_hydra`.
    """
    values = _resolved(cfg)
    for folder in chosen.folders:
        if folder not in config_folders():
            check_own_folder(folder)
    _check_published(values.get("published"), chosen)
    for group in OPEN_GROUPS:
        if group in values and not isinstance(chosen.choices.get(group), str):
            raise UserError(f"{group} must be the name of a choice: `vaebench list {group}` shows the choices")
    declared = {group: _declared(group, values, cfg, chosen) for group in OPEN_GROUPS}
    objective_inner_k = own_keys("objective", chosen.choices["objective"], chosen.folders, of="encoder").get("inner_k")
    if objective_inner_k is not None and "inner_k" not in declared["encoder"]:
        raise hierarchical_encoder_needed(values["objective"]["name"])
    for group, schema in OPEN_GROUPS.items():
        values[group] = _checked_choice(group, schema, values[group], declared[group])
    values |= {key: os.path.expanduser(values[key]) for key in PATHS if isinstance(values.get(key), str)}
    config = build(Config, values)
    check_combinations(config, objective_inner_k)  # before they are scaled, so that it names the user's numbers
    config = scaled(config)
    config = _without_foreign_result(config, chosen)
    return _with_own_images(config) if config.dataset.name == OWN else config


def _check_published(given: Any, chosen: Chosen) -> None:
    """Raise UserError for a published result that is not the one in the experiment's yaml file: it is a paper's."""
    name = chosen.choices.get("experiment")
    own: Any = {}
    if isinstance(name, str):
        own = OmegaConf.to_container(own_keys("experiment", name, chosen.folders, of="published"), resolve=True)
    if given is not None and given != own:
        raise UserError("published is set by the yaml file of an experiment: remove this setting")


def _without_foreign_result(config: Config, chosen: Chosen) -> Config:
    """Return the config without the published result if other settings than the experiment's define its model.

    Another length of training and another budget are allowed: tables name them.
    """
    name = chosen.choices.get("experiment")
    if config.published is None or not isinstance(name, str):
        return config
    others = tuple(str(folder) for folder in chosen.folders if folder.is_dir() and folder not in config_folders())
    own = _of_experiment(name, others, tuple(config_folders()))
    own = scaled(replace(own, budget=config.budget))
    same = replace(own, seed=config.seed, trainer=replace(own.trainer, epochs=config.trainer.epochs))
    return config if identity(config) == identity(same) else replace(config, published=None)


@cache
def _of_experiment(name: str, others: tuple[str, ...], folders: tuple[Path, ...]) -> Config:
    """Return the configuration of an experiment without overrides. Cached, because it takes 0.1 s.

    Args:
        name: of the experiment.
        others: further folders of yaml files, from hydra.searchpath or ``--config-dir``.
        folders: the folders of `config_folders`, on which the composition depends.
    """
    del folders
    words = [f"experiment={name}", "published=null"]
    words += [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in others)}]"] if others else []
    return compose(words)


def _with_own_images(config: Config) -> Config:
    """Return the config with the absolute path of the own images and the fingerprint of their pixels.

    The fingerprint, not the path, is part of the run's identity.
    """
    from vaebench.datasets.own import fingerprint_of, located  # needs numpy

    dataset = config.dataset
    path = located(dataset.path, Path(config.data_dir))
    found = fingerprint_of(path, dataset.shape)
    if dataset.pixels not in (None, found):
        raise UserError(f"dataset.pixels={dataset.pixels}, but dataset.path={path} has the fingerprint {found}")
    return changed(config, {"dataset.path": str(path), "dataset.pixels": found})


def for_evaluation(config: Config, overrides: Sequence[str]) -> Config:
    """Return a run's ``config`` with the overrides of ``vaebench evaluate RUN <overrides>``.

    Without ``estimator=...``, settings such as ``estimator.k=100`` change the run's own estimator.

    Raises:
        UserError: an override is invalid.
    """
    given = {key_of(word) for word in overrides}
    chosen = "estimator" in given
    words = overrides if chosen else [f"estimator={config.estimator.name}", *overrides]
    cfg, hydra = _composed_for_evaluation(tuple(words), tuple(config_folders()))
    values = _resolved(cfg)
    if not chosen:
        saved, own = config.to_dict()["estimator"], values["estimator"]
        own |= {key: saved[key] for key in saved if key in own and f"estimator.{key}" not in given}
    declared = _declared("estimator", values, cfg, Chosen.of(hydra))
    values["estimator"] = _checked_choice("estimator", EstimatorSettings, values["estimator"], declared)
    # All estimators have these settings, so their yaml files do not declare them.
    for key, kind in (("processes", Processes), ("precision", Precision), ("compile", Compile)):
        values["estimator"][key] = convert(values[key], kind, key)
    whole = config.to_dict() | {key: values[key] for key in ("device", "estimator")}
    if values["data_dir"] is not None:
        whole["data_dir"] = os.path.expanduser(str(values["data_dir"]))
    whole["trainer"] |= {key: values[key] for key in ("threads", "progress")}
    return build(Config, whole)


@cache
def _composed_for_evaluation(overrides: tuple[str, ...], folders: tuple[Path, ...]) -> tuple[DictConfig, DictConfig]:
    """Return the composition of ``configs/evaluate.yaml``. Cached for all runs, because it takes 0.1 s.

    ``folders``: the folders of the yaml files, on which the composition depends.
    """
    del folders
    return _composed("evaluate", overrides)


def _composed(name: str, overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """Compose ``configs/<name>.yaml`` and the overrides; return (job, hydra's own part)."""
    import hydra

    from vaebench.config.search_path import initialized

    words = [for_hydra(word) for word in overrides]
    with explained(name, words), initialized():
        whole = hydra.compose(name, words, return_hydra_config=True)
    return OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]), whole.hydra


def _current_hydra() -> DictConfig:
    from hydra.core.hydra_config import HydraConfig

    node: Any = HydraConfig.instance().cfg
    assert node is not None, "from_hydra(cfg) without hydra's part needs a hydra job"
    return node.hydra


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return ``cfg`` as plain containers with interpolations resolved."""
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{place}{str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _checked_choice(
    group: str, schema: type[Choice], given: dict[str, Any], declared: dict[str, Any]
) -> dict[str, Any]:
    """Return the values ``given`` in an open group, checked against the defaults ``declared`` by the choice's yaml."""
    for key in given:
        if key not in declared:
            raise unknown_key(f"{group}.", str(key), declared)
    for key, default in declared.items():
        if key not in given:
            raise UserError(f"{group}.{key} is missing: set {group}.{key}=...")
        if key in FIXED.get(group, ("name",)) and given[key] != default:
            raise UserError(f"{group}.{key} is fixed by the choice: write {group}={clipped(str(given[key]))}")
    typed = {f.name for f in fields(schema)}
    # null switches parts of an estimator off (estimator.bdmc=null), and the estimator checks it.
    return {
        key: value
        if key in typed
        else same_type(value, declared[key], f"{group}.{key}", optional=schema is EstimatorSettings)
        for key, value in given.items()
    }


def _declared(group: str, values: dict[str, Any], cfg: DictConfig, chosen: Chosen) -> dict[str, Any]:
    """Return the settings that the yaml of the chosen word declares, with their defaults resolved within ``cfg``."""
    node = values.get(group)
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        raise UserError(f"{group} needs a choice: `vaebench list {group}` shows the choices")
    choice, folders = chosen.choices[group], chosen.folders
    own, used = own_keys(group, choice, folders), cfg._get_node(group)
    # The usual case, in which neither another yaml nor an override has changed a setting, in a third of the time.
    # The texts are compared, because 1 == 1.0 == True.
    unchanged = OmegaConf.is_config(used) and repr(OmegaConf.to_container(used)) == repr(OmegaConf.to_container(own))
    declared = node if unchanged else _resolved_in_place(own, group, cfg)
    if config_dir() / group / f"{choice}.yaml" != yaml_file(group, choice, folders):
        _check_family(group, choice, declared, cfg)
    return declared


def _resolved_in_place(own: DictConfig, group: str, cfg: DictConfig) -> dict[str, Any]:
    """Return the settings ``own`` as plain containers, resolved as if they stood in place of ``cfg[group]``."""
    unresolved: Any = OmegaConf.to_container(own)
    if not any(mark in repr(unresolved) for mark in ("${", "???")):
        return unresolved  # the same in every place
    kept = cfg._get_node(group)
    with flag_override(cfg, ["struct", "no_deepcopy_set_nodes"], [False, True]):
        try:
            cfg[group] = copy.deepcopy(own)
            return _resolved(cfg[group])
        finally:
            cfg[group] = kept


def _check_family(group: str, choice: str, declared: dict[str, Any], cfg: DictConfig) -> None:
    """Check the keys of a user's own yaml against the choices of its family, shipped or of a plug-in.

    Raises:
        UserError: no such choice of the family has such a setting, or the setting has another type there.
    """
    folders, names = config_folders(), "bound" if group == "objective" else "name"
    choices = [own_keys(group, listed.choice, folders) for listed in described(group, folders)]
    family = [keys for keys in choices if keys.get(names) == declared.get(names)]
    known = {f.name: None for f in fields(OPEN_GROUPS[group]) if f.name != "arguments"}
    for keys in family:
        known |= _resolved_in_place(keys, group, cfg)
    for key, value in declared.items() if family else ():
        if key not in known:
            raise UserError(
                f"{group}={choice}: {names}={declared[names]} has no setting '{clipped(key)}'"
                f"{did_you_mean(clipped(key), known)}: remove it from the yaml file"
            )
        if not isinstance(known[key], dict | list):
            same_type(value, known[key], f"{group}.{key}", optional=True)
