"""Gaussian answers in closed form: SCIENCE's linear-Gaussian model and Gaussian semi-implicit encoder."""

from collections.abc import Callable

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence
from toys import (
    AffineGaussian,
    Hierarchy,
    Mean,
    exact_gaussian,
    exact_hierarchical,
    gaussian,
    linear_gaussian,
    one_image,
    wide_hierarchy,
)

from vaebench import bounds
from vaebench.encoders.base import Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.estimators.importance import log_likelihood
from vaebench.objective import evidence

pytestmark = pytest.mark.usefixtures("float64")

REPLICATES = 50_000
STRENGTH = 1.8
"""How much psi moves z; at 1.8 it explains much of it, and the gaps are large."""


EXACT = [pytest.param(exact_gaussian, 0, id="gaussian")]
EXACT += [pytest.param(exact_hierarchical, inner_k, id=f"hierarchical-L{inner_k}") for inner_k in (0, 1, 7)]


@pytest.mark.parametrize("k", [1, 2, 50])
@pytest.mark.parametrize(("make", "inner_k"), EXACT)
def test_at_the_exact_posterior_every_weight_is_the_evidence(make: Callable[[], Encoder], inner_k: int, k: int):
    """Zero variance: each weight equals p(x), for any x, hence every bound equals log p(x)."""
    model, x = linear_gaussian(), torch.randn(20, 3)
    log_w = evidence(model, make(), x, k, inner_k=inner_k).log_weights()
    assert log_w.shape == (k, 20)
    truth = model.log_evidence(x)
    assert (log_w - truth).abs().max() < 1e-12
    for value in (bounds.elbo(log_w), bounds.iwae(log_w), bounds.renyi(log_w, 0.5), bounds.miwae(log_w, k)):
        assert (value - truth).abs().max() < 1e-12


def test_the_elbo_of_a_gaussian_is_the_evidence_less_the_divergence():
    model, x, encoder = linear_gaussian(), one_image(REPLICATES), gaussian()
    gain, constant, variance = model.posterior()
    q = encoder.encode(x[:1])
    approximation = MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    divergence = kl_divergence(approximation, MultivariateNormal(x[:1] @ gain.T + constant, variance))
    with torch.no_grad():
        elbo = Mean.of(evidence(model, encoder, x, 1).log_weights())
    assert elbo.stderr < 0.005
    assert abs(elbo.errors_above((model.log_evidence(x[:1]) - divergence).item())) < 4


def test_an_exact_reverse_model_gives_the_density_itself():
    """tau = q(psi|z,x): log_q = log q(z|x) for every draw and every L."""
    toy, x = wide_hierarchy(STRENGTH), torch.randn(30, 3)
    encoder = HierarchicalEncoder(toy.mixing, toy.conditional, toy.exact_reverse())
    for inner_k in (0, 1, 6):
        draw = encoder.draw(x, 4, inner_k=inner_k)
        assert (draw.log_q - toy.marginal(x).log_prob(draw.z)).abs().max() < 1e-12


def excess(encoder: HierarchicalEncoder, toy: Hierarchy) -> Mean:
    """Return the mean of log_q - log q(z|x) at L = 0: ELBO less the HVM bound."""
    x = one_image(REPLICATES)
    with torch.no_grad():
        draw = encoder.draw(x, 2)
        return Mean.of(draw.log_q - toy.marginal(x).log_prob(draw.z))


def test_the_gap_of_hvm_is_the_divergence_of_the_reverse_model():
    toy = wide_hierarchy(STRENGTH)
    gap = excess(HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse()), toy)
    assert gap.stderr < 0.005
    assert abs(gap.errors_above(toy.divergence_of(toy.rough_reverse(), one_image(1)).item())) < 4


def test_the_gap_of_sivi_without_inner_samples_is_the_mutual_information():
    """I(z; psi) = 1/2 log |C|/|S|."""
    toy = wide_hierarchy(STRENGTH)
    information = toy.information().item()
    gap = excess(HierarchicalEncoder(toy.mixing, toy.conditional, None), toy)
    assert gap.stderr < 0.005
    assert abs(gap.errors_above(information)) < 4


def test_control_the_closed_forms_tell_the_two_gaps_apart():
    toy = wide_hierarchy(STRENGTH)
    information = toy.information().item()
    gap = excess(HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse()), toy)
    assert abs(gap.errors_above(information)) > 20


def test_the_likelihood_estimate_of_an_exact_posterior_is_exact():
    """Also in chunks, and also for the estimate that evaluation reports."""
    model, x = linear_gaussian(), torch.randn(9, 3)
    for encoder, inner_k in ((exact_gaussian(), 0), (exact_hierarchical(), 3)):
        estimate = log_likelihood(model, encoder, x, k=11, inner_k=inner_k, chunk=4, inner_chunk=2, seed=3)
        assert (estimate - model.log_evidence(x)).abs().max() < 1e-12


def test_control_a_posterior_slightly_off_has_spread():
    """One percent too narrow shows at once in the spread of the weights."""
    model, x, encoder = linear_gaussian(), torch.randn(5, 3), exact_gaussian()
    assert isinstance(encoder, GaussianEncoder)
    assert isinstance(encoder.posterior, AffineGaussian)
    with torch.no_grad():
        encoder.posterior.log_scale.add_(0.01)
        log_w = evidence(model, encoder, x, 50).log_weights()
    assert log_w.std(0).min() > 1e-3


def test_simulated_pairs_follow_the_model():
    """Moments of (x, z) ~ p(x, z): E x = b, Cov x = W W' + s^2 I, E z = 0, Cov z = I, Cov(x, z) = W."""
    model = linear_gaussian()
    x, z = model.simulate(200_000)
    assert x.shape == (200_000, 3)
    assert z.shape == (200_000, 2)
    weight = model.weight
    cross = torch.cat([x - model.bias, z], 1)
    covariance = torch.cov(cross.T)
    x_part = weight @ weight.T + model.scale**2 * torch.eye(3)
    expected = torch.cat([torch.cat([x_part, weight], 1), torch.cat([weight.T, torch.eye(2)], 1)])
    assert (cross.mean(0).abs() < 4 * expected.diagonal().sqrt() / 200_000**0.5).all()
    # A covariance's standard error is at most sqrt(2) s_i s_j / sqrt(n).
    scale = expected.diagonal().sqrt()
    assert ((covariance - expected).abs() < 4 * 2**0.5 * torch.outer(scale, scale) / 200_000**0.5).all()
