"""hydra looks for plugins in this package only; the sweep itself is `vaebench.cli.sweep`.

hydra imports this module at every start, so it must not import what takes long.
"""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

__all__ = ["VaebenchSweeper"]


class VaebenchSweeper(BasicSweeper):
    """hydra's own way of combining values; the jobs can be stopped and started."""

    def sweep(self, arguments: list[str]) -> None:
        """Run every combination of ``arguments``."""
        from vaebench.cli.sweep import sweep

        assert self.hydra_context is not None
        assert self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (jobs,) = self.split_arguments(overrides, None)
        sweep(self.hydra_context, self.config, jobs, self.max_batch_size)
