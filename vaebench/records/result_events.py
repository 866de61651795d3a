"""Show the current results of a run in TensorBoard: results.json as an event file of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vaebench.errors import TakenOver
from vaebench.records import events
from vaebench.records.current import VALIDATION, split_results
from vaebench.records.folder import RunFolder
from vaebench.records.metrics import read_metrics
from vaebench.records.results import ResultRecord, conditions, format_line, results_locked

__all__ = ["RESULTS_TAG", "drop_outdated", "results_shown", "show_results", "tag"]

RESULTS_TAG = "results"


def show_results(folder: RunFolder, run: str) -> None:
    """Replace the run's event file of results by one with the results of the run as it is now.

    Each result is a point at the step of its weights. Several processes may call this at once: the last one has read
    what all of them have written.

    Args:
        folder: the run folder.
        run: the identity of its configuration.

    Raises:
        UserError: results.json is corrupt, or the event file cannot be written.
    """
    with results_locked(folder):
        records, _ = split_results(folder, run)
        events.replace_results(folder.path, _points(folder, records))


def drop_outdated(folder: RunFolder, run: str) -> None:
    """Call `show_results` if TensorBoard shows results of the run, which may be outdated now."""
    if events.result_files(folder.path):
        show_results(folder, run)


@contextmanager
def results_shown(folder: RunFolder, run: str) -> Iterator[None]:
    """Call `show_results` at the end of a block, also after an error, but not if another process took the run over.

    A session of training deletes the event file of results at its start, because its weights change.
    """
    try:
        yield
    except TakenOver:
        raise
    except BaseException:
        drop_outdated(folder, run)
        raise
    show_results(folder, run)


def tag(record: ResultRecord) -> str:
    """Return the tag of a result: split, estimator, direction and conditions.

    For example ``test/iwae_k5000 (lower bound, mnist/dynamic-v1)``. Results with equal tags may be compared.
    """
    numbers = {"k": record.k, "inner_k": record.inner_k}
    name = "_".join([record.estimator.lower(), *(f"{key}{value}" for key, value in numbers.items() if value)])
    quantity = record.measure.named(record.quantity)
    words = [record.direction.replace("_", " "), *([] if quantity == "log p(x)" else [quantity])]
    return f"{record.split}/{name} ({', '.join([*words, *conditions(record, without=tuple(numbers))])})"


def _points(folder: RunFolder, records: Sequence[ResultRecord]) -> list[events.Point]:
    """Return a scalar for each result, and all of them as lines of text; nothing for a run without results."""
    if not records:
        return []
    steps = {round(line["epoch"]): line["step"] for line in read_metrics(folder) if VALIDATION in line}
    points = [(steps.get(record.epoch, 0), events.scalar(tag(record), record.mean)) for record in records]
    lines = "\n".join(f"    {format_line(record)}" for record in records)  # indented: Markdown shows it as it is
    last = max(step for step, _ in points)
    return [*points, (last, events.markdown(RESULTS_TAG, lines))]
