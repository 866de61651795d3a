"""Options of the hierarchical encoders: DReG and extra steps for tau, its gate, and SIVI's implicit sampler."""

import copy
import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from oracles.scalar import HIERARCHICAL, IMAGE, Named, Replicated, exact_gradient, model
from torch import Tensor
from toys import (
    Mean,
    X,
    Z,
    gated_hierarchy,
    implicit_hierarchy,
    learned,
    linear_gaussian,
    network_hierarchy,
    posterior_hierarchy,
    wide_hierarchy,
)

import vaebench
from vaebench import bounds, gradients, noise, objective
from vaebench.encoders.base import BuildContext
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.encoders.implicit import StochasticLayers
from vaebench.encoders.reverse import GatedReverse
from vaebench.errors import UserError
from vaebench.nets.networks import Networks
from vaebench.objective import Objective, evidence
from vaebench.train.update import Settings
from vaebench.train.updates import updates

pytestmark = pytest.mark.usefixtures("float64")

REPLICATES = 40_000
IWAE5 = Named("iwae", 5)
TAU = ("reverse_slope", "reverse_offset", "reverse_log_scale")


# DReG for tau ---------------------------------------------------------------------------------------------


def tau_samples(
    bound: Named,
    inner_k: int,
    beta: float = 1.0,
    tau_gradient: str = "dreg",
    values: Mapping[str, float] = HIERARCHICAL,
) -> dict[str, Tensor]:
    """Return independent samples of the gradient in each parameter, (B, 1)."""
    toy = Replicated(values, REPLICATES)
    assert isinstance(toy.encoder, HierarchicalEncoder)
    toy.encoder.tau_gradient = tau_gradient
    x = torch.full((REPLICATES, 1), IMAGE)
    value, _ = Objective(bound.function)(model(), toy.encoder, x, bound.k, inner_k=inner_k, beta=beta)
    value.sum().backward()
    return {key: parameter.grad for key, parameter in toy.parameters.items() if parameter.grad is not None}


def errors(found: Mapping[str, Tensor], truth: Mapping[str, float]) -> dict[str, float]:
    assert found.keys() == truth.keys()
    return {key: Mean.of(found[key]).errors_above(truth[key]) for key in truth}


@pytest.mark.parametrize(
    ("bound", "beta"),
    [
        (Named("elbo", 2), 1.0),
        (Named("elbo", 2), 0.4),
        (IWAE5, 1.0),
        (IWAE5, 0.4),
        (Named("miwae", 6, 2), 1.0),
        (Named("ciwae", 4, 0.3), 0.6),
        (Named("renyi", 4, 0.5), 1.0),
    ],
    ids=str,
)
def test_the_expected_gradient_is_exact_for_every_bound(bound: Named, beta: float):
    """In tau's parameters, and in those of q, which its samples reach through z."""
    found = errors(tau_samples(bound, 1, beta), exact_gradient(HIERARCHICAL, bound, 1, beta))
    assert max(abs(error) for error in found.values()) < 4.5, found


@pytest.mark.parametrize(("bound", "inner_k"), [(Named("elbo", 1), 6), (Named("iwae", 3), 4)], ids=str)
def test_it_agrees_with_the_plain_gradient_for_many_inner_samples(bound: Named, inner_k: int):
    found = []
    for tau_gradient in ("reparam", "dreg"):
        torch.manual_seed(1)
        found.append(tau_samples(bound, inner_k, 0.7, tau_gradient))
    for key, plain in found[0].items():
        assert abs(Mean.of(found[1][key] - plain).errors_above(0)) < 4.5, key
    assert (found[1]["reverse_slope"] - found[0]["reverse_slope"]).abs().max() > 0.01


def test_it_is_unbiased_for_the_thermodynamic_objective():
    """There the slope of a weight may be negative."""
    betas = bounds.tvo_schedule(3, 0.1)
    found = []
    for tau_gradient in ("reparam", "dreg"):
        torch.manual_seed(1)
        toy = Replicated(HIERARCHICAL, REPLICATES)
        assert isinstance(toy.encoder, HierarchicalEncoder)
        toy.encoder.tau_gradient = tau_gradient
        x = torch.full((REPLICATES, 1), IMAGE)
        tvo = Objective(bounds.iwae, target=lambda log_w: bounds.tvo(log_w, betas))
        tvo(model(), toy.encoder, x, 4, inner_k=2)[0].sum().backward()
        found.append([parameter.grad for parameter in toy.parameters.values()])
    for plain, dreg in zip(*found, strict=True):
        assert plain is not None
        assert dreg is not None
        assert abs(Mean.of(dreg - plain).errors_above(0)) < 4.5


def test_the_formula_for_one_draw():
    """b_0 dlog tau(psi_0)/deta - sum_l b_l^2 (dlog r/dpsi)(dpsi_l/deta), with the sign of -log_q, by hand."""
    toy, x, inner_k = wide_hierarchy(), torch.randn(5, 3), 3
    tau = toy.rough_reverse()
    encoder = HierarchicalEncoder(toy.mixing, toy.conditional, tau, tau_gradient="dreg")
    with noise.keyed(4, torch.arange(5)):
        draw = encoder.draw(x, 1, inner_k=inner_k)
    found = torch.autograd.grad(-draw.log_q.sum(), list(tau.parameters()))
    with noise.keyed(4, torch.arange(5)):
        z, psi = HierarchicalEncoder(toy.mixing, toy.conditional, tau).draw(x, 1, path_only=True).paths
    z, psi = z.detach(), psi.detach()
    live = tau(z, tau.condition(x))
    with noise.keyed(4, torch.arange(5)), noise.inner_samples(0):
        inner = live.rsample((inner_k,))

    def log_r(psi: Tensor) -> Tensor:
        fixed = tau(z, tau.condition(x))
        conditional = toy.conditional(psi, toy.conditional.condition(x)).log_prob(z)
        return toy.mixing(x).log_prob(psi) + conditional - fixed.log_prob(psi)

    point = inner.detach().requires_grad_()
    (slope,) = torch.autograd.grad(log_r(point).sum(), point)
    share = torch.cat([log_r(psi).unsqueeze(0), log_r(inner)]).softmax(0).detach()
    surrogate = (share[0] * live.log_prob(psi)).sum() - (share[1:, ..., None].square() * slope * inner).sum()
    expected = torch.autograd.grad(surrogate, list(tau.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-11
        assert theirs.abs().max() > 1e-3


def test_the_value_is_the_same():
    x, toy = torch.randn(6, 3), wide_hierarchy()
    values = []
    for tau_gradient in ("reparam", "dreg"):
        encoder = HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse(), tau_gradient=tau_gradient)
        for quiet in (False, True):
            torch.manual_seed(2)
            with torch.set_grad_enabled(not quiet):
                values.append(Objective(bounds.iwae)(linear_gaussian(), encoder, x, 4, inner_k=3)[0])
    assert all((value - values[0]).abs().max() < 1e-13 for value in values)


def test_the_variance_is_smaller():
    """Near the optimum of tau most: there the path derivatives vanish, and the scores do not."""
    slope, variance = HIERARCHICAL["slope"], math.exp(2 * HIERARCHICAL["log_scale"])
    precision = math.exp(-2 * HIERARCHICAL["mixing_log_scale"]) + slope**2 / variance
    near = {
        **HIERARCHICAL,
        "reverse_slope": 1.05 * slope / variance / precision,
        "reverse_log_scale": -0.5 * math.log(precision),
    }
    plain = tau_samples(Named("elbo", 1), 8, tau_gradient="reparam", values=near)
    dreg = tau_samples(Named("elbo", 1), 8, values=near)
    for key in TAU:
        assert dreg[key].var() < 0.5 * plain[key].var(), key
    # In q's parameters nothing much changes.
    assert dreg["offset"].var() < 1.2 * plain["offset"].var()


def test_control_without_the_second_factor_it_is_biased_for_several_draws(monkeypatch: pytest.MonkeyPatch):
    """b^2 alone is right for the ELBO, and wants 2 - a_m for the importance-weighted bound."""
    truth = exact_gradient(HIERARCHICAL, IWAE5, 1)
    monkeypatch.setattr(objective, "rescale_inner_paths", lambda *_: None)
    found = errors(tau_samples(IWAE5, 1), truth)
    assert max(abs(found[key]) for key in TAU) > 20, found


def test_control_a_factor_of_two_is_wrong(monkeypatch: pytest.MonkeyPatch):
    """2 in place of 2 - a_m."""

    def doubled(paths: tuple[Tensor, ...], *_: object) -> None:
        for path in paths:
            path.register_hook(lambda gradient: 2 * gradient)

    monkeypatch.setattr(objective, "rescale_inner_paths", doubled)
    found = errors(tau_samples(IWAE5, 1), exact_gradient(HIERARCHICAL, IWAE5, 1))
    assert max(abs(found[key]) for key in TAU) > 8, found


def test_control_forgetting_the_warm_up_is_wrong(monkeypatch: pytest.MonkeyPatch):
    kept = gradients.rescale_inner_paths
    monkeypatch.setattr(objective, "rescale_inner_paths", lambda paths, w, bound, beta: kept(paths, w, bound, 1.0))
    found = errors(tau_samples(IWAE5, 1, 0.4), exact_gradient(HIERARCHICAL, IWAE5, 1, 0.4))
    assert max(abs(found[key]) for key in TAU) > 8, found


def test_at_an_exact_reverse_model_only_the_score_of_psi_0_is_left():
    """log r is constant in psi, hence no path derivative; what is left is b_0 = 1/(L+1) of a score."""
    toy, x = posterior_hierarchy(), torch.randn(5, 3)
    tau = toy.exact_reverse()
    encoder = HierarchicalEncoder(toy.mixing, toy.conditional, tau, tau_gradient="dreg")
    with noise.keyed(4, torch.arange(5)):
        draw = encoder.draw(x, 1, inner_k=3)
    found = torch.autograd.grad(-draw.log_q.sum(), list(tau.parameters()))
    with noise.keyed(4, torch.arange(5)):
        z, psi = HierarchicalEncoder(toy.mixing, toy.conditional, tau).draw(x, 1, path_only=True).paths
    score = tau(z.detach(), tau.condition(x)).log_prob(psi.detach()).sum() / 4
    for ours, theirs in zip(found, torch.autograd.grad(score, list(tau.parameters())), strict=True):
        assert (ours - theirs).abs().max() < 1e-12


# Extra steps for tau --------------------------------------------------------------------------------------


def test_the_extra_loss_is_the_mean_of_log_q_and_reaches_tau_alone():
    encoder, x = network_hierarchy(), torch.randn(7, 3)
    encoder.tau_steps = 3
    ((name, player),) = encoder.auxiliary_losses().items()
    assert (name, player.repeats, player.exclusive) == ("tau", 3, False)
    evidence(linear_gaussian(), encoder, x, 2, inner_k=4)
    with noise.keyed(8, torch.arange(7)):
        loss = player.loss(x)
    with noise.keyed(8, torch.arange(7)), torch.no_grad():
        expected = encoder.draw(x, 1, inner_k=4).log_q.mean()
    assert isinstance(loss, Tensor)
    assert (loss - expected).abs() < 1e-12
    loss.backward()
    for key, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == key.startswith("reverse."), key


@pytest.mark.parametrize("tau_gradient", ["reparam", "dreg"])
@pytest.mark.parametrize("inner_k", [0, 4])
def test_extra_steps_close_the_gap(inner_k: int, tau_gradient: str):
    toy, x = wide_hierarchy(1.8), torch.randn(200, 3)
    tau = toy.rough_reverse()
    encoder = HierarchicalEncoder(toy.mixing, toy.conditional, tau, tau_gradient=tau_gradient, tau_steps=1)

    def gap() -> float:
        with torch.no_grad():
            draw = encoder.draw(x, 50, inner_k=inner_k)
            return (draw.log_q - toy.marginal(x).log_prob(draw.z)).mean().item()

    before = gap()
    evidence(linear_gaussian(), encoder, x, 1, inner_k=inner_k)
    (player,) = encoder.auxiliary_losses().values()
    optimizer = torch.optim.Adam(player.parameters, lr=0.03)
    q = copy.deepcopy([*toy.mixing.parameters(), *toy.conditional.parameters()])
    for _ in range(150):
        optimizer.zero_grad()
        loss = player.loss(x)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
    assert 0 < gap() < 0.2 * before
    assert all(map(torch.equal, q, [*toy.mixing.parameters(), *toy.conditional.parameters()]))


def test_there_are_no_extra_steps_by_default():
    toy = wide_hierarchy()
    assert learned().auxiliary_losses() == {}
    assert HierarchicalEncoder(toy.mixing, toy.conditional, None, tau_steps=2).auxiliary_losses() == {}


def test_warm_up(default_data_dir: Path):
    """The main loss rests and tau learns; then the main loss learns, and tau's own steps end unless asked for."""
    torch.set_default_dtype(torch.float32)
    fast = ["encoder.hidden=[4]", "decoder.hidden=[4]", "latent_dim=2", "device=cpu", f"data_dir={default_data_dir}"]
    for steps, until in ((0, 2), (3, math.inf)):
        experiment = vaebench.build(["encoder=hvm", "encoder.tau_warmup=2", f"encoder.tau_steps={steps}", *fast])
        assert isinstance(experiment.encoder, HierarchicalEncoder)
        main, tau = updates(experiment)
        assert (tau.repeats, tau.ends, main.starts) == (max(1, steps), until, 2)
        for epoch, update, learns in ((1.5, main, ()), (1.5, tau, ("reverse",)), (2.0, main, ("mixing", "reverse"))):
            before = copy.deepcopy(experiment.encoder.state_dict())
            update.step(torch.rand(8, 784), Settings(1, 0, 1.0), epoch, with_norm=False)
            changed = {key for key, value in experiment.encoder.state_dict().items() if not value.equal(before[key])}
            assert all(any(key.startswith(part) for key in changed) for part in learns)
            assert learns or not changed
            assert update is main or all(key.startswith("reverse") for key in changed)


def test_a_warm_up_that_fills_the_training_is_refused(default_data_dir: Path):
    torch.set_default_dtype(torch.float32)
    fast = ["encoder.hidden=[4]", "decoder.hidden=[4]", "latent_dim=2", "device=cpu", f"data_dir={default_data_dir}"]
    experiment = vaebench.build(["encoder=iwhvi", "encoder.tau_warmup=3", "trainer.epochs=3", *fast])
    with pytest.raises(UserError, match="within the warm-up of 3 epochs"):
        updates(experiment)


# The gate -------------------------------------------------------------------------------------------------


def gated(bias: float) -> tuple[HierarchicalEncoder, GatedReverse]:
    encoder = gated_hierarchy()
    assert isinstance(encoder.reverse, GatedReverse)
    torch.nn.init.zeros_(encoder.reverse.gate.weight)
    torch.nn.init.constant_(encoder.reverse.gate.bias, bias)
    return encoder, encoder.reverse


def test_a_closed_gate_is_sivi_and_an_open_one_iwhvi():
    x = torch.randn(5, 3)
    for bias, reverse in ((-60.0, None), (60.0, "its own")):
        encoder, gate = gated(bias)
        plain = HierarchicalEncoder(encoder.mixing, encoder.conditional, gate.proposal if reverse else None)
        values = []
        for each in (encoder, plain):
            torch.manual_seed(3)
            values.append(evidence(linear_gaussian(), each, x, 4, inner_k=3).log_weights())
        assert (values[0] - values[1]).abs().max() < 1e-12


def test_a_gate_half_open_lies_between():
    encoder, gate = gated(0.0)
    x, z = torch.randn(5, 3), torch.randn(2, 5, 2)
    tau, own, mixing = gate(z, gate.condition(x)), gate.proposal(z, gate.proposal.condition(x)), encoder.mixing(x)
    assert (tau.mean - (own.mean + mixing.mean) / 2).abs().max() < 1e-12
    assert (tau.scale - (own.scale + mixing.scale) / 2).abs().max() < 1e-12


def test_the_mixing_distribution_is_the_encoder_s_and_not_the_gate_s():
    encoder, gate = gated(0.0)
    assert len(list(encoder.parameters())) == len(set(encoder.state_dict()))
    assert not any("mixing" in key for key in gate.state_dict())
    duplicate = copy.deepcopy(encoder)
    assert isinstance(duplicate.reverse, GatedReverse)
    assert duplicate.reverse._mixing[0] is duplicate.mixing


def test_the_gradient_through_the_gate_is_whole():
    """The mixing distribution's parameters count in tau too: by central differences."""
    encoder, _ = gated(0.5)
    x = torch.randn(4, 3)

    def value() -> Tensor:
        with noise.keyed(5, torch.arange(4)):
            return encoder.draw(x, 3, inner_k=2).log_q.mean()

    parameter = dict(encoder.named_parameters())["mixing.head.affine.bias"]
    (gradient,) = torch.autograd.grad(value(), parameter)
    with torch.no_grad():
        ends = []
        for shift in (1e-5, -2e-5):
            parameter[0] += shift
            ends.append(value())
    assert gradient[0].item() == pytest.approx((ends[0] - ends[1]).item() / 2e-5, rel=1e-6)


# SIVI's implicit sampler ----------------------------------------------------------------------------------


def atoms(encoder: HierarchicalEncoder, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Return psi for each outcome of the coin flips, (outcomes, B, D)."""
    layers = encoder.mixing
    assert isinstance(layers, StochasticLayers)
    outcomes = torch.tensor(list(itertools.product([0.25, 0.75], repeat=sum(layers.noise_dims))))
    parts = list(outcomes.split(layers.noise_dims, -1))
    with monkeypatch.context() as patch:
        patch.setattr(noise, "uniform", lambda shape, like: parts.pop(0).unsqueeze(1).expand(*shape))
        return layers(x).rsample((len(outcomes),))


def test_the_implicit_mixture_is_what_the_bound_converges_to(monkeypatch: pytest.MonkeyPatch):
    """Five coin flips make 32 equally probable psi, so that q(z|x) is a mixture of 32 Gaussians."""
    encoder, x = implicit_hierarchy(), torch.randn(6, 3)
    psi = atoms(encoder, x, monkeypatch)
    assert psi.shape == (32, 6, 2)
    spread = psi.std(0)
    assert spread.min() > 0.01
    with torch.no_grad():
        draw = encoder.draw(x, 20, inner_k=4000)
        components = encoder.conditional(psi.unsqueeze(1), encoder.conditional.condition(x))
        exact = bounds.log_mean_exp(components.log_prob(draw.z))
    assert (draw.log_q - exact).abs().max() < 0.05
    # Control: its first component alone.
    assert (draw.log_q - components.log_prob(draw.z)[0]).abs().max() > 0.1


def test_coins_are_fair_and_psi_differ():
    encoder, x = implicit_hierarchy(), torch.zeros(1, 3)
    psi = encoder.mixing(x).rsample((4000,)).squeeze(1)
    counts = psi[:, 0].mul(1e9).round().unique(return_counts=True)[1]
    assert len(counts) == 32
    assert counts.min() > 80
    assert counts.max() < 175


def test_an_implicit_distribution_cannot_be_scored():
    encoder, x = implicit_hierarchy(), torch.zeros(1, 3)
    with pytest.raises(NotImplementedError, match="reverse=None"):
        encoder.mixing(x).log_prob(torch.zeros(1, 2))


# Configuration --------------------------------------------------------------------------------------------


def site() -> BuildContext:
    return BuildContext(Networks("mlp", [5, 4], "tanh"), X, Z, linear_gaussian())


def test_the_paper_s_layers():
    """Each stage has the configured hidden layers and gives as many features as it has coins."""
    encoder = HierarchicalEncoder.build(
        site(), psi_dim=Z, learned_reverse=False, sampler="bernoulli_noise", noise_dims=[150, 100, 50]
    )
    layers = encoder.mixing
    assert isinstance(layers, StochasticLayers)
    shapes = [tuple(stage.from_u.weight.shape) for stage in layers.stages]
    assert shapes == [(5, 150), (5, 150 + 100), (5, 100 + 50)]
    assert [stage.layers[-1].out_features for stage in layers.stages] == [150, 100, 4]
    assert encoder.no_path_gradient is not None
    with torch.no_grad():
        draw = encoder.draw(torch.rand(3, X), 2, inner_k=4)
    assert draw.log_q.shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "bernouli_noise"}, "did you mean 'bernoulli_noise'"),
        ({"sampler": "bernoulli_noise", "noise_dims": [3], "psi_dim": 7}, "psi_dim has to be latent_dim=2"),
        ({"sampler": "bernoulli_noise", "noise_dims": []}, "noise_dims"),
        ({"sampler": "bernoulli_noise", "noise_dims": [3, 0]}, "noise_dims"),
        ({"learned_reverse": True, "tau_gradient": "stl"}, "tau_gradient must be one of reparam, dreg"),
        ({"learned_reverse": True, "tau_gate": "open"}, "tau_gate must be a number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], words: str):
    with pytest.raises(UserError, match=words):
        HierarchicalEncoder.build(site(), **{"psi_dim": Z, "learned_reverse": False, **settings})  # pyright: ignore


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["encoder=sivi", "encoder.sampler=bernoulli_noise", "objective.gradient=stl"], "no density of psi"),
        (["encoder=iwhvi", "encoder.tau_gradient=dreg", "objective.gradient=stl"], "tau_gradient=dreg"),
    ],
)
def test_path_gradients_are_refused_with_the_reason(overrides: list[str], words: str, default_data_dir: Path):
    torch.set_default_dtype(torch.float32)
    fast = ["encoder.hidden=[4]", "decoder.hidden=[4]", "latent_dim=2", "device=cpu", f"data_dir={default_data_dir}"]
    with pytest.raises(UserError, match=words):
        vaebench.build([*overrides, *fast])


def test_the_auxiliary_generative_model_is_hvm(default_data_dir: Path):
    """The same cell of the grid under its other name: the same weights for the same seed."""
    torch.set_default_dtype(torch.float32)
    fast = ["encoder.hidden=[4]", "decoder.hidden=[4]", "latent_dim=2", "device=cpu", f"data_dir={default_data_dir}"]
    values = []
    for name in ("adgm", "hvm"):
        experiment = vaebench.build([f"encoder={name}", *fast])
        torch.manual_seed(3)
        with torch.no_grad():
            x = torch.ones(4, 784)
            values.append(evidence(experiment.model, experiment.encoder, x, 3).log_weights())
    assert torch.equal(values[0], values[1])
