"""The jackknife against its definition over all subsets, and its bias against an exact log p(x)."""

from itertools import combinations
from math import factorial

import pytest
import torch
from torch import Tensor
from vaebench.bounds import iwae
from vaebench.gradients import GradientEstimator, is_curved
from vaebench.objective import evidence
from vaebench.selftest.oracles.gaussian import gaussian, linear_gaussian, one_image

from vaebench_since2018.jvi import jvi, objective


def by_subsets(log_w: Tensor, order: int) -> Tensor:
    """Return sum_j c(K, m, j) times the mean of L_{K-j} over all subsets of K-j weights."""
    k, total = len(log_w), torch.zeros_like(log_w[0])
    for j in range(order + 1):
        means = torch.stack([iwae(log_w[list(kept)]) for kept in combinations(range(k), k - j)]).mean(0)
        total = total + (-1) ** j * (k - j) ** order / (factorial(order - j) * factorial(j)) * means
    return total


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("k", [3, 4, 7])
def test_it_is_the_jackknife_with_its_gradient(order: int, spread: float, k: int):
    log_w = (spread * torch.randn(k, 5) - 90).requires_grad_()
    weights = torch.randn(5)
    found, expected = jvi(log_w, order), by_subsets(log_w, order)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * (1 + spread))
    gradients = [torch.autograd.grad((weights * value).sum(), log_w)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("order", [1, 2])
def test_float32_keeps_its_digits(order: int):
    log_w = 3 * torch.randn(64, 100) - 500
    error = jvi(log_w.float(), order) - jvi(log_w, order)
    assert error.abs().max() < 0.01


@torch.no_grad()
def test_its_bias_is_smaller_than_that_of_the_bound():
    model, x = linear_gaussian(), one_image(60_000)
    log_w = evidence(model, gaussian(), x, 6).log_weights()
    errors = [value - model.log_evidence(x) for value in (iwae(log_w), jvi(log_w, 1), jvi(log_w, 2))]
    bias, noise = zip(*((error.mean().abs(), error.std() / len(error) ** 0.5) for error in errors), strict=True)
    assert bias[0] > bias[1] + 4 * noise[1]
    assert bias[1] + 4 * noise[1] > bias[2]
    assert errors[0].mean() < 0


def test_the_objective_maximises_the_jackknife_and_reports_the_bound():
    jackknife = objective(GradientEstimator.REPARAM, order=1)
    assert jackknife.bound is iwae
    assert not jackknife.maximises_its_bound
    model, x = linear_gaussian(), one_image(3)
    torch.manual_seed(1)
    value, drawn = jackknife(model, gaussian(), x, 5)
    torch.testing.assert_close(value, jvi(drawn.log_weights(), 1))
    assert is_curved(jackknife.maximised, 5)


@pytest.mark.parametrize("order", [1, 2])
def test_dreg_has_its_second_derivatives(order: int):
    log_w = torch.randn(5, 2, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda log_w: jvi(log_w, order), log_w)
    encoder = gaussian()
    value, _ = objective(GradientEstimator.DREG, order=order)(linear_gaussian(), encoder, one_image(3), 5)
    value.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize(("order", "k"), [(1, 1), (2, 2)])
def test_too_few_samples(order: int, k: int):
    with pytest.raises(ValueError, match=f"order must be < the number of samples k={k}, got {order}"):
        jvi(torch.randn(k, 2), order)
