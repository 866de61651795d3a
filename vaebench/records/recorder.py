"""Record the progress of a training session: metrics.jsonl for programs, TensorBoard events for people."""

import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from types import TracebackType
from typing import Any

from vaebench.errors import TakenOver, UserError
from vaebench.records import events
from vaebench.records.files import Appender, write_whole
from vaebench.records.folder import RunFolder, State
from vaebench.records.metrics import Written, chained, flatten, stored_lines
from vaebench.records.pictures import Images, grid

__all__ = ["Recorder"]

_RESERVED = {"step", "epoch", "wall", "nonfinite"}


class Recorder:
    """Writes the metrics and the TensorBoard events of one session to its run folder.

    Record the values of a step before you save its checkpoint, and save its :meth:`tags` and ``written`` in it: a
    session that resumes from the checkpoint keeps these values, and deletes what was recorded after the checkpoint.
    Readers see each record immediately; no method waits for the disk. As a context manager the recorder closes as
    finished, as interrupted (KeyboardInterrupt, SystemExit) or as failed (any other exception). After TakenOver it
    closes without a record.

    Raises:
        UserError: from every method that writes, if the disk is full.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        resume_step: int | None = None,
        resume_tags: Collection[str] | None = None,
        hparams: Mapping[str, Any] | None = None,
        group: str = "",
        written: Written | None = None,
    ) -> None:
        """Start a session.

        Args:
            folder: the run folder.
            resume_step: the step of the checkpoint from which the session resumes; None for a new run. Records of later
                steps are deleted, because the session repeats these steps.
            resume_tags: the tags in the checkpoint, which were recorded at its step; the step's other records are
                deleted. None: the checkpoint has none, because it is of an earlier version, which recorded the test
                result alone after a checkpoint.
            hparams: the settings, nested or flat, for TensorBoard's HParams.
            group: the title of the row in HParams; runs with the same group share it.
            written: ``self.written`` when the checkpoint was saved; None if the checkpoint does not hold it.
        """
        keep = _kept_records(resume_step, resume_tags)
        lines, chain, kept_tags = _trim_metrics(folder, keep, resume_step)
        trimmed = events.trim(folder.path, keep)
        kept = Written(lines=lines, chain=chain, points=trimmed.points)
        self.notices = list(trimmed.notices)
        """Messages about records of earlier sessions that were lost or changed."""
        if written is not None:
            self.notices += _losses(folder, f"up to step {resume_step}", written, kept, damaged=bool(trimmed.notices))
        self.written = Written(**(written or kept))  # not what is kept: a loss stays visible to readers of the run
        """What all sessions of the run have recorded, for the checkpoint and the manifest."""
        self._metrics = Appender(folder.metrics)
        first_step = 0 if resume_step is None else resume_step + 1
        self._events = events.EventFile(folder.path, first_step, after=trimmed.latest)
        self._tags = (resume_step or 0, kept_tags if resume_tags is None else set(resume_tags))
        self._closed = False
        if hparams is not None:
            self._events.add(0, events.session_start(flatten(hparams), group))

    def tags(self, step: int) -> list[str]:
        """Return the tags that were recorded at ``step``, sorted, if no later step has a record."""
        return sorted(self._tags[1]) if self._tags[0] == step else []

    def _note(self, step: int, tags: Iterable[str]) -> None:
        """Add ``tags`` to those of the step."""
        self._tags = (step, {*(self._tags[1] if self._tags[0] == step else ()), *tags})

    def scalars(
        self, step: int, epoch: float, values: Mapping[str, float], wall: float, *, events_too: bool = True
    ) -> None:
        """Record ``values`` by tag after optimiser step ``step``; ``wall`` is the seconds of training so far.

        ``events_too=False``: only in metrics.jsonl, and not for TensorBoard.
        """
        self._note(step, values)
        line = _line(step, epoch, values, wall).encode()
        self._metrics.write(line)
        self.written["lines"] += 1
        self.written["chain"] = chained(self.written["chain"], line)
        if not events_too:
            return
        self.written["points"] += len(values)
        self._events.add(step, *(events.scalar(tag, float(value)) for tag, value in values.items()))

    def image(self, tag: str, images: Images, step: int, *, columns: int = 8) -> None:
        """Record a grid of images; for their shapes see `vaebench.records.pictures.Images`."""
        self._note(step, [tag])
        self.written["points"] += 1
        self._events.add(step, events.picture(tag, grid(images, columns)))

    def config_table(self, config: Mapping[str, Any]) -> None:
        """Record the nested configuration as a table with one row for each key."""
        rows = [f"| {name} | {_cell(value)} |" for name, value in flatten(config).items()]
        self._events.add(0, events.markdown(events.CONFIG_TAG, "\n".join(["| key | value |", "|---|---|", *rows])))

    def charts(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Record the layout of TensorBoard's Custom Scalars: for each chart of each category, patterns of tags."""
        self._events.add(0, events.charts(layout))

    def close(self, state: State | None) -> None:
        """Record the final state, if any, in HParams and close the files; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            if state is not None:
                self._events.add(0, events.session_end(state))
        finally:
            self._events.close()
            self._metrics.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("finished")
            return
        if issubclass(kind, TakenOver):
            self.close(None)
            return
        with contextlib.suppress(UserError):  # a full disk must not hide the first error
            self.close("failed" if issubclass(kind, Exception) else "interrupted")


def _line(step: int, epoch: float, values: Mapping[str, float], wall: float) -> str:
    """Return one line of metrics.jsonl. JSON has no nan: such a value is null, and its text is in ``nonfinite``."""
    if reserved := _RESERVED & values.keys():
        raise ValueError(f"tags must not be named {', '.join(sorted(reserved))}")
    numbers = {tag: float(value) for tag, value in values.items()}
    line: dict[str, Any] = {"step": step, "epoch": round(epoch, 6), "wall": round(wall, 3)}
    line |= {tag: value if math.isfinite(value) else None for tag, value in numbers.items()}
    if nonfinite := {tag: str(value) for tag, value in numbers.items() if not math.isfinite(value)}:
        line["nonfinite"] = nonfinite
    return json.dumps(line, allow_nan=False) + "\n"


def _kept_records(last_step: int | None, tags: Collection[str] | None) -> Callable[[int, str], bool]:
    """Return a function that says whether a session that resumes from ``last_step`` keeps a step's record of a tag."""

    def keep(step: int, tag: str) -> bool:
        if last_step is None or step != last_step:
            return last_step is not None and step < last_step
        return tag in tags if tags is not None else not tag.startswith("test/")

    return keep


def _losses(folder: RunFolder, where: str, written: Written, kept: Written, *, damaged: bool) -> Iterator[str]:
    """Yield a message if the kept lines, and one if the kept events, are not those that the run wrote.

    Args:
        folder: the run folder.
        where: the part of the run, in words.
        written: what the run wrote.
        kept: what is left of it.
        damaged: whether a message already names the damaged event files.
    """
    same = "the training is not affected."
    if kept["lines"] < written["lines"]:
        lost = f"{written['lines'] - kept['lines']} of its {written['lines']} lines"
        yield f"{folder.metrics} lost {lost} {where} (a power cut?): its curves have gaps; {same}"
    elif kept["chain"] != written["chain"]:
        yield f"{folder.metrics} was changed since the run wrote it: its curves may be wrong; {same}"
    if kept["points"] < written["points"] and not damaged:
        lost = f"{written['points'] - kept['points']} of their {written['points']} points"
        yield f"the event files in {folder.path} lost {lost} {where}: TensorBoard's curves have gaps; {same}"


def _trim_metrics(
    folder: RunFolder, keep: Callable[[int, str], bool], last_step: int | None
) -> tuple[int, str, set[str]]:
    """Write metrics.jsonl without the values that ``keep`` refuses.

    It is always a new file: an earlier session that still exists, on another machine, appends to the old one.

    Returns:
        the number of lines kept, their digest, and the tags that are kept at ``last_step``.
    """
    lines, tags = list[bytes](), set[str]()
    for line in [] if last_step is None else stored_lines(folder):
        all_tags, step = line.values.keys() - _RESERVED, line.values["step"]
        values = {tag for tag in all_tags if keep(step, tag)}
        if values:
            whole = values == all_tags
            lines.append(line.raw if whole else (json.dumps(_part(line.values, values)) + "\n").encode())
        if step == last_step:
            tags |= values
    write_whole(folder.metrics, b"".join(lines))
    return len(lines), reduce(chained, lines, ""), tags


def _part(line: Mapping[str, Any], tags: Collection[str]) -> dict[str, Any]:
    """Return the part of a line about ``tags``."""
    kept = {key: value for key, value in line.items() if key in tags or key in _RESERVED}
    if "nonfinite" in kept:
        kept["nonfinite"] = {tag: text for tag, text in kept["nonfinite"].items() if tag in tags}
    return kept


def _cell(value: object) -> str:
    return "null" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
