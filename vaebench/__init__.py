"""vaebench: an experiment runner for variational autoencoders with expressive inference."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vaebench import bounds
    from vaebench.build import Experiment, build, load
    from vaebench.evaluation.importance import log_likelihood
    from vaebench.objective import Evidence, evidence

# Everything public is imported on first use: `vaebench --help` must not wait for torch.
_HOMES = {
    "build": "vaebench.build",
    "load": "vaebench.build",
    "Experiment": "vaebench.build",
    "evidence": "vaebench.objective",
    "Evidence": "vaebench.objective",
    "log_likelihood": "vaebench.evaluation.importance",
}

__all__ = ["Evidence", "Experiment", "__version__", "bounds", "build", "evidence", "load", "log_likelihood"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name == "bounds":
        return importlib.import_module("vaebench.bounds")
    if name not in _HOMES:
        raise AttributeError(f"module 'vaebench' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
