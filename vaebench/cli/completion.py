"""TAB completion of commands, flags and settings. hydra completes the keys of a configuration."""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from vaebench import plugins
from vaebench.cli.check import KINDS
from vaebench.cli.data import DataSettings
from vaebench.cli.explain import every_setting
from vaebench.cli.flags import BOARD, COMPARE, EVALUATE, NEW, REPORT, REPRODUCE, SHOW, TRAIN, TUNE
from vaebench.cli.reproduce import papers
from vaebench.cli.selftest import SelftestSettings
from vaebench.config.catalog import config_folders, described, groups
from vaebench.config.diagnosis import Diagnosis
from vaebench.config.encoding import Encoding
from vaebench.config.words import key_value
from vaebench.datasets.catalog import NAMES
from vaebench.errors import UserError
from vaebench.selftest import CHECKS

__all__ = ["run"]

PLAIN = re.compile(r"(?![-~])[\w.,:+@%/-]*")
"""A path that no shell changes, and that is neither a flag nor a setting."""
REQUEST = re.compile("(install|uninstall|query)=(bash|zsh|fish)")


def run(words: Sequence[str], commands: Sequence[str]) -> int:
    """Answer ``vaebench -sc query=SHELL`` for the line in $COMP_LINE, and let hydra answer install and uninstall."""
    if len(words) != 1 or not REQUEST.fullmatch(words[0]):
        raise UserError("-sc needs install=SHELL, uninstall=SHELL or query=SHELL, with SHELL bash, zsh or fish")
    if not words[0].startswith("query="):
        return ask_hydra("train", words)
    # Without the program's name. The last word is the one that the user is typing, "" after a space.
    line = os.environ.get("COMP_LINE", "").split()[1:]
    if os.environ.get("COMP_LINE", "").endswith(" "):
        line.append("")
    # Only for their yaml files: no file is imported while a user types.
    named = [value for before, word in itertools.pairwise(line) if (value := plugin_in(before, word))]
    with contextlib.suppress(UserError), plugins.using(named):
        return answer(line, words, commands)
    return 0


def plugin_in(before: str, word: str) -> str | None:
    """Return the value of ``--plugin`` in two words of a line; None if there is none."""
    if before == "--plugin":
        return word
    key, value = key_value(word)
    return value if key == "--plugin" else None


def answer(line: list[str], words: Sequence[str], commands: Sequence[str]) -> int:
    """Print the completions of the last word in ``line``."""
    if len(line) < 2:
        return offer([*commands, "--help", "--version"], line)
    command, current = line[0], line[-1]
    if expects_run(command, line[1:-1]) and (found := folders(current)):
        return offer(found, line)
    if command in LISTS:
        return offer(LISTS[command](), line)
    if line[-2] == "--plugin" or command not in FLAGS or FLAGS[command].get(line[-2], "").endswith("="):
        # Without an answer the shell offers file names.
        return 0
    if current.startswith("-"):
        return offer(sorted({"--plugin", *(flag for flag in FLAGS[command] if flag.startswith("--"))}), line)
    group, value = key_value(current)
    if value is not None and group in groups(config_folders()):
        return offer(choices_of(group), line)
    if command not in HYDRA:
        return 0
    # Only the settings: hydra's parser stops at a flag or a run folder.
    settings = [word for word in line[1:-1] if "=" in word and not word.lstrip("'\"").startswith(("-", "zip("))]
    os.environ["COMP_LINE"] = " ".join(["vaebench", *settings, current])
    return ask_hydra(command, words)


def expects_run(command: str, before: Sequence[str]) -> bool:
    """Return whether a run may follow the words ``before`` of a command."""
    if command == "train":
        return before[-1:] == ["--resume"]
    if command == "list":
        return before[:1] == ["runs"]
    last = before[-1] if before else ""
    return command in RUNS and (not last.startswith("-") or last in ("--unfinished", "--diff"))


def folders(current: str) -> list[str]:
    """Return the folders that start with ``current``: of a run folder the path, of any other folder with a slash.

    Only one folder is read, and nothing in a run. Names with other letters are left out: bash expands the words that
    it is offered, so that a name such as ``$(...)`` would be run as a command.
    """
    if not PLAIN.fullmatch(current):
        return []
    slash = current.rfind("/") + 1
    start, name = current[:slash], current[slash:]
    found = []
    with contextlib.suppress(OSError), os.scandir(start or ".") as entries:
        for entry in entries:
            hidden = entry.name.startswith(".") and not name.startswith(".")
            if entry.name.startswith(name) and not hidden and PLAIN.fullmatch(entry.name) and entry.is_dir():
                is_run = os.path.isfile(os.path.join(entry.path, "config.yaml"))
                found.append(f"{start}{entry.name}{'' if is_run else '/'}")
    return sorted(found)


def choices_of(group: str) -> list[str]:
    """Return every ``group=choice``; hydra's own completion leaves out choices in subfolders."""
    return [f"{group}={listed.choice}" for listed in described(group, config_folders())]


def offer(choices: Sequence[str], line: Sequence[str]) -> int:
    """Print the choices that start with the word that the user is typing."""
    current = line[-1] if line else ""
    print("\n".join(choice for choice in choices if choice.startswith(current)))
    return 0


def ask_hydra(config_name: str, words: Sequence[str]) -> int:
    """Let hydra's own completion answer."""
    from vaebench.cli.hydra_app import start

    start(no_job, config_name, ["-sc", *words])
    return 0


def no_job(cfg: object) -> None:
    """Task function for hydra; completion never calls it."""
    raise AssertionError(f"completion ran a job: {cfg}")


def dataset_choices() -> list[str]:
    """Return the names of datasets: ours, and then those of plug-ins."""
    return list(dict.fromkeys([*NAMES, *(listed.choice for listed in described("dataset", config_folders()))]))


def reproduce_words() -> list[str]:
    """Return the papers, their rows and the flags of `vaebench reproduce`."""
    known = papers()
    rows = dict.fromkeys(row for rows in known.values() for row in rows)
    return [*known, *rows, "budget=", "seed=", *(flag for flag in REPRODUCE if flag.startswith("--"))]


def keys_of(schema: Any) -> list[str]:
    """Return the settings of a command; without a match the shell offers file names."""
    return [f"{field.name}=" for field in fields(schema)]


# Commands on runs.
RUNS = ("evaluate", "diagnose", "compare", "report", "board", "show", "encode")
RUNS += ("sample", "reconstruct", "interpolate", "traverse")
# Commands whose settings hydra completes.
HYDRA = ("train", "tune", "evaluate")
FLAGS = {
    "train": TRAIN,
    "new": NEW,
    "tune": TUNE,
    "evaluate": EVALUATE,
    "compare": COMPARE | {"--filter": "--filter=", "--pair": "--pair="},
    "board": BOARD | {"--filter": "--filter="},
    "report": REPORT | {"--filter": "--filter="},
    "show": SHOW,
}
LISTS: dict[str, Callable[[], list[str]]] = {
    "list": lambda: [*groups(config_folders()), "runs"],
    "explain": lambda: [*groups(config_folders()), *(setting.key for setting in every_setting(config_folders()))],
    "data": lambda: [*dataset_choices(), *keys_of(DataSettings), "--no-download", "--rebuild"],
    "diagnose": lambda: keys_of(Diagnosis),
    "check": lambda: [choice for kind in KINDS for choice in choices_of(kind)],
    "encode": lambda: [*keys_of(Encoding), "--output", "--projector"],
    "reproduce": reproduce_words,
    "selftest": lambda: [*CHECKS, *keys_of(SelftestSettings), "--only", "--list", "--output"],
}
