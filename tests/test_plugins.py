"""Encoders, priors, networks, likelihoods, bounds, estimators and data of installed packages and of files."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_runs import composed, made_by, made_run, record

import vaebench
from vaebench import config, plugins
from vaebench.cli import main
from vaebench.config.catalog import config_folders
from vaebench.errors import UserError
from vaebench.records import ResultRecord, RunFolder, read_manifest, read_results
from vaebench.records.current import split_results
from vaebench.records.source import source_digest

STRANGER = '''
"""A package of a stranger: one of each kind."""

import numpy as np

from vaebench import bounds
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.evaluate.importance import importance_weighted
from vaebench.nets.dense import MLP, BernoulliLikelihood
from vaebench.objective import Objective
from vaebench.priors import StandardNormalPrior
from stranger.amount import AMOUNT


class Encoder(GaussianEncoder):
    @classmethod
    def build(cls, context, *, amount):
        if amount <= 0:
            raise ValueError(f"amount must be > 0, got {amount}")
        return super().build(context)


class Prior(StandardNormalPrior):
    pass


class Trunk(MLP):
    pass


class Likelihood(BernoulliLikelihood):
    pass


def bound(gradient, scale):
    return Objective(bounds.iwae, gradient)


def estimator(inputs):
    return importance_weighted(inputs)


def images(data_dir, count):
    draw = np.random.default_rng(0).integers(0, 256, (count, 1, 6, 6))
    return {"images": draw.astype(np.uint8)}
'''
ENTRIES = {
    "encoder": "Encoder.build",
    "prior": "Prior.build",
    "decoder": "Trunk",
    "likelihood": "Likelihood",
    "objective": "bound",
    "estimator": "estimator",
    "dataset": "images",
}
YAML = {
    "encoder": "name: {0}\ntrunk: ${{decoder.name}}\nhidden: ${{decoder.hidden}}\nactivation: ${{decoder.activation}}\n"
    "amount: 0.5",
    "prior": "name: {0}",
    "decoder": "name: {0}\nhidden: [8]\nactivation: tanh",
    "likelihood": "name: {0}",
    "objective": "name: {0}\nbound: {0}\ngradient: reparam\nscale: 1.0",
    "estimator": "name: {0}\nk: 3\nsplit: test\nrepeats: 1\nsteps: 0.5",
    "dataset": "name: {0}\nbinarization: dynamic\nsplit: default\nseed: 0\ncount: 60",
}
ALL = [f"{kind}=odd_{kind}" for kind in ENTRIES]
SMALL = ["latent_dim=2", "trainer.epochs=1", "trainer.batch_size=50", "trainer.validation_k=2", "device=cpu"]
SMALL += ["trainer.progress=false", "trainer.image_every=0"]


def write_configs(folder: Path, prefix: str = "odd_") -> None:
    for kind, text in YAML.items():
        path = folder / kind / f"{prefix}{kind}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(f"# vaebench train {kind}={prefix}{kind}\n# a strange {kind}\n{text.format(prefix + kind)}\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with an installed package that has one plug-in of each kind."""
    site = tmp_path / "site"
    (site / "stranger").mkdir(parents=True)
    (site / "stranger" / "__init__.py").write_text("print('the package was imported')\n")
    (site / "stranger" / "amount.py").write_text("AMOUNT = 1\n")
    (site / "stranger" / "parts.py").write_text(STRANGER)
    write_configs(site / "stranger" / "configs")
    about = site / "vaebench_stranger-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vaebench-stranger\nVersion: 1.2\n")
    lines = [f"[vaebench.{kind}]\nodd_{kind} = stranger.parts:{entry}\n" for kind, entry in ENTRIES.items()]
    (about / "entry_points.txt").write_text("\n".join(lines))
    return site


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(site)
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        del sys.modules[name]


LAB = """
from vaebench.encoders.gaussian import GaussianEncoder
import lab_settings

class Encoder(GaussianEncoder):
    @classmethod
    def build(cls, context, *, amount):
        return super().build(context)

PLUGINS = {"encoder": {"lab_encoder": Encoder.build}}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A file in progress, with a space in its path, a module beside it and its yaml file in configs/ beside it."""
    folder = tmp_path / "my lab"
    (folder / "configs" / "encoder").mkdir(parents=True)
    (folder / "lab.py").write_text(LAB)
    (folder / "lab_settings.py").write_text("WIDTH = 1\n")
    text = YAML["encoder"].format("lab_encoder")
    (folder / "configs" / "encoder" / "lab_encoder.yaml").write_text(f"# train\n# of the lab\n{text}\n")
    return folder / "lab.py"


@pytest.fixture
def where(tmp_path: Path, default_data_dir: Path) -> list[str]:
    return [*SMALL, "decoder.hidden=[8]", f"output_dir={tmp_path / 'outputs'}", f"data_dir={default_data_dir}"]


Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a command of vaebench in a process of its own."""

    def run(*words: str, site: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(site)} if site else {})
        command = [sys.executable, "-m", "vaebench", *words]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def test_every_kind_of_an_installed_package_works(installed: Path, where: list[str], tmp_path: Path):
    """Train with one of each kind at once, then evaluate, with two processes too, and resume."""
    where = [word for word in where if not word.startswith("decoder")]
    assert main(["train", *ALL, *where]) == 0
    (run,) = RunFolder.find([tmp_path / "outputs"])
    remembered = read_manifest(run)["plugins"]
    assert {one["kind"]: one["name"] for one in remembered} == {kind: f"odd_{kind}" for kind in ENTRIES}
    assert {(one["distribution"], one["version"], one["file"]) for one in remembered} == {
        ("vaebench-stranger", "1.2", None)
    }
    assert read_manifest(run)["dataset"]["protocol"].startswith("odd_dataset-")
    (result,) = read_results(run)
    assert result.provenance is not None
    assert result.provenance.estimator_code == remembered[0]["digest"]
    assert result.provenance.estimator_plugin == "odd_estimator"
    assert split_results(run, config.identity(config.read(run.path)))[0] == [result]
    assert main(["evaluate", str(run.path), "estimator=iwae", "estimator.k=3", "progress=false"]) == 0
    assert {record.estimator for record in read_results(run)} == {"IWAE"}
    assert main(["train", "--resume", str(run.path)]) == 0
    experiment = vaebench.load(run.path)
    assert type(experiment.encoder).__module__ == "stranger.parts"


def test_a_result_of_another_version_of_its_estimator_is_left_out(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A command that reads runs compares the source without an import; without the package the last version counts."""
    plugin = plugins.find("estimator", "odd_estimator")
    assert plugin is not None
    source = installed / "stranger" / "parts.py"
    assert plugin.source == source
    now = source_digest((), files=[source])

    def result(k: int, code: str | None, name: str | None) -> ResultRecord:
        return record(-100.0, k=k, provenance=made_by(run=identity, estimator_code=code, estimator_plugin=name))

    identity = config.identity(composed(()))
    versions = [result(1, now, "odd_estimator"), result(2, "0" * 16, "odd_estimator")]
    others = [result(3, None, None), result(4, "0" * 16, None)]  # of ours, and of an early version
    run = made_run(tmp_path, results=[*versions, *others])

    def left_out() -> dict[int | None, str]:
        return {record.k: fault for record, fault in split_results(run, identity)[1]}

    assert left_out() == {2: "another version of the estimator"}
    assert "stranger" not in sys.modules
    (installed / "stranger" / "amount.py").write_text("AMOUNT = 2\n")  # a file that the estimator's module imports
    assert set(left_out()) == {1, 2}
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(installed)])
    assert set(left_out()) == {1}


def test_processes_of_an_evaluation_find_the_file(
    lab: Path, where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--plugin", "my lab/lab.py", "encoder=lab_encoder", "trainer.evaluate=false", *where]
    assert main(train) == 0
    (run,) = RunFolder.find([tmp_path / "outputs"])
    words = ["estimator.images=40", "estimator.batch=10", "estimator.k=4", "processes=2", "progress=false"]
    assert main(["evaluate", str(run.path), *words, "--plugin", str(lab)]) == 0
    # The recorded command, typed by hand in another folder, finds the run.
    command = read_manifest(run)["command"]
    assert command[2] == f"--plugin={lab}"
    monkeypatch.chdir(lab.parent)
    assert main(shlex.split(shlex.join(command[1:]))) == 0
    assert "this run is finished" in capfd.readouterr().out


def test_a_run_says_which_file_it_needs(
    lab: Path, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", "--plugin", str(lab), "encoder=lab_encoder", "trainer.evaluate=false", *where]) == 0
    (run,) = RunFolder.find([tmp_path / "outputs"])
    for command in (["evaluate"], ["sample"], ["diagnose"], ["train", "--resume"]):
        assert main([*command, str(run.path)]) == 2
        assert f"needs encoder 'lab_encoder' of {lab}: add --plugin {shlex.quote(str(lab))}" in capsys.readouterr().err
    assert main(["show", str(run.path)]) == 0  # reading needs no plug-in
    shown = capsys.readouterr().out
    assert f"'--plugin={lab}'" in shown
    assert main(["sample", str(run.path), "device=cpu", "--plugin", str(lab)]) == 0


def test_a_changed_file_is_other_code(lab: Path, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["train", "encoder=lab_encoder", "trainer.evaluate=false", *where]
    assert main([*words, "--plugin", str(lab)]) == 0
    (run,) = RunFolder.find([tmp_path / "outputs"])
    before = read_manifest(run)["code"]
    (lab.parent / "lab_settings.py").write_text("WIDTH = 2\n")  # a module beside the file
    capsys.readouterr()
    assert main([*words, "--plugin", str(lab)]) == 0
    assert f"has changed since this run was trained (digest {before}" in capsys.readouterr().out


def test_workers_of_a_sweep_find_the_file(lab: Path, where: list[str], tmp_path: Path, shell: Shell):
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "trainer.evaluate=false", *where]
    shell("train", "-m", "--plugin", "my lab/lab.py", "encoder=lab_encoder", *words)
    runs = RunFolder.find([tmp_path / "outputs"])
    assert [read_manifest(run)["command"][2] for run in runs] == [f"--plugin={lab}"] * 2
    (sweep,) = (tmp_path / "outputs").rglob("sweep.json")
    facts = json.loads(sweep.read_text())
    assert [job["status"] for job in facts["jobs"]] == ["finished", "finished"]
    assert facts["command"][:4] == ["vaebench", "train", f"--plugin={lab}", "--multirun"]


def test_a_recorded_command_has_the_config_folder(where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = tmp_path / "own yaml" / "encoder" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(YAML["encoder"].format("gaussian").replace("amount: 0.5", ""))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config-dir", "own yaml", "encoder=mine", "trainer.evaluate=false", *where]) == 0
    (run,) = RunFolder.find([tmp_path / "outputs"])
    command = read_manifest(run)["command"]
    assert f"--config-dir={own.parents[1]}" in command
    monkeypatch.chdir("/")
    assert main(command[1:]) == 0


@pytest.mark.usefixtures("installed")
def test_names_are_read_without_an_import(capsys: pytest.CaptureFixture[str]):
    assert plugins.find("encoder", "odd_encoder") is not None
    assert main(["list", "encoder"]) == 0
    out = capsys.readouterr().out
    assert "a strange encoder [vaebench-stranger 1.2]" in out
    assert "stranger.parts" not in sys.modules
    assert "stranger" not in sys.modules
    config = vaebench.config.compose(["encoder=odd_encoder", "encoder.amount=2.0"])  # pyright: ignore
    assert config.encoder.amount == 2.0
    assert "stranger" not in sys.modules


@pytest.mark.usefixtures("installed")
def test_messages_about_settings_of_a_plugin(where: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["train", "encoder=odd_encoder", "encoder.amount=-1.0", *where]) == 2
    assert "encoder.amount must be > 0, got -1.0" in capsys.readouterr().err
    assert main(["train", "encoder=odd_encoder", "encoder.amuont=1.0", *where]) == 2
    assert "amuont" in capsys.readouterr().err


def test_list_and_completion_show_a_file(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["list", "encoder", "--plugin", str(lab)]) == 0
    assert "of the lab [lab.py]" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", f"vaebench train --plugin={str(lab).replace('my lab', 'my_lab')} encoder=lab")
    shutil.copytree(lab.parent, lab.parent.parent / "my_lab")
    (lab.parent.parent / "my_lab" / "lab.py").write_text("raise SystemExit('imported')\n")
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["encoder=lab_encoder"]
    assert main(["list", "encoder"]) == 0
    assert "lab_encoder" not in capsys.readouterr().out


def test_a_name_of_ours_is_refused(lab: Path, where: list[str], capsys: pytest.CaptureFixture[str]):
    lab.write_text(LAB.replace('"lab_encoder"', '"gaussian"'))
    assert main(["train", "--plugin", str(lab), "encoder=gaussian", *where]) == 2
    assert "encoder 'gaussian' is a name of vaebench, and" in capsys.readouterr().err


def test_a_yaml_file_of_ours_is_refused(lab: Path, capsys: pytest.CaptureFixture[str]):
    other = lab.parent / "configs" / "encoder" / "hvm.yaml"
    other.write_text("name: lab_encoder\n")
    assert main(["list", "--plugin", str(lab)]) == 2
    assert f"{other} has the name of a file of vaebench: rename it" in capsys.readouterr().err
    other.rename(lab.parent / "configs" / "train.yaml")
    assert main(["list", "--plugin", str(lab)]) == 2
    (lab.parent / "configs" / "train.yaml").unlink()
    (lab.parent / "configs" / "hydra" / "launcher").mkdir(parents=True)
    (lab.parent / "configs" / "hydra" / "launcher" / "new.yaml").write_text("_target_: os.system\n")
    assert main(["list", "--plugin", str(lab)]) == 2
    assert "is in no group of vaebench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module", "lab.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1", 'needs a dictionary, for example PLUGINS = {"encoder"'),
        ("PLUGINS = {'encoders': {}}", "PLUGINS has the kind 'encoders'; valid: encoder, prior"),
        ("PLUGINS = {'encoder': {'lab_encoder': 3}}", "must be a function, got 3"),
    ],
)
def test_a_defect_in_a_file_is_one_message(
    text: str, words: str, lab: Path, where: list[str], capsys: pytest.CaptureFixture[str]
):
    lab.write_text(text)
    assert main(["train", "--plugin", str(lab), "encoder=lab_encoder", *where]) == 2
    assert words in capsys.readouterr().err


def test_missing_files_and_modules(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--plugin", str(tmp_path / "none.py")]) == 2
    assert f"there is no Python file {tmp_path / 'none.py'}" in capsys.readouterr().err
    assert main(["train", "--plugin"]) == 2
    assert "--plugin needs 1 value" in capsys.readouterr().err
    assert main(["train", "--plugin", "no_such_module_at_all"]) == 2
    assert "No module named 'no_such_module_at_all'" in capsys.readouterr().err


def test_a_module_and_a_file_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "labpackage"
    (package / "configs" / "encoder").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "near.py").write_text("X = 1\n")
    (package / "lab.py").write_text("from .near import X\nPLUGINS = {'encoder': {'lab_encoder': dict}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for word in ("labpackage.lab", "labpackage/lab.py"):
        with plugins.using([word]):
            found = plugins.find("encoder", "lab_encoder")
            assert found is not None
            assert found.module == "labpackage.lab"
            assert config_folders()[1:] == [package / "configs"]
    assert plugins.find("encoder", "lab_encoder") is None
    assert plugins.given() == ()


def test_the_python_functions_take_a_file(lab: Path, where: list[str]):
    with plugins.using([]):
        plugins.use(lab)
        experiment = vaebench.build(["encoder=lab_encoder", *where])
        assert type(experiment.encoder).__qualname__ == "Encoder"
    with pytest.raises(UserError, match="there is no encoder=lab_encoder"):
        vaebench.build(["encoder=lab_encoder", *where])


def test_a_run_folder_causes_no_import(lab: Path, where: list[str], tmp_path: Path):
    """A run folder that names a file, or a module on the path, does not load it."""
    assert main(["train", "encoder=gaussian", "trainer.evaluate=false", *where]) == 0
    (run,) = RunFolder.find([tmp_path / "outputs"])
    trap = tmp_path / "trap.py"
    trap.write_text("raise AssertionError('imported')\n")
    manifest = json.loads(run.manifest.read_text())
    trapped = {"kind": "encoder", "name": "trap", "distribution": None, "version": None, "file": str(trap)}
    run.manifest.write_text(json.dumps({**manifest, "plugins": [{**trapped, "digest": "0"}]}))
    assert main(["sample", str(run.path), "device=cpu"]) == 2
    run.manifest.write_text(json.dumps(manifest))
    text = (run.path / "config.yaml").read_text()
    assert "{name: gaussian," in text or "name: gaussian" in text
    (run.path / "config.yaml").write_text(text.replace("name: gaussian", "name: 'trap:Trap'"))
    assert main(["sample", str(run.path), "device=cpu"]) == 2
    assert "trap" not in sys.modules


IMAGES_NETWORK = """
from torch import nn
from vaebench.nets.convolutional import GatedConvDecoder, GatedConvTrunk

class Network(GatedConvTrunk):
    decoder = GatedConvDecoder

PLUGINS = {"decoder": {"lab_conv": Network}}
"""


def test_a_network_for_images(lab: Path, where: list[str]):
    """A decoder's function with an attribute ``decoder`` gets the shape of the images."""
    lab.write_text(IMAGES_NETWORK)
    folder = lab.parent / "configs" / "decoder"
    folder.mkdir()
    (folder / "lab_conv.yaml").write_text("# train\n# of the lab\nname: lab_conv\nhidden: [4, 8]\nactivation: relu\n")
    words = [word for word in where if not word.startswith("decoder.")]
    with plugins.using([str(lab)]):
        experiment = vaebench.build(["decoder=lab_conv", *words])
        ours = vaebench.build(["decoder=gated_conv", "decoder.hidden=[4,8]", *words])
    assert {type(part).__name__ for part in experiment.model.modules()} >= {"GatedConvDecoder", "ConvolutionalDecoder"}
    shapes = {name: value.shape for name, value in experiment.modules.state_dict().items()}
    assert shapes == {name: value.shape for name, value in ours.modules.state_dict().items()}
    assert experiment.code != ours.code


@pytest.mark.usefixtures("installed")
def test_a_likelihood_of_a_plugin_is_checked_by_its_measure(where: list[str], installed: Path):
    """Grey levels are refused for binary pixels by the class, also where the command line does not know the name."""
    parts = installed / "stranger" / "parts.py"
    text = parts.read_text().replace("BernoulliLikelihood", "ContinuousBernoulliLikelihood")
    parts.write_text(text.replace("MLP, Cont", "MLP\nfrom vaebench.likelihoods import Cont"))
    with pytest.raises(UserError, match="likelihood=odd_likelihood needs grey levels"):
        vaebench.build(["likelihood=odd_likelihood", *where])
    vaebench.build(["likelihood=odd_likelihood", "dataset.binarization=none", *where])


def test_data_commands_know_a_dataset(installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "odd_dataset", f"data_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "odd_dataset-" in out
    assert "48/6/6 images" in out
    assert main(["data", f"data_dir={tmp_path}"]) == 0
    assert "odd_dataset: a plug-in" in capsys.readouterr().out
