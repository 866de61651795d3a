"""Every yaml under configs/ trains a step, is evaluated, and belongs to something that is registered."""

from dataclasses import replace
from pathlib import Path

import pytest

from vaebench.config import compose, config_dir
from vaebench.datasets.catalog import NAMES
from vaebench.nets.networks import TRUNKS
from vaebench.records import RunFolder, read_results
from vaebench.registry import ENCODERS, PRIORS
from vaebench.train import validation
from vaebench.train.session import train

# hydra's own groups belong to sweeps, and are tested there.
GROUPS = {path.name for path in config_dir().iterdir() if path.is_dir()} - {"hydra"}
FILES = sorted(path.relative_to(config_dir()) for group in GROUPS for path in (config_dir() / group).rglob("*.yaml"))
# These need files that are not there; their own tests run them on made ones.
NEED_DATA = {"own", *NAMES} - {"mnist5k"}
# Its 256 outputs for each of 784 pixels take long; tests/test_likelihoods.py builds a run of it on smaller images.
SLOW = Path("likelihood/categorical.yaml")
LEFT_OUT = {SLOW, *(Path("dataset", f"{name}.yaml") for name in NEED_DATA)}
# tests/test_presets.py builds the model of every experiment; these train.
EXPERIMENTS = {"iwae_paper/mnist_l2_k50", "iwhvi_paper/mnist_iwhvi", "uivi_paper/mnist_uivi"}
LEFT_OUT |= {path for path in FILES if path.parts[0] == "experiment" and path.as_posix()[11:-5] not in EXPERIMENTS}
CHOICES = [path.with_suffix("") for path in FILES if path not in LEFT_OUT]
ONE_STEP = [
    "latent_dim=2",
    "decoder.hidden=[8]",
    "trainer.epochs=1",
    "trainer.batch_size=4000",
    "trainer.kl_warmup=0",
    "trainer.k_schedule=null",
    "trainer.inner_k_schedule=null",
    "trainer.validate_every=1",
    "trainer.validation_k=2",
    "trainer.image_every=1",
    "trainer.progress=false",
    "trainer.threads=1",
    "estimator.k=2",
    "estimator.images=20",
    "device=cpu",
]


def one_step(choice: Path) -> list[str]:
    """The overrides that train this choice once on the embedded images."""
    group, name = choice.parts[0], "/".join(choice.parts[1:])
    words = [f"{group}={name}", *ONE_STEP]
    if group == "objective":
        words += ["k=4"]  # miwae deals them into groups
    if group == "experiment":
        words += ["dataset=mnist5k", "dataset.split=default", "k=2", "estimator.inner_k=null"]
    if group == "likelihood":
        words += ["dataset.binarization=none"]
    if name == "diwhvi":
        words += ["encoder=iwhvi", "estimator.inner_k=2"]
    if name in ("ais", "bdmc"):
        words.remove("estimator.k=2")
        words += ["estimator.temperatures=30", "estimator.leapfrog=2"]
    if name == "gaps":
        words += ["estimator.draws=4", "estimator.steps=2", "estimator.fit_draws=2"]
    return words


def reported(choice: Path) -> int:
    """How many results its last evaluation has: of a Gaussian's sandwich, five quantities and one of them twice."""
    return {"bdmc": 2, "gaps": 6, "sandwich": 7}.get(choice.name, 1)


def test_nothing_is_missed():
    assert len(CHOICES) >= 23
    assert {path.parts[0] for path in CHOICES} == GROUPS


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_it_trains_a_step(choice: Path, tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(validation, "ANNEALING", replace(validation.ANNEALING, temperatures=4))
    words = [*one_step(choice), f"output_dir={tmp_path}", f"data_dir={default_data_dir}"]
    folder = train(compose(words))
    records = read_results(RunFolder(folder))
    assert [record.n_images for record in records] == [20] * reported(choice)


@pytest.mark.parametrize(
    ("group", "registry"),
    [("encoder", ENCODERS), ("prior", PRIORS), ("decoder", TRUNKS)],
)
def test_a_registered_name_has_its_yaml(group: str, registry: dict[str, object]):
    yamls = {path.stem for path in (config_dir() / group).glob("*.yaml")}
    assert yamls == set(registry)
