"""`vaebench list runs` and `vaebench show`: what a terminal tells about runs."""

import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from made_runs import made_run, record

from vaebench.cli import main
from vaebench.records import RunFolder, last_metrics, read_metrics
from vaebench.report.curves import Curve, shown_range, text_plot, thinned
from vaebench.report.overview import ago

LINES = [
    {"step": 40, "epoch": 1, "wall": 2.0, "validation/log_likelihood": -150.0},
    {"step": 80, "epoch": 2, "wall": 4.0, "validation/log_likelihood": -120.0},
    {"step": 120, "epoch": 3, "wall": 6.0, "validation/log_likelihood": -110.0},
]


def test_list_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    made_run(tmp_path, "encoder=gaussian", results=[record(-100.0, epoch=3)], metrics=LINES)
    failed = made_run(tmp_path, "encoder=hvm", state="running", metrics=LINES[:1])
    failed.write_status("failed", "the loss was not finite at step 3")
    made_run(tmp_path, "encoder=hvm", seed=1, state="running")  # its process is gone
    made_run(tmp_path, "encoder=hvm", seed=2).status.write_text("{")
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["list", "runs", str(tmp_path)]) == 0
    kind, head, *lines = capsys.readouterr().out.splitlines()
    assert kind == "result: test log p(x), mnist5k/dynamic-v1 (500 images, IWAE/DIWHVI, k=64), nats per image"
    assert head.split() == ["run", "state", "epoch", "result", "updated"]
    assert lines[0].startswith("mnist5k/gaussian-elbo-k1/0-")
    assert "finished  " in lines[0]
    assert "3/50" in lines[0]
    assert ">= -100.00 +- 0.50  " in lines[0]
    assert "1/50" in lines[1]
    assert lines[2] == "    the loss was not finite at step 3"
    assert "exited without recording a status (killed?)" in lines[4]
    assert "damaged" in lines[5]
    assert lines[-1] == "4 runs: 1 finished, 1 failed, 1 interrupted, 1 damaged"
    assert main(["list", "runs", str(tmp_path), "--filter", "state=interrupted,failed", "--filter", "seed=1"]) == 0
    assert "2 runs: 1 interrupted, 1 damaged" in capsys.readouterr().out


def test_list_runs_fits_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    made_run(tmp_path, "encoder=full_gaussian", results=[record(-100.0, epoch=3)], metrics=LINES)
    failed = made_run(tmp_path, "encoder=hvm", state="running")
    failed.write_status("failed", "a long message " * 20)
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["list", "runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["run", "state", "epoch", "result"]
    assert any(line.startswith("left out to fit 80 columns: updated (") for line in lines)
    assert main(["list"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_list_runs_shows_one_kind_of_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The kind that most runs share; the result that was added last, of other images, is not in its column."""
    few = {"n_images": 40, "protocol": "mnist5k/dynamic-v1/random40-seed0"}
    made_run(tmp_path, "encoder=gaussian", results=[record(-165.27), record(-154.80, **few)])
    made_run(tmp_path, "encoder=planar", results=[record(-160.0), record(3.0, quantity="inference gap")])
    made_run(tmp_path, "encoder=iwhvi", results=[record(-161.0, estimator="DIWHVI", inner_k=5)])
    made_run(tmp_path, "encoder=avb", results=[record(-150.0, direction="estimate", settings={"proposal": "own"})])
    both = [record(-164.0, settings={"proposal": "moments"}), record(-140.0, **few)]
    made_run(tmp_path, "encoder=avb", seed=1, results=both)
    made_run(tmp_path, "encoder=hvm", results=[record(-1.0, **few), record(-2.0, k=5)])
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    kind, table = out[: out.index("\nrun ")], out[out.index("\nrun ") :]
    assert " ".join(kind.split()).startswith(
        "result: test log p(x), mnist5k/dynamic-v1 (500 images, IWAE/DIWHVI, k=64, inner_k=5), nats"
    )
    for shown in (
        ">= -165.27 +- 0.50",
        ">= -160.00 +- 0.50",
        ">= -161.00 +- 0.50",
        "~ -150.00 +- 0.50 [2]",
        ">= -164.00 +- 0.50 [1]",
        "- (2 others)",
        "[1] proposal moments\n[2] proposal own",
        "others: 5 results under other conditions",
    ):
        assert shown in table
    assert not any(hidden in table for hidden in ("-154.80", "3.00", "-140.00", "-1.00", "-2.00"))
    assert max(map(len, out.splitlines())) <= 80


def test_list_runs_prefers_more_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Control: as many runs have either kind; the number of images decides, not the order."""
    for seed, order in enumerate([(500, 40), (40, 500)]):
        made_run(tmp_path, "encoder=gaussian", seed=seed, results=[record(-float(n), n_images=n) for n in order])
    assert main(["list", "runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count(">= -500.00") == 2
    assert ">= -40.00" not in out


def test_a_run_that_stopped_early_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    early = made_run(tmp_path, "encoder=gaussian", metrics=LINES, stopped_early={"epoch": 3, "of": 50})
    whole = made_run(tmp_path, "encoder=gaussian", seed=1, metrics=LINES)
    assert main(["list", "runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("3/50 early") == 1
    assert "early: 1 run stopped before the last epoch" in out
    assert main(["show", str(early.path)]) == 0
    assert "stopped     early, at epoch 3 of 50" in capsys.readouterr().out
    assert main(["show", str(whole.path)]) == 0
    assert "early," not in capsys.readouterr().out


def test_show_notes_a_warm_up_longer_than_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    long, whole = (
        made_run(tmp_path, "encoder=gaussian", f"trainer.kl_warmup={epochs}", metrics=LINES) for epochs in (200, 50)
    )
    assert main(["show", str(long.path)]) == 0
    assert "note        trainer.kl_warmup=200 is longer than trainer.epochs=50" in capsys.readouterr().out
    assert main(["show", str(whole.path)]) == 0
    assert "note  " not in capsys.readouterr().out


def test_list_runs_where_there_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["list", "runs", str(tmp_path / "outputs")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["list", "runs", "--help"]) == 0


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    facts = {
        "command": ["vaebench", "train", "decoder.hidden=[64,64]"],
        "device": "cpu (1 thread)",
        "host": "here",
        "time": "2026-01-01T00:00:00+00:00",
        "dataset": {"protocol": "mnist5k/dynamic-v1", "fingerprint": "abc"},
        "parameters": {"model": 1000, "encoder": 234, "total": 1234},
        "versions": {"vaebench": "0.1.0"},
        "git": {"commit": "f" * 40, "dirty": True},
        "restarts": [{"step": 40, "time": "2026-01-02T00:00:00+00:00", "device": "cuda", "host": "there"}],
    }
    folder = made_run(tmp_path, "encoder=gaussian", results=[record(-100.0, epoch=3)], metrics=LINES, **facts)
    assert main(["show", str(folder.path), "--settings"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "encoder     gaussian",
        "1,234 = 1,000 model + 234 encoder",
        "mnist5k/dynamic-v1, fingerprint abc",
        "3 of 50 epochs (120 steps)",
        "command     vaebench train 'decoder.hidden=[64,64]'",
        "commit ffffffffffff with uncommitted changes",
        "restart     from step 40 at 2026-01-02T00:00:00+00:00 on cuda, there",
        "validation log p(x), lower bound by IWAE, k=50, by epoch, nats per image; highest: >= -110.00 at epoch 3",
        "test log p(x) >= -100.00 +- 0.50 (IWAE, k=64, mnist5k/dynamic-v1, 500 images)",
        "optimizer.lr = 0.001",
        "manifest.json",
    ):
        assert expected in out


def test_show_a_run_that_has_only_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = made_run(tmp_path, "encoder=gaussian", state="interrupted")
    folder.manifest.unlink()
    folder.metrics.unlink()
    assert main(["show", str(folder.path)]) == 0
    assert "no result yet" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["nowhere"], ["--unknown"]])
def test_show_refuses(words: list[str]):
    assert main(["show", *words]) == 2


def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path):
    folder = made_run(tmp_path, "encoder=gaussian", metrics=LINES)
    done = subprocess.run(
        [sys.executable, "-m", "vaebench", "show", str(folder.path)],
        capture_output=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONIOENCODING": "ascii"},
    )
    assert b"-110.0 +" in done.stdout


# curves


def test_plot_puts_values_where_they_belong():
    for flat in ([5.0, 5.0], [1e9, 1e9], [9.0, 1.0]):  # of a damaged file
        for ys in ([-3.0, -3.0], [-1e20, -1e20], [-3.0, -2.0]):
            assert len(text_plot(flat, ys, width=5, height=3, letters="ascii")) == 3
    lines = text_plot([0.0, 1.0, 2.0], [-100.0, -95.0, -90.0], width=5, height=3, letters="ascii")
    assert lines == [" -90.0 +    *", " -95.0 +  *", "-100.0 +*"]


def test_the_first_fall_of_a_loss_does_not_hide_the_rest():
    low, high = shown_range([-500.0, *(-100.0 + i / 10 for i in range(40))])
    assert high == pytest.approx(-96.1)
    assert low > -120
    assert shown_range([-3.0, -3.0]) == (-3.5, -2.5)


def test_thinning_keeps_means_and_the_last_point():
    xs = [float(i) for i in range(1000)]
    thin = thinned(Curve("tag", xs, xs, xs), 100)
    assert len(thin.values) == 100
    assert thin.epochs[-1] == 999.0
    assert thin.values[-1] == pytest.approx(994.5)
    assert thinned(thin, 100) is thin


def test_the_last_line_is_that_of_the_whole_file(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert last_metrics(folder) is None
    line = '{"step": %d, "epoch": 1.0, "wall": 1.0, "a": null, "nonfinite": {"a": "nan"}}\n'
    folder.metrics.write_text("".join(line % step for step in range(5000)) + '{"step": 50')
    last = last_metrics(folder)
    assert last is not None
    assert last["step"] == read_metrics(folder)[-1]["step"] == 4999
    assert math.isnan(last["a"])


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s ago"), (300, "5 min ago"), (9e3, "2 h ago"), (9e5, "10 days ago")]
)
def test_ago(seconds: float, text: str):
    now = datetime.now(UTC)
    assert ago(now - timedelta(seconds=seconds), now) == text
    assert ago(None) == "-"
