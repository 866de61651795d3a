"""docs/RESULTS.md is what scripts/results makes from the small run folders; these are small and name no machine."""

import json
import math
import re
import runpy
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from vaebench.config import Config, compose, run_folder
from vaebench.config.compose import for_evaluation
from vaebench.config.identity import SeedlessConfig
from vaebench.errors import UserError
from vaebench.records import RunFolder, read_metrics, read_per_image
from vaebench.records.current import VALIDATION
from vaebench.records.results import read_results, to_json
from vaebench.report.curves import Curve
from vaebench.report.runs import Run, read_runs

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = runpy.run_path(str(DOCS.parent / "scripts" / "results"))
RUNS, _ = read_runs([DOCS / "results" / "runs"])
RECIPES, _ = read_runs([DOCS / "results" / "recipes"])
METHODS = {run.method: run for run in [*RUNS, *RECIPES]}.values()
FILES = [path for kind in ("recipes", "runs") for path in (DOCS / "results" / kind).rglob("*") if path.is_file()]


SHORT = SCRIPT["weighed"](
    [run for run in RUNS if (run.config.dataset.name, run.config.trainer.epochs) == ("mnist", 20)]
)


def first(encoder: str) -> Run:
    return next(run for run in SHORT if run.config.encoder.name == encoder and run.seed == 0)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A copy of the files behind the page, which a test may change."""
    shutil.copytree(DOCS / "results", tmp_path / "docs" / "results")
    return tmp_path / "docs"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A copy of one small run folder."""
    return RunFolder(Path(shutil.copytree(first("gaussian").folder.path, tmp_path / "gaussian-elbo-k1" / "0-copy")))


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# The page


def test_the_page_is_made_from_the_files():
    assert (DOCS / "RESULTS.md").read_text(encoding="utf-8") == SCRIPT["page"](DOCS), "run scripts/results"
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert readme == SCRIPT["with_table"](readme, DOCS), "run scripts/results"


def test_rows_of_trained_models_can_be_told_apart():
    """Two models of one encoder stood side by side in a table that did not name the prior."""
    page = (DOCS / "RESULTS.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| encoder \| prior \| seed .*\n.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert tables
    for table in tables:
        rows = [tuple(line.split(" | ")[:3]) for line in table.splitlines()]
        assert len(set(rows)) == len(rows)


def test_control_a_number_of_readme_altered_by_hand_is_found():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    altered = re.sub(r"≥ .\d+", "≥ -1", readme)
    assert altered != readme == SCRIPT["with_table"](altered, DOCS)


def test_control_the_page_of_other_files_is_another_one(docs: Path):
    shutil.rmtree(docs / "results" / "runs" / first("hvm").folder.path.relative_to(DOCS / "results" / "runs"))
    assert (DOCS / "RESULTS.md").read_text(encoding="utf-8") != SCRIPT["page"](docs)


def test_a_number_altered_by_hand_is_refused(docs: Path):
    path = docs / first("gaussian").folder.results.relative_to(DOCS)
    path.write_text(re.sub(r'"mean": -\d+', '"mean": -80', path.read_text()))
    with pytest.raises(UserError, match="was altered after it was written"):
        SCRIPT["page"](docs)


def test_a_digit_of_a_curve_altered_by_hand_is_refused(docs: Path):
    path = docs / first("gaussian").folder.metrics.relative_to(DOCS)
    path.write_text(re.sub(r"(log_likelihood\": -)\d", r"\g<1>7", path.read_text(), count=1))
    with pytest.raises(UserError, match=r"is altered: .*metrics.jsonl is not as the run wrote it"):
        SCRIPT["page"](docs)


def test_figures_and_pictures_of_the_page_exist_and_no_others():
    linked = {DOCS / name for name in re.findall(r"!\[.*?\]\((.*?)\)", (DOCS / "RESULTS.md").read_text())}
    assert [path for path in linked if not path.is_file()] == []
    assert {path for path in linked if path.suffix == ".svg"} == {*(DOCS / "results" / "figures").glob("*.svg")}


def test_a_figure_has_the_same_bytes_each_time():
    assert SCRIPT["figure"](SHORT[:2], "epoch") == SCRIPT["figure"](SHORT[:2], "epoch")


# Each number and its command


def methods_without_training(page: str) -> list[str]:
    """The comments above commands of which none trains, and that name no training above."""
    blocks = re.findall(r"((?:^    # .*\n)+)((?:^    (?!# ).*\n)*)", page, re.MULTILINE)
    assert blocks
    return [
        comment
        for comments, commands in blocks
        for comment in comments.splitlines()
        if ("vaebench train " not in commands and "; training above" not in comment)
        or comment.endswith("with this evaluation") != (not commands)
    ]


def test_each_number_has_a_training_or_names_one_above():
    """Tables of other estimators of the same runs had evaluations alone; nothing said where their trainings stood.

    Methods without a command of their own stood above that of another method.
    """
    page = (DOCS / "RESULTS.md").read_text(encoding="utf-8")
    assert methods_without_training(page) == []
    assert methods_without_training(page.replace("; training above", ""))
    assert methods_without_training(
        page.replace(", which ends with this evaluation\n\n", "\n    vaebench evaluate\n\n")
    )


@pytest.mark.parametrize("run", METHODS, ids=lambda run: run.folder.path.name)
def test_the_command_of_a_run_is_that_of_its_identity(run: Run):
    program, verb, *words = run.manifest["command"]
    assert (program, verb) == ("vaebench", "train")
    assert run_folder(compose(words)).name == run.folder.path.name


def test_a_row_has_one_training_for_its_seeds():
    table = next(table for table in SCRIPT["compared"](SHORT).tables if len(table.rows) > 1)
    gaussian = next(row for row in table.rows if row.settings["encoder"] == "gaussian")
    (line,) = SCRIPT["commands_of"](gaussian)
    assert line.startswith("vaebench train -m dataset=mnist encoder=gaussian ")
    assert line.endswith(" seed=0,1,2")
    written = [
        [SCRIPT["written_alike"](word) for word in words] for words in (["a=3e-3", "b=true"], ["a=0.003", "b=True"])
    ]
    assert written[0] == written[1]
    assert SCRIPT["written_alike"]("a=0.03") not in written[0], "control: another value"


def test_another_evaluation_has_its_command():
    run, own = first("hvm"), first("hvm").results[0]
    assert SCRIPT["evaluation"](run, own) is None
    annealed = replace(own, estimator="AIS", k=None, inner_k=None, settings={"temperatures": 500, "initial": "prior"})
    annealed = replace(annealed, protocol="mnist/dynamic-v1/random100-seed3", n_images=100)
    assert SCRIPT["evaluation"](run, annealed) == (
        "vaebench evaluate RUN estimator=ais estimator.temperatures=500 estimator.initial=prior estimator.images=100 "
        "estimator.seed=3"
    )
    whole = replace(own, k=1000, inner_k=25, protocol="mnist/dynamic-v1", n_images=10_000)
    assert SCRIPT["evaluation"](run, whole) == (
        "vaebench evaluate RUN estimator=diwhvi estimator.k=1000 estimator.inner_k=25 estimator.images=null "
        "estimator.image_seed=0"
    )


@pytest.mark.parametrize("run", METHODS, ids=lambda run: run.folder.path.name)
def test_the_command_of_an_evaluation_is_valid(run: Run):
    for record in run.results:
        if command := SCRIPT["evaluation"](run, record):
            _, _, _, *words = shlex.split(command)
            found = for_evaluation(run.config, words).estimator
            asked = (record.k, record.n_images if "/random" in record.protocol else None)
            assert (found.k if record.k else None, found.images) == asked, command


def test_short_trainings_are_beside_the_published_values():
    curve = SCRIPT["PublishedCurve"]("MNIST, VAE", [], {"20": -90.0, "50": -80.0}, "logs", "not checked", "mnist")
    text = SCRIPT["short_runs"](DOCS, [(curve, [run for run in SHORT if run.config.encoder.name == "gaussian"])])
    assert "| MNIST, VAE | 20 | -90.0 |  |  | ≥ -91.28 +- 0.76 | -1.28 | 0 1 2 | IWAE, k=200, mnist/dynamic-v1/" in text
    assert "- published: logs; mnist; checked: not checked" in text
    assert "-80" not in text, "no run has 50 epochs"


def test_a_training_by_hand_is_beside_its_published_value():
    conditions = ["dataset=mnist", "k=1"]
    curve = SCRIPT["PublishedCurve"]("MNIST, VAE", conditions, {"20": -90.0}, "logs", "not checked", "mnist")
    made = [(1, 10, False), (1, 20, False), (1, 10, True), (64, 20, False)]  # samples, epochs, our first weights
    hand = [SCRIPT["HandRun"](k, epochs, glorot, 0, -95.0 - k, 0.25, 10_000, 1000) for k, epochs, glorot in made]
    assert SCRIPT["by_hand"](hand, curve, "20", glorot=False) == "≥ -96.00 +- 0.25"
    assert SCRIPT["by_hand"](hand, curve, "20", glorot=True) == ""
    omniglot = replace(curve, filters=["dataset=omniglot", "k=1"])
    assert SCRIPT["by_hand"](hand, omniglot, "20", glorot=False) == "", "control"
    command = "python scripts/logged_training --data-dir data --k 1 --epochs 10,20 --seed 0 --test-k 1000"
    assert SCRIPT["hand_command"](hand[:2]) == command
    assert SCRIPT["hand_command"](hand[2:3]) == command.replace("10,20", "10") + " --glorot"


def test_the_bound_of_the_training_by_hand():
    # With a decoder that ignores z, log w = log p(x) - log q(z|x) + log p(z): its mean is log p(x) - KL.
    torch.manual_seed(0)
    script = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "logged_training"))
    network = script["Network"](torch.full((784,), 0.3), glorot=True).double()
    torch.nn.init.zeros_(network.logits[-1].weight)
    x = (torch.rand(2, 784) < 0.3).double()
    with torch.no_grad():
        log_w, features = network.log_w(x, 4000), network.trunk(x)
        q = Normal(network.mean(features), softplus(network.scale(features)))
        log_px = (x * math.log(0.3) + (1 - x) * math.log(0.7)).sum(-1)
        exact = log_px - kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
    assert ((log_w.mean(0) - exact).abs() < 5 * log_w.std(0) / math.sqrt(4000)).all()
    bound = network.bound(x, 4000).detach()
    assert (bound > exact).all(), "control: the mean of log w is a lower value"
    assert (bound < log_px + 0.5).all()


def test_runs_beside_published_values_meet_their_conditions():
    config = compose(["experiment=tighter_bounds_paper/mnist_iwae64", "trainer.epochs=5"])
    met = [curve.title for curve in SCRIPT["published_curves"](DOCS) if chosen(config, curve.filters)]
    assert met == ["MNIST, IWAE with k=64"]


def test_methods_are_beside_those_of_a_paper():
    text = SCRIPT["beside"]("iwhvi_paper", SHORT)
    assert re.search(
        r"\| mnist_hvm \| -84.9 \+- 0.05 \| >= -91.50 \| -6.60 \| 3 \|.* DIWHVI k=200 inner_k=5 \| 20 \|", text
    )
    assert "settings differ from the paper's, so the published values are of other models: mnist_hvm" in text
    assert "checked: not checked, recalled from memory" in text
    assert "omniglot" not in text
    assert "realnvp" not in text, "it has no run here"
    assert SCRIPT["beside"]("iwhvi_paper", [first("hvm")]) == "", "one method has no order"


def test_importance_sampling_is_beside_annealing_on_the_same_images():
    long = [run for run in RUNS if (run.config.encoder.name, run.config.trainer.epochs) == ("gaussian", 100)]
    mnist = [run for run in long if run.config.dataset.name == "mnist"]
    run = next(run for run in mnist if any(record.estimator == "AIS" for record in run.results))
    annealing = next(record for record in run.results if record.estimator == "AIS")
    weights = next(record for record in run.results if (record.k, record.n_images) == (1000, 10_000))
    high, low = read_per_image(run.folder, annealing), read_per_image(run.folder, weights)
    values = np.array([dict(zip(low.images, low.values, strict=True))[image] for image in high.images])
    difference = high.values - values
    text = SCRIPT["annealed"]([replace(run, results=(annealing, weights))])
    assert f"| {difference.mean():.2f} +- {difference.std(ddof=1) / 10:.2f} |" in text
    assert f"≥ {values.mean():.2f} +- {values.std(ddof=1) / 10:.2f} (IWAE, k=1000)" in text
    assert "(IWAE, k=5000)" in SCRIPT["annealed"]([run])  # the most samples that all these images have
    # Controls: a run with one of both has no row, nor have images that importance sampling lacks.
    assert SCRIPT["annealed"]([first("hvm")]) == ""
    assert SCRIPT["same_images"](replace(run, results=(annealing,)), annealing, high.images) is None


def test_a_run_validated_by_annealing_is_apart():
    """Its curve is of another estimate than the others'; and its effective sample size is of chains."""
    runs = [run for run in RUNS if run.config.dataset.name == "omniglot_original"]
    annealed = [run for run in runs if run.config.encoder.name == "avb_ac"]
    assert annealed
    assert {run.config.encoder.name for run in SCRIPT["weighed"](runs)} == {
        run.config.encoder.name for run in runs if run not in annealed
    }
    assert "because its validation is another estimate: avb_ac." in SCRIPT["time_to_quality"](runs)
    assert b"avb_ac" not in SCRIPT["figure"](runs, "epoch")
    text = (DOCS / "RESULTS.md").read_text(encoding="utf-8")
    assert "| ESS of 8 chains |" in text
    assert "ESS of None" not in text


def test_time_to_quality_is_the_median_over_seeds_that_all_reach_it():
    curves = [Curve(VALIDATION, [1, 2, 3], [60.0, 120.0, 180.0], [-95.0, -93.5, -94.1])]
    curves += [Curve(VALIDATION, [1, 2], [60.0, 180.0], [-93.9, -92.0])]
    assert SCRIPT["time_to"](-94, curves) == "2 epochs, 1.5 min"
    assert SCRIPT["time_to"](-95, curves) == "1 epoch, 1.0 min"
    assert SCRIPT["time_to"](-93, curves) == "", "one seed does not reach it"
    curves += [Curve(VALIDATION, [2], [7200.0], [-92.5])]
    assert SCRIPT["time_to"](-94, curves) == "2 epochs, 2.0 min", "one that stood still for two hours is no matter"
    text = SCRIPT["time_to_quality"](SHORT)
    head, _, first, *_ = [line for line in text.splitlines() if line.startswith("|")]
    assert head == "| encoder | objective | k | seeds | ≥ -95 | ≥ -94 | ≥ -93 | ≥ -92 | ≥ -91 |"
    assert first.startswith("| iaf | elbo | 1 | 0 1 2 | 14 epochs, 3.8 min |"), "the one that reaches the highest value"


def test_recipes_stand_beside_methods_of_the_same_length():
    """Every recipe is in a table; without recipes there is none."""
    recipes = SCRIPT["recipes"]
    text = recipes(DOCS, RECIPES, RUNS)
    commands = [line for line in text.splitlines() if line.startswith("    vaebench train ")]
    assert len(RECIPES) < len(commands) < len(RECIPES) + len(RUNS)
    assert "trainer.ema=null" in text
    assert len([line for line in recipes(DOCS, RECIPES, []).splitlines() if "vaebench train" in line]) == len(RECIPES)
    assert recipes(DOCS, [], RUNS) == ""


def test_no_training_in_the_page_is_shorter_than_the_shortest_to_a_test_result():
    runs = [*RUNS, *RECIPES]
    tested = [one for run in runs if run.config.dataset.name == "mnist" and (one := SCRIPT["tested_run"](run))]
    assert len({one.record.protocol for one in tested}) == 1
    assert all(one.record.k == max(record.k or 0 for record in one.run.results) for one in tested)
    *_, last = [line for line in SCRIPT["fastest"](runs).splitlines() if line.startswith("|")]
    target = float(last.split("|")[1].strip(" ≥"))
    reached = [one for one in tested if one.record.mean >= target]
    assert 0 < len(reached) < len(tested)
    assert f"{min(one.minutes for one in reached):.1f} min" in last
    assert f"{min(one.run.config.trainer.epochs for one in reached)} epochs" in last
    assert SCRIPT["fastest"]([run for run in RUNS if run.config.dataset.name != "mnist"]) == ""
    objectives = {one.run.config.objective.name: one.cells()[0] for one in tested}
    assert {name: f", {name}, k=" in recipe for name, recipe in objectives.items()} == {"elbo": False, "iwae": True}


def test_control_other_data_samples_or_prior_are_another_method():
    ours, theirs = compose(["encoder=hvm", "dataset=mnist"]), compose(["experiment=iwhvi_paper/mnist_hvm"])
    assert SCRIPT["same_method"](ours, theirs)
    others = "encoder=sivi dataset=omniglot dataset.binarization=static k=5 objective=iwae prior=realnvp"
    for word in others.split():
        assert not SCRIPT["same_method"](compose(["encoder=hvm", "dataset=mnist", word]), theirs), word


def chosen(config: Config, filters: list[str]) -> bool:
    run = Run(first("gaussian").folder, config, None, [], {}, SeedlessConfig(config))
    return SCRIPT["matching_runs"]([run], filters) == [run]


# The small run folders


def test_no_file_has_a_path_of_one_machine():
    texts = [path.read_text(encoding="utf-8") for path in FILES if path.suffix in (".yaml", ".json", ".jsonl")]
    assert [found[0] for text in texts if (found := SCRIPT["LOCAL"].search(text))] == []
    assert not SCRIPT["LOCAL"].search((DOCS / "RESULTS.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", ["data_dir=/home/me/data", '"/data/x/y"', r"C:\data", "data_dir: /mnt/big"])
def test_control_a_path_of_one_machine_is_found(text: str):
    assert SCRIPT["LOCAL"].search(text)


def test_the_folders_are_small():
    assert {path.name for path in FILES if path.stat().st_size > SCRIPT["LARGEST"]} == set()
    values = -90 + 25 * np.random.default_rng(0).standard_normal((1, 10_000))
    arrays = {"images": np.arange(10_000, dtype="int32"), "values": np.round(values / SCRIPT["STEP"]) * SCRIPT["STEP"]}
    assert len(SCRIPT["packed"](arrays)) < 40_000


def test_a_copy_of_a_copy_has_the_same_numbers(run: RunFolder, tmp_path: Path):
    (copy,) = SCRIPT["add"]([run.path], tmp_path / "runs", samples=False)
    assert copy == tmp_path / "runs" / "mnist" / "gaussian-elbo-k1" / first("gaussian").folder.path.name
    before, after = first("gaussian"), Run.read(RunFolder(copy))
    assert after.results == before.results
    assert read_metrics(after.folder) == read_metrics(before.folder)
    record = next(record for record in after.results if record.estimator == "IWAE")
    values = [read_per_image(one.folder, record).values for one in (before, after)]
    assert np.array_equal(values[0], values[1])
    assert len(np.unique(values[0])) > 900


def test_a_copy_that_would_lose_a_result_is_refused(tmp_path: Path):
    """A run that was trained again has only its new results; the small folder had more."""
    source = next(one for one in RUNS if {1000, 10_000} <= {record.n_images for record in one.results})
    (copy,) = SCRIPT["add"]([source.folder.path], tmp_path / "runs", samples=False)
    again = RunFolder(Path(shutil.copytree(copy, tmp_path / source.folder.path.parent.name / "again")))
    results = read_results(again)
    derived = [one for one in results if not (one.n_images == 1000 and one.k == 1000)]
    again.results.write_text(json.dumps([to_json(one) for one in derived]))
    assert list(SCRIPT["add"]([again.path], tmp_path / "runs", samples=False)) == [copy]  # control: `subset` makes it
    fewer = [one for one in derived if one.n_images != 10_000]
    again.results.write_text(json.dumps([to_json(one) for one in fewer]))
    with pytest.raises(UserError, match=r"again lacks a result of .* \(IWAE, k=1000, mnist/dynamic-.*\): evaluate it"):
        list(SCRIPT["add"]([again.path], tmp_path / "runs", samples=False))
    assert len(read_results(RunFolder(copy))) == len(derived)


def test_a_part_of_all_images_has_its_own_result(tmp_path: Path):
    """Its images are those of an evaluation with estimator.images=1000, and its numbers those of the whole."""
    source = next(one for one in RUNS if {1000, 10_000} <= {record.n_images for record in one.results})
    folder = RunFolder(Path(shutil.copytree(source.folder.path, tmp_path / "gaussian-elbo-k1" / "0-copy")))
    all_images = next(record for record in source.results if record.n_images == 10_000)
    own = next(record for record in source.results if record.n_images == 1000)
    before = [record for record in source.results if (record.n_images, record.k) != (1000, all_images.k)]
    for _ in range(2):  # the second time replaces the result
        assert list(SCRIPT["subsets"]([folder.path], 1000)) == [folder.path]
    run = Run.read(folder)
    *others, part = run.results
    assert others == before
    assert (part.protocol, part.n_images, part.k) == (own.protocol, 1000, all_images.k)
    found, whole = read_per_image(folder, part), read_per_image(folder, all_images, diagnostics=False)
    assert np.array_equal(found.images, read_per_image(folder, own, diagnostics=False).images)
    assert np.array_equal(found.values, whole.values[np.isin(whole.images, found.images)])
    assert SCRIPT["refusal"](run) is None
    changed(folder.status, state="interrupted")
    with pytest.raises(UserError, match="is interrupted"):
        list(SCRIPT["subsets"]([folder.path], 1000))


def test_a_replaced_result_of_a_part_takes_its_file_along(tmp_path: Path):
    source = next(one for one in RUNS if any(record.n_images == 10_000 for record in one.results))
    folder = RunFolder(Path(shutil.copytree(source.folder.path, tmp_path / "gaussian-elbo-k1" / "0-copy")))
    list(SCRIPT["subsets"]([folder.path], 1000))
    *others, part = read_results(folder)
    name = str(part.per_image).rpartition(":")[0]
    (folder.path / name).rename(folder.path / "evaluations" / "another_name.npz")
    moved = replace(part, per_image="evaluations/another_name.npz:values")
    folder.results.write_text(json.dumps([to_json(one) for one in (*others, moved)]))
    list(SCRIPT["subsets"]([folder.path], 1000))
    left = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*.npz")}
    assert left == SCRIPT["per_image_files"](read_results(folder))
    assert name in left


def test_thinned_curves_keep_the_best_epoch(run: RunFolder):
    lines = [{"step": i, "epoch": i, "wall": i, "validation/log_likelihood": -abs(i - 777)} for i in range(1, 1001)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept = [json.loads(line) for line in SCRIPT["thinned_lines"](run)]
    assert 60 <= len(kept) <= 63
    assert {777, 1000} <= {line["epoch"] for line in kept}


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("status", {"state": "interrupted"}, "is interrupted: add finished runs"),
        ("manifest", {"code": "0" * 16}, "has a result of other code"),
        ("manifest", {"command": ["a.py"]}, "was not made by a command"),
        ("manifest", {"command": ["vaebench", "train", "--config-dir", "/home/me/mine"]}, "has a local path"),
        ("manifest", {"written": {"lines": 1, "chain": "0", "points": 1}}, "is altered"),
    ],
)
def test_such_a_run_is_refused(run: RunFolder, tmp_path: Path, file: str, values: dict[str, Any], message: str):
    changed(getattr(run, file), **values)
    with pytest.raises(UserError, match=message):
        list(SCRIPT["add"]([run.path], tmp_path / "runs", samples=False))
    assert not (tmp_path / "runs").exists()
