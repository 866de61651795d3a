"""bf16 networks cost an estimate nothing, as densities and sums are in float32 under them; a result says which it is.

Trained models are what counts: pixels are confident in them, and logits large.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaebench import distributions, runtime
from vaebench.bounds import LogMeanExp
from vaebench.config import compose, for_evaluation, identity, read
from vaebench.errors import UserError
from vaebench.evaluate.run import evaluate
from vaebench.experiment import build
from vaebench.records import RunFolder, format_line, read_per_image, read_results
from vaebench.report import compare
from vaebench.train.header import header
from vaebench.train.session import train

WORDS = ["device=cpu", "trainer.threads=1", "trainer.progress=false", "trainer.evaluate=false", "trainer.image_every=0"]
SMALL = ["latent_dim=8", "encoder.hidden=[64]", "decoder.hidden=[64]", "trainer.epochs=4", "trainer.validation_k=5"]
EVALUATION = ["device=cpu", "threads=1", "progress=false", "estimator.k=50"]
BOUND = 0.02
"""Nats: what bf16 may cost."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained runs, by encoder."""
    place = tmp_path_factory.mktemp("runs")
    cases = {"gaussian": "bf16", "iwhvi": "float32", "iaf": "bf16"}
    return {
        encoder: train(
            compose([f"encoder={encoder}", f"trainer.precision={precision}", f"output_dir={place}", *WORDS, *SMALL])
        )
        for encoder, precision in cases.items()
    }


def estimated(run: Path, precision: str, *words: str) -> Tensor:
    """Return the estimates of all test images, (N,), made anew."""
    for file in run.glob("evaluations/*.npz"):
        file.unlink()
    given = [*words, *(word for word in EVALUATION if word.partition("=")[0] not in "".join(words))]
    (record,) = evaluate(run, [*given, f"precision={precision}"])
    assert record.precision == precision
    return torch.from_numpy(read_per_image(RunFolder.open(run), record).values)


def difference(run: Path) -> tuple[float, float]:
    """Return the mean over images of bf16's estimate less float32's, on the same noise, and its standard error."""
    paired = estimated(run, "bf16") - estimated(run, "float32")
    return paired.mean().item(), paired.std().item() / len(paired) ** 0.5


@pytest.mark.parametrize("encoder", ["gaussian", "iwhvi", "iaf"])
def test_bf16_is_within_the_bound_of_float32(encoder: str, runs: dict[str, Path]):
    mean, stderr = difference(runs[encoder])
    assert 0 < stderr < BOUND / 3
    assert abs(mean) + 2 * stderr < BOUND


def test_control_a_log_sum_exp_in_bf16_is_not(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    def add(self: LogMeanExp, log_w: Tensor) -> None:
        log_sum = torch.logsumexp(log_w.bfloat16(), 0)
        self._log_sum = log_sum if self._log_sum is None else torch.logaddexp(self._log_sum, log_sum)
        self.count += len(log_w)

    exact = estimated(runs["gaussian"], "float32")
    monkeypatch.setattr(LogMeanExp, "add", add)
    found = estimated(runs["gaussian"], "bf16", "estimator.chunk=3")
    assert (found - exact).mean().abs() > 3 * BOUND


def test_control_likelihoods_in_bf16_are_not(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    def coarse(logits: Tensor, value: Tensor) -> Tensor:
        return likelihood(logits.bfloat16(), value.bfloat16()).float()

    exact, likelihood = estimated(runs["gaussian"], "float32"), distributions._bernoulli_log_prob
    monkeypatch.setattr(distributions, "_bernoulli_log_prob", coarse)
    found = estimated(runs["gaussian"], "bf16")
    assert (found - exact).mean().abs() > BOUND


# What a result says of it ---------------------------------------------------------------------------------


def test_the_start_of_a_run_in_bf16_says_how_fast_bf16_is(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    experiment = build(read(runs["gaussian"]))
    said = {0.1: "takes 10.0 times as long as in float32", 1.9: "is 1.9 times as fast as in float32"}
    for gain, words in said.items():
        monkeypatch.setattr(runtime, "bf16_gain", lambda device, gain=gain: gain)
        assert words in header(experiment, runs["gaussian"])
        capsys.readouterr()
        estimated(runs["gaussian"], "bf16")
        assert words in capsys.readouterr().out
    estimated(runs["gaussian"], "float32")
    assert "bf16" not in capsys.readouterr().out
    assert "bf16" not in header(build(read(runs["iwhvi"])), runs["iwhvi"])


def test_the_measurement_of_bf16_draws_no_random_numbers():
    before = torch.get_rng_state()
    assert 0 < runtime.bf16_gain(torch.device("cpu")) < 100
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_trained_in_bf16_is_evaluated_in_float32_unless_asked(runs: dict[str, Path]):
    config = read(runs["gaussian"])
    assert config.trainer.precision == "bf16"
    assert for_evaluation(config, []).estimator.precision == "float32"
    asked = for_evaluation(config, ["precision=bf16"])
    assert (asked.estimator.precision, identity(asked)) == ("bf16", identity(config))


def test_another_precision_is_refused(runs: dict[str, Path]):
    with pytest.raises(UserError, match="precision must be one of float32, bf16, got 'fp8'"):
        for_evaluation(read(runs["gaussian"]), ["precision=fp8"])


def test_two_results_stay_apart_in_the_record_the_line_and_the_table(runs: dict[str, Path]):
    run = runs["iaf"]
    for precision in ("float32", "bf16", "bf16"):
        estimated(run, precision, "estimator.k=3")
    records = [record for record in read_results(RunFolder.open(run)) if record.k == 3]
    assert [record.precision for record in records] == ["float32", "bf16"]
    assert ["precision=bf16" in format_line(record) for record in records] == [False, True]
    tables = [table.conditions for table in compare([run]).tables if table.conditions.k == 3]
    assert sorted(one.precision for one in tables) == ["bf16", "float32"]
    assert ["precision=bf16" in one.words() for one in tables] == [one.precision == "bf16" for one in tables]


def test_a_record_that_does_not_say_is_of_the_trainings_precision_and_gives_way(runs: dict[str, Path]):
    folder = RunFolder.open(runs["gaussian"])
    estimated(folder.path, "float32", "estimator.k=3")
    stored = json.loads(folder.results.read_text())
    del stored[-1]["precision"], stored[-1]["checksum"]  # as an early version wrote it
    folder.results.write_text(json.dumps(stored))
    assert read_results(folder)[-1].precision == ""
    (table,) = [table for table in compare([folder.path]).tables if table.conditions.k == 3]
    assert table.conditions.precision == "bf16"
    estimated(folder.path, "float32", "estimator.k=3")
    assert [record.precision for record in read_results(folder) if record.k == 3] == ["float32"]
