"""A decoder that ignores z: log p(x) is the decoder's own, for every encoder and every estimate."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from toys import (
    CELLS,
    AffineConditional,
    AffineGaussian,
    ConstantDecoder,
    Family,
    Mean,
    WithoutOwnPsi,
    name,
    sivi,
)

from vaebench import bounds
from vaebench.encoders.base import Encoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.estimators.importance import log_likelihood
from vaebench.model import GenerativeModel
from vaebench.objective import evidence
from vaebench.priors import StandardNormalPrior

pytestmark = pytest.mark.usefixtures("float64")

LOGITS = (0.5, -1.0, 2.0)
PIXELS = (1.0, 0.0, 0.0)


def constant_model(latent_dim: int = 2) -> GenerativeModel:
    return GenerativeModel(StandardNormalPrior(latent_dim), ConstantDecoder(torch.tensor(LOGITS)))


def truth() -> float:
    return -F.binary_cross_entropy_with_logits(torch.tensor(LOGITS), torch.tensor(PIXELS), reduction="sum").item()


@pytest.mark.parametrize(("family", "inner_k"), [cell for cell in CELLS if cell[0].converges], ids=name)
def test_the_estimate_converges_to_the_decoders_own_likelihood(family: Family, inner_k: int):
    x = torch.tensor(PIXELS).expand(8, 3)
    estimate = log_likelihood(constant_model(), family.make(), x, k=20_000, inner_k=inner_k, seed=2)
    # Weights have a relative spread of at most 2, so that one estimate errs by 2 / sqrt(20,000) = .014.
    assert (estimate - truth()).abs().max() < 0.06
    assert abs(estimate.mean().item() - truth()) < 0.02


def test_where_draws_share_psi_the_estimate_converges_in_both_numbers_only():
    """Conditionally on psi_1..L the weights are off by a factor, which averages out over psi and not over z."""
    x = torch.tensor(PIXELS).expand(60, 3)
    spread = {}
    for k, inner_k in ((1000, 2), (8000, 2), (1000, 50)):
        estimate = log_likelihood(constant_model(), sivi(share_psi=True), x, k=k, inner_k=inner_k, seed=2)
        spread[k, inner_k] = (estimate - truth()).square().mean().sqrt().item()
    assert spread[8000, 2] > 0.7 * spread[1000, 2]
    assert spread[1000, 50] < 0.4 * spread[1000, 2]


@pytest.mark.parametrize(("family", "inner_k"), CELLS, ids=name)
def test_weights_are_unbiased_and_bounds_below(family: Family, inner_k: int):
    x = torch.tensor(PIXELS).expand(40_000, 3)
    with torch.no_grad():
        log_w = evidence(constant_model(), family.make(), x, 2, inner_k=inner_k).log_weights() - truth()
    mean = Mean.of(log_w.exp().mean(0))
    assert mean.stderr < 0.01
    assert abs(mean.errors_above(1)) < 4
    for bound in (bounds.elbo, bounds.iwae):
        assert Mean.of(bound(log_w)).errors_above(0) < -10


def ten_dimensional() -> HierarchicalEncoder:
    """Return q(z) = N(0, I) in ten dimensions, mixed over psi: z = (psi + epsilon) / sqrt(2)."""
    dim, half = 10, torch.full((10,), 0.5**0.5)
    mixing = AffineGaussian(torch.zeros(dim, 3), torch.zeros(dim), torch.ones(dim))
    conditional = AffineConditional(half.diag(), torch.zeros(dim, 3), torch.zeros(dim), half)
    return HierarchicalEncoder(mixing, conditional, None)


@pytest.mark.parametrize(
    ("wrong", "inner_k", "low", "high"),
    [
        (None, 10, -0.5, 0.0),
        (None, 100, -0.2, 0.02),
        (WithoutOwnPsi, 10, 3.0, 12.0),
        (WithoutOwnPsi, 100, 0.5, 3.0),
    ],
)
def test_control_without_psi_0_the_estimate_is_nats_too_good(
    wrong: Callable[[HierarchicalEncoder], Encoder] | None, inner_k: int, low: float, high: float
):
    """Scoring z by fresh psi alone, as UIVI's evaluation does, overstates log p(x) by whole nats."""
    encoder = ten_dimensional()
    x = torch.tensor(PIXELS).expand(20, 3)
    scored = wrong(encoder) if wrong else encoder
    estimate = log_likelihood(constant_model(10), scored, x, k=400, inner_k=inner_k, seed=1, estimate=True)
    assert low < estimate.mean().item() - truth() < high
