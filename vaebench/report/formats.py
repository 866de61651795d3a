"""A comparison as text: for a terminal, Markdown, CSV, JSON or LaTeX."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vaebench.direction import Direction
from vaebench.records.text import SIGNS, counted, encodable, number, terminal_width, wrapped
from vaebench.records.text import table as text_table
from vaebench.report.comparison import Comparison
from vaebench.report.conditions import encoder_details
from vaebench.report.differences import common_values, differing_settings, distinguishing_settings, label
from vaebench.report.intervals import LEVEL, Difference, Interval
from vaebench.report.pairs import Pair
from vaebench.report.runs import Scalar
from vaebench.report.tables import FACTS, Row, Table
from vaebench.typed import printable

__all__ = [
    "FORMATS",
    "TYPOGRAPHIC",
    "ColumnChoice",
    "cells",
    "csv_cell",
    "csv_text",
    "difference_text",
    "duration",
    "headings",
    "markdown_table",
    "markdown_text",
    "method_name",
    "notes",
    "rank_text",
    "value_text",
]

TYPOGRAPHIC: dict[Direction, str] = dict(zip(Direction, ("=", "≥", "≤", "~"), strict=True))
_LATEX_SIGNS: dict[Direction, str] = dict(zip(Direction, ("=", r"\geq", r"\leq", r"\sim"), strict=True))
_LATEX_MARKS = {"*": r"{*}", "^": r"\dagger", "!": r"\ddagger"}
_MARKS = {"*": "runs that did not finish", "^": "runs that stopped early", "!": "a looser bound than others"}
_LOG_Q: dict[Direction | None, str] = {
    None: "",
    Direction.EXACT: "exact log q",
    Direction.UPPER_BOUND: "upper bound on log q",
    Direction.ESTIMATE: "learned log q",
}
_LEFT_OUT_SHOWN = 12
_NARROWEST_CHART, _WIDEST_CHART = 9, 25  # letters

Pairs = Sequence[tuple[Table, Sequence[Pair]]]


@dataclass(frozen=True)
class ColumnChoice:
    """The columns before the numbers; by default the settings that distinguish the methods."""

    columns: Sequence[str] | None = None
    every_difference: bool = False
    """Whether to show all settings that differ, also those that follow from a choice."""

    def columns_of(self, table: Table) -> list[str]:
        methods = _settings(table)
        if self.columns is not None:
            return list(self.columns)
        chosen = differing_settings(methods) if self.every_difference else distinguishing_settings(methods)
        named = ["name"] if any(row.names for row in table.rows) else []
        return [*named, *chosen, *table.repeated_details()]


def duration(seconds: float | None) -> str:
    """Return a time with two digits, in seconds, minutes or hours."""
    if seconds is None:
        return "-"
    minutes, hours = seconds / 60, seconds / 3600
    value, unit = (seconds, "s") if seconds < 100 else (minutes, "min") if minutes < 100 else (hours, "h")
    return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"


def headings(table: Table, columns: Sequence[str]) -> list[str]:
    """Return the titles of the columns of `cells`."""
    return ["#", *columns, *(column.title for column in _number_columns(table))]


def cells(table: Table, columns: Sequence[str], signs: Mapping[Direction, str] = SIGNS) -> list[list[str]]:
    """Return the rows as text."""
    numbers = _number_columns(table)

    def setting(row: Row, name: str) -> object:
        return row.settings.get(name, FACTS[name](row) if name in FACTS else None)

    return [
        [
            rank_text(row),
            *(_shown(setting(row, name)) for name in columns),
            *(column.text(row, signs) for column in numbers),
        ]
        for row in table.rows
    ]


def rank_text(row: Row) -> str:
    """Return the rank, in parentheses for a method with one seed, or ``-``."""
    return "-" if row.rank is None else f"({row.rank})" if row.n == 1 else str(row.rank)


def notes(table: Table) -> Iterator[str]:
    """Yield the notes below the table; the first one names the baseline."""
    if any(row.difference for row in table.rows):
        yield f"difference: from {baseline_name(table)}"
    yield from table.notes()


def value_text(row: Row, signs: Mapping[Direction, str] = SIGNS) -> str:
    """Return the mean over seeds with its sign and marks."""
    return f"{signs[row.record.direction]} {number(row.mean, row.sd, row.stderr)}{row.marks}"


class _Column(NamedTuple):
    """A column behind the settings."""

    title: str
    text: Callable[[Row, Mapping[Direction, str]], str]
    keep: bool = False
    """Whether it goes last if a terminal is narrow."""


def _number_columns(table: Table) -> list[_Column]:
    """Return the columns behind the settings that some row of the table needs."""
    rows = table.rows
    given, limits = table.conditions, sorted({row.k_hat_limit for row in rows if row.k_hat_limit})
    # Annealed importance sampling has chains in place of weighted draws.
    weights = given.k if given.k is not None else f"{dict(given.settings).get('chains')} chains"
    compared, hidden = any(row.difference for row in rows), _ranks_hide_pairs(rows)
    columns = [
        (compared, _Column("difference", difference_text, keep=True)),
        (compared, _Column("told apart", _told_apart, keep=True)),
        (True, _Column(table.conditions.measure.named(table.conditions.quantity), value_text, keep=True)),
        (any(row.published for row in rows), _Column("published", _published, keep=True)),
        (True, _Column("n", lambda row, _: str(row.n), keep=True)),
        (True, _Column("sd over seeds", lambda row, _: number(row.sd, row.sd), keep=not compared)),
        (True, _Column("error over images", lambda row, _: number(row.stderr, row.stderr), keep=not compared)),
        (hidden, _Column("better than", lambda row, _: _shown(row.better_than))),
        (any(row.ess is not None for row in rows), _Column(f"ESS of {weights}", lambda row, _: _three(row.ess))),
        (bool(limits), _Column(f"k-hat > {' or '.join(limits)}", lambda row, _: _percent(row.k_hat_share))),
        (any(row.bits_per_dimension is not None for row in rows), _Column("bits per dim", _bits)),
        (True, _Column("estimator", lambda row, _: _estimator(row))),
        (True, _Column("best epoch", lambda row, _: str(FACTS["epoch"](row)))),
        (True, _Column("time", lambda row, _: duration(row.wall_seconds))),
    ]
    return [column for needed, column in columns if needed]


def _ranks_hide_pairs(rows: Sequence[Row]) -> bool:
    """Whether two methods of one rank are told apart, because there is another one between them."""
    placed = [row for row in rows if row.rank is not None]
    behind = [sum(other.rank > row.rank for other in placed if other.rank and row.rank) for row in placed]
    return any(row.better_than != count for row, count in zip(placed, behind, strict=True))


def difference_text(row: Row, signs: Mapping[Direction, str] = SIGNS) -> str:
    """Return the difference from the baseline and its interval, for example ``+0.74 [+0.13, +1.35]``."""
    del signs
    found = row.difference
    if found is None:
        return "baseline" if row.is_baseline else "-"
    interval = found.interval
    mark = "" if found.of_bounds else "~ "
    if interval is None:
        return f"{mark}{_signed(found.mean, None)} (no interval)"
    low, high = (_signed(end, interval.half) for end in (interval.low, interval.high))
    return f"{mark}{_signed(found.mean, interval.half)} [{low}, {high}]"


def _told_apart(row: Row, signs: Mapping[Direction, str]) -> str:
    del signs
    if row.difference is None:
        return ""
    verdict = "yes" if row.difference.told_apart else "no"
    return verdict if row.difference.over_seeds else f"({verdict})"


def _published(row: Row, signs: Mapping[Direction, str]) -> str:
    del signs
    found = row.published
    if found is None:
        return "-"
    return f"{found.value:g}" if found.error is None else f"{found.value:g} +- {found.error:g}"


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def interval_charts(table: Table, width: int = _WIDEST_CHART) -> list[str]:
    """Return the interval of each row's difference on a common scale: ``|`` at zero, ``o`` at the mean."""
    found = [row.difference for row in table.rows if row.difference is not None]
    ends = [0.0, *(one.mean for one in found)]
    ends += [end for one in found if one.interval for end in (one.interval.low, one.interval.high)]
    low, high = min(ends), max(ends)

    def place(value: float) -> int:
        return round((width - 1) * (value - low) / (high - low or 1.0))

    def chart(difference: Difference | None) -> str:
        letters = [" "] * width
        if difference is not None and difference.interval is not None:
            span = range(place(difference.interval.low), place(difference.interval.high) + 1)
            letters[span.start : span.stop] = "-" * len(span)
        letters[place(0.0)] = "|"
        if difference is not None:
            letters[place(difference.mean)] = "o"
        return "".join(letters)

    return [chart(row.difference) for row in table.rows]


def _bits(row: Row, signs: Mapping[Direction, str]) -> str:
    """Return the bits per dimension; a lower bound on log p(x) is an upper bound on them."""
    bits = row.bits_per_dimension
    return "-" if bits is None else f"{signs[row.record.direction.negated]} {bits:.3f}"


def _estimator(row: Row) -> str:
    """Return the estimator, the proposal if it is not the trained encoder, and the log_q of the weighted draws."""
    details, log_q = encoder_details(row.record), _LOG_Q[row.log_q]
    if "proposal" in row.record.settings and log_q:
        details, log_q = f"{details} ({log_q})", ""  # of the proposal, not of the trained encoder
    return ", ".join(filter(None, (row.record.estimator, details, log_q)))


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _terminal(comparison: Comparison, choice: ColumnChoice, pairs: Pairs) -> str:
    sections = [
        "\n".join(
            [
                wrapped(table.conditions.heading()),
                _text_table(table, choice.columns_of(table)),
                *(wrapped(f"note: {note}") for note in notes(table)),
            ]
        )
        for table in comparison.tables
    ]
    for table, found in pairs:
        first, *others = _pair_lines(table, found, choice)
        sections.append("\n".join([wrapped(first), *(wrapped(line, rest=" " * 4) for line in others)]))
    remarks = [wrapped(line) if line.startswith("note: ") else line for line in _remarks(comparison)]
    sections += ["\n".join(remarks)] if remarks else []
    return encodable("\n\n".join(sections)) + "\n"


def _text_table(table: Table, columns: Sequence[str]) -> str:
    head, rows = headings(table, columns), cells(table, columns)
    bold = {(i, head.index(_quantity(table))) for i, row in enumerate(table.rows) if row.best}
    # Settings that differ between rows stay: without them, two rows could look the same.
    settings = [head[i] for i in range(1, 1 + len(columns)) if len({row[i] for row in rows}) > 1]
    kept = [column.title for column in _number_columns(table) if column.keep]
    if any(row.difference for row in table.rows):
        place, stay = head.index("told apart"), {0, *(head.index(name) for name in (*settings, *kept))}
        room = terminal_width() - sum(max(len(row[i]) for row in (head, *rows)) + 2 for i in stay)
        # The chart stays if it does not push out a number.
        kept += ["0 is |"] if room >= _NARROWEST_CHART else []
        charts = interval_charts(table, min(_WIDEST_CHART, max(_NARROWEST_CHART, room)))
        head = _inserted(head, place, "0 is |")
        rows = [_inserted(row, place, chart) for row, chart in zip(rows, charts, strict=True)]
        bold = {(i, column + 1) for i, column in bold}
    return text_table(head, rows, keep=(*settings, *kept), hint="--format csv", bold=bold)


def _inserted(texts: Sequence[str], place: int, text: str) -> list[str]:
    return [*texts[:place], text, *texts[place:]]


def _quantity(table: Table) -> str:
    return table.conditions.measure.named(table.conditions.quantity)


def _pair_lines(table: Table, found: Sequence[Pair], choice: ColumnChoice) -> Iterator[str]:
    inner = any(row.record.inner_k is not None for pair in found for row in (pair.first, pair.second))
    conditions = table.conditions if inner else replace(table.conditions, inner_k=None)
    keys = choice.columns_of(table)
    yield f"paired differences, second minus first, {_level_words(found)}{conditions.heading()}"
    common = common_values(_settings(table), keys)
    for pair in found:
        first, second = (_name(row, keys, common) for row in (pair.first, pair.second))
        mark = "" if pair.of_bounds else "~ "
        yield f"  {second}  -  {first}: {mark}{_signed(pair.difference, pair.narrowest)} {_pair_spread(pair)}"
    if any(not pair.of_bounds for pair in found):
        yield "note: ~ marks a difference that involves an estimate that is not a bound"
    yield "note: differences of bounds equal those of log-likelihoods only if both bounds are equally tight"


def _level_words(found: Sequence[Pair]) -> str:
    """Return which level the intervals of pairs have, and whether it is corrected; "" without an interval."""
    if not any(pair.over_seeds or pair.over_images for pair in found):
        return ""
    n = found[0].comparisons
    return f"{LEVEL:.0%} intervals{f' for {n} comparisons together (Bonferroni)' if n > 1 else ''}, "


def method_name(table: Table, row: Row, keys: Sequence[str]) -> str:
    """Return a short name of a row from the settings ``keys``, with the details of its estimator."""
    return _name(row, keys, common_values(_settings(table), keys))


def _name(row: Row, keys: Sequence[str], common: Mapping[str, Scalar]) -> str:
    details = encoder_details(row.record)
    return label(row.settings, keys, common) + (f" ({details})" if details else "")


def baseline_name(table: Table) -> str:
    """Return the name of the method from which the others differ, or ``the baseline`` if there are several."""
    found = table.baselines
    return (
        method_name(table, found[0], distinguishing_settings(_settings(table))) if len(found) == 1 else "the baseline"
    )


def _settings(table: Table) -> list[Mapping[str, Scalar]]:
    return [row.settings for row in table.rows]


def _pair_spread(pair: Pair) -> str:
    words = [_interval(pair.over_seeds, "seeds") if pair.over_seeds else "no interval over seeds: one common seed"]
    words += [_interval(pair.over_images, "images")] if pair.over_images else []
    return "; ".join(words)


def _interval(interval: Interval, things: str) -> str:
    verdict = "" if interval.excludes_zero else ", contains 0"
    low, high = (_signed(end, interval.half) for end in (interval.low, interval.high))
    return f"[{low}, {high}] (over {interval.n:,} common {things}{verdict})"


def _signed(value: float, error: float | None) -> str:
    """Return a number with its sign, and with as many decimals as its ``error`` needs."""
    return f"{'+' if value >= 0 else ''}{number(value, error)}"


def _remarks(comparison: Comparison) -> Iterator[str]:
    """Yield the runs that are in no table, with reasons, one on a line."""
    yield from (printable(remark).replace("\n", " ") for remark in _remark_texts(comparison))


def _remark_texts(comparison: Comparison) -> Iterator[str]:
    yield from (f"note: {note}" for note in comparison.notes)
    if comparison.filtered:
        yield f"filtered out: {counted(comparison.filtered, 'run')}"
    if comparison.left_out:
        yield f"left out: {counted(len(comparison.left_out), 'run')}"
        for folder, reason in comparison.left_out[:_LEFT_OUT_SHOWN]:
            yield f"  {folder}: {reason}"
        if len(comparison.left_out) > _LEFT_OUT_SHOWN:
            yield f"  and {len(comparison.left_out) - _LEFT_OUT_SHOWN} more (see --format json)"


def _markdown(comparison: Comparison, choice: ColumnChoice, pairs: Pairs) -> str:
    sections = []
    for table in comparison.tables:
        columns = choice.columns_of(table)
        body = markdown_table(headings(table, columns), cells(table, columns, TYPOGRAPHIC))
        for i, row in enumerate(table.rows, start=2):
            value = markdown_text(value_text(row, TYPOGRAPHIC))
            body[i] = body[i].replace(f"| {value} |", f"| **{value}** |", 1) if row.best else body[i]
        title, heading = markdown_text(table.conditions.title()), markdown_text(table.conditions.heading())
        below = (f"\n{markdown_text(note)}" for note in notes(table))
        sections.append("\n".join([heading.replace(title, f"**{title}**", 1), "", *body, *below]))
    lists = [*(_pair_lines(table, found, choice) for table, found in pairs), _remarks(comparison)]
    sections += ["\n".join(f"- {markdown_text(line.strip())}" for line in lines) for lines in lists]
    return "\n\n".join(filter(None, sections)) + "\n"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = (head, ["---"] * len(head), *rows)
    return [f"| {' | '.join(map(markdown_text, line))} |" for line in lines]


def markdown_text(text: str) -> str:
    """Return ``text`` so that Markdown shows it: no column, line, link or HTML of its own."""
    special = {"\\": r"\\", "|": r"\|", "<": "&lt;", "&": "&amp;", "`": r"\`", "](": r"]\(", "\n": " "}
    return re.sub(r"\]\(|[\\|<&`\n]", lambda found: special[found[0]], printable(text))


def _csv(comparison: Comparison, choice: ColumnChoice, pairs: Pairs) -> str:
    """Return one line for each row of each table, all digits; the conditions of a table are columns too."""
    del pairs  # they have other columns: --format json has them
    keys = dict.fromkeys(key for table in comparison.tables for key in choice.columns_of(table) if key not in FACTS)
    rows = [
        {
            "table": index,
            **{f"table.{name}": _plain(value) for name, value in table.conditions.facts().items()},
            **{key: row.settings.get(key) for key in keys},
            **row.facts(),
        }
        for index, table in enumerate(comparison.tables, start=1)
        for row in table.rows
    ]
    return csv_text(rows)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a CSV table with one line for each row, under the keys."""
    import pandas  # here, because it takes longer to import than everything else

    # dtype=object: pandas would make the whole numbers of a column with gaps fractional.
    cleaned = [{key: csv_cell(value) for key, value in row.items()} for row in rows]
    return pandas.DataFrame(cleaned, dtype=object).to_csv(index=False, lineterminator="\n")


def csv_cell(value: Any) -> Any:
    """Return ``value``; a text that a spreadsheet would take for a formula gets an apostrophe, which it hides."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text != "-" and text.startswith(("=", "+", "-", "@")) else text


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def _json(comparison: Comparison, choice: ColumnChoice, pairs: Pairs) -> str:
    del choice  # a program gets everything
    values = {
        "tables": [_table_json(table) for table in comparison.tables],
        "pairs": _pairs_json(comparison, pairs),
        "notes": list(comparison.notes),
        "filtered": comparison.filtered,
        "left_out": [{"folder": str(folder), "reason": reason} for folder, reason in comparison.left_out],
    }
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def _table_json(table: Table) -> dict[str, Any]:
    rows = [
        {
            "settings": dict(row.settings),
            **row.facts(),
            "is_baseline": row.is_baseline,
            "interval_over_seeds": _ends(row.difference and row.difference.over_seeds),
            "interval_over_images": _ends(row.difference and row.difference.over_images),
            "runs": [
                {"folder": str(run.folder.path), "seed": run.seed, "mean": record.mean, "stderr": record.stderr}
                for run, record in row.results
            ],
        }
        for row in table.rows
    ]
    return {"conditions": table.conditions.facts(), "rows": rows, "notes": list(notes(table))}


def _pairs_json(comparison: Comparison, pairs: Pairs) -> list[dict[str, Any]]:
    places = {id(row): (i, j) for i, table in enumerate(comparison.tables) for j, row in enumerate(table.rows)}
    return [
        {
            "table": places[id(pair.first)][0],
            "first": pair.first.method,
            "second": pair.second.method,
            "rows": [places[id(row)][1] for row in (pair.first, pair.second)],
            "difference": pair.difference,
            "seeds": list(pair.seeds),
            "interval_over_seeds": _ends(pair.over_seeds),
            "interval_over_images": _ends(pair.over_images),
            "level": LEVEL,
            "comparisons": pair.comparisons,
            "of_bounds": pair.of_bounds,
        }
        for _, found in pairs
        for pair in found
    ]


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _latex(comparison: Comparison, choice: ColumnChoice, pairs: Pairs) -> str:
    """Return tables for the booktabs package; notes and runs left out are comments."""
    blocks = [_latex_table(table, choice.columns_of(table)) for table in comparison.tables]
    comments = [line for t, found in pairs for line in _pair_lines(t, found, choice)] + list(_remarks(comparison))
    return "\n\n".join([*blocks, "\n".join(map(_latex_comment, comments))]).rstrip() + "\n"


def _latex_table(table: Table, columns: Sequence[str]) -> str:
    """Return a table with value and error in one column, the best in bold, and sentences as its caption."""
    shown = [(name, text) for needed, name, text in _latex_columns(table) if needed]
    head = [*map(_latex_text, columns), *(name for name, _ in shown)]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{' '.join(_caption(table))}}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * len(columns)}{'r' * len(shown)}}}", r"\toprule"]
    lines += [" & ".join(head) + r" \\", r"\midrule"]
    for row, texts in zip(table.rows, cells(table, columns), strict=True):
        settings = map(_latex_text, texts[1 : 1 + len(columns)])
        lines.append(" & ".join([*settings, *(text(row) for _, text in shown)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", *(_latex_comment(f"note: {n}") for n in notes(table))]
    return "\n".join(lines)


def _latex_columns(table: Table) -> list[tuple[bool, str, Callable[[Row], str]]]:
    """Return the columns behind the settings: whether some row needs it, its title, and the text of a row."""
    rows, quantity = table.rows, _latex_text(_quantity(table)).replace("log p(x)", r"$\log p(x)$")
    return [
        (True, quantity, _latex_value),
        (any(row.difference for row in rows), "difference", lambda row: _latex_minus(difference_text(row))),
        (any(row.published for row in rows), "published", lambda row: _latex_minus(_published(row, SIGNS))),
        (len({row.n for row in rows}) > 1, "seeds", lambda row: str(row.n)),
    ]


def _latex_value(row: Row) -> str:
    error = row.stderr if row.sd is None else row.sd
    value, spread = number(row.mean, error), number(error, error)
    marks = "".join(_LATEX_MARKS[mark] for mark in row.marks)
    value = rf"\mathbf{{{value}}}" if row.best else value
    value = f"{value}^{{{marks}}}" if marks else value
    return rf"${_LATEX_SIGNS[row.record.direction]} {value} \pm {spread}$"


def _latex_minus(text: str) -> str:
    """Return a text of numbers with the minus signs and errors of LaTeX."""
    letters = _latex_text(text).replace("+-", r"\pm").replace(" [", r"\ [").replace(r"\textasciitilde{}", r"\sim")
    return f"${letters}$" if any(letter.isdigit() for letter in text) else letters


def _caption(table: Table) -> Iterator[str]:
    """Yield the sentences of the caption."""
    conditions, rows = table.conditions, table.rows
    images, *words = conditions.words()
    quantity = _latex_text(_quantity(table)).replace("log p(x)", r"$\log p(x)$")
    better = "; higher is better" if any(row.rank for row in rows) else ""
    yield (
        f"The numbers are {conditions.split} {quantity} in nats per image on {images} of "
        f"{_latex_text(conditions.protocol)} ({_latex_text(', '.join(words))}){better}."
    )
    counts = sorted({row.n for row in rows if row.n > 1})
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else "seeds"
    single = "standard errors over images"
    if not counts:
        yield f"Errors are {single} of one training."
    elif any(row.n == 1 for row in rows):
        yield f"Errors are standard deviations over {seeds}; for one seed they are {single}."
    else:
        yield f"Errors are standard deviations over {seeds}."
    if any(row.best for row in rows):
        yield (
            r"Bold numbers cannot be told apart from the highest bound (paired $t$-tests over common seeds and images "
            rf"with Holm's correction, {LEVEL * 100:.0f}\,\%)."
        )
    elif any(row.rank for row in rows):
        yield (
            r"No two methods can be told apart (paired $t$-tests over common seeds and images with Holm's correction, "
            rf"{LEVEL * 100:.0f}\,\%)."
        )
    if found := [row for row in rows if row.difference]:
        together = f" for {len(found)} comparisons together" if len(found) > 1 else ""
        name, level = _latex_text(baseline_name(table)), rf"{LEVEL * 100:.0f}\,\%"
        yield f"Differences are from {name}, with {level} intervals{together}."
    used = {mark for row in rows for mark in row.marks}
    yield from (f"${_LATEX_MARKS[mark]}$ marks {meaning}." for mark, meaning in _MARKS.items() if mark in used)
    if any(row.record.direction is Direction.ESTIMATE for row in rows):
        yield r"$\sim$ marks an estimate that is not a bound."


def _latex_comment(text: str) -> str:
    return f"% {printable(text)}".replace("\n", " ")


def _latex_text(text: str) -> str:
    if text == "-":
        return "--"
    text = printable(text).replace("\n", " ")
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {letter: f"\\{letter}" for letter in "&%$#_{}"} | {"<": "$<$", ">": "$>$"}
    return "".join(special.get(letter, letter) for letter in text)


FORMATS: dict[str, Callable[[Comparison, ColumnChoice, Pairs], str]] = {
    "table": _terminal,
    "md": _markdown,
    "csv": _csv,
    "json": _json,
    "latex": _latex,
}
