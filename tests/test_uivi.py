"""UIVI: the gradient of the ELBO itself, and the value of a bound."""

import math
from pathlib import Path

import pytest
import torch
from oracles.scalar import IMAGE, SIVI, Replicated, model
from torch import Tensor
from toys import Hierarchy, Mean, linear_gaussian, one_image, sivi, wide_hierarchy

import vaebench
from vaebench import bounds, noise
from vaebench.distributions import DiagonalNormal
from vaebench.encoders.hierarchical import HierarchicalEncoder, Joint
from vaebench.encoders.uivi import UnbiasedEncoder
from vaebench.errors import UserError
from vaebench.objective import Objective, evidence

pytestmark = pytest.mark.usefixtures("float64")

REPLICATES = 40_000


# The identity ---------------------------------------------------------------------------------------------


def marginal_slope(toy: Hierarchy, x: Tensor, z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(toy.marginal(x).log_prob(z).sum(), z)[0]


def slope_at(toy: Hierarchy, x: Tensor, z: Tensor, psi: Tensor) -> Tensor:
    """Return dlog q(z|psi,x)/dz."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(toy.conditional(psi, toy.conditional.condition(x)).log_prob(z).sum(), z)[0]


def test_the_expected_conditional_slope_is_the_marginal_one():
    """dlog q(z|psi)/dz is linear in psi here, so that its expectation is its value at E[psi|z,x]: exact."""
    toy, x = wide_hierarchy(1.8), torch.randn(30, 3)
    z = 2 * torch.randn(4, 30, 2)
    to_z, to_x, constant, _ = toy.reverse_posterior()
    expected_psi = z @ to_z.T + x @ to_x.T + constant
    truth = marginal_slope(toy, x, z)
    assert (slope_at(toy, x, z, expected_psi) - truth).abs().max() < 1e-12
    # Control: q(psi|x) in place of q(psi|z,x).
    assert (slope_at(toy, x, z, toy.mixing(x).mean) - truth).abs().max() > 1


def test_the_surrogate_has_that_slope():
    """Over many chains at one z, from exact samples of q(psi|z,x)."""
    toy, x = wide_hierarchy(1.8), one_image(REPLICATES)
    encoder = UnbiasedEncoder(
        HierarchicalEncoder(toy.mixing, toy.conditional, None), hmc_burn_in=1, hmc_samples=2, step_size=0.4
    )
    z = torch.tensor([1.5, -2.0]).expand(1, REPLICATES, 2).clone().requires_grad_()
    psi = toy.exact_reverse()(z.detach(), toy.exact_reverse().condition(x)).sample()
    context = encoder.encode(x)
    q_z = toy.conditional(psi, context.conditional)
    surrogate = encoder._surrogate(context, Joint(psi, q_z, z, q_z.log_prob(z)))
    (found,) = torch.autograd.grad(surrogate.sum(), z, retain_graph=True)
    truth = marginal_slope(toy, x[:1], z[:, :1])[0, 0]
    for axis in range(2):
        assert abs(Mean.of(found[0, :, axis]).errors_above(truth[axis].item())) < 4
    # Nothing else is reached: the parameters of q inside the score are constants.
    gradients = torch.autograd.grad(surrogate.sum(), list(encoder.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)


# The gradient ---------------------------------------------------------------------------------------------


def exact_elbo_gradient() -> dict[str, float]:
    """Differentiate log p(x) - KL(q(z) || p(z|x)), q(z) being Gaussian in the scalar toy."""
    values = {key: torch.tensor(value, requires_grad=True) for key, value in SIVI.items()}
    mean = values["slope"] * values["mixing_mean"] + values["offset"]
    variance = (values["slope"] * values["mixing_log_scale"].exp()) ** 2 + (2 * values["log_scale"]).exp()
    gain, constant, posterior_variance = model().posterior()
    posterior_mean = (gain * IMAGE).squeeze() + constant.squeeze()
    v = posterior_variance.squeeze()
    divergence = 0.5 * (variance / v + (mean - posterior_mean) ** 2 / v - 1 - (variance / v).log())
    gradients = torch.autograd.grad(-divergence, list(values.values()))
    return {key: gradient.item() for key, gradient in zip(values, gradients, strict=True)}


def gradient_errors(burn_in: int, step_size: float, *, fresh: bool = False) -> dict[str, float]:
    """Return how far UIVI's mean gradient lies from the ELBO's, in standard errors."""
    toy = Replicated(SIVI, REPLICATES)
    assert isinstance(toy.encoder, HierarchicalEncoder)
    encoder = UnbiasedEncoder(toy.encoder, hmc_burn_in=burn_in, hmc_samples=2, leapfrog_steps=4, step_size=step_size)
    x = torch.full((REPLICATES, 1), IMAGE)
    if fresh:
        context = encoder.encode(x)
        joint = encoder.marginal.joint(context, 1)
        log_q = encoder._surrogate(context, joint._replace(psi=context.mixing.sample((1,))))
        log_joint = model().log_joint(x, joint.z)
        value = log_joint.log_likelihood + log_joint.log_prior - log_q
    else:
        value, _ = Objective(bounds.elbo)(model(), encoder, x, 1, inner_k=1)
    value.sum().backward()
    truth = exact_elbo_gradient()
    assert truth.keys() == toy.parameters.keys()
    found = {key: parameter.grad for key, parameter in toy.parameters.items() if parameter.grad is not None}
    return {key: Mean.of(gradient).errors_above(truth[key]) for key, gradient in found.items()}


def test_the_expected_gradient_is_that_of_the_elbo():
    """Of the ELBO with the exact q(z|x), not of a bound on it; four steps of .22 are a quarter turn or so."""
    found = gradient_errors(burn_in=4, step_size=0.22)
    assert len(found) == 5
    assert max(abs(error) for error in found.values()) < 4.5, found


def test_control_chains_that_stay_at_psi_0_are_biased():
    """z and psi_0 hang together: without burn-in and movement the gradient is that of SIVI at L = 0."""
    assert max(abs(error) for error in gradient_errors(burn_in=0, step_size=1e-4).values()) > 30


def test_control_chains_that_start_at_a_fresh_psi_are_biased():
    """psi ~ q(psi|x) is no sample of q(psi|z,x), and a few short steps do not make it one."""
    assert max(abs(error) for error in gradient_errors(burn_in=0, step_size=0.03, fresh=True).values()) > 30


# The value ------------------------------------------------------------------------------------------------


def test_the_value_is_the_bound_of_sivi():
    """Psi_0 is counted, also where a gradient is wanted."""
    x, encoder = torch.randn(5, 3), UnbiasedEncoder(sivi(), hmc_burn_in=1, hmc_samples=1)
    with torch.no_grad(), noise.keyed(2, torch.arange(5)):
        evaluated = encoder.draw(x, 3, inner_k=4)
    with torch.no_grad(), noise.keyed(2, torch.arange(5)):
        reference = encoder.marginal.draw(x, 3, inner_k=4)
    assert torch.equal(evaluated.log_q, reference.log_q)
    with noise.keyed(2, torch.arange(5)):
        trained = encoder.draw(x, 3, inner_k=4)
    assert trained.log_q.requires_grad
    assert (trained.log_q - reference.log_q).abs().max() < 1e-14
    assert torch.equal(trained.z, reference.z)


def test_control_without_psi_0_the_bound_turns_round():
    toy, x = wide_hierarchy(1.8), one_image(REPLICATES)
    encoder = UnbiasedEncoder(HierarchicalEncoder(toy.mixing, toy.conditional, None))
    with torch.no_grad():
        context = encoder.encode(x)
        joint = encoder.marginal.joint(context, 1)
        fresh = encoder.marginal.joint(context, 1).psi
        alone = toy.conditional(fresh, context.conditional).log_prob(joint.z)
        with_psi_0 = encoder.marginal.log_q(context, joint, 1)
        truth = toy.marginal(x).log_prob(joint.z)
    assert Mean.of(alone - truth).errors_above(0) < -30
    assert Mean.of(with_psi_0 - truth).errors_above(0) > 30


# The step size --------------------------------------------------------------------------------------------


def train_once(encoder: UnbiasedEncoder) -> None:
    value, _ = Objective(bounds.elbo)(linear_gaussian(), encoder, torch.randn(20, 3), 2)
    value.sum().backward()


@pytest.mark.parametrize("step_size", [0.02, 3.0])
def test_the_step_size_is_adapted_to_the_acceptance_in_training(step_size: float):
    encoder = UnbiasedEncoder(sivi(), hmc_burn_in=1, hmc_samples=1, step_size=step_size, target_acceptance=0.9)
    for _ in range(80):
        train_once(encoder)
    adapted = encoder.log_step_size.exp().item()
    assert adapted < step_size if step_size == 3.0 else adapted > step_size
    if step_size == 3.0:
        assert 0.3 < adapted < 1.6


def test_the_step_size_stands_still_where_nothing_is_learned():
    encoder = UnbiasedEncoder(sivi(), step_size=3.0)
    before = encoder.log_step_size.clone()
    evidence(linear_gaussian(), encoder, torch.randn(4, 3), 2)
    with torch.no_grad():
        evidence(linear_gaussian(), encoder, torch.randn(4, 3), 2)
    encoder.eval()
    train_once(encoder)
    assert torch.equal(encoder.log_step_size, before)
    encoder.train()
    train_once(encoder)
    assert encoder.log_step_size < before


def test_the_step_size_is_part_of_the_checkpoint():
    encoder, other = UnbiasedEncoder(sivi(), step_size=0.3), UnbiasedEncoder(sivi())
    other.load_state_dict(encoder.state_dict())
    assert other.log_step_size.exp().item() == pytest.approx(0.3)


def test_energies_are_computed_outside_of_autocast():
    """The same chains in bf16 as in float32."""
    torch.set_default_dtype(torch.float32)
    encoder = UnbiasedEncoder(sivi(), hmc_burn_in=0, hmc_samples=3)
    seen = []
    for enabled in (False, True):
        torch.manual_seed(1)
        context = encoder.encode(torch.ones(6, 3))
        joint = encoder.marginal.joint(context, 2)
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            surrogate = encoder._surrogate(context, joint)
        assert surrogate.dtype == torch.float32
        seen.append(surrogate)
    assert (seen[0] - seen[1]).abs().max() < 0.05


# Refusals -------------------------------------------------------------------------------------------------

FAST = ["encoder=uivi", "encoder.hidden=[4]", "decoder.hidden=[4]", "latent_dim=2", "device=cpu"]


@pytest.mark.usefixtures("_single")
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective=iwae", "k=5"], "gradient is that of the ELBO"),
        (["objective=iwae", "trainer.k_schedule={0:1,10:5}"], "gradient is that of the ELBO"),
        (["objective.gradient=stl"], "flows through z alone"),
    ],
)
def test_other_objectives_are_refused_with_the_reason(overrides: list[str], words: str, default_data_dir: Path):
    with pytest.raises(UserError, match=words):
        vaebench.build([*FAST, *overrides, f"data_dir={default_data_dir}"])


@pytest.mark.usefixtures("_single")
@pytest.mark.parametrize("overrides", [["k=3"], ["objective=iwae", "k=1"]])
def test_the_elbo_in_any_spelling_is_served(overrides: list[str], default_data_dir: Path):
    experiment = vaebench.build([*FAST, *overrides, f"data_dir={default_data_dir}"])
    assert isinstance(experiment.encoder, UnbiasedEncoder)
    assert experiment.encoder.log_step_size.item() == pytest.approx(math.log(0.05))
    assert isinstance(experiment.encoder.encode(torch.rand(2, 784)).mixing, DiagonalNormal)


@pytest.fixture
def _single() -> None:
    torch.set_default_dtype(torch.float32)
