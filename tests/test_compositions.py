"""The jobs of a sweep are composed at little cost, and exactly as hydra composes each of them."""

import gc
import io
import itertools
import random
import re
import sys
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vaebench.cli.sweep.plan import config_or_error, plan
from vaebench.config import Config, config_dir, from_hydra
from vaebench.config.catalog import default_choices, described, own_keys
from vaebench.config.compositions import Compositions
from vaebench.errors import UserError

FOLDERS = [config_dir()]
CHOICES = [f"{group}={listed.choice}" for group in default_choices() for listed in described(group, FOLDERS)]
CHOICES += [f"experiment={listed.choice}" for listed in described("experiment", FOLDERS)]

VALUES = re.findall(
    r"\S+",
    """
    k=3 k='3' k=3.0 seed=7 seed=-1 latent_dim=4 latent_dim=${k} latent_dim=${nothing} name=null name='x,y' nothing=1
    +nothing=1 name=${dataset.name} output_dir=runs/${seed} data_dir=null +name=a ++name=a ~name
    decoder.hidden=[8] decoder.hidden=[8,9] decoder.hidden=8 decoder.hidden=[] decoder.hidden=${encoder.psi_dim}
    encoder.hidden=[5] encoder.hidden=${decoder.hidden} encoder.psi_dim=3 encoder.psi_dim=32.0 encoder.psi_dim=null
    encoder.inner_k=9 encoder.inner_k=0 encoder.nothing=1 +encoder.nothing=1 ~encoder.hidden encoder.name=hvm
    encoder.trunk=${oc.env:HOME} dataset.seed=1 dataset.seed=true optimizer.lr=2e-3 optimizer.lr=fast
    optimizer.betas=[0.8,0.9] optimizer.betas.0=0.7 trainer.epochs=3 trainer.epochs=0 trainer.validate_every=100
    trainer.patience=null trainer.k_schedule={0:1,100:5} ++trainer.ema=0.9 ~trainer.ema ~trainer.nothing +trainer.ema=1
    estimator.k=5 estimator.bdmc=null trainer={epochs:3} trainer=null encoder={name:hvm} encoder=null encoder=nothing
    encoder=[hvm] ~prior ~experiment +prior=vamp decoder@decoder=iwae decoder@encoder=iwae k@seed=3 k=1,2 k=[1 k
    hydra.job.name=x sweep.wait=true encoder.psi_dim='3' optimizer.lr=.5 objective.gradient=stl
    +objective.beta=2 objective.beta=2 prior.components=5 +decoder.hidden=[3] ~decoder.hidden=[3]
""",
)
VALUES += ["name='a b'", "output_dir=a\\ b"]


Sweep = tuple[ConfigLoaderImpl, DictConfig]


def sweep_of(*words: str, folder: Path | None = None) -> Sweep:
    """Return hydra's config loader, and the configuration of a sweep with ``words``."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
    if folder is not None:
        loader.get_search_path().prepend("command-line", f"file://{folder}")
        loader.repository.initialize_sources(loader.get_search_path())
    return loader, loader.load_configuration("train", list(words), RunMode.MULTIRUN)


Outcome = Config | tuple[type, str]


def outcome(compositions: Compositions, words: Sequence[str]) -> Outcome:
    """Return the configuration of a job, or the error."""
    try:
        return compositions.checked(*compositions.composed(words))
    except Exception as error:
        return type(error), str(error)


def by_hydra(loader: ConfigLoaderImpl, config: DictConfig, words: Sequence[str]) -> Outcome:
    """Return the same from a composition of all words by hydra."""
    try:
        whole = loader.load_sweep_config(config, list(words))
        return from_hydra(OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]), whole.hydra)
    except Exception as error:
        return type(error), str(error)


def random_jobs(count: int, seed: int) -> Iterator[list[str]]:
    """Yield the overrides of jobs: some choices, and four times some values with each set of choices."""
    numbers = random.Random(seed)
    for number in range(count):
        if number % 4 == 0:
            choices = numbers.sample(CHOICES, numbers.choice([0, 1, 1, 2]))
        words = [*choices, *numbers.sample(VALUES, numbers.choice([1, 1, 2, 3]))]
        numbers.shuffle(words)
        yield words


def differences(compositions: Compositions, by: Sweep, jobs: Iterable[Sequence[str]]) -> list[Any]:
    """Return the words of each job that is not as hydra composes it, with both outcomes."""
    found = [(words, outcome(compositions, words), by_hydra(*by, words)) for words in jobs]
    # 1 == 1.0 == True, so the texts are compared too.
    return [one for one in found if one[1] != one[2] or repr(one[1]) != repr(one[2])]


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return sweep_of()


# As hydra composes them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_random_jobs_are_as_hydra_composes_them(part: int, sweep: Sweep):
    assert differences(Compositions(*sweep), sweep, random_jobs(8, seed=part)) == []


def test_values_of_one_job_do_not_reach_the_next(sweep: Sweep):
    jobs = [["encoder=hvm", *words] for words in ([], ["latent_dim=4", "+name=x"], ["~trainer.ema"], ["latent_dim=5"])]
    compositions = Compositions(*sweep)
    found = [outcome(compositions, words) for words in [*jobs, *reversed(jobs)]]
    assert found[:4] == found[:3:-1]
    assert [one.encoder.psi_dim for one in found if isinstance(one, Config)] == [32, 4, 5, 5, 4, 32]


def test_a_value_equal_to_the_default_but_of_another_type_is_refused(sweep: Sweep):
    found = outcome(Compositions(*sweep), ["encoder=iwhvi", "encoder.tau_steps=0.0"])
    assert found == (UserError, "encoder.tau_steps must be an integer, got 0.0")


def test_a_users_yaml_is_as_hydra_composes_it(tmp_path: Path):
    (tmp_path / "encoder").mkdir()
    yaml = "defaults: [hvm, _self_]\npsi_dim: ${latent_dim}\nhidden: ['${k}']\n"
    (tmp_path / "encoder" / "mine.yaml").write_text(yaml)
    sweep = sweep_of(folder=tmp_path)
    words = ([], ["k=3"], ["encoder.psi_dim=x"], ["encoder.nothing=1"], ["latent_dim=5"])
    jobs = [["encoder=mine", *each] for each in words]
    assert differences(Compositions(*sweep), sweep, jobs) == []
    assert isinstance(outcome(Compositions(*sweep), jobs[1]), Config)


def test_a_folder_of_hydra_searchpath_is_searched(tmp_path: Path):
    """It holds another group, whose name is an ordinary key elsewhere."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "five.yaml").write_text("# @package _global_\nk: 5\n")
    sweep = sweep_of(f"hydra.searchpath=[file://{tmp_path}]")
    jobs = [["+mine=five", "seed=1"], ["+mine=five", "k=6"], ["mine=five"]]
    assert differences(Compositions(*sweep), sweep, jobs) == []
    assert [one.k for job in jobs if isinstance(one := outcome(Compositions(*sweep), job), Config)] == [5, 6]


def test_the_time_in_a_path_is_that_of_the_sweep():
    sweep = sweep_of("output_dir=runs/${now:%H-%M-%S-%f}")
    compositions = Compositions(*sweep)
    jobs = [[f"encoder={name}", "output_dir=runs/${now:%H-%M-%S-%f}"] for name in ("hvm", "gaussian")]
    found = {one.output_dir for job in jobs if isinstance(one := outcome(compositions, job), Config)}
    assert found == {sweep[1].output_dir}


class Shortcut(Compositions):
    """A wrong one: references are resolved before the values are set."""

    def _by_hydra(self, *words: str) -> tuple[DictConfig, Any]:
        cfg, chosen = super()._by_hydra(*words)
        OmegaConf.resolve(cfg)
        return cfg, chosen


def test_control_a_wrong_shortcut_is_found(sweep: Sweep):
    jobs = [["encoder=hvm", "seed=1"], ["encoder=hvm", "latent_dim=4"], ["decoder.hidden=[8]"]]
    assert [words for words, *_ in differences(Shortcut(*sweep), sweep, jobs)] == jobs[1:]


# At little cost ---------------------------------------------------------------------------------------------


def test_hydra_composes_each_set_of_choices_once(sweep: Sweep, monkeypatch: pytest.MonkeyPatch):
    composed: list[Any] = []
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "load_configuration",
        lambda self, *given, **named: composed.append(1) or load(self, *given, **named),
    )
    compositions = Compositions(*sweep)
    for encoder, objective, seed in itertools.product(("hvm", "sivi"), ("elbo", "iwae", "tvo"), range(20)):
        compositions.composed([f"encoder={encoder}", f"seed={seed}", f"objective={objective}", "decoder.hidden=[8]"])
    assert len(composed) == 6


def test_a_planned_job_takes_little_memory(sweep: Sweep):
    """Every second job is invalid, and neither a configuration nor an error holds a composition."""
    compositions = Compositions(*sweep)
    jobs = [["objective=iwhvi", f"seed={seed}", f"encoder.inner_k={seed % 2}"] for seed in range(20)]
    found = [config_or_error(compositions, job) for job in jobs[:2]]
    tracemalloc.start()
    try:
        found = [config_or_error(compositions, job) for job in jobs]
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert [isinstance(one, Config) for one in found] == [False, True] * 10
    assert taken / len(jobs) < 10_000, taken


def test_equal_parts_of_configurations_are_one_object(sweep: Sweep):
    compositions = Compositions(*sweep)
    one, other = (outcome(compositions, [f"seed={seed}", "trainer.epochs=3"]) for seed in (0, 1))
    assert isinstance(one, Config)
    assert isinstance(other, Config)
    assert one.trainer is other.trainer
    assert (one.seed, other.seed) == (0, 1)


def test_a_changed_yaml_is_read_again(tmp_path: Path):
    (tmp_path / "encoder").mkdir()
    file = tmp_path / "encoder" / "mine.yaml"
    for text, keys in (("name: hvm\n", ["name"]), ("name: hvm\npsi_dim: 3\n", ["name", "psi_dim"])):
        file.write_text(text)
        assert list(own_keys("encoder", "mine", [tmp_path])) == keys


# The bar ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("screen", "seconds", "word", "shown"),
    [
        (Terminal(), 0.6, "k=1", True),
        (Terminal(), 0.6, "trainer.progress=false", False),
        (Terminal(), 0.01, "k=1", False),
        (io.StringIO(), 0.6, "k=1", False),
    ],
)
def test_a_bar_shows_how_many_jobs_are_planned(
    screen: io.StringIO, seconds: float, word: str, shown: bool, monkeypatch: pytest.MonkeyPatch
):
    """Each look at the clock is ``seconds`` after the one before."""
    loader, config = sweep_of(word)
    clock = itertools.count(step=seconds)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", screen)
    plan(SimpleNamespace(config_loader=loader), config, [[word, f"seed={seed}"] for seed in range(4)])
    assert ("4/4" in screen.getvalue()) == shown
