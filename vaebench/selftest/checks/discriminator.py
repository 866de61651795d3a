"""The discriminator of adversarial variational Bayes at its optimum."""

import math
from collections.abc import Iterator

import torch
from torch.distributions import MultivariateNormal, kl_divergence

from vaebench.distributions import DiagonalNormal
from vaebench.encoders.adversarial import AdversarialEncoder
from vaebench.model import GenerativeModel
from vaebench.objective import evidence
from vaebench.priors import StandardNormalPrior
from vaebench.selftest.bench import Bench
from vaebench.selftest.oracles.adversarial import (
    DUAL_LOSS,
    Affine,
    Q,
    Quadratic,
    StatePrior,
    States,
    StateTable,
    train_discriminator,
)
from vaebench.selftest.oracles.finite import ELBO, PRIOR, Likelihood
from vaebench.selftest.rows import Mean, Row, differs, exact, near

__all__ = ["check"]

STEPS = 350


def check(bench: Bench) -> Iterator[Row]:
    """Compare a trained log-ratio, and a known one, with log q(z|x) - log r(z|x), nats."""
    with bench.device:
        yield from _two_states()
        yield from _gaussians()
        yield from _adaptive_contrast()


def _two_states() -> Iterator[Row]:
    """Found by the player's own loss and optimiser steps."""
    x, table = torch.ones(100, 1), StateTable()
    encoder = AdversarialEncoder(States(Q), table, StatePrior())
    train_discriminator(encoder, x, STEPS, 4.0, sgd=True)
    for state in (0, 1):
        yield exact(f"T*(z={state}) = log q - log p", math.log(Q[state] / PRIOR[state]), table.values[state].item())
    yield exact("loss at T* = 2 log 2 - 2 JSD", DUAL_LOSS, encoder.discriminator_loss(x).loss.item())
    drawn = evidence(GenerativeModel(StatePrior(), Likelihood()), encoder, x, 1)
    yield exact("E log w with T* = ELBO", ELBO, drawn.log_weights().mean().item())
    swapped = AdversarialEncoder(States(PRIOR), table, StatePrior(Q))
    train_discriminator(swapped, x, STEPS, 4.0, sgd=True)
    yield differs("T*(z=0), labels swapped", math.log(Q[0] / PRIOR[0]), table.values[0].item())


def _gaussians() -> Iterator[Row]:
    """q = N(m, C) against N(0, I): T* is a quadratic, and E_q T* the KL divergence."""
    mean, factor = torch.tensor([0.3, -0.4]), torch.tensor([[0.8, 0.0], [0.3, 1.1]])
    q, prior = MultivariateNormal(mean, factor @ factor.T), MultivariateNormal(torch.zeros(2), torch.eye(2))
    ratio = Quadratic(2)
    with torch.no_grad():
        ratio.square.copy_(0.5 * (torch.eye(2) - q.precision_matrix))
        ratio.slope.copy_(q.precision_matrix @ mean)
        ratio.offset.copy_(-0.5 * (mean @ q.precision_matrix @ mean + torch.logdet(q.covariance_matrix)))
        encoder = AdversarialEncoder(Affine(torch.zeros(2, 3), mean, factor), ratio, StandardNormalPrior(2))
        drawn = encoder.draw(torch.zeros(20_000, 3), 1)
    yield exact("max |log_q - log q(z|x)| with T*", 0, (drawn.log_q - q.log_prob(drawn.z)).abs().max().item())
    divergence = kl_divergence(q, prior).item()
    yield near("E_q T* = KL(q || p(z))", divergence, Mean.of(drawn.log_q - prior.log_prob(drawn.z)))


def _adaptive_contrast() -> Iterator[Row]:
    """Against the Gaussian with q's own moments T* = 0, and log_q is its density."""
    weight, bias = torch.tensor([[0.5, 0.1, 0.0], [0.0, -0.3, 0.2]]), torch.tensor([0.1, 0.2])
    encoder = AdversarialEncoder(Affine(weight, bias, 0.7 * torch.eye(2)), Quadratic(2), None)
    x = torch.randn(200, 3)
    drawn, mean = encoder.draw(x, 3), encoder.sampler.condition(x)
    r = DiagonalNormal(mean, torch.full_like(mean, (0.49 + 1e-4) ** 0.5))
    worst = (drawn.log_q - r.log_prob(drawn.z)).abs().max().item()
    yield exact("max |log_q - log r(z|x)|, adaptive contrast, T = 0", 0, worst)
