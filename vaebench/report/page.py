"""One self-contained page about many runs: tables, curves, pictures, commands. No script, no network.

Every colour comes from the style sheet, which knows light and dark; the check boxes that show and hide methods are
CSS alone. A content security policy in the page forbids whatever would have to be fetched.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from vaebench import __version__
from vaebench.records import format_line
from vaebench.report import sections
from vaebench.report.charts import STYLES
from vaebench.report.comparison import Comparison
from vaebench.report.differences import common_values, distinguishing_settings, label
from vaebench.report.formats import duration
from vaebench.report.groups import RunGroup
from vaebench.report.markup import Markup, element, joined
from vaebench.report.run_summary import command_of, facts_of
from vaebench.report.runs import Run
from vaebench.report.tables import Table

__all__ = ["page"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(runs: Sequence[Run], comparison: Comparison, *, title: str | None = None) -> str:
    """Return the page.

    Args:
        runs: those whose curves and facts are shown.
        comparison: of the same runs.
        title: of the page; by default it counts the methods.
    """
    protocols = _by_data(runs, comparison)
    methods = sum(len(section.methods) for section in protocols)
    title = title or f"{_counted(methods, 'method')}, {_counted(len(runs), 'run')}"
    body = [
        element("header", _head(title, protocols, comparison)),
        element(
            "main", [section.markup() for section in protocols], _runs(protocols), _left_out(comparison), _legend()
        ),
        element("footer", element("p", f"made by vaebench {__version__}", class_="soft")),
    ]
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    shown = [section.hiding() for section in protocols]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Markup(style + "".join(shown))),
    ]
    return "<!doctype html>\n" + element("html", element("head", head), element("body", body), lang="en") + "\n"


@dataclass(frozen=True)
class _Section:
    """All that concerns one protocol: other data make other numbers."""

    name: str
    number: int
    methods: Sequence[RunGroup]
    tables: Sequence[Table]

    @cached_property
    def keys(self) -> list[str]:
        """The settings that name the methods."""
        return distinguishing_settings([method.settings for method in self.methods])

    @property
    def place(self) -> str:
        return f"data{self.number}"

    def markup(self) -> Markup:
        named = {method.name: method for method in self.methods}
        return element(
            "section",
            element("h2", self.name, id=self.place),
            sections.switches(self.methods) if len(self.methods) > 1 else None,
            joined(sections.results(table, named, self.keys) for table in self.tables),
            sections.curves(self.place, self.methods, self.tables),
            sections.diagnostics(self.methods),
            sections.shown_pictures(self.methods),
            class_="data",
        )

    def hiding(self) -> str:
        """Return the rules that hide a method whose box is not checked."""
        return "".join(
            f"body:has(#show{m.number}:not(:checked)) .s{m.number}{{display:none!important}}\n" for m in self.methods
        )


def _by_data(runs: Sequence[Run], comparison: Comparison) -> list[_Section]:
    """Return a section for each protocol, that of the largest table first."""
    of_method: dict[str, list[Run]] = defaultdict(list)
    for run in [*comparison.runs, *runs]:  # the tables' order first
        if all(run.folder.path != other.folder.path for other in of_method[run.method]):
            of_method[run.method].append(run)
    by_data: dict[str, list[list[Run]]] = defaultdict(list)
    for group in of_method.values():
        by_data[_data_of(group[0])].append(group)
    found: list[_Section] = []
    count = 0
    for number, (name, groups) in enumerate(by_data.items()):
        methods = _methods(groups, first=count)
        # The next section's begin with the first colour again.
        count += math.ceil(len(methods) / STYLES) * STYLES
        tables = [table for table in comparison.tables if _data_of(table.runs[0]) == name]
        found.append(_Section(name, number, methods, tables))
    return found


def _methods(groups: Sequence[Sequence[Run]], first: int) -> list[RunGroup]:
    """Return a method for each group of runs, numbered from ``first``."""
    every = [group[0].settings for group in groups]
    keys = distinguishing_settings(every)
    common = common_values(every, keys)
    return [
        RunGroup(number, label(settings, keys, common), settings, sorted(group, key=lambda run: run.seed))
        for number, (settings, group) in enumerate(zip(every, groups, strict=True), start=first)
    ]


def _data_of(run: Run) -> str:
    dataset = run.config.dataset
    return run.manifest.get("dataset", {}).get("protocol") or f"{dataset.name}, {dataset.binarization}"


def _head(title: str, protocols: Sequence[_Section], comparison: Comparison) -> Iterator[Markup]:
    yield element("h1", title)
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    yield element(
        "p", f"{when}. Numbers are nats per image; every one carries its direction and its error.", class_="soft"
    )
    links = [(section.place, section.name) for section in protocols] + [("runs", "every run")]
    links += [("left-out", f"left out ({len(comparison.left_out)})")] if comparison.left_out else []
    links += [("reading", "how to read the numbers")]
    yield element("nav", [element("a", text, href=f"#{place}") for place, text in links], aria_label="Contents")
    yield from (element("p", note, class_="note") for note in comparison.notes)


def _runs(protocols: Sequence[_Section]) -> Markup:
    methods = [(section, method) for section in protocols for method in section.methods]
    return element("section", element("h2", "Every run", id="runs"), [_method(*one) for one in methods])


def _method(section: _Section, method: RunGroup) -> Markup:
    seeds = ", ".join(str(run.seed) for run in method.runs)
    words = f", {section.name}, seed{'s' * (len(method.runs) != 1)} {seeds}"
    summary = element("summary", element("strong", method.label), words)
    return element("details", summary, [_run(run) for run in method.runs], class_="method")


def _run(run: Run) -> Markup:
    facts = [(element("dt", name), element("dd", text)) for name, text in facts_of(run) if text and name != "command"]
    words = f", {run.state}, {run.epochs_done:.4g} epochs, {duration(run.wall_seconds)}"
    return element(
        "details",
        element("summary", element("strong", f"seed {run.seed}"), words),
        element("pre", command_of(run)) if command_of(run) else None,
        element("ul", [element("li", format_line(record)) for record in run.results], class_="plain"),
        element("dl", [part for pair in facts for part in pair]),
    )


def _left_out(comparison: Comparison) -> Markup | None:
    if not comparison.left_out and not comparison.filtered:
        return None
    items = [element("li", element("code", str(folder)), f": {reason}") for folder, reason in comparison.left_out]
    if comparison.filtered:
        items.append(element("li", f"{_counted(comparison.filtered, 'run')} filtered out"))
    return element(
        "section", element("h2", "Left out of the tables", id="left-out"), element("ul", items, class_="plain")
    )


def _legend() -> Markup:
    texts = [
        "≥ and a triangle towards larger numbers mark a lower bound: in expectation, the log-likelihood is at least "
        "that. ≤ marks an upper bound, = an exact number, and ~ with a ring an estimate that bounds nothing and has no "
        "rank.",
        "The thick bar is the standard deviation over seeds: how much another training would differ. The thin line is "
        "the estimator's own standard error over images: how much another test set of that size would differ. All "
        "seeds see the same images, so it does not shrink with their number.",
        "A table holds only what is alike: protocol, split, images, estimator and its effort, epoch budget. Bold "
        "curves are means over seeds, thin ones single seeds. The first epochs may lie below the frame.",
        "Pictures are of each method's run with the lowest seed that has any.",
    ]
    return element("section", element("h2", "How to read the numbers", id="reading"), [element("p", t) for t in texts])


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
