"""Adversarial variational Bayes: the discriminator finds the log-ratio, and nothing takes it for a bound."""

import copy
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.adversarial import (
    DUAL_LOSS,
    SETTINGS,
    T_STAR,
    Affine,
    Q,
    Quadratic,
    StatePrior,
    States,
    StateTable,
    train_discriminator,
)
from oracles.finite import PRIOR, Likelihood
from oracles.scalar import GAUSSIAN, IMAGE, Named, exact_gradient
from oracles.scalar import model as scalar_model
from scipy.integrate import quad
from scipy.stats import kstest, norm
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence
from toys import FAMILIES, ConstantDecoder, LinearGaussian, Mean, linear_gaussian, one_image

from vaebench import bounds, experiment, noise
from vaebench.config import Config, compose, run_folder
from vaebench.distributions import DiagonalNormal, FullStudentT
from vaebench.encoders.adversarial import AdversarialEncoder
from vaebench.encoders.base import Direction, Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.encoders.moments import MomentMatchedEncoder
from vaebench.encoders.uivi import UnbiasedEncoder
from vaebench.errors import UserError
from vaebench.estimators.importance import log_likelihood, log_likelihoods
from vaebench.estimators.sampling import Sampling
from vaebench.evaluate.run import evaluate
from vaebench.gradients import GradientEstimator, is_curved
from vaebench.model import GenerativeModel
from vaebench.nets.adversarial import BasisSampler, LogRatio, NoiseFedSampler, RatioNetwork, Sampler, matched
from vaebench.nets.dense import MLP, AdditiveMLP
from vaebench.objective import Objective, evidence, weigh
from vaebench.priors import StandardNormalPrior
from vaebench.records import RunFolder, read_metrics, read_results
from vaebench.records.checkpoint import Checkpoints
from vaebench.train import validation
from vaebench.train.header import header
from vaebench.train.losses import AuxiliaryUpdateLoss, BoundLoss
from vaebench.train.replicas import Replicas
from vaebench.train.schedules import StepSettings
from vaebench.train.session import train
from vaebench.train.update import Update
from vaebench.train.validation import validate


@pytest.fixture
def states() -> tuple[AdversarialEncoder, StateTable]:
    """An encoder over two states with a discriminator at its optimum, found by the player."""
    table = StateTable()
    encoder = AdversarialEncoder(States(Q), table, StatePrior())
    train_discriminator(encoder, torch.ones(100, 1), 600, 4.0, sgd=True)
    return encoder, table


@pytest.mark.usefixtures("float64")
def test_the_log_ratio_of_finitely_many_states(states: tuple[AdversarialEncoder, StateTable]):
    encoder, table = states
    assert table.values.tolist() == pytest.approx([math.log(q / p) for q, p in zip(Q, PRIOR, strict=True)], abs=1e-10)
    assert table.values.tolist() == pytest.approx(T_STAR, abs=1e-7)
    scored = encoder.discriminator_loss(torch.ones(100, 1))
    assert scored.loss.item() == pytest.approx(DUAL_LOSS, abs=1e-9)
    assert scored.metrics["accuracy"].item() == pytest.approx((0.61 + 0.7) / 2)
    assert scored.metrics["ratio_max"].item() == pytest.approx(T_STAR[0], abs=1e-7)
    assert scored.metrics["ratio_min"].item() == pytest.approx(T_STAR[1], abs=1e-7)


@pytest.mark.usefixtures("float64")
def test_with_the_true_log_ratio_the_bound_is_the_elbo(states: tuple[AdversarialEncoder, StateTable]):
    drawn = evidence(GenerativeModel(StatePrior(), Likelihood()), states[0], torch.ones(100, 1), 1, estimate=True)
    assert drawn.log_weights().mean().item() == pytest.approx(-2.3895286242, abs=1e-9)


@pytest.mark.usefixtures("float64")
def test_control_swapped_labels_are_caught():
    """Telling p(z) from q instead gives the negative of the log-ratio, and a table that fits it has a larger loss."""
    table = StateTable()
    swapped = AdversarialEncoder(States(PRIOR), table, StatePrior(Q))
    train_discriminator(swapped, torch.ones(100, 1), 600, 4.0, sgd=True)
    assert table.values.tolist() == pytest.approx([-t for t in T_STAR], abs=1e-7)
    right = AdversarialEncoder(States(Q), table, StatePrior())
    assert right.discriminator_loss(torch.ones(100, 1)).loss.item() > DUAL_LOSS + 0.3


# Gaussians ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_the_discriminator_reaches_the_kl_divergence_of_gaussians():
    """q = N(m, C) against N(0, I): E_q T* = KL, and T* itself is a known quadratic."""
    mean, factor = torch.tensor([0.3, -0.4]), torch.tensor([[0.8, 0.0], [0.3, 1.1]])
    q, prior = MultivariateNormal(mean, factor @ factor.T), MultivariateNormal(torch.zeros(2), torch.eye(2))
    ratio = Quadratic(2)
    encoder = AdversarialEncoder(Affine(torch.zeros(2, 3), mean, factor), ratio, StandardNormalPrior(2))
    train_discriminator(encoder, torch.zeros(4000, 3), 600, 0.05)
    z = q.sample((100_000,))
    with torch.no_grad():
        found, truth = ratio(z, z), q.log_prob(z) - prior.log_prob(z)
    assert (found - truth).square().mean().sqrt() < 0.05
    assert found.mean().item() == pytest.approx(kl_divergence(q, prior).item(), abs=0.02)
    drawn = encoder.draw(torch.zeros(500, 3), 4)
    with torch.no_grad():
        assert (drawn.log_q - q.log_prob(drawn.z)).abs().mean() < 0.05


SEEING = dict.fromkeys((True, False))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sees_x", [True, False], ids=["sees x", "control: blind to x"])
def test_the_discriminator_has_to_see_x(sees_x: bool):
    """q(z|x) = N(x, .5^2) for x = -1, 1: without x, only the KL divergence of the mixture can be found."""

    class Blind(RatioNetwork):
        def condition(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().condition(torch.zeros_like(x))

    ratio = (RatioNetwork if sees_x else Blind)(1, 1, [24, 24], "elu", quadratic=True)
    sampler = Affine(torch.ones(1, 1), torch.zeros(1), torch.tensor([[0.5]]))
    encoder = AdversarialEncoder(sampler, ratio, StandardNormalPrior(1))
    train_discriminator(encoder, torch.tensor([-1.0, 1.0]).repeat(100).unsqueeze(-1), 400, 1e-2)
    x = torch.tensor([-1.0, 1.0]).repeat(5000).unsqueeze(-1)
    with torch.no_grad():
        drawn = encoder.draw(x, 1)
        kl = (drawn.log_q - StandardNormalPrior(1)().log_prob(drawn.z)).mean().item()
    truth = math.log(2) - 0.5 + 0.5 * (0.25 + 1)
    assert (abs(kl - truth) < 0.06) is sees_x
    assert sees_x or kl < truth - 0.4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("quadratic", [False, True])
def test_the_log_ratio_is_its_formula(quadratic: bool):
    """In values and in all gradients: the product with s(z)'s weights is made for x, and not for each z."""
    ratio = RatioNetwork(5, 3, [8, 7], "elu", quadratic=quadratic)
    nn.init.normal_(ratio.z_terms.bias)
    nn.init.normal_(ratio.x_term.bias)
    x, z = torch.rand(4, 5), torch.randn(6, 4, 3, requires_grad=True)
    features = ratio.x_trunk(x)
    terms = ratio.z_terms(ratio.z_trunk(z))
    learned = (features * terms[..., :-1]).sum(-1) / 7**0.5 + ratio.x_term(features).squeeze(-1) + terms[..., -1]
    expected = 100 * torch.asinh(learned / 100) + (0.5 * z.square().sum(-1) if quadratic else 0)
    found = ratio(z, ratio.condition(x))
    assert (found - expected).abs().max() < 1e-13
    inputs = [z, *ratio.parameters()]
    weights = torch.randn(6, 4)
    for mine, plain in zip(
        torch.autograd.grad((weights * found).sum(), inputs),
        torch.autograd.grad((weights * expected).sum(), inputs),
        strict=True,
    ):
        assert (mine - plain).abs().max() < 1e-12


# Adaptive contrast ----------------------------------------------------------------------------------------


def contrasted(scale: float = 0.7, ratio: LogRatio | None = None) -> AdversarialEncoder:
    """An encoder under adaptive contrast whose q(z|x) is the diagonal Gaussian r(z|x), but for the floor."""
    sampler = Affine(torch.tensor([[0.5, 0.1, 0.0], [0.0, -0.3, 0.2]]), torch.tensor([0.1, 0.2]), scale * torch.eye(2))
    return AdversarialEncoder(sampler, ratio or Quadratic(2), None, full=False)


@pytest.mark.usefixtures("float64")
def test_against_q_itself_the_log_ratio_is_zero_and_the_bound_the_elbo():
    model, x, encoder = linear_gaussian(), one_image(4000), contrasted()
    drawn = encoder.draw(x, 1)
    mean = encoder.sampler.condition(x)
    r = DiagonalNormal(mean, torch.full_like(mean, (0.49 + 1e-4) ** 0.5))
    assert (drawn.log_q - r.log_prob(drawn.z)).abs().max() < 1e-12
    elbo = sum(model.log_joint(x, drawn.z)) - r.log_prob(drawn.z)
    assert (weigh(model, x, drawn).log_weights() - elbo).abs().max() < 1e-12
    # T = 0 is where the player wants to stay.
    train_discriminator(encoder, x, 300, 0.02)
    with torch.no_grad():
        assert (encoder.draw(x, 1).log_q - drawn.log_q.mean()).mean().abs() < 0.06
        assert encoder.discriminator_loss(x).loss.item() == pytest.approx(2 * math.log(2), abs=5e-3)


@pytest.mark.usefixtures("float64")
def test_one_scale_standardises_and_scores():
    """Where z has all but collapsed, log Var in place of log (Var + 1e-4) would be off by nats."""
    encoder, x = contrasted(scale=1e-3), torch.zeros(1, 3)
    seen = []
    encoder.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    drawn = encoder.draw(x, 3)
    std = (1e-6 + 1e-4) ** 0.5
    standardised = (drawn.z - encoder.sampler.condition(x)) / std
    assert torch.allclose(seen[0], standardised)
    expected = -0.5 * standardised.square().sum(-1) - 2 * math.log(std) - math.log(2 * math.pi)
    assert torch.allclose(drawn.log_q, expected)
    assert (drawn.log_q - (expected - 2 * math.log(1e-3 / std))).abs().min() > 4


@pytest.mark.usefixtures("float64")
def test_with_a_trained_ratio_log_q_is_the_log_density_whatever_the_contrast():
    """q with correlated coordinates: r is a diagonal Gaussian, T makes up for the difference."""
    factor = torch.tensor([[0.6, 0.0], [0.5, 0.4]])
    sampler = Affine(torch.zeros(2, 3), torch.tensor([0.3, -0.2]), factor)
    encoder = AdversarialEncoder(sampler, Quadratic(2), None, full=False)
    q = MultivariateNormal(torch.tensor([0.3, -0.2]), factor @ factor.T)
    x = torch.zeros(4000, 3)
    with torch.no_grad():
        before = encoder.draw(x, 1)
    train_discriminator(encoder, x, 600, 0.05)
    with torch.no_grad():
        after = encoder.draw(x, 1)
    assert (after.log_q - q.log_prob(after.z)).square().mean().sqrt() < 0.06
    assert (before.log_q - q.log_prob(before.z)).square().mean().sqrt() > 0.5


class SigmaPoints(Affine):
    """An affine sampler whose 2 D draws have exactly its mean and covariance, so quadratics have exact means."""

    def forward(self, conditioned: Tensor, k: int) -> Tensor:
        del k
        dim = len(self.factor)
        epsilon = dim**0.5 * torch.cat([torch.eye(dim), -torch.eye(dim)]).unsqueeze(1)
        return conditioned + epsilon @ self.factor.T


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("full", [True, False], ids=["covariance", "control: variances"])
def test_against_the_covariance_correlations_need_no_log_ratio(full: bool, monkeypatch: pytest.MonkeyPatch):
    """q = N(A x + a, L L'): with T = 0 the gradient of log_q is that of minus the entropy of q, also for correlations.

    Student's t has this gradient at a standardised radius of sqrt(D), where all sigma points are. Seen from a diagonal
    r, T = 0 leaves out the KL divergence of q from r and its gradient.
    """
    monkeypatch.setattr("vaebench.nets.adversarial.VARIANCE_FLOOR", 0.0)
    model, x = linear_gaussian(), torch.randn(3, 3)
    sampler = SigmaPoints(torch.zeros(2, 3), torch.tensor([0.3, -0.2]), torch.tensor([[0.6, 0.0], [0.5, 0.2]]))
    encoder = AdversarialEncoder(sampler, Quadratic(2), None, full=full)
    drawn = encoder.draw(x, 4)
    found = weigh(model, x, drawn).log_weights().mean()

    mean, covariance = sampler.condition(x), sampler.factor @ sampler.factor.T
    q = MultivariateNormal(mean, covariance)
    elbo = (sum(model.log_joint(x, sampler(mean, 4))) + q.entropy()).mean()
    (mine,) = torch.autograd.grad(found, sampler.factor)
    (exact,) = torch.autograd.grad(elbo, sampler.factor)
    assert bool((mine - exact).abs().max() < 1e-11) is full
    if not full:
        r = MultivariateNormal(mean, torch.diag(covariance.diagonal()))
        missed = kl_divergence(q, r).mean().item()
        assert missed > 0.5
        assert found.item() == pytest.approx(elbo.item() + missed, abs=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("full", [True, False], ids=["student", "control: Gaussian"])
def test_far_draws_are_drawn_back(full: bool):
    """q(z|x) of z ~ N(0, 1) with the posterior N(0, .3^2), and a draw 40 deviations away while T is 0.

    A Gaussian r of the posterior's scale takes away the whole force of log p(x, z) on the draw; in front of any noise
    it drifts. Student's t falls so slowly that log p(x, z) draws it back.
    """
    r = matched(Affine(torch.zeros(1, 3), torch.zeros(1), torch.tensor([[0.3]])), torch.zeros(1, 1), full=full)
    z = torch.tensor([[[12.0]]], requires_grad=True)
    posterior = DiagonalNormal(torch.zeros(1, 1), torch.full((1, 1), 0.3))
    (force,) = torch.autograd.grad((posterior.log_prob(z) - r.log_prob(z)).sum(), z)
    assert (force.item() < -100) is full


def basis_sampler(bank: int = 128, dim: int = 2, bound: float | None = None) -> BasisSampler:
    return BasisSampler(MLP(3, [8], "tanh"), dim, noise_dim=4, count=3, hidden=[6, 6], bound=bound, bank=bank)


def noise_fed_sampler(dim: int = 2, moment_draws: int = 128) -> NoiseFedSampler:
    return NoiseFedSampler(AdditiveMLP(3, 4, [8, 8], "tanh"), 4, dim, moment_draws)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "make",
    [
        lambda: basis_sampler(bank=100_000),
        lambda: basis_sampler(bank=100_000, bound=0.5),
        lambda: noise_fed_sampler(moment_draws=100_000),
    ],
    ids=["avb_ac of the paper", "avb_ac", "avb"],
)
def test_moments_are_those_of_the_draws(make: Callable[[], Sampler]):
    with torch.no_grad():
        sampler, x = make(), torch.randn(2, 3)
        conditioned = sampler.condition(x)
        mean, variance = sampler.moments(conditioned)
        z = sampler(conditioned, 100_000)
        _, covariance = sampler.moments(conditioned, full=True)
    error = z.std(0) * (2 / 100_000) ** 0.5
    assert ((z.mean(0) - mean).abs() < 4.5 * error).all()
    assert torch.allclose(z.var(0), variance, rtol=0.05)
    scales = z.std(0).unsqueeze(-1) * z.std(0).unsqueeze(-2)
    for image, found in enumerate(covariance):
        assert ((z[:, image].T.cov() - found).abs() < 0.05 * scales[image]).all()


def test_a_process_draws_its_part_of_a_batch():
    """Its noise is a strided part of the noise of all images."""
    sampler = BasisSampler(MLP(3, [4], "elu"), 2, noise_dim=2, count=3, hidden=[5])
    x, part = torch.randn(6, 3), slice(1, 4)
    torch.manual_seed(0)
    whole = sampler(sampler.condition(x), 4)
    torch.manual_seed(0)
    with noise.part_of_batch(part, 6):
        own = sampler(sampler.condition(x[part]), 4)
    torch.testing.assert_close(own, whole[:, part])


@pytest.mark.usefixtures("float64")
def test_the_moments_over_the_bank_are_exact_for_its_noise():
    """Every combination of the bank's rows, one for each basis function, is a draw; their moments are exact."""
    with torch.no_grad():
        sampler, x = basis_sampler(bank=5).eval(), torch.randn(2, 3)
        conditioned = sampler.condition(x)
        values = sampler.basis(sampler.bank.expand(3, -1, -1))  # (M, N, D)
        rows = torch.cartesian_prod(*[torch.arange(5)] * 3)
        sums = torch.stack([values[i, rows[:, i]] for i in range(3)], 1)  # (125, M, D)
        offset, coefficients = conditioned
        z = offset + (coefficients * sums.unsqueeze(1)).sum(-2)
        mean, variance = sampler.moments(conditioned)
        _, covariance = sampler.moments(conditioned, full=True)
    assert torch.allclose(z.mean(0), mean)
    assert torch.allclose(z.var(0, correction=0), variance)
    for image, found in enumerate(covariance):
        assert torch.allclose(z[:, image].T.cov(correction=0), found)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bound", [0.5, 1.0, 2.0, None], ids=["0.5", "1", "2", "control: None"])
def test_a_sampler_with_a_bound_stays_near_the_gaussian_with_its_moments(bound: float | None):
    """h is +-infinity, the worst case: z is noise +- b. Without a bound, half of the draws are one point."""
    sampler = BasisSampler(MLP(1, [1], "tanh"), 1, noise_dim=1, count=1, hidden=[1], bound=bound, bank=100_000).eval()
    with torch.no_grad():
        for parameter in sampler.parameters():
            parameter.zero_()
        # h = 2e6 elu(1e3 noise) + 1e6
        sampler.basis.weights[0].fill_(1e3)
        sampler.basis.weights[1].fill_(2e6)
        sampler.basis.biases[1].fill_(1e6)
        sampler.coefficients.bias.fill_(math.log(math.e - 1))  # a = 1
        conditioned = sampler.condition(torch.zeros(1, 1))
        z = sampler(conditioned, 10_000).flatten()
        mean, variance = (moment.item() for moment in sampler.moments(conditioned))
    most = z.unique(return_counts=True)[1].max().item()
    if bound is None:
        assert most > 4500
        return
    assert most == 1
    assert (mean, variance) == (pytest.approx(0, abs=0.03), pytest.approx(1 + bound**2, rel=0.01))

    def q(z: float) -> float:
        return float(norm.pdf(z, -bound) + norm.pdf(z, bound)) / 2

    assert kstest(z.numpy(), lambda z: (norm.cdf(z, -bound) + norm.cdf(z, bound)) / 2).pvalue > 1e-3
    scale = (1 + bound**2) ** 0.5
    kl = quad(lambda z: q(z) * math.log(q(z) / norm.pdf(z, scale=scale)), -12, 12)[0]
    assert 0 < kl < math.log(1 + bound**2) / 2


def test_the_bank_is_drawn_anew_in_training_and_fixed_afterwards():
    sampler = basis_sampler()
    conditioned = sampler.condition(torch.zeros(1, 3))
    with torch.no_grad():
        (first, _), (second, _) = sampler.moments(conditioned), sampler.moments(conditioned)
        sampler.eval()
        (third, _), (fourth, _) = sampler.moments(conditioned), sampler.moments(conditioned)
    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


# Gradients ------------------------------------------------------------------------------------------------


def networks(adaptive_contrast: bool, dim: int = 2) -> AdversarialEncoder:
    """The encoder as it is built for a run, in small."""
    ratio = RatioNetwork(3, dim, [8, 8], "elu", quadratic=not adaptive_contrast)
    sampler = basis_sampler(dim=dim) if adaptive_contrast else noise_fed_sampler(dim, 32)
    return AdversarialEncoder(sampler, ratio, None if adaptive_contrast else StandardNormalPrior(dim))


BOTH = pytest.mark.parametrize("adaptive_contrast", [False, True], ids=["avb", "avb_ac"])


@pytest.mark.usefixtures("float64")
@BOTH
def test_each_loss_moves_its_own_parameters_and_no_others(adaptive_contrast: bool):
    encoder, model, x = networks(adaptive_contrast), linear_gaussian(), torch.randn(5, 3)
    BoundLoss(Objective(bounds.elbo), model, encoder)(x, SETTINGS).value.backward()
    assert all(p.grad is None for p in encoder.discriminator.parameters())
    for name, parameter in [*encoder.sampler.named_parameters(), *model.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    encoder.zero_grad()
    model.zero_grad()
    player = encoder.auxiliary_losses()["discriminator"]
    AuxiliaryUpdateLoss(player)(x, SETTINGS).value.backward()
    assert {id(p) for p in player.parameters} == {id(p) for p in encoder.discriminator.parameters()}
    assert all(p.grad is None for p in [*encoder.sampler.parameters(), *model.parameters()])
    for name, parameter in encoder.discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.usefixtures("float64")
@BOTH
def test_the_main_gradient_runs_through_z_into_the_discriminator(adaptive_contrast: bool):
    """d log_q / d phi = (d (log r + T) / dz) dz / dphi, with r and T constant functions of z."""
    encoder, x = networks(adaptive_contrast).eval(), torch.randn(4, 3)  # with a fixed bank
    bias = dict(encoder.sampler.named_parameters())["offset.bias" if adaptive_contrast else "head.bias"]
    drawn = encoder.draw(x, 2)
    (found,) = torch.autograd.grad(drawn.log_q.sum(), bias)
    z = drawn.z.detach().requires_grad_()
    seen = encoder.discriminator.condition(x)
    if adaptive_contrast:
        r = encoder.encode(x).contrast
        assert isinstance(r, FullStudentT)
        log_q = r.log_prob(z) + encoder.discriminator(r.standardised(z), seen)
    else:
        log_q = StandardNormalPrior(2)().log_prob(z) + encoder.discriminator(z, seen)
    assert torch.allclose(log_q, drawn.log_q)
    # dz / d(bias) is the identity.
    (slope,) = torch.autograd.grad(log_q.sum(), z)
    assert torch.allclose(found, slope.sum((0, 1)))


@pytest.mark.usefixtures("float64")
def test_a_learned_prior_gets_its_gradient_and_the_ratio_cancels_none_of_it():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor([0.4, -0.3]))

        def forward(self) -> DiagonalNormal:
            return DiagonalNormal(self.shift, torch.ones(2))

    prior = Shifted()
    encoder = AdversarialEncoder(noise_fed_sampler(), Quadratic(2), prior)
    assert not any(p is prior.shift for p in encoder.parameters())
    model, x = GenerativeModel(prior, ConstantDecoder(torch.zeros(3))), torch.zeros(6, 3)
    torch.manual_seed(3)
    evidence(model, encoder, x, 2, estimate=True).log_weights().sum().backward()
    torch.manual_seed(3)
    z = encoder.draw(x, 2).z.detach()
    # d log N(z; shift, I) / d shift
    assert torch.allclose(prior.shift.grad, (z - prior.shift.detach()).sum((0, 1)))  # pyright: ignore


class Replicates(Sampler):
    """z = mean + exp(log_scale) epsilon, each row of the parameters, (B, 1), an independent replicate."""

    def __init__(self, replicates: int) -> None:
        super().__init__()
        self.mean, self.log_scale = (
            nn.Parameter(torch.full((replicates, 1), GAUSSIAN[key])) for key in ("mean", "log_scale")
        )

    def condition(self, x: Tensor) -> Tensor:
        return x

    def forward(self, conditioned: Tensor, k: int) -> Tensor:
        epsilon = noise.standard_normal((k, *conditioned.shape), conditioned)
        return self.mean + self.log_scale.exp() * epsilon

    def moments(self, conditioned: Tensor, *, full: bool = False) -> tuple[Tensor, Tensor]:
        raise AssertionError("no contrast here")


class TrueRatio(LogRatio):
    """T* = log q(z) - log p(z) for the present q, without parameters."""

    def forward(self, z: Tensor, conditioned: Tensor) -> Tensor:
        del conditioned
        q = DiagonalNormal(torch.tensor([GAUSSIAN["mean"]]), torch.tensor([GAUSSIAN["log_scale"]]).exp())
        return q.log_prob(z) - StandardNormalPrior(1)().log_prob(z)


REPLICATES = 40_000


def gradient_errors(bound: Named, gradient: GradientEstimator) -> float:
    """Return the largest distance of the mean gradient from the exact one, in standard errors."""
    sampler = Replicates(REPLICATES)
    encoder = AdversarialEncoder(sampler, TrueRatio(), StandardNormalPrior(1))
    x = torch.full((REPLICATES, 1), IMAGE)
    value, _ = Objective(bound.function, gradient)(scalar_model(), encoder, x, bound.k)
    value.sum().backward()
    truth = exact_gradient(GAUSSIAN, bound)
    found = {"mean": sampler.mean.grad, "log_scale": sampler.log_scale.grad}
    return max(abs(Mean.of(found[key]).errors_above(truth[key])) for key in truth)  # pyright: ignore


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("gradient", [GradientEstimator.REPARAM, GradientEstimator.STL])
def test_with_the_true_ratio_the_gradient_is_that_of_the_elbo(gradient: GradientEstimator):
    """E_q dT*/dphi = 0: nothing is missing."""
    assert gradient_errors(Named("elbo", 2), gradient) < 4.5


@pytest.mark.usefixtures("float64")
def test_a_bound_of_several_samples_needs_dreg():
    """There dT*/dphi does not average out; with T a constant function, DReG alone is unbiased."""
    assert gradient_errors(Named("iwae", 5), GradientEstimator.DREG) < 4.5
    assert gradient_errors(Named("iwae", 5), GradientEstimator.REPARAM) > 40


def test_which_bounds_are_curved():
    assert not is_curved(bounds.elbo, 5)
    assert not is_curved(bounds.iwae, 1)
    assert is_curved(bounds.iwae, 5)


# Proposals ------------------------------------------------------------------------------------------------


def shifted(encoder: AdversarialEncoder) -> AdversarialEncoder:
    """Spread q so that its Gaussian covers the linear-Gaussian model's posterior."""
    with torch.no_grad():
        for parameter in encoder.sampler.parameters():
            parameter *= 1.6
    return encoder


@pytest.mark.usefixtures("float64")
@BOTH
def test_the_proposal_keeps_the_contract(adaptive_contrast: bool):
    model, x = linear_gaussian(), one_image(10_000)
    torch.manual_seed(4)
    encoder = shifted(networks(adaptive_contrast))
    proposal = encoder.proposal(model)
    assert (encoder.direction, proposal.direction) == (Direction.ESTIMATE, Direction.EXACT)
    for k in (1, 3):
        with torch.no_grad():
            weights = (evidence(model, proposal, x, k).log_weights() - model.log_evidence(x)).exp().mean(0)
        mean = Mean.of(weights)
        assert mean.stderr < 0.03
        assert abs(mean.errors_above(1)) < 4
    # Control: the encoder's own weights, by a ratio that is off by half a nat.
    with torch.no_grad():
        encoder.discriminator.x_term.bias += 0.5  # pyright: ignore
        own = Mean.of((evidence(model, encoder, x, 1, estimate=True).log_weights() - model.log_evidence(x)).exp())
    assert abs(own.errors_above(1)) > 20


@pytest.mark.usefixtures("float64")
@BOTH
def test_a_seeded_estimate_depends_on_no_batch(adaptive_contrast: bool):
    """Also where the moments come from draws of their own; these are not the draws that are weighed."""
    model, x = linear_gaussian(), torch.randn(7, 3)
    encoder = shifted(networks(adaptive_contrast)).proposal(model)
    values = []
    for batch, chunk in ((7, 6), (3, 4)):
        sampling = Sampling(6, seed=5, chunk=chunk)
        parts = log_likelihoods(model, encoder, lambda rows: rows, x, sampling, batch=batch)
        values.append(torch.cat([value for _, value in parts]))
    assert torch.allclose(values[0], values[1], atol=1e-12)
    assert not torch.allclose(values[0], log_likelihood(model, encoder, x, 6, seed=6))


@pytest.mark.usefixtures("float64")
def test_the_streamed_estimate_is_unbiased_where_moments_are_drawn(monkeypatch: pytest.MonkeyPatch):
    """Moments from the very draws that are weighed would bias it: with few of them, visibly."""
    monkeypatch.setattr("vaebench.encoders.moments.MOMENT_DRAWS", 8)
    monkeypatch.setattr("vaebench.encoders.moments.DRAWS_PER_COORDINATE", 4)
    torch.manual_seed(4)
    sampler = noise_fed_sampler()
    encoder = shifted(AdversarialEncoder(sampler, Quadratic(2), StandardNormalPrior(2)))
    model, x = linear_gaussian(), one_image(40_000)
    estimates = log_likelihood(model, encoder.proposal(model), x, k=2, seed=3)
    mean = Mean.of((estimates - model.log_evidence(x)).exp())
    assert mean.stderr < 0.02
    assert abs(mean.errors_above(1)) < 4


@pytest.mark.parametrize("make", [family.make for family in FAMILIES], ids=[family.name for family in FAMILIES])
def test_every_other_encoder_is_its_own_proposal_and_keeps_its_direction(make: Callable[[], Encoder]):
    encoder = make()
    assert encoder.proposal(linear_gaussian()) is encoder
    assert encoder.direction is not Direction.ESTIMATE
    if isinstance(encoder, HierarchicalEncoder | UnbiasedEncoder):
        assert encoder.direction is encoder.with_inner_samples(tau="prior").direction is Direction.UPPER_BOUND


class Drawing(Encoder):
    """Draws from the posterior, narrower by a factor in the first coordinate; its density is unknown."""

    direction = Direction.ESTIMATE
    encode = sample = None  # pyright: ignore

    def __init__(self, model: LinearGaussian, narrower: float) -> None:
        super().__init__()
        self.gain, self.constant, variance = model.posterior()
        self.factor = torch.linalg.cholesky(variance)
        self.factor[0] *= narrower

    def latents(self, x: Tensor, k: int) -> Tensor:
        return x @ self.gain.T + self.constant + torch.randn(k, len(x), len(self.factor)) @ self.factor.T


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("correlation", "narrower"), [(0.8, 1.0), (0.0, 0.01)])
def test_widened_moments_lose_little_where_a_narrow_diagonal_gaussian_loses_much(correlation: float, narrower: float):
    generator = torch.Generator().manual_seed(0)
    weight = torch.linalg.qr(torch.randn(20, 10, generator=generator))[0]
    weight = weight @ (torch.eye(10) + correlation * torch.randn(10, 10, generator=generator))
    model = LinearGaussian(weight, torch.zeros(20), 0.5)
    x, _ = model.simulate(100)
    drawing = Drawing(model, narrower)

    def lost(proposal: Encoder) -> Mean:
        return Mean.of(model.log_evidence(x) - log_likelihood(model, proposal, x, 50, seed=0))

    assert lost(MomentMatchedEncoder(drawing, model)).value < 0.15
    # Control: the diagonal Gaussian with the same moments.
    variance, mean = torch.var_mean(drawing.latents(x, 256), 0)
    assert lost(GaussianEncoder(Constant(DiagonalNormal(mean, (variance + 1e-4).sqrt())))).value > 0.4


class Constant(nn.Module):
    def __init__(self, posterior: DiagonalNormal) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, x: Tensor) -> DiagonalNormal:
        del x
        return self.posterior


# Numbers --------------------------------------------------------------------------------------------------


@BOTH
def test_bf16_networks_give_float32_latents_and_ratios(adaptive_contrast: bool):
    encoder, x = networks(adaptive_contrast), torch.randn(5, 3)
    torch.manual_seed(1)
    exact = encoder.draw(x, 3)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder.draw(x, 3)
        loss = encoder.discriminator_loss(x).loss
    assert rough.z.dtype == rough.log_q.dtype == loss.dtype == torch.float32
    # Not on the grid of bf16.
    assert not torch.equal(rough.z, rough.z.bfloat16().float())
    assert (rough.log_q - exact.log_q).abs().max() < 0.5


def test_a_runaway_ratio_stays_finite_and_keeps_its_slope():
    ratio = RatioNetwork(3, 2, [8], "elu", quadratic=False)
    z = torch.full((1, 1, 2), 1e15, requires_grad=True)
    with torch.no_grad():
        for parameter in ratio.parameters():
            parameter.abs_()
    value = ratio(z, ratio.condition(torch.zeros(1, 3)))
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all()
    assert value.abs().item() < 1e4
    assert slope.abs().max() > 0
    small = torch.linspace(-10, 10, 21)
    assert (100 * torch.asinh(small / 100) - small).abs().max() < 0.02


@BOTH
def test_the_ratio_starts_small(adaptive_contrast: bool):
    encoder, x = networks(adaptive_contrast, dim=16), torch.rand(50, 3)
    scored = encoder.discriminator_loss(x)
    learned = scored.metrics["ratio_max"] - scored.metrics["ratio_min"]
    assert learned < (6 if adaptive_contrast else 25)
    assert set(scored.metrics) == {"accuracy", "ratio", "ratio_min", "ratio_max"}


def test_a_copy_of_model_and_encoder_uses_the_copied_prior():
    """Averaged weights are such a copy."""
    prior = StandardNormalPrior(2)
    pair = nn.ModuleDict({"prior": prior, "encoder": AdversarialEncoder(noise_fed_sampler(), Quadratic(2), prior)})
    copied = copy.deepcopy(pair)
    assert copied["encoder"]._prior[0] is copied["prior"]  # pyright: ignore
    assert copied["prior"] is not prior


# Runs -----------------------------------------------------------------------------------------------------

SMALL = [
    "latent_dim=3",
    "decoder.hidden=[8]",
    "encoder.discriminator_hidden=[8]",
    "encoder.noise_dim=4",
    "trainer.epochs=2",
    "trainer.batch_size=1000",
    "trainer.log_every=1",
    "trainer.validation_k=2",
    "trainer.image_every=0",
    "trainer.ema=0.9",
    "trainer.progress=false",
    "trainer.threads=1",
    "estimator.k=3",
    "device=cpu",
]
OF_FAMILY = {"avb": [], "avb_ac": ["encoder.basis_count=2", "encoder.basis_hidden=[4]"]}
FAMILY = pytest.mark.parametrize("family", OF_FAMILY)


@pytest.fixture
def configure(tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Make configurations of small runs, whose validation is as short."""
    monkeypatch.setattr(validation, "ANNEALING", replace(validation.ANNEALING, temperatures=4))

    def make(family: str, *overrides: str, folder: str = "runs") -> Config:
        own = [f"encoder={family}", *SMALL, *OF_FAMILY[family], *overrides]
        return compose([*own, f"output_dir={tmp_path / folder}", f"data_dir={default_data_dir}"])

    return make


def state(folder: Path) -> dict[str, Any]:
    return Checkpoints(folder / "checkpoints").load().state


TIMED = {"seconds", "chain"}
"""Keys of a checkpoint that depend on the time: ``chain`` is a digest of lines with times."""


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key not in TIMED)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@FAMILY
def test_what_a_run_says(family: str, configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]):
    """The estimate is called one; the likelihood is a bound, by a proposal that is named; both can be had."""
    folder = train(configure(family, "trainer.kl_warmup=1"))
    shown = capsys.readouterr().out
    assert "log q(z|x) by a learned estimate" in shown
    assert "likelihoods by draws from the widened moments of q, log q(z|x) exact" in shown
    assert "100 images, lower bound by AIS, initial=moments, temperatures=4, chains=2" in shown
    assert "test log p(x) >= -" in shown
    assert "proposal=widened moments" in shown
    lines = read_metrics(RunFolder(folder))
    keys = {key for line in lines for key in line}
    assert {"train/bound_estimate", "train/kl_estimate", "train/objective_estimate"} <= keys
    assert {"discriminator/accuracy", "discriminator/ratio_min", "discriminator/ratio_max"} <= keys
    assert not {"train/bound", "train/kl", "train/objective"} & keys
    evaluate(folder, ["estimator.proposal=own"])
    shown = capsys.readouterr().out
    assert "test log p(x) ~ -" in shown
    assert "(estimate, IWAE, k=3, proposal=own" in shown
    assert [record.direction for record in read_results(RunFolder(folder))] == ["lower_bound", "estimate"]


@FAMILY
def test_validation_measures_the_model_before_the_encoder(
    family: str, configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    """A fall of validation is then a fall of the model. Control: weights of the proposal fall with the encoder."""
    monkeypatch.setattr(validation, "ANNEALING", replace(validation.ANNEALING, temperatures=60))
    built = experiment.build(configure(family))
    x = built.data.observe(built.data.validation[:5])

    def both() -> tuple[float, float]:
        weighed = log_likelihood(built.model, built.encoder.proposal(built.model), x, 3, seed=0)
        return validate(built, Replicas(), built.modules), weighed.mean().item()

    before = both()
    with torch.no_grad():
        for parameter in built.encoder.parameters():
            parameter += 0.5
    after = both()
    assert before[1] - after[1] > 1
    assert abs(before[0] - after[0]) < 0.1 * (before[1] - after[1])


@FAMILY
def test_a_resumed_run_is_bitwise_the_same(
    family: str, configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    """Stopped between two optimisers' steps; both optimisers' states and every generator are in the checkpoint."""
    overrides = ["encoder.discriminator_steps=2", "encoder.discriminator_lr=3e-3"]
    whole = train(configure(family, *overrides))
    again = train(configure(family, *overrides, folder="again"))
    mine = configure(family, *overrides, folder="resumed")
    taken, step = [0], Update.step

    def counting(self: Update, *args: Any, **kwargs: Any) -> Any:
        taken[0] += 1
        if taken[0] == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Update, "step", counting)
        with pytest.raises(SystemExit):
            train(mine)
    assert state(run_folder(mine))["progress"]["step"] == 3
    resumed = train(mine)
    assert same(state(whole), state(again))
    assert same(state(whole), state(resumed))
    results = [read_results(RunFolder(folder))[0].mean for folder in (whole, again, resumed)]
    assert results[0] == results[1] == results[2]
    optimizers = state(whole)["optimizers"]
    assert set(optimizers) == {"main", "discriminator"}
    steps = {name: int(optimizer["state"][0]["step"]) for name, optimizer in optimizers.items()}
    assert steps == {"main": 8, "discriminator": 16}
    settings = {name: optimizer["param_groups"][0] for name, optimizer in optimizers.items()}
    assert (settings["discriminator"]["lr"], tuple(settings["discriminator"]["betas"])) == (3e-3, (0.9, 0.99))
    assert (settings["main"]["lr"], tuple(settings["main"]["betas"])) == (1e-3, (0.9, 0.999))


def largest_step(betas: tuple[float, float]) -> float:
    """Return the largest step of Adam, in learning rates, when a gradient that was small for long is large."""
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=1.0, betas=betas, eps=1e-12)
    steps = []
    for gradient in [1e-6] * 3_000 + [1.0] * 30:
        before, weight.grad = weight.item(), torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        steps.append(abs(weight.item() - before))
    return max(steps)


def test_steps_of_the_discriminator_are_near_the_learning_rate(configure: Callable[..., Config]):
    for encoder in ("avb", "avb_ac"):
        first, second = configure(encoder).encoder.arguments["discriminator_betas"]
        most = (1 - first) / math.sqrt((1 - second) * (1 - first**2 / second))
        assert largest_step((first, second)) <= most < 2.5
    assert largest_step((0.5, 0.999)) > 15  # the control: the paper's


def test_the_discriminator_follows_the_main_schedule(configure: Callable[..., Config]):
    settings = ["optimizer.schedule=cosine", "optimizer.final_lr=1e-4", "encoder.discriminator_lr=1e-2"]
    groups = {
        name: optimizer["param_groups"][0]["lr"]
        for name, optimizer in state(train(configure("avb", *settings)))["optimizers"].items()
    }
    assert groups["discriminator"] == pytest.approx(10 * groups["main"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder.discriminator_betas=[0.5]"], "discriminator_betas must be two numbers"),
        (["encoder.discriminator_betas=[0.5,1.0]"], "discriminator_betas must be two numbers"),
        (["encoder.discriminator_hidden=[]"], "encoder.discriminator_hidden must be a list of widths"),
    ],
)
def test_refused(overrides: list[str], message: str, configure: Callable[..., Config]):
    with pytest.raises(UserError, match=message):
        experiment.build(configure("avb", *overrides))


@pytest.mark.parametrize(
    ("overrides", "noted"),
    [
        (["objective=iwae", "k=5"], True),
        (["objective=iwae", "trainer.k_schedule={0:1,1:2}"], True),
        (["objective=iwae"], False),
        (["objective=elbo", "k=5"], False),
        (["objective=iwae", "k=5", "objective.gradient=dreg"], False),
    ],
)
def test_the_header_says_what_the_gradient_leaves_out(
    overrides: list[str], noted: bool, configure: Callable[..., Config], tmp_path: Path
):
    text = header(experiment.build(configure("avb", *overrides)), tmp_path)
    assert ("gradient reparam is biased here for k > 1" in text) is noted


@pytest.mark.parametrize(
    "overrides",
    [["k=3"], ["objective.gradient=stl"], ["objective=iwae"], ["objective=iwae", "k=3", "objective.gradient=dreg"]],
)
@FAMILY
def test_cells_that_train(family: str, overrides: list[str], configure: Callable[..., Config]):
    built = experiment.build(configure(family, *overrides))
    loss = BoundLoss(built.objective, built.model, built.encoder)
    value, metrics = loss(torch.rand(4, 784), StepSettings(built.config.k, 0, 1.0))
    value.backward()
    assert value.isfinite()
    assert "bound_estimate" in metrics
