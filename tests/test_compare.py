"""`vaebench compare`: seeds aggregated, only like with like, and what is left out is said."""

import csv
import io
import json
import math
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from made_runs import composed, made_run, record

from vaebench.cli import main
from vaebench.config import describe
from vaebench.errors import UserError
from vaebench.records import PerImageFile, RunFolder, append_result
from vaebench.report import compare, pairs
from vaebench.report.differences import common_values, differing_settings, distinguishing_settings, label
from vaebench.report.filters import parse
from vaebench.report.intervals import t_interval

GAUSSIAN, HVM = ("encoder=gaussian",), ("encoder=hvm",)


def method(root: Path, overrides: tuple[str, ...], means: list[float], **changes: Any) -> None:
    """Make one run for each of ``means``, seeds from 0."""
    for seed, mean in enumerate(means):
        made_run(root, *overrides, seed=seed, results=[record(mean, **changes)])


# aggregation


def test_seeds_are_one_row(tmp_path: Path):
    means = [-100.0, -101.0, -105.0]
    method(tmp_path, GAUSSIAN, means)
    ((row,),) = [table.rows for table in compare([tmp_path]).tables]
    assert row.n == 3
    assert row.seeds == [0, 1, 2]
    assert row.mean == pytest.approx(statistics.fmean(means))
    assert row.sd == pytest.approx(statistics.stdev(means))
    # The images are the same for every seed: their error does not fall with the number of seeds.
    assert row.stderr == pytest.approx(0.5)


def test_one_seed_that_stood_still_does_not_lengthen_the_time(tmp_path: Path):
    for seed, seconds in enumerate((60.0, 9000.0, 70.0)):
        made_run(tmp_path, *GAUSSIAN, results=[record(-100.0)], seed=seed, wall_seconds=seconds)
    ((row,),) = [table.rows for table in compare([tmp_path]).tables]
    assert row.wall_seconds == 70.0


def test_one_seed_has_no_spread_and_says_so(tmp_path: Path):
    method(tmp_path, GAUSSIAN, [-100.0])
    (table,) = compare([tmp_path]).tables
    assert table.rows[0].sd is None
    assert any("n=1 for each method" in note for note in table.notes())


def test_best_first(tmp_path: Path):
    method(tmp_path, GAUSSIAN, [-100.0, -102.0])
    method(tmp_path, ("encoder=planar",), [-90.0, -92.0])
    method(tmp_path, ("encoder=realnvp",), [-95.0])
    (table,) = compare([tmp_path]).tables
    assert [row.settings["encoder"] for row in table.rows] == ["planar", "realnvp", "gaussian"]
    # One seed without results per image: no test, and no rank.
    assert [row.rank for row in table.rows] == [1, None, 2]


def test_labels_leave_out_what_is_usual():
    a, b, c = ({"encoder": "gaussian", "objective": "elbo", "k": 1, "optimizer.lr": lr} for lr in (0.1, 0.1, 0.2))
    keys = ["encoder", "objective", "k", "optimizer.lr"]
    common = common_values([a, b, c], keys)
    assert label(a, keys, common) == "gaussian elbo k=1"
    assert label(c, keys, common) == "gaussian elbo k=1 lr=0.2"


@pytest.mark.parametrize("setting", ["optimizer.lr=0.01", "k=5", "latent_dim=8", "trainer.batch_size=50"])
def test_whatever_defines_the_model_makes_another_row(tmp_path: Path, setting: str):
    method(tmp_path, GAUSSIAN, [-100.0])
    method(tmp_path, (*GAUSSIAN, setting), [-99.0])
    (table,) = compare([tmp_path]).tables
    assert len(table.rows) == 2
    assert setting.partition("=")[0] in distinguishing_settings([row.settings for row in table.rows])


@pytest.mark.parametrize("setting", ["device=cpu", "trainer.threads=2", "trainer.log_every=7", "estimator.k=9"])
def test_where_and_how_a_run_ran_makes_none(tmp_path: Path, setting: str):
    made_run(tmp_path, *GAUSSIAN, seed=0, results=[record(-100.0)])
    made_run(tmp_path, *GAUSSIAN, setting, seed=1, results=[record(-101.0)])
    ((row,),) = [table.rows for table in compare([tmp_path]).tables]
    assert row.n == 2


def test_the_latest_epoch_of_a_run_counts(tmp_path: Path):
    made_run(tmp_path, *GAUSSIAN, results=[record(-100.0, epoch=2), record(-90.0, epoch=4)])
    assert [row.mean for row in compare([tmp_path]).rows] == [-90.0]


def test_a_repeated_run_counts_once(tmp_path: Path):
    for place in ("a", "b"):
        made_run(tmp_path / place, *GAUSSIAN, results=[record(-100.0)])
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert [row.n for row in found.rows] == [1]
    assert [entry.reason.split(":")[1] for entry in found.left_out] == [" same configuration and seed"]


# like with like


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "mnist5k/static-v1"},
        {"protocol": "mnist5k/dynamic-v1/random100-seed0"},
        {"split": "validation"},
        {"k": 5000},
        {"n_images": 100},
        {"estimator": "AIS", "k": None, "settings": {"temperatures": 100}},
        {"settings": {"resampled": True}},
        {"repeats": 3},
        {"direction": "upper_bound"},
    ],
)
def test_what_is_unlike_goes_into_another_table(tmp_path: Path, change: dict[str, Any]):
    method(tmp_path, GAUSSIAN, [-100.0, -101.0])
    method(tmp_path, ("encoder=planar",), [-90.0], **change)
    found = compare([tmp_path])
    assert [len(table.runs) for table in found.tables] == [2, 1]  # the largest first
    assert "2 tables, because the results are not all comparable" in found.notes[0]


def test_another_budget_is_another_table(tmp_path: Path):
    method(tmp_path, GAUSSIAN, [-100.0])
    method(tmp_path, (*GAUSSIAN, "trainer.epochs=3"), [-120.0])
    found = compare([tmp_path])
    assert len(found.tables) == 2
    assert found.notes[0].endswith("they differ in trainer.epochs")


def test_other_bytes_under_one_name_are_another_table(tmp_path: Path):
    for seed, fingerprint in enumerate(["aa", "bb"]):
        dataset = {"protocol": "mnist5k/dynamic-v1", "fingerprint": fingerprint}
        made_run(tmp_path, *GAUSSIAN, seed=seed, results=[record(-100.0)], dataset=dataset)
    assert len(compare([tmp_path]).tables) == 2


def test_other_quantities_are_shown_on_request_only(tmp_path: Path):
    made_run(tmp_path, *GAUSSIAN, results=[record(-100.0), record(3.0, quantity="KL(q || p)")])
    assert [row.mean for row in compare([tmp_path]).rows] == [-100.0]
    (table,) = compare([tmp_path], quantity="KL(q || p)").tables
    assert [(row.mean, row.rank) for row in table.rows] == [(3.0, None)]
    assert any("is not necessarily better" in note for note in table.notes())
    (left_out,) = compare([tmp_path], quantity="another").left_out
    assert left_out.reason == "it has no result of another, only of KL(q || p), log p(x)"


def test_an_exact_density_stands_beside_any_inner_k(tmp_path: Path):
    method(tmp_path, GAUSSIAN, [-100.0])
    method(tmp_path, HVM, [-99.0], estimator="DIWHVI", inner_k=0)
    method(tmp_path, ("encoder=iwhvi",), [-98.0], estimator="DIWHVI", inner_k=5)
    found = compare([tmp_path])
    encoders = {table.conditions.inner_k: [row.settings["encoder"] for row in table.rows] for table in found.tables}
    assert encoders == {0: ["hvm", "gaussian"], 5: ["iwhvi", "gaussian"]}
    assert any("estimator.inner_k=5` to get one table" in note for note in found.notes)


def test_an_estimate_has_no_rank_and_its_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    method(tmp_path, GAUSSIAN, [-100.0, -101.0])
    method(tmp_path, ("encoder=planar",), [-102.0, -103.0])
    method(tmp_path, ("encoder=avb",), [-1.0, -2.0], direction="estimate")
    (table,) = compare([tmp_path]).tables
    ranks = [(row.settings["encoder"], row.rank) for row in table.rows]
    assert ranks == [("gaussian", 1), ("planar", 2), ("avb", None)]
    for form, mark in (("table", "~ -1.50"), ("md", "~ -1.50"), ("latex", r"$\sim -1.50 \pm"), ("csv", "estimate")):
        assert main(["compare", str(tmp_path), "--format", form]) == 0
        assert mark in capsys.readouterr().out


def test_images_of_a_run_s_own_model_compare_with_nothing(tmp_path: Path):
    method(tmp_path, GAUSSIAN, [-100.0], split="simulated", protocol="own-model/seed0")
    found = compare([tmp_path])
    assert found.tables == []
    assert "simulated from its own model" in found.left_out[0].reason


# what is left out


def test_what_is_left_out_is_said(tmp_path: Path):
    method(tmp_path, GAUSSIAN, [-100.0])
    line = {"step": 7, "epoch": 1.25, "wall": 3.0}
    made_run(tmp_path, *HVM, seed=0, state="interrupted", metrics=[line], results=[record(-50.0)])
    made_run(tmp_path, *HVM, seed=1, state="failed")
    made_run(tmp_path, *HVM, seed=2)
    made_run(tmp_path, *HVM, seed=3, state=None)
    made_run(tmp_path, *HVM, seed=4).results.write_text("[")
    found = compare([tmp_path])
    assert [row.settings["encoder"] for row in found.rows] == ["gaussian"]
    reasons = {entry.folder.name[0]: entry.reason for entry in found.left_out}
    assert reasons["0"].startswith("interrupted at epoch 1.25 of 50, with a result")
    assert reasons["1"].startswith("failed at epoch 0 of 50")
    assert reasons["2"] == "it has no result: run `vaebench evaluate` on it"
    assert reasons["3"] == "it never started"
    assert "Repair it" in reasons["4"]


def test_unfinished_runs_on_request_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = {"step": 7, "epoch": 1.25, "wall": 3.0}
    made_run(tmp_path, *HVM, state="interrupted", metrics=[line], results=[record(-50.0)])
    assert main(["compare", str(tmp_path), "--unfinished"]) == 0
    out = capsys.readouterr().out
    assert ">= -50.00*" in out
    assert "1 run (marked *) did not finish: 1 of 50 epochs" in out


def test_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made_run(tmp_path, *GAUSSIAN, state="failed")
    assert main(["compare", str(tmp_path)]) == 2
    assert "no results to compare:" in capsys.readouterr().err


# runs that stopped early, schedules that reach past the end


def test_runs_that_stopped_early_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for seed, epoch in enumerate([12, 30]):
        made_run(tmp_path, *HVM, seed=seed, results=[record(-50.0)], stopped_early={"epoch": epoch, "of": 50})
    method(tmp_path, GAUSSIAN, [-60.0])
    for form, mark in (("table", ">= -50.00^"), ("md", "≥ -50.00^"), ("latex", r"$\geq -50.00^{\dagger} \pm 0.00$")):
        assert main(["compare", str(tmp_path), "--format", form]) == 0
        out = capsys.readouterr().out
        assert mark in out
        assert "2 runs (marked ^) stopped early: 12 to 30 of 50 epochs" in out
        assert "-60.00^" not in out  # control: a run that did not stop early
    (table,) = compare([tmp_path]).tables
    assert [row.facts()["stopped_early"] for row in table.rows] == [2, 0]


def test_a_warm_up_longer_than_the_run_is_noted(tmp_path: Path):
    for seed in range(2):
        made_run(tmp_path, *HVM, "trainer.kl_warmup=100", seed=seed, results=[record(-50.0)])
    made_run(tmp_path, *GAUSSIAN, "trainer.kl_warmup=50", results=[record(-60.0)])  # control: it ends with the run
    (table,) = compare([tmp_path]).tables
    notes = [note for note in table.notes() if "kl_warmup" in note]
    assert notes == [
        "2 runs: trainer.kl_warmup=100 is longer than trainer.epochs=50: the KL weight ends at 0.5, not at 1"
    ]


def test_schedules_past_the_end():
    config = composed(GAUSSIAN)

    def notes(**changes: Any) -> list[str]:
        return list(describe.schedules_past_the_end(replace(config, trainer=replace(config.trainer, **changes))))

    assert notes(k_schedule={0: 1, 49: 2}, inner_k_schedule={10: 3}) == []
    assert notes(k_schedule={0: 1, 50: 2, 60: 4}, inner_k_schedule={99: 3}) == [
        "trainer.k_schedule: no effect at epochs 50, 60, because the run has trainer.epochs=50",
        "trainer.inner_k_schedule: no effect at epoch 99, because the run has trainer.epochs=50",
    ]


# filters and columns


@pytest.mark.parametrize(
    ("text", "settings", "holds"),
    [
        ("encoder=gaussian", {"encoder": "gaussian"}, True),
        ("encoder.name=gaussian", {"encoder": "gaussian"}, True),
        ("encoder=gaussian,hvm", {"encoder": "hvm"}, True),
        ("encoder=gaussian,hvm", {"encoder": "iwhvi"}, False),
        ("encoder!=gaussian,hvm", {"encoder": "iwhvi"}, True),
        ("k>=5", {"k": 5}, True),
        ("k>5", {"k": 5}, False),
        ("k<=5", {"k": 16}, False),
        ("k<=5", {}, False),
        ("optimizer.lr=1e-3", {"optimizer.lr": 0.001}, True),
        ("decoder.hidden=[64,64],k=1", {"decoder.hidden": "[64, 64]", "k": 1}, True),
        ("decoder.hidden=[64,64],k=1", {"decoder.hidden": "[64, 64]", "k": 2}, False),
        ("trainer.ema=null", {}, True),
        ("trainer.progress=true", {"trainer.progress": True}, True),
        ("k=1", {"k": True}, False),
    ],
)
def test_conditions(text: str, settings: dict[str, Any], holds: bool):
    assert all(condition.holds(settings) for condition in parse(text)) == holds


@pytest.mark.parametrize("text", ["gaussian", "=3", "k>many", "k>1,2", "encoder="])
def test_conditions_that_are_none(text: str):
    with pytest.raises(UserError):
        parse(text)


def test_filters(tmp_path: Path):
    method(tmp_path, GAUSSIAN, [-100.0])
    method(tmp_path, (*GAUSSIAN, "k=5"), [-99.0])
    method(tmp_path, (*HVM, "k=5"), [-98.0])
    found = compare([tmp_path], filters=["encoder=gaussian", "k>=5"])
    assert [row.mean for row in found.rows] == [-99.0]
    assert found.filtered == 2
    with pytest.raises(UserError, match="did you mean 'encoder'"):
        compare([tmp_path], filters=["encodr=gaussian"])


def test_differences_that_follow_from_a_choice_are_shown_on_request(tmp_path: Path):
    method(tmp_path, GAUSSIAN, [-100.0])
    method(tmp_path, ("encoder=iwhvi",), [-99.0])
    method(tmp_path, ("encoder=realnvp", "objective=iwae"), [-98.0])
    settings = [row.settings for row in compare([tmp_path]).rows]
    assert distinguishing_settings(settings) == ["encoder", "objective", "k"]
    assert {"encoder.psi_dim", "encoder.inner_k", "encoder.steps", "objective.bound"} <= set(
        differing_settings(settings)
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("encoder=iwhvi", "encoder.inner_k=7"),
        ("encoder=realnvp", "encoder.steps=8"),
        ("encoder=hvm", "encoder.hidden=[20]"),
        ("objective=iwae", "objective.gradient=dreg"),
        ("encoder=gaussian", "trainer.clip_norm=3"),
    ],
)
def test_a_setting_that_somebody_changed_has_a_column(tmp_path: Path, overrides: tuple[str, str]):
    method(tmp_path, GAUSSIAN, [-100.0])
    method(tmp_path, overrides, [-99.0])
    assert distinguishing_settings([row.settings for row in compare([tmp_path]).rows])[3:] == [
        overrides[1].partition("=")[0]
    ]


def test_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    method(tmp_path, GAUSSIAN, [-100.0])
    assert main(["compare", str(tmp_path), "--columns", "optimizer.lr,parameters"]) == 0
    assert "\n#  optimizer.lr  parameters  " in capsys.readouterr().out
    assert main(["compare", str(tmp_path), "--columns", "optimiser.lr"]) == 2
    assert "did you mean 'optimizer.lr'" in capsys.readouterr().err


def test_80_columns_keep_the_settings_that_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Without them, two rows of one table could look the same."""
    monkeypatch.setenv("COLUMNS", "80")
    method(tmp_path, GAUSSIAN, [-100.0])
    method(tmp_path, (*GAUSSIAN, "trainer.kl_warmup=50"), [-99.0])
    assert main(["compare", str(tmp_path)]) == 0
    table, note = capsys.readouterr().out.split("left out to fit 80 columns: ")
    assert "trainer.kl_warmup" in table
    assert "trainer.kl_warmup" not in note.splitlines()[0]


# formats


def test_programs_get_every_digit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    method(tmp_path, GAUSSIAN, [-100.123456789, -101.0])
    method(tmp_path, HVM, [-99.0], estimator="DIWHVI", inner_k=0)
    assert main(["compare", str(tmp_path), "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    (table,) = values["tables"]
    assert table["conditions"]["protocol"] == "mnist5k/dynamic-v1"
    assert table["rows"][1]["runs"][0]["mean"] == -100.123456789
    assert main(["compare", str(tmp_path), "--format", "csv"]) == 0
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["encoder"], first["direction"], first["sd"]) == ("hvm", "lower_bound", "")
    assert float(second["mean"]) == statistics.fmean([-100.123456789, -101.0])
    # A whole number stays one in a column with gaps.
    assert [line["result.inner_k"] for line in (first, second)] == ["0", ""]
    assert [line["table.settings"] for line in (first, second)] == ["{}", "{}"]


def test_an_unknown_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", str(tmp_path), "--format", "tex"]) == 2
    assert "--format must be one of table, md, csv, json, latex, not 'tex'" in capsys.readouterr().err


# pairs


def test_interval_is_student_s():
    # Worked by hand: mean 2, sd 1, n 3, t(0.975; 2) = 4.302653.
    interval = t_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.n) == (2.0, 3)
    assert interval.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert not interval.excludes_zero
    with pytest.raises(ValueError, match="two values"):
        t_interval([1.0])


def test_pairs_over_common_seeds(tmp_path: Path):
    # The seeds' own spread is large, the differences are steady: pairing sees what the two means hide.
    method(tmp_path, GAUSSIAN, [-100.0, -110.0, -120.0, -1.0])
    method(tmp_path, HVM, [-99.0, -108.9, -119.1], estimator="DIWHVI", inner_k=0)
    method(tmp_path, (*HVM, "k=5"), [-90.0], estimator="DIWHVI", inner_k=0)
    (table,) = compare([tmp_path]).tables
    (pair,) = pairs(table, "encoder=gaussian", "encoder=hvm")
    assert pair.seeds == [0, 1, 2]
    assert pair.difference == pytest.approx(1.0)
    assert pair.over_seeds is not None
    assert pair.over_seeds.excludes_zero
    assert pair.over_seeds.high == pytest.approx(1.0 + 4.302653 * 0.1 / math.sqrt(3))
    (across,) = pairs(table, "encoder=gaussian,k=1", "encoder=hvm,k=5")
    assert (across.seeds, across.over_seeds) == ([0], None)


def with_images(root: Path, encoder: str, seed: int, values: numpy.ndarray, images: numpy.ndarray) -> None:
    """Make a run whose result has a number for each image."""
    folder = made_run(root, f"encoder={encoder}", seed=seed)
    kept = PerImageFile(folder.path / "evaluations" / "a.npz", ["log_likelihood"], images, 1)
    kept.numbers[0], kept.done[:] = values, True
    (place,) = kept.conclude([values[None]])
    stderr = values.std(ddof=1) / math.sqrt(len(values))
    append_result(folder, record(values.mean(), stderr=stderr, n_images=len(values), per_image=place))


def test_pairs_over_common_images(tmp_path: Path):
    generator = numpy.random.default_rng(0)
    images, hardness = numpy.arange(200), generator.normal(-100.0, 20.0, 200)
    gains = {seed: generator.normal(0.5, 1.0, 200) for seed in range(2)}
    for seed, gain in gains.items():
        with_images(tmp_path, "gaussian", seed, hardness, images)
        with_images(tmp_path, "planar", seed, hardness + gain, images)
    (table,) = compare([tmp_path]).tables
    (pair,) = pairs(table, "encoder=gaussian", "encoder=planar")
    expected = t_interval([float(x) for x in (gains[0] + gains[1]) / 2])
    found = pair.over_images
    assert found is not None
    assert (found.n, found.mean, found.low) == pytest.approx((200, expected.mean, expected.low))
    # Each method's own error is about 20 / sqrt(200); the difference is known twenty times better.
    assert found.excludes_zero
    assert min(row.stderr for row in table.rows) > 10 * (found.high - found.mean) / 1.97


def test_other_images_are_not_paired(tmp_path: Path):
    """Control: the same number of images, but not the same ones."""
    values = numpy.linspace(-110.0, -90.0, 20)
    with_images(tmp_path, "gaussian", 0, values, numpy.arange(20))
    with_images(tmp_path, "planar", 0, values, numpy.arange(1, 21))
    (table,) = compare([tmp_path]).tables
    (pair,) = pairs(table, "encoder=gaussian", "encoder=planar")
    assert pair.over_images is None


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("encoder=gaussian", "encoder=iwhvi", "no row of the table has encoder=iwhvi"),
        ("encoder=gaussian", "encoder=planar", "they also differ in k"),
        ("encoder=gaussian", "encoder=realnvp", "no seed in common"),
        ("encoder=planar", "encoder=planar", "the same row"),
        ("encodr=planar", "encoder=planar", "did you mean 'encoder'"),
    ],
)
def test_pairs_that_are_none(tmp_path: Path, first: str, second: str, message: str):
    method(tmp_path, GAUSSIAN, [-100.0])
    method(tmp_path, ("encoder=planar", "k=5"), [-100.0])
    made_run(tmp_path, "encoder=realnvp", seed=7, results=[record(-1.0)])
    (table,) = compare([tmp_path]).tables
    with pytest.raises(UserError, match=message):
        pairs(table, first, second)


def test_a_corrupt_file_of_one_table_is_named_although_another_table_has_the_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    values = numpy.linspace(-110.0, -90.0, 20)
    for encoder in ("gaussian", "planar"):
        with_images(tmp_path, encoder, 0, values, numpy.arange(20))
        folder = next(run for run in RunFolder.find([tmp_path]) if encoder in str(run.path))
        append_result(folder, record(-80.0, k=5))
    words = ["compare", str(tmp_path), "--pair", "encoder=gaussian", "encoder=planar"]
    assert len(compare([tmp_path]).tables) == 2
    assert main(words) == 0  # control
    capsys.readouterr()
    file = folder.path / "evaluations" / "a.npz"
    file.write_bytes(file.read_bytes()[:100])
    assert main(words) == 2
    assert str(file) in capsys.readouterr().err


def test_pairs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    method(tmp_path, GAUSSIAN, [-100.0, -101.0])
    method(tmp_path, ("encoder=avb",), [-90.0, -93.0], direction="estimate")
    words = ["compare", str(tmp_path), "--pair", "encoder=gaussian", "encoder=avb"]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "avb elbo k=1 - gaussian elbo k=1: ~ +9.00 [-3.71, +21.71] (over 2 common seeds, contains 0)" in out
    assert main([*words, "--format", "json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (pair["seeds"], pair["of_bounds"]) == ([0, 1], False)
    assert main(["compare", "--pair", "encoder=gaussian"]) == 2
    assert "--pair needs 2 values" in capsys.readouterr().err


def test_the_heading_of_pairs_names_every_condition(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two effort levels gave the same heading over different numbers."""
    for overrides, shift in ((GAUSSIAN, 0.0), (("encoder=planar",), 1.0)):
        made_run(tmp_path, *overrides, results=[record(-100.0 + shift), record(-90.0 + 2 * shift, k=5, n_images=40)])
    assert main(["compare", str(tmp_path), "--pair", "encoder=gaussian", "encoder=planar"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    test = "paired differences, second minus first, test log p(x), mnist5k/dynamic-v1"
    for conditions, difference in (
        ("500 images, IWAE/DIWHVI, k=64", "+1.00"),
        ("40 images, IWAE/DIWHVI, k=5", "+2.00"),
    ):
        assert f"{test} ({conditions}, trainer.epochs=50), nats per image planar elbo k=1 - gaussian elbo k=1: " in out
        assert f"gaussian elbo k=1: {difference} " in out


def test_a_pair_names_its_proposals(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    method(tmp_path, GAUSSIAN, [-100.0])
    results = [record(-95.0, settings={"proposal": "moments"})]
    results += [record(-108.4, direction="estimate", settings={"proposal": "own"})]
    made_run(tmp_path, "encoder=avb", results=results)
    words = ["compare", str(tmp_path), "--pair", "encoder=gaussian", "encoder=avb"]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "avb elbo k=1 (proposal moments) - gaussian elbo k=1: +5.00" in out
    assert "avb elbo k=1 (proposal own) - gaussian elbo k=1: ~ -8.40" in out
    assert "# encoder proposal log p(x)" in out.replace(" objective k", "")  # two rows of one method, told apart
    assert main([*words, "--format", "json"]) == 0
    assert [pair["rows"] for pair in json.loads(capsys.readouterr().out)["pairs"]] == [[1, 0], [1, 2]]


def test_a_pair_without_inner_samples_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Its rows are in both tables, of two numbers of inner samples; a pair with inner samples is one for each."""
    method(tmp_path, GAUSSIAN, [-100.0])
    method(tmp_path, ("encoder=planar",), [-99.0])
    made_run(tmp_path, *HVM, results=[record(-98.0, estimator="DIWHVI", inner_k=n) for n in (0, 5)])
    words = ["compare", str(tmp_path), "--pair", "encoder=gaussian", "encoder=planar"]
    assert main([*words, "--pair", "encoder=gaussian", "encoder=hvm"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("planar elbo k=1 - gaussian elbo k=1: +1.00") == 1
    assert out.count("hvm elbo k=1 - gaussian elbo k=1: +2.00") == 2
    assert [re.findall(r"inner_k=\d", part.split("nats")[0]) for part in out.split("paired differences, ")[1:]] == [
        [],
        ["inner_k=0"],
        ["inner_k=5"],
    ]


@pytest.mark.parametrize(
    ("form", "allowed"), [("table", {"rich"}), ("json", set()), ("md", set()), ("csv", {"pandas"})]
)
def test_nothing_slow_is_imported_before_it_is_needed(tmp_path: Path, form: str, allowed: set[str]):
    method(tmp_path, GAUSSIAN, [-100.0])
    code = "import sys; from vaebench.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    words = [sys.executable, "-c", code, "compare", str(tmp_path), "--format", form]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    slow = {"torch", "tensorboard", "scipy", "hydra.core.global_hydra", "rich", "pandas", "jinja2"}
    # pandas brings numpy.
    assert set(done.stdout.split()) & (slow | (set() if "pandas" in allowed else {"numpy"})) == allowed
