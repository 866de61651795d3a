"""vaebench tune: searches that stop and start, whose trials are ordinary runs, and which never see a test image."""

import signal
from pathlib import Path

import pytest

from vaebench import tune as tuning
from vaebench.cli import main
from vaebench.config.search import split_spaces
from vaebench.errors import GivenUp, RunFailed, UserError
from vaebench.records import RunFolder, read_results
from vaebench.train.session import resume, train

pytest.importorskip("optuna")

TINY = [
    "latent_dim=2",
    "decoder.hidden=[4]",
    "trainer.validation_k=2",
    "trainer.batch_size=500",
    "trainer.threads=1",
    "trainer.progress=false",
    "trainer.image_every=0",
    "device=cpu",
]


def tune(folder: Path, *words: str) -> int:
    return main(["tune", *TINY, f"output_dir={folder}", *words])


def folders(folder: Path) -> list[RunFolder]:
    return RunFolder.find([folder])


# Words ----------------------------------------------------------------------------------------------------


def test_words_are_split_into_fixed_settings_and_spaces():
    fixed, spaces = split_spaces(["encoder=hvm", "k=1,5", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "seed=range(2)"])
    assert fixed == ["encoder=hvm"]
    k, lr, seed = spaces
    assert (k.key, k.choices) == ("k", ("1", "5"))
    assert (lr.low, lr.high, lr.log, lr.whole) == (1e-4, 1e-2, True, False)
    assert seed.choices == ("0", "1")
    (dim,) = split_spaces(["latent_dim=int(interval(2,8))"])[1]
    assert dim.whole
    assert dim.example() == "latent_dim=2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encoder=hvm"], "nothing to search"),
        (["optimizer.lr=interval(1,0)"], "LOW < HIGH"),
        (["optimizer.lr=tag(log,interval(0,1))"], "must start above 0"),
        (["k=1,2", "--trials", "0"], "--trials must be an integer from 1"),
        (["k=1,2", "--trails", "3"], "did you mean '--trials'"),
        (["k=1,2", "optimiser.lr=1"], "unknown key optimiser.lr"),
    ],
)
def test_refused(tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert tune(tmp_path, "trainer.epochs=1", *words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("config.yaml"))


# Trials ---------------------------------------------------------------------------------------------------


def test_it_finds_the_better_learning_rate_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["trainer.epochs=2", "optimizer.lr=1e-7,1e-2"]
    assert tune(tmp_path, *words, "--trials", "3") == 0
    out = capsys.readouterr().out
    first = out.split("settings\n", 1)[1].splitlines()[0]
    assert "optimizer.lr=1e-2" in first or "optimizer.lr=0.01" in first
    assert ">= -" in first
    assert "the best value is too high" in out
    assert "vaebench evaluate" in out
    # No test image was looked at.
    assert all(not read_results(folder) for folder in folders(tmp_path))
    assert tune(tmp_path, *words, "--trials", "4") == 0
    again = capsys.readouterr().out
    assert again.count("\n== trial") == 1
    assert "== trial 4:" in again


def test_a_trial_below_the_median_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "TRIALS_BEFORE_PRUNING", 1)
    fixed, spaces = split_spaces([*TINY, f"output_dir={tmp_path}", "trainer.epochs=3", "optimizer.lr=1e-2,1e-7"])
    search = tuning.Search(fixed, spaces, prune=True, seed=0)
    with search.opened() as study:
        for rate in spaces[0].choices:
            study.enqueue_trial({"optimizer.lr": rate})
        good, bad = search.run(study, 2)
    assert (good.state, bad.state) == ("finished", "given up")
    assert good.value is not None
    assert bad.value is not None
    assert bad.value < good.value
    assert bad.folder is not None
    status = RunFolder(Path(bad.folder)).read_status()
    assert (status.state, "given up" in (status.error or "")) == ("interrupted", True)
    # By itself the run goes on to its end.
    resume(bad.folder)
    assert RunFolder(Path(bad.folder)).read_status().state == "finished"


def test_a_run_that_nobody_ends_is_watched_to_its_end(tmp_path: Path):
    seen = []
    config = tuning.compose([*TINY, f"output_dir={tmp_path}", "trainer.epochs=3", "trainer.evaluate=false"])
    with pytest.raises(GivenUp):
        train(config, watch=lambda epoch, value: seen.append(epoch) or epoch == 2)
    train(config, watch=lambda epoch, value: seen.append(epoch) or False)
    assert seen == [1, 2, 3]


def test_a_stopped_search_takes_its_trial_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ["trainer.epochs=2", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "--trials", "2"]

    def stopped(config: object, watch: object) -> Path:
        raise SystemExit(128 + signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "train", stopped)
        assert tune(tmp_path, *words) == 130
    before = capsys.readouterr().out
    assert "interrupted" in before
    assert tune(tmp_path, *words) == 0
    rate = before.split("== trial 1: ")[1].splitlines()[0]
    out = capsys.readouterr().out
    assert f"== trial 2: {rate}\n" in out
    assert len(folders(tmp_path)) == 2


def test_failures_are_told_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def failing(config: object, watch: object) -> Path:
        raise RunFailed("the loss was not finite")

    monkeypatch.setattr(tuning, "train", failing)
    assert tune(tmp_path, "trainer.epochs=1", "k=1,2", "--trials", "2") == 1
    printed = capsys.readouterr()
    assert printed.out.count("    the loss was not finite") == 2
    assert "no trial finished" in printed.err


def test_two_processes_never_share_a_search(tmp_path: Path):
    fixed, spaces = split_spaces([*TINY, f"output_dir={tmp_path}", "k=1,2"])
    one, other = (tuning.Search(fixed, spaces, prune=False, seed=0) for _ in range(2))
    with one.opened(), pytest.raises(UserError, match="another process runs this search"), other.opened():
        pass
