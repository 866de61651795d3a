"""Datasets as named, versioned protocols: images, split, binarization and seed.

A name is imported on first use: the catalog needs no numpy, and the preparation needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaebench.datasets.binarization import binarize as binarize
    from vaebench.datasets.catalog import BINARIZATIONS as BINARIZATIONS
    from vaebench.datasets.catalog import CATALOG as CATALOG
    from vaebench.datasets.catalog import NAMES as NAMES
    from vaebench.datasets.dataset import Dataset as Dataset
    from vaebench.datasets.dataset import load as load
    from vaebench.datasets.preparation import Availability as Availability
    from vaebench.datasets.preparation import Prepared as Prepared
    from vaebench.datasets.preparation import available as available
    from vaebench.datasets.preparation import prepare as prepare
    from vaebench.datasets.protocol import Protocol as Protocol
    from vaebench.datasets.protocol import protocol_for as protocol_for

_NAMES = {
    "binarization": ("binarize",),
    "catalog": ("BINARIZATIONS", "CATALOG", "NAMES"),
    "dataset": ("Dataset", "load"),
    "preparation": ("Availability", "Prepared", "available", "prepare"),
    "protocol": ("Protocol", "protocol_for"),
}
_FILES = {name: file for file, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
