"""Diagnostics against exact answers, each with the usual and biased way of computing it as a control."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import nct
from torch import Tensor
from torch.distributions import kl_divergence
from toys import (
    AffineGaussian,
    Mean,
    full_gaussian,
    gaussian,
    implicit_hierarchy,
    linear_gaussian,
    wide_hierarchy,
)

from vaebench import noise
from vaebench.distributions import DiagonalNormal, standard_normal
from vaebench.encoders.base import Direction, Draw, Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.errors import RunFailed
from vaebench.estimators.diagnostics import (
    ACTIVE_VARIANCE,
    Activity,
    AggregateDensity,
    DrawSummary,
    GradientNoise,
    PosteriorMoments,
    gaussian_critic,
    kl_per_coordinate,
    moment_kl_per_coordinate,
    posterior_moments,
    snr_floor,
    summarise_draws,
)
from vaebench.estimators.sampling import Sampling
from vaebench.estimators.weights import effective_sample_size
from vaebench.model import GenerativeModel
from vaebench.nets.dense import NormalLikelihood
from vaebench.priors import StandardNormalPrior

pytestmark = pytest.mark.usefixtures("float64")


class Sampler(Encoder):
    """An implicit encoder: z_d = slope_d x + noise of variance 1 and no Gaussian, with no density to be asked for."""

    direction = Direction.ESTIMATE

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.slope = slope

    def encode(self, x: Tensor) -> Tensor:
        return x * self.slope

    def sample(
        self, encoded: Tensor, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        z = encoded + math.sqrt(12) * (noise.uniform((k, *encoded.shape), encoded) - 0.5)
        return Draw(z, z.new_full(z.shape[:-1], math.nan))


def normal(slope: Tensor, scale: float = 1.0) -> GaussianEncoder:
    """Return q(z|x) = N(slope x, scale^2 I) for x of one pixel."""
    return GaussianEncoder(AffineGaussian(slope.unsqueeze(1), torch.zeros_like(slope), torch.full_like(slope, scale)))


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 1, generator=torch.Generator().manual_seed(seed))


def plug_in(found: PosteriorMoments) -> Tensor:
    """Return the usual estimate, the variance over images of the mean of all draws."""
    return found.means.mean(0).var(0)


# Active units ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [normal, Sampler])
@pytest.mark.parametrize("draws", [2, 10, 100, 1000])
def test_a_collapsed_posterior_has_no_active_unit(make: Any, draws: int):
    found = posterior_moments(make(torch.zeros(50)), images(500), Sampling(draws, seed=0))
    assert int(Activity.of(found).active().sum()) == 0


@pytest.mark.parametrize(
    ("threshold", "draws", "least", "most"),
    [(1e-3, 100, 50, 50), (1e-3, 1000, 15, 35), (ACTIVE_VARIANCE, 10, 50, 50), (ACTIVE_VARIANCE, 100, 15, 35)],
)
def test_control_the_plug_in_variance_makes_units_out_of_noise(threshold: float, draws: int, least: int, most: int):
    found = posterior_moments(normal(torch.zeros(50)), images(500), Sampling(draws, seed=0))
    assert least <= int((plug_in(found) > threshold).sum()) <= most
    assert int(Activity.of(found).active(threshold).sum()) == 0


@pytest.mark.parametrize("make", [normal, Sampler])
def test_a_known_variance_is_found_and_counted(make: Any):
    slope, x = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.0]), images(2000)
    activity = Activity.of(posterior_moments(make(slope), x, Sampling(200, seed=0)))
    truth = slope.square() * x.var()
    assert ((activity.variance - truth).abs() < 4 * activity.stderr).all()
    assert activity.active().tolist() == [True, True, True, False, False]
    assert not activity.undecided().any()


def test_the_variance_is_unbiased_with_two_draws_and_the_plug_in_is_not():
    x, encoder = images(200), Sampler(torch.tensor([0.3]))
    found = [posterior_moments(encoder, x, Sampling(2, seed=seed)) for seed in range(200)]
    truth = (0.09 * x.var()).item()
    right = Mean.of(torch.stack([Activity.of(one).variance for one in found]))
    wrong = Mean.of(torch.stack([plug_in(one) for one in found]))
    assert abs(right.errors_above(truth)) < 4
    assert wrong.value == pytest.approx(truth + 0.5, rel=0.02)


def test_the_error_of_the_variance_is_right():
    """Of units without any activity, all but a few lie within two of their standard errors of 0."""
    activity = Activity.of(posterior_moments(normal(torch.zeros(2000)), images(300), Sampling(10, seed=0)))
    assert (activity.variance / activity.stderr).std().item() == pytest.approx(1, abs=0.08)
    assert activity.margin == pytest.approx(4.5, abs=0.1)


def test_units_near_the_threshold_are_undecided_and_not_counted():
    activity = Activity.of(posterior_moments(normal(torch.full((4,), 0.1)), images(100), Sampling(4, seed=0)))
    assert int(activity.active().sum()) == 0
    assert int(activity.undecided().sum()) == 4


def test_activity_refuses_too_few_images():
    with pytest.raises(ValueError, match="3 images"):
        Activity.of(posterior_moments(normal(torch.zeros(2)), images(2), Sampling(2, seed=0)))


# KL by coordinate -----------------------------------------------------------------------------------------

PRIOR = DiagonalNormal(torch.tensor([0.2, -0.1]), torch.tensor([1.1, 0.8]))


def test_kl_by_coordinate_adds_up_to_the_kl():
    q = DiagonalNormal(torch.tensor([[0.5, -1.0], [0.0, 2.0]]), torch.tensor([[0.3, 1.2], [1.0, 0.1]]))
    ours = kl_per_coordinate(q, PRIOR)
    torchs = kl_divergence(
        torch.distributions.Normal(q.mean, q.scale), torch.distributions.Normal(PRIOR.mean, PRIOR.scale)
    )
    assert torch.allclose(ours, torchs)


def test_kl_by_coordinate_adds_up_to_the_rate():
    model, encoder, x = linear_gaussian(), gaussian(), torch.randn(400, 3)
    rate = summarise_draws(model, encoder, x, Sampling(100, seed=0)).rate
    posterior = encoder.exact_posterior(x)
    assert posterior is not None
    difference = Mean.of(rate - kl_per_coordinate(posterior, standard_normal(2)).sum(1))
    assert abs(difference.errors_above(0)) < 4


@pytest.mark.parametrize("draws", [4, 10])
def test_moments_of_a_gaussian_give_its_kl_without_bias(draws: int):
    x, encoder = images(4000), normal(torch.tensor([0.7, 0.0]), 0.6)
    found = posterior_moments(encoder, x, Sampling(draws, seed=0))
    posterior = encoder.exact_posterior(x)
    assert posterior is not None
    exact = kl_per_coordinate(posterior, PRIOR)
    for d in range(2):
        difference = moment_kl_per_coordinate(found, PRIOR)[:, d] - exact[:, d]
        assert abs(Mean.of(difference).errors_above(0)) < 4
    variance = found.variances.mean(0)
    naive = kl_per_coordinate(DiagonalNormal(found.means.mean(0), variance.sqrt()), PRIOR)
    assert Mean.of(naive - exact).errors_above(0) > 10  # the control


def test_moments_give_a_lower_bound_where_q_is_not_gaussian():
    # N(0, 1) against uniform noise of the same variance: KL = log(sqrt(2 pi e)) - log(sqrt(12)).
    found = posterior_moments(Sampler(torch.zeros(1)), images(2000), Sampling(100, seed=0))
    by_moments = Mean.of(moment_kl_per_coordinate(found, standard_normal(1)))
    assert abs(by_moments.value) < 0.01
    assert 0.5 * math.log(2 * math.pi * math.e) - 0.5 * math.log(12) > by_moments.value + 0.1


def test_moments_give_a_lower_bound_where_coordinates_are_correlated():
    encoder, x = full_gaussian(), torch.randn(300, 3)
    found = summarise_draws(linear_gaussian(), encoder, x, Sampling(200, seed=0))
    bound = moment_kl_per_coordinate(found.moments, standard_normal(2)).sum(1)
    assert Mean.of(bound - found.rate).errors_above(0) < -10


# Rates ----------------------------------------------------------------------------------------------------


def test_the_rate_of_a_hierarchy_is_an_upper_bound():
    toy, x = wide_hierarchy(), torch.randn(500, 3)
    encoder = HierarchicalEncoder(toy.mixing, toy.conditional, None)
    marginal = toy.marginal(x)
    exact = kl_divergence(marginal, torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    loose, tight = (
        Mean.of(summarise_draws(linear_gaussian(), encoder, x, Sampling(40, k, seed=0)).rate - exact) for k in (0, 50)
    )
    assert loose.errors_above(0) > 10
    assert 0 < tight.value < 0.1 * loose.value


def test_batches_and_chunks_do_not_show_and_no_image_is_dropped():
    model, encoder, x = linear_gaussian(), implicit_hierarchy(), torch.randn(7, 3)
    whole = summarise_draws(model, encoder, x, Sampling(10, 2, seed=0))
    numbers = torch.arange(7)
    parts = [
        summarise_draws(model, encoder, x[some], Sampling(10, 2, 0, some, chunk))
        for some, chunk in zip(numbers.split(3), (None, 2, 3), strict=True)
    ]
    joined = DrawSummary.joined(parts)
    assert len(joined.rate) == 7
    for one, other in zip((*whole.moments[:2], *whole[1:]), (*joined.moments[:2], *joined[1:]), strict=True):
        assert torch.allclose(one, other)


def test_an_image_without_a_finite_number_is_not_filtered_out():
    model, x = linear_gaussian(), torch.randn(5, 3)
    found = summarise_draws(model, gaussian(), x, Sampling(4, seed=0))
    assert found.check() is found
    found.rate[3] = math.inf
    with pytest.raises(RunFailed, match="1 of 5 images"):
        found.check()


# Mutual information ---------------------------------------------------------------------------------------


def channel(scale: float, count: int) -> tuple[AggregateDensity, Tensor, float]:
    """Return what N images of a Gaussian channel z = x + scale * noise say, log p(z) of N(0, 1), and I(x; z)."""
    encoder, x = normal(torch.ones(1), scale), images(count)
    found = summarise_draws(standard(), encoder, x, Sampling(4, seed=0))
    densities = ((part, encoder.encode(x[part])) for part in (slice(0, 300), slice(300, count)))
    return AggregateDensity.of(found.z, densities), found.log_prior, 0.5 * math.log(1 + scale**-2)


def standard() -> GenerativeModel:
    """Return p(z) = N(0, 1) with a likelihood that does not matter."""
    return GenerativeModel(StandardNormalPrior(1), NormalLikelihood(torch.zeros(1, 1), torch.zeros(1), 1.0))


def test_mutual_information_of_a_gaussian_channel_lies_between_its_bounds():
    table, _, exact = channel(0.5, 1500)
    lower, upper = Mean.of(table.information_lower_bound()), Mean.of(table.information_upper_bound())
    assert lower.value < upper.value
    assert lower.errors_above(exact) < 3
    assert upper.errors_above(exact) > -3
    assert upper.value - lower.value < 0.01


def test_few_images_move_the_bounds_apart_and_not_across():
    lower, upper, exact = [], [], 0.5 * math.log(5)
    for seed in range(300):
        x = images(8, seed)
        encoder = normal(torch.ones(1), 0.5)
        with noise.keyed(seed, torch.arange(8)):
            z = encoder.draw(x, 1).z[0].detach()
        table = AggregateDensity.of(z, iter([(slice(0, 8), encoder.encode(x))]))
        lower.append(table.information_lower_bound().mean())
        upper.append(table.information_upper_bound().mean())
    assert Mean.of(torch.stack(lower)).errors_above(exact) < -3
    assert Mean.of(torch.stack(upper)).errors_above(exact) > 3


def test_the_lower_bound_is_capped_at_log_n():
    table, _, exact = channel(1e-4, 400)
    assert exact > 9
    assert table.cap == pytest.approx(math.log(400))
    assert table.information_lower_bound().max().item() <= table.cap + 1e-9
    assert table.information_lower_bound().mean().item() == pytest.approx(table.cap, abs=0.1)
    assert table.information_upper_bound().mean().item() > exact


def test_the_aggregate_kl_lies_between_its_bounds():
    table, log_prior, _ = channel(0.5, 1500)
    exact = 0.5 * (1.25 - 1 - math.log(1.25))
    lower, upper = (Mean.of(part - log_prior) for part in (table.log_mixture_of_others(), table.log_mixture()))
    assert lower.errors_above(exact) < 3
    assert upper.errors_above(exact) > -3
    assert 0 < upper.value - lower.value < 0.01


@pytest.mark.parametrize("width", [0.3, 1.0, 3.0])
def test_any_critic_gives_a_lower_bound(width: float):
    encoder, x = normal(torch.ones(1), 0.5), images(1500)
    found = summarise_draws(standard(), encoder, x, Sampling(100, seed=0))
    right = gaussian_critic(found.moments, slice(0, 1500))
    wrong = DiagonalNormal(right.mean, width * right.scale)
    bound = Mean.of(AggregateDensity.of(found.z, iter([(slice(0, 1500), wrong)])).information_lower_bound())
    assert bound.errors_above(0.5 * math.log(5)) < 3
    if width == 1.0:
        assert bound.value > 0.5 * math.log(5) - 0.1


def test_control_a_critic_that_has_seen_the_draw_is_no_bound():
    encoder, x = normal(torch.zeros(1)), images(1500)
    found = summarise_draws(standard(), encoder, x, Sampling(4, seed=0))
    seen_it = DiagonalNormal(found.z, torch.full_like(found.z, 0.1))
    table = AggregateDensity.of(found.z, iter([(slice(0, 1500), seen_it)]))
    assert table.information_lower_bound().mean().item() > 1  # of none
    honest = AggregateDensity.of(found.z, iter([(slice(0, 1500), gaussian_critic(found.moments, slice(0, 1500)))]))
    assert honest.information_lower_bound().mean().item() < 0.05


# Effective weights ----------------------------------------------------------------------------------------


def test_effective_sample_size():
    assert effective_sample_size(torch.full((7, 2), -3000.0)).tolist() == pytest.approx([7, 7])
    assert effective_sample_size(torch.tensor([[0.0], [-2000.0]])).item() == pytest.approx(1)
    assert effective_sample_size(torch.tensor([3.0, 1.0]).log().unsqueeze(1)).item() == pytest.approx(16 / 10)


# Gradients ------------------------------------------------------------------------------------------------


def noise_of(gradients: Tensor) -> GradientNoise:
    found = GradientNoise(len(gradients))
    for gradient in gradients:
        found.add(gradient)
    return found


@pytest.mark.parametrize("n", [4, 10, 100])
def test_pure_noise_scores_the_floor(n: int):
    found = noise_of(torch.randn(n, 20_000) * torch.logspace(-3, 3, 20_000))
    assert found.snr == pytest.approx(snr_floor(n), rel=0.03)
    assert found.floor == snr_floor(n)


def test_the_floor_is_near_its_limit():
    assert snr_floor(10_000) == pytest.approx(math.sqrt(2 / (math.pi * 10_000)), rel=1e-3)
    assert snr_floor(100) == pytest.approx(0.08, abs=0.001)
    with pytest.raises(ValueError, match="3 gradients"):
        snr_floor(2)


@pytest.mark.parametrize("signal", [0.5, 2.0])
def test_a_known_signal_scores_its_ratio(signal: float):
    n = 50
    found = noise_of(3 * (signal + torch.randn(n, 20_000)))
    # sqrt(n) mean / sd is non-central t; the mean is positive in all but a few.
    expected = float(nct.mean(n - 1, signal * math.sqrt(n))) / math.sqrt(n)  # pyright: ignore[reportArgumentType]
    assert found.snr == pytest.approx(expected, rel=0.01)


def test_parameters_without_noise_are_left_out_and_counted():
    gradients = torch.randn(10, 100)
    gradients[:, :30] = 0
    gradients[:, 30:35] = 7.0
    found = noise_of(gradients)
    assert (found.constant, found.parameters) == (35, 100)
    assert found.snr == pytest.approx(noise_of(gradients[:, 35:]).snr)


def test_the_directional_ratio_of_noise_is_zero_and_with_its_own_mean_it_is_not():
    found = [noise_of(torch.randn(20, 500)).directional for _ in range(50)]
    assert abs(Mean.of(torch.tensor([value for value, _ in found])).errors_above(0)) < 4
    gradients = torch.randn(20, 500)
    direction = gradients.mean(0) / gradients.mean(0).norm()
    along = gradients @ direction
    wrong = along / (gradients.square().sum(1) - along.square()).sqrt()
    assert Mean.of(wrong).errors_above(0) > 10


def test_the_directional_ratio_of_a_signal():
    n, width, signal = 400, 1000, 20.0
    gradients = torch.randn(n, width)
    gradients[:, 0] += signal
    value, stderr = noise_of(gradients).directional
    # The first half's mean is off the signal's direction by noise of variance width / (n/2).
    cosine = signal / math.sqrt(signal**2 + width / (n / 2))
    across = math.sqrt(width + (signal * math.sqrt(1 - cosine**2)) ** 2)
    assert value == pytest.approx(signal * cosine / across, rel=0.02)
    assert 0 < stderr < 0.05 * value


def test_gradient_noise_refuses_what_it_cannot_tell():
    with pytest.raises(ValueError, match="4 gradients"):
        GradientNoise(3)
    half_way = GradientNoise(4)
    half_way.add(torch.ones(2))
    with pytest.raises(ValueError, match="1 of 4"):
        _ = half_way.snr
