"""Schedules against their formulas, and the notices for schedules that are longer than the run."""

import pytest

from vaebench.config import compose
from vaebench.config.describe import objective, schedules_past_the_end
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


WARMUP = "trainer.kl_warmup=50 is longer than trainer.epochs=2: the KL weight ends at 0.04, not at 1"
SCHEDULE = "trainer.k_schedule={0:1,1:2,2:5,90:6}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            "trainer.kl_warmup=50",
            ["trainer.kl_warmup=50 is longer than trainer.epochs=2: the KL weight ends at 0.04, not at 1"],
        ),
        (SCHEDULE, ["trainer.k_schedule: no effect at epochs 2, 90, because the run has trainer.epochs=2"]),
        (
            "encoder=iwhvi encoder.inner_k=4 trainer.inner_k_schedule={3:5}",
            ["trainer.inner_k_schedule: no effect at epoch 3, because the run has trainer.epochs=2"],
        ),
        ("optimizer=burda", ["optimizer.schedule=burda takes 3280 epochs, but trainer.epochs=2"]),
        (
            "optimizer.schedule=exponential optimizer.decay=0.5 optimizer.decay_epochs=4",
            ["optimizer.decay_epochs=4 is longer than trainer.epochs=2: the learning rate ends at 0.000707"],
        ),
        (
            "trainer.kl_warmup=2 trainer.patience=3",
            ["trainer.patience=3 has no effect: the schedules of the objective last the whole run"],
        ),
        # Controls: schedules that the run completes.
        ("trainer.kl_warmup=2", []),
        ("trainer.kl_warmup=1 trainer.patience=3", []),
        ("trainer.k_schedule={0:1,1:2}", []),
        ("optimizer.schedule=exponential optimizer.decay_epochs=2", []),
        ("optimizer=burda trainer.epochs=3280", []),
    ],
)
def test_a_schedule_that_is_longer_than_the_run_is_noticed(overrides: str, expected: list[str]):
    words = overrides.split()
    assert list(schedules_past_the_end(compose(["trainer.epochs=2", *words]))) == expected


def test_what_is_past_the_end_is_left_out_everywhere():
    config = compose(["trainer.epochs=2", "k=3", "trainer.k_schedule={1:2,2:5}"])
    assert config.k_by_epoch == {0: 3, 1: 2}
    assert config.schedules_end == 1
    assert "k=3, 2 from epoch 1, gradient" in objective(config)
    assert compose(["trainer.epochs=3", "k=3", "trainer.k_schedule={1:2,2:5}"]).k_by_epoch == {0: 3, 1: 2, 2: 5}


def test_the_last_example_of_the_help_is_accepted():
    config = compose(["experiment=iwhvi_paper/mnist_iwhvi", "trainer.epochs=100"])
    assert config.inner_k_by_epoch == {0: 0}
    notes = list(schedules_past_the_end(config))
    assert (
        notes[1]
        == "trainer.inner_k_schedule: no effect at epochs 250, 500, 1000, because the run has trainer.epochs=100"
    )
