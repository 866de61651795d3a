"""The charts of a page as files: SVG pictures that need no style sheet, and CSV tables of what is drawn."""

import base64
import csv
import io
import re
import textwrap
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

from vaebench.report.formats import csv_cell
from vaebench.typed import printable

__all__ = ["ChartFiles", "Link"]

_LINE = 16  # pixels, the height of a line of the title
_LETTER = 8.0  # pixels, the width of a letter of the title
_HEAD = re.compile(r'<svg[^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>')
_DASHES = (("d1", "7 4"), ("d2", "2 4"))  # as in page.css


class Link(NamedTuple):
    """A file inside the page."""

    name: str
    uri: str

    @property
    def kind(self) -> str:
        """SVG or CSV."""
        return self.name.rpartition(".")[2].upper()


class ChartFiles:
    """Collects the files of the charts while a page is made."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        """The contents by file name."""

    def links(self, name: str, title: str, svg: str, rows: Sequence[Sequence[object]]) -> list[Link]:
        """Add the picture and the table of a chart, and return links to both.

        Args:
            name: of the files, without the end.
            title: the line above the picture.
            svg: the chart as in the page.
            rows: the table, with a line of titles.
        """
        files = {f"{name}.svg": ("svg+xml", standalone(svg, title)), f"{name}.csv": ("csv", _csv(rows))}
        self.texts |= {file: text for file, (_, text) in files.items()}
        return [
            Link(file, _uri("image" if kind != "csv" else "text", kind, text)) for file, (kind, text) in files.items()
        ]


def _uri(group: str, kind: str, text: str) -> str:
    return f"data:{group}/{kind};base64,{base64.b64encode(printable(text).encode()).decode('ascii')}"


def standalone(svg: str, title: str) -> str:
    """Return a chart of the page as a picture with its title, the light colours, and no reference to a style sheet."""
    head = _HEAD.search(svg)
    if head is None:
        raise ValueError("the chart must be an svg element with a viewBox that starts at 0 0")
    width, height = (float(size) for size in head.groups())
    drawn = re.sub(r'<title>[^<]*</title>|<path [^>]*class="seed"/>', "", svg[head.end() :])
    lines = textwrap.wrap(title, int((width - 8) / _LETTER))
    top = _LINE * len(lines) + 10
    titles = "".join(
        f'<text x="4" y="{_LINE * place - top}" class="heading">{escape(line, quote=False)}</text>\n'
        for place, line in enumerate(lines, start=1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-top} {width:g} {height + top:g}" '
        f'width="{width:g}" height="{height + top:g}">\n<style>\n{_style(svg)}</style>\n'
        f'<rect x="0" y="{-top}" width="{width:g}" height="{height + top:g}" fill="#ffffff"/>\n{titles}'
        f"{drawn.strip()}\n"
    )


def _style(svg: str) -> str:
    """Return the rules for the classes of a chart without variables, which many programs cannot read."""
    used = {name for names in re.findall(r'class="([^"]*)"', svg) for name in names.split()}
    colours, rules = _light()
    lines = []
    for selector, body in rules:
        if not set(re.findall(r"\.(\w+)", selector)) <= used | {"heading"}:
            continue
        plain = re.sub(r"var\(--(\w{2,})\)", lambda found: colours[found[1]], body.replace("var(--dash, none)", "none"))
        if "var(--c)" not in plain:
            lines.append(f"{selector} {{{plain}}}")
            continue
        for name in sorted(used & colours.keys()):
            lines.append(f".{name} {selector} {{{plain.replace('var(--c)', colours[name])}}}")
        if "var(--dash" in body:
            lines += [f".{name} {selector} {{ stroke-dasharray: {dash}; }}" for name, dash in _DASHES if name in used]
    return "".join(f"{line}\n" for line in lines)


@cache
def _light() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the light colours by name, and the rules of chart.css as (selector, body)."""
    folder = Path(__file__).with_name("templates")
    page = (folder / "page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", page.split("@media")[0]))
    return colours, re.findall(r"([^{}]+?)\s*{([^{}]*)}\s*", (folder / "chart.css").read_text(encoding="utf-8"))


def _csv(rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: object) -> object:
    """Return a number with seven digits; other values as `csv_cell` does."""
    return f"{value:.7g}" if isinstance(value, float) else csv_cell(value)
