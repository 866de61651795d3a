"""Bounds rise with k and with inner_k, and stay below log p(x); log_q falls with inner_k, and stays above."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from toys import (
    CELLS,
    FAMILIES,
    Family,
    IgnoringZ,
    Mean,
    WithoutOwnPsi,
    linear_gaussian,
    name,
    one_image,
    wide_hierarchy,
)

from vaebench import bounds, noise
from vaebench.encoders.base import Direction, Encoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.objective import evidence

pytestmark = pytest.mark.usefixtures("float64")

REPLICATES = 20_000


def strong(kind: str) -> HierarchicalEncoder:
    """Return a hierarchy whose psi explains much of z, so that inner samples matter."""
    toy = wide_hierarchy(1.8)
    reverse = {"learned": toy.rough_reverse(), "sivi-as-reverse": IgnoringZ(toy.mixing)}.get(kind)
    return HierarchicalEncoder(toy.mixing, toy.conditional, reverse, share_psi=kind == "sivi-shared")


KINDS = ["learned", "sivi", "sivi-shared", "sivi-as-reverse"]


def iwae_values(encoder: Encoder, k: int, inner_k: int) -> Tensor:
    """Return independent samples of log (1/K) sum w - log p(x), (B,).

    Keyed noise pairs the samples of different k and inner_k: the larger number goes on where the smaller ends.
    """
    model, x = linear_gaussian(), one_image(REPLICATES)
    with torch.no_grad(), noise.keyed(0, torch.arange(REPLICATES)):
        log_w = evidence(model, encoder, x, k, inner_k=inner_k, estimate=True).log_weights()
    return bounds.iwae(log_w) - model.log_evidence(x)


def rises(values: Sequence[Tensor]) -> bool:
    """Tell whether each mean lies above the one before by more than 4 standard errors of their difference."""
    return all(Mean.of(high - low).errors_above(0) > 4 for low, high in pairwise(values))


@pytest.mark.parametrize(("family", "inner_k"), CELLS, ids=name)
def test_the_bound_rises_with_k_towards_the_evidence(family: Family, inner_k: int):
    encoder = family.make()
    values = [iwae_values(encoder, k, inner_k) for k in (1, 2, 5, 25)]
    assert rises(values)
    assert all(Mean.of(value).errors_above(0) < -4 for value in values)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_rises_with_inner_k(kind: str, k: int):
    encoder = strong(kind)
    values = [iwae_values(encoder, k, inner_k) for inner_k in (0, 1, 3, 12)]
    assert rises(values)
    assert all(Mean.of(value).errors_above(0) < -4 for value in values)


def test_control_without_psi_0_the_bound_falls_with_inner_k():
    encoder = WithoutOwnPsi(strong("sivi"))
    assert rises([iwae_values(encoder, 1, inner_k) for inner_k in (12, 3, 1)])


def excess(encoder: Encoder, inner_k: int) -> Tensor:
    """Return samples of log_q - log q(z|x), (K, B), at draws z of a ``strong`` encoder."""
    x = one_image(REPLICATES)
    with torch.no_grad(), noise.keyed(0, torch.arange(REPLICATES)):
        draw = encoder.draw(x, 1, inner_k=inner_k)
    return draw.log_q - wide_hierarchy(1.8).marginal(x).log_prob(draw.z)


@pytest.mark.parametrize("kind", KINDS)
def test_the_upper_bound_on_log_q_falls_with_inner_k(kind: str):
    values = [excess(strong(kind), inner_k) for inner_k in (12, 3, 1, 0)]
    assert rises(values)
    assert all(Mean.of(value).errors_above(0) > 4 for value in values)


@pytest.mark.parametrize("inner_k", [1, 4, 12])
@pytest.mark.parametrize("kind", ["learned", "sivi"])
def test_leaving_out_the_psi_that_made_z_turns_the_bound_round(kind: str, inner_k: int):
    encoder = strong(kind)
    assert Mean.of(excess(WithoutOwnPsi(encoder), inner_k)).errors_above(0) < -4
    assert Mean.of(excess(encoder, inner_k)).errors_above(0) > 4


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.log_density], ids=name)
def test_the_direction_says_what_log_q_is(family: Family):
    """EXACT means log q(z|x) to rounding; UPPER_BOUND means above it on average."""
    encoder = family.make()
    assert family.log_density
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
