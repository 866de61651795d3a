"""scripts/benchmark: the loops written by hand are the same models, and what is printed is what was measured."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark import cases, report
from benchmark.__main__ import main
from benchmark.baselines import Baseline, GaussianBaseline, HandWritten, HierarchicalBaseline, binary
from benchmark.cases import CASES, Bench, Case, counted, grey_images
from benchmark.measure import Timing
from benchmark.report import compiled_alone, processor, run, shown
from torch._dynamo.exc import FailOnRecompileLimitHit

from vaebench.config import compose
from vaebench.errors import UserError
from vaebench.experiment import build

COMMON = ["device=cpu", "trainer.threads=1", "trainer.progress=false"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_loop_written_by_hand_has_the_same_parameters(case: Case):
    torch.manual_seed(0)
    experiment = build(compose([*case.words, f"k={case.k}", *COMMON]))
    assert sum(p.numel() for p in case.baseline().parameters()) == sum(experiment.parameters.values())


@pytest.mark.parametrize("case", [case for case in CASES if not case.evaluates], ids=lambda case: case.name)
def test_the_loop_written_by_hand_lowers_its_loss(case: Case):
    torch.manual_seed(0)
    baseline = case.baseline()
    loop = HandWritten(baseline, grey_images(64), case.k, 32)
    x = torch.bernoulli(loop.probabilities)
    with torch.no_grad():
        before = baseline(x, case.k)
    for _ in range(6):
        loop.epoch()
    with torch.no_grad():
        assert baseline(x, case.k) < before - 10


def test_flops_are_those_of_the_matrix_products():
    case = next(case for case in CASES if case.name == "train gaussian")
    loop = HandWritten(case.baseline(), grey_images(8), 1, 8)
    products = 8 * (784 * 300 + 300 * 300 + 300 * 64 + 32 * 300 + 300 * 300 + 300 * 784)
    # Two operations for each product, forward and twice backward; the pixels need no gradient.
    expected = 2 * (3 * products - 8 * 784 * 300)
    assert counted(lambda: loop.step(torch.zeros(8, 784))) == expected


def test_a_ratio_is_taken_round_by_round():
    timing = Timing({"a": [1.0, 20.0, 6.0], "b": [1.0, 10.0, 2.0]})
    assert (timing.rate("a"), timing.ratio("a", "b")) == (6.0, 2.0)


@pytest.mark.parametrize(("rate", "text"), [(12345.0, "12,300"), (98.7, "99"), (1234567.0, "1,230,000"), (None, "")])
def test_three_digits_that_count(rate: float | None, text: str):
    assert shown(rate) == text


def test_the_command_prints_the_table_and_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cases, "pythae_is_installed", lambda: False)
    monkeypatch.setattr(report, "matrix_rate", partial(report.matrix_rate, tries=1))
    words = ["iwae-16", "--device=cpu", "--threads=1", "--rounds=1", "--seconds=0.001", "--batch=4"]
    assert main([*words, "-o", str(tmp_path / "bench.json")]) == 0
    printed = capsys.readouterr().out
    assert "| train gaussian, iwae-16, images/s |" in printed
    assert "pythae" not in printed
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert set(row["rates"]) == {"hand-written", "vaebench", "hand-written, bf16", "vaebench, bf16"}
    assert set(row["ratios"]) == {"vaebench : hand-written", "vaebench, bf16 : hand-written, bf16"}
    assert all(rate > 0 for rate in [*row["rates"].values(), *row["limits"].values()])


def test_a_compiled_loop_is_compiled_in_every_case(monkeypatch: pytest.MonkeyPatch):
    """The loops share one function, for which torch makes a limited number of graphs."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    x = torch.zeros(2, 784)

    def step(baseline: Baseline) -> None:
        HandWritten(baseline, grey_images(2), 1, 2, compiled=True).step(x)

    with torch._dynamo.config.patch(recompile_limit=1):  # pyright: ignore[reportPrivateUsage]
        with compiled_alone():
            step(GaussianBaseline())
        with compiled_alone():
            step(HierarchicalBaseline(1))
            # A control: without a reset the limit is reached, which fails instead of timing an uncompiled loop.
            with pytest.raises(FailOnRecompileLimitHit):
                step(GaussianBaseline())


def test_the_machine_is_named_with_its_vector_instructions(monkeypatch: pytest.MonkeyPatch):
    found = {"cpu_name": "Some CPU", "avx2": True, "avx512_f": True, "avx512_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert processor() == "Some CPU, AVX2, AVX-512, no bf16"
    found["avx512_bf16"] = True
    assert processor() == "Some CPU, AVX2, AVX-512, AVX-512 bf16"


@pytest.fixture
def pythae():
    pytest.importorskip("pythae")
    from benchmark import pythae

    return pythae


IN_PYTHAE = [case for case in CASES if case.in_pythae]


@pytest.mark.parametrize("case", IN_PYTHAE, ids=lambda case: case.name)
def test_pythae_takes_its_turn_where_it_is_installed(
    case: Case, pythae: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    bench = Bench(torch.device("cpu"), threads=1, batch=4, seconds=0.001, rounds=1)
    torch.optim.Adam([torch.zeros(1)])  # the first one has torch set a variable of its own
    before = dict(os.environ)
    measured = run([case], bench, lambda name: None)
    (row,) = measured.rows
    assert row.rates["pythae"] > 0
    assert row.ratios["vaebench : pythae"] > 0
    assert row.ratios["vaebench, bf16 : pythae"] > 0
    assert {"| vaebench : pythae", "| vaebench, bf16 : pythae"} <= {
        line.rpartition(" | ")[0] for line in measured.text().splitlines()
    }
    assert measured.to_dict()["machine"]["versions"]["pythae"]
    assert (capfd.readouterr(), dict(os.environ)) == (("", ""), before)


@pytest.mark.parametrize("k", [1, 3])
def test_pythae_trains_and_evaluates_the_same_networks(k: int, pythae: Any, tmp_path: Path):
    torch.manual_seed(0)
    x = binary(grey_images(64).float() / 255)
    baseline = GaussianBaseline()
    assert sum(p.numel() for p in pythae.model_of(k).parameters()) == sum(p.numel() for p in baseline.parameters())
    epoch = pythae.training(x, k, 32, tmp_path)
    first = [epoch() for _ in range(4)]
    # At first each pixel costs about log 2.
    assert 400 < first[-1] < first[0] - 10 < 600
    amount, estimate = pythae.evaluation(x[:3], 700)
    assert amount == 3 * 500
    assert -600 < estimate() < -500


def test_a_pythae_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cases, "pythae_is_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "benchmark.pythae", None)
    bench = Bench(torch.device("cpu"), threads=1, batch=4, seconds=0.001, rounds=1)
    with pytest.raises(UserError, match="pip install pythae"):
        run(IN_PYTHAE[:1], bench, lambda name: None)


def test_the_cost_of_a_step_is_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    kept = tmp_path / "cost.json"
    words = ["--cost", "full_gaussian", "--device=cpu", "--threads=1", "--batch=8", "-o", str(kept)]
    assert main(words) == 0
    assert "| `encoder=full_gaussian objective=iwae k=16` |" in capsys.readouterr().out
    elbo, iwae = json.loads(kept.read_text())["costs"]
    # The decoder runs 16 times, the encoder's network once.
    assert 5 < iwae["flops"] / elbo["flops"] < 16
    assert iwae["kept"] > elbo["kept"] > 4 * 784


def test_bf16_can_be_left_out(capsys: pytest.CaptureFixture[str]):
    words = ["train gaussian, batch 20", "--device=cpu", "--threads=1", "--rounds=1", "--seconds=0.001"]
    assert main([*words, "--precision=float32"]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert "| matrix limit float32 |" in head
    assert "bf16" not in head


def test_an_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["trainn"]) == 2
    assert "no case contains 'trainn'; valid: train gaussian; " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rouds=3"], "unrecognized arguments: --rouds=3"),
        (["--rounds=0"], "argument --rounds: must be > 0, got 0"),
        (["--threads=many"], "argument --threads: invalid number value: 'many'"),
    ],
)
def test_wrong_options_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_optimisations_are_measured_with_the_plain_way_in_their_place(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    kept = tmp_path / "optimisations.json"
    words = [
        "likelihood",
        "--optimisations",
        "--device=cpu",
        "--threads=1",
        "--batch=8",
        "--rounds=2",
        "--seconds=0.01",
    ]
    assert main([*words, "-o", str(kept)]) == 0
    out = capsys.readouterr().out
    assert "| a likelihood with its own backward pass | `objective=iwae k=16 trainer.precision=bf16` |" in out
    (one,) = json.loads(kept.read_text())["optimisations"]
    assert min(one["before"], one["after"], one["ratio"]) > 0
    # torch's own function is in the profile of the plain way alone.
    before, after = one["profile"]["aten::log_sigmoid_forward"]
    assert before > 0
    assert after == 0
    words[0] = "compiled p(x"
    assert main([*words, "-o", str(kept)]) == 0
    (one,) = json.loads(kept.read_text())["optimisations"]
    assert one["settings"] == "estimator=iwae estimator.k=80 precision=bf16"
    before, after = one["profile"]["compiled kernels"]
    assert before == 0
    assert after > 0
    assert main(["nothing", "--optimisations"]) == 2
    assert "no optimisation contains 'nothing'; valid: products in bf16; " in capsys.readouterr().err
