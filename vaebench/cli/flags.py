"""Separate flags from settings, validate them, and move the flags to the front."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from vaebench.config.check import build
from vaebench.config.words import is_text, key_value
from vaebench.errors import UserError, did_you_mean
from vaebench.typed import clipped

__all__ = [
    "BOARD",
    "CHECK",
    "COMPARE",
    "CURVES",
    "DATA",
    "DIAGNOSE",
    "ENCODE",
    "EVALUATE",
    "EXPORT",
    "HELP",
    "NEW",
    "PICTURE",
    "PLOT",
    "REPORT",
    "REPRODUCE",
    "SELFTEST",
    "SHOW",
    "TRAIN",
    "TUNE",
    "Parsed",
    "parse",
    "path_words",
    "settings",
    "take",
    "whole",
]

T = TypeVar("T")


def flags(*specs: str) -> dict[str, str]:
    """Return a map from each spelling of a flag to its long name; ``--help`` is always among them.

    A spec is the long name, with a short one before it if there is one, for example ``-o --output=``. A long name takes
    a value if it ends in "=", and an optional value if it ends in "?=".
    """
    spellings = [spec.split() for spec in ("-h --help", *specs)]
    return {word.rstrip("?="): words[-1] for words in spellings for word in words}


HELP = flags()
TRAIN = flags(
    "-m --multirun",
    "-r --run",
    "-c --cfg=",
    "--resolve",
    "-p --package=",
    "-cd --config-dir=",
    "-cn --config-name=",
    "-i --info?=",
    "--hydra-help",
    "--resume=",
    "--fresh",
    "--dry-run",
)
EVALUATE = flags("-m --multirun")
DATA = flags("--no-download", "--rebuild")
DIAGNOSE = HELP
CHECK = HELP
NEW = flags("--folder=")
ENCODE = flags("-o --output=", "--projector")
SELFTEST = flags("--only=", "--list", "-o --output=")
PICTURE = flags("-o --output=")
# --filter and --pair may be repeated: `take` removes them before `parse`.
COMPARE = flags("--format=", "--columns=", "--diff", "--baseline=", "--quantity=", "--unfinished")
CURVES = flags("-o --output=")
EXPORT = flags("-o --output=")
PLOT = flags("-o --output=", "--baseline=")
REPORT = flags("-o --output=", "--title=", "--baseline=", "--methods=", "--charts=", "--quantity=", "--unfinished")
REPRODUCE = flags("--list", "--table", "--dry-run", "--format=", "-o --output=")
BOARD = flags("--port=", "--host=", "--open", "--names=")
TUNE = flags("--trials=", "--prune", "--seed=")
SHOW = flags("--settings")
DATA = flags("--no-download", "--rebuild")
VALUES = {
    "--cfg": ("job", "hydra", "all"),
    "--names": ("settings", "folder"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
# hydra runs one of these at a time.
MODES = ("--multirun", "--run", "--cfg", "--info")


class Parsed(NamedTuple):
    """``flags``: long name -> value ("" if it has none); ``rest``: all other words, in order."""

    flags: dict[str, str]
    rest: list[str]

    def as_words(self) -> list[str]:
        """Return all words, flags first."""
        return [f"{flag}={value}" if value else flag for flag, value in self.flags.items()] + self.rest


def parse(words: Sequence[str], known: Mapping[str, str], help_text: str = "") -> Parsed:
    """Separate flags from other words; with ``--help`` among them, print ``help_text`` and exit.

    Raises:
        SystemExit: the help text was printed.
        UserError: a flag is unknown, lacks its value, or contradicts another one.
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            rest.append(_home_expanded(word))
            continue
        flag, value = key_value(word)
        if flag not in known:
            flag = clipped(flag)
            raise UserError(f"unknown flag {flag}{did_you_mean(flag, known)}; --help lists the flags")
        name, takes_value = known[flag].rstrip("?="), known[flag].endswith("=")
        if value is not None and not takes_value:
            raise UserError(f"{flag} takes no value, got '{clipped(value)}'")
        if value is None and takes_value:
            value = _next_value(queue, name, optional=known[flag].endswith("?="))
        found[name] = _checked(name, value or "")
    _check_modes(found)
    if help_text and "--help" in found:
        print(help_text, end="")
        raise SystemExit(0)
    return Parsed(found, rest)


def take(words: Sequence[str], flag: str, count: int) -> tuple[list[list[str]], list[str]]:
    """Return the values of every ``flag A B ...``, which takes ``count`` words, and all other words.

    Raises:
        UserError: there are fewer words after the flag.
    """
    taken: list[list[str]] = []
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, first = key_value(word)
        if name != flag:
            rest.append(word)
            continue
        values = [] if first is None else [first]
        while len(values) < count and queue and not queue[0].startswith("-"):
            values.append(queue.pop(0))
        if len(values) < count:
            raise UserError(f"{flag} needs {count} value{'s' * (count != 1)}; --help has an example")
        taken.append(values)
    return taken, rest


def path_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (paths, settings): a word with "=" is a setting, unless a file or folder has this name."""
    paths = [word for word in words if key_value(word)[1] is None or os.path.exists(word)]
    return paths, [word for word in words if word not in paths]


def whole(text: str, flag: str, least: int, most: int = 2**32 - 1) -> int:
    """Return the value of a flag as an integer. UserError unless it is one from ``least`` to ``most``."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise UserError(f"{flag} must be an integer from {least} to {most}, got '{clipped(text)}'")
    return int(text)


def _home_expanded(word: str) -> str:
    """Return ``data_dir=~/x`` with the home folder in place of ``~``: not every shell does this, and hydra does not."""
    key, value = key_value(word)
    return f"{key}={os.path.expanduser(value)}" if value and value.startswith("~") else word


def _next_value(queue: list[str], name: str, *, optional: bool) -> str:
    """Remove the value of a flag from the words after it."""
    if optional:
        return queue.pop(0) if queue and queue[0] in VALUES[name] else VALUES[name][0]
    if not queue or queue[0].startswith("-"):
        choices = f": {', '.join(VALUES[name])}" if name in VALUES else ""
        raise UserError(f"{name} needs a value{choices}")
    return queue.pop(0)


def _checked(name: str, value: str) -> str:
    if name in VALUES and value not in VALUES[name]:
        raise UserError(f"{name} must be one of {', '.join(VALUES[name])}, got '{clipped(value)}'")
    return value


def _check_modes(flags: Mapping[str, str]) -> None:
    """Refuse flags that exclude each other."""
    modes = [mode for mode in MODES if mode in flags]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} exclude each other: choose one")
    if "--resolve" in flags and "--cfg" not in flags:
        raise UserError("--resolve needs --cfg job")


def settings(words: Sequence[str], schema: type[T]) -> T:
    """Return the dataclass ``schema`` with the fields that words such as ``seed=3`` set.

    Raises:
        UserError: a word has no value, its key is unknown, or its value is invalid.
    """
    known = [f.name for f in fields(schema)]  # pyright: ignore[reportArgumentType]
    found: dict[str, Any] = {}
    for word in words:
        key, text = key_value(word)
        if text is None:
            raise UserError(f"'{clipped(word)}' is neither KEY=VALUE nor an existing path; keys: {', '.join(known)}")
        if key not in known:
            key = clipped(key)
            raise UserError(f"unknown key {key}{did_you_mean(key, known)}; keys: {', '.join(known)}")
        found[key] = text if is_text(key, text) else _plain(text)
    return build(schema, found)


def _plain(text: str) -> Any:
    """Return the yaml value of a word, or the word itself if it is not yaml."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # for example a date such as 2026-02-31
        return text
