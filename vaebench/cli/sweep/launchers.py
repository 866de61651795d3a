"""hydra's launchers are plugins: which one needs which package, and one message where it is not installed."""

import importlib.util
from collections.abc import Sequence

from vaebench.errors import UserError

__all__ = ["require_launcher"]

# The launcher, the plugin's module and the extra that installs it.
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "parallel"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "ray_aws": ("hydra_plugins.hydra_ray_launcher", "ray"),
}


def require_launcher(words: Sequence[str]) -> None:
    """Raise UserError if ``words`` choose a launcher whose package is not here."""
    for word in words:
        name = word.removeprefix("hydra/launcher=")
        if word.startswith("hydra/launcher=") and name in LAUNCHERS:
            module, extra = LAUNCHERS[name]
            if importlib.util.find_spec(module) is None:
                raise UserError(f"{word} needs a plugin: pip install 'vaebench[{extra}]'")
