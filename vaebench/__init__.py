"""vaebench: an experiment runner for variational autoencoders with expressive inference."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vaebench import bounds, plot
    from vaebench.estimators.ais import ais
    from vaebench.estimators.bdmc import bdmc
    from vaebench.estimators.importance import log_likelihood
    from vaebench.experiment import Experiment, build, load
    from vaebench.notebook import evaluate, runs, train
    from vaebench.objective import Evidence, evidence

# Public names are imported on first use, so that `vaebench --help` does not import torch.
_HOMES = {
    "build": "vaebench.experiment",
    "load": "vaebench.experiment",
    "Experiment": "vaebench.experiment",
    "evidence": "vaebench.objective",
    "Evidence": "vaebench.objective",
    "log_likelihood": "vaebench.estimators.importance",
    "ais": "vaebench.estimators.ais",
    "bdmc": "vaebench.estimators.bdmc",
    "runs": "vaebench.notebook",
}
_MODULES = ("bounds", "evaluate", "plot", "train")
"""The public names that are modules; `evaluate` and `train` can be called, as functions of `vaebench.notebook`."""

__all__ = [
    "Evidence",
    "Experiment",
    "__version__",
    "ais",
    "bdmc",
    "bounds",
    "build",
    "evaluate",
    "evidence",
    "load",
    "log_likelihood",
    "plot",
    "runs",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _MODULES:
        return importlib.import_module(f"vaebench.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'vaebench' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, so that completion in a notebook shows them before they are imported."""
    return list(__all__)
