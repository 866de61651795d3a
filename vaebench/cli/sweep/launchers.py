"""hydra's launchers: the packages that they need, and how their jobs share this machine."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from vaebench.config.words import key_value
from vaebench.errors import UserError

__all__ = ["MachineShare", "require_launcher"]

# The launcher, its plugin's module and the extra that installs it.
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "parallel"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "ray_aws": ("hydra_plugins.hydra_ray_launcher", "ray"),
}


def require_launcher(words: Sequence[str]) -> None:
    """Raise UserError if ``words`` choose a launcher whose package is not installed."""
    for word in words:
        key, name = key_value(word)
        if key == "hydra/launcher" and name in LAUNCHERS:
            module, extra = LAUNCHERS[name]
            if importlib.util.find_spec(module) is None:
                raise UserError(f"{word} needs a plugin: pip install 'vaebench[{extra}]'")


@dataclass(frozen=True)
class MachineShare:
    """How the jobs of one launcher share the cores and GPUs of this machine."""

    shared: bool = False
    """Whether several jobs run on this machine at once, and the launcher does not divide its cores and GPUs."""
    at_once: int = 1
    batch: int | None = None
    """Jobs that the launcher should get at a time; None: all."""
    prints_here: bool = True
    """Whether the jobs print to this terminal."""

    @classmethod
    def of(cls, launcher: str, settings: DictConfig) -> "MachineShare":
        """Return the share for the launcher of that name. Slurm and ray divide cores and GPUs themselves."""
        if launcher == "joblib":
            wanted = int(settings.n_jobs)
            return cls(True, wanted if wanted > 0 else max(1, cores() + 1 + wanted))
        if launcher == "submitit_local":
            at_once = max(1, cores() // (settings.cpus_per_task or 1))
            return cls(True, at_once, batch=at_once, prints_here=False)
        return cls(prints_here=launcher == "basic")

    def threads(self, jobs: int) -> int | None:
        """Return the CPU threads of each of ``jobs`` jobs; None if this is decided elsewhere."""
        if not self.shared or "OMP_NUM_THREADS" in os.environ:
            return None
        return max(1, cores() // max(1, min(self.at_once, jobs)))


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
