"""Reparam, STL and DReG against the exact gradient of the exact expectation of each bound."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from benchmark.counting import count
from oracles.scalar import (
    GAUSSIAN,
    HIERARCHICAL,
    IMAGE,
    SIVI,
    Named,
    Replicated,
    exact_bound,
    exact_gradient,
    model,
)
from torch import Tensor, nn
from toys import (
    CELLS,
    GRADIENT_CELLS,
    AffineGaussian,
    ConstantDecoder,
    Family,
    Mean,
    exact_gaussian,
    exact_hierarchical,
    expected_iwae,
    linear_gaussian,
    name,
    normal_nodes,
)

from vaebench import bounds
from vaebench.bounds import Bound
from vaebench.encoders.base import Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.gradients import CLOSED_FORMS, GradientEstimator, relative_curvature, rescale_paths
from vaebench.model import GenerativeModel
from vaebench.objective import Objective, evidence
from vaebench.priors import StandardNormalPrior
from vaebench.registry import OBJECTIVES

pytestmark = pytest.mark.usefixtures("float64")

REPARAM, STL, DREG = GradientEstimator.REPARAM, GradientEstimator.STL, GradientEstimator.DREG
REPLICATES = 40_000
IWAE5 = Named("iwae", 5)


def samples(
    values: Mapping[str, float],
    bound: Named,
    gradient: GradientEstimator,
    inner_k: int = 0,
    beta: float = 1.0,
    share_psi: bool = False,
) -> dict[str, Tensor]:
    """Return independent samples of the gradient in each parameter, (B, 1)."""
    toy = Replicated(values, REPLICATES, share_psi=share_psi)
    x = torch.full((REPLICATES, 1), IMAGE)
    objective = Objective(bound.function, gradient)
    value, _ = objective(model(), toy.encoder, x, bound.k, inner_k=inner_k, beta=beta)
    value.sum().backward()
    return {key: parameter.grad for key, parameter in toy.parameters.items() if parameter.grad is not None}


def errors(found: Mapping[str, Tensor], truth: Mapping[str, float]) -> dict[str, float]:
    """Return each mean gradient's distance from the truth in standard errors."""
    assert found.keys() == truth.keys()
    return {key: Mean.of(found[key]).errors_above(truth[key]) for key in truth}


CASES = [
    pytest.param(GAUSSIAN, Named("elbo", 3), 0, 1.0, id="gaussian-elbo"),
    pytest.param(GAUSSIAN, IWAE5, 0, 1.0, id="gaussian-iwae"),
    pytest.param(GAUSSIAN, IWAE5, 0, 0.4, id="gaussian-iwae-warmup"),
    pytest.param(GAUSSIAN, Named("miwae", 6, 2), 0, 1.0, id="gaussian-miwae"),
    pytest.param(GAUSSIAN, Named("ciwae", 4, 0.3), 0, 1.0, id="gaussian-ciwae"),
    pytest.param(GAUSSIAN, Named("ciwae", 4, 0.3), 0, 0.5, id="gaussian-ciwae-warmup"),
    pytest.param(GAUSSIAN, Named("renyi", 4, 0.5), 0, 1.0, id="gaussian-renyi"),
    pytest.param(GAUSSIAN, Named("renyi", 3, -0.5), 0, 0.7, id="gaussian-renyi-warmup"),
    pytest.param(HIERARCHICAL, Named("elbo", 2), 0, 1.0, id="hvm-elbo"),
    pytest.param(HIERARCHICAL, IWAE5, 0, 1.0, id="hvm-iwae"),
    pytest.param(HIERARCHICAL, IWAE5, 0, 0.4, id="hvm-iwae-warmup"),
    pytest.param(HIERARCHICAL, Named("elbo", 2), 1, 1.0, id="iwhvi-elbo"),
    pytest.param(HIERARCHICAL, IWAE5, 1, 1.0, id="iwhvi-iwae"),
    pytest.param(HIERARCHICAL, Named("ciwae", 4, 0.3), 1, 0.6, id="iwhvi-ciwae-warmup"),
    pytest.param(HIERARCHICAL, Named("miwae", 6, 2), 1, 1.0, id="iwhvi-miwae"),
    pytest.param(SIVI, Named("elbo", 2), 1, 1.0, id="sivi-elbo"),
    pytest.param(SIVI, IWAE5, 1, 1.0, id="sivi-iwae"),
    pytest.param(SIVI, Named("renyi", 3, 0.5), 1, 0.7, id="sivi-renyi-warmup"),
]


@pytest.mark.parametrize("gradient", [REPARAM, DREG])
@pytest.mark.parametrize(("values", "bound", "inner_k", "beta"), CASES)
def test_the_expected_gradient_is_the_gradient_of_the_expected_bound(
    values: dict[str, float],
    bound: Named,
    inner_k: int,
    beta: float,
    gradient: GradientEstimator,
):
    """In every parameter of the encoder, the reverse model's among them, and for each bound."""
    truth = exact_gradient(values, bound, inner_k, beta)
    found = errors(samples(values, bound, gradient, inner_k, beta), truth)
    assert max(abs(error) for error in found.values()) < 4.5, found


@pytest.mark.parametrize("inner_k", [3, 8])
@pytest.mark.parametrize("values", [HIERARCHICAL, SIVI], ids=["iwhvi", "sivi"])
def test_dreg_agrees_with_reparam_for_many_inner_samples(values: dict[str, float], inner_k: int):
    """The same noise on both sides: their difference has mean zero in every parameter."""
    found = []
    for gradient in (REPARAM, DREG):
        torch.manual_seed(1)
        found.append(samples(values, Named("iwae", 3), gradient, inner_k, 0.7))
    for key, reparam in found[0].items():
        assert abs(Mean.of(found[1][key] - reparam).errors_above(0)) < 4.5, key


@pytest.mark.parametrize(("values", "inner_k"), [(GAUSSIAN, 0), (HIERARCHICAL, 1), (SIVI, 1)])
def test_stl_is_unbiased_for_the_elbo(values: dict[str, float], inner_k: int):
    bound = Named("elbo", 2)
    found = errors(samples(values, bound, STL, inner_k), exact_gradient(values, bound, inner_k))
    assert max(abs(error) for error in found.values()) < 4.5, found


@pytest.mark.parametrize(("values", "inner_k"), [(GAUSSIAN, 0), (HIERARCHICAL, 1)])
def test_control_stl_is_biased_for_several_samples(values: dict[str, float], inner_k: int):
    found = errors(samples(values, IWAE5, STL, inner_k), exact_gradient(values, IWAE5, inner_k))
    assert max(abs(error) for error in found.values()) > 40, found


def test_the_published_example():
    """Posterior N(0, 1), q = N(.7, 1.3^2): d/dmean is -.7 at K = 1 and -.0929 at K = 5, STL's -.4523."""
    zero = torch.zeros(1)
    flat = GenerativeModel(StandardNormalPrior(1), ConstantDecoder(zero))
    nodes, probability = normal_nodes(1, 1001)

    def truth(mean: float) -> float:
        z = mean + 1.3 * nodes[:, 0]
        return expected_iwae(-0.5 * z**2 + 0.5 * nodes[:, 0] ** 2 + math.log(1.3), probability, 5).item()

    slope = (truth(0.701) - truth(0.699)) / 0.002
    assert slope == pytest.approx(-0.0929, abs=1e-4)

    def mean_gradient(k: int, gradient: GradientEstimator) -> Tensor:
        toy = Replicated({"mean": 0.7, "log_scale": math.log(1.3)}, 100_000)
        value, _ = Objective(bounds.iwae, gradient)(flat, toy.encoder, torch.ones(100_000, 1), k)
        value.sum().backward()
        found = toy.parameters["mean"].grad
        assert found is not None
        return found

    for gradient, variance in ((REPARAM, 1.69), (STL, 0.2826), (DREG, 0.2826)):
        single = mean_gradient(1, gradient)
        assert abs(Mean.of(single).errors_above(-0.7)) < 4
        # Exactly: path alone (1 - 1/1.3^2 scaled), Var = (1.3 - 1/1.3)^2; the reparameterised one: 1.3^2.
        assert single.var().item() == pytest.approx(variance, rel=0.03)
        several = Mean.of(mean_gradient(5, gradient))
        if gradient is STL:
            assert several.value == pytest.approx(-0.4523, abs=0.005)
            assert abs(several.errors_above(slope)) > 100
        else:
            assert abs(several.errors_above(slope)) < 4


def test_dreg_has_the_smaller_variance():
    reparam, dreg = (samples(GAUSSIAN, IWAE5, gradient)["mean"] for gradient in (REPARAM, DREG))
    assert dreg.var() < 0.2 * reparam.var()


# Controls: hooks that look right ---------------------------------------------------------------------------


def hooked(paths: slice, beta_in_hook: float, beta: float, bound: Named = IWAE5) -> dict[str, Tensor]:
    """Return samples of a gradient rescaled on some paths only, or with another beta than the bound's."""
    toy, x = Replicated(HIERARCHICAL, REPLICATES), torch.full((REPLICATES, 1), IMAGE)
    drawn = evidence(model(), toy.encoder, x, bound.k, inner_k=1, path_only=True)
    log_w = drawn.log_weights(beta)
    rescale_paths(drawn.paths[paths], log_w, bound.function, beta_in_hook)
    bound.function(log_w).sum().backward()
    return {key: parameter.grad for key, parameter in toy.parameters.items() if parameter.grad is not None}


def test_control_the_hooks_of_this_file_are_those_of_the_objective():
    torch.manual_seed(1)
    by_hand = hooked(slice(None), 0.6, 0.6)
    torch.manual_seed(1)
    found = samples(HIERARCHICAL, IWAE5, DREG, 1, 0.6)
    assert all(torch.equal(by_hand[key], found[key]) for key in found)


def test_control_rescaling_z_alone_is_biased():
    found = errors(hooked(slice(1), 1.0, 1.0), exact_gradient(HIERARCHICAL, IWAE5, 1))
    assert max(abs(error) for error in found.values()) > 20, found


def test_control_forgetting_the_warm_up_in_the_rescaling_is_biased():
    found = errors(hooked(slice(None), 1.0, 0.4), exact_gradient(HIERARCHICAL, IWAE5, 1, 0.4))
    assert max(abs(error) for error in found.values()) > 20, found


def test_control_squared_weights_are_wrong_for_a_combined_bound():
    """The IWAE bound's factor, w_k, put on CIWAE's paths."""
    bound, factor_of = Named("ciwae", 4, 0.3), Named("iwae", 4)
    toy, x = Replicated(GAUSSIAN, REPLICATES), torch.full((REPLICATES, 1), IMAGE)
    drawn = evidence(model(), toy.encoder, x, bound.k, path_only=True)
    log_w = drawn.log_weights()
    rescale_paths(drawn.paths, log_w, factor_of.function, 1.0)
    bound.function(log_w).sum().backward()
    found = {key: parameter.grad for key, parameter in toy.parameters.items() if parameter.grad is not None}
    assert max(abs(error) for error in errors(found, exact_gradient(GAUSSIAN, bound)).values()) > 20


# Limits ---------------------------------------------------------------------------------------------------


def test_dreg_refuses_psi_shared_by_several_draws():
    """Its derivation swaps psi_0 with psi_1..L, and those that sit in every weight cannot be swapped."""
    with pytest.raises(ValueError, match="share_psi"):
        samples(SIVI, Named("iwae", 3), DREG, 1, share_psi=True)


@pytest.mark.parametrize(("inner_k", "k"), [(0, 3), (1, 1)])
def test_dreg_takes_psi_that_are_not_really_shared(inner_k: int, k: int):
    """Without inner samples, or with one draw, share_psi says nothing."""
    found = samples(SIVI, Named("iwae", k), DREG, inner_k, share_psi=True)
    truth = exact_gradient(SIVI, Named("iwae", k), inner_k)
    assert max(abs(error) for error in errors(found, truth).values()) < 4.5


def test_dreg_refuses_the_largest_weight():
    """VR-max has a slope that jumps: the score term sits in the jumps, which no derivative shows."""
    with pytest.raises(ValueError, match="dreg"):
        samples(GAUSSIAN, Named("renyi", 3, -math.inf), DREG)


# The closed forms of the factor ----------------------------------------------------------------------------

FACTORS: dict[str, Bound] = {
    "elbo": bounds.elbo,
    "iwae": bounds.iwae,
    "ciwae": partial(bounds.ciwae, beta=0.3),
    "ciwae-iwae": partial(bounds.ciwae, beta=0.0),
    "miwae": partial(bounds.miwae, groups=2),
    "renyi": partial(bounds.renyi, alpha=0.5),
    "renyi-negative": partial(bounds.renyi, alpha=-1.5),
    "renyi-elbo": partial(bounds.renyi, alpha=1),
    "tvo": partial(bounds.tvo, betas=bounds.tvo_schedule(5, 0.01)),
    "tvo-upper": partial(bounds.tvo, betas=[0.0, 0.3, 1.0], upper=True),
}


def factors(bound: Bound, k: int) -> tuple[Tensor, Tensor]:
    """Return the closed form and the value by autograd for the same weights, both (K, B)."""
    log_w = 3 * torch.randn(k, 20, generator=torch.Generator().manual_seed(0))
    # A wrapper is no entry of CLOSED_FORMS.
    return relative_curvature(log_w, bound), relative_curvature(log_w, lambda log_w: bound(log_w))


@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize("name", FACTORS)
def test_the_closed_form_of_the_factor_agrees_with_autograd(name: str, k: int):
    groups = {"groups": 1} if name == "miwae" and k == 1 else {}
    closed, truth = factors(partial(FACTORS[name], **groups), k)
    assert torch.allclose(closed, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in FACTORS if "elbo" not in name])
def test_control_a_wrong_coefficient_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    bound = FACTORS[name]
    function = bound.func if isinstance(bound, partial) else bound
    form = CLOSED_FORMS[function]
    monkeypatch.setitem(CLOSED_FORMS, function, lambda log_w, **settings: 1.001 * form(log_w, **settings))
    closed, truth = factors(bound, 6)
    assert not torch.allclose(closed, truth, rtol=1e-10, atol=1e-12)


def test_every_objective_that_takes_dreg_has_a_closed_form():
    settings: dict[str, dict[str, Any]] = {
        "ciwae": {"beta": 0.5},
        "miwae": {"groups": 2},
        "piwae": {"groups": 2},
        "renyi": {"alpha": 0.5},
        "vr_max": {},
        "tvo": {"partitions": 2, "first": 0.1},
        "beta": {"kl_weight": 2.0},
        "free_bits": {"nats": 1.0},
    }
    for key, make in OBJECTIVES.items():
        objective = make(DREG, **settings.get(key, {}))
        for bound in (objective.maximised, objective.for_encoder().maximised):
            assert getattr(bound, "func", bound) in CLOSED_FORMS, key


def test_a_weight_of_no_influence_has_a_finite_factor():
    log_w = torch.tensor([[0.0], [-2000.0]])
    for bound in FACTORS.values():
        assert relative_curvature(log_w, bound).isfinite().all()


def test_the_factor_takes_no_backward_passes():
    """A bound from outside takes K backward passes."""
    log_w = torch.randn(50, 4)
    assert count(lambda: relative_curvature(log_w, bounds.iwae)).kernels <= 3
    assert count(lambda: relative_curvature(log_w, lambda log_w: bounds.iwae(log_w))).kernels > 300


# Every family ----------------------------------------------------------------------------------------------


def sampler_gradients(encoder: Encoder, gradient: GradientEstimator, bound: Bound, inner_k: int) -> list[Tensor]:
    """Return the gradients in the parameters of q, not in those of tau."""
    torch.manual_seed(2)
    value, _ = Objective(bound, gradient)(linear_gaussian(), encoder, torch.randn(5, 3), 4, inner_k=inner_k)
    value.sum().backward()
    own = [parameter for key, parameter in encoder.named_parameters() if not key.startswith("reverse.")]
    return [parameter.grad for parameter in own if parameter.grad is not None]


@pytest.mark.parametrize("bound", [bounds.elbo, bounds.iwae, lambda w: bounds.ciwae(w, 0.5)])
@pytest.mark.parametrize("inner_k", [0, 3])
@pytest.mark.parametrize("make", [exact_gaussian, exact_hierarchical])
def test_at_the_optimum_path_gradients_are_zero_for_every_draw(make: Callable[[], Encoder], inner_k: int, bound: Bound):
    for gradient in (STL, DREG):
        found = sampler_gradients(make(), gradient, bound, inner_k)
        assert len(found) >= 3
        assert max(entry.abs().max().item() for entry in found) < 1e-12
    control = sampler_gradients(make(), REPARAM, bound, inner_k)
    assert max(entry.abs().max().item() for entry in control) > 0.1


@pytest.mark.parametrize(("family", "inner_k"), CELLS, ids=name)
def test_the_models_own_gradient_is_the_same_under_all_estimators(family: Family, inner_k: int):
    """It is weighted by w_k, and not by w_k squared, whatever is done to the encoder's."""
    found = []
    for gradient in family.gradients:
        torch.manual_seed(2)
        toy, encoder, x = linear_gaussian(), family.make(), torch.randn(5, 3)
        Objective(bounds.iwae, gradient)(toy, encoder, x, 4, inner_k=inner_k)[0].sum().backward()
        found.append(nn.utils.parameters_to_vector([p.grad for p in toy.parameters() if p.grad is not None]))
    assert all((found[0] - other).abs().max() < 1e-12 for other in found)
    assert found[0].abs().max() > 0.1


@pytest.mark.parametrize(("family", "inner_k", "gradient"), GRADIENT_CELLS, ids=name)
def test_every_parameter_gets_a_gradient(family: Family, inner_k: int, gradient: GradientEstimator):
    toy, encoder = linear_gaussian(), family.make()
    Objective(bounds.iwae, gradient)(toy, encoder, torch.randn(5, 3), 4, inner_k=inner_k)[0].sum().backward()
    modules: list[nn.Module] = [toy, encoder]
    for module in modules:
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key


def test_a_frozen_encoder_leaves_the_models_gradient_alone():
    """Fine-tuning a decoder: nothing of the encoder requires a gradient, and hooks have nothing to hold."""
    for make in (exact_gaussian, exact_hierarchical):
        toy, encoder = linear_gaussian(), make().requires_grad_(False)
        Objective(bounds.iwae, DREG)(toy, encoder, torch.randn(5, 3), 4)[0].sum().backward()
        assert all(parameter.grad is not None for parameter in toy.parameters())


def test_the_exact_values_are_those_of_the_objective():
    """The truth of this file, by quadrature from formulas, against the mean of the library's bounds."""
    for values, inner_k in ((GAUSSIAN, 0), (HIERARCHICAL, 0), (HIERARCHICAL, 1), (SIVI, 1)):
        for bound in (IWAE5, Named("miwae", 6, 2), Named("ciwae", 4, 0.3), Named("renyi", 4, 0.5)):
            toy, x = Replicated(values, REPLICATES), torch.full((REPLICATES, 1), IMAGE)
            with torch.no_grad():
                value, _ = Objective(bound.function)(model(), toy.encoder, x, bound.k, inner_k=inner_k, beta=0.8)
            assert abs(Mean.of(value).errors_above(exact_bound(values, bound, inner_k, 0.8))) < 4.5


def test_the_toy_posterior_is_what_the_gradients_are_zero_at():
    """A control of the controls: moving the exact posterior makes STL's gradient non-zero."""
    encoder = exact_gaussian()
    assert isinstance(encoder, GaussianEncoder)
    assert isinstance(encoder.posterior, AffineGaussian)
    with torch.no_grad():
        encoder.posterior.bias.add_(0.1)
    assert max(entry.abs().max() for entry in sampler_gradients(encoder, STL, bounds.iwae, 0)) > 0.01
