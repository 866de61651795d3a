"""Annealed importance sampling: weights of mean p(x) at any number of temperatures, and what is said about them.

On the linear-Gaussian model every annealed density is Gaussian, so that moves can be exact draws, and the expected log
weight is a sum of known numbers.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path as FilePath

import pytest
import torch
from oracles.annealing import bridge, exact_move, expected_log_weight, hmc_move, shared
from test_every_config import ONE_STEP
from torch import Tensor
from toys import (
    AffineGaussian,
    LinearGaussian,
    Mean,
    WithoutOwnPsi,
    exact_gaussian,
    gaussian,
    learned,
    linear_gaussian,
    one_image,
    sivi,
    wide_hierarchy,
)

import vaebench
from vaebench import hmc
from vaebench.bounds import log_mean_exp
from vaebench.config import compose
from vaebench.encoders.base import Direction, Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.moments import WIDENING, MomentMatchedEncoder
from vaebench.errors import RunFailed, UserError
from vaebench.estimators.ais import (
    AISResult,
    ais,
    has_density,
    initial_density,
    refuse_unmixed,
)
from vaebench.estimators.annealing import (
    SCHEDULES,
    AnnealedChains,
    AnnealingSchedule,
    Ends,
    GeometricPath,
    Pilot,
    anneal,
    inverse_temperatures,
    linear,
    sigmoid,
    tune_steps,
)
from vaebench.estimators.importance import PerImage
from vaebench.evaluate.run import evaluate
from vaebench.records import RunFolder, read_results
from vaebench.runtime import derived_seed
from vaebench.train.session import train

pytestmark = pytest.mark.usefixtures("float64")

NAN = math.nan


def weights(temperatures: int, kernel: str = "exact", chains: int = 1, batch: int = 4000) -> tuple[Tensor, Tensor]:
    """Return log w - log p(x), (N, B), for replicates of one image, and log p(x)."""
    model, x = linear_gaussian(), one_image(batch)
    path = bridge(model, x)
    move = exact_move(model, x) if kernel == "exact" else hmc_move(path, temperatures, batch)
    start = model.prior().sample((chains, batch))
    walk = anneal(path, shared(linear(temperatures), batch), start, move)
    truth = model.log_evidence(x)
    return walk.log_weights - truth, truth


# Weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["exact", "hmc"])
@pytest.mark.parametrize("temperatures", [0, 1, 3, 12])
def test_the_mean_weight_is_the_likelihood_at_any_number_of_temperatures(temperatures: int, kernel: str):
    relative, _ = weights(temperatures, kernel)
    assert abs(Mean.of(relative.exp()).errors_above(1)) < 4


@pytest.mark.parametrize("temperatures", [0, 2, 20])
def test_the_expected_log_weight_is_the_known_one(temperatures: int):
    relative, truth = weights(temperatures)
    exact = expected_log_weight(linear_gaussian(), one_image(1), linear(temperatures)).item()
    assert abs(Mean.of(relative + truth).errors_above(exact)) < 4
    assert exact < truth[0]


@pytest.mark.parametrize("kernel", ["exact", "hmc"])
def test_more_temperatures_are_tighter(kernel: str):
    means = [Mean.of(weights(temperatures, kernel)[0]) for temperatures in (0, 1, 4, 16)]
    for fewer, more in pairwise(means):
        assert more.value - fewer.value > 4 * math.hypot(fewer.stderr, more.stderr)
    assert means[-1].value < 0
    # The gap is about inversely proportional to the temperatures.
    assert means[-1].value > 0.5 * means[-2].value


def test_control_the_first_weight_after_a_move_is_seen():
    """Move first and weigh then, as if z_t and z_{t-1} were the same: the bound turns round."""
    model, x, temperatures = linear_gaussian(), one_image(4000), 3
    path, move, betas = bridge(model, x), exact_move(model, x), linear(temperatures)
    z = model.prior().sample((1, 4000))
    wrong = torch.zeros(1, 4000)
    for t in range(1, temperatures + 2):
        z, _ = move(t, betas[t].expand(4000), path.ends(z))
        wrong += (betas[t] - betas[t - 1]) * path.ends(z).ratio
    truth = model.log_evidence(x)
    assert Mean.of((wrong - truth).exp()).errors_above(1) > 10
    assert Mean.of(wrong).errors_above(truth[0].item()) > 10


# A narrow core in a wide Gaussian: HMC rejects in the core what it accepts outside.
CORE = 0.1


def normal(z: Tensor, scale: float) -> Tensor:
    return -0.5 * (z / scale).square().sum(-1) - z.shape[-1] * math.log(scale * math.sqrt(2 * math.pi))


def cored() -> GeometricPath:
    """Return the path from N(0, 1) to an equal mixture of it and N(0, 0.1^2), both normalised: E[w] = 1."""
    return GeometricPath(
        lambda z: normal(z, 1.0),
        lambda z: torch.logaddexp(normal(z, CORE), normal(z, 1.0)) - math.log(2),
    )


class Adapting:
    """HMC whose step size follows the chain's own last decision, clamped to (0, 2]."""

    def __init__(self, path: GeometricPath, batch: int, after_accept: float, after_reject: float) -> None:
        self.path, self.factors = path, (after_accept, after_reject)
        self.step = torch.ones(1, batch, 1)

    def __call__(self, t: int, beta: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
        state, acceptance = hmc.transition(self.path.at(beta), ends.at(beta), self.step, 1)
        accepted = (state.position != ends.initial.position).any(-1, keepdim=True)
        self.step = self.step * torch.where(accepted, *(torch.tensor(f) for f in self.factors))
        self.step = self.step.clamp(max=2)
        return state.position, acceptance


@pytest.mark.parametrize(("factors", "sound"), [((1.0, 1.0), True), ((2.0, 0.1), False), ((1.3, 0.5), False)])
def test_a_frozen_step_is_unbiased_and_one_adapted_inside_the_chain_is_not(factors: tuple[float, float], sound: bool):
    batch = 4000
    walk = anneal(cored(), shared(linear(40), batch), torch.randn(1, batch, 1), Adapting(cored(), batch, *factors))
    errors = Mean.of(walk.log_weights.exp()).errors_above(1)
    assert abs(errors) < 4 if sound else errors > 8


def test_a_tuned_route_is_unbiased():
    """The pilot, with noise of its own, may look at the images as it likes."""
    batch = 1000
    for schedule in SCHEDULES:
        route = AnnealingSchedule.tuned(
            cored(), lambda chains: torch.randn(chains, batch, 1), schedule=schedule, temperatures=30, leapfrog=1
        )
        assert abs(Mean.of(route.forward(4).log_weights.exp().mean(0)).errors_above(1)) < 4


def test_proposals_that_are_no_numbers_are_rejected():
    """A density that is NaN beyond a wall: chains stay inside, and so do their neighbours' numbers."""

    def walled(z: Tensor) -> Tensor:
        return normal(z, 1.0).where(z[..., 0] < 0.5, torch.tensor(NAN))

    path = GeometricPath(walled, lambda z: walled(z) - z[..., 0].square())
    start = torch.rand(2, 300, 2) - 0.5
    walk = anneal(path, shared(linear(20), 300), start, hmc_move(path, 20, 300))
    assert walk.position[..., 0].max() < 0.5
    assert walk.log_weights.isfinite().all()
    assert 0.3 < walk.acceptance.mean() < 0.95
    # Control: mixing by multiplication, as a peer does, keeps the NaN that it rejects.
    proposed, current, accepted = torch.tensor(NAN), torch.tensor(1.0), torch.tensor(0.0)
    assert (accepted * proposed + (1 - accepted) * current).isnan()


# The average over chains ----------------------------------------------------------------------------------


def result_of(relative: Tensor) -> AISResult:
    return AISResult.of(AnnealedChains(relative, torch.full((50, relative.shape[1]), 0.7), torch.zeros(0)))


def test_weights_are_averaged_over_the_chains_of_an_image():
    chains, temperatures = 8, 2
    relative, _ = weights(temperatures, chains=chains, batch=2000)
    found = result_of(relative)
    assert (found.log_likelihood - relative.exp().mean(0).log()).abs().max() < 1e-12
    assert abs(Mean.of(found.log_likelihood.exp()).errors_above(1)) < 4
    assert Mean.of(found.log_likelihood).errors_above(0) < -4
    # Controls: the sum divided by the number of steps, and the mean of the logarithms.
    by_steps = torch.logsumexp(relative, 0) - math.log(temperatures)
    assert Mean.of(by_steps.exp()).errors_above(1) > 100
    logs = relative.mean(0)
    assert Mean.of(logs.exp()).errors_above(1) < -20
    # More chains are tighter; the mean of the logarithms stays where one chain is.
    assert Mean.of(found.log_likelihood - relative[0]).errors_above(0) > 10
    assert abs(Mean.of(logs - relative[0]).errors_above(0)) < 4


def test_the_effective_number_of_chains():
    log_w = torch.tensor([[0.0, 0.0, -1000.0], [0.0, -1e9, math.log(3) - 1000], [0.0, -1e9, -torch.inf]])
    found = result_of(log_w)
    assert found.ess.tolist() == pytest.approx([3, 1, 1.6])
    # From the weights where that is the larger error; a weight of 0 has no logarithm, and its error is unknown.
    assert found.stderr[:2].tolist() == [0, math.inf]
    near = result_of(torch.tensor([[0.0], [0.0], [math.log(2)]]))
    assert near.stderr.item() == pytest.approx(((3 * 6 / 16 - 1) / 2) ** 0.5)
    assert found.heavy_tailed
    one = result_of(log_w[:1])
    assert one.ess.tolist() == [1, 1, 1]
    assert one.stderr.isnan().all()
    assert one.disagreement.isnan().all()
    assert one.mixed.all()


def test_the_stated_error_is_the_error():
    """Between estimates and the truth lie 1.96 stated errors or less in 95 of 100 cases; also for the mean."""
    chains = 16
    relative, _ = weights(2, chains=chains, batch=4000)
    found = result_of(relative)
    inside = (found.log_likelihood.abs() < 1.96 * found.stderr).double()
    assert 0.90 < inside.mean() < 0.965
    groups = [AISResult(*rows) for rows in torch.stack(found).unflatten(1, (200, 20)).unbind(1)]
    covered = [abs(group.log_likelihood.mean().item()) < 1.96 * group.mean_stderr for group in groups]
    assert 0.88 < sum(covered) / len(covered) < 0.99
    # Control: the spread of single chains for that of their mean.
    assert (found.log_likelihood.abs() < 1.96 * chains**0.5 * found.stderr).double().mean() > 0.99


REPETITIONS, EACH = 200, 10
"""Repetitions of an estimate, and images in each."""


def stated_errors(initial: Encoder | None, model: LinearGaussian, temperatures: int) -> tuple[float, float, float]:
    """Return the root mean square of the z-scores of the mean over images, that of the usual error, and the share of
    repetitions whose error is not stated."""
    x = one_image(REPETITIONS * EACH)
    found = ais(model, x, initial, temperatures, seed=0, leapfrog=4, batch=len(x), strict=False)
    miss = (found.log_likelihood - model.log_evidence(x)).view(REPETITIONS, EACH).mean(1)
    groups = [AISResult(*rows) for rows in torch.stack(found).unflatten(1, (REPETITIONS, EACH)).unbind(1)]
    stated = torch.tensor([group.mean_stderr for group in groups])
    usual = torch.stack([((8 / group.ess - 1) / 7).sum().sqrt() / EACH for group in groups])
    unknown = float(sum(group.heavy_tailed for group in groups) / REPETITIONS)
    return rms(miss / stated), rms(miss / usual), unknown


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def narrow_start(model: LinearGaussian, width: float) -> GaussianEncoder:
    gain, constant, variance = model.posterior()
    return GaussianEncoder(AffineGaussian(gain, constant, width * variance.diagonal().sqrt()))


def test_the_error_of_the_chains_covers_or_is_not_stated():
    model = LinearGaussian(linear_gaussian().weight, torch.tensor([0.1, -0.2, 0.3]), 0.3)
    poor = narrow_start(model, 0.2)
    for initial in (None, MomentMatchedEncoder(poor, model)):
        ratio, _, unknown = stated_errors(initial, model, 60)
        assert 0.9 < ratio < 1.15
        assert unknown < 0.2
    ratio, usual, unknown = stated_errors(poor, model, 15)
    assert unknown > 0.95
    # Control: the usual error, which was stated.
    assert usual > 2


def test_the_error_over_images_covers_the_models_entropy():
    """E log p(x) over the model's own images is minus the entropy of x, which is known."""
    model = linear_gaussian()
    x, _ = model.simulate(5000)
    covariance = model.weight @ model.weight.T + model.scale**2 * torch.eye(3)
    truth = -0.5 * torch.logdet(2 * math.pi * math.e * covariance).item()
    route_path = bridge(model, x)
    walk = anneal(route_path, shared(linear(30), 5000), model.prior().sample((4, 5000)), hmc_move(route_path, 30, 5000))
    means = [PerImage(values) for values in AISResult.of(walk).log_likelihood.view(100, 50)]
    assert 0.87 < sum(abs(m.mean - truth) < 1.96 * m.stderr for m in means) / 100 < 0.99


# Importance sampling and initial densities ----------------------------------------------------------------


@pytest.mark.parametrize("make", [gaussian, exact_gaussian])
def test_without_temperatures_it_is_importance_sampling(make: Callable[[], Encoder]):
    model, encoder, (x, _) = linear_gaussian(), make(), linear_gaussian().simulate(9)
    annealed = ais(model, x, encoder, temperatures=0, chains=5, seed=3, strict=False)
    sampled = vaebench.log_likelihood(model, encoder, x, k=5, seed=derived_seed(3, "forward"))
    assert (annealed.log_likelihood - sampled).abs().max() < 1e-12
    assert annealed.acceptance.isnan().all()


def test_the_exact_posterior_leaves_nothing_to_do():
    model, (x, _) = linear_gaussian(), linear_gaussian().simulate(9)
    found = ais(model, x, exact_gaussian(), temperatures=3, chains=2, seed=0)
    assert (found.log_likelihood - model.log_evidence(x)).abs().max() < 1e-10


def test_the_density_of_an_encoder_counts_where_it_is_exact_and_known_anywhere():
    x = one_image(2)
    known = {make: has_density(encoder := make(), encoder.encode(x)) for make in (gaussian, learned, sivi)}
    assert known == {gaussian: True, learned: False, sivi: False}


def test_moments_are_those_of_the_draws_and_a_little_of_the_prior():
    x, model = one_image(400), linear_gaussian()
    for encoder in (learned(), sivi()):
        matched = MomentMatchedEncoder(encoder, model).encode(x)
        exact = wide_hierarchy().marginal(x)
        factor = matched.diagonal.scale.unsqueeze(-1) * (matched.lower + torch.eye(2))
        wide = exact.covariance_matrix + WIDENING * torch.eye(2)
        for found, truth in ((matched.diagonal.mean, exact.mean), ((factor @ factor.mT).flatten(1), wide.flatten(1))):
            assert all(abs(Mean.of((found - truth)[:, d]).errors_above(0)) < 4 for d in range(found.shape[1]))
    assert MomentMatchedEncoder(learned(), model).direction is Direction.EXACT


class NoInnerSample(WithoutOwnPsi):
    """Scores its draws by one fresh psi where it is asked for none."""

    def sample(self, encoded, k, *, inner_k=0, path_only=False, inner_chunk=None):  # noqa: ANN001
        return super().sample(encoded, k, inner_k=max(1, inner_k))


@pytest.mark.parametrize("make", [gaussian, learned, lambda: NoInnerSample(sivi())])
def test_any_encoders_draws_will_do_for_a_lower_bound(make: Callable[[], Encoder]):
    model, encoder, x = linear_gaussian(), make(), one_image(600)
    truth = model.log_evidence(x)
    found = ais(model, x, encoder, temperatures=4, chains=2, seed=0, leapfrog=3, batch=600, strict=False)
    assert abs(Mean.of((found.log_likelihood - truth).exp()).errors_above(1)) < 4
    assert Mean.of(found.log_likelihood - truth).errors_above(0) < 4


def test_control_an_estimated_density_would_overstate():
    x = one_image(4000)
    model, encoder = linear_gaussian(), NoInnerSample(sivi())
    found = vaebench.log_likelihood(model, encoder, x, k=16, inner_k=1, estimate=True)
    assert Mean.of(found - model.log_evidence(x)).errors_above(0) > 10


def test_the_start_is_where_it_says():
    model, x = linear_gaussian(), one_image(1000)
    for initial, density in ((None, model.prior()), (gaussian(), gaussian().encode(x))):
        start = initial_density(model, initial, x)
        z = start.draw(3)
        assert z.shape == (3, 1000, 2)
        assert torch.equal(start.log_density(z), density.log_prob(z))


# Temperatures and steps -----------------------------------------------------------------------------------


def pilot(spread: Tensor) -> Pilot:
    """Return a pilot of two images that found ``spread``, (P,), for the first, and a constant for the second."""
    count = len(spread)
    both = torch.stack([spread, torch.ones(count)], 1)
    return Pilot(torch.linspace(0, 1, count), torch.zeros(count, 2), both, torch.ones(2, 3))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("temperatures", [0, 1, 37])
def test_temperatures_rise_from_0_to_1(schedule: str, temperatures: int):
    spread = torch.linspace(20, 0.1, 12) ** 2
    betas = inverse_temperatures(schedule, temperatures, pilot(spread))
    assert betas.shape == (temperatures + 2, 2)
    assert betas.dtype == torch.float64
    assert torch.equal(betas[0], torch.zeros(2))
    assert torch.equal(betas[-1], torch.ones(2))
    assert (betas.diff(dim=0) > 0).all()


def test_adaptive_temperatures_are_dense_where_the_log_ratio_varies():
    """For exact moves and a given T, the variance of log w is least when steps are inverse to the spread."""
    spread = torch.where(torch.linspace(0, 1, 101) < 0.2, 40.0, 1.0)
    betas = inverse_temperatures("adaptive", 99, pilot(spread))
    assert (betas[:, 0] < 0.2).double().mean() > 0.5
    assert (betas[:, 1] < 0.2).double().mean() < 0.25
    variance = (betas[:-1].diff(dim=0) * torch.where(betas[:-2] < 0.2, 40.0, 1.0)).square().sum(0)
    assert variance[0] < 0.7 * variance[1]


def test_the_sigmoid_is_dense_at_both_ends():
    steps = sigmoid(99).diff()
    assert (steps - steps.flip(0)).abs().max() < 1e-12
    assert steps[0] < 0.2 * steps[50]


def test_a_pilot_finds_each_images_step():
    """Where the posterior is ten times narrower, so are the steps."""
    scales = torch.tensor([1.0, 0.1, 0.01]).repeat(60)
    path = GeometricPath(lambda z: normal(z, 1.0), lambda z: normal(z / scales.unsqueeze(-1), 1.0))
    found = tune_steps(path, lambda chains: torch.randn(chains, 180, 2), leapfrog=5, temperatures=50)
    last = found.log_steps[-1].exp().view(60, 3).mean(0)
    assert last[0] / last[1] == pytest.approx(10, rel=0.35)
    assert last[1] / last[2] == pytest.approx(10, rel=0.35)
    steps = found.steps(shared(linear(50), 180))
    assert steps.shape == (52, 180)
    # Frozen, and of one size up to the planned variation.
    assert torch.equal(steps, found.steps(shared(linear(50), 180)))
    tuned = Pilot(found.betas, torch.zeros_like(found.log_steps), found.spread, found.scale).steps(
        shared(linear(50), 180)
    )
    assert 0.8 <= tuned.min() < 0.85
    assert 1.15 < tuned.max() <= 1.2


def test_about_the_wanted_share_is_accepted():
    x, _ = linear_gaussian().simulate(40)
    found = ais(linear_gaussian(), x, temperatures=60, chains=4, seed=0, leapfrog=3)
    assert found.acceptance.mean() == pytest.approx(0.7, abs=0.12)


# The result belongs to the image --------------------------------------------------------------------------


def everything(x: Tensor, **changed: object) -> Tensor:
    arguments = {"temperatures": 6, "chains": 3, "seed": 5, "leapfrog": 3, "strict": False} | changed
    return torch.stack(ais(linear_gaussian(), x, **arguments))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("make", "schedule"), [(lambda: None, "adaptive"), (gaussian, "sigmoid"), (learned, "linear")])
def test_batches_do_not_show(make: Callable[[], Encoder | None], schedule: str):
    x, _ = linear_gaussian().simulate(4)
    whole = everything(x, initial=make(), schedule=schedule)
    for batch in (1, 3):
        assert (everything(x, initial=make(), schedule=schedule, batch=batch) - whole).abs().max() < 1e-8
    chosen = torch.tensor([2, 0])
    part = everything(x[chosen], initial=make(), schedule=schedule, images=chosen)
    assert (part - whole[:, chosen]).abs().max() < 1e-8


def test_another_seed_is_another_estimate_and_no_outside_state_is_touched():
    x, _ = linear_gaussian().simulate(5)
    before = torch.get_rng_state()
    first, again, other = (everything(x, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert (first - other)[0].abs().min() > 1e-6
    torch.manual_seed(0)
    without = everything(x, seed=None)
    torch.manual_seed(0)
    assert torch.equal(everything(x, seed=None), without)


def test_rows_are_the_result():
    x, _ = linear_gaussian().simulate(5)
    found = ais(linear_gaussian(), x, temperatures=6, chains=3, seed=5, strict=False)
    assert found.log_likelihood.dtype == torch.float64
    parts = [AISResult(*torch.stack(found)[:, part]) for part in (slice(0, 2), slice(2, 5))]
    assert torch.equal(torch.stack(AISResult.joined(parts)), torch.stack(found))
    assert AISResult._fields[0] == "log_likelihood"
    assert not found.log_likelihood.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperatures": -1}, "temperatures must be >= 0, got -1"),
        ({"chains": 0}, "chains must be >= 1, got 0"),
        ({"leapfrog": 0}, "leapfrog must be >= 1, got 0"),
        ({"schedule": "sigmiod"}, "did you mean 'sigmoid'"),
    ],
)
def test_settings_out_of_range(arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        everything(one_image(2), **arguments)


# Chains that did not mix ----------------------------------------------------------------------------------


def judged(**changed: Tensor) -> AISResult:
    """Return a sound result of 20 images, but for what is changed."""
    sound = {"log_likelihood": -80.0, "stderr": 0.2, "acceptance": 0.7, "lowest_acceptance": 0.5, "ess": 6.0}
    sound["tail"] = 0.6
    columns = {name: torch.full((20,), value) for name, value in sound.items()}
    return AISResult(**columns, disagreement=torch.full((20,), 0.3))._replace(**changed)


def first(count: int, value: float, others: float) -> Tensor:
    return torch.where(torch.arange(20) < count, value, others)


@pytest.mark.parametrize(
    ("name", "value", "others"),
    [
        ("lowest_acceptance", 0.1, 0.5),
        ("acceptance", 0.995, 0.7),
        ("disagreement", 2.5, 0.3),
        ("disagreement", -2.5, 0.3),
    ],
)
def test_chains_that_did_not_mix_are_refused(name: str, value: float, others: float):
    refuse_unmixed(judged())
    refuse_unmixed(judged(**{name: first(1, value, others)}))  # one in twenty
    with pytest.raises(RunFailed, match="2 of 20 images did not mix") as refusal:
        refuse_unmixed(judged(**{name: first(2, value, others)}))
    advice = "use several times more temperatures" if name == "disagreement" else "Use more leapfrog steps"
    assert advice in str(refusal.value)


def collapsed(floor: float) -> GaussianEncoder:
    """Return the posterior with one coordinate that hardly moves, ``floor`` added to the variances."""
    gain, constant, variance = linear_gaussian().posterior()
    scale = (torch.tensor([variance[0, 0], 1e-6]) + floor).sqrt()
    return GaussianEncoder(AffineGaussian(gain, constant, scale))


def test_draws_that_hardly_move_are_widened_before_chains_start_from_them():
    """Control: from the narrow density itself, the bound is nats too low, and the chains look well."""
    model, x = linear_gaussian(), one_image(40)
    truth = model.log_evidence(x)

    def gap(initial: Encoder) -> Mean:
        found = ais(model, x, initial, temperatures=60, chains=8, seed=0, leapfrog=4, strict=False)
        return Mean.of(truth - found.log_likelihood)

    widened = gap(MomentMatchedEncoder(collapsed(0), model))
    assert widened.value < 0.1
    assert gap(collapsed(0)).value > 1
    # One that owes nothing to collapse is as good, widened or not.
    assert gap(MomentMatchedEncoder(exact_gaussian(), model)).value < 0.1


def test_too_few_temperatures_for_a_narrow_posterior_are_refused():
    narrow = LinearGaussian(linear_gaussian().weight, torch.zeros(3), 0.05)
    x, _ = narrow.simulate(20)
    with pytest.raises(RunFailed, match="did not mix"):
        ais(narrow, x, temperatures=3, chains=4, seed=0, leapfrog=3)
    assert ais(narrow, x, temperatures=3, chains=4, seed=0, leapfrog=3, strict=False).split.double().mean() > 0.3
    # Enough of them, and it is reported: within the stated errors of the truth.
    found = ais(narrow, x, temperatures=300, chains=8, seed=0, leapfrog=8)
    assert abs((found.log_likelihood - narrow.log_evidence(x)).mean()) < 5 * found.mean_stderr


@pytest.mark.parametrize(("step", "stuck"), [(0.5, False), (20.0, True), (0.001, True)])
def test_steps_that_are_too_long_or_too_short_are_seen(step: float, stuck: bool):
    model, x = linear_gaussian(), one_image(20)
    path = bridge(model, x)
    walk = anneal(path, shared(linear(100), 20), model.prior().sample((4, 20)), hmc_move(path, 100, 20, step))
    found = AISResult.of(walk)
    assert bool(found.stuck.all()) is stuck
    assert bool(found.stuck.any()) is stuck


def test_chains_that_stop_half_way_are_seen():
    """The mean over the whole walk hides it; the worst tenth does not."""
    acceptance = torch.full((100, 20), 0.8)
    acceptance[62:87] = 0.05
    found = AISResult.of(AnnealedChains(torch.zeros(4, 20), acceptance, torch.zeros(0)))
    assert found.acceptance.min() > 0.6
    assert found.stuck.all()


# From the command line ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, default_data_dir: FilePath) -> FilePath:
    """Return a run folder of a model that has seen one batch."""
    words = [*ONE_STEP, f"output_dir={tmp_path_factory.mktemp('runs')}", f"data_dir={default_data_dir}"]
    return train(compose([*words, "trainer.evaluate=false"]))


QUICK = ["estimator.temperatures=20", "estimator.chains=4", "estimator.leapfrog=2", "progress=false", "device=cpu"]


@pytest.fixture
def _float32(float64: None) -> None:
    """As in a run; after the fixture that all other tests use."""
    del float64
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float32")
def test_a_run_is_evaluated_and_the_line_says_how(run: FilePath, capsys: pytest.CaptureFixture[str]):
    (record,) = evaluate(run, ["estimator=ais", "estimator.images=6", *QUICK])
    assert (record.estimator, record.direction, record.k, record.n_images) == ("AIS", "lower_bound", None, 6)
    assert record.settings == {
        "temperatures": 20,
        "chains": 4,
        "leapfrog": 2,
        "schedule": "sigmoid",
        "initial": "prior",
    }
    assert record.protocol.endswith("/random6-seed0")
    line, note = capsys.readouterr().out.splitlines()[-2:]
    assert line.startswith("test log p(x) >= -")
    assert note.startswith("  BDMC check with the same settings on 6 simulated images: the bounds differ by ")
    assert "(AIS, temperatures=20, chains=4, leapfrog=2, schedule=sigmoid, initial=prior, mnist5k/" in line
    assert 0.2 < record.extra["acceptance"] < 0.99
    assert 1 <= record.extra["ess"] <= 4
    assert record in read_results(RunFolder(run))
    (other,) = evaluate(run, ["estimator=iwae", "estimator.images=6", "estimator.k=500", *QUICK[3:]])
    assert other.protocol == record.protocol
    assert abs(other.mean - record.mean) < 1


@pytest.mark.usefixtures("_float32")
@pytest.mark.parametrize("word", ["encoder", "moments"])
def test_an_interrupted_evaluation_goes_on(run: FilePath, word: str, monkeypatch: pytest.MonkeyPatch):
    words = ["estimator=ais", "estimator.images=6", "estimator.batch=2", f"estimator.initial={word}", *QUICK]
    (whole,) = evaluate(run, [*words, "estimator.seed=1"])
    assert whole.settings["initial"] == word
    (stored,) = [path for path in (run / "evaluations").iterdir() if path.stat().st_mtime_ns == _newest(run)]
    from vaebench.evaluate import annealing as estimators

    asked = []

    def counted(*arguments: object, **settings: object) -> AISResult:
        asked.append(len(settings["images"]))  # pyright: ignore[reportArgumentType]
        return ais(*arguments, **settings)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(estimators, "ais", counted)
    _forget(stored, 4)
    (again,) = evaluate(run, [*words, "estimator.seed=1"])
    assert asked == [2]
    assert again.mean == whole.mean
    assert again.extra["bdmc_gap"] == whole.extra["bdmc_gap"]


def _newest(run: FilePath) -> int:
    return max(path.stat().st_mtime_ns for path in (run / "evaluations").iterdir())


def _forget(stored: FilePath, kept: int) -> None:
    """Rewrite a file of per-image numbers as it was when ``kept`` images were done."""
    import numpy

    with numpy.load(stored) as whole:
        numbers = dict(whole)
    rows = {*AISResult._fields, "bdmc_lower", "bdmc_upper", "bdmc_mixed"}
    assert set(numbers) == {*rows, "images", "done", "seconds", "rows", "values", "key", "provenance"}
    for name in (*rows, "done"):
        numbers[name][:, kept:] = 0
    numpy.savez(stored, **numbers)  # pyright: ignore[reportArgumentType] (its own name for a flag)


@pytest.mark.usefixtures("_float32")
@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "estimator.initial=encodr",
            "must be one of prior, encoder, moments, (not|got) 'encodr' .did you mean 'encoder'",
        ),
        ("estimator.schedule=cosine", "estimator.schedule must be one of linear, sigmoid, adaptive"),
        ("estimator.temperatures=-1", "estimator.temperatures must be"),
        ("estimator.k=7", "estimator.k"),
    ],
)
def test_wrong_settings(run: FilePath, word: str, message: str):
    with pytest.raises(UserError, match=message):
        evaluate(run, ["estimator=ais", *QUICK[3:], word])


@pytest.mark.usefixtures("_float32")
def test_wrong_settings_are_refused_before_the_training(tmp_path: FilePath, default_data_dir: FilePath):
    words = [word for word in ONE_STEP if word != "estimator.k=2"]
    words += ["estimator=ais", "estimator.initial=foo", f"output_dir={tmp_path}", f"data_dir={default_data_dir}"]
    with pytest.raises(UserError, match=r"estimator\.initial"):
        train(compose(words))
    assert list(tmp_path.iterdir()) == []


def test_the_name_is_public():
    assert vaebench.ais is ais
    assert log_mean_exp(torch.zeros(3, 1)).item() == 0
