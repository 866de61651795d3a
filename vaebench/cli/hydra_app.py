"""Start hydra from a command: to compose, to sweep, or to complete a word. The error messages are ours."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

from omegaconf import DictConfig

import vaebench
from vaebench.cli.argv import command_line
from vaebench.config import config_dir
from vaebench.config.explain import explain
from vaebench.config.words import all_for_hydra
from vaebench.errors import RunFailed, UserError

__all__ = ["start"]


def start(job: Callable[[DictConfig], Any], config_name: str, words: Sequence[str]) -> None:
    """Run hydra on ``words`` (flags first, then overrides) with ``job`` as its task function.

    Raises:
        UserError: a word is invalid.
    """
    import hydra
    from hydra.core.plugins import Plugins
    from hydra.core.utils import env_override

    # Before our plugin: as hydra looks for its own plugins, it imports their modules again, and ours derives from one.
    plugins = Plugins.instance()
    from vaebench.cli.sweep.hydra_plugin import register
    from vaebench.config.search_path import HYDRA_VERSION
    from vaebench.config.search_path import register as register_folders

    register(plugins)
    register_folders()
    app = hydra.main(version_base=HYDRA_VERSION, config_path=str(config_dir()), config_name=config_name)(job)
    words = all_for_hydra(words)
    # By default hydra prints its errors and exits.
    with command_line(["vaebench", *words]), env_override({"HYDRA_FULL_ERROR": "1"}), _checked(config_name):
        try:
            app()
        except Exception as error:
            if _raised_by_us(error):
                raise
            raise explain(error, config_name, [word for word in words if not word.startswith("-")]) from error


def _raised_by_us(error: Exception) -> bool:
    """Whether code of this package raised the error, and not hydra while it composed the settings."""
    own = Path(vaebench.__file__).parent
    places = [Path(frame.f_code.co_filename) for frame, _ in walk_tb(error.__traceback__)]
    last = [place for place in places if place.is_relative_to(own)][-1]
    composers = ("cli/sweep/hydra_plugin.py", "cli/sweep/plan.py", "config/grid.py")
    composing = last in (Path(__file__), *(own / file for file in composers))
    return isinstance(error, UserError | RunFailed) or not composing or places[-1] == last


@contextmanager
def _checked(config_name: str) -> Iterator[None]:
    """Check hydra's own settings in the block; refuse configurations from which hydra would call functions.

    Args:
        config_name: the file in ``configs/`` that is composed.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    from vaebench.cli.sweep.settings import check_hydra

    load = ConfigLoaderImpl.load_configuration

    def checked(*given: Any, **options: Any) -> DictConfig:
        config = load(*given, **options)
        if config.hydra.get("callbacks"):
            raise UserError("hydra.callbacks is not supported: a configuration must not name functions to call")
        for name in ("job_logging", "hydra_logging"):
            if set(config.hydra.get(name) or ()) - {"version", "root", "disable_existing_loggers"}:
                raise UserError(f"hydra.{name} is not supported: remove it")
        if config_name == "train":  # the other configurations are composed for completion alone
            check_hydra(config.hydra)
        return config

    ConfigLoaderImpl.load_configuration = checked
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load
