"""The harmonic mean estimate of log p(x): right where its terms are bounded, nats too high where they are not."""

import pytest
import torch
from torch import Tensor
from toys import AffineGaussian, LinearGaussian, linear_gaussian

import vaebench
from vaebench.bounds import harmonic_mean
from vaebench.encoders.gaussian import GaussianEncoder

pytestmark = pytest.mark.usefixtures("float64")

IMAGES = 200


def narrow() -> LinearGaussian:
    """Return a model whose posterior is 20 times narrower than its prior: 1/p(x|z) has infinite variance under it."""
    return LinearGaussian(linear_gaussian().weight, torch.zeros(3), 0.05)


def of_posterior(model: LinearGaussian, width: float) -> GaussianEncoder:
    """Return a Gaussian ``width`` times as wide as the posterior."""
    gain, constant, variance = model.posterior()
    return GaussianEncoder(AffineGaussian(gain, constant, width * variance.diagonal().sqrt()))


def errors(width: float | None, draws: int) -> Tensor:
    """Return estimate - log p(x), (B,), from exact draws; h is ``width`` posteriors wide, or the prior."""
    model = narrow()
    x, _ = linear_gaussian().simulate(IMAGES)
    density = model.prior() if width is None else of_posterior(model, width).encode(x)
    with torch.no_grad():
        z = of_posterior(model, 1).encode(x).sample((draws,))
        log_r = sum(model.log_joint(x, z), torch.zeros(())) - density.log_prob(z)
    return harmonic_mean(log_r) - model.log_evidence(x)


def test_it_is_right_for_a_density_narrower_than_the_posterior():
    """Terms are bounded, so that all is well: Gelfand and Dey's advice, which asks for a posterior that is known."""
    found = errors(0.7, 800)
    assert found.abs().mean() < 0.1
    assert abs(found.mean()) < 0.02


def test_its_variance_is_infinite_for_the_prior_and_it_overstates_by_nats():
    """Newton and Raftery's, from perfect draws, and forty times as many are no cure."""
    few, many = errors(None, 100), errors(None, 4_000)
    assert (few > 1).double().mean() > 0.9
    assert (many > 0.3).double().mean() > 0.9
    assert many.mean() > 1
    assert 0 < few.mean() - many.mean() < 2


def test_its_apparent_error_is_no_error():
    """The spread over repetitions is a fraction of how far off it is."""
    repeated = torch.stack([errors(None, 1000).mean() for _ in range(5)])
    assert repeated.mean() > 10 * repeated.std()


def test_control_importance_sampling_has_no_such_trouble():
    """A wide density is what importance weights want: 100 of them do what 4,000 harmonic terms do not."""
    model = narrow()
    x, _ = linear_gaussian().simulate(IMAGES)
    wide = of_posterior(model, 3.0)
    sampled = vaebench.log_likelihood(model, wide, x, k=100, seed=0) - model.log_evidence(x)
    assert sampled.abs().mean() < 0.4
    assert abs(sampled.mean()) < 0.1
    assert errors(3.0, 4_000).mean() > 0.1
