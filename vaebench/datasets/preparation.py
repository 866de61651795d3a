"""From a dataset's name to verified pixels: the cache, else the files, else a download. No torch here."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vaebench.datasets import cache
from vaebench.datasets.acquire import acquire
from vaebench.datasets.arrays import Arrays, arrays_of
from vaebench.datasets.catalog import BINARIZATIONS, CATALOG, Sizes
from vaebench.datasets.checked import Damaged
from vaebench.datasets.protocol import Protocol, protocol_for
from vaebench.datasets.recipes import RECIPES, Splits
from vaebench.datasets.sources import SOURCES
from vaebench.errors import UserError
from vaebench.files import first_writable

__all__ = ["Availability", "Prepared", "Say", "available", "prepare", "to_stderr"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Availability:
    """What is there of one dataset.

    ``state``: ``prepared`` (a cache file), ``found`` (all its files, unverified) or ``missing`` (would be
    downloaded). ``missing`` names the absent files, ``prepared`` the cache files of its protocols.
    """

    name: str
    summary: str
    sizes: Sizes
    state: str
    found: tuple[Path, ...]
    missing: tuple[str, ...]
    prepared: tuple[Path, ...]


@dataclass(frozen=True)
class Prepared:
    """Verified pixels of one protocol; ``cache`` is their file, None where no folder could take one.

    ``reused`` says that the pixels came from the cache; ``note`` is one line on what they are.
    """

    protocol: Protocol
    arrays: Arrays
    fingerprint: str
    cache: Path | None
    reused: bool
    note: str


def to_stderr(line: str) -> None:
    """Print one line where it does not mix with results."""
    print(line, file=sys.stderr)


def available(data_dir: Path) -> list[Availability]:
    """What is there of every dataset, in the order of the catalogue; looks, but opens nothing."""
    return [_availability(name, data_dir.expanduser()) for name in CATALOG]


def prepare(
    name: str,
    data_dir: Path,
    *,
    binarization: str | None = None,
    split: str = "default",
    seed: int = 0,
    download: bool = True,
    progress: bool = True,
    rebuild: bool = False,
    say: Say = to_stderr,
) -> Prepared:
    """Find or download a dataset's files, verify, split and binarise them, and cache the result in one file.

    ``rebuild`` reads the files again even where a sound cache file exists. ``say`` gets one-line notices.

    Raises:
        UserError: an unknown word; files that are damaged, or absent and not to be had.
    """
    protocol, data_dir = protocol_for(name, binarization, split, seed), data_dir.expanduser()
    if not rebuild and (cached := _cached(protocol, data_dir, say)) is not None:
        path, arrays = cached
        return Prepared(protocol, arrays, arrays.fingerprint(), path, True, _note(protocol))
    splits = RECIPES[name](acquire(name, data_dir, download=download, progress=progress), protocol)
    _check_sizes(splits, protocol)
    arrays = arrays_of(splits, protocol)
    path = _keep(protocol, arrays, data_dir, say)
    return Prepared(protocol, arrays, arrays.fingerprint(), path, False, _note(protocol))


def _availability(name: str, data_dir: Path) -> Availability:
    entry = CATALOG[name]
    found = tuple(path for source in SOURCES[name] for path in source.found(data_dir)[:1])
    missing = tuple(source.title for source in SOURCES[name] if not source.found(data_dir))
    prepared = cache.cached_files(name, data_dir)
    state = "prepared" if prepared else "missing" if missing else "found"
    return Availability(name, entry.summary, entry.splits["default"], state, found, missing, prepared)


def _cached(protocol: Protocol, data_dir: Path, say: Say) -> tuple[Path, Arrays] | None:
    for path in cache.places(protocol, data_dir):
        if os.path.isfile(path):
            try:
                return path, cache.read(path, protocol)
            except Damaged as error:
                say(f"{error}: not used, prepared again")
    return None


def _keep(protocol: Protocol, arrays: Arrays, data_dir: Path, say: Say) -> Path | None:
    """Write the cache file to the first folder that takes it, and say so if that is not ``data_dir``."""
    own, fallback = cache.places(protocol, data_dir)
    for path in (own, fallback):
        if first_writable([path.parent]) is None:
            continue
        try:
            cache.write(path, protocol, arrays)
        except OSError:  # a full disk
            continue
        if path == fallback:
            say(f"{data_dir} cannot be written: {protocol} is cached in {fallback}")
        return path
    say(f"neither {data_dir} nor {fallback.parent} can be written: {protocol} is in memory, for this run only")
    return None


def _check_sizes(splits: Splits, protocol: Protocol) -> None:
    sizes = tuple(len(split) for split in splits)
    if sizes != protocol.sizes:
        raise UserError(f"the files of dataset={protocol.dataset} give {sizes} images, not {protocol.sizes}")


def _note(protocol: Protocol) -> str:
    how = CATALOG[protocol.dataset].how[protocol.split]
    return f"{how}; {BINARIZATIONS[protocol.binarization]}" if protocol.continuous else how
