"""`vaebench report`: a self-contained HTML page about many runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from vaebench.cli.flags import REPORT, whole
from vaebench.cli.selection import Selection, comparison_options, nothing_to_compare, selection
from vaebench.errors import UserError

if TYPE_CHECKING:
    from vaebench.report.page import Page

__all__ = ["run"]

HELP = """usage: vaebench report [RUN ...] [-o FILE] [FLAGS]

Write an HTML page with tables, learning curves, pictures and the command of every run. RUN is a run folder or a folder
of runs (default: outputs). The page needs no network, no script and no other file.

flags:
  -o FILE, --output FILE    the file to write (default: report.html)
  --title TEXT              the title of the page
  --baseline CONDITION      the difference of every method from one method, as in `vaebench compare`
  --methods N               charts, diagnostics and pictures of the best N methods (default: 20)
  --charts FOLDER           also write every chart to FOLDER, as svg and csv
  --filter CONDITION        as in `vaebench compare`; repeat it to require several conditions
  --quantity NAME           show results of another quantity than log p(x)
  --unfinished              include runs that did not finish in the tables, marked *

examples:
  vaebench report
  vaebench report outputs/mnist -o mnist.html --title "Hierarchical posteriors on MNIST"
  vaebench report --baseline encoder=gaussian --charts figures
  vaebench report --filter encoder=gaussian,hvm --filter 'k>=5'
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench report <words>`` and return the exit code."""
    chosen = selection(words, REPORT, HELP)
    output = Path(chosen.flags.get("--output", "report.html")).expanduser()
    if output.is_dir():
        raise UserError(f"{output} is a folder: give a file name, for example -o {output / 'report.html'}")
    page = page_of(chosen)
    from vaebench.records.files import write_whole
    from vaebench.records.text import counted

    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, page.text.encode())
    print(f"{output.resolve()} ({len(page.text) / 1e6:.1f} MB)")
    if "--charts" in chosen.flags:
        folder = Path(chosen.flags["--charts"]).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in page.charts.items():
            write_whole(folder / name, text.encode())
        print(f"{folder.resolve()} ({counted(len(page.charts), 'file')})")
    return 0


def page_of(chosen: Selection) -> "Page":
    """Return the page. UserError when no run meets the filters."""
    methods = whole(chosen.flags.get("--methods", "20"), "--methods", least=1)
    from vaebench.report.comparison import compare
    from vaebench.report.page import page

    comparison = compare(chosen.paths, **comparison_options(chosen))
    if not comparison.selected:
        raise nothing_to_compare(comparison)
    return page(comparison.selected, comparison, title=chosen.flags.get("--title"), methods=methods)
