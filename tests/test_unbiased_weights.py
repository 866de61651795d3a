"""E[w] = p(x): the contract behind every bound and every estimate, for each family, K and L."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from toys import CELLS, Family, Mean, Miscounted, WithoutOwnPsi, learned, linear_gaussian, name, one_image, sivi

from vaebench.encoders.base import Encoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.estimators.importance import log_likelihood
from vaebench.objective import evidence

pytestmark = pytest.mark.usefixtures("float64")

REPLICATES = 20_000


def relative_weights(encoder: Encoder, k: int, inner_k: int, replicates: int = REPLICATES) -> Tensor:
    """Return w / p(x) averaged over the K draws of each replicate, (B,); the replicates are independent."""
    model, x = linear_gaussian(), one_image(replicates)
    with torch.no_grad():
        log_w = evidence(model, encoder, x, k, inner_k=inner_k, estimate=True).log_weights()
    return (log_w - model.log_evidence(x)).exp().mean(0)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("family", "inner_k"), CELLS, ids=name)
def test_the_mean_weight_is_the_evidence(family: Family, inner_k: int, k: int):
    mean = Mean.of(relative_weights(family.make(), k, inner_k))
    # Power: an error of 4% in the weights, 0.04 nats, cannot hide.
    assert mean.stderr < 0.01
    assert abs(mean.errors_above(1)) < 4


@pytest.mark.parametrize(("family", "inner_k"), CELLS, ids=name)
def test_the_streamed_estimate_is_unbiased_too(family: Family, inner_k: int):
    """Evaluation cuts K and L into chunks: the mean of exp(estimate) is still p(x)."""
    model, x = linear_gaussian(), one_image(REPLICATES)
    estimates = log_likelihood(model, family.make(), x, k=3, inner_k=inner_k, chunk=2, inner_chunk=3, seed=11)
    mean = Mean.of((estimates - model.log_evidence(x)).exp())
    assert mean.stderr < 0.01
    assert abs(mean.errors_above(1)) < 4


@pytest.mark.parametrize("make", [learned, sivi])
@pytest.mark.parametrize("inner_k", [1, 4])
def test_control_dividing_by_l_is_caught(make: Callable[[], HierarchicalEncoder], inner_k: int):
    mean = Mean.of(relative_weights(Miscounted(make()), 1, inner_k))
    assert mean.errors_above(1) < -30
    assert abs(mean.errors_above(inner_k / (inner_k + 1))) < 4


@pytest.mark.parametrize(("make", "inner_k"), [(learned, 1), (learned, 3), (sivi, 1), (sivi, 2), (sivi, 3)])
def test_control_dropping_the_psi_that_made_z_is_caught(make: Callable[[], HierarchicalEncoder], inner_k: int):
    """Without psi_0 the weights' mean exceeds p(x): log p(x) would be overstated."""
    weights = relative_weights(WithoutOwnPsi(make()), 1, inner_k, 5 * REPLICATES)
    assert Mean.of(weights).errors_above(1) > 20
