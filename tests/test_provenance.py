"""A number never outlives the weights, the data and the code that made it."""

import importlib
import json
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from made_runs import made_by, made_run, record
from test_every_config import ONE_STEP

from vaebench import experiment
from vaebench.cli import main
from vaebench.config import compose, identity, read
from vaebench.config.pictures import Sample
from vaebench.datasets import cache
from vaebench.datasets.dataset import load as load_dataset
from vaebench.datasets.protocol import Protocol
from vaebench.draw import draw
from vaebench.errors import UserError
from vaebench.evaluate import workers
from vaebench.evaluate.run import evaluate, print_results
from vaebench.experiment import weights_digest
from vaebench.records import (
    ResultRecord,
    RunFolder,
    append_result,
    read_manifest,
    read_per_image,
    read_results,
    source,
    write_json,
)
from vaebench.records.checkpoint import Checkpoints
from vaebench.records.pictures import provenance_of
from vaebench.records.provenance import seal_of
from vaebench.report import compare
from vaebench.report.runs import Run
from vaebench.train.session import train

EVALUATION = ["estimator.k=3", "estimator.images=20", "progress=false", "device=cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> RunFolder:
    """A finished run of one step with a test result."""
    where = [f"output_dir={tmp_path_factory.mktemp('outputs')}", f"data_dir={default_data_dir}", "device=cpu"]
    return RunFolder(train(compose(["encoder=gaussian", *ONE_STEP, *where, "estimator.k=2", "estimator.images=20"])))


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the finished run."""
    shutil.copytree(trained.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def as_of_an_earlier_epoch(run: RunFolder) -> Callable[[], None]:
    """Turn ``run`` into one that stopped half-way, and return a function that lets it finish."""
    best = run.checkpoints / "best.pt"
    kept, state = best.read_bytes(), Checkpoints(run.checkpoints).load("best").state
    modules = {name: tensor / 2 for name, tensor in state["modules"].items()}
    Checkpoints(run.checkpoints).save({**state, "modules": modules, "epoch": 0}, "best")
    run.write_status("running")
    manifest = read_manifest(run)
    write_json(run.manifest, {key: value for key, value in manifest.items() if key != "best"})

    def finish() -> None:
        best.write_bytes(kept)
        write_json(run.manifest, manifest)
        run.write_status("finished")

    return finish


# What a record carries ------------------------------------------------------------------------------------


def test_the_result_of_a_training_has_its_provenance(trained: RunFolder):
    (found,) = read_results(trained)
    made, manifest = found.provenance, read_manifest(trained)
    assert made is not None
    assert (made.state, made.epochs_done, made.epochs, made.epoch) == ("finished", 1, 1, 1)
    assert made.run == identity(read(trained.path))
    assert made.data == manifest["dataset"]["fingerprint"]
    assert made.code == manifest["code"]
    assert manifest["best"] == {"epoch": 1, "weights": made.weights}
    assert made.checkpoint == seal_of(trained.checkpoints / "best.pt")
    assert made.torch == torch.__version__
    assert (made.precision, made.device[:3]) == ("float32", "cpu")
    assert found.log_q == "exact"
    with numpy.load(trained.path / str(found.per_image).partition(":")[0]) as stored:
        assert json.loads(str(stored["provenance"]))["weights"] == made.weights


def test_a_picture_has_its_provenance(trained: RunFolder, tmp_path: Path):
    path = draw(Sample(n=2, device="cpu"), trained.path, tmp_path / "a.png")
    made = provenance_of(path.read_bytes())
    assert made is not None
    assert (made.run, made.epoch, made.state) == (identity(read(trained.path)), 1, "finished")
    assert provenance_of(b"\x89PNG") is None


def test_the_digest_of_weights_is_of_the_tensors_alone():
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(3)}
    digest = weights_digest(tensors)
    wide = torch.zeros(3, 8)
    wide[:, ::2] = tensors["a"]
    assert weights_digest({"b": tensors["b"], "a": wide[:, ::2]}) == digest
    changed = tensors["a"].clone()
    changed[2, 3] = torch.nextafter(changed[2, 3], torch.tensor(9.0))
    for other in ({"a": changed}, {"a": tensors["a"].double()}, {"a": tensors["a"].view(4, 3)}, {"c": tensors["a"]}):
        assert weights_digest({**tensors, **other}) != digest


def test_the_same_weights_have_the_same_checkpoint(tmp_path: Path):
    """A resumed run may save its best weights again; results of the first file stay valid."""
    state = {"epoch": 3, "modules": {"a": torch.randn(50, 40)}}
    seals = [seal_of(Checkpoints(tmp_path / name).save(state, "best")) for name in ("one", "other")]
    assert seals[0] == seals[1] is not None
    assert seal_of(tmp_path / "none.pt") is None


# Evaluated while it trains --------------------------------------------------------------------------------


def test_a_result_of_half_trained_weights_is_marked_and_later_left_out(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
):
    finish = as_of_an_earlier_epoch(run)
    with run.lock():  # it still trains
        assert main(["evaluate", str(run.path), *EVALUATION]) == 0
    said = "is not finished (running, epoch 1 of 1): its best weights so far are of epoch 0"
    assert said in capsys.readouterr().out
    early = read_results(run)[-1]
    assert early.provenance is not None
    assert (early.k, early.epoch, early.provenance.state) == (3, 0, "running")
    # Now the early weights are the best.
    assert Run.read(run).results == [early]

    finish()
    assert [row.record.k for row in compare([run.path]).rows] == [2]
    line = f"1 result of earlier weights left out, in {run.path}: run `vaebench evaluate {run.path} ...` to make new"
    for command in (["compare"], ["list", "runs"], ["show"]):
        assert main([*command, str(run.path)]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert line in shown
        assert f"{early.mean:.2f}" not in shown
    print_results(run)  # as `vaebench train` does for a finished run
    assert line in capsys.readouterr().out

    assert main(["evaluate", str(run.path), *EVALUATION]) == 0
    assert "not finished" not in capsys.readouterr().out
    assert sorted(row.record.k or 0 for row in compare([run.path]).rows) == [2, 3]


def test_control_without_provenance_the_early_result_would_rank(tmp_path: Path):
    """It stands in a table of its own, where nothing newer replaces it."""
    made_run(tmp_path, "encoder=gaussian", results=[record(-90.0), record(-150.0, k=3, epoch=0)])
    assert sorted(row.mean for row in compare([tmp_path]).rows) == [-150.0, -90.0]


def test_an_old_result_of_another_epoch_is_left_out_if_the_metrics_say_so(tmp_path: Path):
    values = [(1, -120.0), (4, -90.0), (6, -90.0), (8, -95.0)]
    metrics = [{"step": e, "epoch": float(e), "wall": 1.0, "validation/log_likelihood": v} for e, v in values]
    results = [record(-89.0, epoch=4), record(-119.0, k=3, epoch=1)]
    made_run(tmp_path, "encoder=gaussian", results=results, metrics=metrics)
    found = compare([tmp_path])
    assert [row.mean for row in found.rows] == [-89.0]
    assert found.notes[0].startswith("1 result of earlier weights left out")


def test_workers_with_other_weights_are_refused(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """The run may get new best weights between the start of an evaluation and the start of its processes."""
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    monkeypatch.setattr(workers, "_exit_with_parent", lambda: None)
    ours, theirs = multiprocessing.Pipe()
    workers._serve(theirs, read(run.path), run.path, "0" * 16, ())
    with pytest.raises(UserError, match="got new best weights during this evaluation"):
        workers._received(ours)


# Code -----------------------------------------------------------------------------------------------------

SOURCES = {
    "plugged/__init__.py": "",
    "plugged/base.py": "class Base:\n    width = 1\n",
    "plugged/parts.py": "def part():\n    return 1\n",
    "plugged/unused.py": "x = 1\n",
    "plugged/family.py": (
        "from plugged.base import Base\n\n\nclass Family(Base):\n"
        '    """A family."""\n\n    def width_of(self):\n        from . import parts\n'
        "        return parts.part()  # one\n"
    ),
}


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return the digest of a plug-in's class after a change of one of its files."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def of(**changes: str) -> str:
        for place, text in (SOURCES | {f"plugged/{name}.py": text for name, text in changes.items()}).items():
            (tmp_path / place).parent.mkdir(exist_ok=True)
            (tmp_path / place).unlink(missing_ok=True)
            (tmp_path / place).write_text(text)
        for name in [name for name in sys.modules if name.partition(".")[0] == "plugged"]:
            del sys.modules[name]
        for cached in (source._tree, source._digest, source._imported):
            cached.cache_clear()
        return source.source_digest([importlib.import_module("plugged.family").Family])

    return of


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("family", "return parts", "return 1 + parts"), ("base", "1", "2"), ("parts", "return 1", "return 2")],
)
def test_changed_code_changes_the_digest(digest: Callable[..., str], file: str, old: str, new: str):
    """Of the class, of its base class, and of what these import."""
    assert digest(**{file: SOURCES[f"plugged/{file}.py"].replace(old, new)}) != digest()


@pytest.mark.parametrize(("old", "new"), [("# one", "# two"), ("A family.", "Another."), ("\n\n\n", "\n\n\n\n\n")])
def test_comments_docstrings_and_layout_do_not(digest: Callable[..., str], old: str, new: str):
    assert digest(family=SOURCES["plugged/family.py"].replace(old, new)) == digest()
    assert digest(unused="x = 2\n") == digest()


def test_changed_code_is_said_and_its_results_are_not_mixed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = read_results(run)
    trained_code = read_manifest(run)["code"]
    monkeypatch.setattr(experiment, "source_digest", lambda classes, modules=(): "f" * 16)
    words = [f"estimator.{setting}" for setting in ("k=2", "images=20")]
    said = f"the code of the model (encoder=gaussian) has changed since this run was trained (digest {trained_code}, "

    (found,) = evaluate(run.path, [*words, "progress=false", "device=cpu"])
    assert said in capsys.readouterr().out
    assert read_results(run) == [*before, found]  # the right record is kept, although the key is the same
    assert found.key() == before[0].key()
    assert found.per_image != before[0].per_image
    assert Run.read(run).results == before
    assert any("1 result of other code left out" in note for note in compare([run.path]).notes)

    draw(Sample(n=2, device="cpu"), run.path)
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert main(["train", "--resume", str(run.path)]) == 0
    assert said in capsys.readouterr().out


# Data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["evaluate", *EVALUATION], ["sample", "device=cpu"], ["diagnose", "device=cpu", "progress=false"]]
)
def test_other_data_are_refused(
    command: list[str],
    run: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """A prepared file whose test images are shifted, whose header agrees with itself, and that the catalog accepts."""
    monkeypatch.setattr(cache, "departure", lambda arrays, protocol: "")
    data = load_dataset("mnist5k", Path(read(run.path).data_dir))
    protocol: Protocol = data.protocol
    assert data.cache is not None
    arrays = cache.read(data.cache, protocol)
    parts: dict[str, Any] = arrays.parts()
    shifted = {"test": numpy.roll(parts["test"].reshape(-1, 28, 28), 3, axis=2).reshape(-1, 784)}
    cache.write(cache.cache_paths(protocol, tmp_path / "data")[0], protocol, type(arrays)(**{**parts, **shifted}))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert main([command[0], str(run.path), *command[1:], f"data_dir={tmp_path / 'data'}"]) == 2
    said = capsys.readouterr().err
    assert "but the data are now" in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


# Seals ----------------------------------------------------------------------------------------------------


def sealed_run(root: Path, *results: ResultRecord, seed: int = 0) -> RunFolder:
    """Make a run whose results belong to it."""
    folder = made_run(root, "encoder=gaussian", seed=seed)
    for result in results:
        made = made_by(run=identity(read(folder.path)))
        append_result(folder, ResultRecord(**{**vars(result), "provenance": made}))
    return folder


def test_results_of_another_run_are_named_and_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Copied to another seed, they would narrow the spread over seeds."""
    one, other = sealed_run(tmp_path, record(-90.0)), sealed_run(tmp_path, record(-100.0), seed=1)
    other.results.write_bytes(one.results.read_bytes())
    assert main(["compare", str(tmp_path)]) == 0
    assert f"1 result of another run left out, in {other.path}" in " ".join(capsys.readouterr().out.split())
    assert [row.n for row in compare([tmp_path]).rows] == [1]


def test_a_run_folder_with_an_edited_seed_is_named(tmp_path: Path):
    folder = sealed_run(tmp_path / "a", record(-90.0))
    shutil.copytree(folder.path, tmp_path / "copy")
    config = tmp_path / "copy" / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 0\n", "\nseed: 7\n"))
    found = compare([tmp_path])
    assert [row.seeds for row in found.rows] == [[0]]
    assert any("1 result of another run left out" in note for note in found.notes)


def test_an_edited_number_is_noticed_and_never_sealed_again(tmp_path: Path):
    folder = sealed_run(tmp_path, record(-90.0), record(-91.0, k=3))
    text = folder.results.read_text()
    folder.results.write_text(text.replace("-90.0", "-80.0"))
    with pytest.raises(UserError, match=r"the result with the mean -80.0 was altered after it was written"):
        read_results(folder)
    with pytest.raises(UserError, match="was altered"):
        append_result(folder, record(-92.0, k=5))
    assert folder.results.read_text() == text.replace("-90.0", "-80.0")
    # An early version wrote no checksum; its records stay as they are.
    entries = json.loads(text)
    del entries[0]["checksum"]
    folder.results.write_text(json.dumps(entries))
    append_result(folder, record(-92.0, k=5))
    assert "checksum" not in json.loads(folder.results.read_text())[0]


def test_numbers_per_image_belong_to_their_result(run: RunFolder):
    evaluate(run.path, EVALUATION)
    two, three = read_results(run)
    paths = [run.path / str(result.per_image).partition(":")[0] for result in (two, three)]
    assert read_per_image(run, two).values.mean() == pytest.approx(two.mean)
    kept = paths[0].read_bytes()
    paths[0].write_bytes(paths[1].read_bytes())
    with pytest.raises(UserError, match=rf"it was written as {paths[1].name}"):
        read_per_image(run, two)
    with numpy.load(paths[1]) as stored:
        arrays = {name: stored[name] for name in stored.files}
    numpy.savez(paths[0], **{**arrays, "key": numpy.array(paths[0].stem)})
    with pytest.raises(UserError, match="its numbers have the mean"):
        read_per_image(run, two)
    numpy.savez(paths[0], **{**arrays, "key": numpy.array(paths[0].stem), "provenance": numpy.array("{}")})
    with pytest.raises(UserError, match="its provenance cannot be read"):
        read_per_image(run, two)
    paths[0].write_bytes(kept)
    outside = ResultRecord(**{**vars(two), "per_image": "../run/evaluations/a.npz:values"})
    with pytest.raises(UserError, match="it is not in the run folder"):
        read_per_image(run, outside)


# Content that is whole but of something else --------------------------------------------------------------


def test_other_weights_than_the_run_kept_are_not_evaluated(run: RunFolder, capsys: pytest.CaptureFixture[str]):
    words = ["evaluate", str(run.path), *EVALUATION]
    checkpoints = Checkpoints(run.checkpoints)
    state, results = checkpoints.load("best").state, run.results.read_bytes()
    halves = {name: tensor / 2 for name, tensor in state["modules"].items()}
    checkpoints.save({**state, "modules": halves}, "best")
    assert main(words) != 0
    assert f"{run.checkpoints / 'best.pt'} holds other weights" in capsys.readouterr().err
    assert run.results.read_bytes() == results
    checkpoints.save(state, "best")  # control: the same weights, saved again
    assert main(words) == 0


@pytest.mark.parametrize("fault", ["no weights", "weights are text", "other shapes", "no progress", "progress is text"])
def test_a_checkpoint_with_other_content_is_named(fault: str, run: RunFolder, capsys: pytest.CaptureFixture[str]):
    def changed(state: dict[str, Any]) -> dict[str, Any]:
        if fault == "other shapes":
            return state | {"modules": {name: torch.zeros(1, 1, 1) for name in state["modules"]}}
        key = "modules" if "weights" in fault else "progress"
        return {name: value for name, value in state.items() if name != key} | ({key: "x"} if "text" in fault else {})

    checkpoints = Checkpoints(run.checkpoints)
    run.write_status("interrupted")
    used = {"last": ["train", "--resume", str(run.path)], "best": ["evaluate", str(run.path), *EVALUATION]}
    for name in ["last"] if "progress" in fault else ["last", "best"]:
        state = checkpoints.load(name).state
        checkpoints.save(changed(state), name)
        assert main(used[name]) != 0
        assert f"the content of {run.checkpoints / name}.pt is not that of a checkpoint" in capsys.readouterr().err
        checkpoints.save(state, name)  # control
    assert main(used["last"]) == 0
