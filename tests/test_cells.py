"""HVM, SIVI and IWHVI are cells of one class; ELBO, IWAE and their relatives are cells of one grid of bounds."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution
from toys import (
    IgnoringZ,
    Mean,
    learned,
    linear_gaussian,
    mixing_as_reverse,
    one_image,
    sivi,
    wide_hierarchy,
)

from vaebench import bounds, noise
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.objective import evidence

pytestmark = pytest.mark.usefixtures("float64")

# Encoders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [learned, mixing_as_reverse, sivi])
def test_without_inner_samples_the_bound_is_that_of_hvm(make: Callable[[], HierarchicalEncoder]):
    """log w = log p(x, z) + log tau(psi|z,x) - log q(psi|x) - log q(z|psi,x), with psi the one that made z."""
    model, x, encoder = linear_gaussian(), torch.randn(6, 3), make()
    draw = encoder.draw(x, 4, path_only=True)
    z, psi = draw.paths
    mixing = encoder.mixing(x)
    reverse = encoder.reverse
    tau = mixing if reverse is None else reverse(z, reverse.condition(x))
    log_q_z = encoder.conditional(psi, encoder.conditional.condition(x)).log_prob(z)
    expected = mixing.log_prob(psi) + log_q_z - tau.log_prob(psi)
    assert (draw.log_q - expected).abs().max() < 1e-12
    assert torch.equal(z, draw.z)
    assert model.log_joint(x, z).log_prior.shape == (4, 6)


def test_iwhvi_with_inner_samples_by_hand():
    """The log-mean of L + 1 ratios, psi_0 first, from the same keyed noise."""
    x, encoder, inner_k = torch.randn(5, 3), learned(), 3
    assert encoder.reverse is not None
    with noise.keyed(4, torch.arange(5)):
        draw = encoder.draw(x, 2, inner_k=inner_k, path_only=True)
    z, psi = draw.paths
    tau = encoder.reverse(z, encoder.reverse.condition(x))
    with noise.keyed(4, torch.arange(5)), noise.inner_samples(0):
        inner = tau.rsample((inner_k,))
    psi = torch.cat([psi.unsqueeze(0), inner])
    conditioned = encoder.conditional.condition(x)
    log_r = encoder.mixing(x).log_prob(psi) + encoder.conditional(psi, conditioned).log_prob(z) - tau.log_prob(psi)
    assert (draw.log_q - (log_r.exp().sum(0) / (inner_k + 1)).log()).abs().max() < 1e-12
    # Controls: neither L in place of L + 1, nor the L fresh ones alone.
    assert (draw.log_q - (log_r.exp().sum(0) / inner_k).log()).abs().min() > 0.1
    assert (draw.log_q - bounds.log_mean_exp(log_r[1:])).abs().max() > 0.1


class Expanded(IgnoringZ):
    """tau = q(psi|x) with a batch shape that follows z."""

    def forward(self, u: Tensor, conditioned: Distribution) -> Any:
        return conditioned.expand(u.shape[:-1])


@pytest.mark.parametrize("inner_k", [0, 1, 5])
@pytest.mark.parametrize("spelling", [IgnoringZ, Expanded])
def test_sivi_is_the_cell_whose_reverse_model_is_the_mixing_distribution(spelling: type[IgnoringZ], inner_k: int):
    """Three spellings, one number, given the same noise."""
    model, x, toy = linear_gaussian(), torch.randn(6, 3), wide_hierarchy()
    encoders = [HierarchicalEncoder(toy.mixing, toy.conditional, reverse) for reverse in (None, spelling(toy.mixing))]
    values = []
    for encoder in encoders:
        torch.manual_seed(3)
        values.append(evidence(model, encoder, x, 4, inner_k=inner_k).log_weights())
    assert (values[0] - values[1]).abs().max() < 1e-12


def test_sharing_psi_changes_no_single_weight_in_law():
    """How the weights of one image then hang together is enumerated in test_finite_state."""
    x = one_image(40_000)
    with torch.no_grad():
        own, shared = (sivi(share).draw(x, 2, inner_k=2) for share in (False, True))
    own_bound, shared_bound = Mean.of(own.log_q.mean(0)), Mean.of(shared.log_q.mean(0))
    spread = math.hypot(own_bound.stderr, shared_bound.stderr)
    assert abs(own_bound.value - shared_bound.value) < 4 * spread
    assert abs(own.log_q.var() / shared.log_q.var() - 1) < 0.05


def test_sharing_psi_under_a_reverse_model_is_refused():
    toy = wide_hierarchy()
    with pytest.raises(ValueError, match="share_psi"):
        HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse(), share_psi=True)


# Bounds ---------------------------------------------------------------------------------------------------


def test_bounds_of_one_sample_are_one_bound():
    log_w = torch.randn(1, 7)
    for bound in (
        bounds.elbo,
        bounds.iwae,
        lambda w: bounds.ciwae(w, 0.3),
        lambda w: bounds.miwae(w, 1),
        lambda w: bounds.renyi(w, 0.5),
        lambda w: bounds.renyi(w, -math.inf),
    ):
        assert (bound(log_w) - log_w[0]).abs().max() < 1e-14


def test_corners_of_the_grid():
    log_w = 3 * torch.randn(12, 5)
    elbo, iwae = log_w.mean(0), log_w.exp().mean(0).log()
    corners = [
        (bounds.elbo(log_w), elbo),
        (bounds.iwae(log_w), iwae),
        (bounds.miwae(log_w, 12), elbo),
        (bounds.miwae(log_w, 1), iwae),
        (bounds.ciwae(log_w, 1), elbo),
        (bounds.ciwae(log_w, 0), iwae),
        (bounds.ciwae(log_w, 0.3), 0.3 * elbo + 0.7 * iwae),
        (bounds.renyi(log_w, 1), elbo),
        (bounds.renyi(log_w, 0), iwae),
        (bounds.renyi(log_w, -math.inf), log_w.amax(0)),
        (bounds.renyi(log_w, 0.25), log_w.mul(0.75).exp().mean(0).log() / 0.75),
    ]
    for value, expected in corners:
        assert value.shape == (5,)
        assert (value - expected).abs().max() < 1e-12


def test_miwae_with_unequal_axes():
    """M = 4 groups of 3: no axis can be taken for another (pythae's M = K = 8 hid such a mistake)."""
    log_w = torch.randn(12, 5)
    groups = [log_w[3 * m : 3 * m + 3] for m in range(4)]
    expected = torch.stack([group.exp().mean(0).log() for group in groups]).mean(0)
    assert (bounds.miwae(log_w, 4) - expected).abs().max() < 1e-14
    assert (bounds.miwae(log_w, 3) - expected).abs().min() > 1e-4


def test_bounds_refuse_what_they_cannot_do():
    log_w = torch.randn(12, 5)
    for groups in (5, 0, 24):
        with pytest.raises(ValueError, match="groups must be >= 1 and divide"):
            bounds.miwae(log_w, groups)
    for beta in (-0.1, 1.1):
        with pytest.raises(ValueError, match="beta must be >= 0 and <= 1"):
            bounds.ciwae(log_w, beta)


@pytest.mark.parametrize("shift", [-2000.0, 2000.0])
def test_bounds_of_log_weights_far_from_zero(shift: float):
    """Images of 784 pixels have log weights where exp under- or overflows."""
    log_w = torch.randn(6, 5)
    for bound in (bounds.iwae, lambda w: bounds.renyi(w, -2.0), lambda w: bounds.miwae(w, 2)):
        assert (bound(log_w + shift) - bound(log_w) - shift).abs().max() < 1e-10
