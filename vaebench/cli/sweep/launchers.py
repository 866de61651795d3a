"""The launchers: the queues of this package, hydra's plugins, what they need, and how jobs share this machine."""

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vaebench.config.words import key_value
from vaebench.errors import UserError

if TYPE_CHECKING:
    from vaebench.cli.sweep.queues import Queue

__all__ = ["MachineShare", "has_queue", "open_queue", "require_launcher"]

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
LOCAL = "vaebench.cli.sweep.slurm.LocalQueue"
# hydra.launcher._target_ of each queue, the package that it needs, and the extra that installs it. Only these modules
# are imported: a configuration names no others.
QUEUES = {
    LOCAL: ("submitit", "slurm"),
    "vaebench.cli.sweep.slurm.SlurmQueue": ("submitit", "slurm"),
    "vaebench.cli.sweep.ray_queue.RayQueue": ("ray", "ray"),
}
# The launcher's preset, the package that it needs, and the extra that installs it.
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "parallel"),
    "submitit_local": ("submitit", "slurm"),
    "submitit_slurm": ("submitit", "slurm"),
    "ray": ("ray", "ray"),
}


def require_launcher(words: Sequence[str]) -> None:
    """Raise UserError if ``words`` choose a launcher whose package is not installed."""
    for word in words:
        key, name = key_value(word)
        if key == "hydra/launcher" and name in LAUNCHERS:
            _require(word, *LAUNCHERS[name])


def has_queue(launcher: DictConfig | None) -> bool:
    """Whether the settings ``hydra.launcher`` are those of a queue of this package, and not of a plugin of hydra."""
    return launcher is not None and launcher.get("_target_") in QUEUES


def open_queue(config: DictConfig) -> "Queue":
    """Return the queue that ``config.hydra.launcher`` describes.

    Raises:
        UserError: its package is not installed, or a setting is invalid.
    """
    settings: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    target = settings.pop("_target_")
    _require(f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}", *QUEUES[target])
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)(settings)


def _require(word: str, package: str, extra: str) -> None:
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # no plugin of hydra at all is installed
        found = False
    if not found:
        raise UserError(f"{word} needs {package.rpartition('.')[2]}: pip install 'vaebench[{extra}]'")


@dataclass(frozen=True)
class MachineShare:
    """How the jobs of one launcher share the cores and GPUs of this machine."""

    shared: bool = False
    """Whether several jobs run on this machine at once, and the launcher does not divide its cores and GPUs."""
    at_once: int = 1
    prints_here: bool = True
    """Whether the jobs print to this terminal."""

    @classmethod
    def of(cls, settings: DictConfig) -> "MachineShare":
        """Return the share for the settings ``hydra.launcher``. Slurm and ray divide cores and GPUs themselves."""
        target = settings.get("_target_")
        if target == JOBLIB:
            wanted = int(settings.n_jobs)
            return cls(True, wanted if wanted > 0 else max(1, cores() + 1 + wanted))
        if target == LOCAL:
            return cls(True, max(1, cores() // (settings.cpus_per_task or 1)), prints_here=False)
        return cls(prints_here=target == BASIC)

    def threads(self, jobs: int) -> int | None:
        """Return the CPU threads of each of ``jobs`` jobs; None if this is decided elsewhere."""
        if not self.shared or "OMP_NUM_THREADS" in os.environ:
            return None
        return max(1, cores() // max(1, min(self.at_once, jobs)))


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
