"""Datasets as named, versioned protocols: images, split, binarization and seed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaebench.datasets.binarization import binarize
    from vaebench.datasets.catalog import BINARIZATIONS, CATALOG, NAMES
    from vaebench.datasets.dataset import Dataset, load
    from vaebench.datasets.preparation import Availability, Prepared, available, prepare
    from vaebench.datasets.protocol import Protocol, protocol_for

# Imported on first use: the catalog needs no numpy, and the preparation needs no torch.
_HOMES = {
    "BINARIZATIONS": "catalog",
    "CATALOG": "catalog",
    "NAMES": "catalog",
    "Protocol": "protocol",
    "protocol_for": "protocol",
    "Availability": "preparation",
    "Prepared": "preparation",
    "available": "preparation",
    "prepare": "preparation",
    "Dataset": "dataset",
    "load": "dataset",
    "binarize": "binarization",
}

__all__ = [
    "BINARIZATIONS",
    "CATALOG",
    "NAMES",
    "Availability",
    "Dataset",
    "Prepared",
    "Protocol",
    "available",
    "binarize",
    "load",
    "prepare",
    "protocol_for",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
