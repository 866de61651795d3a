"""vaebench: an experiment runner for variational autoencoders with expressive inference."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vaebench import bounds
    from vaebench.estimators.ais import ais
    from vaebench.estimators.bdmc import bdmc
    from vaebench.estimators.importance import log_likelihood
    from vaebench.experiment import Experiment, build, load
    from vaebench.objective import Evidence, evidence

# Everything public is imported on first use: `vaebench --help` must not wait for torch.
_HOMES = {
    "build": "vaebench.experiment",
    "load": "vaebench.experiment",
    "Experiment": "vaebench.experiment",
    "evidence": "vaebench.objective",
    "Evidence": "vaebench.objective",
    "log_likelihood": "vaebench.estimators.importance",
    "ais": "vaebench.estimators.ais",
    "bdmc": "vaebench.estimators.bdmc",
}

__all__ = [
    "Evidence",
    "Experiment",
    "__version__",
    "ais",
    "bdmc",
    "bounds",
    "build",
    "evidence",
    "load",
    "log_likelihood",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name == "bounds":
        return importlib.import_module("vaebench.bounds")
    if name not in _HOMES:
        raise AttributeError(f"module 'vaebench' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
