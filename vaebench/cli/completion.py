"""TAB completion: the command words are ours, what follows them is hydra's or one of our lists."""

import os
from collections.abc import Callable, Sequence

from vaebench.cli.flags import EVALUATE, TRAIN
from vaebench.config.catalog import config_dir, groups

__all__ = ["run"]


def run(words: Sequence[str], commands: Sequence[str]) -> int:
    """Answer ``vaebench -sc query=SHELL`` for the line in $COMP_LINE; hydra answers all but query itself."""
    if not any(word.startswith("query=") for word in words):
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
    if command not in FLAGS:
        return 0
    if current.startswith("-"):
        return offer(
            sorted(flag for flag in TRAIN if flag.startswith("--")) if command == "train" else ["--help"],
            line,
        )
    # Flags between settings stop hydra's parser, and so do the run folders of `evaluate`.
    settings = [word for word in line[1:-1] if "=" in word and not word.startswith("-")]
    os.environ["COMP_LINE"] = " ".join(["vaebench", *settings, current])
    return ask_hydra(command, words)


def offer(choices: Sequence[str], line: Sequence[str]) -> int:
    """Print the choices that begin like the word being typed."""
    current = line[-1] if line else ""
    print(" ".join(choice for choice in choices if choice.startswith(current)))
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
    """Return the words that may follow `vaebench list`."""
    return groups([config_dir()])


def dataset_names() -> list[str]:
    """Return the words that may follow `vaebench data`."""
    from vaebench.datasets.catalog import NAMES

    return [*NAMES, "data_dir=", "binarization=", "split=", "seed=", "--no-download", "--rebuild"]


FLAGS = {"train": TRAIN, "evaluate": EVALUATE}
LISTS: dict[str, Callable[[], list[str]]] = {"list": group_names, "data": dataset_names}
