"""A resumed run is bitwise the run that was never stopped: optimiser, schedules, averages, every random number."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vaebench.config import Config, compose, run_folder
from vaebench.errors import TakenOver, UserError
from vaebench.records import RunFolder, files, read_metrics, read_results
from vaebench.records.checkpoint import Checkpoints
from vaebench.records.events import read_scalars
from vaebench.train import batches, session
from vaebench.train.session import resume, train
from vaebench.train.trainer import Trainer
from vaebench.train.update import Update

# 8 steps an epoch; everything that has a state or a schedule is in use.
OVERRIDES = [
    "encoder=iwhvi",
    "objective=iwae",
    "k=2",
    "encoder.inner_k=2",
    "latent_dim=3",
    "decoder.hidden=[8]",
    "optimizer.schedule=cosine",
    "trainer.epochs=4",
    "trainer.batch_size=512",
    "trainer.ema=0.9",
    "trainer.kl_warmup=2",
    "trainer.k_schedule={0:2,2:3}",
    "trainer.inner_k_schedule={0:1,3:2}",
    "trainer.log_every=1",
    "trainer.validation_k=2",
    "trainer.image_every=2",
    "trainer.progress=false",
    "estimator.k=3",
    "device=cpu",
    "trainer.threads=1",
]
STEPS = 32
TIMED = {"seconds", "chain"}
"""Keys of a checkpoint that depend on the clock."""


@pytest.fixture(autouse=True)
def _float32(default_data_dir: Path) -> Any:
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(kept)


def config(folder: Path, data: Path) -> Config:
    return compose([*OVERRIDES, f"output_dir={folder}", f"data_dir={data}"])


def state(folder: Path) -> dict[str, Any]:
    return Checkpoints(folder / "checkpoints").load().state


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one.keys() - TIMED)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> Path:
    """The run folder of the uninterrupted run."""
    torch.set_default_dtype(torch.float32)
    return train(config(tmp_path_factory.mktemp("whole"), default_data_dir))


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do ``act`` when the optimiser takes its ``step``-th step."""
    taken = [0]
    original = Update.step

    def counting(self: Update, *args: Any, **kwargs: Any) -> Any:
        taken[0] += 1
        if taken[0] == step:
            act()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Update, "step", counting)


def assert_same_run(one: Path, other: Path) -> None:
    assert same(state(one), state(other))
    results = [[(r.mean, r.stderr, r.epoch) for r in read_results(RunFolder(path))] for path in (one, other)]
    assert results[0] == results[1]
    best = [Checkpoints(path / "checkpoints").load("best").state for path in (one, other)]
    assert same(best[0], best[1])
    timing = ("wall", "train/images_per_second")
    lines = [
        [{k: v for k, v in line.items() if k not in timing} for line in read_metrics(RunFolder(path))]
        for path in (one, other)
    ]
    assert lines[0] == lines[1]
    scalars = [[point for point in read_scalars(path) if point[1] not in timing] for path in (one, other)]
    assert scalars[0] == scalars[1]


@pytest.mark.parametrize(
    ("step", "number"), [(3, signal.SIGINT), (8, signal.SIGTERM), (13, signal.SIGHUP), (31, signal.SIGTERM)]
)
def test_after_a_signal(
    whole: Path,
    tmp_path: Path,
    default_data_dir: Path,
    step: int,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = config(tmp_path, default_data_dir)
    with monkeypatch.context() as patch:
        stop_at(step, patch, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as stopped:
            train(mine)
    assert stopped.value.code == 128 + number
    assert RunFolder(run_folder(mine)).read_status().state == "interrupted"
    assert state(run_folder(mine))["progress"]["step"] == step
    assert_same_run(train(mine), whole)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


LATE = """
import sys
from vaebench.cli import main
from vaebench.records import files
from vaebench.train.update import Update
files.fcntl.flock = lambda descriptor, operation: None
step, taken = Update.step, [0]
def counting(self, *args, **kwargs):
    taken[0] += 1
    if taken[0] == 21:
        print("waiting", flush=True)
        input()
    return step(self, *args, **kwargs)
Update.step = counting
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_of_two_processes_that_both_got_the_lock_the_later_one_trains(
    whole: Path, tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some network file systems, flock succeeds and excludes nobody."""
    overrides = [*OVERRIDES, f"output_dir={tmp_path}", f"data_dir={default_data_dir}"]
    command = [sys.executable, "-c", LATE, *overrides]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as earlier:
        assert earlier.stdout is not None
        assert "waiting\n" in iter(earlier.stdout.readline, "")
        monkeypatch.setattr(files.fcntl, "flock", lambda descriptor, operation: None)
        folder = train(config(tmp_path, default_data_dir))
        before = snapshot(folder)
        out, message = earlier.communicate("\n")
    assert earlier.returncode == 2
    assert message.startswith(f"vaebench: process {os.getpid()} on "), message
    assert "so this process stopped and saved nothing further" in message
    assert "epoch 4/" not in out
    assert snapshot(folder) == before
    assert_same_run(folder, whole)


@pytest.mark.parametrize("when", ["at the last step", "after the evaluation"])
@pytest.mark.parametrize("looks", [True, False])
def test_a_run_that_lost_its_folder_changes_nothing_there(
    when: str, looks: bool, tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``looks``: control without the look at status.json. The metrics of the other process are in another file."""
    mine = compose([*OVERRIDES, "trainer.epochs=1", f"output_dir={tmp_path}", f"data_dir={default_data_dir}"])
    folder, found, estimate = RunFolder(run_folder(mine)), dict[Path, bytes](), session.estimate

    def claim() -> None:
        status = json.loads(folder.status.read_text())
        folder.status.write_text(json.dumps(status | {"pid": 1}))
        for path in [folder.metrics, *folder.path.glob("events.out.*")]:
            path.unlink()
        found.update(snapshot(folder.path))

    def claimed_then(*args: Any) -> Any:
        records = estimate(*args)
        claim()
        return records

    if when == "at the last step":
        stop_at(8, monkeypatch, claim)
    else:
        monkeypatch.setattr(session, "estimate", claimed_then)
    if looks:
        with pytest.raises(TakenOver, match="process 1 on"):
            train(mine)
    else:
        monkeypatch.setattr(RunFolder, "check_claim", lambda self: None)
        train(mine)
    assert (snapshot(folder.path) == found) is looks


KILLED = """
import os, signal, sys
from vaebench.config import compose
from vaebench.train.session import train
from vaebench.train.update import Update
step, taken = Update.step, [0]
def counting(self, *args, **kwargs):
    taken[0] += 1
    if taken[0] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
Update.step = counting
train(compose(sys.argv[2:]))
"""


def test_after_a_kill_in_the_middle_of_an_epoch(whole: Path, tmp_path: Path, default_data_dir: Path) -> None:
    mine = config(tmp_path, default_data_dir)
    overrides = [*OVERRIDES, f"output_dir={tmp_path}", f"data_dir={default_data_dir}"]
    killed = subprocess.run([sys.executable, "-c", KILLED, "21", *overrides], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = run_folder(mine)
    assert state(folder)["progress"]["step"] == 16  # the end of the last whole epoch
    assert RunFolder(folder).read_status().state == "interrupted"
    assert_same_run(resume(folder), whole)


def test_after_an_interrupted_evaluation(
    whole: Path, tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaebench.evaluate import importance

    mine = compose([*OVERRIDES, "estimator.batch=100", f"output_dir={tmp_path}", f"data_dir={default_data_dir}"])
    original, asked = importance.weighed, list[int]()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        asked.append(args[3].images[0].item())
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(importance, "weighed", interrupted)
        with pytest.raises(SystemExit):
            train(mine)
    assert asked == [0, 100, 200]

    def watched(*args: Any, **kwargs: Any) -> Any:
        asked.append(args[3].images[0].item())
        return original(*args, **kwargs)

    monkeypatch.setattr(importance, "weighed", watched)
    resumed = train(mine)
    assert asked == [0, 100, 200, 300, 400]
    # The batch size was another one here: it changes nothing but rounding.
    assert read_results(RunFolder(resumed))[0].mean == pytest.approx(read_results(RunFolder(whole))[0].mean, abs=1e-5)


def interrupt_at(step: int, mine: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and press Ctrl-C at a step."""
    with monkeypatch.context() as patch:
        stop_at(step, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit):
            train(mine)


def test_control_random_numbers_that_depend_on_the_session(
    whole: Path, tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = config(tmp_path, default_data_dir)
    interrupt_at(13, mine, monkeypatch)
    monkeypatch.setattr(batches, "seed_device", lambda device, seed: None)
    resumed = train(mine)
    assert not same(state(resumed)["modules"], state(whole)["modules"])


def test_no_checkpoint_holds_the_state_of_a_generator(whole: Path) -> None:
    """Its format would be that of one kind of device."""
    kept = {"identity", "progress", "recorded", "written", "modules", "averaged", "optimizers"}
    assert set(state(whole)) == kept


def test_a_checkpoint_with_the_states_of_generators_resumes(
    tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions stored them: a GPU's state has 16 bytes, a CPU's 5,056."""
    mine = config(tmp_path, default_data_dir)
    interrupt_at(31, mine, monkeypatch)
    folder = run_folder(mine)
    earlier = state(folder)
    del earlier["recorded"]
    of_gpu = torch.zeros(16, dtype=torch.uint8)
    earlier |= {"batches": {"generator": of_gpu}, "random": {"cpu": torch.get_rng_state(), "cuda": of_gpu}}
    Checkpoints(folder / "checkpoints").save(earlier)
    train(mine)
    assert "would draw other random numbers" in capsys.readouterr().out
    assert RunFolder(folder).read_status().state == "finished"


def test_a_stop_between_the_result_and_the_end_doubles_nothing(
    whole: Path, tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First a stop at the last step of an epoch and one after its validation is recorded, then one after the result."""
    mine = config(tmp_path, default_data_dir)
    interrupt_at(32, mine, monkeypatch)

    def full(*_: Any) -> None:
        raise UserError("the disk is full")

    for place, name in ((Trainer, "_save_last"), (session, "print_results")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(UserError, match="full"):
                train(mine)
    assert_same_run(train(mine), whole)


def test_a_finished_run_is_not_trained_again(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "metrics.jsonl").read_bytes(), (whole / "checkpoints" / "last.pt").read_bytes()
    resume(whole)
    assert "this run is finished" in capsys.readouterr().out
    assert ((whole / "metrics.jsonl").read_bytes(), (whole / "checkpoints" / "last.pt").read_bytes()) == before


def test_evaluation_and_pictures_leave_the_training_alone(whole: Path, tmp_path: Path, default_data_dir: Path) -> None:
    plain = [*OVERRIDES, "trainer.image_every=0", "trainer.log_every=7", f"data_dir={default_data_dir}"]
    other = train(compose([*plain, f"output_dir={tmp_path}"]))
    of_training = [
        {key: value for key, value in state(run).items() if key not in ("recorded", "written")}
        for run in (other, whole)
    ]
    assert same(*of_training)


def test_what_a_run_leaves_behind(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {"config.yaml", "manifest.json", "metrics.jsonl", "results.json", "status.json", "checkpoints"} <= names
    assert json.loads((whole / "status.json").read_text())["state"] == "finished"
    assert len([line for line in read_metrics(RunFolder(whole)) if "train/bound" in line]) == STEPS
