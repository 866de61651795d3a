"""`vaebench reproduce`: the rows of a paper as one sweep, then published beside measured results."""

import csv
import io
import json
from pathlib import Path

import pytest
from made_runs import composed, made_run, record

from vaebench.cli import main
from vaebench.cli.reproduce import papers
from vaebench.config import PublishedResult
from vaebench.records import RunFolder
from vaebench.report.reproduction import FORMATS, Job, PairOfRows, Reproduction, kendall_tau, reproduction

PAPER = "iwae_paper"
SMALL = [
    *("dataset=mnist5k", "dataset.split=default", "decoder.hidden=[8]", "latent_dim=3", "trainer.batch_size=2000"),
    *("trainer.epochs=1", "trainer.validation_k=2", "trainer.image_every=0", "trainer.progress=false"),
    *("trainer.threads=1", "estimator.k=2", "estimator.images=20", "k=2", "device=cpu"),
]
ROWS = ["mnist_l1_vae_k1", "mnist_l1_k50"]


def test_two_rows_are_trained_and_compared(
    tmp_path: Path, default_data_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["reproduce", PAPER, *ROWS, *SMALL, f"data_dir={default_data_dir}", f"output_dir={tmp_path}"]
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "2 jobs: 2 finished" in out
    lines = {
        line.split()[0]: line.split()
        for line in out[out.rindex("\niwae_paper") :].splitlines()
        if line.startswith("mnist_l1") and line.split()[1] != "-"
    }
    assert (lines["mnist_l1_k50"][1:3], lines["mnist_l1_vae_k1"][1:3]) == (["-84.78", ">="], ["-86.76", ">="])
    assert out.index("\nmnist_l1_k50 ") < out.index("\nmnist_l1_vae_k1 ")  # the highest published value first
    assert "note: settings differ from the paper's" in out
    # The same command again trains nothing, and --table shows the table alone.
    assert main([*words, "--table", "--format", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [row["state"] for row in found["rows"]] == ["finished", "finished"]
    assert found["kendall_tau"]["mnist5k/dynamic"] in (-1, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing PAPER: give one of avb_paper"),
        (["iwae_papr"], "there is no paper 'iwae_papr' (did you mean 'iwae_paper'?)"),
        ([PAPER, "mnist_l1"], "there is no row 'mnist_l1'"),
        ([PAPER, "k=1,2"], "only seed takes several values"),
        ([PAPER, "experiment=iwae_paper/mnist_l1_k5"], "name the rows after the paper"),
        ([PAPER, "--format", "latex"], "--format must be one of table, md, csv, json, not 'latex'"),
        ([PAPER, "mnist_l1_k50", "budget=-1", "--table"], "jobs failed"),
    ],
)
def test_refused(words: list[str], message: str, capfd: pytest.CaptureFixture[str]):
    assert main(["reproduce", *words]) == 2
    assert message in capfd.readouterr().err


def test_the_list_has_every_paper_and_row(capfd: pytest.CaptureFixture[str]):
    assert main(["reproduce", "--list"]) == 0
    out = capfd.readouterr().out
    assert all(f"{paper} ({len(rows)} row" in out for paper, rows in papers().items())
    assert main(["reproduce", "uivi_paper", "--list"]) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("  mnist_uivi")]
    assert "-94.09" in line


# The table, from made runs.


def made(tmp_path: Path, means: dict[str, list[float]], *words: str) -> Reproduction:
    """The rows ``name: means of its seeds`` of a made paper; published values fall by one from row to row."""
    jobs, published = [], {}
    for place, (name, values) in enumerate(means.items()):
        published[name] = PublishedResult(value=-84.0 - place, source="a paper", checked="read in it", protocol="mnist")
        overrides = (f"latent_dim={place + 3}", *words)
        for seed, mean in enumerate(values):
            folder = made_run(tmp_path, *overrides, results=[record(mean)], seed=seed)
            jobs.append(Job(name, composed(overrides), RunFolder(folder.path)))
    return reproduction("made_paper", published, jobs)


def verdicts(found: Reproduction) -> dict[str, str]:
    return {f"{pair.better.name}-{pair.worse.name}": pair.verdict for pair in found.pairs}


def test_order_and_differences_of_made_results(tmp_path: Path):
    found = made(tmp_path, {"a": [-84.0, -84.01], "b": [-85.0, -85.02], "c": [-84.5, -84.51], "d": [-85.0, -85.8]})
    assert verdicts(found) == {
        "a-b": "agrees",
        "a-c": "agrees",
        "a-d": "not told apart",
        "b-c": "disagrees",
        "b-d": "not told apart",
        "c-d": "not told apart",
    }
    assert kendall_tau(found.pairs) == pytest.approx(4 / 6)  # 5 of 6 pairs in the published order
    contained = {pair.better.name + pair.worse.name: pair.contains_published for pair in found.pairs}
    assert contained["ab"] is True  # 1.0 published, 1.005 measured
    assert contained["ac"] is False  # 2.0 published, 0.5 measured


def test_equal_published_values_have_no_order(tmp_path: Path):
    found = made(tmp_path, {"a": [-84.0, -84.01], "b": [-85.0, -85.02]})
    better, worse = found.rows
    pair = PairOfRows(better, Reproduction("p", [worse], []).rows[0], 1.0, found.pairs[0].interval)
    assert pair.verdict == "agrees"  # control
    equal = PairOfRows(better, better, 1.0, found.pairs[0].interval)
    assert equal.verdict == "published equal"
    assert kendall_tau([equal]) is None


def test_one_seed_without_images_has_no_verdict(tmp_path: Path):
    found = made(tmp_path, {"a": [-84.0], "b": [-85.0]})
    assert verdicts(found) == {"a-b": "not told apart"}
    assert kendall_tau(found.pairs) == 1.0
    assert "seeds=1" in FORMATS["table"](found)


def test_rows_on_other_images_are_not_compared(tmp_path: Path):
    one = made(tmp_path, {"a": [-84.0, -84.1]})
    jobs = [
        Job("b", composed(("latent_dim=9",)), made_run(tmp_path, "latent_dim=9", results=[record(-85.0, n_images=9)]))
    ]
    jobs += [Job("a", composed(("latent_dim=3",)), RunFolder(run.folder.path)) for run in one.rows[0].runs]
    published: dict[str, PublishedResult] = dict.fromkeys(("a", "b"), one.rows[0].published)
    assert reproduction("made_paper", published, jobs).pairs == []


def test_the_formats_say_the_same(tmp_path: Path):
    found = made(tmp_path, {"a": [-84.0, -84.01], "b": [-85.0, -85.02]}, "budget=0.5")
    values = json.loads(FORMATS["json"](found))
    (_, second) = csv.DictReader(io.StringIO(FORMATS["csv"](found)))
    assert float(second["measured"]) == values["rows"][1]["measured"] == pytest.approx(-85.01)
    assert (second["direction"], second["published"], second["budget"]) == ("lower_bound", "-85.0", "0.5")
    for name in ("table", "md"):
        text = " ".join(FORMATS[name](found).split())
        assert "85.01" in text
        assert "budget=0.5" in text
        assert "order: Kendall's tau is 1.00" in text


def test_a_row_without_a_result_stands_in_the_table(tmp_path: Path):
    published = made(tmp_path, {"a": [-84.0]}).rows[0].published
    folder = made_run(tmp_path, "latent_dim=8", state="failed")
    jobs = [
        Job("a", composed(("latent_dim=8",)), folder, "out of memory"),
        Job("a", composed(("latent_dim=8", "seed=1")), RunFolder(tmp_path / "none")),
    ]
    (row,) = reproduction("made_paper", {"a": published}, jobs).rows
    assert (row.measured, row.state, list(row.faults)) == (None, "1 failed, 1 not started", ["out of memory"])
