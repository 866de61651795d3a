"""Everything that a run writes beside its checkpoints, and how it is read back. Imports no torch."""

from vaebench.records.files import write_json
from vaebench.records.folder import RunFolder, State, Status
from vaebench.records.manifest import Manifest
from vaebench.records.per_image import PerImageFile, PerImageNumbers, read_per_image
from vaebench.records.recorder import Recorder, flatten, read_metrics
from vaebench.records.results import ResultRecord, append_result, format_line, read_results

__all__ = [
    "Manifest",
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
    "read_metrics",
    "read_per_image",
    "read_results",
    "write_json",
]
