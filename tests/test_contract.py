"""vaebench.testing: parts that keep their contract pass, and each mistake is found by the check that is for it."""

import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from vaebench import bounds
from vaebench.cli import main
from vaebench.cli.new import KINDS, write_package
from vaebench.datasets.dataset import load
from vaebench.distributions import Bernoulli, DiagonalNormal
from vaebench.encoders.base import BuildContext, Draw, Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.two_layers import TwoLayerEncoder
from vaebench.evaluate.importance import importance_weighted
from vaebench.evaluate.job import EstimatorInputs, EstimatorJob
from vaebench.gradients import GradientEstimator
from vaebench.nets.convolutional import ResNetTrunk
from vaebench.nets.dense import MLP, BernoulliLikelihood
from vaebench.nets.networks import network_of
from vaebench.objective import Objective
from vaebench.priors import StandardNormalPrior
from vaebench.registry import ENCODERS, ESTIMATORS, LIKELIHOODS, OBJECTIVES, PRIORS
from vaebench.testing import (
    Contract,
    check_dataset,
    check_prior,
    dataset_contract,
    decoder_contract,
    encoder_contract,
    estimator_contract,
    likelihood_contract,
    objective_contract,
    prior_contract,
    verify,
)


def found(contract: Contract, *checks: str) -> str:
    """Return the lines of the checks that fail, "" for none."""
    try:
        verify({name: contract[name] for name in checks or contract})
    except AssertionError as error:
        return str(error)
    return ""


# Parts of the package keep the contract -------------------------------------------------------------------


def test_an_encoder_with_inner_samples_keeps_it():
    contract = encoder_contract(ENCODERS["sivi"], yaml_settings("encoder", "sivi") | {"psi_dim": 2})
    assert found(contract, "shapes", "direction", "independence", "chunks", "storage") == ""


def test_an_encoder_of_two_layers_keeps_it():
    assert found(encoder_contract(TwoLayerEncoder.build, {"top_hidden": [4]}), "shapes", "weights") == ""


def yaml_settings(kind: str, name: str) -> dict[str, Any]:
    values = yaml.safe_load((Path(__file__).parents[1] / "configs" / kind / f"{name}.yaml").read_text())
    for key in ("name", "bound", "gradient", "trunk", "hidden", "activation", "inner_k"):
        values.pop(key, None)
    return values


def test_an_encoder_with_wide_networks_keeps_it():
    """A learning rate that makes it worse is followed by a smaller one."""
    contract = encoder_contract(ENCODERS["realnvp"], yaml_settings("encoder", "realnvp"))
    assert found(contract, "training", "weights") == ""


def test_priors_keep_it():
    assert found(prior_contract(PRIORS["standard"])) == ""
    assert found(prior_contract(PRIORS["mixture"], {"components": 3})) == ""
    assert found(prior_contract(PRIORS["vamp"], {"components": 3})) == ""


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "gaussian"])
def test_likelihoods_keep_it(name: str):
    assert found(likelihood_contract(LIKELIHOODS[name], yaml_settings("likelihood", name))) == ""


@pytest.mark.parametrize("name", ["elbo", "tvo"])
def test_objectives_keep_it(name: str):
    contract = objective_contract(OBJECTIVES[name], yaml_settings("objective", name))
    assert found(contract, "values", "bound", "parts") == ""


def test_an_estimator_keeps_it():
    assert found(estimator_contract(importance_weighted, {"k": 500})) == ""


@pytest.mark.parametrize("name", ["ais", "bdmc"])
def test_chains_and_simulated_images_keep_it(name: str):
    """Numbers of parts agree to rounding, which needs float64; the number of simulated images is given."""
    short = {"temperatures": 10, "chains": 2, "leapfrog": 2, "schedule": "sigmoid", "initial": "prior"}
    assert found(estimator_contract(ESTIMATORS[name], short), "numbers") == ""


@pytest.mark.parametrize("name", ["mlp", "gated", "gated_conv", "resnet"])
def test_decoders_keep_it(name: str):
    assert found(decoder_contract(network_of(name))) == ""


def test_control_a_decoder_of_images_without_its_shape_is_found():
    class Narrow(ResNetTrunk):
        decoder = staticmethod(lambda inputs, shape, outputs, hidden, activation: MLP(inputs, [7], activation))

    assert "numbers of the pixels of (2, 7, 5) are (2, 7, 7), not (2, 7, 384)" in found(decoder_contract(Narrow))


def test_control_a_decoder_that_mixes_rows_is_found():
    class Normalised(MLP):
        def forward(self, value: Tensor) -> Tensor:
            found = super().forward(value)
            return found - found.mean(-2, keepdim=True)

    assert "features of a part of the rows" in found(decoder_contract(Normalised), "shapes")


def test_a_data_set_keeps_it(default_data_dir: Path):
    assert found(dataset_contract(lambda: load("mnist5k", default_data_dir))) == ""


# Broken encoders ------------------------------------------------------------------------------------------


class Broken(GaussianEncoder):
    """A Gaussian encoder whose draws a mistake changes."""

    def __init__(self, posterior: nn.Module, mistake: Callable[["Broken", Draw], Draw]) -> None:
        super().__init__(posterior)
        self.mistake = mistake
        self.unused = nn.Parameter(torch.zeros(2))

    def exact_posterior(self, x: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        del x

    def log_q_at(self, encoded: Any, z: Tensor, **options: Any) -> None:
        del encoded, z, options

    def sample(self, encoded: DiagonalNormal, k: int, **options: Any) -> Draw:
        return self.mistake(self, super().sample(encoded, k, **options))


def broken(mistake: Callable[[Broken, Draw], Draw]) -> Callable[..., Encoder]:
    return lambda context: Broken(context.networks.gaussian(context.x_dim, context.latent_dim), mistake)


def connected(encoder: Broken, draw: Draw) -> Draw:
    """Give the parameter that is left over a gradient that changes nothing."""
    return draw._replace(z=draw.z + 0 * encoder.unused.sum())


def wrong_constant(encoder: Broken, draw: Draw) -> Draw:
    return draw._replace(log_q=draw.log_q + 0.05)


def no_jacobian(encoder: Broken, draw: Draw) -> Draw:
    return draw._replace(z=draw.z * encoder.unused.exp().mean())


def shared_noise(encoder: Broken, draw: Draw) -> Draw:
    pairs = torch.arange(draw.z.shape[1]) // 2 * 2
    return Draw(draw.z[:, pairs], draw.log_q[:, pairs], draw.paths)


def own_generator(encoder: Broken, draw: Draw) -> Draw:
    """Noise that vaebench.noise does not know."""
    return draw._replace(log_q=draw.log_q + 0.1 * torch.randn_like(draw.log_q) - 0.005)


def of_the_chunk(encoder: Broken, draw: Draw) -> Draw:
    return draw._replace(log_q=draw.log_q - draw.log_q.detach().mean(0) * 1e-3)


def not_constant(encoder: Broken, draw: Draw) -> Draw:
    """path_only that does not hold the parameters constant inside log_q."""
    if not draw.paths:
        return draw
    log_q = draw.log_q + (encoder.encode(_images(draw)).log_prob(draw.z.detach()) * 1.0)
    return draw._replace(log_q=log_q - log_q.detach() + draw.log_q.detach())


def _images(draw: Draw) -> Tensor:
    from vaebench.testing import images

    return images(draw.z.shape[1] // 3)


def detached(encoder: Broken, draw: Draw) -> Draw:
    return draw._replace(z=draw.z.detach())


@pytest.mark.parametrize(
    ("mistake", "check", "line"),
    [
        (wrong_constant, "weights", r"E\[w\] / p\(x\)"),
        (wrong_constant, "direction", r"E\[log_q\]"),
        (no_jacobian, "direction", r"E\[log_q\]"),
        (shared_noise, "independence", "draws of two images"),
        (own_generator, "chunks", "the same seed again"),
        (of_the_chunk, "chunks", "in chunks of 2"),
        (lambda encoder, draw: draw, "gradients", "no gradient: unused"),
        (not_constant, "gradients", r"E\[dreg\]"),
        (detached, "gradients", "reparam - finite difference"),
        (lambda encoder, draw: draw._replace(log_q=draw.log_q.T), "shapes", "log_q has shape"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_control_a_mistake_is_found(mistake: Callable[[Broken, Draw], Draw], check: str, line: str):
    with pytest.raises(AssertionError, match=line):
        verify({check: encoder_contract(broken(mistake))[check]})


def test_control_without_a_mistake_it_passes():
    contract = encoder_contract(broken(connected))
    assert found(contract, "weights", "direction", "independence", "chunks", "shapes") == ""


def test_control_weights_that_are_not_saved_are_found():
    class Forgetful(GaussianEncoder):
        def __init__(self, posterior: nn.Module) -> None:
            super().__init__(posterior)
            self.shift = torch.randn(2)

        def sample(self, encoded: DiagonalNormal, k: int, **options: Any) -> Draw:
            return super().sample(DiagonalNormal(encoded.mean + self.shift, encoded.scale), k, **options)

    def build(context: BuildContext) -> Encoder:
        return Forgetful(context.networks.gaussian(context.x_dim, context.latent_dim))

    assert "after save and load" in found(encoder_contract(build), "storage")


# Other broken parts ---------------------------------------------------------------------------------------


class Wide(DiagonalNormal):
    """A normal whose density lacks a factor."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 0.01


class WidePrior(StandardNormalPrior):
    def forward(self) -> DiagonalNormal:
        return Wide(self.origin, torch.ones_like(self.origin))


class ShiftedPrior(StandardNormalPrior):
    """Draws that do not follow the density."""

    def forward(self) -> DiagonalNormal:
        normal = super().forward()
        return Shifted(normal.mean, normal.scale)


class Shifted(DiagonalNormal):
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return super().sample(sample_shape) + 0.1


def test_control_broken_priors_are_found():
    assert "integral of p(z)" in found(prior_contract(WidePrior.build), "density")
    assert "E[tanh(z)]" in found(prior_contract(ShiftedPrior.build), "draws")


def test_control_broken_likelihoods_are_found():
    class Flat(Bernoulli):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) + 0.01

    class FlatLikelihood(BernoulliLikelihood):
        def forward(self, outputs: Tensor) -> Bernoulli:
            return Flat(outputs)

    assert "sum of p(x|z)" in found(likelihood_contract(FlatLikelihood), "total")


def test_control_broken_objectives_are_found():
    """The sum of the weights, not their mean, is no bound; a bound that sees other images is not additive."""

    def total(gradient: GradientEstimator) -> Objective:
        return Objective(lambda log_w: log_w.logsumexp(0), gradient)

    def mixed(gradient: GradientEstimator) -> Objective:
        return Objective(lambda log_w: bounds.iwae(log_w) - 0.1 * log_w.mean().detach(), gradient)

    assert "reported bound - log p(x)" in found(objective_contract(total), "bound")
    assert "values of parts" in found(objective_contract(mixed), "parts")


def test_control_broken_estimators_are_found():
    """A number that depends on the part, and an estimate above log p(x) that is called a lower bound."""

    def of_the_part(inputs: EstimatorInputs) -> EstimatorJob:
        job = importance_weighted(inputs)
        whole = job.numbers
        return SimpleNamespace(**vars(job) | {"numbers": lambda part: whole(part) + len(range(*part.indices(99)))})  # pyright: ignore

    def too_high(inputs: EstimatorInputs) -> EstimatorJob:
        job = importance_weighted(inputs)
        whole = job.numbers
        return SimpleNamespace(**vars(job) | {"numbers": lambda part: whole(part) + 0.05})  # pyright: ignore

    assert "in parts - at once" in found(estimator_contract(of_the_part, {"k": 50}), "numbers")
    assert "lower_bound" in found(estimator_contract(too_high, {"k": 500}), "log likelihood")


def test_control_broken_data_are_found():
    def doubled(data_dir: Path) -> Mapping[str, np.ndarray]:
        one = np.random.default_rng(0).integers(0, 256, (50, 4, 4)).astype(np.uint8)
        return {"train": one, "validation": one[:20], "test": one[20:]}

    with pytest.raises(AssertionError, match="share of validation images that are in train"):
        check_dataset(doubled)


def test_the_line_of_a_failure_has_all_numbers():
    with pytest.raises(AssertionError, match=r"integral of p\(z\), D=1: got 1\.01.*, expected 1, tolerance 0\.002"):
        check_prior(WidePrior.build)


# The commands ---------------------------------------------------------------------------------------------


def test_check_prints_rows_and_an_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert main(["check", "likelihood=bernoulli"]) == 0
    assert main(["check", "gated_conv", "decoder.hidden=[4,8]"]) == 0
    assert "4 checks" in capsys.readouterr().out
    monkeypatch.setitem(PRIORS, "standard", WidePrior.build)
    assert main(["check", "prior=standard"]) == 1
    assert "prior=standard does not keep its contract: density" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a part to check"),
        (["encodr=gaussian"], "'encodr' is no kind of part (did you mean 'encoder'?)"),
        (["gausian"], "there is no 'gausian'"),
        (["gaussian"], "'gaussian' is ambiguous: write encoder=gaussian or likelihood=gaussian"),
        (["prior=mixture", "prior.components=0"], "components must be >= 1, got 0"),
    ],
)
def test_check_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["check", *words]) == (1 if "components" in message else 2)
    captured = capsys.readouterr()
    assert message in captured.err + captured.out.replace("\n    ", " ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_keeps_the_contract(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its entry point, its yaml and its test are those of one part, and the test passes."""
    name = f"fresh_{kind}"
    files = write_package(kind, name, tmp_path / "package")
    project = tomllib.loads((tmp_path / "package" / "pyproject.toml").read_text())
    (entry,) = project["project"]["entry-points"][f"vaebench.{kind}"].items()
    monkeypatch.syspath_prepend(tmp_path / "package")
    assert entry[0] == name
    assert callable(resolve_name(entry[1]))
    (yaml_file,) = [path for path in files if path.suffix == ".yaml"]
    values = yaml.safe_load(yaml_file.read_text())
    assert values["bound" if kind == "objective" else "name"] == name
    assert yaml_file.relative_to(tmp_path / "package") == Path(f"vaebench_{name}/configs/{kind}/{name}.yaml")
    _module(tmp_path / "package" / "tests" / f"test_{name}.py")["test_the_contract"]()


def _module(path: Path) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace


def test_new_packages_are_clean(tmp_path: Path):
    for kind in KINDS:
        write_package(kind, f"fresh_{kind}", tmp_path / kind)
    select = "--select=E,F,W,I,B,UP,ANN,SIM,RUF,C4,PT"
    common = ["--isolated", "--line-length=120", "--target-version=py311"]
    for command in (["check", select, "--ignore=RUF002", *common], ["format", "--check", *common]):
        for kind in KINDS:  # from the package's folder, so that its own modules are sorted last
            words = [sys.executable, "-m", "ruff", *command, "."]
            done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path / kind)
            assert done.returncode == 0, done.stdout + done.stderr


def test_new_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "mine"
    assert main(["new", "prior", "wide", "--folder", str(folder)]) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(before) == 6
    assert main(["new", "prior", "wide", "--folder", str(folder)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prior"], "give a kind and a name"),
        (["priors", "wide"], "there is no kind 'priors' (did you mean 'prior'?)"),
        (["prior", "mixture"], "prior=mixture is a choice of vaebench"),
        (["prior", "../x"], "NAME must be lower-case letters"),
        (["prior", "class"], "NAME must be lower-case letters"),
        (["prior", "Wide"], "NAME must be lower-case letters"),
    ],
)
def test_new_refuses(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["new", *words, "--folder", str(tmp_path / "mine")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
