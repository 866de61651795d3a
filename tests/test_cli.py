"""The command line: what it prints, its exit codes, and that it never makes a user wait for torch."""

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import vaebench
from vaebench import signals
from vaebench.cli import COMMANDS, main
from vaebench.cli.flags import (
    BOARD,
    COMPARE,
    CURVES,
    ENCODE,
    HELP,
    NEW,
    PICTURE,
    PLOT,
    REPORT,
    REPRODUCE,
    SELFTEST,
    SHOW,
    TRAIN,
    TUNE,
    parse,
    settings,
    take,
)
from vaebench.config import Config, compose, run_folder, to_yaml
from vaebench.config.diagnosis import Diagnosis
from vaebench.config.encoding import Encoding
from vaebench.config.pictures import Interpolate, Reconstruct, Sample, Traverse
from vaebench.errors import RunFailed, UserError
from vaebench.records import RunFolder
from vaebench.signals import Interruption


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VAEBENCH_DATA_DIR", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


class FakeCore:
    """Takes the place of training and evaluation, and records the calls."""

    def __init__(self) -> None:
        self.trained: list[Config] = []
        self.commands: list[list[str]] = []
        self.resumed: list[tuple[Path, dict[str, Any]]] = []
        self.fresh: list[bool] = []
        self.evaluated: list[tuple[Path, list[str]]] = []
        self.failures: dict[int, BaseException] = {}

    def train(self, config: Config, *, fresh: bool = False) -> Path:
        self.fresh.append(fresh)
        self.commands.append(sys.argv)
        if config.seed in self.failures:
            raise self.failures[config.seed]
        self.trained.append(config)
        return run_folder(config)

    def resume(self, path: Path, changes: dict[str, Any]) -> Path:
        self.resumed.append((path, changes))
        return path

    def evaluate(self, path: Path, overrides: list[str]) -> list[Any]:
        self.evaluated.append((path, overrides))
        if "broken" in path.parts:
            raise RunFailed("its checkpoint is truncated")
        return []


@pytest.fixture
def core(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCore:
    fake = FakeCore()
    monkeypatch.setattr("vaebench.train.session.train", fake.train)
    monkeypatch.setattr("vaebench.train.session.resume", fake.resume)
    monkeypatch.setattr("vaebench.evaluate.run.evaluate", fake.evaluate)
    return fake


def make_run(path: Path, *overrides: str) -> Path:
    """Make what `evaluate` takes for a run folder."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(to_yaml(compose(overrides)))
    return path


# Bad input: one short message, exit code 2, nothing written.

REFUSED = {
    "k=0": "k must be >= 1, got 0",
    "k=-3": "k must be >= 1, got -3",
    "k=abc": "k must be an integer, got 'abc'",
    "k=1.5": "k must be an integer, got 1.5",
    "k=true": "k must be an integer, got true",
    "k=null": "k must be an integer, got null",
    "+k=3": "k exists already: write k=... without the +",
    "~k": "k is missing",
    "seed=-1": "seed must be from 0 to 4294967295, got -1",
    "latent_dim=0": "latent_dim must be >= 1, got 0",
    "device=gpu": "device must be auto, cpu, cuda, cuda:N, mps, xpu or xpu:N, got 'gpu'",
    "foo=1": "unknown key foo",
    "+foo=1": "unknown key foo",
    "++foo=1": "unknown key foo",
    "+trainer.foo=1": "unknown key trainer.foo",
    "+encoder.foo=1": "unknown key encoder.foo",
    "learning_rate=0.1": "unknown key learning_rate: write optimizer.lr=0.1",
    "optimizer.learning_rate=0.1": "unknown key optimizer.learning_rate: write optimizer.lr=0.1",
    "+learning_rate=0.1": "unknown key learning_rate: write optimizer.lr=...",
    "batch_size=9": "unknown key batch_size (did you mean 'trainer.batch_size'?)",
    "encoder=vae": "there is no encoder=vae: write encoder=gaussian objective=elbo",
    "encoder=NF": "there is no encoder=NF: write encoder=realnvp",
    "encoder=iwae": "there is no encoder=iwae: write encoder=gaussian objective=iwae k=16",
    "objective=dreg": "there is no objective=dreg: write objective=iwae objective.gradient=dreg k=16",
    "optimizer=sgd": "there is no optimizer=sgd: write optimizer=adam; choices: adam",
    "estimator=nll": "there is no estimator=nll: write estimator=iwae; choices: ais, bdmc, diwhvi, gaps",
    "objective.bound=iwae": "objective.bound is fixed by the choice: write objective=iwae",
    "published={value:3,source:a,checked:b,protocol:c}": "published is set by the yaml file of an experiment",
    "experiment=iwhvi_paper/mnist_hvm published.value=-3": "published is set by the yaml file of an experiment",
    "dataset=MNIST": "there is no dataset=MNIST: write dataset=mnist",
    "+encoder=hvm": "encoder has a choice already: write encoder=hvm without the +",
    "objective.beta=2": "objective=ciwae, not of the chosen objective; or write objective=beta objective.kl_weight=2",
    "trainer.ema=none": "trainer.ema must be a number, got 'none': write trainer.ema=null",
    "vae": "'vae' is not a setting: write KEY=VALUE, for example encoder=gaussian objective=elbo",
    "lr=1": "unknown key lr (did you mean 'optimizer.lr'?)",
    "epochs=1": "unknown key epochs (did you mean 'trainer.epochs'?)",
    "trainer.epoch=1": "unknown key trainer.epoch (did you mean 'trainer.epochs'?)",
    "latentdim=1": "unknown key latentdim (did you mean 'latent_dim'?)",
    "encoderr=hvm": "unknown key encoderr (did you mean 'encoder'?)",
    "encoder.inner_k=3": "encoder.inner_k is a setting of encoder=adgm|hvm|iwhvi|sivi|uivi, not of",
    "+encoder.inner_k=3": "unknown key encoder.inner_k",
    "encoder=hmv": "there is no encoder=hmv (did you mean 'hvm'?); choices: adgm, avb",
    "prior=mine": "vamp; a name of a plug-in needs its package, or --plugin FILE",
    "dataset=mnst": "there is no dataset=mnst (did you mean 'mnist'?)",
    "dataset=mnist dataset.binarization=dynamc": "did you mean 'dynamic'?",
    "experiment=iwhvi_paper/mnist_hmv": "did you mean 'iwhvi_paper/mnist_hvm'?",
    "encoder=null": "null is not a choice of a group",
    "~encoder": "encoder needs a choice: `vaebench list encoder` shows the choices",
    "encoder.name=hvm": "encoder.name is fixed by the choice: write encoder=hvm",
    "encoder=hvm,sivi": "encoder=hvm,sivi has several values: add -m to run each",
    "hvm": "'hvm' is not a setting: write KEY=VALUE",
    "k=[1": "cannot read 'k=[1'",
    "optimizer.lr=-1e-3": "optimizer.lr must be > 0, got -0.001",
    "optimizer.lr=0": "optimizer.lr must be > 0",
    "optimizer.lr=nan": "optimizer.lr must be a finite number, got nan",
    "optimizer.lr=inf": "optimizer.lr must be a finite number, got inf",
    "optimizer.betas=[0.9]": "optimizer.betas must be a list of 2 values",
    "optimizer.betas=[0.9,1]": "optimizer.betas[1] must be >= 0 and < 1, got 1.0",
    "optimizer.schedule=cosin": "got 'cosin' (did you mean 'cosine'?)",
    "trainer.epochs=0": "trainer.epochs must be >= 1, got 0",
    "trainer.epochs=2 trainer.validate_every=3": "trainer.validate_every must be <= trainer.epochs=2, got 3",
    "budget=0.4 trainer.epochs=2 trainer.validate_every=5": "must be <= trainer.epochs=2, got 5: validation",
    "budget=1000 trainer.epochs=2000": "trainer.epochs must be <= 1000000, got 2000000 (scaled by budget=1000)",
    "trainer.batch_size=0": "trainer.batch_size must be >= 1",
    "trainer.ema=1": "trainer.ema must be > 0 and < 1, got 1.0",
    "trainer.k_schedule={0:0}": "trainer.k_schedule[0] must be >= 1, got 0",
    "trainer.k_schedule={a:1}": "a key of trainer.k_schedule must be an integer, got 'a'",
    "trainer.k_schedule=5": "trainer.k_schedule must be a map",
    "trainer.progress=1": "trainer.progress must be true or false, got 1",
    "decoder.hidden=[]": "decoder.hidden must be a list of at least one width",
    "decoder.hidden=[300,0]": "decoder.hidden[1] must be >= 1, got 0",
    "decoder.hidden=300": "decoder.hidden must be a list such as [300,300], got 300",
    "decoder.activation=rely": "got 'rely' (did you mean 'relu'?)",
    "encoder.hidden=${nothing}": "encoder.hidden: Interpolation key 'nothing' not found",
    "encoder=hvm encoder.psi_dim=x": "encoder.psi_dim must be an integer, got 'x'",
    "encoder=hvm encoder.psi_dim=null": "encoder.psi_dim must be an integer, got null",
    "encoder=nsf encoder.bound=wide": "encoder.bound must be a number, got 'wide'",
    "encoder=avb encoder.discriminator_betas=[a,0.9]": "encoder.discriminator_betas[0] must be a number, got 'a'",
    "encoder=avb encoder.discriminator_hidden=64": "discriminator_hidden must be a list such as [512,512], got 64",
    "encoder=avb encoder.discriminator_hidden=[1.5]": "encoder.discriminator_hidden[0] must be an integer, got 1.5",
    "objective=tvo objective.partitions=2.5": "objective.partitions must be an integer, got 2.5",
    "estimator=ais estimator.schedule=3": "estimator.schedule must be a string, got 3",
    "encoder=hvm encoder.inner_k=-1": "encoder.inner_k must be >= 0, got -1",
    "encoder=sivi encoder.share_psi=2": "encoder.share_psi must be true or false, got 2",
    "estimator.k=0": "estimator.k must be >= 1",
    "estimator.images=0": "estimator.images must be >= 2",
    "estimator.images=1": "estimator.images must be >= 2 (a standard error needs two), got 1",
    "hydra/launcher=foo": "there is no hydra/launcher=foo",
    # Combinations.
    "objective=hvm encoder=gaussian": "objective=hvm needs a hierarchical encoder: encoder=adgm|hvm|iwhvi|sivi",
    "objective=iwhvi encoder=gaussian": "objective=iwhvi needs a hierarchical encoder: encoder=adgm|hvm|iwhvi|sivi",
    "objective=hvm encoder.inner_k=3": "objective=hvm is the bound without inner samples",
    "objective=hvm trainer.inner_k_schedule={0:3}": "objective=hvm is the bound without inner samples",
    "objective=iwhvi encoder.inner_k=0": "objective=iwhvi needs inner samples",
    # Flags.
    "--mutlirun": "unknown flag --mutlirun (did you mean '--multirun'?)",
    "--cfg": "--cfg needs a value: job, hydra, all",
    "--cfg jobs": "--cfg must be one of job, hydra, all, got 'jobs'",
    "-m --cfg job": "--multirun and --cfg exclude each other",
    "--resolve": "--resolve needs --cfg job",
    "--multirun=3": "--multirun takes no value",
    "--config-dir nowhere": "--config-dir: there is no folder ",
    "--config-name nothing": "there is no config file",
    "--resume": "--resume needs a value",
    "--resume run k=3": "--resume takes trainer.epochs, device, data_dir, and all other settings from the run folder, "
    "got k=3",
    "--resume run --cfg job": "got --cfg",
    "--fresh --resume run": "--fresh trains one run from the start: use it without --resume",
    "--fresh -m k=1,2": "--fresh trains one run from the start: use it without --multirun",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused(words: str, core: FakeCore, folder: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["train", *words.split()]) == 2
    out, err = capfd.readouterr()
    assert REFUSED[words] in err
    assert err.startswith("vaebench: ")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in out + err
    assert not core.trained
    assert not core.resumed
    assert not list(folder.iterdir())


@pytest.mark.parametrize("command", [["train"], ["list", "encoder"]])
def test_an_own_yaml_with_a_name_of_ours_is_refused(
    command: list[str], core: FakeCore, folder: Path, capfd: pytest.CaptureFixture[str]
):
    """hydra would use ours, while `vaebench list` showed the other one."""
    own = folder / "own" / "encoder"
    own.mkdir(parents=True)
    (own / "hvm2.yaml").write_text("defaults: [hvm]\n")
    assert main([*command, "--config-dir", str(own.parent)]) == 0
    (own / "hvm.yaml").write_text("name: hvm\n")
    assert main([*command, "--config-dir", str(own.parent)]) == 2
    assert f"{own / 'hvm.yaml'} has the name of " in capfd.readouterr().err


# Valid settings at the ends of their documented ranges. A guess from the sign of the default refused them once.
EXTREMES = [
    "objective=renyi objective.alpha=-1",
    "objective=renyi objective.alpha=0",
    "objective=ciwae objective.beta=0",
    "objective=ciwae objective.beta=1",
    "objective=beta objective.kl_weight=0",
    "objective=free_bits objective.nats=0",
    "estimator=sandwich estimator.aggregate=0",
    "estimator=ais estimator.temperatures=0",
    "estimator=ais estimator.bdmc=null",
    "encoder=iaf encoder.steps=0",
    "encoder=hvm encoder.tau_gate=-2",
    "encoder=hvm encoder.tau_steps=0 encoder.tau_warmup=0",
    "encoder=avb encoder.discriminator_betas=[0,0.9]",
    "encoder=nsf encoder.bound=5",
    "optimizer.final_lr=0 optimizer.weight_decay=0",
]


@pytest.mark.parametrize("words", EXTREMES)
def test_documented_extremes_are_accepted(words: str):
    config = compose(words.split())
    for word in words.split()[1:]:
        key, text = word.split("=")
        group, name = key.split(".")
        assert getattr(getattr(config, group), name) == yaml.safe_load(text)


ACCEPTED = [
    "encoder=hvm objective=iwae k=16",
    "optimizer.lr=1",
    "trainer.k_schedule={0:1,10:5}",
    "trainer.epochs=50 trainer.k_schedule={0:1,90:5}",
    "encoder=iwhvi trainer.inner_k_schedule={0:0,25:5}",
    "objective=iwhvi encoder.inner_k=0 trainer.inner_k_schedule={0:5}",
    "objective=iwae k=1 objective.gradient=stl",
    "objective=iwae k=4 objective.gradient=dreg",
    "objective=elbo k=4 objective.gradient=stl",
    "device=cuda:1",
    "++k=3",
    "trainer.ema=0.999 trainer.clip_norm=10 trainer.patience=5",
]


@pytest.mark.parametrize("words", ACCEPTED)
def test_accepted(words: str, core: FakeCore, folder: Path):
    assert main(["train", *words.split()]) == 0
    assert len(core.trained) == 1
    # The run folder is the core's to make; hydra must leave nothing behind.
    assert not list(folder.iterdir())


def test_traceback_on_request(core: FakeCore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["train", "k=0"]) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "vaebench: k must be >= 1, got 0"


# One run.


def test_the_run_s_command_is_recorded(core: FakeCore):
    before = sys.argv
    assert main(["train", "k=2", "encoder=hvm"]) == 0
    assert core.commands == [["vaebench", "train", "k=2", "encoder=hvm"]]
    assert sys.argv is before


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (
            UserError("the outputs folder cannot be written"),
            2,
            "vaebench: the outputs folder cannot be written",
        ),
        (RunFailed("the loss is not finite at step 3"), 1, "vaebench: the loss is not finite at step 3"),
        (
            PermissionError(13, "Permission denied", "/outputs/x"),
            2,
            "vaebench: /outputs/x: Permission denied",
        ),
        (ZeroDivisionError("a defect"), 1, "ZeroDivisionError: a defect"),
        (KeyboardInterrupt(), 130, "vaebench: interrupted"),
        (SystemExit(143), 143, ""),
    ],
)
def test_exit_codes_of_a_run(
    failure: BaseException, code: int, message: str, core: FakeCore, capfd: pytest.CaptureFixture[str]
):
    core.failures[0] = failure
    assert main(["train"]) == code
    err = capfd.readouterr().err
    assert message in err
    # Only a defect of the program shows its traceback.
    assert ("Traceback" in err) == isinstance(failure, ZeroDivisionError)


def test_resume(core: FakeCore):
    assert main(["train", "--resume", "outputs/run"]) == 0
    assert main(["train", "--resume", "outputs/run", "trainer.epochs=9", "device=cpu", "data_dir=2026_11"]) == 0
    changes = {"trainer.epochs": 9, "device": "cpu", "data_dir": "2026_11"}
    assert core.resumed == [(Path("outputs/run"), {}), (Path("outputs/run"), changes)]


def test_fresh(core: FakeCore):
    assert main(["train", "k=2", "--fresh"]) == 0
    assert main(["train", "k=2"]) == 0
    assert core.fresh == [True, False]
    assert core.commands == [["vaebench", "train", "k=2"]] * 2


def test_home_folder_is_spelt_out(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert main(["train", "data_dir=~/data"]) == 0
    assert core.trained[0].data_dir == "/home/me/data"


def test_data_dir_from_the_environment(core: FakeCore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VAEBENCH_DATA_DIR", "/there")
    main(["train"])
    main(["train", "data_dir=/here"])
    assert [config.data_dir for config in core.trained] == ["/there", "/here"]


def test_own_yaml_files(core: FakeCore, folder: Path, capfd: pytest.CaptureFixture[str]):
    own = folder / "mine" / "encoder"
    own.mkdir(parents=True)
    (own / "wide.yaml").write_text("# vaebench train encoder=wide\n# Wider.\ndefaults: [sivi]\npsi_dim: 3\n")
    words = ["--config-dir", str(folder / "mine")]
    assert main(["train", "encoder=wide", "encoder.psi_dim=4", *words]) == 0
    assert core.trained[0].encoder.arguments.items() >= {"psi_dim": 4, "share_psi": False}.items()
    assert main(["train", "encoder=wide", "encoder.psi_dim=x", *words]) == 2
    assert "encoder.psi_dim must be an integer, got 'x'" in capfd.readouterr().err
    assert main(["list", "encoder", *words]) == 0
    assert re.search(r"^    wide +Wider\.", capfd.readouterr().out, re.MULTILINE)
    assert main(["train", "--help", *words]) == 0
    assert re.search(r"\*gaussian .*hvm .*sivi .*wide", capfd.readouterr().out, re.DOTALL)


# Sweeps.


def test_sweep_runs_every_combination(core: FakeCore, folder: Path):
    assert main(["train", "k=2,3", "-m", "encoder=gaussian,hvm", "objective=iwae"]) == 0
    cells = [(config.k, config.encoder.name, config.objective.name) for config in core.trained]
    assert cells == [(2, "gaussian", "iwae"), (2, "hvm", "iwae"), (3, "gaussian", "iwae"), (3, "hvm", "iwae")]
    assert core.commands[1] == ["vaebench", "train", "k=2", "encoder=hvm", "objective=iwae"]
    assert [path.name for path in folder.iterdir()] == ["outputs"]
    assert [path.name for path in (folder / "outputs").iterdir()] == [".sweeps"]


def test_sweep_goes_on_after_a_failure(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    core.failures = {0: RunFailed("the loss is not finite"), 2: ZeroDivisionError("a defect")}
    assert main(["train", "-m", "seed=range(4)"]) == 1
    assert [config.seed for config in core.trained] == [1, 3]
    lines = capfd.readouterr().err.splitlines()
    assert "[job 1/4] vaebench: failed: seed=0: the loss is not finite" in lines
    assert "[job 3/4] vaebench: failed: seed=2: ZeroDivisionError: a defect" in lines
    assert lines[-1] == "vaebench: 2 of 4 jobs failed: see the table above"


def test_sweep_with_an_impossible_cell(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    assert main(["train", "-m", "objective=hvm", "encoder=gaussian,hvm"]) == 1
    assert len(core.trained) == 1
    assert "failed: objective=hvm encoder=gaussian: objective=hvm needs" in capfd.readouterr().err


def test_sweep_of_impossible_cells_only(core: FakeCore):
    assert main(["train", "-m", "objective=hvm", "encoder=gaussian", "k=1,2"]) == 2


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm", "ray"])
def test_a_launcher_that_is_not_installed(
    launcher: str, core: FakeCore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train", "-m", "k=1,2", f"hydra/launcher={launcher}"]) == 2
    assert re.search(r"needs \w+: pip install 'vaebench\[\w+\]'\n", capfd.readouterr().err)
    assert not core.trained


@pytest.mark.parametrize("words", ["encoder=gaussian,foo", "k=1,2 foo=1", "k=1,2 lr=3"])
def test_sweep_is_refused_before_its_first_job(words: str, core: FakeCore, capfd: pytest.CaptureFixture[str]):
    assert main(["train", "-m", *words.split()]) == 2
    assert not core.trained
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_signal_stops_a_sweep(stop: BaseException, code: int, core: FakeCore):
    core.failures[1] = stop
    assert main(["train", "-m", "seed=0,1,2"]) == code
    assert [config.seed for config in core.trained] == [0]


def test_sweep_into_an_unwritable_folder(core: FakeCore, folder: Path, capfd: pytest.CaptureFixture[str]):
    (folder / "outputs").write_text("a file, not a folder")
    assert main(["train", "-m", "k=1,2"]) == 2
    err = capfd.readouterr().err
    assert "outputs" in err
    assert "Traceback" not in err


# The other commands.


def test_evaluate_one_run(core: FakeCore, folder: Path):
    run = make_run(folder / "outputs/a")
    assert main(["evaluate", str(run), "estimator=iwae", "estimator.k=7"]) == 0
    assert core.evaluated == [(run, ["estimator=iwae", "estimator.k=7"])]


def test_evaluate_every_run_below_a_folder(core: FakeCore, folder: Path, capfd: pytest.CaptureFixture[str]):
    make_run(folder / "sweep/broken/1")
    make_run(folder / "sweep/k=2/1")
    assert main(["evaluate", "sweep", "sweep/k=2"]) == 1
    assert [path for path, _ in core.evaluated] == [Path("sweep/broken/1"), Path("sweep/k=2/1")]
    err = capfd.readouterr().err.splitlines()
    assert err[0] == "vaebench: failed: sweep/broken/1: its checkpoint is truncated"
    assert err[-1].startswith("vaebench: 1 of 2 evaluations failed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "missing RUN"),
        ("nowhere", "nowhere"),
        (".", "not a run folder"),
        ("run k=3", "unknown key k (did you mean 'estimator.k'?)"),
        ("run estimator.k=0", "estimator.k must be >= 1, got 0"),
        ("run --foo", "unknown flag --foo"),
    ],
)
def test_evaluate_refuses(words: str, message: str, core: FakeCore, folder: Path, capfd: pytest.CaptureFixture[str]):
    if "run" in words.split():
        make_run(folder / "run")
    assert main(["evaluate", *words.split()]) == 2
    assert message in capfd.readouterr().err
    assert not core.evaluated


def test_list(capfd: pytest.CaptureFixture[str]):
    assert main(["list"]) == 0
    out = capfd.readouterr().out
    for line in ("encoder", r"  \* gaussian +Diagonal Gaussian", "    hvm +Hierarchical", "experiment"):
        assert re.search(rf"^{line}", out, re.MULTILINE)
    assert main(["list", "encoder"]) == 0
    assert capfd.readouterr().out.splitlines()[0] == "encoder"
    assert main(["list", "encoders"]) == 2
    assert "there is no group 'encoders' (did you mean 'encoder'?)" in capfd.readouterr().err


def test_data(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # where no other test has prepared it
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["data", f"data_dir={folder}"]) == 0
    first, *lines = capfd.readouterr().out.splitlines()
    assert first == f"data_dir: {folder}"
    assert any(line.split()[:3] == ["mnist5k", "found", "4,000/500/500"] for line in lines)
    assert max(map(len, lines)) <= 80
    assert main(["data", "mnist5k", f"data_dir={folder}"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("mnist5k/dynamic-v1: 4,000/500/500 images, fingerprint ")
    assert str(folder) in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mnst", "mnist"),
        ("mnist5k binarization=foo", "foo"),
        ("mnist5k seed=x", "seed must be an integer, got 'x'"),
        ("mnist5k sed=1", "unknown key sed (did you mean 'seed'?)"),
        ("split=iwae", "missing DATASET"),
        ("--foo", "unknown flag --foo"),
        ("mnist --no-download", "dataset=mnist5k"),
    ],
)
def test_data_refuses(
    words: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("VAEBENCH_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    assert main(["data", *words.split()]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err


# Help, version, completion.


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help(words: list[str], capfd: pytest.CaptureFixture[str]):
    assert main(words) == 0
    out = capfd.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)


SCHEMAS: dict[str, Any] = {
    "sample": Sample,
    "reconstruct": Reconstruct,
    "interpolate": Interpolate,
    "traverse": Traverse,
    "diagnose": Diagnosis,
    "encode": Encoding,
}


def examples_of(command: str) -> list[str]:
    """Return the examples at the end of a help text."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main([command, "--help"])
    return text.getvalue().partition("\nexamples:\n")[2].strip("\n").split("\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_short_and_ends_with_examples(command: str, capfd: pytest.CaptureFixture[str]):
    assert main([command, "--help"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) <= 40
    examples = lines[lines.index("examples:") + 1 :]
    assert len(examples) >= 2
    assert all(line.startswith("  vaebench ") for line in examples)
    assert main([command, "-h", "k=0"]) == 0


EXAMPLES = [example for command in COMMANDS for example in examples_of(command)]


def test_all_commands_have_examples():
    assert {shlex.split(example)[1] for example in EXAMPLES} == set(COMMANDS)


def test_a_job_knows_the_published_result_of_its_experiment(core: FakeCore):
    words = ["train", "experiment=iwhvi_paper/mnist_iwhvi"]
    assert main(words) == 0
    assert main([*words, "latent_dim=3"]) == 0
    assert main([*words, "-m", "latent_dim=32,3"]) == 0
    values = [config.published and config.published.value for config in core.trained]
    assert values == [-83.9, None, -83.9, None]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_a_help_text_is_valid(example: str, core: FakeCore, capfd: pytest.CaptureFixture[str]):
    """Settings compose and flags exist. Runs and data that an example names do not exist here."""
    words = [word for word in shlex.split(example, comments=True)[1:] if not word.startswith(("device=", "--open"))]
    command = words[0]
    for path in ("outputs/mnist5k/hvm-iwae-k16/0-1a2b3c4d", "outputs/mnist/iwhvi-iwhvi-k1/0-1a2b3c4d"):
        make_run(Path(path), "encoder=iwhvi")
    make_run(Path("outputs/mnist/gaussian-elbo-k1/0-1a2b3c4d"))
    if any(word.endswith(".vae.zip") for word in words):
        pytest.skip("tests/test_documented_commands.py runs it, on a file of its own")
    if command in ("train", "list", "evaluate"):
        assert main(words) == 0
        assert command != "train" or core.trained or {"--cfg", "--dry-run"} & set(words)
    elif command == "tune":
        compose([word for word in parse(words[1:], TUNE).rest if "," not in word and "(" not in word])
    else:
        flags = {"sample": PICTURE, "reconstruct": PICTURE, "interpolate": PICTURE, "traverse": PICTURE}
        flags |= {"board": BOARD, "compare": COMPARE, "report": REPORT, "show": SHOW, "selftest": SELFTEST, "new": NEW}
        flags |= {"encode": ENCODE, "reproduce": REPRODUCE, "curves": CURVES, "plot": PLOT}
        for flag, count in (("--filter", 1), ("--pair", 2)):
            words = take(words, flag, count)[1]
        known = flags.get(command, HELP | {"--no-download": "--no-download", "--rebuild": "--rebuild"})
        rest = parse(words[1:], known).rest
        schema = SCHEMAS.get(command)
        if schema is not None:
            settings([word for word in rest if "=" in word], schema)


def test_version(capfd: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"vaebench {vaebench.__version__}\n"


def test_unknown_command(capfd: pytest.CaptureFixture[str]):
    assert main(["trian"]) == 2
    assert "there is no command 'trian' (did you mean 'train'?)" in capfd.readouterr().err


def test_cfg_job(core: FakeCore, capfd: pytest.CaptureFixture[str]):
    assert main(["train", "--cfg", "job", "k=3"]) == 0
    assert "\nk: 3\n" in "\n" + capfd.readouterr().out
    assert main(["train", "decoder=iwae", "--resolve", "--cfg=job"]) == 0
    assert "trunk: iwae" in capfd.readouterr().out
    assert not core.trained


def test_flags_may_stand_anywhere():
    parsed = parse(["k=2", "-m", "objective=a,b", "-cd", "x"], TRAIN)
    assert parsed.as_words() == ["--multirun", "--config-dir=x", "k=2", "objective=a,b"]


COMPLETIONS = {
    "vaebench ": {"train", "evaluate", "diagnose", "list", "data"},
    "vaebench tr": {"train"},
    "vaebench train encod": {"encoder="},
    "vaebench train encoder=": {"encoder=gaussian", "encoder=hvm"},
    "vaebench train k=2 -m objective=i": {"objective=iwae", "objective=iwhvi"},
    "vaebench train trainer.ep": {"trainer.epochs="},
    "vaebench train encoder=hvm encoder.psi": {"encoder.psi_dim="},
    "vaebench train experiment=iwhvi_paper/mnist_h": {"experiment=iwhvi_paper/mnist_hvm"},
    "vaebench train --mul": {"--multirun"},
    "vaebench train --resume o": set(),
    "vaebench evaluate outputs/run estimator.inn": {"estimator.inner_k="},
    "vaebench list enc": {"encoder"},
    "vaebench explain trainer.ep": {"trainer.epochs"},
    "vaebench data mnist5": {"mnist5k"},
    "vaebench diagnose outputs/run ima": {"images="},
    "vaebench diagnose outp": set(),
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_completion(line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert main(["-sc", "query=bash"]) == 0
    offered = set(capfd.readouterr().out.split())
    assert offered >= COMPLETIONS[line]
    assert all(word.startswith(line.rpartition(" ")[2]) for word in offered)


def test_completion_script(capfd: pytest.CaptureFixture[str]):
    assert main(["-sc", "install=bash"]) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[-1].endswith("hydra_bash_completion vaebench")
    assert subprocess.run(["bash", "-n"], input=out, text=True).returncode == 0


@pytest.mark.parametrize("words", [[], ["install=foo"], ["foo"]])
def test_completion_refuses(words: list[str], capfd: pytest.CaptureFixture[str]):
    assert main(["-sc", *words]) == 2
    assert "install=SHELL" in capfd.readouterr().err


NO_TORCH = """
import sys
from vaebench.cli import main
commands = (["--help"], ["--version"], ["train", "--help"], ["train", "--cfg", "job"], ["list"],
            ["list", "encoder", "iwhvi"], ["explain", "optimizer.schedule"], ["train", "encoder=iwhvi", "--help"])
codes = [main(words) for words in commands]
import vaebench.config
vaebench.config.compose(["encoder=hvm", "objective=iwae", "k=16"])
assert codes == [0] * 8, codes
assert "torch" not in sys.modules and "numpy" not in sys.modules
main(["-sc", "query=bash"])
assert "torch" not in sys.modules
"""


def run_python(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=os.environ | settings)


def test_nothing_waits_for_torch():
    done = run_python("-c", NO_TORCH, COMP_LINE="vaebench train enc", COMP_POINT="18")
    assert done.returncode == 0, done.stderr


def test_python_m_and_exit_code():
    done = run_python("-m", "vaebench", "train", "k=0")
    assert (done.returncode, done.stderr) == (2, "vaebench: k must be >= 1, got 0\n")


def test_reader_that_stops_reading():
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m vaebench list | true"],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


TINY = "latent_dim=2 decoder.hidden=[8] trainer.epochs=1 trainer.batch_size=1000 estimator.k=2 trainer.image_every=0"


@pytest.mark.parametrize(("pipe", "code"), [("2>&1 | head -n 1", 0), ("optimizer.lr=1e30 >&- 2>&-", 1)])
def test_a_training_continues_when_its_output_has_no_reader(
    pipe: str, code: int, tmp_path: Path, default_data_dir: Path
):
    train = f"{sys.executable} -m vaebench train {TINY} output_dir={tmp_path} data_dir={default_data_dir}"
    done = subprocess.run(
        ["bash", "-c", f"{train} {pipe}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    (folder,) = RunFolder.find([tmp_path])
    assert folder.read_status().state == ("failed" if code else "finished")


def test_a_closed_terminal_saves_and_stops_a_training(tmp_path: Path, default_data_dir: Path):
    """Its SIGHUP comes, and output fails from then on."""
    words = [*TINY.split(), f"output_dir={tmp_path}", f"data_dir={default_data_dir}"]
    leader, follower = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "vaebench", "train", *words], stdin=follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        while b"folder " not in os.read(leader, 4096):
            pass
        os.close(leader)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=120) == 129
    (folder,) = RunFolder.find([tmp_path])
    assert folder.read_status().state == "interrupted"


@pytest.mark.skipif(sys.platform != "linux", reason="torch's threads are libgomp's on Linux only")
@pytest.mark.parametrize(
    ("variables", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_threads_do_not_take_the_cores_from_other_processes(variables: dict[str, str], spins: str):
    """libgomp prints what it read when torch loaded it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = [sys.executable, "-c", "from vaebench.cli import main; main(['--version']); import torch"]
    environment = kept | variables | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == [spins]


PRESSED = """
import os, signal
from vaebench.signals import Interruption, note_for_next_job
{}
with Interruption().watching() as interruption:
    os.kill(os.getpid(), signal.{})
assert interruption.signal == signal.{}
"""


@pytest.mark.parametrize(
    ("name", "before", "lines"),
    [("SIGINT", "", 1), ("SIGTERM", "", 0), ("SIGINT", "note_for_next_job()", 0)],
    ids=["ctrl_c", "kill", "ctrl_c_to_a_worker"],
)
def test_a_terminal_gets_one_answer_to_ctrl_c(name: str, before: str, lines: int):
    """Annealing 100 images stops minutes after it: without an answer, a user presses again and loses them.

    Each worker of a sweep gets the signal too, and only the sweep answers.
    """
    leader, follower = os.openpty()
    code = PRESSED.format(before, name, name)
    assert subprocess.run([sys.executable, "-c", code], stderr=follower, check=True).returncode == 0
    os.write(follower, b"end")
    shown = os.read(leader, 4096)
    os.close(leader)
    os.close(follower)
    assert shown.count(b"press Ctrl-C again") == lines
    assert run_python("-c", code).stderr == ""


@pytest.mark.parametrize(("before", "noted"), [(signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, None)])
def test_a_signal_that_nohup_ignores_stays_ignored(before: signal.Handlers, noted: signal.Signals | None):
    kept = signal.signal(signal.SIGHUP, before)
    try:
        with Interruption().watching() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.signal == noted
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, kept)


def test_a_signal_to_a_worker_without_a_job_stops_its_next_job(monkeypatch: pytest.MonkeyPatch):
    """The worker itself goes on: it would take the other workers of its pool with it."""
    monkeypatch.setattr(signals, "_NOTED", Interruption())
    kept = {number: signal.getsignal(number) for number in signals.stopping_signals()}
    try:
        signals.note_for_next_job()
        for number in kept:
            os.kill(os.getpid(), number)
        with Interruption().watching() as interruption:
            assert interruption.signal in kept
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


HELP_ALONE = """
import sys
from vaebench.cli import main
assert main(["--help"]) == 0
slow = {"torch", "numpy", "hydra", "omegaconf", "yaml", "rich", "scipy", "tensorboard"} & sys.modules.keys()
assert not slow, slow
"""


def test_help_imports_no_slow_package():
    """It answers at once: a limit of seconds would fail on a busy machine."""
    done = run_python("-c", HELP_ALONE)
    assert done.returncode == 0, done.stderr
    control = run_python("-c", "import omegaconf\n" + HELP_ALONE)
    assert "omegaconf" in control.stderr
