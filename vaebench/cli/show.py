"""`vaebench show`: the summary of a run."""

from functools import partial
from pathlib import Path

from vaebench.cli.each_run import RunJob, each_run
from vaebench.cli.flags import SHOW, parse
from vaebench.errors import UserError

__all__ = ["run"]

HELP = """usage: vaebench show RUN [RUN ...] [--settings]

Show the summary of a run: settings, command, data, machine, time, learning curve, results and files.

flags:
  --settings    show every setting that defines the model

examples:
  vaebench show outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d
  vaebench list runs                                       # the runs in outputs/
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench show <words>`` and return the exit code."""
    parsed = parse(words, SHOW, HELP)
    if not parsed.rest:
        raise UserError("missing RUN: give a run folder; `vaebench list runs` lists them")
    from vaebench.records import RunFolder
    from vaebench.report.run_summary import run_summary
    from vaebench.report.runs import Run

    def show(path: Path) -> None:
        text = run_summary(Run.read(RunFolder.open(path)), every_setting="--settings" in parsed.flags)
        print(text if path == paths[0] else f"\n{text}", flush=True)

    paths = [Path(path) for path in parsed.rest]
    return each_run([RunJob(path, [], partial(show, path)) for path in paths], "summaries")
