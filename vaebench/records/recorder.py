"""Record the progress of a training session: metrics.jsonl for programs, TensorBoard events for people."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from vaebench.errors import UserError
from vaebench.records import events
from vaebench.records.files import Appender, write_whole
from vaebench.records.folder import RunFolder, State
from vaebench.records.metrics import flatten, stored_lines
from vaebench.records.pictures import Images, grid

__all__ = ["Recorder"]

_RESERVED = {"step", "epoch", "wall", "nonfinite"}


class Recorder:
    """Writes the metrics and the TensorBoard events of one session to its run folder.

    Record the values of a step before you save its checkpoint: a session that resumes from the checkpoint keeps them.
    Readers see each record immediately; no method waits for the disk. As a context manager the recorder closes as
    finished, as interrupted (KeyboardInterrupt, SystemExit) or as failed (any other exception).

    Raises:
        UserError: from every method that writes, if the disk is full.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        resume_step: int | None = None,
        hparams: Mapping[str, Any] | None = None,
        group: str = "",
        lines: int | None = None,
    ) -> None:
        """Start a session.

        Args:
            folder: the run folder.
            resume_step: the step of the checkpoint from which the session resumes; None for a new run. Records of later
                steps are deleted, because the session repeats these steps.
            hparams: the settings, nested or flat, for TensorBoard's HParams.
            group: runs with the same group share a row in HParams.
            lines: ``self.lines`` when the checkpoint was saved; None if the checkpoint does not hold it.
        """
        self.lines = _trim_metrics(folder, resume_step)
        """The lines of metrics.jsonl, for the checkpoint."""
        self.notices = events.trim(folder.path, resume_step)
        """Messages about records of earlier sessions that were lost."""
        if lines is not None and self.lines < lines:
            self.notices.append(
                f"{folder.metrics} lost {lines - self.lines} of its {lines} lines up to step {resume_step} "
                "(a power cut?): its curves have gaps; the training is not affected."
            )
        self._metrics = Appender(folder.metrics)
        self._events = events.EventFile(folder.path, first_step=0 if resume_step is None else resume_step + 1)
        self._closed = False
        if hparams is not None:
            self._events.add(0, events.session_start(flatten(hparams), group))

    def scalars(self, step: int, epoch: float, values: Mapping[str, float], wall: float) -> None:
        """Record ``values`` by tag after optimiser step ``step``; ``wall`` is the seconds of training so far."""
        self._metrics.write(_line(step, epoch, values, wall).encode())
        self.lines += 1
        self._events.add(step, *(events.scalar(tag, float(value)) for tag, value in values.items()))

    def image(self, tag: str, images: Images, step: int, *, columns: int = 8) -> None:
        """Record a grid of images, (N, H*H), (N, H, W) or (N, 1, H, W); bytes, or floats from 0 to 1."""
        self._events.add(step, events.picture(tag, grid(images, columns)))

    def config_table(self, config: Mapping[str, Any]) -> None:
        """Record the nested configuration as a table with one row for each key."""
        rows = [f"| {name} | {_cell(value)} |" for name, value in flatten(config).items()]
        self._events.add(0, events.markdown(events.CONFIG_TAG, "\n".join(["| key | value |", "|---|---|", *rows])))

    def charts(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Record the layout of TensorBoard's Custom Scalars: the tags of each chart of each category."""
        self._events.add(0, events.charts(layout))

    def close(self, state: State) -> None:
        """Record the final state in HParams and close the files; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
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


def _trim_metrics(folder: RunFolder, last_step: int | None) -> int:
    """Delete the lines of metrics.jsonl after ``last_step``; None: all lines. Return the number of lines kept."""
    if not folder.metrics.exists():
        return 0
    kept = [] if last_step is None else [line.raw for line in stored_lines(folder) if line.values["step"] <= last_step]
    write_whole(folder.metrics, b"".join(kept))
    return len(kept)


def _cell(value: object) -> str:
    return "null" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
