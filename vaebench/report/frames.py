"""Runs as pandas tables: settings and results, results, and learning curves in tidy form (one number in each row).

Every number has its direction beside it: ``lower_bound``, ``upper_bound``, ``exact``, ``estimate``, or an empty text
for a number that is not compared to log p(x) or to another unknown quantity, for example a gradient norm.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from vaebench.direction import Direction
from vaebench.records import ResultRecord, read_metrics
from vaebench.records.current import VALIDATION
from vaebench.report.conditions import LOG_LIKELIHOOD, SIMULATED, Conditions, Result
from vaebench.report.curves import TRAINING
from vaebench.report.differences import common_values, distinguishing_settings, label
from vaebench.report.runs import Run

if TYPE_CHECKING:
    import pandas

__all__ = ["CURVE_COLUMNS", "curves_frame", "method_names", "results_frame", "runs_frame"]

CURVE_COLUMNS = ("run", "method", "seed", "step", "epoch", "seconds", "quantity", "direction", "value")
_DIRECTIONS = {
    TRAINING: Direction.LOWER_BOUND,
    VALIDATION: Direction.LOWER_BOUND,
    "train/bound_estimate": Direction.ESTIMATE,
}
"""Of the metrics that estimate log p(x)."""
_NOT_METRICS = ("step", "epoch", "wall")


def method_names(runs: Sequence[Run]) -> list[str]:
    """Return a short name for each run: encoder, objective, and the settings other than the seed that tell apart."""
    methods = {run.method: run.settings for run in runs}
    keys = distinguishing_settings(list(methods.values()))
    common = common_values(list(methods.values()), keys)
    return [label(run.settings, keys, common) for run in runs]


def curves_frame(runs: Sequence[Run]) -> "pandas.DataFrame":
    """Return every recorded number of the runs, one in each row, with `CURVE_COLUMNS`.

    ``seconds`` is the training time so far, ``quantity`` the name in metrics.jsonl, for example
    ``validation/log_likelihood`` (nats per image).

    Raises:
        UserError: a line of a metrics.jsonl is corrupt.
    """
    import pandas

    rows = [row for run, name in zip(runs, method_names(runs), strict=True) for row in _curve_rows(run, name)]
    return pandas.DataFrame(rows, columns=list(CURVE_COLUMNS))


def _curve_rows(run: Run, name: str) -> Iterator[tuple[Any, ...]]:
    of_results = {record.mean: record.direction for record in run.results}
    for line in read_metrics(run.folder):
        where = (str(run.folder.path), name, run.seed, line["step"], line["epoch"], line["wall"])
        for quantity, value in line.items():
            if quantity not in _NOT_METRICS and value is not None:
                yield (*where, quantity, str(_DIRECTIONS.get(quantity) or of_results.get(value, "")), value)


def results_frame(results: Sequence[Result]) -> "pandas.DataFrame":
    """Return a table with one result in each row; ``stderr`` is over images, numbers are in nats per image."""
    import pandas

    names = method_names([run for run, _ in results])
    rows = [
        {"run": str(run.folder.path), "method": name, "seed": run.seed, **_result_columns(record)}
        for (run, record), name in zip(results, names, strict=True)
    ]
    return pandas.DataFrame(rows, columns=["run", "method", "seed", *_COLUMNS])


_SAME_NAME = ("quantity", "direction", "mean", "stderr", "estimator", "protocol", "split", "n_images", "repeats")
_SAME_NAME += ("measure", "precision", "log_q", "epoch")
_COLUMNS: dict[str, Callable[[ResultRecord], Any]] = {name: attrgetter(name) for name in _SAME_NAME}
# k and inner_k without a prefix are settings of the training, as in `vaebench compare`.
_COLUMNS |= {"result.k": attrgetter("k"), "result.inner_k": attrgetter("inner_k")}
_COLUMNS |= {
    "estimator_settings": lambda record: json.dumps(dict(record.settings)),
    "evaluation_seconds": attrgetter("seconds"),
}


def _result_columns(record: ResultRecord | None) -> dict[str, Any]:
    """Return the columns of a result; empty ones without a result."""
    values = {name: None if record is None else read(record) for name, read in _COLUMNS.items()}
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in values.items()}


def runs_frame(runs: Sequence[Run]) -> "pandas.DataFrame":
    """Return one row for each run: its state, one result, and its settings.

    The result is of log p(x). If a run has several, it is the latest of the kind that most runs have: same data,
    estimator and effort. ``results`` counts all current results of the run, which `results_frame` lists.
    """
    import pandas

    kinds = Counter(kind for run in runs for kind in {_kind(run, record) for record in _log_likelihoods(run)})
    rows = [
        {
            "run": str(run.folder.path),
            "method": name,
            "seed": run.seed,
            "state": run.state,
            "epochs_done": run.epochs_done,
            **_result_columns(_headline(run, kinds)),
            "results": len(run.results),
            "parameters": run.parameters,
            "wall_seconds": run.wall_seconds,
            **run.settings,
        }
        for run, name in zip(runs, method_names(runs), strict=True)
    ]
    return pandas.DataFrame(rows)


def _log_likelihoods(run: Run) -> list[ResultRecord]:
    return [record for record in run.results if record.quantity == LOG_LIKELIHOOD and record.split != SIMULATED]


def _kind(run: Run, record: ResultRecord) -> Conditions:
    return replace(Conditions.of(Result(run, record)), inner_k=None, epochs=None)


def _headline(run: Run, kinds: "Counter[Conditions]") -> ResultRecord | None:
    """Return the latest result of the most frequent kind; None if the run has no result of log p(x)."""
    found = _log_likelihoods(run)
    most = max((kinds[_kind(run, record)] for record in found), default=0)
    return next((record for record in reversed(found) if kinds[_kind(run, record)] == most), None)
