"""Write, read and trim TensorBoard event files, without a thread and without TensorFlow.

TensorBoard keeps the *first* metadata of each tag of a run, so that it would ignore a second "session end". It reads
the files of a run in the order of their names. For a resumed run both would be wrong, so `trim` deletes from the older
files everything that the new session writes again.
"""

# pyright: reportAttributeAccessIssue=false
# (protobuf creates its classes at import, so a type checker cannot see them)

import io
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_RUNNING, STATUS_SUCCESS, STATUS_UNKNOWN
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.record_writer import RecordWriter

from vaebench.records.files import Appender, write_whole
from vaebench.records.folder import State
from vaebench.records.pictures import png
from vaebench.records.stored import Unreadable, read_whole

__all__ = [
    "CONFIG_TAG",
    "EventFile",
    "Point",
    "charts",
    "markdown",
    "picture",
    "read_pictures",
    "read_scalars",
    "replace_results",
    "result_files",
    "scalar",
    "session_end",
    "session_start",
    "trim",
]

CONFIG_TAG = "config"
_OF_EACH_SESSION = {
    CONFIG_TAG,
    custom_scalar.CONFIG_SUMMARY_TAG,
    metadata.SESSION_START_INFO_TAG,
    metadata.SESSION_END_INFO_TAG,
}

# TensorBoard has no state "interrupted"; a run that can be resumed is neither a success nor a failure.
_STATUS = {
    "running": STATUS_RUNNING,
    "finished": STATUS_SUCCESS,
    "failed": STATUS_FAILURE,
    "interrupted": STATUS_UNKNOWN,
}

_LARGEST = 1 << 32  # bytes of an event file

_number = itertools.count()
_PREFIX = "events.out.tfevents."
_RESULTS = ".results"
"""The end of the name of an event file of results, which `show_results` writes and no session of training keeps."""

Point = tuple[int, Summary.Value]
"""A step and its value."""


class EventFile:
    """A new event file in ``folder``. TensorBoard sees each event immediately.

    Neither names nor times go back when the clock is set back: the file follows the older ones.
    """

    def __init__(self, folder: Path, first_step: int, *, after: float = 0.0) -> None:
        """Start the file with a mark that makes a running TensorBoard drop the steps from ``first_step`` on.

        Args:
            folder: of the run.
            first_step: of the session.
            after: the latest time of an event in the older files, in seconds.
        """
        self._latest = after
        started = max([round(time.time()), *(second + 1 for second in _seconds_in_names(folder))])
        self._file = Appender(folder / _file_name(started))
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=self._now(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=self._now(), step=first_step, session_log=start))

    def add(self, step: int, *values: Summary.Value) -> None:
        """Append one event. UserError if it cannot be written."""
        if values:
            self._write(Event(wall_time=self._now(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _now(self) -> float:
        """Return the time, or the latest time of an event if the clock was set back."""
        self._latest = max(self._latest, time.time())
        return self._latest

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())


def _file_name(seconds: int) -> str:
    """Return a name that no other file has."""
    # TensorBoard reads files in the order of their names: pad the number, so that 10 follows 9.
    return f"{_PREFIX}{seconds:010d}.{socket.gethostname()}.{os.getpid()}.{next(_number):06d}"


def replace_results(folder: Path, points: Sequence[Point]) -> None:
    """Write a new event file with ``points``, and delete the earlier files of results in ``folder``.

    The caller holds a lock. UserError if the file cannot be written; the earlier files are then kept.
    """
    earlier = result_files(folder)
    if points:
        now = time.time()
        head = Event(wall_time=now, file_version="brain.Event:2")
        found = [Event(wall_time=now, step=step, summary=Summary(value=[value])) for step, value in points]
        # Before the files of training: a TensorBoard without its fast reader stops at the file that comes last.
        write_whole(folder / f"{_file_name(0)}{_RESULTS}", b"".join(map(_written, [head, *found])))
    for path in earlier:
        path.unlink(missing_ok=True)


def result_files(folder: Path) -> list[Path]:
    """Return the event files of results in ``folder``."""
    return list(folder.glob(f"{_PREFIX}*{_RESULTS}"))


def _seconds_in_names(folder: Path) -> Iterator[int]:
    """Yield the time in the name of each event file in ``folder``."""
    for path in folder.glob(f"{_PREFIX}*"):
        if found := re.match(r"(\d{1,10})\.", path.name.removeprefix(_PREFIX)):
            yield int(found[1])


def scalar(tag: str, value: float) -> Summary.Value:
    return Summary.Value(tag=tag, simple_value=value)


def markdown(tag: str, text: str) -> Summary.Value:
    # A tensor without dimensions: TensorBoard shows an array with one element as a table.
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=TensorShapeProto())
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    return Summary.Value(tag=tag, tensor=tensor, metadata=SummaryMetadata(plugin_data=plugin))


def charts(layout: Mapping[str, Mapping[str, Sequence[str]]]) -> Summary.Value:
    """Return the layout of TensorBoard's Custom Scalars.

    Args:
        layout: the tags of each chart of each category, as regular expressions that match from the start of a tag.
            TensorBoard merges equal categories of several runs.
    """
    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=tags))
                for name, tags in in_category.items()
            ],
        )
        for title, in_category in layout.items()
    ]
    data = layout_pb2.Layout(category=categories).SerializeToString()
    tensor = TensorProto(dtype=DT_STRING, string_val=[data], tensor_shape=TensorShapeProto())
    return Summary.Value(
        tag=custom_scalar.CONFIG_SUMMARY_TAG, tensor=tensor, metadata=custom_scalar.create_summary_metadata()
    )


def picture(tag: str, pixels: numpy.ndarray) -> Summary.Value:
    """Return ``pixels``, (H, W) or (H, W, 3) bytes, as a PNG."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else 3
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png(pixels))
    return Summary.Value(tag=tag, image=image)


def session_start(hparams: Mapping[str, str | float | bool | None], group: str) -> Summary.Value:
    """Return the HParams row of this run, with "null" for None; runs with the same ``group`` share a row."""
    info = SessionStartInfo(group_name=group, start_time_secs=time.time())
    for name, value in hparams.items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = "null" if value is None else value
    return _hparams(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def session_end(state: State) -> Summary.Value:
    """Return the final status for this run's HParams row."""
    info = SessionEndInfo(status=_STATUS[state], end_time_secs=time.time())
    return _hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _hparams(tag: str, data: HParamsPluginData) -> Summary.Value:
    # The metadata hold all data, but TensorBoard requires a tensor: an empty one.
    summary_metadata = metadata.create_summary_metadata(data)
    return Summary.Value(tag=tag, tensor=metadata.NULL_TENSOR, metadata=summary_metadata)


class Trimmed(NamedTuple):
    """What `trim` kept."""

    latest: float = 0.0
    """The time of the latest event, or 0."""
    points: int = 0
    """The number of values."""
    notices: Sequence[str] = ()
    """A message for each damaged file."""


def trim(folder: Path, keep: Callable[[int, str], bool]) -> Trimmed:
    """Delete from the event files of ``folder`` the values that ``keep`` (step, tag) refuses.

    Also delete the records that each session writes again (the configuration, the HParams row, the layout of charts,
    restart marks), an incomplete last record, and everything from the first damaged record of a file on. Each file is
    replaced whole, so the next call completes a call that was killed. Other events are copied as bytes. Files of
    results are deleted.
    """
    latest, points, notices = 0.0, 0, list[str]()
    replace_results(folder, [])
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        try:
            old = read_whole(path, _LARGEST)
        except Unreadable as fault:
            notices.append(f"cannot read {path}: {fault}. TensorBoard does not show its values.")
            continue
        kept: list[bytes] = []
        time_of_last, count, fault = _keep(old, keep, kept)
        points += count
        if kept:
            latest = max(latest, time_of_last)
            notices += [f"{path} {fault}: TensorBoard does not show the values after it."] if fault else []
            write_whole(path, b"".join(kept))
        else:
            path.unlink()
    return Trimmed(latest, points, notices)


def _keep(data: bytes, keep: Callable[[int, str], bool], kept: list[bytes]) -> tuple[float, int, str | None]:
    """Add to ``kept`` the records of a file to keep, the first with the version.

    Returns:
        the latest time of a kept record, the number of kept values, and what is damaged or None.
    """
    latest, count = 0.0, 0
    for record in _records(data):
        event = record.event()
        if event is None:
            return latest, count, f"is damaged at byte {record.position}"
        values = [v for v in event.summary.value if v.tag not in _OF_EACH_SESSION and keep(event.step, v.tag)]
        count += len(values)
        if values:
            if not kept:
                kept.append(_written(Event(wall_time=event.wall_time, file_version="brain.Event:2")))
            whole = len(values) == len(event.summary.value)
            kept.append(record.raw if whole else _written(_with_values(event, values)))
            latest = max(latest, event.wall_time)
    return latest, count, None


def _with_values(event: Event, values: Sequence[Summary.Value]) -> Event:
    return Event(wall_time=event.wall_time, step=event.step, summary=Summary(value=values))


def _written(event: Event) -> bytes:
    """Return ``event`` as a record."""
    file = io.BytesIO()
    RecordWriter(file).write(event.SerializeToString())
    return file.getvalue()


def read_scalars(folder: Path) -> list[tuple[int, str, float]]:
    """Return (step, tag, value) of every scalar in the event files of ``folder``, in TensorBoard's order."""
    events = (
        record.event() for path in sorted(folder.glob(f"{_PREFIX}*")) for record in _records(read_whole(path, _LARGEST))
    )
    return [
        (event.step, value.tag, value.simple_value)
        for event in events
        if event is not None
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def read_pictures(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the step and the PNG bytes of the latest picture of each tag in the event files of ``folder``.

    Damaged files and events are left out.
    """
    latest: dict[str, tuple[int, bytes, _Record]] = {}
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        try:
            records = _records(read_whole(path, _LARGEST))
        except Unreadable:
            continue
        for record in records:
            event = record.event(check=False)  # a checksum of every event would take long
            if event is None:
                continue
            for value in event.summary.value:
                if value.HasField("image") and event.step >= latest.get(value.tag, (0,))[0]:
                    latest[value.tag] = (event.step, value.image.encoded_image_string, record)
    return {tag: (step, image) for tag, (step, image, record) in latest.items() if record.event() is not None}


class _Record(NamedTuple):
    """One record of an event file."""

    position: int
    raw: bytes
    """Length (8 bytes, little-endian), checksum of the length (4), the event, checksum of the event (4)."""

    def event(self, *, check: bool = True) -> Event | None:
        """Return the event; None if it does not have its checksum or is not an event."""
        data, checksum = self.raw[12:-4], self.raw[-4:]
        if not self.raw.startswith(_header(len(data))):
            return None
        if check and struct.pack("<I", masked_crc32c(data)) != checksum:
            return None
        try:
            return Event.FromString(data)
        except DecodeError:
            return None


def _header(length: int) -> bytes:
    """Return the first 12 bytes of a record."""
    header = struct.pack("<Q", length)
    return header + struct.pack("<I", masked_crc32c(header))


def _records(data: bytes) -> Iterator[_Record]:
    """Yield the records in the bytes of a file, up to an incomplete one; a damaged header is the last record."""
    position = 0
    while position + 12 <= len(data):
        (length,) = struct.unpack("<Q", data[position : position + 8])
        if data[position : position + 12] != _header(length):
            yield _Record(position, data[position:])
            return
        end = position + 12 + length + 4
        if end > len(data):
            return
        yield _Record(position, data[position:end])
        position = end
