"""Schedules against their formulas."""

import pytest

from vaebench.train import schedules


def test_burda_has_eight_stages_of_3_to_the_i_epochs():
    rate = schedules.burda(1e-3)
    lengths = {}
    for epoch in range(3280):
        lengths[rate(epoch)] = lengths.get(rate(epoch), 0) + 1
    assert list(lengths.values()) == [3**i for i in range(8)]
    # The authors' factors, 10 * 10^(-i/7) rounded to one decimal.
    assert [round(lr / 1e-4, 6) for lr in lengths] == [10.0, 7.2, 5.2, 3.7, 2.7, 1.9, 1.4, 1.0]
    assert rate(5000) == rate(3279)


def test_exponential_decays_by_its_factor_over_its_epochs():
    rate = schedules.exponential(1e-3, 0.95, 100)
    assert rate(0) == 1e-3
    assert rate(100) == pytest.approx(0.95e-3)
    assert rate(50) ** 2 == pytest.approx(rate(0) * rate(100))


def test_cosine_goes_from_lr_to_final_lr():
    rate = schedules.cosine(1e-3, 1e-5, 10)
    assert rate(0) == 1e-3
    assert rate(5) == pytest.approx((1e-3 + 1e-5) / 2)
    assert rate(10) == rate(11) == pytest.approx(1e-5)


def test_piecewise_takes_the_latest_change():
    value = schedules.piecewise({10: 1, 5: 3, 0: 7})
    assert [value(epoch) for epoch in (0, 4.99, 5, 9, 10, 100)] == [7, 7, 3, 3, 1, 1]
    assert schedules.piecewise({0: 7})(3) == 7


def test_the_kl_weight_rises_from_zero_to_one():
    weight = schedules.kl_weight(4)
    assert [weight(epoch) for epoch in (0, 1, 2, 4, 9)] == [0, 0.25, 0.5, 1, 1]
    assert schedules.kl_weight(0)(0) == 1
