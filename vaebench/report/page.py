"""An HTML page about many runs: tables, curves, pictures and commands, in one file without scripts.

The templates are in templates/. The style sheet defines all colours, for light and dark. Check boxes that show and hide
methods need only CSS. A content security policy in the page forbids every download.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaebench import __version__
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
    methods = sum(len(section.groups) for section in found)
    template = _environment().get_template("page.html.jinja")
    return template.render(
        title=title or f"{counted(methods, 'method')}, {counted(len(runs), 'run')}",
        time=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        sections=found,
        comparison=comparison,
        version=__version__,
    )


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


@dataclass(frozen=True)
class _Section:
    """The part of the page about one data protocol; results on other data are not comparable."""

    name: str
    number: int
    groups: Sequence[RunGroup]
    tables: Sequence[Table]

    @property
    def place(self) -> str:
        """The anchor of the section."""
        return f"data{self.number}"

    @property
    def results(self) -> list[sections.Results]:
        keys = distinguishing_settings([group.settings for group in self.groups])
        named = {group.name: group for group in self.groups}
        return [sections.results(table, named, keys) for table in self.tables]

    @cached_property
    def curves(self) -> list[Chart]:
        return sections.curves(self.place, self.groups, self.tables)

    @property
    def about_curves(self) -> str:
        return sections.about_curves([run for group in self.groups for run in group.runs])

    @cached_property
    def diagnostics(self) -> sections.DiagnosticsTable | None:
        return sections.diagnostics(self.groups)

    @property
    def pictures(self) -> list[sections.PicturesOfKind]:
        return sections.pictures_by_kind(self.groups)


def _by_data(runs: Sequence[Run], comparison: Comparison) -> list[_Section]:
    """Return a section for each protocol; the section of the largest table is first."""
    of_method: dict[str, list[Run]] = defaultdict(list)
    for run in [*comparison.runs, *runs]:  # in the order of the tables
        if all(run.folder.path != other.folder.path for other in of_method[run.method]):
            of_method[run.method].append(run)
    by_data: dict[str, list[list[Run]]] = defaultdict(list)
    for group in of_method.values():
        by_data[_data_of(group[0])].append(group)
    found: list[_Section] = []
    count = 0
    for number, (name, grouped) in enumerate(by_data.items()):
        groups = _groups(grouped, first=count)
        # The groups of each section start with the first colour.
        count += math.ceil(len(groups) / STYLES) * STYLES
        tables = [table for table in comparison.tables if _data_of(table.runs[0]) == name]
        found.append(_Section(name, number, groups, tables))
    return found


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
    dataset = run.config.dataset
    return run.manifest.get("dataset", {}).get("protocol") or f"{dataset.name}, {dataset.binarization}"
