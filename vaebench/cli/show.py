"""`vaebench show`: one run's story."""

import sys
from pathlib import Path
from typing import Literal

from vaebench.cli.flags import SHOW, parse
from vaebench.errors import UserError

__all__ = ["run"]

HELP = """usage: vaebench show RUN [RUN ...] [--settings]

Show what a run trained, with which command, on which data and machine, for how long, and what came of it.

flags:
  --settings    every setting that defines the model too

examples:
  vaebench show outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench list runs                                       # which runs there are
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench show <words>`` and return the exit code."""
    parsed = parse(words, SHOW)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    if not parsed.rest:
        raise UserError("which run? `vaebench show RUN`; `vaebench list runs` shows them")
    from vaebench.records import RunFolder
    from vaebench.report.runs import Run
    from vaebench.report.story import story

    runs = [Run.read(RunFolder.open(Path(path))) for path in parsed.rest]
    texts = [story(run, letters=letters(), every_setting="--settings" in parsed.flags) for run in runs]
    print("\n\n".join(texts))
    return 0


def letters() -> Literal["braille", "ascii"]:
    """Return what the terminal can show."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return "braille" if encoding.startswith("utf") else "ascii"
