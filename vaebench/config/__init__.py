"""Turn the words that a user types into one checked, resolved `Config`. Imports no torch."""

from vaebench.config.catalog import config_dir
from vaebench.config.compose import compose, for_evaluation, from_hydra
from vaebench.config.evaluations import evaluations
from vaebench.config.identity import identity, run_folder
from vaebench.config.run import changed, from_yaml, read, to_yaml
from vaebench.config.schema import Config, PublishedResult

__all__ = [
    "Config",
    "PublishedResult",
    "changed",
    "compose",
    "config_dir",
    "evaluations",
    "for_evaluation",
    "from_hydra",
    "from_yaml",
    "identity",
    "read",
    "run_folder",
    "to_yaml",
]
