"""An HTML page about many runs: tables, curves, pictures and commands, in one file without scripts.

The templates are in templates/. The style sheet defines all colours, for light and dark. Check boxes that show and hide
methods need only CSS. A content security policy in the page forbids every download from elsewhere.
"""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaebench import __version__
from vaebench.direction import Measure
from vaebench.records import format_line
from vaebench.records.text import counted
from vaebench.report import sections
from vaebench.report.chart_files import ChartFiles
from vaebench.report.charts import FRAME, Chart, tick_text, triangle
from vaebench.report.comparison import Comparison
from vaebench.report.differences import common_values, differing_settings, distinguishing_settings, label
from vaebench.report.formats import duration
from vaebench.report.groups import STYLES, RunGroup
from vaebench.report.learning_curves import about_curves, curves, parts_of_bound, shown_value
from vaebench.report.run_summary import command_of, facts_of
from vaebench.report.runs import Run
from vaebench.report.set_up import set_up
from vaebench.report.tables import Table
from vaebench.typed import printable

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["MOST_METHODS", "Page", "page"]

MOST_METHODS = 20
"""The methods of a section with charts, diagnostics and pictures, unless the caller chooses another number."""
_CHECKED = 8  # methods with curves before the reader checks more boxes: as many as there are colours
_MOST_DETAILED = 200  # runs with all facts; the others have one line


class Page(NamedTuple):
    """A page and the charts in it."""

    text: str
    charts: Mapping[str, str]
    """The contents of the pictures (SVG) and tables (CSV) of the charts, by file name."""


def page(runs: Sequence[Run], comparison: Comparison, *, title: str | None = None, methods: int = MOST_METHODS) -> Page:
    """Return the page as HTML.

    Args:
        runs: the runs whose curves and facts are shown.
        comparison: a comparison of the same runs.
        title: the title of the page; by default the number of methods and runs.
        methods: the number of methods of each section with charts and pictures, the best first. Tables have all.
    """
    found = _by_data(runs, comparison, methods)
    shown = [group for section in found for group in section.shown]
    comparison = replace(comparison, notes=[*comparison.notes, *sections.outdated(shown)])
    count = sum(len(section.groups) for section in found)
    files = ChartFiles()
    template = _environment().get_template("page.html.jinja")
    every = [(group, run) for section in found for group in section.groups for run in group.runs]
    detailed = {run.folder.path for run in [run for group in shown for run in group.runs][:_MOST_DETAILED]}
    text = template.render(
        title=title or f"{counted(count, 'method')}, {counted(len(runs), 'run')}",
        time=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        sections=found,
        detailed=detailed,
        more=[(group, run) for group, run in every if run.folder.path not in detailed],
        comparison=comparison,
        links=files.links,
        version=__version__,
    )
    return Page(printable(text), files.texts)  # a page that holds half a letter could not be written


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # here, because only a page needs it

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.globals.update(
        command_of=command_of,
        counted=counted,
        duration=duration,
        facts_of=facts_of,
        format_line=format_line,
        shown_value=shown_value,
        frame=FRAME,
        tick_text=tick_text,
        triangle=triangle,
    )
    return environment


def _shown(value: Any) -> Any:
    """Return a value as the page shows it: fractions with six digits, None as nothing."""
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value


class _Section(NamedTuple):
    """The part of the page about one data protocol and one measure; others are not comparable."""

    name: str
    place: str
    """The anchor of the section."""
    groups: Sequence[RunGroup]
    shown: Sequence[RunGroup]
    """The groups with charts, diagnostics and pictures."""
    checked: int
    """The number of groups, from the first, whose box is checked."""
    set_up: Sequence[tuple[str, str]]
    results: Sequence[sections.Results]
    curves: Sequence[Chart]
    parts: Sequence[Chart]
    """The charts of the parts of the bound."""
    about_curves: str
    diagnostics: sections.DiagnosticsTable | None
    pictures: Sequence[sections.PicturesOfKind]

    @property
    def has_seeds(self) -> bool:
        """Whether a chart has lines of single seeds."""
        return any(one.seeds for chart in [*self.curves, *self.parts] for one in chart.series)


def _by_data(runs: Sequence[Run], comparison: Comparison, methods: int) -> list[_Section]:
    """Return a section for each protocol and measure of p(x); the section of the largest table is first."""
    of_method: dict[str, dict[Path, Run]] = defaultdict(dict)
    for run in [*_in_order(comparison.tables), *runs]:
        of_method[run.method].setdefault(run.folder.path, run)
    by_data: dict[str, list[Sequence[Run]]] = defaultdict(list)
    for found in of_method.values():
        group = list(found.values())
        by_data[_data_of(group[0])].append(group)
    tables: dict[str, list[Table]] = defaultdict(list)
    for table in comparison.tables:
        tables[_data_of(table.rows[0].results[0].run)].append(table)
    count, parts = 0, []
    for name, grouped in by_data.items():
        groups = _groups(grouped, first=count)
        # The groups of each section start with the first colour.
        count += math.ceil(len(groups) / STYLES) * STYLES
        parts.append(_section(name, _place(name, {part.place for part in parts}), groups, tables[name], methods))
    return parts


def _place(name: str, used: Collection[str]) -> str:
    """Return an anchor, also the start of file names: letters, digits and hyphens."""
    place = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "data"
    return place if place not in used else f"{place}-{len(used)}"


def _in_order(tables: Sequence[Table]) -> Iterator[Run]:
    """Yield the runs of the tables, those of a baseline first, then the best."""
    for table in tables:
        yield from (result.run for row in table.baselines for result in row.results)
        yield from table.runs


def _section(name: str, place: str, groups: Sequence[RunGroup], tables: Sequence[Table], methods: int) -> _Section:
    shown = groups[:methods]
    named, names = {group.name: group for group in groups}, {group.name for group in shown}
    figures = curves(place, shown, tables)
    return _Section(
        name,
        place,
        groups,
        shown,
        _CHECKED,
        set_up(groups),
        results=[sections.results(table, named, names) for table in tables],
        curves=figures,
        parts=parts_of_bound(place, shown),
        about_curves=about_curves(shown, figures),
        diagnostics=sections.diagnostics(place, shown),
        pictures=sections.pictures_by_kind(shown),
    )


def _groups(grouped: Sequence[Sequence[Run]], first: int) -> list[RunGroup]:
    """Return the groups with their titles, numbered from ``first``."""
    every = [runs[0].settings for runs in grouped]
    keys = distinguishing_settings(every)
    common = common_values(every, keys)
    differing = set(differing_settings(every))
    short = [key for key in keys if key in differing] or keys
    return [
        RunGroup(
            number,
            label(settings, keys, common),
            label(settings, short, common) or "usual",
            settings,
            sorted(runs, key=lambda run: run.seed),
        )
        for number, (settings, runs) in enumerate(zip(every, grouped, strict=True), start=first)
    ]


def _data_of(run: Run) -> str:
    """Return the protocol of a run's data, also of a run whose manifest was moved away, and the measure of p(x)."""
    dataset, recorded = run.config.dataset, run.manifest.get("dataset", {}).get("protocol")
    evaluated = run.results[0].protocol if run.results else None
    protocol = recorded or evaluated or f"{dataset.name}, {dataset.binarization}"
    return protocol if run.measure is Measure.PROBABILITY else f"{protocol} ({run.measure})"
