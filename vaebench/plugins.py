"""Encoders, priors and other parts of a run from outside: of installed packages, and of files named by ``--plugin``.

An installed package declares entry points in the groups ``vaebench.encoder``, ``vaebench.prior`` and so on, one for
each of `KINDS`. Of packages, only the names are read: a module is imported when a run uses one of its names. A file or
module of ``--plugin`` has a dictionary ``PLUGINS = {"encoder": {"laplace": LaplaceEncoder.build}}``. Only a word of the
command line names a file; nothing in a configuration, checkpoint or run folder does. Imports no torch.
"""

import hashlib
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from vaebench.errors import UserError

__all__ = ["KINDS", "Plugin", "config_folders", "find", "flags", "foreign", "given", "names", "require", "use", "using"]

KINDS = ("encoder", "prior", "decoder", "likelihood", "objective", "estimator", "dataset")

_given: list[str] = []
"""Absolute paths of files, and names of modules, in the order of the command line."""


@dataclass(frozen=True)
class Plugin:
    """One name that a package or a file adds."""

    kind: str
    name: str
    module: str
    """The module that declares it."""
    read: Callable[[], Any] = field(repr=False, compare=False)
    distribution: str | None = None
    """The installed package; None for a file or module of ``--plugin``."""
    version: str | None = None
    file: str | None = None
    """The word after ``--plugin``: an absolute path, or the name of a module."""

    @property
    def origin(self) -> str:
        """The package and its version, or the file."""
        return f"{self.distribution} {self.version}" if self.file is None else self.file

    @property
    def source(self) -> Path | None:
        """The Python file of its module, found without an import; None if there is none."""
        loaded = getattr(sys.modules.get(self.module), "__file__", None)
        if loaded is not None:
            return Path(loaded)
        top, *parts = self.module.split(".")
        places = [Path(root).joinpath(*parts) for root in _package_roots(top, tuple(sys.path))]
        files = [file for place in places for file in (place.with_name(f"{place.name}.py"), place / "__init__.py")]
        return next((file for file in files if file.is_file()), None)

    def load(self) -> Any:
        """Import the plug-in and return its function. UserError if it cannot be imported."""
        with _importing(f"{self.kind} '{self.name}' of {self.origin}"):
            entry = self.read()
        if not callable(entry):
            raise UserError(f"{self.kind} '{self.name}' of {self.origin} must be a function, got {entry!r}")
        return entry


def use(*words: str | Path) -> None:
    """Add the files and modules that ``words`` name, as ``--plugin`` does. A process reads each of them once.

    Raises:
        UserError: there is no such file or module, or it cannot be imported, or has no valid ``PLUGINS``.
    """
    for word in map(_absolute, map(str, words)):
        _table(word)
        if word not in _given:
            _given.append(word)


@contextmanager
def using(words: Sequence[str]) -> Iterator[None]:
    """Add the files and modules within the block. They are imported when a name is looked up."""
    before = list(_given)
    _given.extend(word for word in dict.fromkeys(map(_absolute, words)) if word not in before)
    try:
        yield
    finally:
        _given[:] = before


def given() -> tuple[str, ...]:
    """Return the files (absolute paths) and modules in use."""
    return tuple(_given)


def flags() -> list[str]:
    """Return the words that name the files and modules in use on a command line."""
    return [f"--plugin={word}" for word in _given]


def find(kind: str, name: str) -> Plugin | None:
    """Return the plug-in of that kind and name, or None. A name of ``--plugin`` comes before one of a package.

    Raises:
        UserError: two files, or two packages, have the name.
    """
    for source in (_of_files(), _of_packages(tuple(sys.path))):
        found = [plugin for plugin in source if (plugin.kind, plugin.name) == (kind, name)]
        if len(found) > 1:
            places = " and ".join(plugin.origin for plugin in found)
            raise UserError(f"{kind} '{name}' is in {places}: remove one of them")
        if found:
            return found[0]
    return None


def foreign(kind: str, name: str, ours: Collection[str]) -> Plugin | None:
    """Return the plug-in of that kind and name, or None. UserError if it would hide one of our names, ``ours``."""
    found = find(kind, name)
    if found is not None and name in ours:
        raise UserError(
            f"{kind} '{name}' is a name of vaebench, and {found.origin} has it too: rename it there, or leave it out"
        )
    return found


def names(kind: str) -> list[str]:
    """Return the names of the plug-ins of a kind."""
    return sorted({plugin.name for plugin in [*_of_files(), *_of_packages(tuple(sys.path))] if plugin.kind == kind})


def config_folders() -> dict[Path, str]:
    """Return the folders of the plug-ins' yaml files, each with the file or the package and version; imports none."""
    found = {folder: word for word in _given if (folder := _beside(word)) is not None}
    for plugin in _of_packages(tuple(sys.path)):
        folder = _package_folder(plugin.module.partition(".")[0], tuple(sys.path))
        if folder is not None:
            found.setdefault(folder, plugin.origin)
    return found


def require(remembered: Sequence[Mapping[str, Any]], place: Path | str) -> None:
    """Check that the plug-ins that a run remembers are there. UserError says which one is needed, and how to get it."""
    for one in remembered:
        kind, name = one["kind"], one["name"]
        if find(kind, name) is not None:
            continue
        if one.get("file"):
            word = shlex.quote(one["file"])
            raise UserError(f"{place} needs {kind} '{name}' of {one['file']}: add --plugin {word}")
        raise UserError(
            f"{place} needs {kind} '{name}' of the package {one.get('distribution')} {one.get('version')}, which is "
            "not installed: install it"
        )


# Installed packages


@cache
def _of_packages(path: tuple[str, ...]) -> list[Plugin]:
    """Return the entry points of the packages on ``path``; this imports none of them."""
    del path
    every = metadata.entry_points()
    found: dict[tuple[str, str, str], Plugin] = {}
    for kind in KINDS:
        for point in every.select(group=f"vaebench.{kind}"):
            about = point.dist.metadata if point.dist is not None else {}
            package, version = about["Name"] or "an unnamed package", about["Version"] or "of no version"
            plugin = Plugin(kind, point.name, point.module, point.load, package, version)
            found.setdefault((kind, point.name, point.value), plugin)
    return list(found.values())


@cache
def _package_folder(package: str, path: tuple[str, ...]) -> Path | None:
    """Return the folder ``configs`` of a top-level package, without importing it; None if there is none."""
    folders = [root / "configs" for root in _package_roots(package, path)]
    return next((folder.resolve() for folder in folders if folder.is_dir()), None)


@cache
def _package_roots(package: str, path: tuple[str, ...]) -> list[Path]:
    """Return the folders of a top-level package, without importing it; of a module, its path without the suffix."""
    del path
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    return [Path(root) for root in spec.submodule_search_locations or [(spec.origin or "").removesuffix(".py")]]


# Files and modules of the command line


def _absolute(word: str) -> str:
    """Return the absolute path of a file; the name of a module as it is. UserError if there is no such file."""
    if not word.endswith(".py") and os.sep not in word:
        if all(part.isidentifier() for part in word.split(".")):
            return word
        raise UserError(f"--plugin needs a file NAME.py or a module, got '{word}'")
    path = Path(word).expanduser().absolute()
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"--plugin {word}: there is no Python file {path}")
    return str(path)


def _beside(word: str) -> Path | None:
    """Return the folder ``configs`` beside a file or module; None if there is none."""
    if word.endswith(".py"):
        places = [Path(word).parent]
    else:  # a search for a.b would import a
        package, *parts = word.split(".")
        with _path_with(Path.cwd()):
            spec = importlib.util.find_spec(package)
        roots = (spec.submodule_search_locations or [spec.origin or ""]) if spec is not None else []
        modules = [Path(root).joinpath(*parts) for root in roots]
        places = [place for module in modules for place in (module, module.parent)]
    return next((folder.resolve() for place in places if (folder := place / "configs").is_dir()), None)


def _of_files() -> list[Plugin]:
    found = []
    for word in _given:
        module, table = _table(word)
        for kind, entries in table.items():
            for name, entry in entries.items():
                found.append(Plugin(kind, name, module, lambda entry=entry: entry, file=word))
    return found


@cache
def _table(word: str) -> tuple[str, Mapping[str, Mapping[str, Any]]]:
    """Import a file or module; return its name as a module, and its dictionary ``PLUGINS``."""
    with _importing(f"--plugin {word}"):
        module = _file_as_module(Path(word)) if word.endswith(".py") else _imported(word, Path.cwd())
    table = getattr(module, "PLUGINS", None)
    example = 'PLUGINS = {"encoder": {"laplace": LaplaceEncoder.build}}'
    if not isinstance(table, Mapping) or not all(isinstance(entries, Mapping) for entries in table.values()):
        raise UserError(f"--plugin {word} needs a dictionary, for example {example}")
    if other := [kind for kind in table if kind not in KINDS]:
        raise UserError(f"--plugin {word}: PLUGINS has the kind '{other[0]}'; valid: {', '.join(KINDS)}")
    for name in (name for entries in table.values() for name in entries):
        if not isinstance(name, str):
            raise UserError(f"--plugin {word}: a name in PLUGINS must be a string, got {name!r}")
    return module.__name__, table


def _file_as_module(path: Path) -> ModuleType:
    """Import a file: by its dotted name if it is part of a package, else by a name of its own."""
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if len(parts) > 1:
        module = _imported(".".join(parts).removesuffix(".__init__"), root)
        if module.__file__ is None or Path(module.__file__).resolve() != path.resolve():
            raise ImportError(f"{module.__name__} is the installed {module.__file__}: uninstall it, or name the module")
        return module
    # No name of another module: a file may be called random.py.
    name = f"vaebench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _path_with(root):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(name: str, root: Path) -> ModuleType:
    with _path_with(root):
        return importlib.import_module(name)


@contextmanager
def _path_with(folder: Path) -> Iterator[None]:
    """Let imports in the block find the modules in ``folder``, after all others.

    The folder stays on the path: a function of a plug-in may import when it is called.
    """
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    yield


@contextmanager
def _importing(what: str) -> Iterator[None]:
    """Turn an error of a plug-in's module into a UserError with the file and the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
        frames = [(file, line) for file, line in frames if not file.startswith("<frozen")]
        place = f"{frames[-1][0]}, line {frames[-1][1]}: " if frames and frames[-1][0] != __file__ else ""
        raise UserError(f"{what} cannot be imported: {place}{type(error).__name__}: {error}") from error
