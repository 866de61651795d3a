"""What TensorBoard and metrics.jsonl show, read back with TensorBoard's own readers, also after a crash."""

# pyright: reportAttributeAccessIssue=false
# (protobuf makes its classes at import, where no type checker sees them)

import errno
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from vaebench.errors import UserError
from vaebench.records import Recorder, RunFolder, events, flatten, read_metrics
from vaebench.records.folder import State

SIZES = {"scalars": 0, "images": 0, "tensors": 0}  # 0: keep all


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create("k: 1\n")


def read(folder: RunFolder) -> EventAccumulator:
    return EventAccumulator(str(folder.path), SIZES).Reload()


def scalar_steps(folder: RunFolder, tag: str = "bound") -> list[tuple[int, float]]:
    return [(s.step, s.value) for s in read(folder).Scalars(tag)]


def session_groups(logdir: Path) -> Any:
    """What TensorBoard's HParams tab asks its backend for."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    every = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    request = api_pb2.ListSessionGroupsRequest(allowed_statuses=every, slice_size=100)
    context = Context(TBContext(data_provider=provider, logdir=str(logdir)))
    return Handler(RequestContext(), context, "", request).run().session_groups


def record_steps(recorder: Recorder, steps: range, value: float) -> None:
    for step in steps:
        recorder.scalars(step, step / 10, {"bound": value}, wall=float(step))


def test_scalars_are_visible_at_once(folder: RunFolder):
    recorder = Recorder(folder)
    recorder.scalars(5, 0.5, {"bound": -100.0, "kl": 20.0}, wall=1.25)
    assert scalar_steps(folder) == [(5, -100.0)]
    assert scalar_steps(folder, "kl") == [(5, 20.0)]
    assert read_metrics(folder) == [{"step": 5, "epoch": 0.5, "wall": 1.25, "bound": -100.0, "kl": 20.0}]
    recorder.close("finished")
    recorder.close("failed")  # nothing more
    assert len(list(folder.path.glob("events.out.*"))) == 1


def test_metrics_stay_json_when_a_value_is_not_finite(folder: RunFolder):
    with Recorder(folder) as recorder:
        recorder.scalars(1, 0.1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}, wall=0.0)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    line = json.loads(folder.metrics.read_text(), parse_constant=refuse)
    assert (line["a"], line["b"], line["d"]) == (None, None, 1.0)
    assert line["nonfinite"] == {"a": "nan", "b": "inf", "c": "-inf"}
    values = read_metrics(folder)[0]
    assert math.isnan(values["a"])
    assert (values["b"], values["c"]) == (math.inf, -math.inf)
    assert "nonfinite" not in values


def test_a_tag_cannot_hide_the_step(folder: RunFolder):
    with Recorder(folder) as recorder, pytest.raises(ValueError, match="must not be named step"):
        recorder.scalars(1, 0.1, {"step": 2.0}, wall=0.0)


# resuming


def test_resume_drops_what_came_after_the_step(folder: RunFolder):
    with Recorder(folder) as recorder:
        record_steps(recorder, range(1, 11), 1.0)
    with Recorder(folder, resume_step=6) as recorder:
        record_steps(recorder, range(7, 9), 2.0)
    with Recorder(folder, resume_step=7) as recorder:  # and once more
        record_steps(recorder, range(8, 10), 3.0)
    expected = [*((s, 1.0) for s in range(1, 7)), (7, 2.0), (8, 3.0), (9, 3.0)]
    assert scalar_steps(folder) == expected
    assert [(m["step"], m["bound"]) for m in read_metrics(folder)] == expected


@pytest.mark.parametrize(("tags", "kept"), [(["bound"], {"bound"}), (None, {"bound", "validation/x"}), ([], set())])
def test_resume_drops_what_was_recorded_after_the_checkpoint(folder: RunFolder, tags: list[str] | None, kept: set[str]):
    """At the checkpoint's own step, too; a checkpoint of an earlier version has no tags."""
    with Recorder(folder) as recorder:
        recorder.scalars(6, 0.6, {"bound": 1.0}, wall=1.0)
        recorder.scalars(6, 0.6, {"validation/x": math.nan}, wall=1.0)
        recorder.scalars(6, 0.6, {"test/x": 3.0}, wall=1.0)
        assert recorder.tags(6) == ["bound", "test/x", "validation/x"]
        assert recorder.tags(7) == []
    with Recorder(folder, resume_step=6, resume_tags=tags) as recorder:
        assert set(recorder.tags(6)) == kept
    assert {tag for line in read_metrics(folder) for tag in line} - {"step", "epoch", "wall"} == kept
    assert {tag for _, tag, _ in events.read_scalars(folder.path)} == kept


def test_a_clock_that_was_set_back_scrambles_nothing(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    clock = [2_000_000_000.0]
    monkeypatch.setattr(events.time, "time", lambda: clock[0])
    with Recorder(folder) as recorder:
        record_steps(recorder, range(1, 4), 1.0)
        clock[0] -= 3600
        record_steps(recorder, range(4, 6), 1.0)
    with Recorder(folder, resume_step=5) as recorder:
        record_steps(recorder, range(6, 8), 2.0)
    shown = read(folder).Scalars("bound")
    assert [point.step for point in shown] == list(range(1, 8))
    assert [point.wall_time for point in shown] == sorted(point.wall_time for point in shown)


def test_a_session_that_starts_anew_drops_all(folder: RunFolder):
    with Recorder(folder) as recorder:
        record_steps(recorder, range(1, 4), 1.0)
    with Recorder(folder) as recorder:
        record_steps(recorder, range(1, 3), 2.0)
    assert scalar_steps(folder) == [(1, 2.0), (2, 2.0)]
    assert len(read_metrics(folder)) == 2


def test_without_trimming_the_order_of_the_files_decides(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """Control: TensorBoard's restart mark alone is not enough, because it may read the newer file first."""
    monkeypatch.setattr(events, "trim", lambda folder, keep: events.Trimmed())
    with Recorder(folder) as recorder:
        record_steps(recorder, range(1, 4), 1.0)
    (path,) = folder.path.glob("events.out.*")
    path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.9")))
    with Recorder(folder, resume_step=1) as recorder:
        record_steps(recorder, range(2, 4), 2.0)
    assert scalar_steps(folder) != [(1, 1.0), (2, 2.0), (3, 2.0)]


def test_with_trimming_the_order_of_the_files_does_not_matter(folder: RunFolder):
    with Recorder(folder) as recorder:
        record_steps(recorder, range(1, 4), 1.0)
    (path,) = folder.path.glob("events.out.*")
    path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.9")))
    with Recorder(folder, resume_step=1) as recorder:
        record_steps(recorder, range(2, 4), 2.0)
    assert sorted(scalar_steps(folder)) == [(1, 1.0), (2, 2.0), (3, 2.0)]


def test_a_running_tensorboard_drops_the_steps_too(folder: RunFolder):
    recorder = Recorder(folder)
    record_steps(recorder, range(1, 11), 1.0)
    viewer = read(folder)
    assert len(viewer.Scalars("bound")) == 10
    with Recorder(folder, resume_step=6) as resumed:  # the first was killed: it never closed
        record_steps(resumed, range(7, 9), 2.0)
    viewer.Reload()
    assert [s.step for s in viewer.Scalars("bound")] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("torn", [1, 7, 20])
def test_a_record_that_a_crash_tore_is_dropped(folder: RunFolder, torn: int):
    recorder = Recorder(folder)
    record_steps(recorder, range(1, 5), 1.0)
    for path in (folder.metrics, *folder.path.glob("events.out.*")):
        os.truncate(path, path.stat().st_size - torn)
    assert [m["step"] for m in read_metrics(folder)] == [1, 2, 3]
    with Recorder(folder, resume_step=4) as recorder:
        record_steps(recorder, range(5, 7), 2.0)
    assert [m["step"] for m in read_metrics(folder)] == [1, 2, 3, 5, 6]
    assert [step for step, _ in scalar_steps(folder)] == [1, 2, 3, 5, 6]


def test_a_damaged_line_in_the_middle_is_named(folder: RunFolder):
    line = '{"step": 1, "epoch": 0.1, "wall": 1.0}\n'
    folder.metrics.write_text(f'{line}{{"st\n{line}')
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl is corrupt"):
        Recorder(folder, resume_step=3)
    assert len(folder.metrics.read_text().splitlines()) == 3


def test_garbage_after_a_power_cut_ends_the_event_file(folder: RunFolder):
    recorder = Recorder(folder)
    record_steps(recorder, range(1, 3), 1.0)
    (path,) = folder.path.glob("events.out.*")
    path.write_bytes(path.read_bytes() + b"\xff" * 40)
    with Recorder(folder, resume_step=2) as recorder:
        record_steps(recorder, range(3, 4), 2.0)
    assert scalar_steps(folder) == [(1, 1.0), (2, 1.0), (3, 2.0)]


# images, text


def test_images_come_back_as_the_grid(folder: RunFolder):
    images = torch.zeros(5, 784, requires_grad=True).detach()
    images[3] = 1.0
    with Recorder(folder) as recorder:
        recorder.image("samples", images, 7, columns=3)
    (event,) = read(folder).Images("samples")
    pixels = numpy.array(Image.open(io.BytesIO(event.encoded_image_string)))
    assert event.step == 7
    assert pixels.shape == (2 * 29 - 1, 3 * 29 - 1)
    assert (pixels[29:57, 0:28] == 255).all()  # the fourth image: second row, first column
    assert (pixels[0:28, 0:28] == 0).all()
    assert (pixels[28] == 128).all()


@pytest.mark.parametrize(
    "images",
    [
        numpy.full((2, 784), 255, dtype=numpy.uint8),
        numpy.ones((2, 28, 28)),
        numpy.full((2, 1, 28, 28), 7.0),  # clipped
        torch.ones(2, 784, dtype=torch.bfloat16),
        torch.ones(2, 784, requires_grad=True),
        torch.full((2, 784), 255, dtype=torch.uint8),
    ],
)
def test_every_form_of_white_is_white(folder: RunFolder, images: Any):
    with Recorder(folder) as recorder:
        recorder.image("white", images, 1)
    (event,) = read(folder).Images("white")
    pixels = numpy.array(Image.open(io.BytesIO(event.encoded_image_string)))
    assert pixels.shape == (28, 57)
    assert (numpy.delete(pixels, 28, axis=1) == 255).all()


def test_images_of_no_known_shape_are_refused(folder: RunFolder):
    with Recorder(folder) as recorder, pytest.raises(ValueError, match="images must be"):
        recorder.image("bad", numpy.zeros((2, 783)), 1)


def test_the_configuration_is_one_table_after_a_resume_too(folder: RunFolder):
    config = {"k": 1, "encoder": {"name": "hvm", "hidden": [300, 300]}, "clip": None, "odd": "a|b"}
    with Recorder(folder) as recorder:
        recorder.config_table(config)
        record_steps(recorder, range(1, 3), 1.0)
    with Recorder(folder, resume_step=1) as recorder:
        recorder.config_table({**config, "device": "cuda"})
    (event,) = read(folder).Tensors("config")
    text = event.tensor_proto.string_val[0].decode()
    assert "| encoder.hidden | [300, 300] |" in text
    assert "| clip | null |" in text
    assert "| odd | a\\|b |" in text
    assert "| device | cuda |" in text


def test_flatten():
    nested = {"a": {"b": {"c": 1}, "d": (1, 2)}, "e": True, "f": None, "g": Path("x")}
    assert flatten(nested) == {"a.b.c": 1, "a.d": "(1, 2)", "e": True, "f": None, "g": "x"}


# HParams


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("finished", api_pb2.STATUS_SUCCESS),
        ("failed", api_pb2.STATUS_FAILURE),
        ("interrupted", api_pb2.STATUS_UNKNOWN),
    ],
)
def test_hparams_show_the_true_status(folder: RunFolder, state: State, shown: int):
    recorder = Recorder(folder, hparams={"k": 16, "encoder": {"name": "hvm"}, "ema": None, "stl": True}, group="g")
    recorder.scalars(3, 0.1, {"bound": -90.0}, wall=0.0)
    recorder.close(state)
    (group,) = session_groups(folder.path.parent)
    (session,) = group.sessions
    assert (group.name, session.name, session.status) == ("g", "run", shown)
    assert group.hparams["k"].number_value == 16
    assert group.hparams["encoder.name"].string_value == "hvm"
    assert group.hparams["stl"].bool_value
    assert group.hparams["ema"].string_value == "null"
    assert {metric.name.tag: metric.value for metric in session.metric_values} == {"bound": -90.0}


def test_hparams_after_a_resume_show_the_last_status(folder: RunFolder):
    sessions: list[tuple[int | None, State]] = [(None, "interrupted"), (2, "failed"), (2, "finished")]
    for resume, state in sessions:
        recorder = Recorder(folder, resume_step=resume, hparams={"k": 1}, group="g")
        record_steps(recorder, range(3, 5), 1.0)
        recorder.close(state)
    (group,) = session_groups(folder.path.parent)
    assert [session.status for session in group.sessions] == [api_pb2.STATUS_SUCCESS]


def test_without_trimming_the_first_status_would_stay(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """Control: TensorBoard keeps the first status that it reads."""
    monkeypatch.setattr(events, "trim", lambda folder, keep: events.Trimmed())
    sessions: list[tuple[int | None, State]] = [(None, "failed"), (2, "finished")]
    for resume, state in sessions:
        Recorder(folder, resume_step=resume, hparams={"k": 1}).close(state)
    (group,) = session_groups(folder.path.parent)
    assert [session.status for session in group.sessions] == [api_pb2.STATUS_FAILURE]


def test_seeds_share_a_row_and_there_is_no_experiment_and_no_sub_run(tmp_path: Path):
    for seed in (1, 2):
        folder = RunFolder(tmp_path / str(seed)).create("k: 1\n")
        Recorder(folder, hparams={"k": 1, "seed": seed}, group="same").close("finished")
        assert metadata.EXPERIMENT_TAG not in read(folder).summary_metadata
        assert [path.name for path in folder.path.iterdir() if path.is_dir()] == ["checkpoints"]
    (group,) = session_groups(tmp_path)
    assert sorted(session.name for session in group.sessions) == ["1", "2"]


@pytest.mark.parametrize(
    ("error", "shown"),
    [(RuntimeError, api_pb2.STATUS_FAILURE), (KeyboardInterrupt, api_pb2.STATUS_UNKNOWN)],
)
def test_the_context_closes_with_what_happened(folder: RunFolder, error: type[BaseException], shown: int):
    with pytest.raises(error), Recorder(folder, hparams={"k": 1}):
        raise error
    (group,) = session_groups(folder.path.parent)
    assert group.sessions[0].status == shown


def test_a_full_disk_stops_the_run_with_one_message(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recorder = Recorder(folder)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"metrics\.jsonl: the disk is full"), recorder:
        recorder.scalars(1, 0.1, {"bound": 1.0}, wall=0.0)
