"""The run folder: writes and reads all files of a run. Imports no torch.

A name is imported from its file when it is first used, because a command that draws a picture does not need the result
records, and one that lists results needs neither numpy nor TensorBoard. `vaebench.records.checkpoint` imports torch;
import it by its own name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaebench.records.diagnostics import Diagnostic as Diagnostic
    from vaebench.records.diagnostics import Diagnostics as Diagnostics
    from vaebench.records.diagnostics import format_table as format_table
    from vaebench.records.diagnostics import read_diagnostics as read_diagnostics
    from vaebench.records.diagnostics import write_diagnostics as write_diagnostics
    from vaebench.records.files import write_json as write_json
    from vaebench.records.folder import RunFolder as RunFolder
    from vaebench.records.folder import State as State
    from vaebench.records.folder import Status as Status
    from vaebench.records.manifest import Manifest as Manifest
    from vaebench.records.manifest import read_manifest as read_manifest
    from vaebench.records.metrics import flatten as flatten
    from vaebench.records.metrics import last_metrics as last_metrics
    from vaebench.records.metrics import read_metrics as read_metrics
    from vaebench.records.per_image import PerImageFile as PerImageFile
    from vaebench.records.per_image import PerImageNumbers as PerImageNumbers
    from vaebench.records.per_image import read_per_image as read_per_image
    from vaebench.records.provenance import Provenance as Provenance
    from vaebench.records.recorder import Recorder as Recorder
    from vaebench.records.results import ResultRecord as ResultRecord
    from vaebench.records.results import append_result as append_result
    from vaebench.records.results import format_line as format_line
    from vaebench.records.results import read_results as read_results

_NAMES = {
    "diagnostics": ("Diagnostic", "Diagnostics", "format_table", "read_diagnostics", "write_diagnostics"),
    "files": ("write_json",),
    "folder": ("RunFolder", "State", "Status"),
    "manifest": ("Manifest", "read_manifest"),
    "metrics": ("flatten", "last_metrics", "read_metrics"),
    "per_image": ("PerImageFile", "PerImageNumbers", "read_per_image"),
    "provenance": ("Provenance",),
    "recorder": ("Recorder",),
    "results": ("ResultRecord", "append_result", "format_line", "read_results"),
}
_FILES = {name: file for file, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'vaebench.records' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vaebench.records.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FILES])
