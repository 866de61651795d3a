"""A comparison as text: for a terminal, Markdown, CSV, JSON or LaTeX."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vaebench.direction import Direction
from vaebench.records.text import SIGNS, counted, encodable, number, wrapped
from vaebench.records.text import table as text_table
from vaebench.report.comparison import Comparison
from vaebench.report.conditions import encoder_details
from vaebench.report.differences import common_values, differing_settings, distinguishing_settings, label
from vaebench.report.pairs import LEVEL, Interval, Pair
from vaebench.report.tables import FACTS, Row, Table
from vaebench.typed import printable

__all__ = ["FORMATS", "TYPOGRAPHIC", "ColumnChoice", "cells", "duration", "headings"]

TYPOGRAPHIC: dict[Direction, str] = dict(zip(Direction, ("=", "≥", "≤", "~"), strict=True))
_LATEX_SIGNS: dict[Direction, str] = dict(zip(Direction, ("=", r"\geq", r"\leq", r"\sim"), strict=True))
_LOG_Q: dict[Direction | None, str] = {
    None: "",
    Direction.EXACT: "exact log q",
    Direction.UPPER_BOUND: "upper bound on log q",
    Direction.ESTIMATE: "learned log q",
}
_LEFT_OUT_SHOWN = 12

Pairs = Sequence[tuple[Table, Sequence[Pair]]]


@dataclass(frozen=True)
class ColumnChoice:
    """The columns before the numbers; by default the settings that distinguish the methods."""

    columns: Sequence[str] | None = None
    every_difference: bool = False
    """Whether to show all settings that differ, also those that follow from a choice."""

    def columns_of(self, table: Table) -> list[str]:
        methods = [row.settings for row in table.rows]
        if self.columns is not None:
            return list(self.columns)
        chosen = differing_settings(methods) if self.every_difference else distinguishing_settings(methods)
        return [*chosen, *table.repeated_details()]


def duration(seconds: float | None) -> str:
    """Return a time with two digits, in seconds, minutes or hours."""
    if seconds is None:
        return "-"
    minutes, hours = seconds / 60, seconds / 3600
    value, unit = (seconds, "s") if seconds < 100 else (minutes, "min") if minutes < 100 else (hours, "h")
    return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"


def headings(table: Table, columns: Sequence[str]) -> list[str]:
    """Return the titles of the columns of `cells`."""
    quantity = table.conditions.measure.named(table.conditions.quantity)
    bits = ["bits per dim"] if _has_bits(table) else []
    errors = ["sd over seeds", "error over images"]
    return ["#", *columns, quantity, "n", *errors, *bits, "estimator", "best epoch", "time"]


def _has_bits(table: Table) -> bool:
    return any(row.bits_per_dimension is not None for row in table.rows)


def cells(table: Table, row: Row, columns: Sequence[str], signs: Mapping[Direction, str] = SIGNS) -> list[str]:
    """Return one row as text."""
    facts = row.facts()
    mean = f"{signs[row.record.direction]} {number(row.mean, row.sd, row.stderr)}"
    return [
        "-" if row.rank is None else str(row.rank),
        *(_shown(row.settings.get(column, facts.get(column))) for column in columns),
        mean + row.marks,
        str(row.n),
        number(row.sd, row.sd),
        number(row.stderr, row.stderr),
        *([_bits(row, signs)] if _has_bits(table) else []),
        _estimator(row),
        str(facts["epoch"]),
        duration(row.wall_seconds),
    ]


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
                *(wrapped(f"note: {note}") for note in table.notes()),
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
    head = headings(table, columns)
    quantity, *errors = head[1 + len(columns) : 5 + len(columns)]
    rows = [cells(table, row, columns) for row in table.rows]
    # Settings that differ between rows stay: without them, two rows could look the same.
    settings = [head[i] for i in range(1, 1 + len(columns)) if len({row[i] for row in rows}) > 1]
    return text_table(head, rows, keep=(*settings, quantity, *errors), hint="--format csv")


def _pair_lines(table: Table, found: Sequence[Pair], choice: ColumnChoice) -> Iterator[str]:
    inner = any(row.record.inner_k is not None for pair in found for row in (pair.first, pair.second))
    conditions = table.conditions if inner else replace(table.conditions, inner_k=None)
    yield f"paired differences, second minus first, {conditions.heading()}"
    for pair in found:
        first, second = _pair_labels(pair, table, choice)
        mark = "" if pair.of_bounds else "~ "
        yield f"  {second}  -  {first}: {mark}{_signed(pair.difference, pair.narrowest)} {_pair_spread(pair)}"
    if any(not pair.of_bounds for pair in found):
        yield "note: ~ marks a difference that involves an estimate that is not a bound"
    yield "note: differences of bounds equal those of log-likelihoods only if both bounds are equally tight"


def _pair_labels(pair: Pair, table: Table, choice: ColumnChoice) -> tuple[str, str]:
    keys, methods = choice.columns_of(table), [row.settings for row in table.rows]
    common = common_values(methods, keys)

    def name(row: Row) -> str:
        details = encoder_details(row.record)
        return label(row.settings, keys, common) + (f" ({details})" if details else "")

    return name(pair.first), name(pair.second)


def _pair_spread(pair: Pair) -> str:
    words = [_interval(pair.over_seeds, "seeds") if pair.over_seeds else "no interval over seeds: one common seed"]
    words += [_interval(pair.over_images, "images")] if pair.over_images else []
    return "; ".join(words)


def _interval(interval: Interval, things: str) -> str:
    verdict = "" if interval.excludes_zero else ", contains 0"
    low, high = (_signed(end, interval.half) for end in (interval.low, interval.high))
    return f"[{low}, {high}] ({LEVEL:.0%} over {interval.n:,} common {things}{verdict})"


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
        head = headings(table, columns)
        lines = [cells(table, row, columns, TYPOGRAPHIC) for row in table.rows]
        body = [_markdown_line(line) for line in [head, ["---"] * len(head), *lines]]
        title, heading = _markdown_text(table.conditions.title()), _markdown_text(table.conditions.heading())
        notes = (f"\n{_markdown_text(note)}" for note in table.notes())
        sections.append("\n".join([heading.replace(title, f"**{title}**", 1), "", *body, *notes]))
    lists = [*(_pair_lines(table, found, choice) for table, found in pairs), _remarks(comparison)]
    sections += ["\n".join(f"- {_markdown_text(line.strip())}" for line in lines) for lines in lists]
    return "\n\n".join(filter(None, sections)) + "\n"


def _markdown_line(line: Sequence[str]) -> str:
    return f"| {' | '.join(_markdown_text(cell) for cell in line)} |"


def _markdown_text(text: str) -> str:
    """Return ``text`` so that Markdown shows it: no column, line, link or HTML of its own."""
    special = {"\\": r"\\", "|": r"\|", "<": "&lt;", "&": "&amp;", "`": r"\`", "](": r"]\(", "\n": " "}
    return re.sub(r"\]\(|[\\|<&`\n]", lambda found: special[found[0]], printable(text))


def _csv(comparison: Comparison, choice: ColumnChoice, pairs: Pairs) -> str:
    """Return one line for each row of each table, all digits; the conditions of a table are columns too."""
    del pairs  # they have other columns: --format json has them
    import pandas  # here, because it takes longer to import than everything else

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
    # dtype=object: pandas would make the whole numbers of a column with gaps fractional.
    cleaned = [{key: _csv_cell(value) for key, value in row.items()} for row in rows]
    return pandas.DataFrame(cleaned, dtype=object).to_csv(index=False, lineterminator="\n")


def _csv_cell(value: Any) -> Any:
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
        "pairs": [_pair_json(table, pair, comparison) for table, found in pairs for pair in found],
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
            "runs": [
                {"folder": str(run.folder.path), "seed": run.seed, "mean": record.mean, "stderr": record.stderr}
                for run, record in row.results
            ],
        }
        for row in table.rows
    ]
    return {"conditions": table.conditions.facts(), "rows": rows, "notes": list(table.notes())}


def _pair_json(table: Table, pair: Pair, comparison: Comparison) -> dict[str, Any]:
    return {
        "table": list(comparison.tables).index(table),
        "first": pair.first.method,
        "second": pair.second.method,
        "rows": [table.rows.index(row) for row in (pair.first, pair.second)],
        "difference": pair.difference,
        "seeds": list(pair.seeds),
        "interval_over_seeds": _ends(pair.over_seeds),
        "interval_over_images": _ends(pair.over_images),
        "level": LEVEL,
        "of_bounds": pair.of_bounds,
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _latex(comparison: Comparison, choice: ColumnChoice, pairs: Pairs) -> str:
    """Return tables for the booktabs package; notes and runs left out are comments."""
    blocks = [_latex_table(table, choice.columns_of(table)) for table in comparison.tables]
    comments = [line for t, found in pairs for line in _pair_lines(t, found, choice)] + list(_remarks(comparison))
    return "\n\n".join([*blocks, "\n".join(map(_latex_comment, comments))]).rstrip() + "\n"


def _latex_table(table: Table, columns: Sequence[str]) -> str:
    head = [_latex_text(text) for text in headings(table, columns)]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex_text(table.conditions.heading())}}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * (1 + len(columns))}rrrrlrr}}", r"\toprule"]
    lines += [" & ".join(head) + r" \\", r"\midrule"]
    for row in table.rows:
        texts = [_latex_text(text) for text in cells(table, row, columns)]
        value = number(row.mean, row.sd, row.stderr)
        marks = f"^{{{row.marks.replace('^', chr(92) + 'dagger')}}}" if row.marks else ""
        texts[1 + len(columns)] = f"${_LATEX_SIGNS[row.record.direction]} {value}{marks}$"
        lines.append(" & ".join(texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", *(_latex_comment(f"note: {n}") for n in table.notes())]
    return "\n".join(lines)


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
