"""Priors: densities that integrate to one, draws that follow them, weights and gradients that stay right."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles.scalar import Named
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal
from toys import AffineGaussian, Mean, gaussian, one_image

from vaebench import bounds, experiment, noise
from vaebench.distributions import Bernoulli, DiagonalNormal
from vaebench.draw import samples
from vaebench.encoders.base import BuildContext, Encoder, frozen
from vaebench.encoders.full_gaussian import FullGaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.errors import UserError
from vaebench.estimators.importance import log_likelihood
from vaebench.experiment import Modules
from vaebench.gradients import GradientEstimator
from vaebench.model import GenerativeModel
from vaebench.nets.dense import NormalLikelihood
from vaebench.nets.networks import Networks
from vaebench.objective import Objective, evidence
from vaebench.priors import (
    ChainedPrior,
    FlowPrior,
    GaussianMixture,
    MixturePrior,
    Prior,
    PriorContext,
    StandardNormalPrior,
    VampPrior,
)

pytestmark = pytest.mark.usefixtures("float64")

X = 3


def context(latent_dim: int = 2) -> PriorContext:
    return PriorContext(latent_dim, Networks("mlp", [4], "tanh"), torch.full((X,), 0.4))


def mixture(encoder: Encoder) -> Prior:
    del encoder
    prior = MixturePrior.build(context(), components=3)
    with torch.no_grad():
        prior.raw_log_weights.copy_(torch.tensor([0.0, 1.0, -0.5]))
        prior.means.copy_(torch.randn(3, 2))
        prior.log_scales.add_(0.3 * torch.randn(3, 2))
    return prior


def vamp(encoder: Encoder) -> Prior:
    prior = VampPrior.build(context(), components=4)
    with torch.no_grad():
        prior.pseudo_logits.add_(torch.randn(4, X))
    prior.attach_encoder(encoder)
    return prior


def realnvp(encoder: Encoder) -> Prior:
    del encoder
    prior = FlowPrior.build(context(), steps=3, width=5, depth=1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior


def chained(encoder: Encoder) -> Prior:
    del encoder
    return ChainedPrior.build(context(), top_dim=None, hidden=[5])


def standard(encoder: Encoder) -> Prior:
    del encoder
    return StandardNormalPrior.build(context())


LEARNED = [mixture, vamp, realnvp, chained]
MAKERS = [standard, *LEARNED]


def made(make: Callable[[Encoder], Prior]) -> tuple[GenerativeModel, Encoder]:
    """Return a model with this prior and a linear-Gaussian decoder, and the encoder that it has met."""
    encoder = gaussian()
    weight = torch.tensor([[0.9, 0.3], [0.5, -0.6], [0.2, 0.7]])
    return GenerativeModel(make(encoder), NormalLikelihood(weight, torch.tensor([0.1, -0.2, 0.3]), 0.8)), encoder


def grid(reach: float = 12.0, count: int = 401) -> tuple[Tensor, float]:
    """Return points of the plane, (N, 2), and the area of each."""
    line = torch.linspace(-reach, reach, count)
    points = torch.stack([part.flatten() for part in torch.meshgrid(line, line, indexing="ij")], -1)
    return points, (2 * reach / (count - 1)) ** 2


# Densities and draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_the_density_integrates_to_one(make: Callable[[Encoder], Prior]):
    points, area = grid()
    with torch.no_grad():
        density = made(make)[0].prior().log_prob(points).exp()
    assert density.sum().item() * area == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("make", MAKERS)
def test_draws_follow_the_density(make: Callable[[Encoder], Prior]):
    """Means of functions that tell the coordinates, their spread, and their dependence."""
    points, area = grid()
    prior = made(make)[0].prior()
    with torch.no_grad():
        probability = prior.log_prob(points).exp() * area
        draws = prior.sample((100_000,))

    def features(z: Tensor) -> Tensor:
        first, second = z.unbind(-1)
        bumps = [torch.exp(-2 * ((z - centre) ** 2).sum(-1)) for centre in (0.5, -0.5)]
        return torch.stack([first, second, first * second, first**2, second**2, *bumps])

    for row, expected in zip(features(draws), features(points) @ probability, strict=True):
        assert abs(Mean.of(row).errors_above(expected.item())) < 4.5


@pytest.mark.parametrize("make", MAKERS)
def test_shapes_are_those_of_the_contract(make: Callable[[Encoder], Prior]):
    prior = made(make)[0].prior()
    assert prior.event_shape == (2,)
    assert prior.log_prob(torch.randn(5, 4, 2)).shape == (5, 4)
    assert prior.sample((5, 4)).shape == (5, 4, 2)
    assert prior.sample().shape == (2,)
    assert not prior.sample((3,)).requires_grad


def test_a_mixture_is_sampled_by_its_weights():
    """Each draw has a component of its own; taking the first components, one draw each, is a known mistake."""
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    centres = 10.0 * torch.arange(4.0).unsqueeze(-1)
    mixture = GaussianMixture(DiagonalNormal(centres, torch.ones(4, 1)), weights.log())
    drawn = (mixture.sample((2, 20_000)) / 10).round().flatten().long()
    shares = torch.bincount(drawn, minlength=4) / 40_000
    assert (shares - weights).abs().max() < 4.5 * (0.25 / 40_000) ** 0.5
    few = torch.stack([(mixture.sample((2,)) / 10).round().flatten() for _ in range(100)])
    assert (few[:, 0] == 3).any()
    assert len(few[:, 0].unique()) == 4
    # The draws of one call do not depend on each other.
    assert abs(torch.corrcoef(torch.stack([few[:, 0], few[:, 1]]))[0, 1]) < 0.45


def test_a_mixtures_moments_are_its_formulas():
    prior = made(mixture)[0].prior()
    points, area = grid()
    with torch.no_grad():
        probability = prior.log_prob(points).exp() * area
    assert (prior.mean - probability @ points).abs().max() < 1e-4
    assert (prior.variance - (probability @ points**2 - prior.mean**2)).abs().max() < 1e-3


def test_vamp_is_the_explicit_mixture_of_the_encoders_densities():
    encoder = gaussian()
    prior = vamp(encoder)
    assert isinstance(prior, VampPrior)
    inputs = prior.pseudo_logits.sigmoid()
    q = encoder.encode(inputs)
    by_hand = MixtureSameFamily(Categorical(torch.ones(4)), Independent(Normal(q.mean, q.scale), 1))
    z = torch.randn(5, 6, 2)
    assert (prior().log_prob(z) - by_hand.log_prob(z)).abs().max() < 1e-12


def test_a_mixture_is_precise_in_float32():
    """Squares of narrow components far from the origin cancel to a number a million times smaller."""
    mean, scale = 3 + torch.randn(6, 40), 1e-3 * (1 + torch.rand(6, 40))
    z = mean[torch.randint(6, (50,))] + scale.mean() * torch.randn(50, 40)
    exact = torch.logsumexp(Independent(Normal(mean, scale), 1).log_prob(z.unsqueeze(1)) - math.log(6), -1)
    log_weights = torch.full((6,), -math.log(6))
    single = DiagonalNormal(mean.float(), scale.float())
    rounded = Independent(Normal(single.mean.double(), single.scale.double()), 1)
    at_rounded = torch.logsumexp(rounded.log_prob(z.float().double().unsqueeze(1)) - math.log(6), -1)
    found = GaussianMixture(single, log_weights.float()).log_prob(z.float())
    assert found.dtype == torch.float32
    assert (found - at_rounded).abs().max() < 1e-4
    assert exact.isfinite().all()
    # Control: the same products in float32 are off by whole nats.
    precision = single.scale.square().reciprocal()
    wide = z.float()
    distance = wide.square() @ precision.T - 2 * wide @ (single.mean * precision).T
    distance = (distance + (single.mean.square() * precision).sum(-1)).amin(-1)
    assert (distance - (wide.unsqueeze(1) - single.mean).div(single.scale).square().sum(-1).amin(-1)).abs().max() > 1


def test_a_flow_prior_starts_near_the_standard_normal():
    z = torch.randn(100, 2)
    fresh = FlowPrior.build(context(), steps=6, width=8, depth=2)().log_prob(z)
    assert (fresh - StandardNormalPrior(2)().log_prob(z)).abs().max() < 0.5


def test_seeded_draws_do_not_depend_on_chunks():
    prior = made(mixture)[0].prior()
    images = torch.arange(3)
    with noise.keyed(5, images):
        whole = prior.sample((4, 3))
    with noise.keyed(5, images, first_sample=2):
        later = prior.sample((2, 3))
    assert torch.equal(whole[2:], later)


# Weights --------------------------------------------------------------------------------------------------


def evidence_by_quadrature(model: GenerativeModel, x: Tensor) -> Tensor:
    points, area = grid()
    with torch.no_grad():
        joint = model.likelihood(points).log_prob(x) + model.prior().log_prob(points)
    return torch.logsumexp(joint, 0) + math.log(area)


@pytest.mark.parametrize("make", MAKERS)
def test_the_mean_weight_is_the_evidence(make: Callable[[Encoder], Prior]):
    model, encoder = made(make)
    x = one_image(40_000)
    truth = evidence_by_quadrature(model, x[0])
    with torch.no_grad():
        weights = (evidence(model, encoder, x, 2).log_weights() - truth).exp().mean(0)
    mean = Mean.of(weights)
    assert mean.stderr < 0.02
    assert abs(mean.errors_above(1)) < 4.5
    streamed = Mean.of((log_likelihood(model, encoder, x, k=3, chunk=2, seed=3) - truth).exp())
    assert abs(streamed.errors_above(1)) < 4.5


# Gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", list(GradientEstimator))
@pytest.mark.parametrize("make", LEARNED)
def test_every_parameter_gets_a_gradient(make: Callable[[Encoder], Prior], gradient: GradientEstimator):
    model, encoder = made(make)
    Objective(bounds.iwae, gradient)(model, encoder, torch.randn(5, X), 4)[0].sum().backward()
    for module in (model, encoder):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("gradient", list(GradientEstimator))
@pytest.mark.parametrize("make", LEARNED)
def test_a_priors_gradient_has_plain_weights(make: Callable[[Encoder], Prior], gradient: GradientEstimator):
    """sum_k w_k dlog p(z_k), for any estimator of the encoder's gradient; squared weights would be DReG's for q."""
    model, encoder = made(make)
    x, own = torch.randn(5, X), dict(model.latent_prior.named_parameters())
    value, drawn = Objective(bounds.iwae, gradient)(model, encoder, x, 4)
    found = torch.autograd.grad(value.sum(), list(own.values()), retain_graph=True)
    torch.manual_seed(0)
    share = drawn.log_weights().detach().softmax(0)
    for power in (1, 2):
        by_hand = torch.autograd.grad((share**power * drawn.log_prior).sum(), list(own.values()), retain_graph=True)
        distance = max((a - b).abs().max().item() for a, b in zip(found, by_hand, strict=True))
        assert distance < 1e-12 if power == 1 else distance > 1e-3


def encoder_gradients(make: Callable[[Encoder], Prior], gradient: GradientEstimator, repetitions: int) -> Tensor:
    """Return independent samples of the encoder's gradient, (repetitions, P)."""
    torch.manual_seed(7)
    model, encoder = made(make)
    x, found = one_image(300), []
    for _ in range(repetitions):
        encoder.zero_grad()
        Objective(Named("iwae", 4).function, gradient)(model, encoder, x, 4)[0].mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    return torch.stack(found)


@pytest.mark.parametrize("make", LEARNED)
def test_dreg_agrees_with_reparam_in_the_encoder(make: Callable[[Encoder], Prior]):
    """With prior=vamp the encoder's parameters are the prior's as well, and get both gradients."""
    reparam, stl, dreg = (encoder_gradients(make, gradient, 60) for gradient in GradientEstimator)
    for column in (dreg - reparam).T:
        assert abs(Mean.of(column).errors_above(0)) < 4.5
    # Control: STL is biased for several samples.
    assert max(abs(Mean.of(column).errors_above(0)) for column in (stl - reparam).T) > 8


# Modules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_a_prior_is_saved_and_loaded(make: Callable[[Encoder], Prior], tmp_path: Path):
    model, encoder = made(make)
    modules = Modules(model, encoder)
    torch.save(modules.state_dict(), tmp_path / "weights")
    other = Modules(*made(make))
    z = torch.randn(7, 2)
    if make is not standard:
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.1)
        assert not torch.equal(other.model.prior().log_prob(z), model.prior().log_prob(z))
    other.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    assert torch.equal(other.model.prior().log_prob(z), model.prior().log_prob(z))


@pytest.mark.parametrize("make", [mixture, realnvp, chained])
def test_a_frozen_prior_is_a_constant_function(make: Callable[[Encoder], Prior]):
    """AVB holds the prior constant where it stands for log r: the distribution must not look back at live weights."""
    prior = made(make)[0].latent_prior
    z = torch.randn(5, 4, 2, requires_grad=True)
    constant = frozen(prior)().log_prob(z)
    assert torch.equal(constant, prior().log_prob(z))
    constant.sum().backward()
    assert all(parameter.grad is None for parameter in prior.parameters())
    assert z.grad is not None
    prior().log_prob(z).sum().backward()
    assert all(parameter.grad is not None for parameter in prior.parameters())


def test_vamp_does_not_count_the_encoder_as_its_own():
    model, encoder = made(vamp)
    assert list(dict(model.latent_prior.named_parameters())) == ["pseudo_logits"]
    assert len(list(Modules(model, encoder).parameters())) == len(list(model.parameters())) + 3


def test_a_copy_of_vamp_follows_the_copied_encoder():
    """Averaged weights are a copy of model and encoder together."""
    original = Modules(*made(vamp))
    copied = copy.deepcopy(original)
    z = torch.randn(3, 2)
    before = original.model.prior().log_prob(z)
    with torch.no_grad():
        for parameter in copied.encoder.parameters():
            parameter.add_(0.5)
    assert torch.equal(original.model.prior().log_prob(z), before)
    assert not torch.allclose(copied.model.prior().log_prob(z), before)


class Recorded(nn.Module):
    """A decoder that remembers its latents."""

    def __init__(self) -> None:
        super().__init__()
        self.z: list[Tensor] = []

    def forward(self, z: Tensor) -> Distribution:
        self.z.append(z)
        return Bernoulli(z.new_zeros(*z.shape[:-1], 784))


def moved_away(prior: nn.Module) -> None:
    assert isinstance(prior, MixturePrior)
    with torch.no_grad():
        prior.means.add_(50)


def test_simulation_draws_from_the_learned_prior():
    model, _ = made(mixture)
    moved_away(model.latent_prior)
    x, z = model.simulate(200)
    assert z.min() > 40
    assert x.shape == (200, X)
    assert (x - model.likelihood(z).mean).abs().mean() < 1


def test_pictures_draw_from_the_learned_prior(default_data_dir: Path):
    torch.set_default_dtype(torch.float32)
    built = experiment.build(["prior=mixture", "latent_dim=2", "decoder.hidden=[4]", f"data_dir={default_data_dir}"])
    moved_away(built.model.latent_prior)
    recorded = built.model.decoder = Recorded()
    samples(built, built.modules, 16)
    assert recorded.z[-1].shape == (16, 2)
    assert recorded.z[-1].min() > 40


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prior=vamp", "encoder=hvm"], "prior=vamp: .* use encoder=gaussian"),
        (["prior=vamp", "encoder=planar"], "prior=vamp"),
        (["prior=vamp", "encoder=avb"], "prior=vamp"),
        (["prior=realnvp", "latent_dim=1"], "prior=realnvp: latent_dim must be >= 2"),
        (["prior=chained", "latent_dim=1"], "prior=chained: latent_dim must be >= 2"),
        (["prior=chained", "prior.top_dim=32"], "prior.top_dim must be a whole number >= 1 and < latent"),
        (["prior=chained", "prior.top_dim=half"], "prior.top_dim must be a whole number"),
        (
            ["prior=chained", "prior.hidden=[0]"],
            r"prior.hidden must be a list of widths >= 1 such as \[100, 100\], got \[0\]",
        ),
        (["prior=chained", "prior.hidden=wide"], "prior.hidden must be a list such as"),
        (["prior=mixture", "prior.components=0"], "prior.components must be >= 1, got 0"),
        (["prior=vamp", "prior.pseudo=3"], "prior.pseudo"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], message: str, default_data_dir: Path):
    torch.set_default_dtype(torch.float32)
    with pytest.raises(UserError, match=message) as caught:
        experiment.build([*words, f"data_dir={default_data_dir}", "device=cpu"])
    assert "\n" not in str(caught.value)


def test_only_an_explicit_gaussian_can_be_mixed():
    place = BuildContext(Networks("mlp", [4], "tanh"), X, 2, made(standard)[0])
    assert gaussian().exact_posterior(torch.randn(4, X)) is not None
    for encoder in (
        FullGaussianEncoder.build(place),
        HierarchicalEncoder.build(place, psi_dim=2, learned_reverse=True),
    ):
        assert encoder.exact_posterior(torch.randn(4, X)) is None
        with pytest.raises(ValueError, match="Gaussian in closed form"):
            vamp(encoder)


def test_the_toy_encoder_is_affine():
    """The mixture by hand above relies on it."""
    assert isinstance(gaussian().posterior, AffineGaussian)
