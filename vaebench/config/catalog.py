"""The yaml files of the config groups: their folder, the comments at their head, the keys that they declare."""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from vaebench import plugins
from vaebench.errors import UserError

__all__ = [
    "Listed",
    "check_own_folder",
    "config_dir",
    "config_folders",
    "default_choices",
    "described",
    "groups",
    "own_keys",
    "yaml_file",
]


@cache
def config_dir() -> Path:
    """Return the folder of the yaml files: in the checkout, or in the installed package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "configs"
    return checkout if (checkout / "train.yaml").is_file() else package / "configs"


def config_folders() -> list[Path]:
    """Return our folder of yaml files, and those of plug-ins.

    Raises:
        UserError: a file of a plug-in has the name of one of ours or of another plug-in, or is in an unknown group.
    """
    others = plugins.config_folders()
    _check_folders(tuple(others.items()))
    return [config_dir(), *others]


@lru_cache(maxsize=16)
def _check_folders(others: tuple[tuple[Path, str], ...]) -> None:
    valid, seen = {"experiment", *default_choices()}, dict.fromkeys(_files(config_dir()), "vaebench")
    for folder, origin in others:
        for file in _files(folder):
            if file.partition("/")[0] not in valid:
                raise UserError(
                    f"{origin}: {folder / file} is in no group of vaebench: move it to {folder}/GROUP, where GROUP is "
                    f"{', '.join(sorted(valid))}"
                )
            if file in seen:
                raise UserError(f"{origin}: {folder / file} has the name of a file of {seen[file]}: rename it")
            seen[file] = origin


def check_own_folder(folder: Path) -> None:
    """Raise UserError if a yaml file in a user's folder has the name of one of ours or of a plug-in.

    hydra would use the other file in its place.
    """
    for other in config_folders():
        found = [file for file in _files(other) if (folder / file).is_file()]
        if found and not (folder / found[0]).samefile(other / found[0]):
            raise UserError(
                f"{folder / found[0]} has the name of {other / found[0]}, which is used in its place: rename it"
            )


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.yaml"))]


class Listed(NamedTuple):
    """A choice of a group: its name, a summary of one line, a command that uses it, and the folder of its yaml file."""

    choice: str
    summary: str
    command: str
    folder: Path


def groups(folders: Sequence[Path]) -> list[str]:
    """Return the config groups in ``folders``, in the order of the defaults list."""
    found = {path.name for folder in folders for path in folder.iterdir() if path.is_dir() and path.name != "hydra"}
    order = list(default_choices())
    return [group for group in order if group in found] + sorted(found - set(order))


@cache
def default_choices() -> dict[str, str]:
    """Return the default choice of each group."""
    text = (config_dir() / "train.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (\w+): (\S+)", text, re.MULTILINE))


def described(group: str, folders: Sequence[Path]) -> list[Listed]:
    """Return the choices of ``group``, sorted. A file in an earlier folder hides files of its name in later folders.

    A file whose name starts with _ holds what other files share, and is no choice.
    """
    listed = {}
    for folder in folders:
        for path in (folder / group).rglob("[!_]*.yaml"):
            choice = path.relative_to(folder / group).with_suffix("").as_posix()
            command, summary = head(path)
            listed.setdefault(choice, Listed(choice, summary, command, folder))
    return [listed[choice] for choice in sorted(listed)]


def head(path: Path) -> tuple[str, str]:
    """Return (command, summary): the first two comment lines of a yaml file, or "".

    A ``# @package`` header, which hydra expects on the first line, is skipped.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    lines = [line.lstrip("# ").strip() for line in lines[:2] if line.startswith("#")]
    command, summary = [*lines, "", ""][:2]
    return command, summary


def yaml_file(group: str, choice: str, folders: Sequence[Path]) -> Path:
    """Return the yaml file of a choice, in the first of ``folders`` that has one. UserError if none has."""
    for folder in folders:
        if (path := folder / group / f"{choice}.yaml").is_file():
            return path
    raise UserError(f"{group}={choice}: no yaml file in {', '.join(map(str, folders))}")


def own_keys(group: str, choice: str, folders: Sequence[Path], *, of: str | None = None) -> Any:
    """Return the settings that the yaml file of a choice declares, with their defaults, as an unresolved DictConfig.

    Settings of the files in its defaults list are included. The DictConfig is shared by all callers: do not change it.

    Args:
        group: the group of the choice.
        choice: its name.
        folders: where to look for the yaml file.
        of: the group of the settings; by default ``group``. Only a file with ``# @package _global_`` has others.
    """
    from omegaconf import DictConfig, OmegaConf

    path = yaml_file(group, choice, folders)
    state = path.stat()
    content, parents, is_global = _parsed(path, state.st_mtime_ns, state.st_size)
    if not isinstance(content, DictConfig):
        raise UserError(f"{group}/{choice}.yaml holds no map of keys to values")
    if is_global:
        content = content.get(of or group, OmegaConf.create({}))
    elif of not in (None, group):
        content = OmegaConf.create({})
    inherited = [own_keys(group, parent, folders, of=of) for parent in parents]
    return OmegaConf.merge(*inherited, content) if inherited or not isinstance(content, DictConfig) else content


@lru_cache(maxsize=1024)
def _parsed(path: Path, changed: int, size: int) -> tuple[Any, list[str], bool]:
    """Return (content, files in its defaults list, whether it sets values in all groups) of a yaml file.

    Args:
        path: the file.
        changed: the time of its last change in ns. With ``size`` it identifies the version of the file in the cache.
        size: in bytes.
    """
    from omegaconf import DictConfig, OmegaConf

    text = path.read_text(encoding="utf-8")
    content = OmegaConf.create(text)
    entries = content.pop("defaults", []) if isinstance(content, DictConfig) else []
    # hydra resolves /experiment/PAPER/_base from the root, and a name without / from the folder of the file.
    files = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]
    parents = [entry.removeprefix(f"/{entry.split('/')[1]}/") if entry.startswith("/") else entry for entry in files]
    return content, parents, re.search(r"^# *@package +_global_", text, re.MULTILINE) is not None
