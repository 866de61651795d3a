"""Bounds from both sides on what an encoder is, beside exact answers."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import finite
from oracles.finite import ELBO, REVERSE, SIVI, Enumeration, Reverse, encoder_for
from test_closed_form import STRENGTH
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from toys import (
    FAMILIES,
    Family,
    Hierarchy,
    Mean,
    exact_reverse,
    gaussian,
    hamiltonian,
    langevin,
    learned,
    linear_gaussian,
    name,
    one_image,
    sivi,
    unbiased,
    wide_hierarchy,
)

from vaebench.encoders.base import Direction, Encoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.estimators.sandwich import Between, SandwichResult, Side, information_about_images, sandwich
from vaebench.objective import weigh

pytestmark = pytest.mark.usefixtures("float64")

REPLICATES = 10_000


def values(side: Side | None) -> Tensor:
    assert side is not None
    return side.values


def encloses(between: Between, exact: Tensor | float, errors: float = 4) -> bool:
    """Tell whether the mean of lower - exact is no more than ``errors`` standard errors above 0, and so on."""
    below, above = Mean.of(values(between.lower) - exact), Mean.of(values(between.upper) - exact)
    return below.errors_above(0) < errors and above.errors_above(0) > -errors


# The encoders' part ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [3, 16])
@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_the_density_estimate_is_unbiased(family: Family, samples: int):
    """Weighed by it, draws of a wider Gaussian have the moments of the encoder's own draws."""
    encoder, x = family.make(), one_image(REPLICATES)
    with torch.no_grad():
        context = encoder.encode(x)
        own = encoder.sample(context, 1).z
        proposal = MultivariateNormal(own.mean((0, 1)), (1.5 * own.std()).square() * torch.eye(2))
        z = proposal.sample((1, REPLICATES))
        log_q = encoder.log_q_at(context, z, samples=samples, chunk=5)
    assert log_q is not None
    weight = (log_q - proposal.log_prob(z)).exp()
    assert abs(Mean.of(weight).errors_above(1)) < 4
    for feature in (torch.sin, torch.cos, lambda z: torch.tanh(z).square()):
        weighed, plain = Mean.of(weight * feature(z).sum(-1)), Mean.of(feature(own).sum(-1))
        assert abs(weighed.value - plain.value) < 4 * math.hypot(weighed.stderr, plain.stderr)


BOUNDED = [family for family in FAMILIES if family.make().direction is Direction.UPPER_BOUND]


@pytest.mark.parametrize("family", BOUNDED, ids=name)
def test_the_sides_enclose_the_density_and_close_in_on_it(family: Family):
    encoder, x, gaps = family.make(), one_image(4000), []
    with torch.no_grad():
        context = encoder.encode(x)
        for inner_k in (1, 4, 16):
            drawn = encoder.log_q_bounds(context, 1, inner_k=inner_k, inner_chunk=3)
            assert drawn.lower is not None
            gaps.append(Mean.of(drawn.upper - drawn.lower))
            assert gaps[-1].errors_above(0) > -4
            if family.log_density is not None:
                truth = family.log_density(drawn.z, x)
                assert Mean.of(drawn.lower - truth).errors_above(0) < 4
                assert Mean.of(drawn.upper - truth).errors_above(0) > -4
    # Where tau is exact, or all but exact, there is no gap to close.
    if gaps[0].value > 0.01:
        assert all(
            wide.value - narrow.value > 3 * math.hypot(wide.stderr, narrow.stderr) for wide, narrow in pairwise(gaps)
        )


def test_without_inner_samples_there_is_no_lower_side():
    drawn = learned().log_q_bounds(learned().encode(one_image(3)), 2)
    assert drawn.lower is None
    assert drawn.z.shape == (2, 3, 2)


@pytest.mark.parametrize("inner_k", [1, 7])
def test_an_exact_reverse_model_leaves_no_gap(inner_k: int):
    encoder, x = exact_reverse(), torch.randn(30, 3)
    drawn = encoder.log_q_bounds(encoder.encode(x), 4, inner_k=inner_k)
    truth = wide_hierarchy().marginal(x).log_prob(drawn.z)
    assert drawn.lower is not None
    assert (drawn.lower - truth).abs().max() < 1e-12
    assert (drawn.upper - truth).abs().max() < 1e-12


@pytest.mark.parametrize("make", [learned, sivi, unbiased, lambda: sivi(share_psi=True)])
def test_the_upper_side_is_what_the_encoder_reports(make):  # noqa: ANN001
    """The same number in the mean: psi_0 counted once, the sum divided by L + 1."""
    encoder, x = make(), one_image(REPLICATES)
    with torch.no_grad():
        context = encoder.encode(x)
        difference = encoder.log_q_bounds(context, 1, inner_k=2).upper - encoder.sample(context, 1, inner_k=2).log_q
    assert abs(Mean.of(difference).errors_above(0)) < 4


def test_control_psi_0_is_what_keeps_the_sides_apart():
    """Dropped from the upper bound, or added to the lower, the exact value is crossed by tens of standard errors."""
    toy, x, inner_k = wide_hierarchy(STRENGTH), one_image(REPLICATES), 1
    encoder = HierarchicalEncoder(toy.mixing, toy.conditional, None)
    with torch.no_grad():
        context = encoder.encode(x)
        joint = encoder.joint(context, 1)
        own, truth = joint.q_z.log_prob(joint.z), toy.marginal(x).log_prob(joint.z)
        fresh = encoder.log_q_at(context, joint.z, samples=inner_k)
    right = torch.logaddexp(own, fresh) - math.log(2)
    assert Mean.of(right - truth).errors_above(0) > 20
    assert Mean.of(fresh - truth).errors_above(0) < -20
    dropped, added = fresh, right
    assert Mean.of(dropped - truth).errors_above(0) < -20  # as an upper bound, wrong
    assert Mean.of(added - truth).errors_above(0) > 20  # as a lower bound, wrong


# By enumeration -------------------------------------------------------------------------------------------

ENUMERATED: dict[str, tuple[Reverse, int, float, float]] = {
    "IWHVI L=1": (REVERSE, 1, -2.4195783906, -2.3128623409),
    "SIVI L=1": (SIVI, 1, -2.4912533501, -2.1359332364),
    "IWHVI L=2": (REVERSE, 2, -2.4090725662, math.nan),
    "SIVI L=2": (SIVI, 2, -2.4560683682, math.nan),
}
"""tau, L, and the ELBO from the upper and from the lower side of log q."""


@pytest.mark.parametrize("row", ENUMERATED)
def test_the_finite_model(row: str):
    """The sides of the ELBO are the tables' numbers, and the exact one lies between them."""
    reverse, inner_k, below, above = ENUMERATED[row]
    outcomes = Enumeration(1, inner_k, reverse)
    encoder = encoder_for(list(outcomes.script), reverse)
    found = sandwich(finite.model(), encoder, outcomes.x, 1, inner_k)
    lower, upper = (outcomes.expected(values(side)) for side in found.elbo)
    assert lower == pytest.approx(below, abs=1e-9)
    if not math.isnan(above):
        assert upper == pytest.approx(above, abs=1e-9)
    assert lower < ELBO < upper


def test_more_inner_samples_close_the_finite_models_sides():
    gaps = []
    for inner_k in (1, 2, 3):
        outcomes = Enumeration(1, inner_k, REVERSE)
        found = sandwich(finite.model(), encoder_for(list(outcomes.script), REVERSE), outcomes.x, 1, inner_k)
        gaps.append(outcomes.expected(values(found.slack.upper)))
        assert found.slack.lower is None
    assert gaps[0] > gaps[1] > gaps[2] > 0


# Divergences ----------------------------------------------------------------------------------------------


def exact_divergences(toy: Hierarchy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(q(z|x) || p(z)) and KL(q(z|x) || p(z|x)), (B,) each."""
    gain, constant, variance = linear_gaussian().posterior()
    q = toy.marginal(x)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    return kl_divergence(q, prior), kl_divergence(q, MultivariateNormal(x @ gain.T + constant, variance))


@pytest.mark.parametrize("inner_k", [1, 8])
@pytest.mark.parametrize("reverse", ["rough", "none"])
def test_everything_encloses_its_closed_form(inner_k: int, reverse: str):
    toy = wide_hierarchy(STRENGTH)
    encoder = HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse() if reverse == "rough" else None)
    model = linear_gaussian()
    x, z = model.simulate(4000)
    found = sandwich(model, encoder, x, 5, inner_k, posterior=z, seed=0)
    rate, divergence = exact_divergences(toy, x)
    truth = model.log_evidence(x)
    assert encloses(found.log_q, -toy.marginal(x).entropy())
    assert encloses(found.rate, rate)
    assert encloses(found.elbo, truth - divergence)
    assert encloses(found.divergence, divergence)
    assert encloses(found.evidence, truth)
    a, p, s = toy.factors
    information = 0.5 * (torch.logdet(a @ p @ a.T + s) - torch.logdet(s)).item()
    assert encloses(found.psi_information, information)
    covariance = model.weight @ model.weight.T + model.scale**2 * torch.eye(3)
    about_x = 0.5 * torch.logdet(covariance / model.scale**2).item()
    assert encloses(found.image_information, about_x)
    # The slack is what one side of log q is off, and no more than the two are apart.
    excess = Mean.of(values(found.log_q.upper) + toy.marginal(x).entropy())
    assert excess.value <= values(found.slack.upper).mean() + 4 * excess.stderr
    assert excess.errors_above(0) > 5


def test_the_sides_meet():
    """With many inner samples the bounds are the numbers themselves: nothing systematic is left out or added."""
    toy, model = wide_hierarchy(STRENGTH), linear_gaussian()
    encoder, x = HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse()), one_image(400)
    found = sandwich(model, encoder, x, 20, 200, seed=0)
    rate, _ = exact_divergences(toy, x)
    for between, exact in ((found.rate, rate), (found.log_q, -toy.marginal(x).entropy())):
        for side in between:
            mean = Mean.of(values(side) - exact)
            assert abs(mean.value) < 4 * mean.stderr + 0.003


def test_control_an_upper_bound_on_the_divergence_takes_one_on_the_evidence():
    """From importance weights alone, log p(x) - ELBO lies below where q covers the posterior badly."""
    toy, model = wide_hierarchy(STRENGTH), linear_gaussian()
    encoder = HierarchicalEncoder(toy.mixing, toy.conditional, toy.rough_reverse())
    x, _ = model.simulate(4000)
    found = sandwich(model, encoder, x, 2, 8, seed=0)
    assert found.divergence.upper is None
    wrong = values(found.evidence.lower) - values(found.elbo.lower)
    assert Mean.of(wrong - exact_divergences(toy, x)[1]).errors_above(0) < -10


def test_the_evidence_of_simulated_images_takes_an_exact_draw():
    """Control: a draw from q in its place turns the upper bound round."""
    model, encoder = linear_gaussian(), gaussian(0.6)
    x, z = model.simulate(REPLICATES)
    truth = model.log_evidence(x)
    assert encloses(sandwich(model, encoder, x, 2, posterior=z, seed=0).evidence, truth)
    with torch.no_grad():
        own = encoder.draw(x, 1).z[0]
    wrong = sandwich(model, encoder, x, 2, posterior=own, seed=0).evidence
    assert Mean.of(values(wrong.upper) - truth).errors_above(0) < -4


@pytest.mark.parametrize("make", [hamiltonian, langevin, lambda: hamiltonian("fixed", False)])
def test_refined_encoders_have_both_sides(make):  # noqa: ANN001
    model = linear_gaussian()
    x, z = model.simulate(3000)
    found = sandwich(model, make(), x, 1, 4, posterior=z, seed=0)
    assert encloses(found.evidence, model.log_evidence(x))
    # ELBO <= log p(x), and KL(q || p(z|x)) >= 0, from the sides that say so.
    assert Mean.of(values(found.elbo.lower) - model.log_evidence(x)).errors_above(0) < 4
    assert Mean.of(values(found.divergence.upper)).errors_above(0) > -4
    assert Mean.of(values(found.elbo.upper) - values(found.elbo.lower)).errors_above(0) > 0
    assert found.psi_information == Between(None, None)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in BOUNDED], ids=name)
def test_a_known_density_has_one_side(family: Family):
    model, x = linear_gaussian(), one_image(50)
    found = sandwich(model, family.make(), x, 20, 3, seed=0)
    assert found.log_q.single
    assert found.rate.single
    assert found.elbo.single
    assert found.slack == found.psi_information == found.image_information == Between(None, None)
    assert not found.divergence.single
    assert found.divergence.upper is None


def test_a_gaussians_divergences_are_exact():
    model, encoder, x = linear_gaussian(), gaussian(), one_image(400)
    found = sandwich(model, encoder, x, 50, seed=0)
    gain, constant, variance = model.posterior()
    q = encoder.encode(x[:1])
    posterior = MultivariateNormal(x[:1] @ gain.T + constant, variance)
    approximation = MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    rate = kl_divergence(approximation, MultivariateNormal(torch.zeros(2), torch.eye(2))).item()
    divergence = kl_divergence(approximation, posterior).item()
    assert abs(Mean.of(values(found.rate.lower)).errors_above(rate)) < 4
    assert abs(Mean.of(values(found.elbo.lower)).errors_above(model.log_evidence(x[:1]).item() - divergence)) < 4
    # A lower bound, and with 50 weights a tight one.
    lower = Mean.of(values(found.divergence.lower))
    assert lower.errors_above(divergence) < 4
    assert lower.value > divergence - 0.02


def test_the_draws_error_is_the_error():
    toy, model, x = wide_hierarchy(STRENGTH), linear_gaussian(), one_image(3000)
    encoder = HierarchicalEncoder(toy.mixing, toy.conditional, toy.exact_reverse())
    found = sandwich(model, encoder, x, 30, 1, seed=0)
    rate, divergence = exact_divergences(toy, x)
    for side, exact in ((found.rate.upper, rate), (found.elbo.lower, model.log_evidence(x) - divergence)):
        assert side is not None
        inside = ((side.values - exact).abs() < 1.96 * side.stderr).double().mean()
        assert 0.90 < inside < 0.97
    evidence = found.evidence.lower
    assert evidence is not None
    assert 0.9 < ((evidence.values - model.log_evidence(x)).abs() < 1.96 * evidence.stderr).double().mean() < 0.98


# I(x; z) under q ------------------------------------------------------------------------------------------


def population_information(toy: Hierarchy) -> float:
    """Return I_q(x; z) for x ~ N(b, W W' + s^2 I): 1/2 log |C + G Cov(x) G'| / |C|."""
    model, (a, p, s) = linear_gaussian(), toy.factors
    gain = toy.mixing.weight.detach().T @ a.T + toy.conditional.x_weight.detach().T
    own = a @ p @ a.T + s
    spread = gain.T @ (model.weight @ model.weight.T + model.scale**2 * torch.eye(3)) @ gain
    return 0.5 * (torch.logdet(own + spread) - torch.logdet(own)).item()


def informative() -> Hierarchy:
    """Return a hierarchy whose z tells a good deal of x."""
    toy = wide_hierarchy(0.7)
    with torch.no_grad():
        toy.conditional.x_weight.mul_(2)
        toy.conditional.log_scale.sub_(0.5)
    return toy


def groups(encoder: Encoder, count: int, size: int, inner_k: int) -> Between:
    found = []
    for group in range(count):
        x, _ = linear_gaussian().simulate(size)
        found.append(information_about_images(linear_gaussian(), encoder, x, slice(0, size), 2, inner_k, seed=group))
    means = [[values(side).mean() for side in between] for between in found]
    return Between(*(Side(torch.stack(side), torch.zeros(count)) for side in zip(*means, strict=True)))


@pytest.mark.parametrize(("reverse", "inner_k"), [("exact", 1), ("rough", 4), ("none", 16)])
def test_the_mixture_of_images_bounds_what_z_tells_of_x(reverse: str, inner_k: int):
    toy = informative()
    tau = {"exact": toy.exact_reverse, "rough": toy.rough_reverse, "none": lambda: None}[reverse]()
    truth = population_information(toy)
    found = groups(HierarchicalEncoder(toy.mixing, toy.conditional, tau), 40, 8, inner_k)
    assert encloses(found, truth)
    assert values(found.lower).mean() < math.log(8)
    below, above = Mean.of(values(found.lower)), Mean.of(values(found.upper))
    assert below.errors_above(truth) < -5
    assert above.errors_above(truth) > 2
    assert above.value < truth + 2


def test_more_images_take_the_bounds_together():
    toy = informative()
    encoder = HierarchicalEncoder(toy.mixing, toy.conditional, toy.exact_reverse())
    few, many = groups(encoder, 40, 4, 1), groups(encoder, 10, 30, 1)
    assert Mean.of(values(many.lower)).value > Mean.of(values(few.lower)).value + 0.1
    assert Mean.of(values(many.upper)).value < Mean.of(values(few.upper)).value - 0.1
    assert values(few.lower).mean() < math.log(4)


def test_encoders_without_a_density_anywhere_tell_nothing():
    class Unscored(Encoder):
        direction = Direction.UPPER_BOUND

        def encode(self, x: Tensor) -> Tensor:
            return x

        def sample(self, context, k, *, inner_k=0, path_only=False, inner_chunk=None):  # noqa: ANN001
            return learned().draw(context, k)

    x = torch.randn(4, 3)
    assert information_about_images(linear_gaussian(), Unscored(), x, slice(0, 2)) == Between(None, None)
    found = sandwich(linear_gaussian(), Unscored(), x, 2, 3, posterior=torch.zeros(4, 2))
    assert found.log_q.lower is None
    assert found.evidence.upper is None


# What is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gaussian, learned])
def test_rows_are_the_result(make):  # noqa: ANN001
    x, z = linear_gaussian().simulate(4)
    found = sandwich(linear_gaussian(), make(), x, 5, 2, posterior=z, seed=1)
    again = SandwichResult.from_rows(found.rows())
    assert found.rows().keys() == again.rows().keys()
    assert all(torch.equal(row, again.rows()[key]) or row.isnan().all() for key, row in found.rows().items())
    assert again.log_q.single is found.log_q.single
    assert all(row.dtype == torch.float64 for row in found.rows().values())


@pytest.mark.parametrize("make", [gaussian, learned, sivi, hamiltonian, langevin])
def test_chunks_and_batches_do_not_show(make):  # noqa: ANN001
    x, z = linear_gaussian().simulate(4)
    encoder, model = make(), linear_gaussian()
    whole = sandwich(model, encoder, x, 6, 3, posterior=z, seed=1).rows()
    chunked = sandwich(model, encoder, x, 6, 3, 4, posterior=z, inner_chunk=2, seed=1).rows()
    order = torch.tensor([2, 0])
    part = sandwich(model, encoder, x[order], 6, 3, posterior=z[order], seed=1, images=order).rows()
    for key, row in whole.items():
        assert torch.allclose(chunked[key], row, atol=1e-10, equal_nan=True)
        assert torch.allclose(part[key], row[order], atol=1e-10, equal_nan=True)


def test_parts_of_the_mixture_do_not_show():
    x, _ = linear_gaussian().simulate(6)
    whole = information_about_images(linear_gaussian(), learned(), x, slice(0, 6), 2, 3, seed=1)
    part = information_about_images(linear_gaussian(), learned(), x, slice(2, 4), 2, 3, seed=1)
    for all_of_them, some in zip(whole, part, strict=True):
        assert torch.equal(values(all_of_them)[2:4], values(some))


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="k must be at least 1"):
        sandwich(linear_gaussian(), gaussian(), one_image(2), 0)


def test_weights_are_those_of_training():
    """The evidence is importance sampling by the upper bound on log q."""
    model, x = linear_gaussian(), one_image(3)
    found = sandwich(model, exact_reverse(), x, 4, 2, seed=0)
    assert (values(found.evidence.lower) <= model.log_evidence(x) + 5).all()
    with torch.no_grad():
        draw = exact_reverse().draw(x, 2000)
    weighed = weigh(model, x, draw).log_weights()
    assert (weighed.mean(0) - values(found.elbo.lower)).abs().max() < 3
