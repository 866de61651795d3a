"""The sweeper that hydra calls for -m. `vaebench.cli.sweep.run` does the work."""

import importlib
import sys
from types import ModuleType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from vaebench.cli.sweep.launchers import has_queue
from vaebench.config.catalog import config_dir, described
from vaebench.config.grid import jobs_of, words_of_map

__all__ = ["VaebenchSweeper", "register"]

ALIAS = "vaebench"


class VaebenchSweeper(BasicSweeper):
    """Combines values as hydra's own sweeper does, and pairs them by ``zip``; the sweep can be resumed.

    Args:
        max_batch_size: jobs that the launcher gets at a time; None: all.
        params: further values, of a yaml file.
        zips: words such as ``zip(objective,k)=(elbo,1),(iwae,16)``.
        dry_run: list the jobs, and run none.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        zips: list[str] | None = None,
        dry_run: bool = False,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.dry_run = dry_run
        del zips  # `sweep` takes them from the configuration, in which references are not resolved

    def setup(self, *, config: DictConfig, hydra_context: Any, task_function: Any) -> None:
        """Keep the configuration. Our queues are no plugins of hydra: `vaebench.cli.sweep.run` opens them."""
        if has_queue(config.hydra.launcher):
            self.config, self.hydra_context = config, hydra_context
        else:
            super().setup(config=config, hydra_context=hydra_context, task_function=task_function)

    def sweep(self, arguments: list[str]) -> None:
        """Run every combination of the values in ``arguments``."""
        from vaebench.cli.sweep.forecast import forecast
        from vaebench.cli.sweep.run import sweep

        assert self.hydra_context is not None
        assert self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        settings: Any = OmegaConf.to_container(self.config.hydra.sweeper, resolve=False)
        params = words_of_map(settings["params"] or {})
        jobs = jobs_of(parser, params, [*settings["zips"], *arguments])
        if self.dry_run:
            forecast(self.hydra_context, self.config, jobs)
        else:
            sweep(self.hydra_context, self.config, jobs, self.max_batch_size)


def register(plugins: Plugins) -> None:
    """Register the sweeper with hydra.

    hydra accepts plugins only under names in the package ``hydra_plugins``. This module gets such a name as an alias,
    so that no such package has to be installed, which every other program with hydra would import at its start.
    """
    name = f"hydra_plugins.{ALIAS}"
    if name in sys.modules:
        return
    try:
        package = importlib.import_module("hydra_plugins")
    except ImportError:  # no other plugin is installed
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    sys.modules[name] = sys.modules[__name__]
    setattr(package, ALIAS, sys.modules[__name__])
    VaebenchSweeper.__module__ = name
    plugins.register(VaebenchSweeper)
    # hydra would merge its plugins' schemas into our presets of the same names, with a warning in every process.
    schemas = ConfigStore.instance().repo["hydra"]["launcher"]
    for listed in described("hydra/launcher", [config_dir()]):
        schemas.pop(f"{listed.choice}.yaml", None)
