"""Everything that a run writes beside its checkpoints, and how it is read back. Imports no torch."""

import importlib
from typing import TYPE_CHECKING, Any

from vaebench.records.diagnostics import Diagnostics, Measure, format_table, read_diagnostics, write_diagnostics
from vaebench.records.files import write_json
from vaebench.records.folder import RunFolder, State, Status
from vaebench.records.manifest import Manifest, read_manifest
from vaebench.records.metrics import flatten, last_metrics, read_metrics
from vaebench.records.results import ResultRecord, append_result, format_line, read_results

if TYPE_CHECKING:
    from vaebench.records.per_image import PerImageFile, PerImageNumbers, read_per_image
    from vaebench.records.recorder import Recorder

__all__ = [
    "Diagnostics",
    "Manifest",
    "Measure",
    "PerImageFile",
    "PerImageNumbers",
    "Recorder",
    "ResultRecord",
    "RunFolder",
    "State",
    "Status",
    "append_result",
    "flatten",
    "format_line",
    "format_table",
    "last_metrics",
    "read_diagnostics",
    "read_manifest",
    "read_metrics",
    "read_per_image",
    "read_results",
    "write_diagnostics",
    "write_json",
]


# Who only reads results must wait neither for numpy nor for TensorBoard.
_LATER = {
    "PerImageFile": "per_image",
    "PerImageNumbers": "per_image",
    "Recorder": "recorder",
    "read_per_image": "per_image",
}


def __getattr__(name: str) -> Any:
    """Import what takes long to import when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'vaebench.records' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vaebench.records.{_LATER[name]}"), name)
