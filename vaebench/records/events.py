"""TensorBoard event files, written and trimmed without a thread and without importing TensorFlow.

TensorBoard keeps the *first* metadata of every tag of a run, so a second "session end" is never seen, and
it reads the files of a run in the order of their names. Both would show a resumed run wrongly: hence
`trim`, which takes out of the older files everything that the new session says again.
"""

# pyright: reportAttributeAccessIssue=false
# (protobuf makes its classes at import, where no type checker sees them)

import io
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    "scalar",
    "session_end",
    "session_start",
    "trim",
]

CONFIG_TAG = "config"
_SAID_AGAIN = {
    CONFIG_TAG,
    custom_scalar.CONFIG_SUMMARY_TAG,
    metadata.SESSION_START_INFO_TAG,
    metadata.SESSION_END_INFO_TAG,
}

# TensorBoard has no word for "interrupted"; a run that may go on is neither a success nor a failure.
_STATUS = {
    "running": STATUS_RUNNING,
    "finished": STATUS_SUCCESS,
    "failed": STATUS_FAILURE,
    "interrupted": STATUS_UNKNOWN,
}

_number = itertools.count()


class EventFile:
    """A new event file in ``folder``; every event is visible to TensorBoard as soon as it is added."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Begin the file with the mark that makes a running TensorBoard drop ``first_step`` and later."""
        # TensorBoard reads files in the order of their names: the number is padded, so that 10 comes after 9.
        place = f"{socket.gethostname()}.{os.getpid()}.{next(_number):06d}"
        name = f"events.out.tfevents.{time.time():010.0f}.{place}"
        self._file = Appender(folder / name)
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=first_step, session_log=start))

    def add(self, step: int, *values: Summary.Value) -> None:
        """Append one event. Raises what `write_failed` says."""
        if values:
            self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())


def scalar(tag: str, value: float) -> Summary.Value:
    return Summary.Value(tag=tag, simple_value=value)


def markdown(tag: str, text: str) -> Summary.Value:
    # The shape of a single string: an array of one would be shown as a table around the text.
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=TensorShapeProto())
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    return Summary.Value(tag=tag, tensor=tensor, metadata=SummaryMetadata(plugin_data=plugin))


def charts(layout: Mapping[str, Mapping[str, Sequence[str]]]) -> Summary.Value:
    """Return the charts of TensorBoard's Custom Scalars: for each category its charts, for each chart its tags.

    A chart shows its tags of all runs. Runs that say the same share the categories: TensorBoard merges them.
    """
    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                # TensorBoard takes tags for regular expressions that need not match to the end.
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
    """Return the HParams row of this run; runs of one ``group`` share a row. None values are left out."""
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
    """Return the status of this run's HParams row."""
    info = SessionEndInfo(status=_STATUS[state], end_time_secs=time.time())
    return _hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _hparams(tag: str, data: HParamsPluginData) -> Summary.Value:
    # All is in the metadata; TensorBoard still wants a tensor, and takes an empty one.
    summary_metadata = metadata.create_summary_metadata(data)
    return Summary.Value(tag=tag, tensor=metadata.NULL_TENSOR, metadata=summary_metadata)


def trim(folder: Path, last_step: int | None) -> None:
    """Leave in the event files of ``folder`` what happened up to ``last_step`` (None: nothing).

    What every session says for itself goes too: the configuration, the HParams row, the layout of charts, the
    restart marks, and a record that a crash tore. Each file is replaced whole, so a kill during this is repaired by
    the next call.
    """
    for path in sorted(folder.glob("events.out.tfevents.*")):
        old = path.read_bytes()
        kept = [] if last_step is None else list(_kept(_records(old), last_step))
        if not kept:
            path.unlink()
            continue
        new = io.BytesIO()
        writer = RecordWriter(new)
        for event in [Event(wall_time=kept[0].wall_time, file_version="brain.Event:2"), *kept]:
            writer.write(event.SerializeToString())
        write_whole(path, new.getvalue())


def read_pictures(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the latest picture of each tag in the event files of ``folder``: its step, and its bytes as PNG."""
    latest: dict[str, tuple[int, bytes]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in _records(path.read_bytes()):
            for value in event.summary.value:
                if value.HasField("image") and event.step >= latest.get(value.tag, (0, b""))[0]:
                    latest[value.tag] = (event.step, value.image.encoded_image_string)
    return latest


def _kept(events: Iterable[Event], last_step: int) -> Iterator[Event]:
    for event in events:
        values = [v for v in event.summary.value if v.tag not in _SAID_AGAIN]
        if event.step <= last_step and values:
            yield Event(wall_time=event.wall_time, step=event.step, summary=Summary(value=values))


def _records(data: bytes) -> Iterator[Event]:
    """Yield the events of a file's bytes, up to a torn one.

    A record: its length (8 bytes, little-endian), a checksum of that (4), the event, a checksum of it (4).
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
