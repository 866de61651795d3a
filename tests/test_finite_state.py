"""Every bound by enumeration on a model with finitely many states, through the library's own code.

z in {0, 1}, psi in {0, 1, 2}. All outcomes of all draws are laid out along the batch axis, and the encoder is
handed each of them as if it had drawn it; the expectation is then a finite sum.
"""

import math

import pytest
from oracles.finite import (
    ELBO,
    EXACT_REVERSE,
    LOG_EVIDENCE,
    RENYI,
    REVERSE,
    SIVI,
    TABLE,
    TVO,
    Enumeration,
    Reverse,
    encoder_for,
    expected_bound,
    expected_shared,
    states_as_often_as_probable,
)

from vaebench import bounds
from vaebench.selftest.oracles.wrong import WithoutOwnPsi

pytestmark = pytest.mark.usefixtures("float64")

TOLERANCE = 1e-9


@pytest.mark.parametrize("reverse", [REVERSE, SIVI, EXACT_REVERSE], ids=["learned", "sivi", "exact"])
@pytest.mark.parametrize(("k", "inner_k"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)])
def test_the_expected_weight_is_exactly_the_evidence(reverse: Reverse, k: int, inner_k: int):
    assert expected_bound(lambda log_w: log_w.exp().mean(0), k, inner_k, reverse) == pytest.approx(0.295, abs=1e-14)


@pytest.mark.parametrize("row", TABLE)
def test_the_table(row: str):
    bound, k, inner_k, reverse, expected = TABLE[row]
    value = expected_bound(bound, k, inner_k, reverse)
    assert value == pytest.approx(expected, abs=TOLERANCE)
    assert value < LOG_EVIDENCE


@pytest.mark.parametrize(
    ("reverse", "overstated"), [(REVERSE, -2.3128623409), (SIVI, -2.1359332364)], ids=["iwhvi", "sivi"]
)
def test_control_without_psi_0_the_value_exceeds_the_elbo(reverse: Reverse, overstated: float):
    wrong = expected_bound(bounds.elbo, 1, 1, reverse, WithoutOwnPsi)
    assert wrong == pytest.approx(overstated, abs=TOLERANCE)
    assert wrong > ELBO > expected_bound(bounds.elbo, 1, 1, reverse)


def test_sharing_psi_keeps_the_weights_unbiased_and_loosens_the_bound():
    """One scripted set of psi_1..L, of shape (L, 1, B, 1), serves all K draws."""
    for k, inner_k in ((2, 1), (2, 2), (3, 1)):
        weight = expected_shared(lambda log_w: log_w.exp().mean(0), k, inner_k)
        assert weight == pytest.approx(0.295, abs=1e-14)
    assert expected_shared(bounds.elbo, 2, 1) == pytest.approx(-2.4912533501, abs=TOLERANCE)
    shared, own = expected_shared(bounds.iwae, 2, 2), expected_bound(bounds.iwae, 2, 2, SIVI)
    assert shared < own < LOG_EVIDENCE


@pytest.mark.parametrize("alpha", RENYI)
def test_renyi_bounds(alpha: float):
    log_w = states_as_often_as_probable()
    assert bounds.renyi(log_w, alpha).item() == pytest.approx(RENYI[alpha], abs=TOLERANCE)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5])
def test_renyi_bounds_of_few_samples_are_biased_downward(alpha: float):
    """For alpha < 1; so that even alpha < 0 may lie below log p(x), which its exact value exceeds."""
    values = [expected_bound(lambda log_w: bounds.renyi(log_w, alpha), k, 0, EXACT_REVERSE) for k in (1, 2, 4)]
    assert pytest.approx(values[0], abs=TOLERANCE) == ELBO
    assert values[0] < values[1] < values[2] < RENYI[alpha]


@pytest.mark.parametrize("upper", TVO)
def test_riemann_sums(upper: bool):
    """With every state as often as it is probable, the self-normalised expectations are exact."""
    betas = [0.0, 0.25, 0.5, 0.75, 1.0]
    found = bounds.tvo(states_as_often_as_probable(), betas, upper=upper).item()
    assert found == pytest.approx(TVO[upper], abs=TOLERANCE)


def test_the_largest_weight():
    log_w = states_as_often_as_probable()
    assert bounds.renyi(log_w, -math.inf).item() == pytest.approx(math.log(0.7 * 0.4 / 0.39), abs=TOLERANCE)


def test_the_scripted_parts_refuse_draws_of_another_shape():
    """Control of the harness: K and L are the encoder's axes, not this file's."""
    outcomes = Enumeration(2, 1, REVERSE)
    encoder = encoder_for(outcomes.script, REVERSE)
    with pytest.raises(AssertionError):
        encoder.draw(outcomes.x, 1, inner_k=1)
