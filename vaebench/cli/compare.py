"""`vaebench compare`: tables of comparable results, averaged over seeds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vaebench.cli.flags import COMPARE, take
from vaebench.cli.selection import comparison_options, nothing_to_compare, selection
from vaebench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from vaebench.report import Comparison, Pair, Row, Table

__all__ = ["run"]

HELP = """usage: vaebench compare [RUN ...] [FLAGS]

Compare results, best first. Runs that differ only in the seed share a row. RUN is a run folder or a folder of runs
(default: outputs). A table holds results with the same protocol, split, estimator, k, number of images and
trainer.epochs. Methods that paired differences cannot tell apart share a rank. The signs: >= lower bound, <= upper
bound, ~ estimate that is not a bound and has no rank. The marks: * some runs did not finish, ^ some runs stopped early,
! looser bound than others, (#) rank of a single seed.

flags:
  --format FORMAT      table, md, csv, json or latex
  --columns A,B,...    settings (optimizer.lr) and facts (parameters) to show before the numbers
  --diff               show every setting that differs between the methods
  --filter CONDITION   encoder=iwhvi, encoder=gaussian,hvm or 'k>=5'; repeat it to require several conditions
  --baseline CONDITION the difference of every method from one method, with intervals, before the numbers
  --pair A B           differences between two methods over common seeds, with a confidence interval
  --quantity NAME      compare results of another quantity than log p(x)
  --unfinished         include runs that did not finish but have a result, marked *

examples:
  vaebench compare
  vaebench compare outputs/mnist --format latex --columns encoder,k,parameters
  vaebench compare --filter encoder=gaussian,iwhvi --filter 'k>=5'
  vaebench compare --baseline encoder=gaussian
  vaebench compare --pair encoder=gaussian encoder=iwhvi
  vaebench compare --pair encoder=gaussian,objective=elbo,k=1 encoder=hvm,objective=iwae,k=16
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench compare <words>`` and return the exit code."""
    paired, words = take(words, "--pair", 2)
    chosen = selection(words, COMPARE, HELP)
    output_format = checked_format(chosen.flags.get("--format", "table"))
    # here, so that --help stays fast
    from vaebench.report.comparison import check_columns, compare
    from vaebench.report.formats import FORMATS, ColumnChoice

    comparison = compare(chosen.paths, **comparison_options(chosen))
    if not comparison.tables:
        raise nothing_to_compare(comparison)
    columns = chosen.flags["--columns"].split(",") if "--columns" in chosen.flags else None
    check_columns(columns or [], comparison)
    choice = ColumnChoice(columns, every_difference="--diff" in chosen.flags)
    print(FORMATS[output_format](comparison, choice, pairs_of_tables(comparison, paired)), end="")
    return 0


def checked_format(name: str) -> str:
    """Return ``name`` if it is an output format."""
    from vaebench.report.formats import FORMATS

    if name not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}, not '{name}'{did_you_mean(name, FORMATS)}")
    return name


def pairs_of_tables(comparison: "Comparison", asked: Sequence[Sequence[str]]) -> "list[tuple[Table, list[Pair]]]":
    """Return the pairs in each table that has any.

    Results without inner samples may be in several tables; a pair of them is returned once. The intervals of all pairs
    hold together.

    UserError with the largest table's reason if no table has any, and for a corrupt file in any table.
    """
    from vaebench.report.pairs import NoPair, paired, row_pairs

    found: dict[tuple[int, ...], tuple[Table, Row, Row]] = {}
    for number, (first, second) in enumerate(asked):
        refusals: list[NoPair] = []
        for table in comparison.tables:
            try:
                fresh = row_pairs(table, first, second)
            except NoPair as refusal:
                refusals.append(refusal)
            else:
                for rows in fresh:
                    records = tuple(id(result.record) for row in rows for result in row.results)
                    found.setdefault((number, rows[0].n, *records), (table, *rows))
        if len(refusals) == len(comparison.tables):
            raise refusals[0]
    blocks: dict[tuple[int, int], tuple[Table, list[Pair]]] = {}
    differences = paired([(first, second) for _, first, second in found.values()])
    for ((number, *_), (table, *_)), pair in zip(found.items(), differences, strict=True):
        blocks.setdefault((number, id(table)), (table, []))[1].append(pair)
    return list(blocks.values())
