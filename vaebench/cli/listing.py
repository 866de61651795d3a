"""`vaebench list`: what can be chosen; `vaebench list runs`: what was run."""

from pathlib import Path

from vaebench.cli.flags import HELP as HELP_FLAGS
from vaebench.cli.flags import TRAIN, parse, take
from vaebench.config.catalog import config_dir, default_choices, described, groups
from vaebench.errors import UserError, did_you_mean

__all__ = ["run"]

HELP = """usage: vaebench list [GROUP] [--config-dir DIR]
       vaebench list runs [FOLDER ...] [--filter CONDITION]

Show the choices of every config group, or of one, with a line about each; * marks the default. `vaebench list runs`
shows the runs in a folder (default: outputs): state, progress, when something was last recorded, the latest result.

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
    parsed = parse(words, flags)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    own = [Path(parsed.flags["--config-dir"])] if "--config-dir" in parsed.flags else []
    if own and not own[0].is_dir():
        raise UserError(f"--config-dir: there is no folder {own[0]}")
    folders = [*own, config_dir()]
    known = groups(folders)
    for group in parsed.rest:
        if group not in known:
            hint = did_you_mean(group, known)
            raise UserError(f"there is no group '{group}'{hint}; groups: {', '.join(known)}")
    print("\n\n".join(section(group, folders) for group in parsed.rest or known))
    return 0


def section(group: str, folders: list[Path]) -> str:
    """Return the choices of one group, a line each."""
    choices = described(group, folders)
    width = max((len(listed.choice) for listed in choices), default=0)
    default = default_choices().get(group)
    lines = [
        f"  {'*' if listed.choice == default else ' '} {listed.choice:<{width}}  {listed.summary}".rstrip()
        for listed in choices
    ]
    return "\n".join([group, *lines])


def list_runs(words: list[str]) -> int:
    """Show the runs at or below the folders in ``words``."""
    filters, words = take(words, "--filter", 1)
    parsed = parse(words, HELP_FLAGS)
    if parsed.flags:
        print(HELP, end="")
        return 0
    from vaebench.cli.compare import DEFAULT_FOLDER
    from vaebench.report.filters import chosen
    from vaebench.report.overview import overview
    from vaebench.report.runs import read_runs

    paths = parsed.rest or [DEFAULT_FOLDER]
    runs, damaged = read_runs(paths)
    kept = chosen(runs, [condition for (condition,) in filters])
    base = Path(paths[0]) if len(paths) == 1 else Path()
    print("\n".join(overview(kept, damaged, base)))
    return 0
