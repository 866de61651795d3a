"""`vaebench report`: one self-contained page about many runs."""

from pathlib import Path

from vaebench.cli.flags import REPORT, parse, take
from vaebench.errors import UserError

__all__ = ["run"]

HELP = """usage: vaebench report [RUN ...] [-o FILE] [FLAGS]

Write one page with tables, learning curves, pictures and every run's command. RUN is a run folder or a folder of runs
(default: outputs). The page needs no network, no script and no other file.

flags:
  -o FILE, --output FILE    where to (report.html)
  --title TEXT              of the page
  --filter CONDITION        as in `vaebench compare`; may be repeated
  --quantity NAME           results of another quantity than log p(x)
  --unfinished              runs that did not finish into the tables too, marked *

examples:
  vaebench report
  vaebench report outputs/mnist -o mnist.html --title "Hierarchical posteriors on MNIST"
  vaebench report --filter encoder=gaussian,hvm --filter 'k>=5'
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench report <words>`` and return the exit code."""
    filters, words = take(words, "--filter", 1)
    parsed = parse(words, REPORT)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    output = Path(parsed.flags.get("--output", "report.html")).expanduser()
    if output.is_dir():
        raise UserError(f"{output} is a folder: name a file, as in -o {output / 'report.html'}")
    text = made(parsed.rest, [condition for (condition,) in filters], parsed.flags)
    from vaebench.records.files import write_whole

    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, text.encode())
    print(f"{output.resolve()} ({len(text) / 1e6:.1f} MB)")
    return 0


def made(paths: list[str], filters: list[str], flags: dict[str, str]) -> str:
    """Return the page. UserError when no run is left."""
    from vaebench.cli.compare import DEFAULT_FOLDER, nothing_to_compare
    from vaebench.report.comparison import compare_runs
    from vaebench.report.filters import chosen
    from vaebench.report.page import page
    from vaebench.report.runs import read_runs

    runs, damaged = read_runs(paths or [DEFAULT_FOLDER])
    comparison = compare_runs(
        runs,
        damaged,
        filters=filters,
        quantity=flags.get("--quantity", "log p(x)"),
        unfinished="--unfinished" in flags,
    )
    kept = chosen(runs, filters)
    if not kept:
        raise nothing_to_compare(comparison)
    return page(kept, comparison, title=flags.get("--title"))
