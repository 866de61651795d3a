"""Start hydra from a command: to compose, to sweep, or to complete a word. The error messages are ours."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vaebench.cli.argv import command_line
from vaebench.config import config_dir
from vaebench.config.compose import HYDRA_VERSION
from vaebench.config.explain import explain

__all__ = ["start"]

# hydra warns that our launcher presets are validated against the plugins' settings, which is intended.
# The filter is set at import, because the workers of a launcher compose configurations too.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


def start(job: Callable[[DictConfig], Any], config_name: str, words: Sequence[str]) -> None:
    """Run hydra on ``words`` (flags first, then overrides) with ``job`` as its task function.

    Raises:
        UserError: a word is invalid.
    """
    import hydra
    from hydra.core.plugins import Plugins
    from hydra.core.utils import env_override
    from hydra.errors import HydraException

    # Before our plugin: as hydra looks for its own plugins, it imports their modules again, and ours derives from one.
    plugins = Plugins.instance()
    from vaebench.cli.sweep.hydra_plugin import register

    register(plugins)
    app = hydra.main(version_base=HYDRA_VERSION, config_path=str(config_dir()), config_name=config_name)(job)
    # By default hydra prints its errors and exits.
    with command_line(["vaebench", *words]), env_override({"HYDRA_FULL_ERROR": "1"}):
        try:
            app()
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error, config_name, [word for word in words if not word.startswith("-")]) from error
        except ValueError as error:
            # hydra raises a plain ValueError for encoder=null.
            if not str(error).startswith("Config group override"):
                raise
            raise explain(error, config_name, []) from error
