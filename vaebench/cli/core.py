"""The one place where the command line meets the package that needs torch, imported when a job starts."""

import importlib
from typing import Any

__all__ = ["core"]


def core() -> Any:
    """Return the module with ``train(config)``, ``resume(folder)``, ``evaluate(folder, overrides)`` and
    ``diagnose(folder, settings)``.
    """
    return importlib.import_module("vaebench.experiment")
