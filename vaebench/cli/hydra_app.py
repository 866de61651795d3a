"""hydra, started from inside a command: it composes, sweeps and completes; messages are ours."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vaebench.cli.argv import command_line
from vaebench.config import config_dir
from vaebench.config.compose import HYDRA_VERSION
from vaebench.config.explain import explain

__all__ = ["start"]

# Our launcher presets have the names of the plugins' own settings, and are checked against these: that is wanted.
# Said at import, because launchers' workers compose configurations, too.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


def start(job: Callable[[DictConfig], Any], config_name: str, words: Sequence[str]) -> None:
    """Let hydra carry out ``words`` (flags first, then overrides) with ``job`` as its task function.

    Raises:
        UserError: hydra refuses the words.
    """
    import hydra
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException

    # hydra runs the modules of its own plugins anew as it looks for them: what derives from one has to come after.
    plugins = Plugins.instance()
    from vaebench.cli.sweep.hydra_plugin import register

    register(plugins)
    app = hydra.main(version_base=HYDRA_VERSION, config_path=str(config_dir()), config_name=config_name)(job)
    with command_line(["vaebench", *words]), full_errors():
        try:
            app()
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error, config_name, [word for word in words if not word.startswith("-")]) from error
        except ValueError as error:
            # The one refusal for which hydra has no exception of its own: encoder=null.
            if not str(error).startswith("Config group override"):
                raise
            raise explain(error, config_name, []) from error


@contextmanager
def full_errors() -> Iterator[None]:
    """Make hydra raise its errors; it would print them and exit otherwise."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
