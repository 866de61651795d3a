"""The linear-Gaussian model: log p(x) and its posterior in closed form."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vaebench import bounds
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.estimators.importance import log_likelihood
from vaebench.objective import evidence
from vaebench.selftest.bench import Bench
from vaebench.selftest.oracles.gaussian import (
    LinearGaussian,
    X,
    exact_gaussian,
    exact_hierarchical,
    gaussian,
    linear_gaussian,
    one_image,
)
from vaebench.selftest.rows import Mean, Row, differs, exact, near

__all__ = ["check"]

REPLICATES = 50_000


def check(bench: Bench) -> Iterator[Row]:
    """Compare weights and bounds with log p(x), nats."""
    with bench.device:
        model, x = linear_gaussian(), torch.randn(20, X)
        truth = model.log_evidence(x)
        yield from _at_the_posterior(model, x, truth)
        yield from _away_from_it(model)
        wide = exact_gaussian()
        with torch.no_grad():
            wide.get_parameter("posterior.log_scale").add_(0.01)
    spread = evidence(model, wide, x, 50).log_weights().std(0).min().item()
    yield differs("spread of log w, q 1 % too wide", 0, spread)


def _at_the_posterior(model: LinearGaussian, x: Tensor, truth: Tensor) -> Iterator[Row]:
    def worst(values: Tensor) -> float:
        return (values - truth).abs().max().item()

    for name, encoder, inner_k in (("gaussian", exact_gaussian(), 0), ("iwhvi L=3", exact_hierarchical(), 3)):
        log_w = evidence(model, encoder, x, 50, inner_k=inner_k).log_weights()
        yield exact(f"max |log w - log p(x)|, {name} at the posterior", 0, worst(log_w))
        yield exact(f"max |IWAE K=50 - log p(x)|, {name} at the posterior", 0, worst(bounds.iwae(log_w)))
        estimate = log_likelihood(model, encoder, x, k=11, inner_k=inner_k, chunk=4, inner_chunk=2, seed=3)
        yield exact(f"max |estimate - log p(x)|, {name} at the posterior", 0, worst(estimate))


def _away_from_it(model: LinearGaussian) -> Iterator[Row]:
    encoder, x = gaussian(), one_image(REPLICATES)
    truth = model.log_evidence(x[:1])
    divergence = kl_divergence(_normal(encoder, x[:1]), _posterior(model, x[:1]))
    with torch.no_grad():
        elbo = Mean.of(evidence(model, encoder, x, 1).log_weights())
    yield near("ELBO = log p(x) - KL(q || p(z|x))", (truth - divergence).item(), elbo)
    yield differs("ELBO for log p(x)", truth.item(), elbo)


def _normal(encoder: GaussianEncoder, x: Tensor) -> MultivariateNormal:
    q = encoder.encode(x)
    return MultivariateNormal(q.mean.detach(), torch.diag_embed(q.variance.detach()))


def _posterior(model: LinearGaussian, x: Tensor) -> MultivariateNormal:
    gain, constant, variance = model.posterior()
    return MultivariateNormal(x @ gain.T + constant, variance)
