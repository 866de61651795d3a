"""Bidirectional Monte Carlo: bounds from both sides that keep their sides."""

from itertools import pairwise
from pathlib import Path as FilePath

import pytest
import torch
from oracles.annealing import bridge, exact_move, expected_log_weight, hmc_move, shared
from test_every_config import ONE_STEP
from torch import Tensor
from toys import Mean, gaussian, learned, linear_gaussian

import vaebench
from vaebench.config import compose
from vaebench.encoders.base import Encoder
from vaebench.errors import RunFailed, UserError
from vaebench.estimators.annealing import anneal, linear
from vaebench.estimators.bdmc import bdmc, simulated
from vaebench.evaluate.run import evaluate
from vaebench.train.session import train

pytestmark = pytest.mark.usefixtures("float64")


def backward(temperatures: int, kernel: str, start: str = "exact", count: int = 4000) -> tuple[Tensor, Tensor]:
    """Return log w' + log p(x), (N, B), and log w' of simulated images' ways back; ``start`` says from where."""
    model = linear_gaussian()
    x, z = model.simulate(count)
    if start == "prior":
        z = model.prior().sample((count,))
    path = bridge(model, x)
    move = exact_move(model, x) if kernel == "exact" else hmc_move(path, temperatures, count)
    betas = shared(linear(temperatures), count).flip(0)
    walk = anneal(path, betas, z.unsqueeze(0), move)
    return walk.log_weights + model.log_evidence(x), walk.log_weights


@pytest.mark.parametrize("kernel", ["exact", "hmc"])
@pytest.mark.parametrize("temperatures", [1, 4, 20])
def test_the_way_back_has_weights_of_mean_one_over_the_likelihood(temperatures: int, kernel: str):
    relative, _ = backward(temperatures, kernel)
    assert abs(Mean.of(relative.exp()).errors_above(1)) < 4
    assert Mean.of(-relative).errors_above(0) > 4


def test_control_the_way_back_has_to_start_at_an_exact_draw():
    relative, _ = backward(4, "exact", start="prior")
    assert Mean.of(relative.exp()).errors_above(1) > 8


@pytest.mark.parametrize("temperatures", [2, 20, 100])
def test_exact_moves_give_the_known_means_on_both_sides(temperatures: int):
    """Left and right sums of the same integral, with log p(x) between them."""
    model = linear_gaussian()
    count = 2000
    x, z = model.simulate(count)
    path, move, truth = bridge(model, x), exact_move(model, x), model.log_evidence(x)
    betas = linear(temperatures)
    forward = anneal(path, shared(betas, count), model.prior().sample((1, count)), move).log_weights[0]
    reverse = -anneal(path, shared(betas.flip(0), count), z.unsqueeze(0), move).log_weights[0]
    below, above = expected_log_weight(model, x, betas), -expected_log_weight(model, x, betas.flip(0))
    assert abs(Mean.of(forward - below).errors_above(0)) < 4
    assert abs(Mean.of(reverse - above).errors_above(0)) < 4
    assert (below < truth).all()
    assert (truth < above).all()
    # For each image the two sums close in on the truth.
    tighter = linear(2 * temperatures)
    assert (expected_log_weight(model, x, tighter) > below).all()
    assert (-expected_log_weight(model, x, tighter.flip(0)) < above).all()


SETTINGS: list[tuple[Encoder | None, str, int, int]] = [
    (None, "sigmoid", 2, 1),
    (None, "linear", 10, 4),
    (None, "adaptive", 30, 2),
    (gaussian(), "linear", 3, 2),
    (learned(), "sigmoid", 8, 4),
]


@pytest.mark.parametrize(("initial", "schedule", "temperatures", "chains"), SETTINGS)
def test_the_sides_do_not_swap(initial: Encoder | None, schedule: str, temperatures: int, chains: int):
    model = linear_gaussian()
    initial = None if initial is None else initial.double()
    found = bdmc(
        model, 400, initial, temperatures, chains, seed=1, schedule=schedule, leapfrog=3, batch=400, strict=False
    )
    x, _ = simulated(model, 400, seed=1)
    truth = model.log_evidence(x)
    assert Mean.of(found.lower - truth).errors_above(0) < 3
    assert Mean.of(found.upper - truth).errors_above(0) > -3
    assert found.gap > -2 * found.gap_stderr
    assert found.gap == pytest.approx((found.upper - found.lower).mean().item())
    # Both are means of weights that are right whatever the settings.
    assert abs(Mean.of((found.lower - truth).exp()).errors_above(1)) < 4
    assert abs(Mean.of((truth - found.upper).exp()).errors_above(1)) < 4


def test_more_temperatures_close_the_gap():
    gaps = [
        bdmc(
            linear_gaussian(),
            400,
            None,
            temperatures,
            2,
            seed=2,
            schedule="linear",
            leapfrog=3,
            batch=400,
            strict=False,
        )
        for temperatures in (0, 4, 40)
    ]
    assert gaps[0].gap > 2 * gaps[1].gap > 4 * gaps[2].gap > 0
    assert all(wide.gap - narrow.gap > 4 * wide.gap_stderr for wide, narrow in pairwise(gaps))


def test_both_ways_walk_the_same_temperatures_at_the_same_steps():
    """One image's chains accept about as often on the way back as on the way there."""
    found = bdmc(linear_gaussian(), 30, None, 50, 4, seed=0, leapfrog=3)
    assert found.forward.acceptance.mean().item() == pytest.approx(found.reverse.acceptance.mean().item(), abs=0.03)


def test_batches_do_not_show():
    def both(batch: int) -> Tensor:
        found = bdmc(
            linear_gaussian(), 4, None, 6, 3, seed=4, schedule="adaptive", leapfrog=3, batch=batch, strict=False
        )
        return torch.stack([*found.forward, *found.reverse])

    whole = both(4)
    assert all((both(batch) - whole).abs().max() < 1e-8 for batch in (1, 3))


def test_simulated_images_belong_to_their_seed():
    model = linear_gaussian()
    before = torch.get_rng_state()
    first, again, other = (simulated(model, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert (first[0] != other[0]).all()


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        bdmc(linear_gaussian(), 0)


def test_chains_that_did_not_mix_are_refused_on_either_way():
    narrow = type(linear_gaussian())(linear_gaussian().weight, torch.zeros(3), 0.05)
    with pytest.raises(RunFailed, match="did not mix"):
        bdmc(narrow, 20, None, 3, 4, seed=0, leapfrog=3)


def test_a_run_gets_two_records(tmp_path: FilePath, default_data_dir: FilePath, capsys: pytest.CaptureFixture[str]):
    torch.set_default_dtype(torch.float32)
    words = [*ONE_STEP, f"output_dir={tmp_path}", f"data_dir={default_data_dir}", "trainer.evaluate=false"]
    run = train(compose(words))
    quick = ["estimator.temperatures=20", "estimator.chains=4", "estimator.leapfrog=2", "progress=false", "device=cpu"]
    lower, upper = evaluate(run, ["estimator=bdmc", "estimator.images=6", *quick])
    assert (lower.direction, upper.direction) == ("lower_bound", "upper_bound")
    assert (lower.estimator, lower.split, lower.n_images) == ("BDMC", "simulated", 6)
    assert upper.mean - lower.mean == pytest.approx(lower.extra["gap"])
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines[0].startswith("simulated log p(x) >= -")
    assert lines[1].startswith("simulated log p(x) <= -")
    # A second time, from what is kept: the same numbers, and still both of them.
    again = evaluate(run, ["estimator=bdmc", "estimator.images=6", *quick])
    assert [record.mean for record in again] == [lower.mean, upper.mean]
    assert len((run / "results.json").read_text().split('"estimator": "BDMC"')) == 3
    with pytest.raises(UserError, match=r"estimator\.images"):
        evaluate(run, ["estimator=bdmc", "estimator.images=null", *quick])


def test_the_name_is_public():
    assert vaebench.bdmc is bdmc
