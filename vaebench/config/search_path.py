"""Where hydra looks for yaml files: our folder, and then those of plug-ins."""

from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from vaebench.config.catalog import config_dir, config_folders

__all__ = ["HYDRA_VERSION", "initialized", "register"]

HYDRA_VERSION = "1.3"


class PluginFolders(SearchPathPlugin):
    """Adds the folders of plug-ins to hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folders, unless another program uses hydra."""
        ours, *others = config_folders()
        if any(str(ours) in str(element.path) for element in search_path.get_path()):
            for folder in others:
                search_path.append("vaebench plug-ins", f"file://{folder}")


def register() -> None:
    """Register the folders of plug-ins with hydra."""
    Plugins.instance().register(PluginFolders)


@contextmanager
def initialized() -> Iterator[None]:
    """Let `hydra.compose` in the block use our yaml files and those of plug-ins, also in a job of hydra."""
    register()
    # hydra's state is global and refuses a second initialisation.
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base=HYDRA_VERSION):
            yield
    finally:
        GlobalHydra.instance().hydra = outer
