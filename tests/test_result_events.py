"""The results of a run in TensorBoard: those of results.json that are of the run as it is now, and no others."""

import json
import threading
from pathlib import Path

import pytest
from made_runs import made_run, record

from vaebench.config import identity, read
from vaebench.errors import TakenOver, UserError
from vaebench.records import Recorder, RunFolder, append_result, events
from vaebench.records.result_events import drop_outdated, results_shown, show_results, tag

VALIDATIONS = [{"step": 50 * e, "epoch": e, "wall": 1.0, "validation/log_likelihood": -100.0 + e} for e in range(1, 5)]


def run_of(folder: RunFolder) -> str:
    return identity(read(folder.path))


def shown(folder: RunFolder) -> list[tuple[int, str, float]]:
    return [point for point in events.read_scalars(folder.path) if "/" in point[1]]


def better_weights(folder: RunFolder) -> None:
    """Add a later, better validation, so that the results are of earlier weights."""
    line = {"step": 250, "epoch": 5, "wall": 2.0, "validation/log_likelihood": -50.0}
    folder.metrics.write_text(folder.metrics.read_text() + json.dumps(line) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = made_run(tmp_path, metrics=VALIDATIONS, results=[record(-90.0)])
    show_results(made, run_of(made))
    return made


def test_a_result_is_at_the_step_of_its_weights(folder: RunFolder):
    assert shown(folder) == [(200, "test/iwae_k64 (lower bound, mnist5k/dynamic-v1)", -90.0)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"inner_k": 5, "estimator": "DIWHVI"}, "test/diwhvi_k64_inner_k5 (lower bound, mnist5k/dynamic-v1)"),
        (
            {"estimator": "AIS", "k": None, "direction": "estimate", "settings": {"temperatures": 9}},
            "test/ais (estimate, temperatures=9, mnist5k/dynamic-v1)",
        ),
        ({"quantity": "bound gap"}, "test/iwae_k64 (lower bound, bound gap, mnist5k/dynamic-v1)"),
        ({"measure": "density"}, "test/iwae_k64 (lower bound, log p(x) (density), mnist5k/dynamic-v1)"),
        ({"precision": "bf16"}, "test/iwae_k64 (lower bound, precision=bf16, mnist5k/dynamic-v1)"),
    ],
)
def test_the_tag_names_what_the_number_is(changes: dict[str, object], expected: str):
    assert tag(record(-90.0, **changes)) == expected


def test_a_second_evaluation_replaces_the_first(folder: RunFolder):
    append_result(folder, record(-80.0))
    append_result(folder, record(-70.0, k=128))
    show_results(folder, run_of(folder))
    assert sorted(value for _, _, value in shown(folder)) == [-80.0, -70.0]
    assert len(events.result_files(folder.path)) == 1


def test_a_result_of_earlier_weights_is_not_shown(folder: RunFolder):
    better_weights(folder)
    drop_outdated(folder, run_of(folder))
    assert shown(folder) == []
    assert not events.result_files(folder.path)


def test_a_resumed_training_shows_no_results_until_it_ends(folder: RunFolder):
    with results_shown(folder, run_of(folder)), Recorder(folder, resume_step=200) as recorder:
        assert not events.result_files(folder.path)
        assert recorder.notices == []
        recorder.scalars(250, 5, {"validation/log_likelihood": -100.0}, wall=1.0)
    assert [value for _, name, value in shown(folder) if name.startswith("test/")] == [-90.0]


def test_a_process_that_lost_the_run_writes_nothing(folder: RunFolder):
    better_weights(folder)
    with pytest.raises(TakenOver), results_shown(folder, run_of(folder)):
        raise TakenOver("x")
    assert len(shown(folder)) == 1  # the other process decides


def test_evaluations_at_the_same_time_leave_one_file_with_all_results(folder: RunFolder):
    def evaluate(k: int) -> None:
        append_result(folder, record(-k, k=k))
        show_results(folder, run_of(folder))

    threads = [threading.Thread(target=evaluate, args=(k,)) for k in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(-value for _, _, value in shown(folder)) == [1, 2, 3, 4, 5, 6, 90]
    assert len(events.result_files(folder.path)) == 1


def test_a_full_disk_keeps_the_earlier_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, data: bytes) -> None:
        raise UserError(f"cannot write {path}")

    monkeypatch.setattr(events, "write_whole", full)
    with pytest.raises(UserError):
        show_results(folder, run_of(folder))
    assert len(shown(folder)) == 1
