"""Every experiment composes and builds its model; those of papers hold a published value; budgets scale all lengths."""

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vaebench.config import Config, compose, config_dir, from_yaml, identity, to_yaml
from vaebench.config.catalog import described, own_keys, yaml_file
from vaebench.config.compose import _of_experiment
from vaebench.config.describe import schedules_past_the_end
from vaebench.config.run import changed
from vaebench.errors import UserError
from vaebench.experiment import build
from vaebench.train.schedules import burda
from vaebench.train.updates import updates

LISTED = {listed.choice: listed for listed in described("experiment", [config_dir()])}
FAST = [name for name in LISTED if name.startswith("fast/")]
"""Recipes of this project, without a published result."""
CHECKED = ("not checked, recalled", "second-hand, ", "read in ")
ON_EMBEDDED_IMAGES = {"dataset.name": "mnist5k", "dataset.split": "default", "dataset.binarization": "dynamic"}


@pytest.fixture(scope="module")
def composed() -> dict[str, Config]:
    """The configuration of every experiment with its published result.

    `compose` composes an experiment a second time, to tell whether its published result holds; here once is enough.
    """
    folders = (config_dir(),)
    own = {name: own_keys("experiment", name, folders, of="published") for name in LISTED}
    published = {name: OmegaConf.to_container(keys, resolve=True) for name, keys in own.items() if keys}
    return {name: changed(_of_experiment(name, (), folders), {"published": published.get(name)}) for name in LISTED}


def test_an_experiment_is_composed_as_by_the_command(composed: dict[str, Config]):
    for name in list(LISTED)[::25]:
        assert compose([f"experiment={name}"]) == composed[name]


@pytest.mark.parametrize("name", LISTED)
def test_an_experiment(name: str, composed: dict[str, Config]):
    config, listed = composed[name], LISTED[name]
    assert from_yaml(to_yaml(config)) == config
    assert listed.command == f"vaebench train experiment={name}"
    assert 10 <= len(listed.summary) <= 110
    found = config.published
    assert (found is None) == (name in FAST)
    assert not list(schedules_past_the_end(config))
    if found is None:
        return
    assert -130 < found.value < -75  # log p(x) of 28x28 binary images, nats: a lower bound, not its negative
    assert found.error is None or 0 < found.error < 1
    assert found.checked.startswith(CHECKED)
    assert found.protocol.startswith(f"{config.dataset.name}, ")


@pytest.mark.parametrize("name", FAST)
def test_what_a_fast_recipe_reaches_is_on_the_page_of_results(name: str):
    config = compose([f"experiment={name}"])
    found = f"*/{config.dataset.name}/{config.encoder.name}-*/{config.seed}-{identity(config)}/results.json"
    assert list((Path(__file__).parents[1] / "docs" / "results").glob(found))


def family(config: Config) -> str:
    """Return the parts of a configuration that decide which classes are built, and with which arguments."""
    trainer = {"ema": config.trainer.ema is None, "k_schedule": config.trainer.k_schedule is None}
    parts = (config.encoder, config.decoder, config.prior, config.objective, config.likelihood, config.optimizer.name)
    return repr((parts, config.optimizer.schedule, config.k > 1, trainer))


def test_a_row_of_each_family_is_built(composed: dict[str, Config], default_data_dir: Path):
    places = {"data_dir": str(default_data_dir), "device": "cpu", "trainer.threads": 1}
    rows = {family(config): config for config in composed.values()}
    assert 15 <= len(rows) < len(composed)
    for config in rows.values():
        assert updates(build(changed(config, ON_EMBEDDED_IMAGES | places)))


def test_all_papers_are_there():
    papers = ["avb", "hvi", "iwae", "iwhvi", "nf", "sivi", "sylvester", "tighter_bounds", "uivi", "vampprior"]
    assert {name.split("/")[0] for name in set(LISTED) - set(FAST)} == {f"{paper}_paper" for paper in papers}
    assert len(LISTED) >= 75


def test_a_shared_file_is_no_experiment():
    assert not [name for name in LISTED if "/_" in name]
    assert yaml_file("experiment", "iwae_paper/_base", [config_dir()]).is_file()  # control: there are such files


def test_the_published_block_is_read_without_hydra():
    found = own_keys("experiment", "iwhvi_paper/omniglot_iwhvi", [config_dir()], of="published")
    composed = compose(["experiment=iwhvi_paper/omniglot_iwhvi"]).published
    assert composed is not None
    assert (found.value, found.protocol) == (composed.value, composed.protocol)


# budget

ALL_LENGTHS = [
    "encoder=iwhvi",
    "encoder.tau_warmup=100",
    "trainer.epochs=2000",
    "trainer.kl_warmup=300",
    "trainer.k_schedule={0:1,500:2,1000:4}",
    "trainer.inner_k_schedule={0:0,200:5,1999:9}",
    "trainer.patience=100",
    "trainer.validate_every=10",
    "trainer.image_every=0",
    "optimizer.schedule=exponential",
    "optimizer.decay_epochs=100",
]


def test_a_budget_scales_every_length():
    config = compose([*ALL_LENGTHS, "budget=0.1"])
    trainer = config.trainer
    assert (trainer.epochs, trainer.kl_warmup, trainer.validate_every, trainer.patience) == (200, 30, 1, 100)
    assert (trainer.k_schedule, trainer.inner_k_schedule) == ({0: 1, 50: 2, 100: 4}, {0: 0, 20: 5, 200: 9})
    assert (config.optimizer.decay_epochs, config.encoder.tau_warmup, trainer.image_every) == (10, 10, 0)


def test_a_small_budget_leaves_one_epoch_of_each_length_and_the_last_value():
    trainer = compose([*ALL_LENGTHS, "budget=0.001"]).trainer
    assert (trainer.epochs, trainer.kl_warmup, trainer.validate_every, trainer.patience) == (2, 1, 1, 1)
    assert (trainer.k_schedule, trainer.inner_k_schedule) == ({0: 1, 1: 4}, {0: 0, 1: 5, 2: 9})


@pytest.mark.parametrize("budget", [0.003, 0.37, 2.5])
def test_the_learning_rate_is_the_same_at_each_share_of_the_training(budget: float):
    long, short = (compose([*ALL_LENGTHS, f"budget={factor}"]).optimizer for factor in (1, budget))
    for epoch in (1.0, 50.0, 1999.0):
        wanted = long.decay ** (epoch / long.decay_epochs)
        assert short.decay ** (epoch * budget / short.decay_epochs) == pytest.approx(wanted)
        assert burda(1e-3, budget)(epoch * budget) == burda(1e-3)(epoch)


@pytest.mark.parametrize(
    ("budget", "steps"), [("1", 1000), ("0.1", 100), ("3", 3000), ("0.002", 2), ("0.001", None), ("1e-5", None)]
)
def test_averaged_weights_span_the_same_share_of_the_training(budget: str, steps: int | None):
    ema = compose(["trainer.ema=0.999", f"budget={budget}"]).trainer.ema
    assert ema == (None if steps is None else pytest.approx(1 - 1 / steps, rel=1e-9))
    assert compose([f"budget={budget}"]).trainer.ema is None


def test_no_length_in_a_yaml_is_forgotten():
    """A new key whose comment speaks of epochs must be scaled, or be named here."""
    not_lengths = {"decay", "log_every"}
    lines = [
        line.strip() for path in config_dir().glob("*/*.yaml") for line in path.read_text().splitlines() if "#" in line
    ]
    found = {line.split(":")[0] for line in lines if "epoch" in line.split("#")[1] and not line.startswith("#")}
    scaled = {
        *("epochs", "kl_warmup", "k_schedule", "inner_k_schedule", "validate_every", "image_every", "checkpoint_every"),
        *("decay_epochs", "tau_warmup"),
    }
    assert found - not_lengths - scaled == set()
    assert {"tau_warmup", "image_every", "decay_epochs"} <= found  # control: the search finds some


def test_a_budget_is_part_of_the_identity_and_a_whole_one_is_not():
    paper = "experiment=iwhvi_paper/mnist_iwhvi"
    assert identity(compose([paper, "budget=1"])) == "c897af78"  # of version 0.1, which knew no budget
    assert identity(compose([paper, "budget=0.5"])) != identity(compose([paper]))
    # The stages of burda are no setting, so the budget itself must be part of the identity.
    words = ["optimizer=burda", "trainer.epochs=10"]
    assert identity(compose(words)) != identity(compose([*words[:1], "trainer.epochs=20", "budget=0.5"]))


def test_a_stored_config_is_not_scaled_again():
    config = compose(["experiment=iwhvi_paper/mnist_iwhvi", "budget=0.01"])
    assert (config.trainer.epochs, config.budget) == (100, 0.01)
    assert from_yaml(to_yaml(config)) == config
    older = to_yaml(compose([])).replace("budget: 1\n", "").replace("budget: 1.0\n", "")
    assert "budget" not in older
    assert math.isclose(from_yaml(older).budget, 1.0)


def test_a_published_result_holds_for_every_budget():
    paper = "experiment=iwae_paper/mnist_l1_k50"
    for words in (["budget=0.01"], ["budget=0.01", "trainer.epochs=7"]):
        assert compose([paper, *words]).published is not None
    assert compose([paper, "budget=0.01", "latent_dim=8"]).published is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budget=0"], "budget must be >= 1e-5 and <= 1000, got 0"),
        (["budget=1000", "trainer.epochs=10000"], "trainer.epochs must be <= 1000000"),
        (["optimizer=rmsprop", "optimizer.betas=[0.9,0.99]"], "optimizer.betas must start with 0"),
    ],
)
def test_refused(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        compose(words)
