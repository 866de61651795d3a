"""Numbers, plurals and tables as text: the one place for how results look on a terminal. Imports no torch."""

import math
import os
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import TextIO

from vaebench.direction import Direction
from vaebench.typed import printable

__all__ = [
    "SIGNS",
    "counted",
    "decimals",
    "encodable",
    "number",
    "shows_unicode",
    "table",
    "with_error",
    "with_sign",
    "wrapped",
]

SIGNS: dict[Direction, str] = {
    Direction.EXACT: "=",
    Direction.LOWER_BOUND: ">=",
    Direction.UPPER_BOUND: "<=",
    Direction.ESTIMATE: "~",
}
"""The sign before a number, which shows its direction."""

_GAP = 2  # spaces between columns
_NARROWEST = 20  # characters: a narrower column of text is left out
_ASCII = {"≥": ">=", "≤": "<=", "±": "+-", "−": "-", "–": "-", "…": "...", "→": "->", "×": "x"}  # noqa: RUF001


# Numbers ----------------------------------------------------------------------------------------------------


def decimals(*errors: float | None) -> int:
    """Return how many decimals show the smallest of ``errors``: at least 2, at most 8. None and 0 do not count."""
    smallest = min((error for error in errors if error), default=1.0)
    return 2 if smallest >= 0.005 else min(8, math.ceil(-math.log10(smallest)))


def number(value: float | None, *errors: float | None) -> str:
    """Return ``value`` with as many decimals as its ``errors`` need; "-" for None."""
    return "-" if value is None else f"{value:.{decimals(*errors)}f}"


def with_error(value: float, error: float, *, places: int | None = None, sign: str = "+-") -> str:
    """Return ``value`` and its standard error, for example ``-86.41 +- 0.07``; ``places`` overrides `decimals`."""
    places = decimals(error) if places is None else places
    return f"{value:.{places}f} {sign} {error:.{places}f}"


def with_sign(direction: Direction, text: str) -> str:
    """Return ``text`` after the sign of its direction, for example ``>= -86.41``."""
    return f"{SIGNS[direction]} {text}"


def counted(count: int, thing: str) -> str:
    """Return a count with its noun, for example ``1 run`` or ``3 runs``."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


# Tables -----------------------------------------------------------------------------------------------------


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str] | str],
    *,
    wrap: str | None = None,
    keep: Collection[str] = (),
    styles: Mapping[str, str] | None = None,
    titles: bool = True,
    hint: str = "",
    bold: Collection[tuple[int, int]] = (),
    width: int | None = None,
) -> str:
    """Return a table that fits ``width``, by default the width of the terminal, or 80 without a terminal.

    Columns that do not fit are left out, from the last to the first; a line under the table names them. Columns of
    numbers are aligned to the right. The text is ASCII but for the cells, and has colours only on a terminal.

    Args:
        head: the titles of the columns.
        rows: a cell for each column. A row that is a string is printed across the table, indented.
        wrap: the column whose long cells continue on the next line.
        keep: the columns to leave out after all others.
        styles: the style of every cell with a given text, for example ``{"failed": "red"}``; names are rich's.
        titles: whether to print ``head``.
        hint: how else to see all columns, for the line that names those left out.
        bold: the row and the column of each cell that is bold, in a table without rows across.
        width: in characters.
    """
    from rich.cells import cell_len  # most East Asian letters take two columns of a terminal

    width = width or terminal_width()
    rows = [row if isinstance(row, str) else [printable(cell) for cell in row] for row in rows]
    cells = [row for row in rows if not isinstance(row, str)]
    printed = [head, *cells] if titles else cells
    natural = [max((cell_len(row[column]) for row in printed), default=0) for column in range(len(head))]
    least = [min(size, _NARROWEST) if name == wrap else size for name, size in zip(head, natural, strict=True)]
    shown = _that_fit(head, least, keep, width)
    sizes = _sizes([natural[c] for c in shown], [head[c] == wrap for c in shown], width)
    right = [all(_is_number(row[c]) for row in cells) and bool(cells) for c in shown]
    lines: list[str] = []
    for across, group in groupby(([head] if titles else []) + list(rows), key=lambda row: isinstance(row, str)):
        if across:
            lines += [wrapped(str(row), first=" " * 4, rest=" " * 4, width=width) for row in group]
        else:
            some = [[row[c].replace("\n", " ") for c in shown] for row in group]
            places = {(row, shown.index(c)) for row, c in bold if c in shown}
            lines += _aligned(some, sizes, right, styles or {}, places, titles=titles and not lines)
    if missing := [name for column, name in enumerate(head) if column not in shown]:
        needed = sum(natural) + _GAP * (len(head) - 1)
        ways = " or ".join(way for way in (f"COLUMNS={needed}", hint) if way)
        lines.append(
            wrapped(f"left out to fit {width} columns: {', '.join(missing)} (to see all: {ways})", width=width)
        )
    return encodable("\n".join(lines))


def wrapped(text: str, *, first: str = "", rest: str = "  ", width: int | None = None) -> str:
    """Return ``text`` in lines that fit ``width`` (default: the terminal's); ``first`` and ``rest`` indent them.

    A word that does not fit, for example a path, stays whole.
    """
    import textwrap

    width, text = width or terminal_width(), printable(text)
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def terminal_width() -> int:
    """Return the width of the terminal, or $COLUMNS if it is set, or 80 without a terminal."""
    return max(_NARROWEST, shutil.get_terminal_size((80, 24)).columns)


def _that_fit(head: Sequence[str], least: Sequence[int], keep: Collection[str], width: int) -> list[int]:
    """Return the columns that fit; the first one always stays."""
    shown = list(range(len(head)))
    others = [column for column in reversed(shown) if column > 0]
    for column in sorted(others, key=lambda column: head[column] in keep):  # stable: still from the last to the first
        if sum(least[c] for c in shown) + _GAP * (len(shown) - 1) <= width:
            break
        shown.remove(column)
    return shown


def _sizes(natural: list[int], wraps: list[bool], width: int) -> list[int]:
    """Return the widths of the columns; the wrapping column, or else the first, gets the remaining width."""
    flexible = wraps.index(True) if True in wraps else 0
    rest = width - sum(natural) + natural[flexible] - _GAP * (len(natural) - 1)
    return [max(1, min(size, rest)) if c == flexible else size for c, size in enumerate(natural)]


def _aligned(
    rows: Sequence[Sequence[str]],
    sizes: Sequence[int],
    right: Sequence[bool],
    styles: Mapping[str, str],
    bold: Collection[tuple[int, int]],
    titles: bool,
) -> list[str]:
    """Return the lines of some rows; with ``titles`` the first row is the head, which ``bold`` does not count."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if not coloured and all(all(map(_fits, row, sizes)) for row in rows):
        return [_padded(row, sizes, right) for row in rows]
    from rich.console import Console  # here, because a command without a table must not wait for it
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    for size, end in zip(sizes, right, strict=True):
        grid.add_column(width=size, justify="right" if end else "left", overflow="fold")
    for index, row in enumerate(rows):
        head = titles and index == 0
        strong = [head or (index - titles, column) in bold for column in range(len(row))]
        texts = zip(row, strong, strict=True)
        grid.add_row(*(Text(cell, style="bold" if mark else styles.get(cell.strip(), "")) for cell, mark in texts))
    system = "standard" if coloured else None
    width = sum(sizes) + _GAP * len(sizes)
    console = Console(width=width, force_terminal=coloured, force_jupyter=False, color_system=system, highlight=False)
    with console.capture() as captured:
        console.print(grid)
    return [line.rstrip() for line in captured.get().splitlines()]


def _fits(cell: str, size: int) -> bool:
    from rich.cells import cell_len

    return cell_len(cell) <= size


def _padded(row: Sequence[str], sizes: Sequence[int], right: Sequence[bool]) -> str:
    """Return a line of cells that fit; rich takes a hundred times longer, which shows with thousands of lines."""
    from rich.cells import cell_len

    rooms = [" " * (size - cell_len(cell)) for cell, size in zip(row, sizes, strict=True)]
    cells = [room + cell if end else cell + room for cell, room, end in zip(row, rooms, right, strict=True)]
    return (" " * _GAP).join(cells).rstrip()


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number, with or without a sign before it and a unit or mark behind it."""
    first = cell.lstrip(">=<~ ").rstrip("*^!%").strip("()").split(" ")[0]
    try:
        float(first.replace(",", ""))
    except ValueError:
        return first in ("-", "")
    return True


# Encodings --------------------------------------------------------------------------------------------------


def shows_unicode(stream: TextIO | None = None) -> bool:
    """Whether ``stream`` (default: stdout) can show every letter."""
    encoding = (stream or sys.stdout).encoding or ""
    return encoding.lower().replace("-", "").startswith("utf")


def encodable(text: str, stream: TextIO | None = None) -> str:
    """Return ``text`` in letters that ``stream`` (default: stdout) can show: ``>=`` for ``≥``, for example."""
    output = stream or sys.stdout
    if shows_unicode(output):
        return text
    for letter, ascii_letters in _ASCII.items():
        text = text.replace(letter, ascii_letters)
    encoding = output.encoding or "ascii"
    return text.encode(encoding, errors="replace").decode(encoding)
