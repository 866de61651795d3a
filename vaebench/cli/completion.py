"""TAB completion: the command words are ours, what follows them is hydra's or one of our lists."""

import os
import re
from collections.abc import Callable, Sequence

from vaebench.cli.flags import BOARD, COMPARE, EVALUATE, REPORT, SHOW, TRAIN, TUNE
from vaebench.config.catalog import config_dir, described, groups
from vaebench.errors import UserError
from vaebench.selftest import CHECKS

__all__ = ["run"]

REQUEST = re.compile("(install|uninstall|query)=(bash|zsh|fish)")


def run(words: Sequence[str], commands: Sequence[str]) -> int:
    """Answer ``vaebench -sc query=SHELL`` for the line in $COMP_LINE; hydra answers all but query itself."""
    if len(words) != 1 or not REQUEST.fullmatch(words[0]):
        raise UserError("-sc takes one of install=SHELL, uninstall=SHELL and query=SHELL: bash, zsh or fish")
    if not words[0].startswith("query="):
        return ask_hydra("train", words)
    # The first word is the program; the last one, "" after a space, is what the user is typing.
    line = os.environ.get("COMP_LINE", "").split()[1:]
    if os.environ.get("COMP_LINE", "").endswith(" "):
        line.append("")
    if len(line) < 2:
        return offer([*commands, "--help", "--version"], line)
    command, current = line[0], line[-1]
    if command in LISTS:
        return offer(LISTS[command](), line)
    if command not in FLAGS or FLAGS[command].get(line[-2], "").endswith("="):
        # Nothing of ours: the shell offers file names.
        return 0
    if current.startswith("-"):
        return offer(sorted(flag for flag in FLAGS[command] if flag.startswith("--")), line)
    if current.partition("=")[0] in group_names() and "=" in current:
        return offer(choices_of(current.partition("=")[0]), line)
    if command not in HYDRA:
        return 0
    # Flags between settings stop hydra's parser, and so do the run folders of `evaluate`.
    settings = [word for word in line[1:-1] if "=" in word and not word.startswith("-")]
    os.environ["COMP_LINE"] = " ".join(["vaebench", *settings, current])
    return ask_hydra(command, words)


def choices_of(group: str) -> list[str]:
    """Return every ``group=choice``, those in subfolders too, where hydra's own completion stops."""
    return [f"{group}={listed.choice}" for listed in described(group, [config_dir()])]


def offer(choices: Sequence[str], line: Sequence[str]) -> int:
    """Print the choices that begin like the word being typed."""
    current = line[-1] if line else ""
    print("\n".join(choice for choice in choices if choice.startswith(current)))
    return 0


def ask_hydra(config_name: str, words: Sequence[str]) -> int:
    """Let hydra's own completion answer."""
    from vaebench.cli.hydra_app import start

    start(no_job, config_name, ["-sc", *words])
    return 0


def no_job(cfg: object) -> None:
    """Stand in for the task function, which completion never calls."""
    raise AssertionError(f"completion ran a job: {cfg}")


def group_names() -> list[str]:
    """Return the config groups."""
    return groups([config_dir()])


def list_words() -> list[str]:
    """Return the words that may follow `vaebench list`."""
    return [*group_names(), "runs"]


def dataset_names() -> list[str]:
    """Return the words that may follow `vaebench data`."""
    from vaebench.datasets.catalog import NAMES

    return [*NAMES, "data_dir=", "binarization=", "split=", "seed=", "--no-download", "--rebuild"]


def check_names() -> list[str]:
    """Return the words that may follow `vaebench selftest`."""
    return [*CHECKS, "device=", "threads=", "seed=", "--only", "--list", "--output"]


def diagnosis_keys() -> list[str]:
    """Return the settings of `vaebench diagnose`; for all else that may follow it the shell offers file names."""
    from dataclasses import fields

    from vaebench.config.diagnosis import Diagnosis

    return [f"{field.name}=" for field in fields(Diagnosis)]


# The commands whose other words are hydra's.
HYDRA = ("train", "tune", "evaluate")
FLAGS = {
    "train": TRAIN,
    "tune": TUNE,
    "evaluate": EVALUATE,
    "compare": COMPARE | {"--filter": "--filter=", "--pair": "--pair="},
    "board": BOARD | {"--filter": "--filter="},
    "report": REPORT | {"--filter": "--filter="},
    "show": SHOW,
}
LISTS: dict[str, Callable[[], list[str]]] = {
    "list": list_words,
    "data": dataset_names,
    "diagnose": diagnosis_keys,
    "selftest": check_names,
}
