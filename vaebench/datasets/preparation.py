"""Prepare a dataset's verified pixels from the cache, its files or a download; imports no torch."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaebench import plugins
from vaebench.datasets import cache
from vaebench.datasets.arrays import Arrays, binarize_splits, departure, static_from_dynamic
from vaebench.datasets.catalog import BINARIZATIONS, CATALOG, Sizes
from vaebench.datasets.checksum import CorruptFile
from vaebench.datasets.protocol import OWN, Protocol, protocol_for
from vaebench.errors import UserError
from vaebench.files import first_writable

if TYPE_CHECKING:
    from vaebench.datasets.own import OwnImages

__all__ = ["Availability", "Prepared", "Say", "available", "prepare", "to_stderr"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Availability:
    """Whether the files of one dataset exist.

    ``state``: ``prepared`` (a cache file exists), ``found`` (all published files exist, not verified) or ``missing``
    (needs a download). ``missing``: the names of the missing published files. ``place``: a path
    found, or None, also for the file of a package.
    """

    name: str
    summary: str
    sizes: Sizes
    state: str
    missing: tuple[str, ...]
    place: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """The verified pixels of one protocol.

    ``cache``: the cache file, None if no folder could be written to. ``reused``: the pixels came from that file.
    ``note``: a one-line description. ``place``: where own images lie.
    """

    protocol: Protocol
    arrays: Arrays
    fingerprint: str
    cache: Path | None
    reused: bool
    note: str
    place: Path | None = None


def to_stderr(line: str) -> None:
    """Print a line to standard error, apart from the results."""
    print(line, file=sys.stderr)


def available(data_dir: Path) -> list[Availability]:
    """Return which files of each dataset exist, in the order of the catalog; open none of them."""
    from vaebench.datasets.layouts import likely
    from vaebench.datasets.published_files import PUBLISHED_FILES

    data_dir, listed = data_dir.expanduser(), []
    for name, info in CATALOG.items():
        found = [file.found(data_dir)[:1] for file in PUBLISHED_FILES[name]]
        missing = tuple(file.title for file, paths in zip(PUBLISHED_FILES[name], found, strict=True) if not paths)
        other = likely(name, data_dir) if missing else []
        state = "found" if other or not missing else "missing"
        places = [path for paths in found for path in paths] + other
        if prepared := cache.cached_files(name, data_dir):
            state, places = "prepared", prepared
        package = PUBLISHED_FILES[name][0].package is not None and state != "prepared"
        place = places[0] if places and state != "missing" and not package else None
        listed.append(Availability(name, info.summary, info.splits["default"], state, missing, place))
    return listed


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
    **settings: Any,
) -> Prepared:
    """Find or download a dataset's files, verify, split and binarize them, and cache the result in one file.

    ``rebuild``: read the published files again even if a valid cache file exists. ``say`` receives one-line notices.
    ``settings``: ``path``, ``shape`` and ``pixels`` for own images: see `own.read_own`; ``pixels`` is the fingerprint
    that they must have; and the settings of a plug-in. The images of both are not cached.

    Raises:
        UserError: an unknown setting; corrupt files, or missing files that cannot be downloaded; this installation
            makes other pixels than the published ones.
    """
    if name == OWN:
        return _prepare_own(data_dir, binarization or "dynamic", split, seed, **settings)
    if plugin := plugins.foreign("dataset", name, CATALOG):
        return _prepare_foreign(plugin, data_dir.expanduser(), binarization or "dynamic", split, seed, **settings)
    if given := [key for key, value in settings.items() if value is not None]:
        raise UserError(f"dataset={name} has no setting '{given[0]}'")
    protocol, data_dir = protocol_for(name, binarization, split, seed), data_dir.expanduser()
    if protocol.binarization == "static" and protocol.drawn and protocol.seed != 0:
        # The catalog does not hold the drawn training images of other seeds. It holds their grey levels.
        options = {"download": download, "progress": progress, "rebuild": rebuild, "say": say}
        grey = prepare(name, data_dir, binarization="dynamic", split=split, seed=seed, **options)
        arrays = static_from_dynamic(grey.arrays, protocol)
        return Prepared(protocol, arrays, arrays.fingerprint(), grey.cache, grey.reused, _note(protocol))
    if not rebuild and (cached := _cached(protocol, data_dir, say)) is not None:
        place, arrays = cached
        return Prepared(protocol, arrays, arrays.fingerprint(), place, True, _note(protocol))
    # Imported here: a start from the cache needs no readers and no downloads.
    from vaebench.datasets.download import find_or_download
    from vaebench.datasets.splits import SPLITTERS

    splits = SPLITTERS[name](find_or_download(name, data_dir, download=download, progress=progress), protocol)
    sizes = tuple(len(split) for split in splits)
    if sizes != protocol.sizes:
        raise UserError(f"the files of dataset={name} give {sizes} images, expected {protocol.sizes}")
    arrays = binarize_splits(splits, protocol)
    if reason := departure(arrays, protocol):
        raise UserError(
            f"the files of dataset={name} are the published ones, but {protocol} is not ({reason}): install vaebench "
            "and numpy again"
        )
    place = _keep(protocol, arrays, data_dir, say)
    return Prepared(protocol, arrays, arrays.fingerprint(), place, False, _note(protocol))


def _prepare_own(
    data_dir: Path,
    binarization: str,
    split: str,
    seed: int,
    path: str | None = None,
    shape: Any = None,
    pixels: str | None = None,
) -> Prepared:
    from vaebench.datasets.own import located, own_protocol, read_own

    place = located(path, data_dir)
    images = read_own(place, shape)
    if pixels not in (None, images.fingerprint):
        raise UserError(
            f"dataset.path={place} holds other pixels (fingerprint {images.fingerprint}) than the run "
            f"({pixels}): restore them, or train another run"
        )
    return _prepared(images, own_protocol(images, binarization, split, seed), place)


def _prepare_foreign(
    plugin: plugins.Plugin, data_dir: Path, binarization: str, split: str, seed: int, **settings: Any
) -> Prepared:
    """Return the images that a plug-in returns, in the protocol that own images have."""
    from vaebench.datasets.own import images_of, own_protocol

    images = images_of(plugin.load()(data_dir, **settings), f"dataset={plugin.name} of {plugin.origin}")
    return _prepared(images, own_protocol(images, binarization, split, seed, plugin.name))


def _prepared(images: "OwnImages", protocol: Protocol, place: Path | None = None) -> Prepared:
    from vaebench.datasets.own import split_own

    arrays = binarize_splits(split_own(images, protocol.seed), protocol)
    return Prepared(protocol, arrays, arrays.fingerprint(), None, False, _note(protocol), place)


def _cached(protocol: Protocol, data_dir: Path, say: Say) -> tuple[Path, Arrays] | None:
    for path in cache.cache_paths(protocol, data_dir):
        if os.path.isfile(path):
            try:
                return path, cache.read(path, protocol)
            except CorruptFile as error:
                say(f"{error}: ignoring this cache file and preparing {protocol} again")
    return None


def _keep(protocol: Protocol, arrays: Arrays, data_dir: Path, say: Say) -> Path | None:
    """Write the cache file to the first writable folder, and report a folder other than ``data_dir``."""
    own, fallback = cache.cache_paths(protocol, data_dir)
    for path in (own, fallback):
        if first_writable([path.parent]) is None:
            continue
        try:
            cache.write(path, protocol, arrays)
        except OSError:  # a full disk
            continue
        if path == fallback:
            say(f"cannot write to {data_dir}: caching {protocol} in {fallback}")
        return path
    say(f"cannot write to {data_dir} or {fallback.parent}: keeping {protocol} in memory for this run only")
    return None


def _note(protocol: Protocol) -> str:
    how = protocol.info.how_split[protocol.split]
    return f"{how}; {BINARIZATIONS[protocol.binarization]}" if protocol.continuous else how
