"""Run folders without training, with the settings, results and curves that a test chooses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from vaebench.config import Config, compose, run_folder, to_yaml
from vaebench.records import Provenance, ResultRecord, RunFolder, append_result, write_json
from vaebench.records.folder import State

__all__ = ["composed", "made_by", "made_run", "record"]


@cache
def composed(overrides: tuple[str, ...]) -> Config:
    """Return a configuration, composed once."""
    return compose(list(overrides))


def record(mean: float, **changes: Any) -> ResultRecord:
    """Return a result of an importance-weighted estimate with an exact density."""
    values: dict[str, Any] = {
        "estimator": "IWAE",
        "k": 64,
        "inner_k": None,
        "split": "test",
        "protocol": "mnist5k/dynamic-v1",
        "mean": mean,
        "stderr": 0.5,
        "n_images": 500,
        "direction": "lower_bound",
        "epoch": 4,
        "seconds": 2.0,
    }
    return ResultRecord(**(values | changes))


def made_by(**changes: Any) -> Provenance:
    """Return the provenance of a result of a finished run."""
    values: dict[str, Any] = {
        "run": "1a2b3c4d",
        "weights": "0" * 16,
        "checkpoint": "0" * 64,
        "epoch": 4,
        "state": "finished",
        "epochs_done": 4.0,
        "epochs": 4,
        "data": "d" * 16,
        "code": "c" * 16,
        "version": "0.1.0",
        "commit": None,
        "dirty": None,
        "torch": "2.7.1",
        "device": "cpu (1 thread)",
        "precision": "float32",
    }
    return Provenance(**(values | changes))


def made_run(
    root: Path,
    *overrides: str,
    results: Sequence[ResultRecord] = (),
    seed: int = 0,
    state: State | None = "finished",
    metrics: Sequence[Mapping[str, Any]] = (),
    **manifest: Any,
) -> RunFolder:
    """Make a run folder below ``root`` with the files of `vaebench train`."""
    config = replace(composed(overrides), seed=seed, output_dir=str(root))
    folder = RunFolder(run_folder(config)).create(to_yaml(config))
    if state:
        folder.write_status(state)
    for result in results:
        append_result(folder, result)
    facts = {"command": ["vaebench", "train", *overrides], "wall_seconds": 60.0, "parameters": {"total": 1234}}
    write_json(folder.manifest, facts | manifest)
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder
