"""A run that is trained longer is bitwise the run that was trained to that length in one go."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from vaebench.config import compose, identity, read
from vaebench.errors import UserError
from vaebench.records import RunFolder, read_manifest, read_metrics, read_results
from vaebench.records.checkpoint import Checkpoints
from vaebench.train import session
from vaebench.train.session import resume, train
from vaebench.train.update import Update

SMALL = [
    "latent_dim=2",
    "encoder.hidden=[8]",
    "decoder.hidden=[8]",
    "trainer.batch_size=1000",
    "trainer.log_every=1",
    "trainer.validation_k=2",
    "trainer.image_every=3",
    "trainer.ema=0.9",
    "trainer.patience=9",
    "trainer.kl_warmup=1",
    "optimizer.schedule=exponential",
    "trainer.progress=false",
    "trainer.threads=1",
    "trainer.compile=false",
    "estimator.k=2",
    "device=cpu",
]


@pytest.fixture
def words(tmp_path: Path, default_data_dir: Path) -> list[str]:
    return [*SMALL, f"output_dir={tmp_path}", f"data_dir={default_data_dir}"]


@pytest.fixture(scope="module")
def one_go(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> Path:
    """The folder of a run of four epochs."""
    folder = tmp_path_factory.mktemp("one_go")
    return train(compose([*SMALL, f"output_dir={folder}", f"data_dir={default_data_dir}", "trainer.epochs=4"]))


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: item for k, v in value.items() for key, item in flat(v, f"{name}.{k}").items()}
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value}


def content(folder: Path) -> list[Any]:
    """Return what a training leaves: both checkpoints, the metrics and the results, without times."""
    states = [flat(Checkpoints(folder / "checkpoints").load(name).state) for name in ("last", "best")]
    for state in states:
        state.pop(".progress.seconds", None)
        state.pop(".written.chain", None)  # of lines with times
    timing = ("wall", "train/images_per_second")
    lines = [{k: v for k, v in line.items() if k not in timing} for line in read_metrics(RunFolder(folder))]
    return [*states, lines, [(r.mean, r.epoch) for r in read_results(RunFolder(folder))]]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, original = [0], Update.step

    def counting(self: Update, *args: Any, **kwargs: Any) -> Any:
        taken[0] += 1
        if taken[0] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Update, "step", counting)


def test_a_finished_run_is_trained_longer(one_go: Path, words: list[str], capsys: pytest.CaptureFixture[str]):
    short = train(compose([*words, "trainer.epochs=2"]))
    before = files(short)
    longer = resume(short, {"trainer.epochs": 4})
    assert f"continuing {short} in {longer}" in capsys.readouterr().out.splitlines()
    assert content(longer) == content(one_go)
    assert files(short) == before
    assert longer.name == one_go.name
    assert read(longer).trainer.epochs == 4
    assert read_manifest(RunFolder(longer))["continues"] == {"run": str(short), "epoch": 2, "step": 8}
    resume(short, {"trainer.epochs": 4})  # once more
    assert "this run is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "of_longer"),
    [
        (["vaebench", "train", "trainer.epochs=2", "seed=1"], ["vaebench", "train", "seed=1", "trainer.epochs=4"]),
        (["notebook.py"], ["notebook.py"]),
    ],
)
def test_the_command_of_a_longer_run_trains_it_from_the_start(
    command: list[str], of_longer: list[str], words: list[str]
):
    short = train(compose([*words, "trainer.epochs=2"]))
    manifest = RunFolder(short).manifest
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"command": command}))
    assert read_manifest(RunFolder(resume(short, {"trainer.epochs": 4})))["command"] == of_longer


def test_an_interrupted_run_is_trained_longer(one_go: Path, words: list[str], monkeypatch: pytest.MonkeyPatch):
    config = compose([*words, "trainer.epochs=3"])
    with monkeypatch.context() as patch:
        interrupt_at(6, patch)
        with pytest.raises(SystemExit):
            train(config)
    (folder,) = RunFolder.find([Path(config.output_dir)])
    assert content(resume(folder.path, {"trainer.epochs": 4})) == content(one_go)


def test_a_copy_that_was_stopped_starts_again(one_go: Path, words: list[str], monkeypatch: pytest.MonkeyPatch):
    short = train(compose([*words, "trainer.epochs=2"]))
    save = Checkpoints.save

    def full(self: Checkpoints, state: dict[str, Any], name: str = "last") -> Path:
        if name == "last":
            raise UserError("the disk is full")
        return save(self, state, name)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        with pytest.raises(UserError, match="full"):
            resume(short, {"trainer.epochs": 4})
    assert content(resume(short, {"trainer.epochs": 4})) == content(one_go)


@pytest.mark.parametrize(
    ("setting", "epochs", "reason"),
    [
        ("optimizer.schedule=cosine", 1, "optimizer.schedule=cosine depends on trainer.epochs"),
        (
            "trainer.k_schedule={0:1,1:2}",
            1,
            "trainer.patience counts from the end of the schedules, which depends on trainer.epochs",
        ),
        ("trainer.validate_every=2", 3, "epoch 3 is not validated in a longer run (trainer.validate_every=2)"),
    ],
)
def test_a_run_that_differs_from_the_start_is_trained_from_the_start(
    setting: str, epochs: int, reason: str, words: list[str], capsys: pytest.CaptureFixture[str]
):
    words = [*words, setting, "trainer.evaluate=false", "trainer.kl_warmup=0"]
    longer = resume(train(compose([*words, f"trainer.epochs={epochs}"])), {"trainer.epochs": epochs + 1})
    assert f"{reason}: training from the start in {longer}" in capsys.readouterr().out
    steps = [line["step"] for line in read_metrics(RunFolder(longer)) if "train/bound" in line]
    assert steps == list(range(1, 4 * (epochs + 1) + 1))
    assert "continues" not in read_manifest(RunFolder(longer))


def test_fewer_epochs_than_completed_are_refused(one_go: Path):
    for epochs in (2, 3):
        with pytest.raises(UserError, match=rf"trainer\.epochs must be > 4, .* got {epochs}"):
            resume(one_go, {"trainer.epochs": epochs})
        assert not [path for path in one_go.parent.iterdir() if path != one_go]


def test_a_run_that_stopped_early_is_not_trained_longer(words: list[str], monkeypatch: pytest.MonkeyPatch):
    values = iter([-1.0, -2.0, -3.0, -4.0])
    monkeypatch.setattr(session, "validate", lambda *_: next(values))
    settings = ["trainer.patience=1", "trainer.evaluate=false", "trainer.kl_warmup=0"]
    folder = train(compose([*words, *settings, "trainer.epochs=3"]))
    with pytest.raises(UserError, match="stopped early at epoch 2"):
        resume(folder, {"trainer.epochs": 9})


def test_a_longer_run_stops_where_one_go_would(words: list[str], monkeypatch: pytest.MonkeyPatch):
    """The last validation of a run never stops it; that of a longer run does."""
    values = iter([-1.0, -2.0])
    monkeypatch.setattr(session, "validate", lambda *_: next(values))
    settings = ["trainer.patience=1", "trainer.evaluate=false", "trainer.kl_warmup=0"]
    folder = train(compose([*words, *settings, "trainer.epochs=2"]))
    longer = resume(folder, {"trainer.epochs": 9})
    assert read_manifest(RunFolder(longer))["stopped_early"] == {"epoch": 2, "of": 9}


def test_the_device_is_no_other_run(one_go: Path, capsys: pytest.CaptureFixture[str]):
    assert resume(one_go, {"device": "auto"}) == one_go
    assert "this run is finished" in capsys.readouterr().out
    assert identity(read(one_go)) in one_go.name
