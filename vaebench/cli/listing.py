"""`vaebench list`: the choices of the config groups; `vaebench list runs`: the runs in a folder."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vaebench import plugins
from vaebench.cli.flags import HELP as HELP_FLAGS
from vaebench.cli.flags import TRAIN, parse
from vaebench.cli.selection import selection
from vaebench.config.catalog import (
    check_own_folder,
    config_dir,
    config_folders,
    default_choices,
    described,
    groups,
    head,
)
from vaebench.config.explain import no_such_choice
from vaebench.config.meanings import of_choice
from vaebench.errors import UserError, did_you_mean
from vaebench.records.text import encodable, table, wrapped

__all__ = ["choice_text", "choices_of", "hydra_types", "run"]

HELP = """usage: vaebench list [GROUP [CHOICE ...]] [--config-dir DIR] [--plugin FILE.py|MODULE]
       vaebench list runs [FOLDER ...] [--filter CONDITION]

List the choices of all config groups, or of one group, with a short description; * marks the default, and [...] the
package and version, file or folder of a choice that is not part of vaebench.
With a choice, print its settings: default, type, range and meaning.
`vaebench list runs` lists the runs in a folder (default: outputs) with state, progress and result. All results shown
have the same conditions, named above the table; `vaebench compare` shows the others. `early` in the epoch column marks
a run that stopped early.

examples:
  vaebench list runs
  vaebench list runs outputs/mnist --filter state=failed
  vaebench list
  vaebench list encoder
  vaebench list encoder iwhvi     # the settings of a choice, with their meaning
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench list <words>`` and return the exit code."""
    if words and words[0] == "runs":
        return list_runs(words[1:])
    flags = HELP_FLAGS | {flag: TRAIN[flag] for flag in ("-cd", "--config-dir")}
    parsed = parse(words, flags, HELP)
    own = [Path(parsed.flags["--config-dir"])] if "--config-dir" in parsed.flags else []
    if own and not own[0].is_dir():
        raise UserError(f"--config-dir: there is no folder {own[0]}")
    for folder in own:
        check_own_folder(folder)
    folders = [*own, *config_folders()]
    known = groups(folders)
    print("\n\n".join(texts(parsed.rest or known, known, folders)))
    return 0


def texts(words: Sequence[str], known: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return the text for each group in ``words``, or for each choice that follows its group.

    Raises:
        UserError: a word is neither a group nor a choice of the group before it.
    """
    found: list[str] = []
    group = ""
    for index, word in enumerate(words):
        if word in known:
            group = word
            if index + 1 == len(words) or words[index + 1] in known:
                found.append(choices_of(group, folders))
        elif group:
            found.append(choice_text(group, word, folders))
        else:
            hint = did_you_mean(word, known)
            raise UserError(f"there is no group '{word}'{hint}; groups: {', '.join(known)}")
    return found


def choices_of(group: str, folders: Sequence[Path]) -> str:
    """Return the choices of one group with their descriptions."""
    default = default_choices().get(group)
    origins = {folder: origin(word) for folder, word in plugins.config_folders().items()}
    rows: list[tuple[str, str] | str] = []
    for c in described(group, folders):
        paper, _, name = c.choice.rpartition("/")
        shared = c.folder / group / paper / "_base.yaml"
        heading = f"{paper}/...   {head(shared)[0]}" if shared.is_file() else f"{paper}/..."
        if paper and heading not in rows:
            rows.append(heading)
        place = origins.get(c.folder, "" if c.folder == config_dir() else str(c.folder))
        summary = f"{c.summary} [{place}]" if place else c.summary
        rows.append((f"  {'*' if c.choice == default else ' '} {'  ' if paper else ''}{name}", summary))
    choices = table(("choice", "summary"), rows, wrap="summary", keep=("summary",), titles=False)
    return f"{group}\n{choices}"


def choice_text(group: str, choice: str, folders: Sequence[Path]) -> str:
    """Return a choice with its settings.

    Raises:
        UserError: the group has no such choice.
    """
    listed = next((c for c in described(group, folders) if c.choice == choice), None)
    if listed is None:
        raise no_such_choice(group, choice, folders)
    lines = [f"{group}={choice}", wrapped(listed.summary, first="  "), f"  {listed.command}"]
    for setting in of_choice(group, choice, folders, hydra_types()):
        (default,) = setting.defaults
        lines += [
            wrapped(f"  {setting.key}={default}   {setting.values}", rest=" " * 6),
            wrapped(setting.meaning, first=" " * 6, rest=" " * 6),
        ]
    return encodable("\n".join(filter(None, lines)))


@cache
def hydra_types() -> dict[str, Any]:
    """Return the type of each setting of a launcher and of the sweeper."""
    from vaebench.cli.sweep.settings import SETTINGS

    return {f"hydra.{key}": kind for key, kind in SETTINGS.items()}


def origin(word: str) -> str:
    """Return the name of a plug-in's file, or its package and version."""
    return Path(word).name if word.endswith(".py") else word


def list_runs(words: list[str]) -> int:
    """Print the runs at or below the folders in ``words``."""
    chosen = selection(words, HELP_FLAGS, HELP)
    from vaebench.report.filters import matching_runs
    from vaebench.report.overview import overview
    from vaebench.report.runs import read_runs

    runs, damaged = read_runs(chosen.paths)
    base = Path(chosen.paths[0]) if len(chosen.paths) == 1 else Path()
    print(overview(matching_runs(runs, chosen.filters), damaged, base))
    return 0
