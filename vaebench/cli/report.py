"""`vaebench report`: a self-contained HTML page about many runs."""

from pathlib import Path

from vaebench.cli.flags import REPORT
from vaebench.cli.selection import Selection, comparison_options, nothing_to_compare, selection
from vaebench.errors import UserError

__all__ = ["run"]

HELP = """usage: vaebench report [RUN ...] [-o FILE] [FLAGS]

Write an HTML page with tables, learning curves, pictures and the command of every run. RUN is a run folder or a folder
of runs (default: outputs). The page needs no network, no script and no other file.

flags:
  -o FILE, --output FILE    the file to write (default: report.html)
  --title TEXT              the title of the page
  --filter CONDITION        as in `vaebench compare`; repeat it to require several conditions
  --quantity NAME           show results of another quantity than log p(x)
  --unfinished              include runs that did not finish in the tables, marked *

examples:
  vaebench report
  vaebench report outputs/mnist -o mnist.html --title "Hierarchical posteriors on MNIST"
  vaebench report --filter encoder=gaussian,hvm --filter 'k>=5'
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench report <words>`` and return the exit code."""
    chosen = selection(words, REPORT, HELP)
    output = Path(chosen.flags.get("--output", "report.html")).expanduser()
    if output.is_dir():
        raise UserError(f"{output} is a folder: give a file name, for example -o {output / 'report.html'}")
    text = page_of(chosen)
    from vaebench.records.files import write_whole

    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, text.encode())
    print(f"{output.resolve()} ({len(text) / 1e6:.1f} MB)")
    return 0


def page_of(chosen: Selection) -> str:
    """Return the page. UserError when no run meets the filters."""
    from vaebench.report.comparison import compare
    from vaebench.report.page import page

    comparison = compare(chosen.paths, **comparison_options(chosen), curves=True)
    if not comparison.selected:
        raise nothing_to_compare(comparison)
    return page(comparison.selected, comparison, title=chosen.flags.get("--title"))
