"""What is reported is the bound itself, never a surrogate that only has its gradient."""

import math

import pytest
import torch
from torch import Tensor
from toys import CELLS, GRADIENT_CELLS, Family, linear_gaussian, name

from vaebench import bounds
from vaebench.gradients import GradientEstimator
from vaebench.objective import Objective

pytestmark = pytest.mark.usefixtures("float64")

BOUNDS = {
    "elbo": (bounds.elbo, lambda log_w: log_w.mean(0)),
    "iwae": (bounds.iwae, lambda log_w: torch.logsumexp(log_w, 0) - math.log(len(log_w))),
    "miwae": (
        lambda log_w: bounds.miwae(log_w, 2),
        lambda log_w: (torch.logsumexp(log_w[:3], 0) + torch.logsumexp(log_w[3:], 0)) / 2 - math.log(3),
    ),
}


def surrogate(log_w: Tensor) -> Tensor:
    """The loss of many IWAE codes: sum_k of detached normalised weights times log weights."""
    return (log_w.softmax(0).detach() * log_w).sum(0)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(("family", "inner_k", "gradient"), GRADIENT_CELLS, ids=name)
def test_the_value_is_the_bound(family: Family, inner_k: int, gradient: GradientEstimator, bound: str):
    model, encoder, x = linear_gaussian(), family.make(), torch.randn(8, 3)
    function, formula = BOUNDS[bound]
    value, drawn = Objective(function, gradient)(model, encoder, x, 6, inner_k=inner_k)
    log_w = drawn.log_likelihood + drawn.log_prior - drawn.log_q
    assert value.shape == (8,)
    assert (value - formula(log_w)).abs().max() < 1e-12


@pytest.mark.parametrize(("family", "inner_k"), CELLS, ids=name)
def test_the_value_does_not_depend_on_the_gradient_estimator(family: Family, inner_k: int):
    model, encoder, x = linear_gaussian(), family.make(), torch.randn(8, 3)
    for beta in (1.0, 0.4):
        values = []
        for gradient in family.gradients:
            torch.manual_seed(5)
            values.append(Objective(bounds.iwae, gradient)(model, encoder, x, 4, inner_k=inner_k, beta=beta)[0])
        assert all((values[0] - value).abs().max() < 1e-12 for value in values)


def test_the_warm_up_weighs_the_divergence_alone():
    model, encoder, x = linear_gaussian(), CELLS[0][0].make(), torch.randn(8, 3)
    value, drawn = Objective(bounds.iwae)(model, encoder, x, 4, beta=0.25)
    log_w = drawn.log_likelihood + 0.25 * (drawn.log_prior - drawn.log_q)
    assert (value - (torch.logsumexp(log_w, 0) - math.log(4))).abs().max() < 1e-12
    assert (drawn.log_weights() - (drawn.log_likelihood + drawn.log_prior - drawn.log_q)).abs().max() < 1e-12


def test_control_the_surrogate_has_the_gradient_and_overstates_the_value():
    """sum_k w_k log w_k = L_K + log K - H(w), up to log K too high."""
    log_w = (2 * torch.randn(50, 30)).requires_grad_()
    overstated = surrogate(log_w) - bounds.iwae(log_w)
    entropy = -(log_w.softmax(0) * log_w.log_softmax(0)).sum(0)
    assert (overstated - (math.log(50) - entropy)).abs().max() < 1e-12
    assert overstated.min() > 0.5
    gradients = [torch.autograd.grad(f(log_w).sum(), log_w)[0] for f in (surrogate, bounds.iwae)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-12
