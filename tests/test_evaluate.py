"""`vaebench evaluate`: which evaluations a command asks for, and what they leave in the run folder."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import FakeCore, make_run
from test_every_config import ONE_STEP
from test_records import record as made_record

from vaebench import experiment
from vaebench.cli import main
from vaebench.config import compose, evaluations
from vaebench.errors import RunFailed, UserError
from vaebench.evaluate import importance, loop, workers
from vaebench.evaluate.job import EstimatorInputs
from vaebench.evaluate.loop import Task, unfinished_tasks
from vaebench.evaluate.run import evaluate
from vaebench.records import ResultRecord, RunFolder, append_result, format_line, read_per_image, read_results
from vaebench.records.per_image import PerImageFile
from vaebench.train.session import train


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCore:
    """Replace the evaluation."""
    core = FakeCore()
    monkeypatch.setattr("vaebench.evaluate.run.evaluate", core.evaluate)
    return core


# Which evaluations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", [""]),
        ("estimator.k=7 device=cpu", ["estimator.k=7 device=cpu"]),
        ("estimator.k=1,10", ["estimator.k=1", "estimator.k=10"]),
        ("estimator=iwae,ais", ["estimator=iwae", "estimator=ais"]),
        ("estimator=iwae,iwae", ["estimator=iwae"]),
        (
            "estimator.k=1,2 estimator=diwhvi estimator.inner_k=0,10",
            [f"estimator=diwhvi estimator.k={k} estimator.inner_k={inner}" for k in (1, 2) for inner in (0, 10)],
        ),
        # A setting goes to the estimators that have it, and to all of them if none has: it is then refused.
        (
            "estimator=iwae,ais estimator.k=1,2",
            ["estimator=iwae estimator.k=1", "estimator=iwae estimator.k=2", "estimator=ais"],
        ),
        ("estimator=iwae,ais estimator.chains=3", ["estimator=iwae", "estimator=ais estimator.chains=3"]),
        (
            "estimator=iwae,ais estimator.images=9 threads=1",
            [f"estimator={one} estimator.images=9 threads=1" for one in ("iwae", "ais")],
        ),
        ("estimator=iwae,ais estimator.foo=1", [f"estimator={one} estimator.foo=1" for one in ("iwae", "ais")]),
        ("estimator.seed=range(3)", [f"estimator.seed={seed}" for seed in range(3)]),
    ],
)
def test_evaluations_asked_for(words: str, expected: list[str]):
    assert [" ".join(found) for found in evaluations("iwae", words.split())] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("estimator=iwae,ais estimator.foo=1", "unknown key estimator.foo"),
        ("estimator=iwae,ias", "there is no estimator=ias .did you mean 'ais'"),
        ("estimator=iwae,ais estimator.chains=3,x", "estimator.chains must be an integer, got 'x'"),
        ("estimator.k=1,0", "estimator.k must be >= 1"),
        ("estimator.k=1,x", "estimator.k must be an integer"),
        ("estimator.k=interval(1,5)", "does not list its values"),
        ("estimator=glob(*)", "does not list its values"),
        ("estimator.k=[1", "cannot read"),
        ("processes=0", "processes must be >= 1"),
        ("processes=1,0", "processes must be >= 1"),
        ("estimator.processes=2", "unknown key estimator.processes .did you mean 'processes'"),
        ("estimator.tau=prio", "did you mean 'prior'"),
        ("estimator.repeats=0", "estimator.repeats must be >= 1"),
        ("estimator.binarize=anew", "estimator.binarize must be one of fixed, fresh"),
        ("--multirunn", "unknown flag"),
    ],
)
def test_all_is_refused_before_the_first_evaluation(
    words: str,
    message: str,
    fake: FakeCore,
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
):
    make_run(workplace / "run")
    assert main(["evaluate", "run", *words.split()]) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert not fake.evaluated


def test_several_runs_and_several_estimators(fake: FakeCore, workplace: Path, capfd: pytest.CaptureFixture[str]):
    for name in ("a", "broken", "c"):
        make_run(workplace / "sweep" / name)
    (workplace / "sweep" / "damaged").mkdir()
    (workplace / "sweep" / "damaged" / "config.yaml").write_text("k: [")
    assert main(["evaluate", "-m", "sweep", "estimator=iwae,ais", "estimator.k=3"]) == 1
    both = [["estimator=iwae", "estimator.k=3"], ["estimator=ais"]]
    assert fake.evaluated == [(Path("sweep") / run, words) for run in ("a", "broken", "c") for words in both]
    out, err = capfd.readouterr()
    assert out.splitlines() == ["sweep/a", "sweep/broken", "sweep/c", "sweep/damaged"]
    lines = err.splitlines()
    assert lines[0] == "vaebench: failed: sweep/broken estimator=iwae estimator.k=3: its checkpoint is truncated"
    assert lines[2].startswith("vaebench: failed: sweep/damaged estimator=iwae,ais")
    assert lines[-1] == "vaebench: 3 of 7 evaluations failed: see the messages above"


def test_a_defect_shows_its_traceback_and_the_others_go_on(
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    make_run(workplace / "run")
    done: list[list[str]] = []

    def evaluate(path: Path, overrides: list[str]) -> None:
        done.append(overrides)
        if len(done) == 1:
            raise ZeroDivisionError("a defect")

    monkeypatch.setattr("vaebench.evaluate.run.evaluate", evaluate)
    assert main(["evaluate", "run", "estimator.k=1,2"]) == 1
    assert len(done) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert "failed: run estimator.k=1: ZeroDivisionError: a defect" in err


def test_a_signal_stops_all(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    make_run(workplace / "run")
    done: list[list[str]] = []

    def evaluate(path: Path, overrides: list[str]) -> None:
        done.append(overrides)
        raise SystemExit(130)

    monkeypatch.setattr("vaebench.evaluate.run.evaluate", evaluate)
    assert main(["evaluate", "run", "estimator.k=1,2"]) == 130
    assert len(done) == 1


def test_the_own_estimator_of_a_run_may_be_any(fake: FakeCore, workplace: Path):
    make_run(workplace / "run", "estimator=ais")
    assert main(["evaluate", "run", "estimator.chains=3,4"]) == 0
    assert [words for _, words in fake.evaluated] == [["estimator.chains=3"], ["estimator.chains=4"]]


NO_TORCH = """
import sys
from vaebench.cli import main
assert main(["evaluate", "run", "estimator=iwae,ais", "estimator.chains=2,x"]) == 2
assert "torch" not in sys.modules
"""


def test_refusals_do_not_wait_for_torch(workplace: Path):
    make_run(workplace / "run")
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "vaebench: estimator.chains must be an integer, got 'x'\n")


# Batches that are left ------------------------------------------------------------------------------------


def test_tasks_are_what_is_left():
    done = np.zeros((2, 10), dtype=bool)
    assert unfinished_tasks(done, 4) == [Task(r, start, min(start + 4, 10)) for r in range(2) for start in (0, 4, 8)]
    done[0] = True
    done[1, 4:8] = True
    assert unfinished_tasks(done, 4) == [Task(1, 0, 4), Task(1, 8, 10)]
    assert unfinished_tasks(done, 100) == [Task(1, 0, 4), Task(1, 8, 10)]
    done[1] = True
    assert unfinished_tasks(done, 4) == []


# In a run folder ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> Path:
    """Return the folder of an IWHVI run that has seen one batch."""
    words = [*ONE_STEP, f"output_dir={tmp_path_factory.mktemp('runs')}", f"data_dir={default_data_dir}"]
    return train(compose([*words, "encoder=iwhvi", "encoder.inner_k=2", "trainer.evaluate=false"]))


QUICK = ["progress=false", "device=cpu", "threads=1", "estimator.k=30", "estimator.images=40"]


def evaluated(run: Path, *words: str) -> ResultRecord:
    (record,) = evaluate(run, ["estimator=diwhvi", *QUICK, "estimator.inner_k=2", *words])
    return record


def test_numbers_per_image_lead_to_the_result(run: Path, capsys: pytest.CaptureFixture[str]):
    record = evaluated(run, "estimator.batch=15")
    assert record in read_results(RunFolder(run))
    found = read_per_image(RunFolder(run), record)
    assert found.values.mean() == pytest.approx(record.mean, abs=1e-12)
    assert found.values.std(ddof=1) / 40**0.5 == pytest.approx(record.stderr)
    assert record.protocol.endswith("/random40-seed0")
    assert (np.diff(found.images) > 0).all()
    assert found.repeats.shape == (1, 40)
    assert set(found.diagnostics) == {"log_likelihood", "ess", "pareto_k"}
    ess, k_hat = found.diagnostics["ess"], found.diagnostics["pareto_k"]
    assert ((ess >= 1) & (ess <= 30)).all()
    assert record.extra["ess"] == pytest.approx(ess.mean())
    # The threshold for 30 weights is 1 - 1/log10(30).
    assert record.extra["pareto_k_over_0.32"] == pytest.approx((k_hat > 0.323).mean())
    # Control: the mean of batch means, the last of which is short, is another.
    means = [part.mean() for part in np.split(found.values, [15, 30])]
    assert abs(np.mean(means) - record.mean) > 1e-3
    line, note = capsys.readouterr().out.splitlines()
    assert line == format_line(record)
    assert note.startswith("  weights: mean effective sample size ")
    assert note.endswith("% of the images")


def test_the_numbers_are_those_of_the_python_api(run: Path):
    found = read_per_image(RunFolder(run), evaluated(run))
    loaded = experiment.load(run)
    loaded.modules.eval()
    x = loaded.data.observe(loaded.data.test[torch.from_numpy(found.images)])
    from vaebench import log_likelihood

    values = log_likelihood(
        loaded.model, loaded.encoder, x, k=30, inner_k=2, seed=0, images=torch.from_numpy(found.images)
    )
    assert np.abs(values.numpy() - found.values).max() < 1e-4


def test_few_weights_have_no_tail_and_one_says_nothing(run: Path):
    few, one = evaluated(run, "estimator.k=5"), evaluated(run, "estimator.k=1")
    assert set(few.extra) == {"ess", "ess_lowest"}
    assert few.note
    assert (one.extra, one.note) == ({}, "")
    assert np.isnan(read_per_image(RunFolder(run), few).diagnostics["pareto_k"]).all()


# Repeats --------------------------------------------------------------------------------------------------


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that grows by (seed, images) with every batch that is weighed."""
    asked: list[tuple[int, int]] = []
    original = importance.weighed

    def watched(*args: Any) -> Any:
        asked.append((args[3].seed, len(args[3].images)))
        return original(*args)

    monkeypatch.setattr(importance, "weighed", watched)
    return asked


def test_repeats_have_noise_of_their_own_and_both_errors_are_shown(run: Path, monkeypatch: pytest.MonkeyPatch):
    asked = watch(monkeypatch)
    once, thrice = evaluated(run, "estimator.seed=5"), evaluated(run, "estimator.seed=5", "estimator.repeats=3")
    # What is there is used again.
    assert [images for _, images in asked] == [40] * 3
    assert asked[0][0] == 5
    assert len({seed for seed, _ in asked}) == 3
    found = read_per_image(RunFolder(run), thrice)
    means = found.repeats.mean(1)
    assert found.repeats.shape == (3, 40)
    assert means[0] == pytest.approx(once.mean, abs=1e-12)
    assert np.ptp(means) > 1e-3
    assert thrice.repeats == 3
    assert thrice.mean == pytest.approx(means.mean(), abs=1e-12)
    assert thrice.stderr == pytest.approx(found.values.std(ddof=1) / 40**0.5)
    assert thrice.extra["repeat_stderr"] == pytest.approx(means.std(ddof=1) / 3**0.5)
    assert thrice.extra["repeat_means"] == pytest.approx(means)
    assert thrice.protocol == once.protocol == "mnist5k/dynamic-v1/random40-seed5"
    line = format_line(thrice)
    assert f"+- {thrice.stderr:.2f}" in line
    assert "(images) +- " in line
    assert "(3 repeats) (DIWHVI, k=30" in line
    # Fewer than there are: the first of them.
    twice = evaluated(run, "estimator.seed=5", "estimator.repeats=2")
    assert len(asked) == 3
    assert read_per_image(RunFolder(run), twice).repeats.shape == (2, 40)
    assert (read_per_image(RunFolder(run), thrice).repeats == found.repeats).all()


def test_fresh_binarizations_are_another_protocol(run: Path):
    fixed = evaluated(run, "estimator.repeats=2")
    fresh = evaluated(run, "estimator.repeats=2", "estimator.binarize=fresh")
    assert fresh.protocol == f"{fixed.protocol}/rebinarised-seed0"
    there, anew = (read_per_image(RunFolder(run), record) for record in (fixed, fresh))
    assert (there.images == anew.images).all()
    # Nats between pixels, hundredths between noises.
    apart = np.abs(np.diff(there.repeats, axis=0)).mean()
    assert np.abs(np.diff(anew.repeats, axis=0)).mean() > 2 * apart
    assert np.abs(anew.repeats[0] - there.repeats[0]).mean() > 2 * apart
    assert evaluated(run, "estimator.repeats=2", "estimator.binarize=fresh").mean == fresh.mean


def test_images_and_noise_are_chosen_apart(run: Path):
    other = evaluated(run, "estimator.seed=7", "estimator.image_seed=0")
    mine = evaluated(run)
    assert other.protocol == mine.protocol
    assert (read_per_image(RunFolder(run), other).images == read_per_image(RunFolder(run), mine).images).all()
    assert other.mean != mine.mean


# DIWHVI's inner samples -----------------------------------------------------------------------------------


def test_tau_and_shared_psi_are_labelled(run: Path):
    plain = evaluated(run)
    assert evaluated(run, "estimator.tau=learned").settings == plain.settings == {}
    prior = evaluated(run, "estimator.tau=prior")
    shared = evaluated(run, "estimator.tau=prior", "estimator.share_psi=true")
    assert prior.settings == {"tau": "prior"}
    assert shared.settings == {"tau": "prior", "share_psi": True}
    assert len({plain.mean, prior.mean, shared.mean}) == 3
    assert "inner_k=2, tau=prior, share_psi=True, mnist5k" in format_line(shared)
    assert {record.per_image for record in (plain, prior, shared)} <= {
        r.per_image for r in read_results(RunFolder(run))
    }


def test_psi_of_a_learned_tau_are_not_shared(run: Path):
    with pytest.raises(UserError, match=r"share_psi=true is invalid for encoder=iwhvi.*cannot be shared: use"):
        evaluated(run, "estimator.share_psi=true")


# Records of earlier versions ------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [("GaussianEncoder", "moments"), ("AdversarialEncoder", "own")])
def test_old_records_are_read_with_the_new_names(old: str, new: str, tmp_path: Path):
    folder, record = RunFolder(tmp_path), made_record(settings={"proposal": old, "tau": "prior"})
    append_result(folder, record)
    assert old in folder.results.read_text()
    (read,) = read_results(folder)
    assert read.settings == {"proposal": new, "tau": "prior"}
    # A new result takes the place of the old one.
    append_result(folder, made_record(settings={"proposal": new, "tau": "prior"}, mean=-80.0))
    assert [record.mean for record in read_results(folder)] == [-80.0]


# Stops and shares -----------------------------------------------------------------------------------------


def test_an_evaluation_with_holes_is_filled(run: Path, monkeypatch: pytest.MonkeyPatch):
    whole = evaluated(run, "estimator.batch=10", "estimator.seed=3")
    assert whole.per_image is not None
    path = run / whole.per_image.partition(":")[0]
    arrays = dict(np.load(path))
    arrays["done"][0, 10:20] = arrays["done"][0, 30:] = False
    arrays["log_likelihood"][~arrays["done"]] = 0
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    asked = watch(monkeypatch)
    again = evaluated(run, "estimator.batch=10", "estimator.seed=3")
    assert [images for _, images in asked] == [10, 10]
    assert (again.mean, again.stderr, again.extra) == (whole.mean, whole.stderr, whole.extra)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: b"x" + data])
def test_a_damaged_file_is_made_anew(run: Path, damage: Any, capsys: pytest.CaptureFixture[str]):
    whole = evaluated(run, "estimator.seed=4")
    assert whole.per_image is not None
    path = run / whole.per_image.partition(":")[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="vaebench evaluate` again"):
        read_per_image(RunFolder(run), whole)
    assert evaluated(run, "estimator.seed=4").mean == whole.mean
    assert "is corrupt; restarting this evaluation" in capsys.readouterr().out
    assert read_per_image(RunFolder(run), whole).values.mean() == pytest.approx(whole.mean)


def test_records_without_numbers_per_image_say_so(run: Path):
    record = ResultRecord(**{**vars(evaluated(run)), "per_image": None})
    with pytest.raises(UserError, match="has no numbers per image"):
        read_per_image(RunFolder(run), record)
    stored = json.loads((run / "results.json").read_text())
    assert all("note" not in entry or entry["note"] for entry in stored)


def test_several_processes_that_are_interrupted_and_one_give_the_result_of_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Bitwise, with the same batches, whoever has done which."""
    words = ("estimator.batch=10", "estimator.seed=6", "estimator.repeats=2")
    one = evaluated(run, *words)
    assert one.per_image is not None
    path = run / one.per_image.partition(":")[0]
    first = dict(np.load(path))
    path.unlink()
    asked, received = watch(monkeypatch), workers._received

    def interrupted(connection: Any) -> Any:
        answer = received(connection)
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(workers, "_received", received)
        return answer

    monkeypatch.setattr(workers, "_received", interrupted)
    with pytest.raises(SystemExit) as stopped:
        evaluated(run, *words, "processes=2", "threads=2")
    assert stopped.value.code == 130
    assert "interrupted; finished images are saved" in capsys.readouterr().out
    assert multiprocessing.active_children() == []
    # What was at hand is finished: one task of each process.
    assert asked == []
    assert np.load(path)["done"].sum() == 20
    again = evaluated(run, *words)
    assert len(asked) == 6
    second = dict(np.load(path))
    for name in ("log_likelihood", "ess", "pareto_k", "values", "images", "done"):
        assert np.array_equal(first[name], second[name])
    assert (again.mean, again.stderr, again.extra, again.key()) == (one.mean, one.stderr, one.extra, one.key())


def test_devices_are_dealt_out(accelerators: Callable[[str, int], None]):
    config = compose(["device=cuda", "trainer.threads=7"])
    accelerators("cuda", 2)
    parts = workers.process_configs(config, 3)
    assert [part.device for part in parts] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [part.estimator.processes for part in parts] == [2, 1, 2]
    assert {part.trainer.threads for part in parts} == {2}
    assert [part.device for part in workers.process_configs(compose(["device=cuda:1"]), 2)] == ["cuda:1"] * 2
    accelerators("mps", 1)
    assert [part.device for part in workers.process_configs(compose([]), 2)] == ["auto"] * 2


def test_a_batch_is_small_enough_for_all_processes(run: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Task] = []

    def pool(config: Any, folder: Path, weights: str) -> Any:
        evaluator = loop.Evaluator(EstimatorInputs.of(experiment.build(config)))

        def run_here(todo: list[Task], stopping: Any) -> Any:
            seen.extend(todo)
            return evaluator.run(todo, stopping)

        return run_here

    monkeypatch.setattr(workers, "worker_pool", pool)
    evaluated(run, "processes=3", "estimator.seed=8")
    assert [task.stop - task.start for task in seen] == [14, 14, 12]
    seen.clear()
    evaluated(run, "processes=3", "estimator.seed=9", "estimator.batch=30")
    assert [task.stop - task.start for task in seen] == [30, 10]


def test_what_a_process_fails_with_ends_the_evaluation():
    for kind in (UserError, RunFailed, RuntimeError):
        ours, theirs = multiprocessing.Pipe()
        theirs.send(workers.Failed(kind, "no such luck"))
        with pytest.raises(kind, match="no such luck"):
            workers._received(ours)
        theirs.close()
        with pytest.raises(EOFError):  # the workers then say how the process ended
            workers._received(ours)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_work_is_dealt_out_until_none_is_left_or_a_signal_came(kept: int):
    left, (ours, theirs) = [Task(0, start, start + 1) for start in range(3)], multiprocessing.Pipe()
    dealt: list[Task] = []
    while workers._send_next(ours, left, lambda: len(left) == kept):
        dealt.append(theirs.recv())
    assert [task.start for task in dealt] == [2, 1, 0][: 3 - kept]
    with pytest.raises(EOFError):
        theirs.recv()


SPOILED = {
    "seconds": [np.full(2, np.nan), np.full(2, -1.0), np.array(["1", "2"]), np.zeros(()), np.full(2, np.inf)],
    "done": [np.zeros((2, 4)), np.full((2, 4), "yes"), np.zeros((2, 5), bool)],
    "x": [np.full((2, 4), "1.0"), np.zeros((2, 4), int)],
    "values": [np.array(3.0), np.full((2, 4), "1.0")],
    "rows": [np.array("x"), np.zeros(1)],
    "images": [np.full(4, "0"), np.zeros((2, 2), int)],
}


def test_arrays_of_other_types_are_a_corrupt_file(tmp_path: Path):
    def read() -> bool:
        return PerImageFile(tmp_path / "a.npz", ["x"], np.arange(4), 2).read()

    PerImageFile(tmp_path / "a.npz", ["x"], np.arange(4), 2).conclude([np.zeros((2, 4))])
    assert read()
    whole = dict(np.load(tmp_path / "a.npz"))
    for name, arrays in SPOILED.items():
        for array in arrays:
            np.savez(tmp_path / "a.npz", **(whole | {name: array}))
            assert not read(), (name, array)
    np.savez(tmp_path / "a.npz", **whole)
    assert read()


def test_a_file_keeps_the_longest_conclusion(tmp_path: Path):
    for repeats in (3, 2):
        file = PerImageFile(tmp_path / "a.npz", ["x"], np.arange(4), repeats)
        assert file.read()
        (place,) = file.conclude([np.full((repeats, 4), float(repeats))])
        assert place == f"{tmp_path.name}/a.npz:values"
    assert np.load(tmp_path / "a.npz")["values"].shape == (3, 4)
    assert PerImageFile(tmp_path / "a.npz", ["x"], np.arange(5), 3).read() is False
