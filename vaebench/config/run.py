"""config.yaml in a run folder: written resolved, read without running or resolving anything in it."""

from pathlib import Path

import yaml

from vaebench.config.check import build
from vaebench.config.schema import Config
from vaebench.errors import UserError

__all__ = ["from_yaml", "read", "to_yaml"]

# The safe loader; the one in C, where there is one, reads hundreds of runs at once.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def to_yaml(config: Config) -> str:
    """Return the text of config.yaml."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, default_flow_style=None, width=120)


def from_yaml(text: str, place: str = "config.yaml") -> Config:
    """Return the configuration written by ``to_yaml``; ``place`` names the file in messages."""
    try:
        values = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise UserError(f"{place} is damaged (not yaml): {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise UserError(f"{place} is damaged: it holds no settings")
    estimator = values.get("estimator")
    if isinstance(estimator, dict) and "binarise" in estimator:  # the spelling in older runs
        estimator["binarize"] = estimator.pop("binarise")
    try:
        return build(Config, values)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def read(run_folder: Path) -> Config:
    """Return the configuration of the run in ``run_folder``."""
    path = Path(run_folder) / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{run_folder} is not a run folder: it has no config.yaml") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return from_yaml(text, str(path))
