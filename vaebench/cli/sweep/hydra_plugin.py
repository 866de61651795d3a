"""The sweeper that hydra calls for -m. `vaebench.cli.sweep.run` does the work."""

import importlib
import math
import sys
from types import ModuleType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from vaebench.cli.sweep.launchers import has_queue
from vaebench.config.words import MOST_VALUES, values_of
from vaebench.errors import UserError

__all__ = ["VaebenchSweeper", "register"]

ALIAS = "vaebench"


class VaebenchSweeper(BasicSweeper):
    """Combines values as hydra's own sweeper does; the sweep can be interrupted and resumed."""

    def setup(self, *, config: DictConfig, hydra_context: Any, task_function: Any) -> None:
        """Keep the configuration. Our queues are no plugins of hydra: `vaebench.cli.sweep.run` opens them."""
        if has_queue(config.hydra.launcher):
            self.config, self.hydra_context = config, hydra_context
        else:
            super().setup(config=config, hydra_context=hydra_context, task_function=task_function)

    def sweep(self, arguments: list[str]) -> None:
        """Run every combination of the values in ``arguments``."""
        from vaebench.cli.sweep.run import sweep

        assert self.hydra_context is not None
        assert self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        several = [override for override in overrides if override.is_discrete_sweep()]
        count = math.prod(len(values_of(override)) for override in several if not isinstance(override.value(), Glob))
        if count > MOST_VALUES:
            raise UserError(f"this sweep has {count:,} jobs, at most are {MOST_VALUES:,}: give fewer values")
        (jobs,) = self.split_arguments(overrides, None)
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
