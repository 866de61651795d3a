"""A comparison as text: for a terminal, Markdown, CSV, JSON or LaTeX."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vaebench.direction import Direction
from vaebench.records.text import SIGNS
from vaebench.report.comparison import Comparison
from vaebench.report.differences import differing, label, telling, usual
from vaebench.report.pairs import LEVEL, Interval, Pair
from vaebench.report.tables import FACTS, Row, Table

__all__ = ["FORMATS", "TYPOGRAPHIC", "Chosen", "cells", "duration", "headings", "number", "render"]

TYPOGRAPHIC: dict[Direction, str] = dict(zip(Direction, ("=", "≥", "≤", "~"), strict=True))
_LATEX_SIGNS: dict[Direction, str] = dict(zip(Direction, ("=", r"\geq", r"\leq", r"\sim"), strict=True))
_LEFT_OUT_SHOWN = 12


@dataclass(frozen=True)
class Chosen:
    """Which columns stand before the numbers; by default what tells the methods apart."""

    columns: Sequence[str] | None = None
    every_difference: bool = False
    """All settings that differ, not only those that say something new."""

    def of(self, table: Table) -> list[str]:
        methods = [row.settings for row in table.rows]
        if self.columns is not None:
            return list(self.columns)
        return differing(methods) if self.every_difference else telling(methods)


def number(value: float | None, *errors: float | None) -> str:
    """Return nats with two decimals, or with as many as it takes to show the smallest of ``errors``."""
    if value is None:
        return "-"
    small = min((error for error in errors if error), default=1.0)
    return f"{value:.{2 if small >= 0.005 else min(8, math.ceil(-math.log10(small)))}f}"


def duration(seconds: float | None) -> str:
    """Return a time to two figures in the unit that suits it."""
    if seconds is None:
        return "-"
    for limit, divisor, unit in ((100, 1, "s"), (100 * 60, 60, "min"), (math.inf, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.2g} {unit}" if seconds / divisor < 10 else f"{seconds / divisor:.0f} {unit}"
    raise AssertionError(seconds)


def headings(table: Table, columns: Sequence[str]) -> list[str]:
    """Return the heads of the columns of `cells`."""
    quantity = table.conditions.quantity
    return ["#", *columns, quantity, "n", "sd over seeds", "error over images", "estimator", "best epoch", "time"]


def cells(table: Table, row: Row, columns: Sequence[str], signs: Mapping[Direction, str] = SIGNS) -> list[str]:
    """Return one row as text."""
    facts = row.facts()
    mean = f"{signs[row.record.direction]} {number(row.mean, row.sd, row.stderr)}"
    return [
        "-" if row.rank is None else str(row.rank),
        *(_shown(row.settings.get(column, facts.get(column))) for column in columns),
        mean + ("*" if row.unfinished else ""),
        str(row.n),
        number(row.sd, row.sd),
        number(row.stderr, row.stderr),
        _estimator(row, table),
        str(facts["epoch"]),
        duration(row.wall_seconds),
    ]


def _estimator(row: Row, table: Table) -> str:
    record = row.record
    words = [record.estimator]
    if record.inner_k is None and table.conditions.inner_k is not None:
        words.append("exact density")
    words += [f"{name} {record.settings[name]}" for name in ("proposal", "initial") if name in record.settings]
    return ", ".join(words)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def render(comparison: Comparison, form: str, chosen: Chosen, pairs: Sequence[tuple[Table, Sequence[Pair]]]) -> str:
    """Return the comparison, and paired differences if there are any, in one of ``FORMATS``."""
    return FORMATS[form](comparison, chosen, pairs)


Pairs = Sequence[tuple[Table, Sequence[Pair]]]


def _terminal(comparison: Comparison, chosen: Chosen, pairs: Pairs) -> str:
    sections = [
        "\n".join(
            [
                f"{table.conditions.title()} ({', '.join(table.conditions.words())}), nats per image",
                *_aligned(table, chosen.of(table)),
                *(f"note: {note}" for note in table.notes()),
            ]
        )
        for table in comparison.tables
    ]
    sections += ["\n".join(_pair_lines(table, found, chosen)) for table, found in pairs]
    sections += ["\n".join(lines) for lines in [list(_remarks(comparison))] if lines]
    return "\n\n".join(sections) + "\n"


def _aligned(table: Table, columns: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table; words begin, and numbers end, where their column does."""
    lines = [headings(table, columns), *(cells(table, row, columns) for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [all(_numeric(cell) for cell in column[1:]) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = zip(line, widths, right, strict=True)
        yield "  ".join(cell.rjust(width) if end else cell.ljust(width) for cell, width, end in padded).rstrip()


def _numeric(cell: str) -> bool:
    text = cell.lstrip(">=<~ ").rstrip("*")
    try:
        float(text.split(" ")[0])
    except (ValueError, IndexError):
        return text == "-"
    return True


def _pair_lines(table: Table, found: Sequence[Pair], chosen: Chosen) -> Iterator[str]:
    yield f"paired differences, second minus first, {table.conditions.title()}, nats per image"
    for pair in found:
        first, second = _pair_labels(pair, table, chosen)
        mark = "" if pair.of_bounds else "~ "
        yield f"  {second}  -  {first}: {mark}{pair.difference:+.2f} {_pair_spread(pair)}"
    if any(not pair.of_bounds for pair in found):
        yield "note: ~ marks a difference that involves an estimate, which bounds nothing"
    yield "note: these are differences of bounds; of log-likelihoods only where both bounds are as tight"


def _pair_labels(pair: Pair, table: Table, chosen: Chosen) -> tuple[str, str]:
    keys, methods = chosen.of(table), [row.settings for row in table.rows]
    common = usual(methods, keys)
    return label(pair.first.settings, keys, common), label(pair.second.settings, keys, common)


def _pair_spread(pair: Pair) -> str:
    over_seeds, over_images = pair.over_seeds, pair.over_images
    words = []
    if over_seeds is None:
        words.append("one common seed, so no interval over seeds")
    else:
        words.append(_interval(over_seeds, f"{over_seeds.n} common seeds"))
    if over_images is not None:
        words.append(_interval(over_images, f"{over_images.n:,} common images"))
    return "; ".join(words)


def _interval(interval: Interval, over: str) -> str:
    verdict = "" if interval.excludes_zero else ", 0 lies within"
    digits = (interval.high - interval.mean,)
    low, high = (f"{'+' if end >= 0 else ''}{number(end, *digits)}" for end in (interval.low, interval.high))
    return f"[{low}, {high}] ({LEVEL:.0%} over {over}{verdict})"


def _remarks(comparison: Comparison) -> Iterator[str]:
    """Yield what is in no table, and why."""
    yield from (f"note: {note}" for note in comparison.notes)
    if comparison.filtered:
        yield f"filtered out: {comparison.filtered} run{'s' * (comparison.filtered != 1)}"
    if comparison.left_out:
        yield f"left out: {len(comparison.left_out)} run{'s' * (len(comparison.left_out) != 1)}"
        for folder, reason in comparison.left_out[:_LEFT_OUT_SHOWN]:
            yield f"  {folder}: {reason}"
        if len(comparison.left_out) > _LEFT_OUT_SHOWN:
            yield f"  and {len(comparison.left_out) - _LEFT_OUT_SHOWN} more (--format json names them all)"


def _markdown(comparison: Comparison, chosen: Chosen, pairs: Pairs) -> str:
    sections = []
    for table in comparison.tables:
        columns = chosen.of(table)
        head = headings(table, columns)
        lines = [cells(table, row, columns, TYPOGRAPHIC) for row in table.rows]
        body = [_markdown_line(line) for line in [head, ["---"] * len(head), *lines]]
        title = f"**{table.conditions.title()}** ({', '.join(table.conditions.words())}), nats per image"
        sections.append("\n".join([title, "", *body, *(f"\n{note}" for note in table.notes())]))
    sections += ["\n".join(f"- {line.strip()}" for line in _pair_lines(t, found, chosen)) for t, found in pairs]
    sections += ["\n".join(f"- {line.strip()}" for line in _remarks(comparison))]
    return "\n\n".join(filter(None, sections)) + "\n"


def _markdown_line(line: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"


def _csv(comparison: Comparison, chosen: Chosen, pairs: Pairs) -> str:
    """One line for each row of each table, numbers in full; the conditions are columns too."""
    del pairs  # another shape: --format json has them
    keys = dict.fromkeys(column for table in comparison.tables for column in chosen.of(table))
    conditions = list(comparison.tables[0].conditions.facts()) if comparison.tables else []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    settings = [key for key in keys if key not in FACTS]
    writer.writerow(["table", *(f"table.{name}" for name in conditions), *settings, *FACTS])
    for index, table in enumerate(comparison.tables, start=1):
        shared = [_plain(value) for value in table.conditions.facts().values()]
        for row in table.rows:
            facts = row.facts()
            own = [row.settings.get(key) for key in settings] + [facts[name] for name in FACTS]
            writer.writerow([index, *shared, *map(_plain, own)])
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def _json(comparison: Comparison, chosen: Chosen, pairs: Pairs) -> str:
    del chosen  # a program gets everything
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
        "difference": pair.difference,
        "seeds": list(pair.seeds),
        "interval_over_seeds": _ends(pair.over_seeds),
        "interval_over_images": _ends(pair.over_images),
        "level": LEVEL,
        "of_bounds": pair.of_bounds,
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _latex(comparison: Comparison, chosen: Chosen, pairs: Pairs) -> str:
    """Return tables for the booktabs package; notes and what was left out stand in comments."""
    blocks = [_latex_table(table, chosen.of(table)) for table in comparison.tables]
    comments = [line for t, found in pairs for line in _pair_lines(t, found, chosen)] + list(_remarks(comparison))
    return "\n\n".join([*blocks, "\n".join(f"% {line}" for line in comments)]).rstrip() + "\n"


def _latex_table(table: Table, columns: Sequence[str]) -> str:
    head = [_latex_text(text) for text in headings(table, columns)]
    caption = f"{table.conditions.title()} ({', '.join(table.conditions.words())}), nats per image"
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex_text(caption)}}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * (1 + len(columns))}rrrrlrr}}", r"\toprule"]
    lines += [" & ".join(head) + r" \\", r"\midrule"]
    for row in table.rows:
        texts = [_latex_text(text) for text in cells(table, row, columns)]
        value = number(row.mean, row.sd, row.stderr)
        star = "^{*}" if row.unfinished else ""
        texts[1 + len(columns)] = f"${_LATEX_SIGNS[row.record.direction]} {value}{star}$"
        lines.append(" & ".join(texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", *(f"% note: {note}" for note in table.notes())]
    return "\n".join(lines)


def _latex_text(text: str) -> str:
    if text == "-":
        return "--"
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {letter: f"\\{letter}" for letter in "&%$#_{}"} | {"<": "$<$", ">": "$>$"}
    return "".join(special.get(letter, letter) for letter in text)


FORMATS: dict[str, Callable[[Comparison, Chosen, Pairs], str]] = {
    "table": _terminal,
    "md": _markdown,
    "csv": _csv,
    "json": _json,
    "latex": _latex,
}
