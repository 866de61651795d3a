"""vaebench tune: searches that stop and start, whose trials are ordinary runs, and which never see a test image."""

import errno
import functools
import json
import math
import os
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_runs import made_run

from vaebench import tune as tuning
from vaebench.cli import main
from vaebench.config import Config, run_folder
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
    assert out.count(f"== trial 1: {rate}\n") == out.count("\n== trial 2: ") == out.count("\n== trial ") - 1 == 1
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


def test_a_trial_with_another_measure_of_p_x_fails(tmp_path: Path):
    """A density and a probability cannot be compared, so that the higher number must not win."""

    def trial(number: int, measure: str) -> Any:
        folder = made_run(tmp_path, f"k={number + 1}", measure=measure)
        return SimpleNamespace(number=number, value=-1.0, user_attrs={"folder": str(folder.path)})

    first, same, other = trial(0, "density"), trial(1, "density"), trial(2, "8-bit probability")
    for each in (first, same, other):
        each.study = SimpleNamespace(trials=[first, same, other])
    tuning._refuse_other_measure(first)
    tuning._refuse_other_measure(same)
    with pytest.raises(UserError, match=r"p.x. is of the kind '8-bit probability' here and 'density' in other trials"):
        tuning._refuse_other_measure(other)


def test_two_processes_never_share_a_search(tmp_path: Path):
    fixed, spaces = split_spaces([*TINY, f"output_dir={tmp_path}", "k=1,2"])
    one, other = (tuning.Search(fixed, spaces, prune=False, seed=0) for _ in range(2))
    with one.opened(), pytest.raises(UserError, match="another process runs this search"), other.opened():
        pass


# Interrupted searches -------------------------------------------------------------------------------------

EPOCHS = 3
SPACES = ["k=1,5", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "latent_dim=int(interval(2,64))"]


@functools.cache
def composed() -> Config:
    return tuning.compose([*TINY, "objective=iwae"])


class Killed(BaseException):
    """A process that ends without a word."""


def quick_train(config: Config, watch: Callable[[int, float], bool]) -> Path:
    """Write the validations that a training would write, without training: a function of settings and epoch."""
    folder = RunFolder(run_folder(config))
    folder.path.mkdir(parents=True, exist_ok=True)
    known = len(tuning.validations(folder))
    for epoch in range(known + 1, EPOCHS + 1):
        value = -100 - (math.log10(config.optimizer.lr) + 3) ** 2 - abs(config.latent_dim - 20) / epoch + config.k
        line = {"step": epoch, "epoch": float(epoch), "wall": 1.0, tuning.VALIDATION: value}
        with folder.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if watch(epoch, value) and epoch < EPOCHS:
            raise GivenUp
    return folder.path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search without training, and without composing each configuration, which takes 0.2 s."""

    def config(search: tuning.Search, words: Sequence[str]) -> Config:
        (folder,) = (word.partition("=")[2] for word in search.fixed if word.startswith("output_dir="))
        values = dict(word.split("=") for word in words)
        optimizer = replace(composed().optimizer, lr=float(values["optimizer.lr"]))
        sizes = {"k": int(values["k"]), "latent_dim": int(values["latent_dim"])}
        return replace(composed(), output_dir=folder, optimizer=optimizer, **sizes)

    monkeypatch.setattr(tuning.Search, "_config", config)
    monkeypatch.setattr(tuning, "train", quick_train)
    monkeypatch.setattr(tuning, "TRIALS_BEFORE_PRUNING", 2)


def searched(folder: Path, trials: int) -> list[tuple[Any, ...]]:
    """Search with pruning, and return all that is known of each trial."""
    fixed, spaces = split_spaces([f"output_dir={folder}", *SPACES])
    search = tuning.Search(fixed, spaces, prune=True, seed=3)
    with search.opened() as study:
        for _ in search.run(study, trials):
            pass
        return [
            (trial.number, trial.state.name, trial.value, trial.user_attrs["words"], trial.intermediate_values)
            for trial in study.trials
        ]


def journal_of(folder: Path) -> Path:
    (path,) = folder.glob(".studies/*.jsonl")
    return path


def test_a_journal_that_another_process_continued_is_not_mixed(tmp_path: Path):
    """On some network file systems, two machines get the same lock."""
    path = tmp_path / "search.jsonl"
    one, other = tuning.Journal(path), tuning.Journal(path)
    one.append_logs([{"step": 1}])
    text = path.read_bytes()
    with pytest.raises(UserError, match="was changed by another process"):
        other.append_logs([{"step": 1}])
    assert path.read_bytes() == text
    one.append_logs([{"step": 2}])  # control
    path.unlink()
    with pytest.raises(UserError, match="was changed by another process"):
        one.append_logs([{"step": 3}])
    for journal in (one, other):
        journal.close()


@pytest.mark.usefixtures("quick")
def test_a_search_in_parts_and_interrupted_is_the_search_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """More trials than optuna's first ten random ones, so that later choices depend on all earlier results."""
    whole = searched(tmp_path / "whole", 14)
    assert {"COMPLETE", "PRUNED"} == {state for _, state, *_ in whole}
    for trials in (3, 11, 14):
        parts = searched(tmp_path / "parts", trials)
    assert parts == whole

    calls = iter(range(100))

    def stopped(config: Config, watch: Callable[[int, float], bool]) -> Path:
        stop = {4: Killed(), 12: SystemExit(128 + signal.SIGTERM)}.get(next(calls))

        def stopping(epoch: int, value: float) -> bool:
            if stop is not None:
                raise stop  # after the validation was saved, before it was reported
            return watch(epoch, value)

        return quick_train(config, stopping)

    monkeypatch.setattr(tuning, "train", stopped)
    for stop in (Killed, SystemExit):
        with pytest.raises(stop):
            searched(tmp_path / "stopped", 14)
    assert searched(tmp_path / "stopped", 14) == whole


@pytest.fixture
def journal_writes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None], int, str], None]:
    """Return a function: at the ``count``-th write to a journal from now on, call ``stop`` before or after it."""
    append, left = tuning.Journal.append_logs, [0]
    action: list[Any] = [None, ""]

    def appended(journal: tuning.Journal, logs: list[dict[str, Any]]) -> None:
        left[0] -= 1
        if left[0] == 0 and action[1] == "before":
            action[0]()
        append(journal, logs)
        if left[0] == 0 and action[1] == "after":
            action[0]()

    def at(stop: Callable[[], None], count: int, when: str) -> None:
        left[0], action[:] = count, [stop, when]

    monkeypatch.setattr(tuning.Journal, "append_logs", appended)
    return at


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_write_changes_no_trial(tmp_path: Path, journal_writes: Callable[..., None], when: str):
    def kill() -> None:
        raise Killed

    whole = searched(tmp_path / "whole", 3)
    for count in range(1, len(journal_of(tmp_path / "whole").read_bytes().splitlines()) + 1):
        folder = tmp_path / str(count)
        journal_writes(kill, count, when)
        with pytest.raises(Killed):
            searched(folder, 3)
        assert searched(folder, 3) == whole


@pytest.mark.usefixtures("quick")
def test_a_disk_that_is_full_changes_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From any write on: half a record is written, then nothing. Once there is space, the same search completes."""
    write, left = os.write, [0]

    def full(descriptor: int, data: Any) -> int:
        left[0] -= bytes(data[:11]) == b'{"op_code":'
        if left[0] > 0:
            return write(descriptor, data)
        if len(data) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: len(data) // 2])

    whole = searched(tmp_path / "whole", 3)
    count = len(journal_of(tmp_path / "whole").read_bytes().splitlines())
    for number in range(1, count + 1):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            left[0] = number
            with pytest.raises(tuning.JournalError, match=r"jsonl: the disk is full .*run the same command again"):
                searched(folder, 3)
        assert journal_of(folder).read_bytes()[-1:] in (b"", b"\n")
        assert searched(folder, 3) == whole


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("suffix", [".jsonl", ".lock"])
def test_a_journal_or_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path: Path, suffix: str):
    searched(tmp_path, 1)
    path, target = journal_of(tmp_path).with_suffix(suffix), tmp_path / "file of the user"
    content = path.read_bytes() + b"no whole line"
    target.write_bytes(content)
    path.unlink()
    path.symlink_to(target)
    with pytest.raises(UserError, match=rf"{suffix}: it is a symbolic link\. (Move it away|Replace it)"):
        searched(tmp_path, 2)
    assert target.read_bytes() == content
    path.unlink()
    searched(tmp_path, 2)  # control


@pytest.mark.usefixtures("quick")
def test_an_incomplete_last_line_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole = searched(tmp_path / "whole", 3)
    searched(tmp_path / "torn", 2)
    journal = journal_of(tmp_path / "torn")
    lines = journal.read_bytes()
    for torn in (b'{"op_code":6,"worker_id":"', lines.splitlines()[-1]):
        journal.write_bytes(lines + torn)
        capsys.readouterr()
        assert searched(tmp_path / "torn", 2) == whole[:2]
        assert capsys.readouterr().out == f"{journal}: cut an incomplete last line ({len(torn)} bytes)\n"
        assert journal.read_bytes() == lines
    assert searched(tmp_path / "torn", 3) == whole


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: "not JSON\n" + text, "line 1"),
        (lambda text: text.replace('{"op_code":4', "[1]\n", 1), "line 2"),
        (lambda text: "[" * 100_000 + "\n" + text, "line 1"),
        (lambda text: text.replace('"op_code":4', '"op_code":99'), "AssertionError"),
        (lambda text: text.replace('"trial_id"', '"trail_id"'), "KeyError"),
        (lambda text: text.replace('"study_name":"', '"study_name":"x'), "it belongs to another search"),
        (lambda text: text.replace('"directions":[2]', '"directions":[1]'), "it belongs to another search"),
        (lambda text: text.replace('{"words":[', '{"words":[7,'), "trial 1"),
        (lambda text: text.replace('"values":[', '"values":["'), "line 1"),
        (lambda text: text.replace('"intermediate_value":-', '"intermediate_value":"a","x":-'), "trial 1"),
    ],
)
def test_a_damaged_journal_is_one_message(tmp_path: Path, damage: Callable[[str], str], reason: str):
    whole = searched(tmp_path, 2)
    journal = journal_of(tmp_path)
    text = without_checksums(journal.read_text())
    assert damage(text) != text
    journal.write_text(damage(text))
    with pytest.raises(UserError) as raised:
        searched(tmp_path, 2)
    assert str(raised.value).startswith(f"{journal} is corrupt ({reason}")
    assert len(str(raised.value)) < 400 + len(str(journal))
    assert journal.read_text() == damage(text)
    # Without the journal, the search finds its runs.
    before = {path: path.read_bytes() for path in tmp_path.rglob("metrics.jsonl")}
    journal.unlink()
    assert searched(tmp_path, 2) == whole
    assert {path: path.read_bytes() for path in tmp_path.rglob("metrics.jsonl")} == before


def without_checksums(text: str) -> str:
    """Return a journal as earlier versions wrote it."""
    return re.sub(r',"checksum":"[0-9a-f]{16}"', "", text)


@pytest.mark.usefixtures("quick")
def test_an_altered_number_in_a_journal_is_noticed(tmp_path: Path):
    """Control: without checksums, as in journals of earlier versions, the search takes the number."""
    whole = searched(tmp_path, 2)
    journal = journal_of(tmp_path)
    altered = journal.read_text().replace('"intermediate_value":-', '"intermediate_value":-1', 1)
    journal.write_text(altered)
    with pytest.raises(UserError, match=r"is corrupt \(line \d+\)"):
        searched(tmp_path, 2)
    journal.write_text(without_checksums(altered))
    assert searched(tmp_path, 2) != whole
