"""How fast bounds close: gaps fall as a chi-square divergence over twice the number of samples."""

import math

import pytest
import torch
from oracles.scalar import (
    GAUSSIAN,
    IMAGE,
    Named,
    Replicated,
    exact_bound,
    model,
    posterior_divergence,
    standard_hierarchy,
)
from torch import Tensor
from toys import Mean, WithoutOwnPsi

from vaebench import bounds
from vaebench.encoders.base import Encoder
from vaebench.objective import Objective

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(("k", "tolerance"), [(10, 0.15), (50, 0.03), (400, 0.004)])
def test_the_gap_of_iwae_is_chi_square_over_2k(k: int, tolerance: float):
    """By quadrature: the exact gap approaches its asymptote as K grows."""
    log_evidence = model().log_evidence(torch.tensor([IMAGE])).item()
    gap = log_evidence - exact_bound(GAUSSIAN, Named("iwae", k))
    assert gap * 2 * k / posterior_divergence() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("k", [10, 50])
def test_the_librarys_bound_has_that_gap(k: int):
    """Against the exact value, of which the asymptote is a part."""
    toy, x = Replicated(GAUSSIAN, 50_000), torch.full((50_000, 1), IMAGE)
    with torch.no_grad():
        value, _ = Objective(bounds.iwae)(model(), toy.encoder, x, k)
    mean = Mean.of(value)
    assert mean.stderr < 0.1 * posterior_divergence() / (2 * k)
    assert abs(mean.errors_above(exact_bound(GAUSSIAN, Named("iwae", k)))) < 4


def scaled_excess(encoder: Encoder, inner_k: int) -> Tensor:
    """Return samples of 2 L (log_q - log q(z)), whose mean tends to the expected chi-square divergence."""
    with torch.no_grad():
        draw = encoder.draw(torch.zeros(20_000, 1), 1, inner_k=inner_k)
    log_density = -0.5 * draw.z.square().sum(-1) - 0.5 * math.log(2 * math.pi)
    return 2 * inner_k * (draw.log_q - log_density)


def test_log_q_and_its_companion_close_from_both_sides():
    """E chi^2(q(psi|z) || q(psi)) = a^2 / s^2 = 16/9, approached by the upper and the lower bound on log q."""
    divergence = 16 / 9
    with_own = Mean.of(scaled_excess(standard_hierarchy(), 200))
    fresh_only = Mean.of(scaled_excess(WithoutOwnPsi(standard_hierarchy()), 200))
    assert with_own.errors_above(0) > 4
    assert fresh_only.errors_above(0) < -4
    # The next term is of relative order 1/L, with a coefficient of about 10 here.
    assert with_own.value == pytest.approx(divergence, abs=0.15 + 4 * with_own.stderr)
    assert -fresh_only.value == pytest.approx(divergence, abs=0.25 + 4 * fresh_only.stderr)
