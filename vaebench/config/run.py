"""config.yaml in a run folder: written with all values resolved, read with the safe yaml loader."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vaebench.config.check import build, convert
from vaebench.config.identity import SeedlessConfig
from vaebench.config.schema import Config, Seed
from vaebench.errors import UserError

if TYPE_CHECKING:
    from vaebench.config.diagnosis import Diagnosis
    from vaebench.config.encoding import Encoding

__all__ = ["changed", "from_yaml", "read", "read_shared", "to_yaml", "with_images"]

# The loader in C is faster, which matters when hundreds of runs are read.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_GROUPS: dict[str, Any] = {field.name: field.type for field in fields(Config) if is_dataclass(field.type)}


def to_yaml(config: Config) -> str:
    """Return the text of config.yaml."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, default_flow_style=None, width=120)


def from_yaml(text: str, place: str = "config.yaml") -> Config:
    """Return the configuration that ``to_yaml`` wrote.

    Args:
        text: of the file.
        place: names the file in messages.

    Raises:
        UserError: the text is not yaml, or a setting is invalid.
    """
    return _from_yaml(text, place)[0]


def _from_yaml(text: str, place: str) -> tuple[Config, SeedlessConfig]:
    """Return the configuration, and what it shares with the runs that differ only in the seed."""
    try:
        if (found := _of_blocks(text)) is not None:
            return found
        values = yaml.load(text, Loader=_LOADER)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an integer of 5,000 digits, nested lists
        raise UserError(f"{place} is corrupt (not yaml): {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise UserError(f"{place} is corrupt: it contains no settings")
    try:
        config = build(Config, _as_spelt_now(values))
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    return config, SeedlessConfig(config)


def _as_spelt_now(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings with the keys of older runs renamed."""
    estimator = values.get("estimator")
    if not isinstance(estimator, dict) or "binarise" not in estimator:
        return values
    renamed = {"binarize" if key == "binarise" else key: value for key, value in estimator.items()}
    return values | {"estimator": renamed}


def _of_blocks(text: str) -> tuple[Config, SeedlessConfig] | None:
    """Return the configuration in ``text`` from its top-level entries, of which thousands of runs share most.

    None if an entry is no mapping by itself, or might refer to another one, or if there is not one seed: the whole text
    is then parsed. UserError for an invalid setting.
    """
    blocks = _blocks(text)
    seeds = [block for block in blocks if block.startswith("seed:")]
    entry = _entries(seeds) if len(seeds) == 1 else None
    shared = _without_seed(tuple(block for block in blocks if block not in seeds)) if entry else None
    if entry is None or shared is None:
        return None
    return replace(shared.config, seed=convert(entry["seed"], Seed, "seed")), shared


@lru_cache(maxsize=4096)
def _without_seed(blocks: tuple[str, ...]) -> SeedlessConfig | None:
    """Return the configuration in all entries but the seed; None if an entry is not one by itself."""
    values = _entries(blocks)
    return None if values is None or "seed" in values else SeedlessConfig(build(Config, {**values, "seed": 0}))


def _blocks(text: str) -> list[str]:
    """Return the texts of the top-level entries; none if one might refer to another."""
    return [] if any(mark in text for mark in "&*!%") else re.split(r"(?<=\n)(?=[^\s#])", text)


def _entries(blocks: Iterable[str]) -> dict[str, Any] | None:
    """Return the entries together; None if one is not an entry by itself, or there is none."""
    values: dict[str, Any] = {}
    for block in blocks:
        found = _block(block)
        if found is None:
            return None
        values |= found
    return values or None


@lru_cache(maxsize=4096)
def _block(text: str) -> dict[str, Any] | None:
    """Return one entry; None if it is not one by itself. Its value must not be changed."""
    try:
        found = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or len(found) != 1:
        return None
    ((name, values),) = _as_spelt_now(found).items()
    return {name: convert(values, _GROUPS[name], name)} if name in _GROUPS else found


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return the configuration with other values for keys such as ``device`` and ``trainer.epochs``, checked."""
    values = config.to_dict()
    for key, value in changes.items():
        *groups, name = key.split(".")
        place = values
        for group in groups:
            place = place[group]
        place[name] = value
    return build(Config, values)


def with_images(config: Config, settings: "Diagnosis | Encoding") -> Config:
    """Return a run's configuration with the images, the device and the data folder of another command."""
    return replace(
        config,
        device=settings.device,
        data_dir=settings.data_dir or config.data_dir,
        trainer=replace(config.trainer, threads=settings.threads, progress=settings.progress),
        estimator=replace(
            config.estimator,
            split=settings.split,
            images=settings.images,
            seed=settings.seed,
            image_seed=None,
            binarize="fixed",
        ),
    )


def read(run_folder: Path) -> Config:
    """Return the configuration of the run in ``run_folder``. UserError if it has none, or an invalid one."""
    return read_shared(run_folder)[0]


def read_shared(run_folder: Path) -> tuple[Config, SeedlessConfig]:
    """Return the configuration, and what it shares with the runs that differ only in the seed; errors as `read`."""
    path = Path(run_folder) / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{run_folder} is not a run folder: it has no config.yaml") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return _from_yaml(text, str(path))
