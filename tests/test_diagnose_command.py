"""`vaebench diagnose`: from a run folder to a table with definitions and diagnostics.json; and what training logs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vaebench.cli import main
from vaebench.cli.flags import settings
from vaebench.config import Config, compose
from vaebench.config.diagnosis import Diagnosis
from vaebench.diagnose import _bound_updates, _one_gradient, diagnosed
from vaebench.errors import RunFailed, UserError
from vaebench.experiment import build
from vaebench.records import (
    Diagnostic,
    Diagnostics,
    RunFolder,
    format_table,
    read_diagnostics,
    read_metrics,
    read_results,
    write_diagnostics,
)
from vaebench.train.schedules import StepSettings
from vaebench.train.session import train
from vaebench.train.updates import updates

TINY = ["latent_dim=2", "decoder.hidden=[6]", "device=cpu", "trainer.threads=1", "trainer.progress=false", "seed=1"]
QUICK = ["images=30", "draws=4", "gradients=4", "device=cpu", "threads=1", "progress=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> Path:
    """A short training with several weights."""
    words = ["encoder=iwhvi", "objective=iwae", "k=3", "encoder.psi_dim=2", "encoder.inner_k=1"]
    words += ["trainer.epochs=2", "trainer.batch_size=512", "trainer.validation_k=2", "trainer.log_every=2"]
    words += ["trainer.evaluate=false", "trainer.image_every=0"]
    folder = tmp_path_factory.mktemp("runs")
    return train(compose([*TINY, *words, f"output_dir={folder}", f"data_dir={default_data_dir}"]))


def config(default_data_dir: Path, *words: str, images: int = 30) -> Config:
    made = compose([*TINY, f"data_dir={default_data_dir}", *words])
    return replace(made, estimator=replace(made.estimator, images=images))


def look(default_data_dir: Path, *run: str, words: tuple[str, ...] = (), images: int = 30) -> Diagnostics:
    built = build(config(default_data_dir, *run, images=images))
    return diagnosed(built, settings([*QUICK, *words], Diagnosis), epoch=1)


# The command ----------------------------------------------------------------------------------------------


def test_a_run_is_diagnosed(run: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["diagnose", str(run), *QUICK]) == 0
    shown = capfd.readouterr().out
    found = read_diagnostics(RunFolder(run))
    assert found is not None
    assert (found.n_images, found.split, found.settings["k"], found.settings["inner_k"]) == (30, "test", 3, 1)
    assert "random30-seed0" in found.protocol
    assert found.provenance is not None
    assert (found.provenance.epoch, found.provenance.state) == (found.epoch, "finished")
    assert found.measures["rate"].direction == "upper_bound"
    assert found.measures["ess"].unit == "of 3"
    assert set(found.coordinates) >= {"variance_of_mean", "mean_variance", "kl_gaussian_approximation"}
    words = "".join(shown.split())
    for measure in found.measures.values():
        assert "".join(measure.title.split()) in words


def test_the_table_has_each_definition_beside_its_number(default_data_dir: Path):
    found = look(default_data_dir)
    lines = format_table(found, 5000).splitlines()
    for measure in found.measures.values():
        assert [x for x in lines if x.startswith(f"{measure.title} ") and x.endswith(f" {measure.definition}")]
    for width in (80, 120):
        lines = format_table(found, width).splitlines()
        assert max(map(len, lines)) <= width
        words = "".join("".join(lines).split())
        assert all("".join(measure.definition.split()) in words for measure in found.measures.values()) or width == 120


def test_settings_are_the_same_from_the_command_and_from_batches(default_data_dir: Path):
    """No image is dropped with a last batch that is smaller, and batches do not show."""
    whole, parts = (look(default_data_dir, words=(f"batch={batch}", "k=5")) for batch in (30, 7))
    for name, measure in whole.measures.items():
        assert parts.measures[name].value == pytest.approx(measure.value, rel=1e-4, abs=1e-4)


def test_the_global_generator_is_left_alone(default_data_dir: Path):
    built = build(config(default_data_dir))
    before = torch.get_rng_state()
    diagnosed(built, settings(QUICK, Diagnosis), epoch=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in built.modules.parameters())


BOUNDS = {"information_lower", "information_upper", "aggregate_kl_lower", "aggregate_kl_upper"}


@pytest.mark.parametrize(
    ("encoder", "rate", "by_density"),
    [
        ("gaussian", "exact", True),
        ("full_gaussian", "exact", True),
        ("planar", "exact", True),
        ("sivi", "upper_bound", False),
        ("uivi", "upper_bound", False),
        ("hvae", "upper_bound", False),
        ("avb", "estimate", False),
        ("avb_ac", "estimate", False),
    ],
)
def test_every_family_is_diagnosed_with_its_directions(
    encoder: str, rate: str, by_density: bool, default_data_dir: Path
):
    found = look(default_data_dir, f"encoder={encoder}").measures
    assert found["rate"].direction == rate
    assert BOUNDS & set(found) == (BOUNDS if by_density else {"information_lower", "aggregate_kl_upper"})
    assert found["aggregate_kl_upper"].direction == ("estimate" if rate == "estimate" else "upper_bound")
    assert ("rate_gaussian" in found) == (encoder != "gaussian")
    assert found["ess"].value is None
    assert "k=1" in found["ess"].definition
    assert found["gradient_snr_encoder"].extra["floor"] == pytest.approx(0.552, abs=1e-3)


def test_coordinates_of_a_prior_that_has_none_are_refused(default_data_dir: Path):
    found = look(default_data_dir, "encoder=two_layer", "prior=chained")
    assert found.measures["active_units_kl"].value is None
    assert "not computed" in found.measures["active_units_kl"].definition
    assert not {"kl", "kl_gaussian_approximation"} & set(found.coordinates)
    assert "not computed" in format_table(found)


def test_piwae_s_two_objectives_and_no_gradients(default_data_dir: Path):
    found = look(default_data_dir, "objective=piwae", "k=4", "objective.groups=2")
    assert {"gradient_snr_encoder", "gradient_snr_decoder"} <= set(found.measures)
    assert not [n for n in look(default_data_dir, words=("gradients=0",)).measures if "gradient" in n]
    with pytest.raises(UserError, match="k=3"):
        look(default_data_dir, "objective=piwae", "k=4", "objective.groups=2", words=("k=3",))


def test_weights_that_are_not_finite_are_reported(default_data_dir: Path):
    built = build(config(default_data_dir))
    with torch.no_grad():
        next(built.encoder.parameters()).fill_(torch.nan)
    with pytest.raises(RunFailed, match="30 of 30 images"):
        diagnosed(built, settings(QUICK, Diagnosis), epoch=1)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("imges=3", "unknown key imges .did you mean 'images'"),
        ("draws=5", "draws must be an even number >= 4"),
        ("images=1", "images must be >= 2"),
        ("gradients=2", "gradients must be 0 .none. or >= 4"),
        ("split=tset", "did you mean 'test'"),
        ("k=x", "k must be an integer"),
        ("k=[", "k must be an integer"),
    ],
)
def test_settings_are_checked(word: str, message: str):
    with pytest.raises(UserError, match=message):
        settings([word], Diagnosis)


def test_the_command_refuses(run: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["diagnose"]) == 2
    assert "missing RUN" in capfd.readouterr().err
    assert main(["diagnose", str(run), "imges=3"]) == 2
    assert "did you mean 'images'" in capfd.readouterr().err
    assert main(["diagnose", str(run), *QUICK, "images=2"]) == 2
    assert "3 or more" in capfd.readouterr().err


def test_all_settings_have_defaults_that_the_help_names(capfd: pytest.CaptureFixture[str]):
    assert main(["diagnose", "--help"]) == 0
    shown = capfd.readouterr().out
    assert all(name in shown for name in vars(Diagnosis()))
    assert settings(["images=null"], Diagnosis).images is None


# The file -------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path):
    measure = Diagnostic(title="active units", value=3.0, definition="above 0.01", extra={"of": 8.0}, unit="of 8")
    refused = Diagnostic(title="KL", value=None, definition="refused: no density")
    found = Diagnostics(
        epoch=3,
        split="test",
        protocol="mnist",
        n_images=9,
        seconds=0.5,
        settings={"k": 3},
        measures={"active_units": measure, "kl": refused},
        coordinates={"kl": [0.5, 0.1]},
    )
    folder = RunFolder(tmp_path)
    assert read_diagnostics(folder) is None
    write_diagnostics(folder, found)
    assert read_diagnostics(folder) == found
    assert json.loads(folder.diagnostics.read_text())["measures"]["active_units"]["definition"] == "above 0.01"
    folder.diagnostics.write_text("{")
    with pytest.raises(UserError, match="Delete it"):
        read_diagnostics(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"value": float("nan")}, "finite"), ({"definition": ""}, "definition"), ({"direction": "up"}, "direction")],
)
def test_a_measure_that_cannot_be_right(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Diagnostic(**{"title": "x", "value": 1.0, "definition": "y"} | fields)


def test_a_diagnosis_continues_after_running_out_of_memory(
    default_data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("k=5", "gradients=0")
    whole, built = look(default_data_dir, words=words), build(config(default_data_dir))
    encode = built.encoder.encode

    def cramped(x: torch.Tensor) -> Any:
        if len(x) > 10:
            raise MemoryError
        return encode(x)

    monkeypatch.setattr(built.encoder, "encode", cramped)
    found = diagnosed(built, settings([*QUICK, *words], Diagnosis), epoch=1)
    assert "out of memory: continuing with 7 images at a time" in capsys.readouterr().err
    assert found.measures.keys() == whole.measures.keys()
    for name, measure in whole.measures.items():
        assert found.measures[name].value == pytest.approx(measure.value, rel=1e-3, abs=1e-4)


# In training ----------------------------------------------------------------------------------------------


def test_training_logs_cheap_diagnostics(run: Path):
    lines = read_metrics(RunFolder(run))
    ess = [line["train/ess"] for line in lines if "train/ess" in line]
    assert ess
    assert all(1 <= value <= 3 for value in ess)
    validations = [line for line in lines if "validation/log_likelihood" in line]
    assert len(validations) == 2
    for line in validations:
        assert 0 <= line["validation/active_units"] <= 2
        assert 0.1 < line["validation/posterior_std"] < 2


def test_a_gradient_waits_for_the_device_once(default_data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    experiment = build(config(default_data_dir, "encoder=iwhvi"))
    bounds, x = _bound_updates(experiment), experiment.data.observe(experiment.data.test[:3])
    waits, plain = [], torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: waits.append(tensor) or plain(tensor))
    gradients = _one_gradient(bounds, x, StepSettings(2, 1, 1.0))
    assert len(gradients) > 10
    assert len(waits) == 1


def test_one_weight_has_no_effective_number(default_data_dir: Path):
    built = build(config(default_data_dir))
    (update,) = updates(built)
    metrics = update.loss(torch.rand(4, 784), StepSettings(1, 0, 1.0)).metrics
    assert "ess" not in metrics
    assert "ess" in update.loss(torch.rand(4, 784), StepSettings(2, 0, 1.0)).metrics


def test_gaps_at_the_end_of_a_training_have_tags_of_their_own(tmp_path: Path, default_data_dir: Path):
    words = ["estimator=gaps", "estimator.k=4", "estimator.images=3", "estimator.draws=2", "estimator.steps=2"]
    words += ["trainer.epochs=1", "trainer.batch_size=4000", "trainer.validation_k=2", "trainer.image_every=0"]
    folder = RunFolder(train(compose([*TINY, *words, f"output_dir={tmp_path}", f"data_dir={default_data_dir}"])))
    logged = {tag: value for line in read_metrics(folder) for tag, value in line.items() if tag.startswith("test/")}
    means = {record.quantity: record.mean for record in read_results(folder)}
    assert len(logged) == len(means) == 6
    assert logged["test/inference_gap"] == pytest.approx(means["inference gap"])
    assert logged["test/log_likelihood"] == pytest.approx(means["log p(x)"])
