"""An HTML page about many runs: tables, curves, pictures and commands, in one file without scripts.

The templates are in templates/. The style sheet defines all colours, for light and dark. Check boxes that show and hide
methods need only CSS. A content security policy in the page forbids every download.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaebench import __version__
from vaebench.direction import Measure
from vaebench.records import format_line
from vaebench.records.text import counted
from vaebench.report import sections
from vaebench.report.charts import FRAME, Chart, tick_text, triangle
from vaebench.report.comparison import Comparison
from vaebench.report.differences import common_values, distinguishing_settings, label
from vaebench.report.formats import duration
from vaebench.report.groups import STYLES, RunGroup
from vaebench.report.run_summary import command_of, facts_of
from vaebench.report.runs import Run
from vaebench.report.tables import Table
from vaebench.typed import printable

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["page"]


def page(runs: Sequence[Run], comparison: Comparison, *, title: str | None = None) -> str:
    """Return the page as HTML.

    Args:
        runs: the runs whose curves and facts are shown.
        comparison: a comparison of the same runs.
        title: the title of the page; by default the number of methods and runs.
    """
    found = _by_data(runs, comparison)
    comparison = replace(comparison, notes=[*comparison.notes, *sections.outdated(runs)])
    methods = sum(len(section.groups) for section in found)
    template = _environment().get_template("page.html.jinja")
    text = template.render(
        title=title or f"{counted(methods, 'method')}, {counted(len(runs), 'run')}",
        time=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        sections=found,
        comparison=comparison,
        version=__version__,
    )
    return printable(text)  # a page that holds half a letter, as in a folder's name, could not be written


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
        frame=FRAME,
        most_pictured=sections.MOST_PICTURED,
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
    results: Sequence[sections.Results]
    curves: Sequence[Chart]
    about_curves: str
    diagnostics: sections.DiagnosticsTable | None
    pictures: Sequence[sections.PicturesOfKind]


def _by_data(runs: Sequence[Run], comparison: Comparison) -> list[_Section]:
    """Return a section for each protocol and measure of p(x); the section of the largest table is first."""
    of_method: dict[str, dict[Path, Run]] = defaultdict(dict)
    for run in [*(run for table in comparison.tables for run in table.runs), *runs]:  # in the order of the tables
        of_method[run.method].setdefault(run.folder.path, run)
    by_data: dict[str, list[Sequence[Run]]] = defaultdict(list)
    for found in of_method.values():
        group = list(found.values())
        by_data[_data_of(group[0])].append(group)
    count, parts = 0, []
    for number, (name, grouped) in enumerate(by_data.items()):
        groups = _groups(grouped, first=count)
        # The groups of each section start with the first colour.
        count += math.ceil(len(groups) / STYLES) * STYLES
        tables = [table for table in comparison.tables if _data_of(table.runs[0]) == name]
        parts.append(_section(name, f"data{number}", groups, tables))
    return parts


def _section(name: str, place: str, groups: Sequence[RunGroup], tables: Sequence[Table]) -> _Section:
    keys = distinguishing_settings([group.settings for group in groups])
    named = {group.name: group for group in groups}
    return _Section(
        name,
        place,
        groups,
        results=[sections.results(table, named, keys) for table in tables],
        curves=sections.curves(place, groups, tables),
        about_curves=sections.about_curves([run for group in groups for run in group.runs]),
        diagnostics=sections.diagnostics(groups),
        pictures=sections.pictures_by_kind(groups),
    )


def _groups(grouped: Sequence[Sequence[Run]], first: int) -> list[RunGroup]:
    """Return the groups with their titles, numbered from ``first``."""
    every = [runs[0].settings for runs in grouped]
    keys = distinguishing_settings(every)
    common = common_values(every, keys)
    return [
        RunGroup(number, label(settings, keys, common), settings, sorted(runs, key=lambda run: run.seed))
        for number, (settings, runs) in enumerate(zip(every, grouped, strict=True), start=first)
    ]


def _data_of(run: Run) -> str:
    """Return the protocol of a run's data, also of a run whose manifest was moved away, and the measure of p(x)."""
    dataset, recorded = run.config.dataset, run.manifest.get("dataset", {}).get("protocol")
    evaluated = run.results[0].protocol if run.results else None
    protocol = recorded or evaluated or f"{dataset.name}, {dataset.binarization}"
    return protocol if run.measure is Measure.PROBABILITY else f"{protocol} ({run.measure})"
