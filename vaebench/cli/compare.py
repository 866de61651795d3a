"""`vaebench compare`: results side by side, seeds aggregated, only like with like."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vaebench.cli.flags import COMPARE, parse, take
from vaebench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from vaebench.report import Comparison, Pair, Table

__all__ = ["DEFAULT_FOLDER", "nothing_to_compare", "run"]

DEFAULT_FOLDER = "outputs"

HELP = """usage: vaebench compare [RUN ...] [FLAGS]

Compare results, runs grouped by everything but the seed, best first. RUN is a run folder or a folder of runs
(default: outputs). Only like stands with like: protocol, split, estimator and its k, number of images, trainer.epochs.
>= marks a lower bound, <= an upper bound, ~ an estimate that bounds nothing and has no rank.

flags:
  --format FORMAT      table, md, csv, json or latex
  --columns A,B,...    settings (optimizer.lr) and facts (parameters) to show before the numbers
  --diff               show every setting that differs between the methods
  --filter CONDITION   encoder=iwhvi, encoder=gaussian,hvm or 'k>=5'; may be repeated, all must hold
  --pair A B           differences between two methods over common seeds, with a confidence interval
  --quantity NAME      compare results of another quantity than log p(x)
  --unfinished         runs that did not finish too, marked *, where they have a result

examples:
  vaebench compare
  vaebench compare outputs/mnist --format latex --columns encoder,k,parameters
  vaebench compare --filter encoder=gaussian,iwhvi --filter 'k>=5'
  vaebench compare --pair encoder=gaussian encoder=iwhvi
  vaebench compare --pair encoder=gaussian,k=1 encoder=hvm,k=16
"""


def run(words: list[str]) -> int:
    """Carry out ``vaebench compare <words>`` and return the exit code."""
    filters, words = take(words, "--filter", 1)
    paired, words = take(words, "--pair", 2)
    parsed = parse(words, COMPARE)
    if "--help" in parsed.flags:
        print(HELP, end="")
        return 0
    form = checked_format(parsed.flags.get("--format", "table"))
    # here, so that --help answers at once
    from vaebench.report.comparison import check_columns, compare
    from vaebench.report.formats import Chosen, render

    comparison = compare(
        parsed.rest or [DEFAULT_FOLDER],
        filters=[condition for (condition,) in filters],
        quantity=parsed.flags.get("--quantity", "log p(x)"),
        unfinished="--unfinished" in parsed.flags,
    )
    if not comparison.tables:
        raise nothing_to_compare(comparison)
    columns = parsed.flags["--columns"].split(",") if "--columns" in parsed.flags else None
    check_columns(columns or [], comparison)
    chosen = Chosen(columns, every_difference="--diff" in parsed.flags)
    print(render(comparison, form, chosen, found_pairs(comparison, paired)), end="")
    return 0


def checked_format(form: str) -> str:
    """Return ``form`` if there is such a format."""
    from vaebench.report.formats import FORMATS

    if form not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}, not '{form}'{did_you_mean(form, FORMATS)}")
    return form


def found_pairs(comparison: "Comparison", asked: Sequence[Sequence[str]]) -> "list[tuple[Table, list[Pair]]]":
    """Return the pairs of every table that has some. UserError when none has, with the largest table's reason."""
    from vaebench.report.pairs import pairs

    found: list[tuple[Table, list[Pair]]] = []
    for first, second in asked:
        refusals: list[UserError] = []
        for table in comparison.tables:
            try:
                found.append((table, pairs(table, first, second)))
            except UserError as refusal:
                refusals.append(refusal)
        if len(refusals) == len(comparison.tables):
            raise refusals[0]
    return found


def nothing_to_compare(comparison: "Comparison") -> UserError:
    """Return the error that says why there is no table."""
    reasons = [f"{folder}: {reason}" for folder, reason in comparison.left_out[:5]]
    if len(comparison.left_out) > len(reasons):
        reasons.append(f"and {len(comparison.left_out) - len(reasons)} more")
    if comparison.filtered:
        reasons.append(f"{comparison.filtered} runs were filtered out")
    return UserError("there is nothing to compare:\n  " + "\n  ".join(reasons))
