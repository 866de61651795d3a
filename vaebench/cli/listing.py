"""`vaebench list`: the choices of the config groups; `vaebench list runs`: the runs in a folder."""

from pathlib import Path

from vaebench import plugins
from vaebench.cli.flags import HELP as HELP_FLAGS
from vaebench.cli.flags import TRAIN, parse
from vaebench.cli.selection import selection
from vaebench.config.catalog import config_dir, config_folders, default_choices, described, groups
from vaebench.errors import UserError, did_you_mean
from vaebench.records.text import table

__all__ = ["run"]

HELP = """usage: vaebench list [GROUP] [--config-dir DIR] [--plugin FILE.py|MODULE]
       vaebench list runs [FOLDER ...] [--filter CONDITION]

List the choices of all config groups, or of one group, with a short description; * marks the default, and [...] the
package and version, file or folder of a choice that is not part of vaebench.
`vaebench list runs` lists the runs in a folder (default: outputs) with state, progress and result. All results shown
have the same conditions, named above the table; `vaebench compare` shows the others. `early` in the epoch column marks
a run that stopped early.

examples:
  vaebench list runs
  vaebench list runs outputs/mnist --filter state=failed
  vaebench list
  vaebench list encoder
  vaebench train encoder=iwhvi --cfg job    # the settings of a choice
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
    folders = [*own, *config_folders()]
    known = groups(folders)
    for group in parsed.rest:
        if group not in known:
            hint = did_you_mean(group, known)
            raise UserError(f"there is no group '{group}'{hint}; groups: {', '.join(known)}")
    print("\n\n".join(choices_of(group, folders) for group in parsed.rest or known))
    return 0


def choices_of(group: str, folders: list[Path]) -> str:
    """Return the choices of one group with their descriptions."""
    default = default_choices().get(group)
    origins = {folder: origin(word) for folder, word in plugins.config_folders().items()}
    rows = []
    for c in described(group, folders):
        place = origins.get(c.folder, "" if c.folder == config_dir() else str(c.folder))
        summary = f"{c.summary} [{place}]" if place else c.summary
        rows.append((f"  {'*' if c.choice == default else ' '} {c.choice}", summary))
    choices = table(("choice", "summary"), rows, wrap="summary", keep=("summary",), titles=False)
    return f"{group}\n{choices}"


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
