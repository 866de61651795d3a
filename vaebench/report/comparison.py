"""Results side by side: seeds aggregated, only like with like, and whatever is left out is said."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vaebench.errors import UserError, did_you_mean
from vaebench.records import ResultRecord
from vaebench.report.filters import chosen
from vaebench.report.likeness import FOLLOWS_ENCODER, LOG_LIKELIHOOD, SIMULATED, Conditions, Result
from vaebench.report.runs import LeftOut, Run, read_runs
from vaebench.report.tables import FACTS, Row, Table

__all__ = ["Comparison", "check_columns", "compare", "compare_runs"]


@dataclass(frozen=True)
class Comparison:
    """Tables, the largest first, and what is in none of them."""

    tables: Sequence[Table]
    left_out: Sequence[LeftOut] = ()
    filtered: int = 0
    """Runs that the filters took away."""
    notes: Sequence[str] = field(default=())

    @property
    def rows(self) -> list[Row]:
        """The rows of all tables."""
        return [row for table in self.tables for row in table.rows]

    @property
    def runs(self) -> list[Run]:
        """Every run in some table, once, in the order of the tables."""
        seen = {run.folder.path: run for table in self.tables for run in table.runs}
        return list(seen.values())


def compare(
    paths: Iterable[str | Path],
    *,
    filters: Sequence[str] = (),
    quantity: str = LOG_LIKELIHOOD,
    unfinished: bool = False,
) -> Comparison:
    """Compare the runs at or below ``paths``.

    Args:
        paths: run folders, or folders of runs.
        filters: conditions that must all hold, as in ``encoder=gaussian,hvm`` or ``k>=5``.
        quantity: of the results to compare.
        unfinished: whether runs that did not finish are compared too, marked, where they have a result.

    Raises:
        UserError: a path holds no run, or a filter names a setting that no run has.
    """
    runs, damaged = read_runs(paths)
    return compare_runs(runs, damaged, filters=filters, quantity=quantity, unfinished=unfinished)


def compare_runs(
    runs: Sequence[Run],
    damaged: Sequence[LeftOut] = (),
    *,
    filters: Sequence[str] = (),
    quantity: str = LOG_LIKELIHOOD,
    unfinished: bool = False,
) -> Comparison:
    """Compare runs that were read already; otherwise as :func:`compare`."""
    kept = chosen(runs, filters)
    results, without = _results(kept, quantity, unfinished=unfinished)
    results, doubled = _once(results)
    tables = sorted(_tables(results), key=lambda table: -len(table.runs))
    left_out = [*damaged, *without, *doubled]
    return Comparison(tables, left_out, len(runs) - len(kept), list(_why_several(tables)))


def _results(runs: Sequence[Run], quantity: str, *, unfinished: bool) -> tuple[list[Result], list[LeftOut]]:
    """Return the results that can be compared, and the runs that have none."""
    results: list[Result] = []
    left_out: list[LeftOut] = []
    for run in runs:
        reason = _why_not(run, quantity, unfinished=unfinished)
        if reason:
            left_out.append(LeftOut(run.folder.path, reason))
        else:
            results += [Result(run, record) for record in _latest(run, quantity)]
    return results, left_out


def _why_not(run: Run, quantity: str, *, unfinished: bool) -> str | None:
    """Why a run has no result to compare, or None."""
    records = [record for record in run.results if record.quantity == quantity]
    if run.state != "finished" and not (unfinished and records):
        return _how_it_stands(run)
    if not run.results:
        return "it has no result: `vaebench evaluate` it"
    if not records:
        return f"it has no result of {quantity}, only of {', '.join(sorted({r.quantity for r in run.results}))}"
    if all(record.split == SIMULATED for record in records):
        return "its only results are on images that its own model simulated, which no other model shares"
    return None


def _how_it_stands(run: Run) -> str:
    if run.state == "not started":
        return "it never started"
    where = f"{run.state} at epoch {run.epochs_done:.4g} of {run.config.trainer.epochs}"
    error = run.status.error if run.status else None
    evaluated = ", with a result (--unfinished shows it)" if run.results else ""
    return where + evaluated + (f": {error}" if error else "")


def _latest(run: Run, quantity: str) -> list[ResultRecord]:
    """The results of one run, each with the weights of the latest epoch it was estimated for."""
    latest: dict[tuple[object, ...], ResultRecord] = {}
    for record in run.results:
        if record.quantity == quantity and record.split != SIMULATED:
            key = (Conditions.of(Result(run, record)), record.direction)
            if key not in latest or record.epoch >= latest[key].epoch:
                latest[key] = record
    return list(latest.values())


def _once(results: Sequence[Result]) -> tuple[list[Result], list[LeftOut]]:
    """Leave out a run that repeats another one's configuration and seed; the latest stays."""
    places: dict[tuple[str, int], Run] = {}
    for run, _ in results:
        other = places.setdefault((run.method, run.seed), run)
        if _updated(run) > _updated(other):
            places[run.method, run.seed] = run
    kept = [result for result in results if places[result.run.method, result.run.seed] is result.run]
    repeated = (
        {r.run.folder.path: places[r.run.method, r.run.seed] for r in results} if len(kept) < len(results) else {}
    )
    return kept, [
        LeftOut(path, f"it repeats {stays.folder.path}: the same configuration and seed")
        for path, stays in repeated.items()
        if path != stays.folder.path
    ]


def _updated(run: Run) -> str:
    return run.status.updated if run.status else ""


def _tables(results: Iterable[Result]) -> Iterator[Table]:
    """Yield one table for each set of conditions."""
    alike: dict[Conditions, list[tuple[int | None, Result]]] = defaultdict(list)
    for result in results:
        conditions = Conditions.of(result)
        alike[conditions.without_inner()].append((conditions.inner_k, result))
    for conditions, pairs in alike.items():
        inner = sorted({inner_k for inner_k, _ in pairs if inner_k is not None}) or [None]
        for inner_k in inner:
            # An exact density needs no inner samples, and can stand beside any number of them.
            chosen = [result for own, result in pairs if own in (None, inner_k)]
            yield Table(conditions.with_inner(inner_k), _ranked(_rows(chosen)))


def _rows(results: Iterable[Result]) -> list[Row]:
    methods: dict[tuple[object, ...], list[Result]] = defaultdict(list)
    for result in results:
        follows = tuple(result.record.settings.get(name) for name in FOLLOWS_ENCODER)
        methods[result.run.method, result.record.estimator, result.record.direction, *follows].append(result)
    return [
        Row(results[0].run.settings, sorted(results, key=lambda result: result.run.seed))
        for results in methods.values()
    ]


def _ranked(rows: Iterable[Row]) -> list[Row]:
    """Sort the rows, highest first, and count those that can be ranked."""
    highest_first = sorted(rows, key=lambda row: -row.mean)
    ranked = [row for row in highest_first if _can_be_ranked(row.record)]
    others = [row for row in highest_first if not _can_be_ranked(row.record)]
    return [Row(row.settings, row.results, rank) for rank, row in enumerate(ranked, start=1)] + others


def _can_be_ranked(record: ResultRecord) -> bool:
    """A higher bound on log p(x) is better; of a gap, say, or of an upper bound, nobody knows."""
    return record.quantity == LOG_LIKELIHOOD and record.direction in ("lower_bound", "exact")


def _why_several(tables: Sequence[Table]) -> Iterator[str]:
    """Say in what the conditions of several tables differ, and how to bring them together."""
    if len(tables) < 2:
        return
    facts = [table.conditions.__dict__ for table in tables]
    differing = [name for name in facts[0] if len({fact[name] for fact in facts}) > 1]
    if "protocol" in differing:  # other images have other bytes
        differing = [name for name in differing if name != "fingerprint"]
    names = {"n_images": "number of images", "epochs": "trainer.epochs", "upper": "direction"}
    yield (
        f"{len(tables)} tables, because not all results are alike: they differ in "
        f"{', '.join(names.get(name, name) for name in differing)}"
    )
    pairs = itertools.combinations(tables, 2)
    if any(a.conditions.without_inner() == b.conditions.without_inner() for a, b in pairs):
        most = max(table.conditions.inner_k or 0 for table in tables)
        yield (
            "encoders with inner samples were evaluated with several inner_k: `vaebench evaluate RUN... "
            f"estimator.inner_k={most}` puts them in one table"
        )


def check_columns(columns: Sequence[str], comparison: Comparison) -> None:
    """Raise UserError for a column that is neither a setting of a run nor a fact about a row."""
    known = {*FACTS, *(key for row in comparison.rows for key in row.settings)}
    if unknown := [column for column in columns if column not in known]:
        facts = ", ".join(FACTS)
        raise UserError(
            f"there is no column '{unknown[0]}'{did_you_mean(unknown[0], known)}; "
            f"columns: the settings of the runs, and {facts}"
        )
