"""Which numbers of a run were made with the weights, the code, the data and the configuration that it has now."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vaebench import plugins
from vaebench.records.folder import RunFolder
from vaebench.records.manifest import read_manifest, trained_code
from vaebench.records.metrics import read_metrics
from vaebench.records.provenance import Provenance, seal_of
from vaebench.records.results import ResultRecord, read_results
from vaebench.records.source import source_digest
from vaebench.records.text import counted

__all__ = ["VALIDATION", "Current", "left_out", "split_results"]

CODE = "other code"
OTHER_ESTIMATOR = "another version of the estimator"
VALIDATION = "validation/log_likelihood"


@dataclass(frozen=True)
class Current:
    """The weights, the code and the data that the numbers of a run must have been made with."""

    folder: RunFolder
    run: str
    """The identity of its configuration."""
    seal: str | None
    """The SHA-256 of the best checkpoint; None if there is no such file."""
    code: str | None
    """The digest of the code that trained the run last; None in manifests of early versions."""
    data: str | None
    """The fingerprint of the data; None if the manifest does not have it."""

    @classmethod
    def of(cls, folder: RunFolder, run: str, manifest: Mapping[str, Any]) -> "Current":
        """Return it for the run in ``folder``, whose configuration has the identity ``run``."""
        data = manifest.get("dataset", {}).get("fingerprint")
        return cls(folder, run, seal_of(folder.checkpoints / "best.pt"), trained_code(manifest), data)

    @cached_property
    def epoch(self) -> int | None:
        """The epoch of the best weights by metrics.jsonl; None if it has no validation."""
        found = [(line[VALIDATION], -line["epoch"]) for line in read_metrics(self.folder) if VALIDATION in line]
        numbers = [(value, epoch) for value, epoch in found if value == value]
        return round(-max(numbers)[1]) if numbers else None  # the first of equal values, as in training

    def fault(self, made_by: Provenance | None, epoch: int) -> str | None:
        """Return which other weights, code, data or run a number was made with; None if it is of the run as it is now.

        Args:
            made_by: the provenance of the number; None for a number of an early version.
            epoch: the epoch of its weights.
        """
        if made_by is not None:
            if made_by.run != self.run:
                return "another run"
            if self.data not in (None, made_by.data):
                return "other data"
            if self.code not in (None, made_by.code):
                return CODE
            if self.seal is not None:
                return None if made_by.checkpoint == self.seal else "earlier weights"
        return None if self.epoch in (None, epoch) else "earlier weights"


def split_results(
    folder: RunFolder, run: str, manifest: Mapping[str, Any] | None = None
) -> tuple[list[ResultRecord], list[tuple[ResultRecord, str]]]:
    """Return the results of the run as it is now, and its other results, each with its fault.

    Args:
        folder: the run folder.
        run: the identity of its configuration.
        manifest: the content of its manifest; None to read it.
    """
    current = Current.of(folder, run, read_manifest(folder) if manifest is None else manifest)
    records = read_results(folder)
    codes = _estimator_codes([record.provenance for record in records if record.provenance])
    found = []
    for record in records:
        made_by, fault = record.provenance, current.fault(record.provenance, record.epoch)
        if fault is None and made_by is not None and made_by.estimator_plugin is not None:
            fault = OTHER_ESTIMATOR if made_by.estimator_code != codes[made_by.estimator_plugin] else None
        found.append((record, fault))
    return [record for record, fault in found if fault is None], [(record, fault) for record, fault in found if fault]


def _estimator_codes(numbers: Iterable[Provenance]) -> dict[str, str | None]:
    """Return the code of each plug-in's estimator: of that which is there, or else of its last number; import none."""
    codes = {made_by.estimator_plugin: made_by.estimator_code for made_by in numbers if made_by.estimator_plugin}
    for name in codes:
        plugin = plugins.find("estimator", name)
        if plugin is not None and plugin.source is not None:
            codes[name] = source_digest((), files=[plugin.source])
    return codes


def left_out(found: Iterable[tuple[RunFolder, str]], noun: str = "result", command: str = "evaluate") -> Iterator[str]:
    """Yield a line for each kind of fault: how many numbers have it, in which runs, and how to make new ones.

    Args:
        found: the run and the fault of each number.
        noun: what a number is.
        command: the command that makes such numbers.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for folder, fault in found:
        folders[fault].append(str(folder.path))
    for fault, paths in folders.items():
        first, *others = dict.fromkeys(paths)
        more = f" and {counted(len(others), 'other run')}" if others else ""
        remedy = "`vaebench train --fresh ...` trains with the code as it is now"
        if fault != CODE:
            remedy = f"run `vaebench {command} {'RUN' if others else first} ...` to make new ones"
        yield f"{counted(len(paths), noun)} of {fault} left out, in {first}{more}: {remedy}"
