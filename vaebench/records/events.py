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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy
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

__all__ = [
    "CONFIG_TAG",
    "EventFile",
    "charts",
    "markdown",
    "picture",
    "read_pictures",
    "read_scalars",
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

_number = itertools.count()
_PREFIX = "events.out.tfevents."


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
        # TensorBoard reads files in the order of their names: pad the number, so that 10 follows 9.
        source = f"{socket.gethostname()}.{os.getpid()}.{next(_number):06d}"
        started = max([round(time.time()), *(second + 1 for second in _seconds_in_names(folder))])
        self._file = Appender(folder / f"{_PREFIX}{started:010d}.{source}")
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
        layout: the tags of each chart of each category. TensorBoard merges equal categories of several runs.
    """
    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                # TensorBoard takes tags as regular expressions, and does not match their end.
                layout_pb2.Chart(
                    title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"{re.escape(tag)}$" for tag in tags])
                )
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
    """Return ``pixels``, (H, W) bytes, as a PNG."""
    height, width = pixels.shape
    image = Summary.Image(height=height, width=width, colorspace=1, encoded_image_string=png(pixels))
    return Summary.Value(tag=tag, image=image)


def session_start(hparams: Mapping[str, str | float | bool | None], group: str) -> Summary.Value:
    """Return the HParams row of this run, without None values; runs with the same ``group`` share a row."""
    info = SessionStartInfo(group_name=group, start_time_secs=time.time())
    for name, value in hparams.items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[name].number_value = value
        elif value is not None:
            info.hparams[name].string_value = value
    return _hparams(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def session_end(state: State) -> Summary.Value:
    """Return the final status for this run's HParams row."""
    info = SessionEndInfo(status=_STATUS[state], end_time_secs=time.time())
    return _hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _hparams(tag: str, data: HParamsPluginData) -> Summary.Value:
    # The metadata hold all data, but TensorBoard requires a tensor: an empty one.
    summary_metadata = metadata.create_summary_metadata(data)
    return Summary.Value(tag=tag, tensor=metadata.NULL_TENSOR, metadata=summary_metadata)


def trim(folder: Path, keep: Callable[[int, str], bool]) -> float:
    """Delete from the event files of ``folder`` the values that ``keep`` (step, tag) refuses; return the latest time.

    Also delete the records that each session writes again (the configuration, the HParams row, the layout of charts,
    restart marks) and an incomplete last record. Each file is replaced whole, so the next call completes a call that
    was killed.
    """
    latest = 0.0
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        old = path.read_bytes()
        kept = list(_kept(_records(old), keep))
        if not kept:
            path.unlink()
            continue
        latest = max(latest, *(event.wall_time for event in kept))
        new = io.BytesIO()
        writer = RecordWriter(new)
        for event in [Event(wall_time=kept[0].wall_time, file_version="brain.Event:2"), *kept]:
            writer.write(event.SerializeToString())
        write_whole(path, new.getvalue())
    return latest


def read_pictures(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the step and the PNG bytes of the latest picture of each tag in the event files of ``folder``."""
    latest: dict[str, tuple[int, bytes]] = {}
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        for event in _records(path.read_bytes()):
            for value in event.summary.value:
                if value.HasField("image") and event.step >= latest.get(value.tag, (0, b""))[0]:
                    latest[value.tag] = (event.step, value.image.encoded_image_string)
    return latest


def read_scalars(folder: Path) -> list[tuple[int, str, float]]:
    """Return (step, tag, value) of every scalar in the event files of ``folder``, in TensorBoard's order."""
    return [
        (event.step, value.tag, value.simple_value)
        for path in sorted(folder.glob(f"{_PREFIX}*"))
        for event in _records(path.read_bytes())
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def _kept(events: Iterable[Event], keep: Callable[[int, str], bool]) -> Iterator[Event]:
    for event in events:
        values = [v for v in event.summary.value if v.tag not in _OF_EACH_SESSION and keep(event.step, v.tag)]
        if values:
            yield Event(wall_time=event.wall_time, step=event.step, summary=Summary(value=values))


def _records(data: bytes) -> Iterator[Event]:
    """Yield the events in the bytes of a file, up to an incomplete one.

    A record is: length (8 bytes, little-endian), checksum of the length (4), the event, checksum of the event (4).
    """
    position = 0
    while position + 12 <= len(data):
        header, checksum = data[position : position + 8], data[position + 8 : position + 12]
        (length,) = struct.unpack("<Q", header)
        end = position + 12 + length + 4
        if end > len(data) or struct.pack("<I", masked_crc32c(header)) != checksum:
            return
        yield Event.FromString(data[position + 12 : end - 4])
        position = end
