"""`vaebench.train`, `vaebench.evaluate` and `vaebench.runs` do what the commands do, and results keep their labels."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_runs import made_run, record

import vaebench
from vaebench.callable_package import CallablePackage
from vaebench.cli import main
from vaebench.errors import RunFailed, UserError
from vaebench.notebook import LabelledResult, TrainedRun, _overrides
from vaebench.records import append_result

TINY = ["latent_dim=2", "decoder.hidden=[8]", "trainer.epochs=1", "trainer.batch_size=2000", "trainer.validation_k=2"]
TINY += ["trainer.compile=false", "device=cpu", "estimator.k=2", "estimator.images=20"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> TrainedRun:
    outputs = tmp_path_factory.mktemp("outputs")
    return vaebench.train(TINY, "encoder=hvm", objective="iwae", k=2, data_dir=default_data_dir, output_dir=outputs)


def words(run: TrainedRun) -> list[str]:
    config = run.config
    return [
        *TINY,
        "encoder=hvm",
        "objective=iwae",
        "k=2",
        f"data_dir={config.data_dir}",
        f"output_dir={config.output_dir}",
    ]


def test_a_call_is_the_command(run: TrainedRun, capsys: pytest.CaptureFixture[str]):
    assert run.state == "finished"
    assert main(["train", *words(run)]) == 0
    assert f"folder     {run.folder}\nthis run is finished" in capsys.readouterr().out
    recorded = json.loads((run.folder / "manifest.json").read_text())["command"]
    assert recorded[:2] == ["vaebench", "train"]
    assert set(recorded[2:]) == set(words(run))


def test_global_settings_do_not_change(run: TrainedRun):
    torch.manual_seed(3)
    before, arguments = torch.get_rng_state(), list(sys.argv)
    assert vaebench.train(words(run)).folder == run.folder
    assert torch.equal(before, torch.get_rng_state())
    assert sys.argv == arguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["encodr=hvm"], "unknown key encodr"),
        (["k=0"], "k must be >= 1, got 0"),
        (["k=1,16"], "'k=1,16' gives several values"),
        (["zip(k,seed)=(1,2),(3,4)"], "gives several values"),
        (["--fresh"], "--fresh is a flag of the command line"),
        (["hydra.run.dir=x"], "a setting of hydra"),
        (["objective=elbo", "objective.gradient=dreg"], "use objective.gradient=stl"),
    ],
)
def test_an_invalid_request_is_refused(given: list[str], message: str, default_data_dir: Path, tmp_path: Path):
    with pytest.raises(UserError) as refusal:
        vaebench.train(*given, data_dir=default_data_dir, output_dir=tmp_path)
    assert message in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_settings_become_words():
    given = {
        "k": 4,
        "decoder": {"hidden": (8, 8)},
        "trainer": {"ema": None, "progress": False},
        "optimizer": {"lr": 1e-5},
    }
    expected = ["encoder=hvm", "seed=1", "k=4", "decoder.hidden=[8,8]", "trainer.ema=null", "trainer.progress=false"]
    assert _overrides(["encoder=hvm", ["seed=1"]], given) == [*expected, "optimizer.lr=1e-05"]


@pytest.mark.parametrize(("code", "raised"), [(130, KeyboardInterrupt), (143, SystemExit)])
def test_an_interruption_is_that_of_python(code: int, raised: type, run: TrainedRun, monkeypatch: pytest.MonkeyPatch):
    def stopped(*arguments: object, **options: object) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("vaebench.train.session.train", stopped)
    with pytest.raises(raised):
        vaebench.train(words(run))


def test_an_evaluation_returns_its_results(run: TrainedRun):
    (result,) = vaebench.evaluate(run.folder.parent, "estimator=iwae", estimator={"k": 3, "images": 10}, progress=False)
    assert str(result).startswith("test log p(x) >= ")
    assert "DIWHVI, k=3, inner_k=0, mnist5k/dynamic-v1/random10-seed0, 10 images" in str(result)
    assert (result.direction, result.estimator, result.k, result.n_images) == ("lower_bound", "DIWHVI", 3, 10)
    assert result.per_image.shape == (10,)
    assert result.per_image.mean() == pytest.approx(result.mean)
    assert result.per_image.std(ddof=1) / 10**0.5 == pytest.approx(result.stderr, rel=1e-5)
    assert result in run.results


def test_the_errors_of_evaluations(run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match="there is no folder"):
        vaebench.evaluate(tmp_path / "none")
    with pytest.raises(UserError, match="k must be >= 1"):
        vaebench.evaluate(run, "estimator.k=0")
    untrained = made_run(tmp_path, *TINY).path
    with pytest.raises(RunFailed, match="1 of 2 evaluations failed"):
        vaebench.evaluate([untrained, run], "estimator.k=2", progress=False)
    assert "there is no checkpoint" in capsys.readouterr().err


def test_a_result_is_no_number_and_shows_its_label():
    result = LabelledResult(Path("a<b"), record(-90.0, direction="estimate"))
    with pytest.raises(TypeError):
        float(result)  # pyright: ignore[reportArgumentType]
    for text in (str(result), repr(result), result._repr_html_()):
        assert "~ -90.00" in text
        assert "estimate" in text
        assert "mnist5k/dynamic-v1" in text
    assert "a&lt;b" in result._repr_html_()


def test_a_run_shows_its_state_and_its_results(tmp_path: Path):
    folder = made_run(tmp_path, "encoder=hvm", results=[record(-90.0)], state="interrupted")
    shown = TrainedRun(folder.path)
    for text in (repr(shown), shown._repr_html_()):
        assert "interrupted" in text
        assert "hvm elbo k=1" in text
        assert "-90.00" in text


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Two methods, one with two seeds, and a second result of one run."""
    lines = [{"step": 5 * epoch, "epoch": epoch, "wall": 2.0 * epoch} for epoch in (1, 2)]
    metrics = [line | {"validation/log_likelihood": -100.0 + line["step"], "train/kl": 3.0} for line in lines]
    metrics.append({"step": 10, "epoch": 2, "wall": 4.0, "test/log_likelihood": -80.0, "train/bound_estimate": -7.0})
    for seed in (0, 1):
        made_run(tmp_path, "encoder=gaussian", results=[record(-90.0 - seed, epoch=2)], seed=seed, metrics=metrics)
    hvm = made_run(tmp_path, "encoder=hvm", results=[record(-80.0, epoch=2, direction="upper_bound")], metrics=metrics)
    append_result(hvm, record(-85.0, epoch=2))
    append_result(hvm, record(-70.0, epoch=2, k=9))
    return tmp_path


def test_a_row_for_each_run(three: Path):
    frame = vaebench.runs(three).frame()
    assert list(frame["method"]) == ["gaussian elbo k=1", "gaussian elbo k=1", "hvm elbo k=1"]
    # The kind of result that most runs have: k=64 and a lower bound, not the latest one.
    assert list(frame["mean"]) == [-90.0, -91.0, -85.0]
    assert list(frame["direction"]) == ["lower_bound"] * 3
    assert list(frame["result.k"]) == [64] * 3
    assert list(frame["k"]) == [1] * 3
    assert list(frame["results"]) == [1, 1, 3]
    assert {"stderr", "estimator", "protocol", "encoder", "optimizer.lr", "state", "seed"} <= set(frame)


def test_a_row_for_each_result(three: Path):
    frame = vaebench.runs(three).results()
    assert sorted(frame["mean"]) == [-91.0, -90.0, -85.0, -80.0, -70.0]
    assert list(frame.loc[frame["mean"] == -80.0, "direction"]) == ["upper_bound"]


def test_a_row_for_each_recorded_number(three: Path, capsys: pytest.CaptureFixture[str]):
    runs = vaebench.runs(three)
    frame = runs.curves()
    assert list(frame) == ["run", "method", "seed", "step", "epoch", "seconds", "quantity", "direction", "value"]
    assert len(frame) == 3 * (2 * 2 + 2)
    validation = frame[(frame["quantity"] == "validation/log_likelihood") & (frame["seed"] == 1)]
    assert [list(validation[name]) for name in ("step", "epoch", "seconds", "value")] == [
        [5, 10],
        [1, 2],
        [2, 4],
        [-95, -90],
    ]
    directions = dict(zip(frame["quantity"], frame["direction"], strict=True))  # of the last run, hvm
    assert directions["validation/log_likelihood"] == "lower_bound"
    assert directions["train/bound_estimate"] == "estimate"
    assert directions["test/log_likelihood"] == "upper_bound"
    assert directions["train/kl"] == ""
    assert main(["curves", str(three), "-o", str(three / "c.csv")]) == 0
    assert (three / "c.csv").read_text() == frame.to_csv(index=False, lineterminator="\n")
    capsys.readouterr()
    assert main(["curves", str(three), "--filter", "encoder=hvm"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 6


def test_runs_are_filtered_and_the_corrupt_are_named(three: Path):
    assert len(vaebench.runs(three, filters="encoder=gaussian")) == 2
    assert len(vaebench.runs(three, filters=["encoder=gaussian", "seed=1"])) == 1
    with pytest.raises(UserError, match="no run has a setting"):
        vaebench.runs(three, filters="encodr=hvm")
    corrupt = next((three / "mnist5k" / "hvm-elbo-k1").iterdir())
    (corrupt / "results.json").write_text("{")
    runs = vaebench.runs(three)
    assert len(runs) == 2
    assert f"left out: {corrupt}" in repr(runs)
    assert f"left out: {corrupt}" in runs._repr_html_()


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_package_is_a_function_too(name: str):
    package: Any = getattr(vaebench, name)
    assert isinstance(package, CallablePackage)
    assert sys.modules[f"vaebench.{name}"] is package
    function: Callable[..., Any] = getattr(sys.modules["vaebench.notebook"], name)
    assert inspect.signature(package) == inspect.signature(function)


def test_importing_the_package_imports_no_large_library():
    code = "import sys, vaebench.train; print(*{'torch', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == []
