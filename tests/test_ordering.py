"""Bounds rise with k and with inner_k, and stay below log p(x); log_q falls with inner_k, and stays above."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from toys import CELLS, FAMILIES, Family, Mean, WithoutOwnPsi, learned, linear_gaussian, name, one_image, sivi
from toys import mixing_as_reverse, wide_hierarchy

from vaebench import bounds
from vaebench.encoders import Direction, Encoder, HierarchicalEncoder
from vaebench.objective import evidence

pytestmark = pytest.mark.usefixtures("float64")

REPLICATES = 20_000
IMPERFECT = [learned, sivi, lambda: sivi(share_psi=True), mixing_as_reverse]
IMPERFECT_IDS = ["learned", "sivi", "sivi-shared", "sivi-as-reverse"]


def iwae_values(encoder: Encoder, k: int, inner_k: int, seed: int = 0, replicates: int = REPLICATES) -> Tensor:
    """Return independent samples of log (1/K) sum w - log p(x), (B,)."""
    torch.manual_seed(seed)
    model, x = linear_gaussian(), one_image(replicates)
    with torch.no_grad():
        log_w = evidence(model, encoder, x, k, inner_k=inner_k).log_weights()
    return bounds.iwae(log_w) - model.log_evidence(x)


def errors_between(lower: Tensor, upper: Tensor) -> float:
    """Return by how many standard errors the mean of ``upper`` exceeds that of ``lower``; samples independent."""
    low, high = Mean.of(lower), Mean.of(upper)
    return (high.value - low.value) / (low.stderr**2 + high.stderr**2) ** 0.5


@pytest.mark.parametrize(("family", "inner_k"), CELLS, ids=name)
def test_the_bound_rises_with_k_towards_the_evidence(family: Family, inner_k: int):
    encoder = family.make()
    values = [iwae_values(encoder, k, inner_k, seed=k) for k in (1, 2, 5, 25)]
    assert all(errors_between(low, high) > 4 for low, high in pairwise(values))
    assert all(Mean.of(value).errors_above(0) < -4 for value in values)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("make", IMPERFECT, ids=IMPERFECT_IDS)
def test_the_bound_rises_with_inner_k(make: type, k: int):
    encoder = make()
    # At K = 4 the steps are small beside the spread between replicates.
    replicates = REPLICATES * k
    values = [iwae_values(encoder, k, inner_k, inner_k, replicates) for inner_k in (0, 2, 20)]
    assert all(errors_between(low, high) > 4 for low, high in pairwise(values))
    assert all(Mean.of(value).errors_above(0) < -4 for value in values)


def excess(encoder: Encoder, inner_k: int, replicates: int = REPLICATES) -> Tensor:
    """Return samples of log_q - log q(z|x), (K, B), at draws z of a ``wide_hierarchy``."""
    x = one_image(replicates)
    with torch.no_grad():
        draw = encoder.draw(x, 1, inner_k=inner_k)
    return draw.log_q - wide_hierarchy().marginal(x).log_prob(draw.z)


@pytest.mark.parametrize("make", IMPERFECT, ids=IMPERFECT_IDS)
def test_the_upper_bound_on_log_q_falls_with_inner_k(make: type):
    values = [excess(make(), inner_k) for inner_k in (0, 1, 4, 20)]
    assert all(errors_between(high, low) > 4 for low, high in pairwise(values))
    assert all(Mean.of(value).errors_above(0) > 4 for value in values)


@pytest.mark.parametrize("inner_k", [1, 4, 20])
@pytest.mark.parametrize("make", [learned, sivi])
def test_leaving_out_the_psi_that_made_z_turns_the_bound_round(make: type, inner_k: int):
    encoder: HierarchicalEncoder = make()
    replicates = REPLICATES * inner_k
    assert Mean.of(excess(WithoutOwnPsi(encoder), inner_k, replicates)).errors_above(0) < -4
    assert Mean.of(excess(encoder, inner_k, replicates)).errors_above(0) > 4


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_the_direction_says_what_log_q_is(family: Family):
    """EXACT means log q(z|x) to rounding; UPPER_BOUND means above it on average."""
    encoder = family.make()
    if family.log_density is None:
        pytest.skip("its density is not known in closed form")
    x = one_image(REPLICATES)
    with torch.no_grad():
        draw = encoder.draw(x, 2, inner_k=family.inner_ks[-1])
        difference = draw.log_q - family.log_density(draw.z, x)
    if encoder.direction is Direction.EXACT:
        assert difference.abs().max() < 1e-12
    else:
        assert encoder.direction is Direction.UPPER_BOUND
        assert difference.mean() > -1e-12


def test_directions_of_estimates():
    assert Direction.EXACT.of_log_likelihood == "lower_bound"
    assert Direction.UPPER_BOUND.of_log_likelihood == "lower_bound"
    assert Direction.ESTIMATE.of_log_likelihood == "estimate"


@pytest.mark.parametrize("alpha", [-2.0, -0.5, 0.3, 0.9, 1.5])
def test_renyi_bounds_fall_with_alpha(alpha: float):
    """The generalised mean of the weights rises with its exponent 1 - alpha, sample by sample."""
    log_w = torch.randn(7, 50)
    assert (bounds.renyi(log_w, alpha) >= bounds.renyi(log_w, alpha + 0.2)).all()
    assert (bounds.renyi(log_w, -torch.inf) >= bounds.renyi(log_w, alpha)).all()
