"""`vaebench curves`: the learning curves of runs as one table."""

import sys
from pathlib import Path

from vaebench.cli.flags import CURVES
from vaebench.cli.selection import selection

__all__ = ["run"]

HELP = """usage: vaebench curves [RUN ...] [-o FILE.csv] [--filter CONDITION]

Write every recorded number of the runs as csv, one in each row: run, method, seed, step, epoch, seconds (of training),
quantity, direction (of its relation to log p(x); empty for other quantities), value. RUN is a run folder or a folder of
runs (default: outputs).

flags:
  -o FILE, --output FILE    the file to write (default: print the table)
  --filter CONDITION        as in `vaebench compare`; repeat it to require several conditions

examples:
  vaebench curves -o curves.csv
  vaebench curves outputs/mnist5k --filter encoder=gaussian,hvm -o curves.csv
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench curves <words>`` and return the exit code."""
    chosen = selection(words, CURVES, HELP)
    from vaebench.records.files import write_whole
    from vaebench.report.filters import matching_runs
    from vaebench.report.frames import curves_frame
    from vaebench.report.runs import read_runs

    runs, unreadable = read_runs(chosen.paths)
    for folder, reason in unreadable:
        print(f"left out: {folder}: {reason}", file=sys.stderr)
    text = curves_frame(matching_runs(runs, chosen.filters)).to_csv(index=False, lineterminator="\n")
    if "--output" not in chosen.flags:
        print(text, end="")
        return 0
    output = Path(chosen.flags["--output"]).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, text.encode())
    print(output.resolve())
    return 0
