"""Flags may stand anywhere among the settings: here they are told apart, checked, and put in front."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from vaebench.config.check import build
from vaebench.errors import UserError, did_you_mean

__all__ = [
    "BOARD",
    "COMPARE",
    "DIAGNOSE",
    "EVALUATE",
    "HELP",
    "PICTURE",
    "REPORT",
    "SELFTEST",
    "SHOW",
    "TRAIN",
    "TUNE",
    "Parsed",
    "parse",
    "settings",
    "take",
]

T = TypeVar("T")

HELP = {"-h": "--help", "--help": "--help"}
# Each flag and the name it is known by; a name ending in "=" takes a value, one ending in "?=" may take one.
TRAIN = HELP | {
    "-m": "--multirun",
    "--multirun": "--multirun",
    "-r": "--run",
    "--run": "--run",
    "-c": "--cfg=",
    "--cfg": "--cfg=",
    "--resolve": "--resolve",
    "-p": "--package=",
    "--package": "--package=",
    "-cd": "--config-dir=",
    "--config-dir": "--config-dir=",
    "-cn": "--config-name=",
    "--config-name": "--config-name=",
    "-i": "--info?=",
    "--info": "--info?=",
    "--hydra-help": "--hydra-help",
    "--resume": "--resume=",
}
EVALUATE = HELP | {"-m": "--multirun", "--multirun": "--multirun"}
SELFTEST = HELP | {"--only": "--only=", "--list": "--list", "-o": "--output=", "--output": "--output="}
PICTURE = HELP | {"-o": "--output=", "--output": "--output="}
# --filter and --pair, which may be repeated, are taken out of the words before: see `take`.
COMPARE = HELP | {
    "--format": "--format=",
    "--columns": "--columns=",
    "--diff": "--diff",
    "--quantity": "--quantity=",
    "--unfinished": "--unfinished",
}
REPORT = HELP | {
    "-o": "--output=",
    "--output": "--output=",
    "--title": "--title=",
    "--quantity": "--quantity=",
    "--unfinished": "--unfinished",
}
BOARD = HELP | {"--port": "--port=", "--host": "--host=", "--open": "--open"}
TUNE = HELP | {"--trials": "--trials=", "--prune": "--prune", "--seed": "--seed="}
SHOW = HELP | {"--settings": "--settings"}
DIAGNOSE = HELP
VALUES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
# hydra runs one of these at a time.
MODES = ("--multirun", "--run", "--cfg", "--info")


class Parsed(NamedTuple):
    """``flags``: long name -> value ("" where it has none); ``rest``: all other words, in order."""

    flags: dict[str, str]
    rest: list[str]

    def as_words(self) -> list[str]:
        """Return the words again, flags first."""
        return [f"{flag}={value}" if value else flag for flag, value in self.flags.items()] + self.rest


def parse(words: Sequence[str], known: Mapping[str, str]) -> Parsed:
    """Tell flags from other words. UserError for a flag that is unknown or lacks its value."""
    flags: dict[str, str] = {}
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            rest.append(_home_expanded(word))
            continue
        flag, equals, value = word.partition("=")
        if flag not in known:
            raise UserError(f"unknown flag {flag}{did_you_mean(flag, known)}; --help shows them")
        name = known[flag].rstrip("?=")
        if known[flag].endswith("=") and not equals:
            value = _next_value(queue, name, optional=known[flag].endswith("?="))
        elif equals and not known[flag].endswith("="):
            raise UserError(f"{flag} takes no value")
        flags[name] = _checked(name, value)
    _check_modes(flags)
    return Parsed(flags, rest)


def take(words: Sequence[str], flag: str, count: int) -> tuple[list[list[str]], list[str]]:
    """Return the values of every ``flag A B ...`` with ``count`` words each, and all other words.

    UserError when words are missing behind it.
    """
    taken: list[list[str]] = []
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if name != flag:
            rest.append(word)
            continue
        values = ([value] if equals else []) + queue[: count - bool(equals)]
        if len(values) < count or any(value.startswith("-") for value in values):
            raise UserError(f"{flag} needs {count} value{'s' * (count != 1)}, as in its examples: --help")
        del queue[: count - bool(equals)]
        taken.append(values)
    return taken, rest


def _home_expanded(word: str) -> str:
    """Return ``data_dir=~/x`` with the home folder spelt out; not every shell does, and hydra cannot."""
    key, equals, value = word.partition("=")
    return key + equals + os.path.expanduser(value) if value.startswith("~") else word


def _next_value(queue: list[str], name: str, *, optional: bool) -> str:
    """Take the value of a flag from the words behind it."""
    if optional:
        return queue.pop(0) if queue and queue[0] in VALUES[name] else VALUES[name][0]
    if not queue or queue[0].startswith("-"):
        choices = f": {', '.join(VALUES[name])}" if name in VALUES else ""
        raise UserError(f"{name} needs a value{choices}")
    return queue.pop(0)


def _checked(name: str, value: str) -> str:
    if name in VALUES and value not in VALUES[name]:
        raise UserError(f"{name} must be one of {', '.join(VALUES[name])}, not '{value}'")
    return value


def _check_modes(flags: Mapping[str, str]) -> None:
    """Refuse flags that exclude each other."""
    modes = [mode for mode in MODES if mode in flags]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} exclude each other: choose one")
    if "--resolve" in flags and "--cfg" not in flags:
        raise UserError("--resolve belongs to --cfg job")


def settings(words: Sequence[str], schema: type[T]) -> T:
    """Return ``schema``, a dataclass, with what words such as ``seed=3`` set in it, checked as configurations are.

    Raises:
        UserError: a word without a value, an unknown key, a value that the key does not take.
    """
    known = [f.name for f in fields(schema)]  # pyright: ignore[reportArgumentType]
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"'{word}' is no setting (KEY=VALUE), nor a path that exists; keys: {', '.join(known)}")
        if key not in known:
            raise UserError(f"unknown key {key}{did_you_mean(key, known)}; keys: {', '.join(known)}")
        found[key] = _plain(text)
    return build(schema, found)


def _plain(text: str) -> Any:
    """Return a word as yaml reads it, or as it stands."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
