"""Every yaml under configs/ composes and names its command; a run's identity holds what defines its model."""

import random
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from vaebench.config import compose, config_dir, for_evaluation, from_yaml, identity, read, run_folder, to_yaml
from vaebench.config.catalog import described, groups
from vaebench.config.identity import defining
from vaebench.errors import UserError
from vaebench.registry import LIKELIHOODS

FILES = sorted(path.relative_to(config_dir()).as_posix() for path in config_dir().rglob("*.yaml"))
HYDRA_S = [name for name in FILES if name.startswith("hydra/")]
# tests/test_presets.py has the same tests of experiments, of which there are many.
CHOICES = [name for name in FILES if "/" in name and name not in HYDRA_S and not name.startswith("experiment/")]
# What has to be said for a choice to make sense; all other choices stand alone.
COMPANIONS = {"estimator/diwhvi.yaml": ["encoder=iwhvi"], "dataset/own.yaml": ["dataset.path=images.npz"]}
COMPANIONS |= {f"likelihood/{name}.yaml": ["dataset.binarization=none"] for name in LIKELIHOODS}


@pytest.fixture
def images_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with images.npz, which the first line of own.yaml names."""
    np.savez(tmp_path / "images.npz", np.zeros((20, 4, 4)))
    monkeypatch.chdir(tmp_path)


def first_lines(name: str) -> list[str]:
    """Return the file's lines without hydra's package header, which has to come first where there is one."""
    lines = (config_dir() / name).read_text().splitlines()
    return lines[1:] if lines[0] == "# @package _global_" else lines


def word_for(name: str) -> str:
    """Return ``encoder=hvm`` for ``encoder/hvm.yaml``."""
    group, choice = name.removesuffix(".yaml").split("/", 1)
    return f"{group}={choice}"


def test_all_files_are_found():
    # A pattern that misses a folder would leave these tests green and empty.
    assert len(FILES) >= 31
    assert {name.split("/")[0] for name in CHOICES} == set(groups([config_dir()])) - {"experiment"}


@pytest.mark.parametrize("name", CHOICES)
def test_choice_composes(name: str, images_npz: None):
    config = compose([word_for(name), *COMPANIONS.get(name, [])])
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize("name", ["train.yaml", "evaluate.yaml", *CHOICES])
def test_first_line_is_the_command_that_uses_the_file(name: str, images_npz: None):
    command = first_lines(name)[0]
    match = re.fullmatch(r"# vaebench (train|evaluate RUN)( .*)?", command)
    assert match, command
    overrides = shlex.split(match[2] or "")
    assert name in ("train.yaml", "evaluate.yaml") or word_for(name) in overrides
    if match[1] == "train":
        compose(overrides)
    else:
        for_evaluation(compose(["encoder=iwhvi"]), overrides)


@pytest.mark.parametrize("name", HYDRA_S)
def test_first_lines_of_a_launcher_say_how_to_use_it(name: str):
    command, summary = first_lines(name)[:2]
    group, choice = name.removesuffix(".yaml").rsplit("/", 1)
    assert command.startswith("# vaebench train -m ")
    assert f" {group}={choice} " in command or group == "hydra/sweeper"
    assert 10 <= len(summary) <= 110


@pytest.mark.parametrize("name", CHOICES)
def test_second_line_is_one_short_sentence(name: str):
    line = first_lines(name)[1]
    assert line.startswith("# ")
    assert 10 <= len(line) <= 110
    group, choice = name.removesuffix(".yaml").split("/", 1)
    (listed,) = [listed for listed in described(group, [config_dir()]) if listed.choice == choice]
    assert listed.summary == line[2:]
    assert listed.command == first_lines(name)[0][2:]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["objective=hvm"], ("hvm", "elbo", 0)),
        (["objective=sivi"], ("sivi", "elbo", 5)),
        (["objective=iwhvi"], ("iwhvi", "elbo", 5)),
        (["objective=hvm", "encoder=iwhvi"], ("iwhvi", "elbo", 0)),
        (["objective=hvm", "encoder=sivi"], ("sivi", "elbo", 0)),
        (["objective=iwhvi", "encoder=hvm"], ("hvm", "elbo", 5)),
        (["encoder=hvm", "objective=iwhvi", "encoder.inner_k=9"], ("hvm", "elbo", 9)),
        (["encoder=hvm", "objective=iwae", "k=16"], ("hvm", "iwae", 0)),
        (["objective=iwae", "k=16"], ("gaussian", "iwae", 0)),
    ],
)
def test_objective_chooses_a_fitting_encoder(overrides: list[str], expected: tuple[str, str, int]):
    config = compose(overrides)
    assert (config.encoder.name, config.objective.bound, config.encoder.inner_k) == expected


def test_decoder_switches_both_networks():
    config = compose(["decoder=iwae"])
    assert (config.encoder.trunk, config.encoder.hidden, config.encoder.activation) == (
        "iwae",
        (200, 200),
        "tanh",
    )
    assert compose(["decoder=iwae", "encoder.hidden=[50]"]).encoder.hidden == (50,)


def test_own_settings_of_a_choice_read_like_fields():
    config = compose(["encoder=sivi", "latent_dim=7"])
    assert config.encoder.psi_dim == 7
    assert config.encoder.arguments["psi_dim"] == 7
    assert config.encoder.share_psi is False
    with pytest.raises(AttributeError, match="encoder=gaussian has no setting 'psi_dim'"):
        _ = compose([]).encoder.psi_dim


def test_iwhvi_experiment_is_the_paper_s():
    config = compose(["experiment=iwhvi_paper/mnist_iwhvi"])
    assert config.trainer.inner_k_schedule == {0: 0, 250: 5, 500: 25, 1000: 50}
    assert (config.trainer.epochs, config.trainer.batch_size, config.trainer.kl_warmup) == (10000, 256, 300)
    assert (config.optimizer.lr, config.optimizer.schedule, config.optimizer.decay) == (
        1e-3,
        "exponential",
        0.95,
    )
    assert (config.estimator.k, config.estimator.inner_k, config.encoder.psi_dim) == (5000, 100, 32)


def test_a_choice_on_the_command_line_beats_the_experiment():
    config = compose(["experiment=iwae_paper/mnist_l1_k50", "dataset=mnist5k", "dataset.split=default", "k=5"])
    assert (config.dataset.name, config.k, config.decoder.name) == ("mnist5k", 5, "iwae")


# Identity and the run folder.


def test_identity_ignores_what_does_not_define_the_model(tmp_path: Path):
    plain = compose([])
    elsewhere = compose(
        [
            "device=cpu",
            f"data_dir={tmp_path}",
            f"output_dir={tmp_path}",
            "name=mine",
            "estimator.k=7",
            *(f"trainer.{key}" for key in ("threads=1", "progress=false", "log_every=1", "evaluate=false")),
        ]
    )
    assert identity(plain) == identity(elsewhere)


@pytest.mark.parametrize(
    "override",
    [
        "k=2",
        "seed=1",
        "latent_dim=3",
        "optimizer.lr=2e-3",
        "trainer.epochs=51",
        "dataset.seed=1",
        "encoder=hvm",
    ],
)
def test_identity_sees_what_defines_the_model(override: str):
    assert identity(compose([override])) != identity(compose([]))


def test_a_setting_that_is_null_defines_nothing():
    config = compose([])
    fewer = {key: value for key, value in config.to_dict()["trainer"].items() if value is not None}
    assert "ema" in config.to_dict()["trainer"]
    assert defining(config)["trainer"].items() <= fewer.items()


def test_identity_does_not_depend_on_how_a_number_is_written():
    assert identity(compose(["optimizer.lr=1e-3"])) == identity(compose(["optimizer.lr=0.001"]))
    assert identity(compose(["optimizer.lr=1"])) == identity(compose(["optimizer.lr=1.0"]))


def test_identity_does_not_depend_on_the_order_of_keys():
    config = compose(["encoder=sivi"])
    values = config.to_dict()
    keys = list(values)
    random.Random(0).shuffle(keys)
    text = yaml.safe_dump({key: values[key] for key in keys}, sort_keys=False)
    assert text != to_yaml(config)
    assert identity(from_yaml(text)) == identity(config)


def test_an_older_run_with_the_former_spelling_is_read():
    config = compose(["estimator.binarize=fresh"])
    text = to_yaml(config)
    older = text.replace("binarize: fresh", "binarise: fresh")
    assert older != text
    assert from_yaml(older) == config


def test_identity_groups_seeds():
    seeds = [compose([f"seed={seed}"]) for seed in (0, 1)]
    assert identity(seeds[0]) != identity(seeds[1])
    assert identity(seeds[0], with_seed=False) == identity(seeds[1], with_seed=False)


def test_run_folder():
    config = compose(["encoder=hvm", "objective=iwae", "k=16", "seed=3", "output_dir=runs"])
    assert run_folder(config) == Path("runs/mnist5k/hvm-iwae-k16") / f"3-{identity(config)}"
    assert re.fullmatch("[0-9a-f]{8}", identity(config))


# config.yaml in a run folder.


def test_config_yaml_round_trip(tmp_path: Path):
    config = compose(["experiment=iwhvi_paper/mnist_sivi", "optimizer.eps=1e-8"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read(tmp_path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k: [", "corrupt"),
        ("", "corrupt"),
        ("just words", "corrupt"),
        ("seed: " + "9" * 5000, "corrupt"),
        ("seed: 2026-99-99", "corrupt"),
        ("k: !!python/object/apply:os.system ['touch hacked']", "corrupt"),
        ("k: 1", "seed is missing"),
    ],
)
def test_corrupt_config_yaml(tmp_path: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path)
    assert not (tmp_path / "hacked").exists()


def test_config_yaml_out_of_range(tmp_path: Path):
    values = to_yaml(compose([])).replace("latent_dim: 32", "latent_dim: 0")
    (tmp_path / "config.yaml").write_text(values)
    with pytest.raises(UserError, match="latent_dim must be >= 1, got 0"):
        read(tmp_path)


def test_not_a_run_folder(tmp_path: Path):
    with pytest.raises(UserError, match="not a run folder"):
        read(tmp_path)


# Evaluation of a finished run.


def test_evaluation_starts_from_the_run_s_own_estimator():
    run = compose(["estimator.k=7", "estimator.seed=3", "device=cpu", "data_dir=there", "encoder=iwhvi"])
    again = for_evaluation(run, ["estimator.inner_k=2"])
    assert (again.estimator.k, again.estimator.seed, again.estimator.inner_k) == (7, 3, 2)
    assert (again.device, again.data_dir, again.encoder) == ("auto", "there", run.encoder)
    assert identity(again) == identity(run)


def test_evaluation_with_a_chosen_estimator():
    run = compose(["estimator.k=7", "encoder=iwhvi"])
    config = for_evaluation(run, ["estimator=diwhvi", "device=cpu", "data_dir=here", "threads=2", "progress=false"])
    assert (config.estimator.k, config.estimator.inner_k) == (5000, 100)
    assert (config.device, config.data_dir) == ("cpu", "here")
    assert (config.trainer.threads, config.trainer.progress) == (2, False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("k=3", "unknown key k .did you mean 'estimator.k'"),
        ("estimator.kk=3", "unknown key estimator.kk .did you mean 'estimator.k'"),
        ("estimator.k=0", "estimator.k must be >= 1"),
        ("estimator=foo", "there is no estimator=foo"),
        ("encoder=hvm", "unknown key encoder"),
        ("estimator.split=tset", "did you mean 'test'"),
    ],
)
def test_evaluation_refuses(override: str, message: str):
    with pytest.raises(UserError, match=message):
        for_evaluation(compose([]), [override])
