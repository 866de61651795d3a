"""Classes name their arguments in a ValueError; ``build`` turns it into a UserError that names the key."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vaebench import experiment
from vaebench.arguments import above, at_least, between, one_of, widths
from vaebench.config import compose
from vaebench.encoders.base import BuildContext
from vaebench.errors import UserError
from vaebench.flows.flow import FlowContext
from vaebench.model import GenerativeModel
from vaebench.nets.dense import BernoulliLikelihood
from vaebench.nets.networks import Networks
from vaebench.objective import Objective
from vaebench.priors import PriorContext, StandardNormalPrior
from vaebench.registry import ENCODERS, FLOWS, OBJECTIVES, PRIORS

NETWORKS = Networks("mlp", [4], "tanh")
SMALL = ["encoder.hidden=[4]", "decoder.hidden=[4]", "device=cpu", "trainer.threads=1"]


def encoder(name: str, **arguments: Any) -> object:
    model = GenerativeModel(StandardNormalPrior(2), NETWORKS.decoder(2, 9, BernoulliLikelihood(), None))
    return ENCODERS[name](BuildContext(NETWORKS, 9, 2, model), **arguments)


def prior(name: str, dim: int = 2, **arguments: Any) -> object:
    return PRIORS[name](PriorContext(dim, NETWORKS, torch.full((9,), 0.5)), **arguments)


def flow(name: str, dim: int = 2, **arguments: Any) -> object:
    return FLOWS[name](FlowContext(4, dim, 0, "tanh"), **arguments)


def objective(name: str, **arguments: Any) -> Objective:
    from vaebench.gradients import GradientEstimator

    return OBJECTIVES[name](GradientEstimator.REPARAM, **arguments)


UIVI = {"psi_dim": 2, "hmc_burn_in": 1, "hmc_samples": 1, "leapfrog_steps": 1, "step_size": 0.1}
AVB = {"noise_dim": 2, "discriminator_hidden": [3], "discriminator_steps": 1, "discriminator_lr": 1e-3}
AVB["discriminator_betas"] = [0.5, 0.9]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: encoder("iaf", steps=-1, width=3, depth=1), "steps must be >= 0, got -1"),
        (lambda: encoder("iaf", steps=1, width=0, depth=1), "width must be >= 1, got 0"),
        (lambda: encoder("langevin", steps=-1, step_size=0.1, max_step_size=0.5), "steps must be >= 0, got -1"),
        (
            lambda: encoder("langevin", steps=1, step_size=0.7, max_step_size=0.5),
            "step_size must be > 0 and < max_step_size=0.5, got 0.7",
        ),
        (lambda: encoder("hvm", psi_dim=0), "psi_dim must be >= 1, got 0"),
        (lambda: encoder("hvm", psi_dim=2, tau_steps=-1), "tau_steps must be >= 0, got -1"),
        (
            lambda: encoder("sivi", psi_dim=2, sampler="gausian"),
            "sampler must be one of gaussian, bernoulli_noise, got 'gausian' (did you mean 'gaussian'?)",
        ),
        (
            lambda: encoder("uivi", **UIVI, target_acceptance=1.5),
            "target_acceptance must be between 0 and 1, got 1.5",
        ),
        (lambda: encoder("avb", **{**AVB, "discriminator_lr": 0}), "discriminator_lr must be > 0, got 0"),
        (
            lambda: encoder("avb", **{**AVB, "discriminator_betas": [0.5]}),
            "discriminator_betas must be two numbers >= 0 and < 1, got [0.5]",
        ),
        (
            lambda: encoder("two_layer", top_hidden=[3]),
            "the encoder needs a prior of two layers: leave prior out, or set prior=chained",
        ),
        (
            lambda: encoder("two_layer", top_hidden=3),
            "top_hidden must be a list of widths >= 1 such as [100, 100], got 3",
        ),
        (lambda: flow("nsf", width=3, depth=1, bins=101, bound=3.0), "bins must be >= 2 and <= 100, got 101"),
        (lambda: flow("realnvp", 1, width=3, depth=1), "latent_dim must be >= 2 for coupling flows, got 1"),
        (lambda: flow("nsf", width=3, depth=1, bins=8, bound=0.0), "bound must be > 0, got 0.0"),
        (lambda: prior("mixture", components=0), "components must be >= 1, got 0"),
        (
            lambda: prior("chained", 1, top_dim=None, hidden=[3]),
            "latent_dim must be >= 2 for a prior of two layers, got 1",
        ),
        (
            lambda: Networks("resnt", [3], "tanh").trunk,
            "trunk must be one of mlp, iwae, iwhvi, gated, gated_conv, resnet, got 'resnt' (did you mean 'resnet'?)",
        ),
        (
            lambda: Networks("resnet", [3, 4], "tanh").reader(8),
            "a convolutional network needs square images, got 8 pixels",
        ),
        (lambda: objective("tvo", partitions=0, first=0.1), "partitions must be >= 1, got 0"),
        (lambda: objective("beta", kl_weight=-1.0), "kl_weight must be >= 0, got -1.0"),
    ],
)
def test_a_class_names_its_argument(make: Callable[[], object], message: str):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encoder=iaf", "latent_dim=1", "encoder.width=3"], None),
        (
            ["encoder=nsf", "latent_dim=1"],
            "encoder=nsf: latent_dim must be >= 2 for coupling flows, got 1",
        ),
        (["encoder=nsf", "encoder.bins=101"], "encoder.bins must be >= 2 and <= 100, got 101"),
        (
            ["encoder=ladder", "prior=standard"],
            "encoder=ladder: the encoder needs a prior of two layers: leave prior out, or set prior=chained",
        ),
        (
            ["encoder.trunk=deep"],
            "encoder.trunk must be one of mlp, iwae, iwhvi, gated, gated_conv, resnet, got 'deep'",
        ),
        (
            ["decoder=resnet", "decoder.hidden=[2,2,2,2,2,2,2]"],
            "decoder.hidden must have fewer stages for images of 28x28 pixels, which 6 stages halve to less than 1, "
            "got [2, 2, 2, 2, 2, 2, 2]",
        ),
        (["prior=chained", "latent_dim=1"], "prior=chained: latent_dim must be >= 2 for a prior of two layers, got 1"),
        (
            ["prior=chained", "prior.top_dim=32"],
            "prior.top_dim must be a whole number >= 1 and < latent_dim=32, got 32",
        ),
        (
            ["prior=vamp", "encoder=iaf"],
            "prior=vamp: the prior needs an encoder whose q(z|x) is a diagonal Gaussian in closed form: use "
            "encoder=gaussian, or prior=mixture or prior=realnvp",
        ),
        (["objective=tvo", "k=4", "objective.first=2.0"], "objective.first must be between 0 and 1, got 2.0"),
    ],
)
def test_build_names_the_key(words: list[str], message: str | None, default_data_dir: Path):
    small = [word for word in SMALL if not any(word.split("=")[0] == given.split("=")[0] for given in words)]
    config = compose([*small, *words, f"data_dir={default_data_dir}"])
    if message is None:  # Control: the same build without an invalid argument.
        experiment.build(config)
        return
    with pytest.raises(UserError) as caught:
        experiment.build(config)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (
            "hvm",
            ["encoder=gaussian"],
            "objective=hvm needs a hierarchical encoder, not encoder=gaussian: use encoder=hvm",
        ),
        ("sivi", ["encoder=iaf"], "objective=sivi needs a hierarchical encoder, not encoder=iaf: use encoder=sivi"),
        (
            "sivi",
            ["encoder=iwhvi"],
            "objective=sivi trains with inner samples from q(psi|x), not encoder=iwhvi: use encoder=sivi",
        ),
        (
            "iwhvi",
            ["encoder=sivi"],
            "objective=iwhvi trains with inner samples from a learned tau(psi|z,x), not encoder=sivi: use "
            "encoder=iwhvi",
        ),
        (
            "sivi",
            ["encoder=uivi"],
            "objective=sivi trains with inner samples from q(psi|x), not encoder=uivi: use encoder=sivi",
        ),
        ("hvm", ["encoder=hvm"], None),
        ("hvm", ["encoder=uivi"], None),
        ("iwhvi", ["encoder=adgm"], None),
        ("sivi", ["encoder=sivi"], None),
    ],
)
def test_facts_of_the_encoder_decide_on_the_objective(
    name: str, words: list[str], message: str | None, default_data_dir: Path
):
    """The name is set behind the checks of words, as a config.yaml or a Python caller can."""
    config = compose([*SMALL, *words, "latent_dim=2", f"data_dir={default_data_dir}"])
    config = replace(config, objective=replace(config.objective, name=name))
    if message is None:
        experiment.build(config)
        return
    with pytest.raises(UserError) as caught:
        experiment.build(config)
    assert str(caught.value) == message


def test_only_means_of_log_weights_are_linear():
    linear = [name for name in ("elbo", "iwae", "vr_max") if objective(name).linear]
    assert linear == ["elbo"]
    assert objective("beta", kl_weight=2.0).linear
    assert objective("free_bits", nats=2.0).linear
    assert not objective("piwae", groups=2).linear
    assert not objective("ciwae", beta=0.5).linear


@pytest.mark.parametrize(
    "check",
    [
        lambda: at_least(1, a=1),
        lambda: above(0, a=1e-9),
        lambda: between(0, 1, a=0.5),
        lambda: one_of(["x"], a="x"),
        lambda: one_of([1, 2], a=2),
        lambda: widths(a=(1,)),
    ],
)
def test_valid_arguments_pass(check: Callable[[], None]):
    check()


@pytest.mark.parametrize(
    "check",
    [
        lambda: at_least(1, a=2, b=float("nan")),
        lambda: above(0, a=1, b=0),
        lambda: between(0, 1, a=0.5, b=1),
        lambda: one_of(["x"], a="x", b="y"),
        lambda: one_of([1, 2], a=1, b=3),
        lambda: widths(a=[1], b=[True]),
        lambda: widths(b=[]),
    ],
)
def test_every_argument_is_checked(check: Callable[[], None]):
    with pytest.raises(ValueError, match=r"^b must be"):
        check()
