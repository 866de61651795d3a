"""Ranks and differences that the statistics support: error rates by simulation, and what a table shows of them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from made_runs import composed, made_run, record
from scipy.stats import ttest_ind

from vaebench import bounds
from vaebench.cli import main
from vaebench.cli.sweep.plan import common_inner_k
from vaebench.config import Config, compose, describe, from_yaml, identity, to_yaml
from vaebench.config.check import build
from vaebench.config.identity import ELBO_AT_ONE_SAMPLE, is_elbo, model_identity
from vaebench.config.run import _blocks, _entries, _of_blocks
from vaebench.config.schema import plain
from vaebench.errors import UserError
from vaebench.records import PerImageFile, append_result
from vaebench.registry import OBJECTIVES
from vaebench.report import compare
from vaebench.report.intervals import holm, p_values, p_values_unpaired, t_interval
from vaebench.report.ranking import ranks, told_apart

SEEDS, METHODS, TABLES = 3, 8, 1000


def no_images(first: int, second: int) -> None:
    """There are no common images."""


def put(root: Path, words: tuple[str, ...], seed: int, values: numpy.ndarray, **changes: Any) -> Path:
    """Make a run whose result has a number for each image."""
    folder = made_run(root, *words, seed=seed)
    kept = PerImageFile(folder.path / "evaluations" / "a.npz", ["log_likelihood"], numpy.arange(len(values)), 1)
    kept.numbers[0], kept.done[:] = values, True
    (place,) = kept.conclude([values[None]])
    stderr = values.std(ddof=1) / math.sqrt(len(values))
    append_result(folder, record(values.mean(), stderr=stderr, n_images=len(values), per_image=place, **changes))
    return folder.path


# error rates


def false_ranks(by_seed: numpy.ndarray, equal: slice) -> bool:
    """Whether two of the ``equal`` methods get different ranks."""
    order = numpy.argsort(-by_seed.mean(1))
    apart, _ = told_apart(by_seed[order], no_images)
    found = dict(zip(order, ranks(apart), strict=True))
    return len({found[i] for i in range(len(by_seed))[equal]}) > 1


@pytest.mark.parametrize("better", [0, 4])
def test_equal_methods_get_different_ranks_in_five_percent_of_tables(better: int):
    """The share of tables with any false rank, also if other methods truly are better, by far or by little."""
    generator = numpy.random.default_rng(better)
    truth = numpy.concatenate([numpy.full(METHODS - better, -90.0), -90.0 + 0.8 * numpy.arange(1, better + 1) ** 3])
    hardness = generator.normal(0.0, 1.0, (TABLES, 1, SEEDS))  # what the methods share
    tables = truth[:, None] + hardness + generator.normal(0.0, 0.3, (TABLES, METHODS, SEEDS))
    share = numpy.mean([false_ranks(table, slice(0, METHODS - better)) for table in tables])
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / TABLES)


@pytest.mark.parametrize("welch", [True, False], ids=["", "control: over images alone"])
def test_equal_methods_without_common_seeds_are_told_apart_in_five_percent_of_tables(
    welch: bool, monkeypatch: pytest.MonkeyPatch
):
    """Half of the methods have other seeds than the rest, and by their images all models differ."""
    if not welch:
        monkeypatch.setattr("vaebench.report.ranking.p_values_unpaired", lambda first, second: 0.0)
    tables = numpy.random.default_rng(5).normal(-90.0, 0.3, (TABLES, METHODS, 2 * SEEDS))
    tables[:, : METHODS // 2, :SEEDS] = tables[:, METHODS // 2 :, SEEDS:] = numpy.nan
    share = numpy.mean([told_apart(table, lambda first, second: 0.0)[0].any() for table in tables])
    assert (share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / TABLES)) == welch


def test_control_without_holm_equal_methods_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vaebench.report.ranking.holm", lambda p, level: p < 1 - level)
    tables = numpy.random.default_rng(0).normal(-90.0, 0.3, (TABLES // 5, METHODS, SEEDS))
    assert numpy.mean([told_apart(one, no_images)[0].any() for one in tables]) > 0.3


def test_control_without_holm_a_third_of_the_tables_has_a_false_difference():
    generator = numpy.random.default_rng(0)
    tables = generator.normal(-90.0, 0.3, (TABLES, METHODS, SEEDS))
    p = p_values(tables[:, 1:] - tables[:, :1])  # seven methods against one baseline
    uncorrected = (p < 0.05).any(1).mean()
    corrected = numpy.mean([holm(one).any() for one in p])
    assert 0.2 < uncorrected < 0.4
    assert corrected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / TABLES)


def test_equal_models_of_one_seed_are_told_apart_in_five_percent_of_tables():
    """Over images alone, whose hardness all models share."""
    generator = numpy.random.default_rng(1)
    found = []
    for _ in range(300):
        images = generator.normal(-90.0, 30.0, 200) + generator.normal(0.0, 1.0, (METHODS, 200))

        def over_images(first: int, second: int, images: numpy.ndarray = images) -> float:
            return float(p_values(images[second] - images[first]))

        found.append(told_apart(images.mean(1)[:, None], over_images)[0].any())
    assert numpy.mean(found) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_methods_that_differ_by_far_get_ranks():
    """Control: a procedure that tells nothing apart has no false ranks either."""
    generator = numpy.random.default_rng(2)
    by_seed = numpy.array([[-90.0], [-80.0], [-80.0]]) + generator.normal(0.0, 0.05, (3, SEEDS))
    order = numpy.argsort(-by_seed.mean(1))
    assert ranks(told_apart(by_seed[order], no_images)[0]) == [1, 1, 3]


def test_both_seeds_and_images_have_to_differ():
    by_seed = numpy.array([[-80.0, -80.1, -80.2], [-90.0, -90.2, -90.1]])
    assert told_apart(by_seed, no_images)[0][0, 1]  # control
    assert not told_apart(by_seed, lambda first, second: 0.2)[0][0, 1]


def test_holm_by_hand():
    # m=4: limits 0.0125, 0.0167, 0.025, 0.05. The third p-value stops it, so the fourth is not rejected either.
    assert holm(numpy.array([0.04, 0.001, 0.03, 0.016])).tolist() == [False, True, False, True]


@pytest.mark.parametrize("count", [2, 3, 40])
def test_p_values_are_those_of_student_s_interval(count: int):
    """The interval of level 1 - p ends at zero."""
    values = numpy.random.default_rng(count).normal(0.5, 1.0, (5, count))
    for p, row in zip(p_values(values), values, strict=True):
        interval = t_interval(row.tolist(), 1 - p)
        assert min(abs(interval.low), abs(interval.high)) < 1e-9
    gaps = numpy.hstack([values, numpy.full((5, 2), numpy.nan)])
    assert p_values(gaps) == pytest.approx(p_values(values), rel=1e-12)


def test_p_values_of_unpaired_samples_are_those_of_welch():
    first, second = (numpy.random.default_rng(n).normal(0.1 * n, n, (4, n)) for n in (3, 7))
    _, expected = ttest_ind(first, second, axis=1, equal_var=False)
    assert p_values_unpaired(first, second) == pytest.approx(expected, rel=1e-12)
    gaps = numpy.hstack([first, numpy.full((4, 2), numpy.nan)])
    assert p_values_unpaired(second, gaps) == pytest.approx(expected, rel=1e-12)
    assert p_values_unpaired(first[:, :1], second).tolist() == [1.0] * 4  # one value has no spread
    assert p_values_unpaired(numpy.zeros((1, 2)), numpy.ones((1, 2))).tolist() == [0.0]


def test_p_values_without_spread():
    assert p_values(numpy.array([[0.0, 0.0], [1.0, 1.0], [1.0, numpy.nan]])).tolist() == [1.0, 0.0, 1.0]


# ranks of a table


def test_ranks_by_hand():
    def of(*pairs: tuple[int, int], count: int = 4) -> list[int]:
        apart = numpy.zeros((count, count), dtype=bool)
        for first, second in pairs:
            apart[first, second] = apart[second, first] = True
        return ranks(apart)

    assert of() == [1, 1, 1, 1]
    assert of((0, 1), (0, 2), (0, 3)) == [1, 2, 2, 2]
    # 0 and 3 differ, but each method is like its neighbour.
    assert of((0, 3), (0, 2), (1, 3)) == [1, 1, 1, 1]
    assert of((0, 2), (0, 3), (1, 2), (1, 3), (2, 3)) == [1, 1, 3, 4]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make runs of four methods on 100 images; planar has one seed, and another objective of gaussian one too."""
    root, generator = tmp_path_factory.mktemp("runs"), numpy.random.default_rng(3)
    hardness = generator.normal(-95.0, 30.0, 100)

    def diagnosed(share: float) -> dict[str, Any]:
        return {"extra": {"ess": 12.25, "pareto_k_over_0.45": share}}

    def values(shift: float) -> numpy.ndarray:
        return hardness + shift + generator.normal(0.0, 0.05) + generator.normal(0.0, 1.0, 100)

    exact, upper = {"log_q": "exact"}, {"log_q": "upper_bound", "estimator": "DIWHVI", "inner_k": 5}
    for seed in range(3):
        put(root, ("encoder=gaussian",), seed, values(0.0), **exact, **diagnosed(0.05))
        put(root, ("encoder=realnvp",), seed, values(10.0), **exact, **diagnosed(0.02))
        put(root, ("encoder=hvm",), seed, values(10.0), **upper, **diagnosed(0.02))
    put(root, ("encoder=planar",), 0, values(20.0), **exact, **diagnosed(0.01))
    put(root, ("encoder=gaussian", "objective=iwae"), 0, hardness, **exact)
    return root


def test_one_seed_is_marked_and_never_first_alone(table: Path, capsys: pytest.CaptureFixture[str]):
    (found,) = compare([table]).tables
    assert [row.settings["encoder"] for row in found.rows][0::3] == ["planar", "gaussian"]
    assert [row.rank for row in found.rows] == [1, 1, 1, 4]
    assert [row.best for row in found.rows] == [True, True, False, False]  # planar and the next
    assert main(["compare", str(table), "--format", "md"]) == 0
    first, *_, last = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| (1)", "| 4"))]
    assert first.startswith("| (1) | planar")
    assert last.startswith("| 4 | gaussian")


def test_a_method_with_a_seed_of_its_own_does_not_join_the_ranks_of_the_others(tmp_path: Path):
    """It is compared over images. Ranks that cannot be tested would be shared, and through it all would be one."""
    generator = numpy.random.default_rng(4)
    hardness = generator.normal(-95.0, 30.0, 100)
    for encoder, seeds, shift in (("gaussian", (0, 1, 2), 0.0), ("hvm", (7,), 10.0), ("realnvp", (0, 1, 2), 20.0)):
        for seed in seeds:
            put(tmp_path, (f"encoder={encoder}",), seed, hardness + shift + generator.normal(0.0, 0.1, 100))
    (found,) = compare([tmp_path]).tables
    assert [(row.settings["encoder"], row.rank) for row in found.rows] == [("realnvp", 1), ("hvm", 2), ("gaussian", 3)]
    assert "2 pairs without a common seed: Welch's test where both have several" in list(found.notes())
    (others,) = compare([tmp_path], filters=["encoder=realnvp,gaussian"]).tables
    assert not any("Welch" in note for note in others.notes())  # control


def test_the_same_model_appears_once(table: Path):
    found = compare([table])
    (reason,) = [entry.reason for entry in found.left_out]
    assert reason.endswith("objective=iwae and objective=elbo with k=1 are the same model, with the same seed")
    assert sum(row.settings["encoder"] == "gaussian" for row in found.rows) == 1


def test_seeds_of_the_same_model_share_a_row(tmp_path: Path):
    for seed, objective in enumerate(["iwae", "elbo"]):
        made_run(tmp_path, "encoder=gaussian", f"objective={objective}", seed=seed, results=[record(-90.0 - seed)])
    ((row,),) = [found.rows for found in compare([tmp_path]).tables]
    assert (row.n, row.settings["objective"]) == (2, "elbo")


def test_looser_bounds_are_marked(table: Path):
    (found,) = compare([table]).tables
    assert {row.settings["encoder"] for row in found.rows if row.looser} == {"hvm"}
    (alone,) = compare([table], filters=["encoder=hvm"]).tables
    assert not alone.looser  # control: no tighter bound beside it


def test_k_hat_marks_no_bound_beside_one_without_it(tmp_path: Path):
    """A result of a part of the images has no k-hat: it is not tighter than the others for that."""
    for encoder, extra in {"gaussian": {"pareto_k_over_0.7": 0.9}, "realnvp": {"pareto_k_over_0.7": 0.0}}.items():
        made_run(tmp_path, f"encoder={encoder}", results=[record(-90.0, log_q="exact", extra=extra)])
    (found,) = compare([tmp_path]).tables
    assert [row.settings["encoder"] for row in found.rows if row.looser] == ["gaussian"]  # control
    made_run(tmp_path, "encoder=iaf", results=[record(-89.0, log_q="exact", extra={})])
    (found,) = compare([tmp_path]).tables
    assert not found.looser


def test_effective_sample_size_and_k_hat_have_columns(table: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", str(table), "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "| ESS of 64 | k-hat > 0.45 |" in out
    assert "| 12.2 | 2.0% |" in out


def test_differences_from_a_baseline(table: Path, capsys: pytest.CaptureFixture[str]):
    (found,) = compare([table], baseline="encoder=gaussian").tables
    by_encoder = {row.settings["encoder"]: row for row in found.rows}
    assert by_encoder["gaussian"].is_baseline
    difference = by_encoder["realnvp"].difference
    assert difference is not None
    assert difference.told_apart
    paired = [
        one.record.mean - other.record.mean
        for one, other in zip(by_encoder["realnvp"].results, by_encoder["gaussian"].results, strict=True)
    ]
    expected = t_interval(paired, 1 - 0.05 / 3)  # three comparisons
    assert difference.over_seeds == expected
    # The error over images is 3 nats; the images are common.
    assert difference.over_images is not None
    assert difference.interval == max(expected, difference.over_images, key=lambda one: one.half)
    assert difference.over_images.half < 0.5 < 2 < by_encoder["realnvp"].stderr
    planar = by_encoder["planar"].difference
    assert planar is not None
    assert planar.over_seeds is None
    assert main(["compare", str(table), "--baseline", "encoder=gaussian"]) == 0
    out = capsys.readouterr().out
    assert "difference  " in out
    assert "difference: from gaussian elbo k=1" in out
    line = next(line for line in out.splitlines() if " realnvp " in line)
    assert line.index("|") < line.index(" o")  # the chart
    assert ">= " in line  # at 80 columns the number itself stays
    assert main(["compare", str(table), "--baseline", "encoder=iaf"]) == 2
    assert "no method meets the baseline encoder=iaf" in capsys.readouterr().err


def test_each_method_has_the_baseline_with_its_other_settings(tmp_path: Path):
    for k, gain in ((1, 1.0), (5, 3.0)):
        for seed in range(2):
            words = (f"k={k}", "objective=iwae")
            made_run(tmp_path, "encoder=gaussian", *words, seed=seed, results=[record(-90.0 + k - seed)])
            made_run(tmp_path, "encoder=planar", *words, seed=seed, results=[record(-90.0 + k - seed + gain)])
    (found,) = compare([tmp_path], baseline="encoder=gaussian").tables
    differences = {row.settings["k"]: row.difference.mean for row in found.rows if row.difference}
    assert differences == pytest.approx({1: 1.0, 5: 3.0})


def test_json_and_csv_have_the_differences(table: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", str(table), "--baseline", "encoder=gaussian", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["tables"]
    row = next(row for row in found["rows"] if row["settings"]["encoder"] == "realnvp")
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert row["told_apart"] is True
    assert len(row["interval_over_seeds"]) == len(row["interval_over_images"]) == 2


def test_a_corrupt_file_of_images_gives_no_rank_and_a_note(tmp_path: Path):
    values = numpy.linspace(-110.0, -90.0, 20)
    for seed in range(2):
        put(tmp_path, ("encoder=gaussian",), seed, values - seed)
        put(tmp_path, ("encoder=planar",), seed, values - seed + 10)
    broken = compare([tmp_path]).rows[0].results[0].run.folder.path
    assert [row.rank for row in compare([tmp_path]).rows] == [1, 2]  # control
    (broken / "evaluations" / "a.npz").write_bytes(b"PK")
    found = compare([tmp_path])
    assert [row.rank for row in found.rows] == [1, 1]
    assert str(broken) in " ".join(found.notes)
    with pytest.raises(UserError, match=r"cannot read .*a\.npz"):
        compare([tmp_path], baseline="encoder=gaussian")


def test_a_table_of_many_methods_has_no_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for k in (1, 2, 3):
        for seed in range(2):
            made_run(tmp_path, "objective=iwae", f"k={k}", seed=seed, results=[record(-90.0 + k - seed)])
    assert [row.rank for row in compare([tmp_path]).rows] == [1, 2, 3]  # control
    monkeypatch.setattr("vaebench.report.ranking.MOST_RANKED", 2)
    monkeypatch.setattr("vaebench.report.tables.MOST_RANKED", 2)
    (found,) = compare([tmp_path]).tables
    assert [row.rank for row in found.rows] == [None] * 3
    assert any(note.startswith("no ranks for 3 methods") for note in found.notes())


# LaTeX


def test_latex_for_a_paper(table: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", str(table), "--format", "latex", "--filter", "encoder=gaussian,realnvp,hvm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    caption = next(line for line in lines if line.startswith(r"\caption{"))
    assert caption.startswith(r"\caption{The numbers are test $\log p(x)$ in nats per image on 100 images of mnist5k/")
    assert caption.endswith(r"$\ddagger$ marks a looser bound than others.}")
    assert "Errors are standard deviations over 3 seeds." in caption
    assert {r"\toprule", r"\midrule", r"\bottomrule"} <= set(lines)
    head = next(line for line in lines if line.startswith("encoder &"))
    assert head == r"encoder & objective & k & $\log p(x)$ \\"
    rows = [line for line in lines if line.endswith(r"\\") and line != head]
    assert sum(r"$\geq \mathbf{-" in line for line in rows) == 2
    assert all(line.count(r"\pm") == 1 and line.count("&") == head.count("&") for line in rows)


# the ELBO under other names


@pytest.mark.parametrize("bound", OBJECTIVES)
def test_the_bounds_that_are_the_elbo_for_one_sample(bound: str):
    """What the table of names says is what the functions compute."""
    settings = {"ciwae": {"beta": 0.5}, "miwae": {"groups": 1}, "piwae": {"groups": 1}, "renyi": {"alpha": 0.3}}
    settings |= {"tvo": {"partitions": 5, "first": 0.1}, "beta": {"kl_weight": 4.0}, "free_bits": {"nats": 3.0}}
    objective = OBJECTIVES[bound](**settings.get(bound, {}), gradient="reparam")
    log_w = torch.randn(1, 7, dtype=torch.float64)
    same = torch.allclose(objective.maximised(log_w), bounds.elbo(log_w))
    same &= torch.allclose(objective.for_encoder().maximised(log_w), bounds.elbo(log_w))
    same &= objective.kl_weight == 1 and objective.free_bits == 0
    assert same == (bound in ELBO_AT_ONE_SAMPLE or bound == "elbo")
    two = objective.maximised(torch.randn(2, 7, dtype=torch.float64)) if bound == "iwae" else None
    assert two is None or two.shape == (7,)


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (("objective=iwae",), True),
        (("objective=iwae", "k=2"), False),
        (("objective=iwae", "trainer.k_schedule={10:2}"), False),
        (("objective=beta",), False),
        (("objective=beta", "objective.kl_weight=1"), True),
        (("objective=iwae", "objective.gradient=dreg"), False),
    ],
)
def test_the_model_of_the_elbo(words: tuple[str, ...], same: bool):
    assert (model_identity(composed(words)) == model_identity(composed(("objective=elbo",)))) == same


def test_the_header_says_that_iwae_without_k_is_the_elbo():
    assert (
        describe.objective(composed(("objective=iwae",))) == "iwae, k=1 (iwae with k=1 is the ELBO), gradient reparam"
    )
    for words in (("objective=elbo",), ("objective=iwae", "k=2")):
        assert "ELBO" not in describe.objective(composed(words))
    assert is_elbo(composed(("objective=hvm",)))  # the ELBO of a hierarchical encoder


# published results

PAPER = "experiment=iwae_paper/mnist_l1_k50"


def test_a_published_result_stands_beside_the_measured_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = record(-86.0, protocol="mnist/dynamic-v1", k=5000)
    made_run(tmp_path, PAPER, "trainer.epochs=3", results=[result])
    made_run(tmp_path, PAPER, "trainer.epochs=3", "k=5", results=[result])
    assert main(["compare", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "log p(x) published n" in out
    assert ">= -86.00 -84.78 1" in out
    assert ">= -86.00 - 1" in out  # k=5 is not the paper's model
    assert "published -84.78: Burda et al. 2015 (arXiv 1509.00519), table 1; mnist, IWAE" in out
    assert "checked: second-hand" in out


@pytest.mark.parametrize(
    ("words", "published"),
    [
        ((), True),
        (("seed=3", "device=cpu", "trainer.epochs=7"), True),
        (("latent_dim=8",), False),
        (("prior=vamp",), False),
    ],
)
def test_a_published_result_holds_for_the_settings_of_its_experiment(words: tuple[str, ...], published: bool):
    assert (compose([PAPER, *words]).published is not None) == published


# one number of inner samples for a sweep


def test_a_sweep_evaluates_with_one_number_of_inner_samples():
    def found(*sets: tuple[str, ...]) -> int | None:
        return common_inner_k([composed(words) for words in sets])

    gaussian, hvm, iwhvi = ("encoder=gaussian",), ("encoder=hvm",), ("encoder=iwhvi", "encoder.inner_k=7")
    assert found(gaussian, hvm, iwhvi) == 7
    assert found(gaussian, hvm) is None
    assert found(hvm, (*iwhvi, "estimator.inner_k=9")) is None  # the user's number stays
    assert found(hvm, (*iwhvi, "estimator=diwhvi")) is None


# speed


@pytest.mark.parametrize(
    "text",
    [
        "a: {b: 1,\nc: 2}\nd: 3",
        "a:\n- 1\n- 2\nb: 1",
        "a: 1\na: 2\nb: 3\n",
        "a: |\n  t\n\n  u\nb: 1",
        "# c\na: 1\n# d\nb: {c: [1, 2]}\n",
        "a: 1\n---\nb: 2\n",
        "a: &x [1]\nb: *x\n",
        "a: 'x\ny'\nb: 1\n",
        "? b\n: 2\n",
    ],
)
def test_a_config_read_by_its_entries_is_the_whole(text: str):
    """Entries that runs share are parsed once; a text that does not allow it is parsed as a whole."""
    found = _entries(_blocks(text))
    assert found is None or found == yaml.safe_load(text)
    whole = to_yaml(composed(()))
    assert plain(_entries(_blocks(whole))) == plain(build(Config, yaml.safe_load(whole)))  # control


def test_a_seedless_configuration_has_the_identity_of_each_seed():
    for words in ((), ("encoder=hvm", "name=a"), ("objective=iwae", "k=1")):
        config = composed((*words, "seed=7"))
        read_back, shared = _of_blocks(to_yaml(config)) or pytest.fail("not read by its entries")
        other, same = _of_blocks(to_yaml(replace(config, seed=8))) or pytest.fail("not read by its entries")
        assert (read_back, other) == (config, replace(config, seed=8))
        assert same is shared
        assert [shared.identity(7), shared.identity(8)] == [identity(config), identity(other)]
        assert shared.identity(7) != shared.identity(8)  # control
        assert (shared.method, shared.model) == (identity(config, with_seed=False), model_identity(config))


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", "4294967296"])
def test_the_seed_of_a_configuration_is_checked(seed: str):
    text = to_yaml(composed(("seed=7",))).replace("seed: 7", f"seed: {seed}", 1)
    with pytest.raises(UserError, match="seed must be"):
        from_yaml(text)
