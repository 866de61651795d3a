"""Tables of comparable results, averaged over seeds, and the runs that are in no table."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vaebench.errors import UserError, did_you_mean
from vaebench.records import ResultRecord
from vaebench.report.baseline import with_differences
from vaebench.report.conditions import FOLLOWS_ENCODER, LOG_LIKELIHOOD, SIMULATED, Conditions, Result, comparable
from vaebench.report.filters import matching_runs
from vaebench.report.pairs import ImageReader
from vaebench.report.ranking import ranked
from vaebench.report.runs import LeftOut, Run, outdated_results, read_runs
from vaebench.report.tables import FACTS, Row, Table, with_looser_marked

__all__ = ["Comparison", "check_columns", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Tables, the largest first, and the runs that are in no table."""

    tables: Sequence[Table]
    left_out: Sequence[LeftOut] = ()
    filtered: int = 0
    """The number of runs that do not meet the filters."""
    notes: Sequence[str] = ()
    selected: Sequence[Run] = ()
    """The runs that meet the filters, also those without a table."""

    @property
    def rows(self) -> list[Row]:
        """The rows of all tables."""
        return [row for table in self.tables for row in table.rows]


def compare(
    paths: Iterable[str | Path],
    *,
    filters: Sequence[str] = (),
    quantity: str = LOG_LIKELIHOOD,
    unfinished: bool = False,
    baseline: str | None = None,
) -> Comparison:
    """Compare the runs at or below ``paths``.

    Args:
        paths: run folders, or folders of runs.
        filters: conditions that must all hold, as in ``encoder=gaussian,hvm`` or ``k>=5``.
        quantity: the quantity whose results are compared.
        unfinished: whether to include runs that did not finish but have a result; they are marked.
        baseline: conditions on one method, as in ``encoder=gaussian``; the others get their difference from it.

    Raises:
        UserError: there is no run below a path, a filter names a setting that no run has, no method meets the baseline,
            or a file of results per image that the baseline needs is corrupt.
    """
    runs, damaged = read_runs(paths)
    kept = matching_runs(runs, filters)
    results, without = _results(kept, quantity, unfinished=unfinished)
    results, repeated = _without_repeats(results)
    reader = ImageReader()
    tables = sorted(_tables(results, baseline, reader), key=lambda table: -len(table.runs))
    if tables and baseline is not None and not any(table.baselines for table in tables):
        raise UserError(f"no method meets the baseline {baseline}: give a condition that a row of a table meets")
    left_out = [*damaged, *without, *repeated]
    notes = [*_table_differences(tables), *outdated_results(kept)]
    notes += [f"no rank is due to the images of this result: {fault}" for fault in reader.faults]
    return Comparison(tables, left_out, len(runs) - len(kept), notes, kept)


def _results(runs: Sequence[Run], quantity: str, *, unfinished: bool) -> tuple[list[Result], list[LeftOut]]:
    """Return the results that can be compared, and the runs that have none."""
    results: list[Result] = []
    left_out: list[LeftOut] = []
    for run in runs:
        reason = _reason_left_out(run, quantity, unfinished=unfinished)
        if reason:
            left_out.append(LeftOut(run.folder.path, reason))
        else:
            results += [Result(run, record) for record in _latest(run, quantity)]
    return results, left_out


def _reason_left_out(run: Run, quantity: str, *, unfinished: bool) -> str | None:
    """Return why a run has no result to compare; None if it has one."""
    records = [record for record in run.results if record.quantity == quantity]
    if run.state != "finished" and not (unfinished and records):
        return _progress(run)
    if not run.results:
        return "it has no result: run `vaebench evaluate` on it"
    if not records:
        return f"it has no result of {quantity}, only of {', '.join(sorted({r.quantity for r in run.results}))}"
    if all(record.split == SIMULATED for record in records):
        return "its results are on images simulated from its own model, which are not comparable"
    return None


def _progress(run: Run) -> str:
    if run.state == "not started":
        return "it never started"
    where = f"{run.state} at epoch {run.epochs_done:.4g} of {run.config.trainer.epochs}"
    error = run.status.error if run.status else None
    evaluated = ", with a result (--unfinished shows it)" if run.results else ""
    return where + evaluated + (f": {error}" if error else "")


def _latest(run: Run, quantity: str) -> list[ResultRecord]:
    """Return the results of one run, each for the weights of the latest epoch."""
    latest: dict[tuple[object, ...], ResultRecord] = {}
    for record in run.results:
        if record.quantity == quantity and record.split != SIMULATED:
            key = (Conditions.of(Result(run, record)), record.direction)
            if key not in latest or record.epoch >= latest[key].epoch:
                latest[key] = record
    return list(latest.values())


def _without_repeats(results: Sequence[Result]) -> tuple[list[Result], list[LeftOut]]:
    """Leave out runs that train the same model with the same seed as another run.

    Of such runs, those with objective=elbo go first, and then the latest.
    """
    kept: dict[tuple[str, int], Run] = {}
    # Stable: of two runs with the same time the first is kept.
    by_time = sorted(results, key=lambda result: _updated(result.run), reverse=True)
    for run, _ in sorted(by_time, key=lambda result: result.run.config.objective.name != "elbo"):
        kept.setdefault((run.model, run.seed), run)
    repeated = {run.folder.path: (run, kept[run.model, run.seed]) for run, _ in results}
    return [result for result in results if kept[result.run.model, result.run.seed] is result.run], [
        LeftOut(path, _repetition(run, other)) for path, (run, other) in repeated.items() if run is not other
    ]


def _repetition(run: Run, other: Run) -> str:
    if run.method == other.method:
        return f"it repeats {other.folder.path}: same configuration and seed"
    names = " and ".join(f"objective={one.config.objective.name}" for one in (run, other))
    return f"it repeats {other.folder.path}: {names} with k={run.config.k} are the same model, with the same seed"


def _updated(run: Run) -> str:
    return run.status.updated if run.status else ""


def _tables(results: Iterable[Result], baseline: str | None, reader: ImageReader) -> Iterator[Table]:
    """Yield one table for each set of conditions."""
    for conditions, alike in comparable(results).items():
        rows = with_looser_marked(ranked(_rows(alike), reader))
        yield Table(conditions, rows if baseline is None else with_differences(rows, baseline, reader))


def _rows(results: Iterable[Result]) -> list[Row]:
    methods: dict[tuple[object, ...], list[Result]] = defaultdict(list)
    for result in results:
        follows = tuple(result.record.settings.get(name) for name in FOLLOWS_ENCODER)
        methods[result.run.model, result.record.estimator, result.record.direction, *follows].append(result)
    return [
        Row(_named_first(results).run.settings, sorted(results, key=lambda result: result.run.seed))
        for results in methods.values()
    ]


def _named_first(results: Sequence[Result]) -> Result:
    """Return a result of objective=elbo if the model has other names too, else the first."""
    return next((result for result in results if result.run.config.objective.name == "elbo"), results[0])


def _table_differences(tables: Sequence[Table]) -> Iterator[str]:
    """Yield the conditions in which several tables differ, and how to get one table."""
    if len(tables) < 2:
        return
    facts = [table.conditions.__dict__ for table in tables]
    differing_conditions = [name for name in facts[0] if len({fact[name] for fact in facts}) > 1]
    if "protocol" in differing_conditions:  # other images have other bytes
        differing_conditions = [name for name in differing_conditions if name != "fingerprint"]
    names = {"n_images": "number of images", "epochs": "trainer.epochs", "upper": "direction"}
    yield (
        f"{len(tables)} tables, because the results are not all comparable: they differ in "
        f"{', '.join(names.get(name, name) for name in differing_conditions)}"
    )
    by_inner_k: dict[Conditions, set[int]] = defaultdict(set)
    for table in tables:
        by_inner_k[replace(table.conditions, inner_k=None)].add(table.conditions.inner_k or 0)
    for conditions, found in by_inner_k.items():
        if len(found) > 1:
            numbers = ", ".join(map(str, sorted(found)))
            yield (
                f"encoders with inner samples were evaluated with inner_k={numbers} ({', '.join(conditions.words())}): "
                f"run `vaebench evaluate RUN... estimator.inner_k={max(found)}` to get one table"
            )


def check_columns(columns: Sequence[str], comparison: Comparison) -> None:
    """Raise UserError for a column that is neither a setting of a run nor in ``FACTS``."""
    known = {*FACTS, *(key for row in comparison.rows for key in row.settings)}
    if unknown := [column for column in columns if column not in known]:
        facts = ", ".join(FACTS)
        raise UserError(
            f"there is no column '{unknown[0]}'{did_you_mean(unknown[0], known)}; "
            f"columns: the settings of the runs, and {facts}"
        )
