"""Sweeps: finished jobs are skipped, interrupted jobs are resumed, and jobs are isolated from each other."""

import contextlib
import io
import json
import os
import pty
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vaebench import runtime
from vaebench.cli import main
from vaebench.cli.sweep import launchers, settings
from vaebench.cli.sweep import run as sweep
from vaebench.cli.sweep.job import SweepJob
from vaebench.cli.sweep.lines import prefixed_output
from vaebench.cli.sweep.live import TrainingProgress, live_rows, shown, view_of
from vaebench.cli.sweep.plan import PlannedJob
from vaebench.cli.sweep.records import JobRecord, Records
from vaebench.cli.sweep.settings import check_hydra
from vaebench.cli.sweep.table import JobRow, summary, table
from vaebench.config import Config, compose, from_yaml, identity, run_folder, to_yaml
from vaebench.config.catalog import config_dir, described
from vaebench.config.grid import jobs_of
from vaebench.config.words import all_as_typed, all_for_hydra
from vaebench.direction import Direction
from vaebench.errors import RunFailed
from vaebench.isolation import isolated
from vaebench.records import ResultRecord, RunFolder, append_result, read_results
from vaebench.records.checkpoint import Checkpoints
from vaebench.records.current import VALIDATION
from vaebench.records.folder import State
from vaebench.train.display import Display
from vaebench.train.session import train

TINY = [
    "latent_dim=2",
    "decoder.hidden=[8]",
    "trainer.epochs=1",
    "trainer.validation_k=2",
    "estimator.k=2",
    "estimator.images=20",
    "trainer.progress=false",
    "device=cpu",
]


class FakeCore:
    """Takes the place of training: makes a run folder at once. ``acts`` does something in a seed's run first."""

    def __init__(self) -> None:
        self.trained: list[int] = []
        self.acts: dict[int, Callable[[], Any]] = {}

    def train(self, config: Config) -> Path:
        run = RunFolder(run_folder(config)).create(to_yaml(config), identity=lambda text: identity(from_yaml(text)))
        with run.lock():
            self.trained.append(config.seed)
            run.write_status("running")
            try:
                self.acts.get(config.seed, lambda: None)()
            except (SystemExit, KeyboardInterrupt):
                run.write_status("interrupted")
                raise
            except Exception as error:
                run.write_status("failed", str(error))
                raise
            append_result(run, result(config))
            run.write_status("finished")
        return run.path


def result(config: Config, estimator: str = "IWAE") -> ResultRecord:
    return ResultRecord(
        estimator=estimator,
        k=config.estimator.k,
        inner_k=None,
        split="test",
        protocol="mnist5k/dynamic-v1",
        mean=-100.0 - config.seed,
        stderr=1.5,
        n_images=500,
        direction=Direction.LOWER_BOUND,
        epoch=1,
        seconds=1.0,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


@pytest.fixture
def core(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCore:
    fake = FakeCore()
    monkeypatch.setattr("vaebench.train.session.train", fake.train)
    return fake


def run(*words: str) -> int:
    return main(["train", "-m", *words])


def written() -> dict[str, Any]:
    """Return the latest sweep.json."""
    return json.loads(max(Path("outputs/.sweeps").glob("*/sweep.json")).read_text())


def statuses() -> list[str]:
    return [job["status"] for job in written()["jobs"]]


def raise_(error: BaseException) -> None:
    raise error


# Stopped and started.


def test_what_is_finished_is_skipped_and_what_is_new_is_added(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    assert run("seed=0,1") == 0
    assert run("seed=range(4)") == 0
    assert core.trained == [0, 1, 2, 3]
    assert statuses() == ["skipped", "skipped", "finished", "finished"]
    lines = capfd.readouterr().out.splitlines()
    assert "4 jobs: 2 skipped, 2 finished" in lines
    assert "1 skipped >= -100.00 +- 1.50 seed=0" in [" ".join(line.split()) for line in lines]
    assert lines[-1].startswith("result: test log p(x) by IWAE, k=5000, mnist5k/dynamic-v1, 500 images; nats")


def test_what_failed_is_tried_again(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.acts[1] = lambda: raise_(RunFailed("the loss was not finite"))
    assert run("seed=0,1,2") == 1
    assert statuses() == ["finished", "failed", "finished"]
    assert "    the loss was not finite" in capfd.readouterr().out.splitlines()
    assert run("seed=0,1,2", "sweep.retry_failed=false") == 1
    assert statuses() == ["skipped", "failed", "skipped"]
    assert "in an earlier sweep: the loss was not finite" in capfd.readouterr().out
    del core.acts[1]
    assert run("seed=0,1,2") == 0
    assert statuses() == ["skipped", "finished", "skipped"]
    assert core.trained == [0, 1, 2, 1]


def test_what_is_half_done_goes_on(core: FakeCore):
    half = RunFolder(run_folder(compose(["seed=1"]))).create(to_yaml(compose(["seed=1"])))
    half.write_status("running")  # and its process is gone
    (half.checkpoints / "last.pt").touch()
    assert run("seed=0,1") == 0
    assert statuses() == ["finished", "resumed"]


def test_fail_fast(core: FakeCore):
    core.acts[1] = lambda: raise_(RunFailed("no"))
    assert run("seed=range(4)", "sweep.fail_fast=true") == 1
    assert statuses() == ["finished", "failed", "not started", "not started"]
    assert core.trained == [0, 1]


def test_repetitions_run_once(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    assert run("seed=0,0,1", "name=choice(a,b)", "sweep.fail_fast=true,false") == 0
    assert core.trained == [0, 1]
    assert "left out 10 of 12 combinations" in capfd.readouterr().out


def test_a_job_that_makes_no_sense_leaves_the_others_alone(core: FakeCore):
    assert run("objective=hvm", "encoder=gaussian,hvm") == 1
    assert statuses() == ["failed", "finished"]
    assert written()["jobs"][0]["folder"] is None


# Two sweeps at once.


def test_a_job_in_progress_elsewhere_comes_last(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    """While it is at work on seed 1, the other process finishes seed 0."""
    config = compose(["seed=0"])
    other = RunFolder(run_folder(config)).create(to_yaml(config))
    with contextlib.ExitStack() as stack:
        stack.enter_context(other.lock())
        other.write_status("running")

        def elsewhere() -> None:
            append_result(other, result(config))
            other.write_status("finished")
            stack.close()

        core.acts[1] = elsewhere
        assert run("seed=0,1") == 0
    assert core.trained == [1]
    assert statuses() == ["skipped", "finished"]
    assert ">= -100.00 +- 1.50  seed=0" in capfd.readouterr().out


def test_a_job_that_stays_in_progress_elsewhere_is_busy(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    other = RunFolder(run_folder(compose(["seed=0"]))).create(to_yaml(compose(["seed=0"])))
    with other.lock():
        other.write_status("running")
        assert run("seed=0,1") == 0
    assert statuses() == ["busy", "finished"]
    assert f"(process {os.getpid()} on " in capfd.readouterr().out


@pytest.mark.parametrize("state", ["running", None])
def test_the_table_names_a_marker_and_what_to_do(
    state: State | None, core: FakeCore, capfd: pytest.CaptureFixture[str]
):
    """Where flock is missing, the marker of a process that was killed on another machine stays."""
    other = RunFolder(run_folder(compose(["seed=0"]))).create(to_yaml(compose(["seed=0"])))
    if state is not None:
        other.write_status(state)
    marker = other.path / ".lock.held"
    marker.write_text("process 12 on node1")
    assert run("seed=0,1") == 0
    assert statuses() == ["busy", "finished"]
    advice = f"(process 12 on node1; if that process does not exist, delete {marker})"
    assert advice in " ".join(capfd.readouterr().out.split())
    marker.write_text(f"process {2**31 - 1} on {socket.gethostname()}")  # of this machine, and it has ended
    assert run("seed=0,1") == 0
    assert statuses() == ["finished", "skipped"]


def test_a_lock_without_a_status_is_busy_too(core: FakeCore):
    other = RunFolder(run_folder(compose(["seed=0"]))).create(to_yaml(compose(["seed=0"])))
    with other.lock():
        assert run("seed=0,1") == 0
    assert statuses() == ["busy", "finished"]


def test_waiting_for_the_other_process(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweep, "WAIT", 0.05)
    other = RunFolder(run_folder(compose(["seed=0"]))).create(to_yaml(compose(["seed=0"])))
    lock = other.lock()
    lock.__enter__()
    other.write_status("running")
    # Its process dies after we have done all else.
    core.acts[1] = threading.Timer(0.3, lambda: lock.__exit__(None, None, None)).start
    assert run("seed=0,1", "sweep.wait=true") == 0
    assert statuses() == ["finished", "finished"]
    assert core.trained == [1, 0]


# Stopped by a signal.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_whole_sweep(number: signal.Signals, core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.acts[1] = lambda: (os.kill(os.getpid(), number), time.sleep(5))
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert run("seed=range(4)") == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert core.trained == [0, 1]
    assert statuses() == ["finished", "interrupted", "not started", "not started"]
    assert "4 jobs: 1 finished, 1 interrupted, 2 not started" in capfd.readouterr().out
    del core.acts[1]
    assert run("seed=range(4)") == 0
    assert statuses() == ["skipped", "finished", "finished", "finished"]


# Launchers that lose their workers.


class DyingLauncher:
    """Its workers die in the jobs of some seeds, so many times, and take the whole launch with them."""

    def __init__(self, job: SweepJob, fatal: dict[int, int]) -> None:
        self.job, self.fatal = job, fatal

    def launch(self, overrides: list[list[str]], first: int) -> list[Any]:
        record = Records(self.job.folder)
        for words in overrides:
            seed = int(words[0].removeprefix("seed="))
            (key,) = (key for key in self.job.numbers if key.startswith(f"{seed}-"))
            record.write(key, JobRecord("running", pid=1, host="nowhere"))
            if self.fatal.get(seed, 0) > 0:
                self.fatal[seed] -= 1
                raise RuntimeError("a worker died")
            record.write(key, JobRecord("finished"))
        return [types.SimpleNamespace(_return_value=None)] * len(overrides)


@pytest.mark.parametrize(("deaths", "expected"), [(1, "finished"), (2, "failed")])
def test_a_job_whose_process_dies_is_tried_once_more(
    deaths: int, expected: str, core: FakeCore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    fatal = {1: deaths}
    monkeypatch.setattr(
        "hydra.core.plugins.Plugins.instantiate_launcher",
        lambda self, task_function, **others: DyingLauncher(task_function, fatal),
    )
    assert run("seed=range(3)") == (0 if expected == "finished" else 1)
    # Those that never had their turn are not blamed.
    assert statuses() == ["finished", expected, "finished"]
    assert "the launcher failed: RuntimeError: a worker died" in capfd.readouterr().err


def test_a_launcher_that_cannot_launch(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    class Unable:
        def launch(self, overrides: list[list[str]], first: int) -> list[Any]:
            raise RuntimeError("Could not detect Slurm\nand much more")

    monkeypatch.setattr("hydra.core.plugins.Plugins.instantiate_launcher", lambda self, **others: Unable())
    assert run("seed=0,1") == 1
    assert statuses() == ["failed", "failed"]
    assert written()["jobs"][1]["error"] == "the launcher failed: RuntimeError: Could not detect Slurm"


@pytest.mark.parametrize(
    ("launcher", "settings", "jobs", "threads"),
    [
        (launchers.JOBLIB, {"n_jobs": -1}, 8, 1),
        (launchers.JOBLIB, {"n_jobs": 2}, 8, 4),
        (launchers.JOBLIB, {"n_jobs": -1}, 3, 2),
        (launchers.JOBLIB, {"n_jobs": -5}, 8, 2),
        (launchers.JOBLIB, {"n_jobs": 99}, 99, 1),
        (launchers.LOCAL, {"cpus_per_task": 4}, 9, 4),
        ("vaebench.cli.sweep.slurm.SlurmQueue", {}, 9, None),
        (launchers.BASIC, {}, 9, None),
    ],
)
def test_jobs_share_the_cores(
    launcher: str,
    settings: dict[str, int],
    jobs: int,
    threads: int | None,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(launchers, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share = launchers.MachineShare.of(OmegaConf.create({"_target_": launcher, **settings}))
    assert share.threads(jobs) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user's own choice
    assert share.threads(jobs) is None


def test_gpus_are_dealt_out_in_turn(monkeypatch: pytest.MonkeyPatch, accelerators: Callable[[str, int], None]):
    chosen: list[int] = []
    accelerators("cuda", 3)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: chosen[-1])
    devices = []
    for number in range(5):
        runtime.use_gpu_in_turn(number)
        devices.append([str(runtime.resolve_device(wanted)) for wanted in ("auto", "cuda", "cuda:1")])
    assert devices == [[f"cuda:{n}", f"cuda:{n}", "cuda:1"] for n in (0, 1, 2, 0, 1)]


# Nothing leaks from one job into the next.


def meddle() -> None:
    """Change every global setting that a job could."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.set_grad_enabled(False)
    torch.manual_seed(999)
    os.environ["VAEBENCH_DATA_DIR"] = "/nowhere"
    os.chdir("/")


def sweep_over(seeds: str, data: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sweep over ``seeds``, of which 0 leaves a mess behind; return the run folder of seed 1."""

    def messy(config: Config) -> Path:
        path = train(config)
        if config.seed == 0:
            meddle()
        return path

    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr("vaebench.train.session.train", messy)
    words = [*TINY, "encoder=iwhvi", "objective=iwae", "k=2", f"data_dir={data}", f"output_dir={place}"]
    run(f"seed={seeds}", *words)
    return run_folder(compose([*words, "seed=1"]))


def same_run(one: Path, other: Path) -> bool:
    best, others = [Checkpoints(path / "checkpoints").load("best").state["modules"] for path in (one, other)]
    values = [[(r.mean, r.stderr) for r in read_results(RunFolder(path))] for path in (one, other)]
    return values[0] == values[1] and all(torch.equal(best[key], others[key]) for key in best)


@pytest.fixture
def clean() -> Iterator[None]:
    with isolated():
        torch.set_default_dtype(torch.float32)
        yield


@pytest.mark.usefixtures("clean", "folder")
def test_a_job_s_result_does_not_depend_on_those_before_it(
    tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    alone = sweep_over("1", default_data_dir, tmp_path / "alone", monkeypatch)
    after = sweep_over("0,1", default_data_dir, tmp_path / "after", monkeypatch)
    assert same_run(alone, after)
    assert torch.get_default_dtype() is torch.float32
    assert os.environ.get("VAEBENCH_DATA_DIR") != "/nowhere"
    assert Path.cwd() == tmp_path / "after"


@pytest.mark.usefixtures("clean", "folder")
def test_control_the_mess_would_be_felt(tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vaebench.isolation.isolated", contextlib.nullcontext)
    monkeypatch.setattr(f"{__name__}.meddle", lambda: torch.set_default_dtype(torch.float64))
    after = sweep_over("0,1", default_data_dir, tmp_path / "after", monkeypatch)
    assert RunFolder(after).read_status().state == "failed"


# What a sweep is not.


def test_the_settings_of_a_sweep_define_no_run():
    plain, other = compose([]), compose(["sweep.retry_failed=false", "sweep.fail_fast=true", "sweep.wait=true"])
    assert run_folder(plain) == run_folder(other)
    older = "\n".join(line for line in to_yaml(plain).splitlines() if not line.startswith("sweep:"))
    assert from_yaml(older) == plain


def test_results_of_several_kinds_are_marked(monkeypatch: pytest.MonkeyPatch):
    config = compose([])
    lines = [
        f"test log p(x) >= {-90 - n}.00 +- 1.50 ({how}, k=5, mnist5k/dynamic-v1, 500 images)"
        for n, how in enumerate(["IWAE", "DIWHVI", "IWAE"])
    ]
    jobs = [JobRow(n, [f"k={n}", "seed=0"], JobRecord("finished", 61.2, [line])) for n, line in enumerate(lines, 1)]
    assert summary([job.record for job in jobs]) == "3 jobs: 3 finished"
    assert table(jobs).splitlines() == [
        "job  status    time                    result  settings",
        "  1  finished  0:01:01  >= -90.00 +- 1.50 [a]  k=1",
        "  2  finished  0:01:01  >= -91.00 +- 1.50 [b]  k=2",
        "  3  finished  0:01:01  >= -92.00 +- 1.50 [a]  k=3",
        "all jobs: seed=0",
        "result [a]: test log p(x) by IWAE, k=5, mnist5k/dynamic-v1, 500 images; nats, standard error over images",
        "result [b]: test log p(x) by DIWHVI, k=5, mnist5k/dynamic-v1, 500 images; nats, standard error over images",
    ]
    assert config.sweep.retry_failed


# hydra's own settings.

SLURM, JOBLIB = "hydra/launcher=submitit_slurm", "hydra/launcher=joblib"
PARTITION = "hydra.launcher.partition is a setting of hydra/launcher=submitit_slurm, not of the chosen one"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            [SLURM, "hydra.launcher.partitoin=gpu"],
            "unknown key hydra.launcher.partitoin (did you mean 'hydra.launcher.partition'?); "
            "`vaebench train --cfg hydra -p hydra.launcher hydra/launcher=submitit_slurm` shows every key",
        ),
        ([JOBLIB, "hydra.launcher.partition=gpu"], PARTITION),
        ([JOBLIB, "+hydra.launcher.partition=gpu"], PARTITION),
        (["hydra.launcher.partition=gpu"], PARTITION),
        (
            ["hydra/launcher=jobib"],
            "there is no hydra/launcher=jobib (did you mean 'joblib'?); choices: basic",
        ),
        (
            [JOBLIB, "hydra.launcher.n_jobs=0"],
            "hydra.launcher.n_jobs must be >= 1 or < 0 (-1: one job for each core), got 0",
        ),
        ([JOBLIB, "hydra.launcher.n_jobs=1.5"], "hydra.launcher.n_jobs must be an integer, got 1.5"),
        ([SLURM, "hydra.launcher.timeout_min=abc"], "hydra.launcher.timeout_min must be an integer, got 'abc'"),
        ([SLURM, "hydra.launcher.cpus_per_task=-1"], "hydra.launcher.cpus_per_task must be >= 1, got -1"),
        ([SLURM, "hydra.launcher.nodes=2"], "hydra.launcher.nodes must be 1 (one process trains a run), got 2"),
        (
            [SLURM, "hydra.launcher.additional_parameters.nice=3"],
            "write +hydra.launcher.additional_parameters.nice=... to pass it on unchecked",
        ),
        (["hydra.sweeper.max_batchsize=3"], "(did you mean 'hydra.sweeper.max_batch_size'?)"),
        (["hydra.sweeper.max_batch_size=0"], "hydra.sweeper.max_batch_size must be >= 1, got 0"),
        (["+hydra.sweeper.foo=3"], "unknown key hydra.sweeper.foo"),
        (["hydra.sweep.dirr=x"], "unknown key hydra.sweep.dirr (did you mean 'hydra.sweep.dir'?)"),
        (["hydra.output_subdir=../x"], "hydra.output_subdir must be null, got '../x': use output_dir=... instead"),
        (["hydra.sweep.subdir=../x"], "hydra.sweep.subdir must be 'jobs', got '../x'"),
        (["hydra.job.chdir=true"], "hydra.job.chdir must be false, got true"),
    ],
)
def test_an_invalid_setting_of_hydra_stops_the_sweep_before_it_starts(
    words: list[str], error: str, core: FakeCore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("vaebench.cli.train.require_launcher", lambda words: None)  # installed or not
    assert run("seed=0,1", *words) == 2
    assert error in capfd.readouterr().err
    assert not list(Path.cwd().iterdir())
    assert core.trained == []


@pytest.mark.parametrize("launcher", [listed.choice for listed in described("hydra/launcher", [config_dir()])])
def test_every_setting_of_a_launcher_has_a_type(launcher: str):
    words = [f"hydra/launcher={launcher}"]
    words += ["hydra.launcher.account=123"] if launcher == "submitit_slurm" else []  # a number, but not to Slurm
    with hydra.initialize_config_dir(str(config_dir()), version_base=None):
        composed = hydra.compose("train", words, return_hydra_config=True).hydra
    check_hydra(composed)
    preset: Any = OmegaConf.to_container(composed.launcher, resolve=False)
    assert {f"launcher.{key}" for key, _ in settings._leaves(preset, "", "launcher")} - {"launcher._target_"} <= set(
        settings.SETTINGS
    )


# The output of jobs that share a stream.


def test_each_line_of_a_job_names_it(capsys: pytest.CaptureFixture[str]):
    with prefixed_output("[job 3/12] "):
        print("\nepoch 1", end="")
        print("loss", file=sys.stderr)
        print(", step 2\nepoch 2")
        assert not sys.stderr.isatty()
        print("begun", end="")
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"[job 3/12] {line}" for line in ("epoch 1, step 2", "epoch 2", "begun")]
    assert err == "[job 3/12] loss\n"


# The live view.


def test_the_live_view_shows_states_and_progress(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    """While seed 1 runs, seed 0 has finished and seed 2 waits."""
    views: list[str] = []

    @contextlib.contextmanager
    def recording(rows: Callable[[], list[JobRow]]) -> Iterator[None]:
        core.acts[1] = lambda: views.append(view_of(rows(), 24))
        yield

    monkeypatch.setattr(sweep, "shows_live", lambda: True)
    monkeypatch.setattr(sweep, "shown", recording)
    assert run("seed=0,1,2") == 0
    (view,) = views
    lines = view.splitlines()
    assert lines[0] == "3 jobs: 1 finished, 1 running, 1 waiting"
    assert [line.split()[1] for line in lines[2:5]] == ["finished", "running", "waiting"]
    (log,) = Path("outputs/.sweeps").glob("*/jobs/1-*.log")
    assert "== job 2 of 3: seed=1" in log.read_text()


def test_a_sweep_without_a_terminal_prints_lines(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    assert run("seed=0") == 0
    assert "== job 1 of 1: seed=0" in capfd.readouterr().out
    assert not list(Path("outputs/.sweeps").glob("*/jobs/*.log"))


def test_the_live_view_shows_the_time_left_and_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    jobs = [PlannedJob([f"seed={n}"], JobRecord("waiting"), compose([f"seed={n}", "trainer.epochs=4"])) for n in (1, 2)]
    jobs.append(PlannedJob(["seed=3"], JobRecord("finished", 100.0)))
    records, progress = Records(tmp_path / "sweep"), TrainingProgress()
    records.write(jobs[0].key, JobRecord("running"))
    jobs[0].run.path.mkdir(parents=True)
    with open(jobs[0].run.metrics, "w", encoding="utf-8") as metrics:
        for epoch, value in ((1, "-95.2"), (2, "-96")):
            metrics.write(f'{{"step": 9, "epoch": {epoch}, "wall": {20.0 * epoch}, "{VALIDATION}": {value}}}\n')
            metrics.flush()
            lines = view_of(live_rows(jobs, records, progress), 24).splitlines()
            assert f"epoch {epoch}/4, 0:0{'1:00' if epoch == 1 else '0:40'} left, validation >= -95.20" in lines[2]
        metrics.write('{"step": 10, "epo')  # a line that is not complete
        metrics.flush()
        rows = live_rows(jobs, records, progress)
        metrics.write('ch": 4.0, "wall": 80.0}\n')
        metrics.flush()
        assert "epoch 4/4, evaluating, validation >= -95.20" in view_of(live_rows(jobs, records, progress), 24)
    assert view_of(rows, 24).splitlines()[0] == "3 jobs: 1 running, 1 waiting, 1 finished; about 0:02:20 left"


def test_the_live_view_fits_the_terminal_and_shows_running_jobs_first():
    records = [JobRecord("finished")] * 30 + [JobRecord("running"), JobRecord("failed", error="no")]
    rows = [JobRow(n, [f"seed={n}"], record) for n, record in enumerate(records, start=1)]
    lines = view_of(rows, height=20).splitlines()
    assert len(lines) <= 20
    assert lines[0] == "32 jobs: 30 finished, 1 running, 1 failed"
    assert any(line.split()[:2] == ["31", "running"] for line in lines)
    assert any(line.split()[:2] == ["32", "failed"] for line in lines)
    assert lines[-1] == "(22 more jobs)"


def test_other_output_appears_above_the_live_view():
    from rich.console import Console

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=24)
    with shown(lambda: [JobRow(1, ["seed=0"], JobRecord("running"))], console):
        print("a message")
    assert "a message" in screen.getvalue()
    assert "running" in screen.getvalue()


def test_a_real_terminal_shows_the_running_job_and_not_its_output(folder: Path):
    """The job redirects sys.stdout to its log, and the view must not follow it there."""
    code = (
        "import sys, time, vaebench.train.session as session; from vaebench.cli import main; "
        "session.train = lambda config: (print('output of the job'), time.sleep(2.5)); "
        "sys.exit(main(['train', '-m', 'seed=0,1']))"
    )
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-c", code], os.environ | {"TERM": "xterm", "COLUMNS": "80"})
    seen = b""
    with contextlib.suppress(OSError):  # a pseudo-terminal ends in one
        while part := os.read(terminal, 4096):
            seen += part
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, seen
    assert b"1 running, 1 waiting" in seen
    assert b"output of the job\r\n" not in seen
    (log,) = (folder / "outputs/.sweeps").glob("*/jobs/0-*.log")
    assert log.read_text().splitlines()[-1] == "output of the job"


# Words of a sweep.


def grid(*words: str, defaults: Sequence[str] = ()) -> list[str]:
    """Return the overrides of each job, joined by a space."""
    return [" ".join(job) for job in jobs_of(OverridesParser.create(), defaults, words)]


def test_pairs_are_one_factor_of_the_product():
    pairs = "zip(objective,k)=(elbo,1), (iwae,choice(2,3))"
    rows = ["objective=elbo k=1", "objective=iwae k=2", "objective=iwae k=3"]
    assert grid("seed=range(2)", pairs) == [f"seed={seed} {row}" for seed in range(2) for row in rows]


@pytest.mark.parametrize(
    ("word", "jobs"),
    [
        ("zip(decoder.hidden,k)=([8,8],1),([9],2)", ["decoder.hidden=[8,8] k=1", "decoder.hidden=[9] k=2"]),
        ("zip(trainer.k_schedule,k)=({0:1,5:2},1)", ["trainer.k_schedule={0:1,5:2} k=1"]),
        ("zip(name,k)=('a, (b',1),(it's,2)", ["name='a, (b' k=1", "name='it\\'s' k=2"]),
        ("zip(name,k)=(2026_11,1),(null,2)", ["name='2026_11' k=1", "name=null k=2"]),
        ("zip(name,k)=(${encoder.name},1)", ["name='${encoder.name}' k=1"]),
        ("zip(+sweep.wait,k)=(true,1)", ["+sweep.wait=True k=1"]),
    ],
)
def test_values_of_pairs_keep_their_syntax(word: str, jobs: list[str]):
    assert grid(word) == jobs
    assert all_as_typed(all_for_hydra(["-m", "seed=1", word])) == ["-m", "seed=1", word]


def test_words_of_the_command_replace_those_of_a_yaml():
    defaults = ["k=1,2", "zip(objective,latent_dim)=(elbo,2),(iwae,3)"]
    assert grid("k=5", "seed=1", "seed=2", defaults=defaults) == [
        "objective=elbo latent_dim=2 k=5 seed=2",
        "objective=iwae latent_dim=3 k=5 seed=2",
    ]
    assert grid("zip(k,objective,latent_dim)=(5,elbo,2)", defaults=defaults) == ["k=5 objective=elbo latent_dim=2"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("encoder=glob(zzz*)", "'encoder=glob(zzz*)' matches no choice of encoder; choices: adgm, avb"),
        ("k=glob(*)", "k is not a group"),
        ("seed=range(0)", "'seed=range(0)' has no value"),
        ("zip(objective,k)=(elbo,1),(iwae,range(0))", "'k=range(0)' has no value"),
        ("zip(objective,k)=(elbo,1),(iwae)", "zip(objective,k) needs 2 values in each (...), got 1 in '(iwae)'"),
        ("zip(objective,k)=elbo,1", "zip(objective,k): 'elbo' is not in parentheses"),
        ("zip(objective,k)=(elbo,1", "cannot read 'zip(objective,k)=(elbo,1': ) is missing"),
        ("zip(objective,k)=(elbo,1))", "')' closes no bracket"),
        ("zip(objective)=(elbo)", "it needs two or more keys"),
        ("zip(k,k)=(1,2)", "zip(k,k) names a key twice"),
        ("zip(objective,latent_dim)=(elbo,2)", "both set latent_dim: remove one"),
        ("latent_dim=3", "both set latent_dim: remove one"),
        ("zip(hydra/launcher,k)=(joblib,1)", "the settings of hydra are those of the whole sweep"),
        ("zip(objective,kk)=(elbo,1)", "unknown key kk (did you mean 'k'?)"),
        ("zip(seed,k)=(range(200),range(100))", "this sweep has 40,000 jobs, at most are 10,000"),
        ("+hydra.sweeper.params={optimizer:{lr:1}}", "hydra.sweeper.params.optimizer is a map: write optimizer.lr"),
    ],
)
def test_words_that_would_shrink_a_sweep_are_refused(
    word: str, message: str, folder: Path, capfd: pytest.CaptureFixture[str]
):
    assert run("latent_dim=1,2", word) == 2
    assert message in capfd.readouterr().err
    assert not Path("outputs").exists()


def test_pairs_need_a_sweep(folder: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["train", "zip(objective,k)=(elbo,1)"]) == main(["tune", "zip(objective,k)=(elbo,1)"]) == 2
    assert main(["tune", "k=range(0)"]) == 2
    one, other, empty = capfd.readouterr().err.splitlines()
    assert "add -m" in one
    assert "use it with vaebench train -m" in other
    assert "'k=range(0)' has no value: give at least one" in empty


def test_a_pattern_finds_choices_in_subfolders(core: FakeCore):
    assert run("experiment=glob(iwhvi_paper/*_hvm)", "dataset=mnist5k") == 0
    assert [job["overrides"][0] for job in written()["jobs"]] == ["experiment=iwhvi_paper/mnist_hvm"]


def test_recorded_commands_of_pairs_run_again(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    assert run("seed=0,1", "zip(objective,k,name)=(elbo,1,it's),(iwae,2,'a, b')") == 0
    command = written()["command"]
    assert [command[2:], len(written()["jobs"])] == [
        ["--multirun", "seed=0,1", "zip(objective,k,name)=(elbo,1,it's),(iwae,2,'a, b')"],
        4,
    ]
    assert main(command[1:]) == 0
    assert statuses() == ["skipped"] * 4
    assert written()["command"] == command


def test_a_yaml_of_one_job_does_not_change_the_sweep(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    own = Path("own/experiment")
    own.mkdir(parents=True)
    (own / "grid.yaml").write_text(
        '# @package _global_\nhydra: {sweeper: {params: {"zip(objective,k)": "(elbo,1),(iwae,2)"}}}\n'
    )
    assert run("--config-dir", "own", "experiment=grid") == 0
    assert [job["overrides"][:2] for job in written()["jobs"]] == [["objective=elbo", "k=1"], ["objective=iwae", "k=2"]]
    assert run("--config-dir", "own", "experiment=grid,null") == 2
    assert "experiment=grid sets hydra.sweeper, which holds for a whole sweep" in capfd.readouterr().err


def test_a_dry_run_lists_the_jobs_and_writes_nothing(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    words = ["zip(objective,k)=(elbo,1),(iwae,2)", "--dry-run"]
    assert run("seed=0,0", *words) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["1", "train", "unknown"], ["2", "train", "unknown"]]
    assert "4 combinations: 2 distinct models, 2 apart from the seed; 2 repeated" in lines
    assert any(line.startswith("expected time: unknown") for line in lines)
    assert not Path("outputs").exists()

    assert run("seed=0") == 0
    (finished,) = Path("outputs").glob("mnist5k/*/0-*")
    (finished / "manifest.json").write_text('{"wall_seconds": 90.0, "device": "cpu (2 threads)"}')
    before = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")}
    capfd.readouterr()
    assert run("seed=0,1,2", *words) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in lines[1:5]] == [
        ["finished", "objective=elbo"],
        ["train", "0:01:30"],
        ["train", "0:01:30"],
        ["train", "unknown"],
    ]
    total = "expected time: about 0:03:00 one job after another; unknown for 3 jobs"
    assert f"{total} (from 1 earlier run of the same settings, on cpu (2 threads))" in lines
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")} == before
    assert run("k=-1", "--dry-run") == main(["train", "--dry-run"]) == 2


def test_an_interrupted_run_tells_the_time_that_is_left(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.acts[0] = lambda: raise_(ValueError("no"))
    run("seed=0", "trainer.epochs=4")
    (begun,) = Path("outputs").glob("mnist5k/*/0-*")
    (begun / "checkpoints/last.pt").write_bytes(b"")
    (begun / "metrics.jsonl").write_text('{"step": 9, "epoch": 1.0, "wall": 20.0}\n')
    capfd.readouterr()
    assert run("seed=0,1", "trainer.epochs=4", "--dry-run") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in lines[1:3]] == [["resume", "0:01:00"], ["train", "0:01:20"]]


# Lines of a log.


def test_a_log_has_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    clock = 0.0
    monkeypatch.setattr("vaebench.train.display.time.monotonic", lambda: clock)
    display = Display()
    with display.training(epochs=4, epoch_steps=100, done=100):
        for step in range(110, 401, 10):  # a step a second
            clock += 10
            display.step(step, {"train/bound": -90.0})
            if step % 100 == 0:
                display.validated(step // 100, 4, -95.0, 2)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1.6/4  bound -90.00  1 steps/s  0:04:00 left",
        "epoch 2.2/4  bound -90.00  validation >= -95.00 (best: epoch 2)  1 steps/s  0:03:00 left",
        "epoch 2.8/4  bound -90.00  validation >= -95.00 (best: epoch 2)  1 steps/s  0:02:00 left",
        "epoch 3.4/4  bound -90.00  validation >= -95.00 (best: epoch 2)  1 steps/s  0:01:00 left",
        "epoch 4/4  bound -90.00  validation >= -95.00 (best: epoch 2)  1 steps/s",
    ]


def test_lines_of_jobs_in_turn_name_their_job(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.acts = {0: lambda: print("epoch 1/5"), 1: lambda: print("epoch 2/5")}
    assert run("seed=0,1") == 0
    out = capfd.readouterr().out
    assert "[job 1/2] epoch 1/5" in out
    assert "[job 2/2] epoch 2/5" in out
