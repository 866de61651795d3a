"""`vaebench train -m ... --dry-run`: list the jobs of a sweep, its models and the expected time. Write nothing."""

import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from omegaconf import DictConfig

from vaebench.cli.sweep.plan import PlannedJob, plan
from vaebench.cli.sweep.records import skip_reason
from vaebench.cli.sweep.run import raise_failures
from vaebench.cli.sweep.table import distinct
from vaebench.config import Config, identity, run_folder
from vaebench.errors import UserError
from vaebench.progress import clock
from vaebench.records import RunFolder
from vaebench.records.manifest import read_manifest
from vaebench.records.metrics import last_metrics
from vaebench.records.text import counted
from vaebench.records.text import table as text_table

__all__ = ["forecast"]

_RUN_NAME = re.compile(r"(\d+)-([0-9a-f]{8})")
_OPEN = ("train", "resume")


class _Forecast(NamedTuple):
    action: str
    """train, resume, finished, busy, failed or invalid."""
    seconds: float | None
    """The time that is left, None if no earlier run tells it."""
    reason: str | None


def forecast(hydra_context: Any, config: DictConfig, combinations: Sequence[list[str]]) -> None:
    """Print what the sweep over ``combinations`` (the overrides of each job) would do.

    Raises:
        UserError: all jobs are invalid.
        RunFailed: jobs would fail.
    """
    jobs, repeated = plan(hydra_context, config, combinations)
    earlier = _EarlierRuns()
    found = [_forecast(job, earlier) for job in jobs]
    rows: list[list[str] | str] = []
    words = distinct([job.typed for job in jobs])
    for number, (one, own) in enumerate(zip(found, words, strict=True), start=1):
        time = "" if one.action not in _OPEN else "unknown" if one.seconds is None else clock(one.seconds)
        rows.append([str(number), one.action, time, " ".join(own)])
        rows += [one.reason] if one.reason else []
    print(text_table(["job", "action", "time", "settings"], rows, wrap="settings", keep=("action", "settings")))
    shared = [word for word in jobs[0].typed if word not in words[0]]
    if shared:
        print(f"all jobs: {' '.join(shared)}")
    configs = [job.config for job in jobs if job.config is not None]
    methods = len({identity(each, with_seed=False) for each in configs})
    print(f"{counted(len(combinations), 'combination')}: {counted(len(configs), 'distinct model')}, ", end="")
    print(f"{methods} apart from the seed" + (f"; {repeated} repeated" if repeated else ""))
    print(_total(found, earlier))
    print("dry run: nothing was trained or written", flush=True)
    raise_failures(jobs, leaves=True)


def _total(found: Sequence[_Forecast], earlier: "_EarlierRuns") -> str:
    """Return a line with the expected time of all jobs."""
    left = [one for one in found if one.action in _OPEN]
    known = [one.seconds for one in left if one.seconds is not None]
    if not left:
        return "expected time: none, no job has work left"
    if not known:
        return "expected time: unknown, there is no earlier run of these settings in output_dir"
    unknown = f"; unknown for {counted(len(left) - len(known), 'job')}" if len(known) < len(left) else ""
    runs = f"{counted(earlier.used, 'earlier run')} of the same settings, on {', '.join(sorted(earlier.devices))}"
    return f"expected time: about {clock(sum(known))} one job after another{unknown} (from {runs})"


def _forecast(job: PlannedJob, earlier: "_EarlierRuns") -> _Forecast:
    if job.config is None:
        return _Forecast("invalid", None, job.record.error)
    record = skip_reason(job.run, job.config)
    if record is not None:
        action = "finished" if record.status == "skipped" else record.status
        return _Forecast(action, None, record.error)
    seconds = earlier.seconds(job.config)
    if not any(job.run.checkpoints.glob("last*")):
        return _Forecast("train", seconds, None)
    done = _epochs_done(job.run) / job.config.trainer.epochs
    return _Forecast("resume", None if seconds is None else seconds * max(0.0, 1 - done), None)


def _epochs_done(run: RunFolder) -> float:
    line = last_metrics(run)
    return float(line["epoch"]) if line else 0.0


class _EarlierRuns:
    """The time of earlier runs that have the same settings, apart from the seed."""

    def __init__(self) -> None:
        self.devices: set[str] = set()
        self.used = 0
        self._found: dict[str, float | None] = {}

    def seconds(self, config: Config) -> float | None:
        """Return the mean time of the earlier runs; None if there are none."""
        key = identity(config, with_seed=False)
        if key not in self._found:
            times = [time for run in _same_settings(config) if (time := self._time(run, config)) is not None]
            self.used += len(times)
            self._found[key] = fmean(times) if times else None
        return self._found[key]

    def _time(self, run: RunFolder, config: Config) -> float | None:
        """Return the time of a whole run with its evaluation, extrapolated from the epochs of an unfinished one."""
        try:
            manifest, line = read_manifest(run), last_metrics(run)
            finished = run.read_status().state == "finished"
        except (FileNotFoundError, UserError):
            return None
        if finished and "wall_seconds" in manifest:
            time = float(manifest["wall_seconds"])
        elif line and line["epoch"] > 0:
            time = line["wall"] * config.trainer.epochs / line["epoch"]
        else:
            return None
        self.devices.add(str(manifest.get("device", "an unknown device")))
        return time


def _same_settings(config: Config) -> list[RunFolder]:
    """Return the existing run folders with these settings and any seed. The name of a folder says its settings."""
    parent = run_folder(config).parent
    names = [match for path in parent.glob("*-*") if (match := _RUN_NAME.fullmatch(path.name))]
    return [RunFolder(parent / m[0]) for m in names if identity(replace(config, seed=int(m[1]))) == m[2]]
