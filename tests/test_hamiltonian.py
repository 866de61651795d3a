"""Encoders that follow the model's gradient: Hamiltonian (HVI, HVAE) and Langevin."""

import copy
import math
from pathlib import Path

import pytest
import torch
from oracles import scalar
from test_constant_decoder import PIXELS, constant_model, truth
from torch import Tensor, nn
from toys import (
    AffineConditional,
    AffineGaussian,
    Mean,
    gaussian,
    hamiltonian,
    langevin,
    linear_gaussian,
    one_image,
)

import vaebench
from vaebench import bounds, noise
from vaebench.distributions import DiagonalNormal, standard_normal
from vaebench.encoders.base import Draw, Encoder
from vaebench.encoders.hamiltonian import HamiltonianEncoder, StepSizes, Tempering
from vaebench.encoders.langevin import LangevinEncoder
from vaebench.errors import UserError
from vaebench.model import GenerativeModel
from vaebench.objective import evidence, weigh

pytestmark = pytest.mark.usefixtures("float64")

KINDS = ("none", "fixed", "free")
REPLICATES = 20_000


# The map --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_preserves_volume_and_the_pair_is_scored_where_it_was_drawn(kind: str):
    """log_q + log r(rho|z) = log q0(z_0) N(rho_0) - log|det d(z, rho)/d(z_0, rho_0)|, the determinant being 1."""
    encoder, x = hamiltonian(kind, learned_reverse=False), torch.randn(1, 3)
    start = torch.randn(4)

    def flow(both: Tensor) -> Tensor:
        z, rho = encoder.move(x, both[:2].view(1, 1, 2), both[2:].view(1, 1, 2))
        return torch.cat([z.flatten(), rho.flatten()])

    jacobian = torch.autograd.functional.jacobian(flow, start)
    assert isinstance(jacobian, Tensor)
    log_volume = torch.linalg.slogdet(jacobian).logabsdet.item()
    assert abs(log_volume) < 1e-12
    assert (jacobian - torch.eye(4)).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_log_q_by_hand(kind: str):
    encoder, x = hamiltonian(kind), torch.randn(5, 3)
    with noise.keyed(1, torch.arange(5)):
        draw = encoder.draw(x, 3)
    with noise.keyed(1, torch.arange(5)):
        q0, rest = encoder.start(x), standard_normal(2, x)
        z0, rho0 = q0.rsample((3,)), rest.rsample((3, 5))
    z, rho = encoder.move(x, z0, rho0)
    assert encoder.reverse is not None
    reverse = encoder.reverse(z, encoder.reverse.condition(x))
    assert (draw.z - z).abs().max() < 1e-14
    expected = q0.log_prob(z0) + rest.log_prob(rho0) - reverse.log_prob(rho)
    assert (draw.log_q - expected).abs().max() < 1e-12
    assert draw.paths == ()


def test_tempering():
    """Factors multiply to sqrt(beta_0); the paper's schedule of inverse temperatures."""
    for kind in ("fixed", "free"):
        factors = Tempering(kind, 5, 0.3)()
        assert factors is not None
        assert factors.prod().item() == pytest.approx(0.3**0.5)
        assert ((factors > 0) & (factors < 1)).all()
    factors = Tempering("fixed", 2, 0.25)()
    # 1/sqrt(beta) = 2, 2 - 1/4, 1.
    assert factors is not None
    assert factors.tolist() == pytest.approx([1.75 / 2, 1 / 1.75])
    assert Tempering("none", 5, 0.3)() is None


# Exact answers --------------------------------------------------------------------------------------------


def moved(z: Tensor, encoder: HamiltonianEncoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (2,) and covariance (2, 2) of (z, rho) of a one-dimensional linear flow."""

    def flow(both: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in encoder.move(x, *both.view(2, 1, 1, 1))])

    q0 = encoder.start(x)
    start = torch.stack([q0.mean.flatten()[0], torch.zeros(())]).detach()
    jacobian = torch.autograd.functional.jacobian(flow, start)
    assert isinstance(jacobian, Tensor)
    spread = torch.diag(torch.stack([q0.variance.flatten()[0].detach(), torch.ones(())]))
    return flow(start).detach(), jacobian @ spread @ jacobian.T


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_exact_reverse_model_log_q_is_the_density(kind: str):
    """The energy is quadratic and the flow linear, so that (z, rho) is Gaussian and q(rho|z) known."""
    x = torch.tensor([[0.8]])
    q0 = AffineGaussian(torch.zeros(1, 1), torch.tensor([0.2]), torch.tensor([0.9]))
    encoder = HamiltonianEncoder(q0, scalar.model(), StepSizes(1, 0.3, 0.6), Tempering(kind, 4, 0.6), None, steps=4)
    mean, covariance = moved(torch.zeros(1), encoder, x)
    slope = covariance[0, 1] / covariance[0, 0]
    scale = (covariance[1, 1] - slope * covariance[0, 1]).sqrt()
    offset = mean[1] - slope * mean[0]
    encoder.reverse = AffineConditional(slope.view(1, 1), torch.zeros(1, 1), offset.view(1), scale.view(1))
    draw = encoder.draw(x, 50)
    marginal = DiagonalNormal(mean[:1], covariance[:1, 0].sqrt())
    assert (draw.log_q - marginal.log_prob(draw.z)).abs().max() < 1e-12
    # Control: another reverse model leaves a gap, upwards on average.
    encoder.reverse = None
    draw = encoder.draw(x, 50_000)
    assert Mean.of(draw.log_q - marginal.log_prob(draw.z)).errors_above(0) > 20


def test_the_steps_lead_towards_the_posterior():
    """From one start, the mean log weight rises with the number of steps, the reverse model being exact."""
    x = torch.tensor([[0.8]])
    values = []
    for steps in (1, 3, 6):
        q0 = AffineGaussian(torch.zeros(1, 1), torch.tensor([-0.6]), torch.tensor([0.5]))
        encoder = HamiltonianEncoder(
            q0, scalar.model(), StepSizes(1, 0.2, 0.6), Tempering("none", steps, 0.6), None, steps=steps
        )
        mean, covariance = moved(torch.zeros(1), encoder, x)
        gain, constant, variance = scalar.model().posterior()
        q = torch.distributions.Normal(mean[0], covariance[0, 0].sqrt())
        posterior = torch.distributions.Normal((gain * 0.8 + constant).squeeze(), variance.squeeze().sqrt())
        values.append(torch.distributions.kl_divergence(q, posterior).item())
    assert values[0] > values[1] > values[2]


def without_steps() -> list[Encoder]:
    q0 = gaussian().posterior
    none = Tempering("fixed", 0, 0.5)
    return [
        HamiltonianEncoder(q0, linear_gaussian(), StepSizes(2, 0.2, 0.5), none, None, steps=0),
        LangevinEncoder(q0, linear_gaussian(), StepSizes(2, 0.2, 0.5), steps=0),
    ]


def test_without_steps_it_is_the_gaussian_encoder():
    x = torch.randn(6, 3)
    for encoder in without_steps():
        torch.manual_seed(4)
        draw = encoder.draw(x, 3)
        torch.manual_seed(4)
        reference = gaussian().draw(x, 3)
        assert (draw.z - reference.z).abs().max() < 1e-14
        assert (draw.log_q - reference.log_q).abs().max() < 1e-12


# The constant decoder -------------------------------------------------------------------------------------


def constant_hvae(dim: int) -> HamiltonianEncoder:
    """Return a tempered encoder in ``dim`` dimensions that follows a model whose decoder ignores z."""
    q0 = AffineGaussian(torch.zeros(dim, 3), torch.zeros(dim), torch.ones(dim))
    return HamiltonianEncoder(
        q0, constant_model(dim), StepSizes(dim, 0.1, 0.5), Tempering("fixed", 3, 0.3), None, steps=3
    )


def scored_at_the_end(encoder: HamiltonianEncoder, x: Tensor, k: int) -> Draw:
    """Make a public implementation's mistake: score the momentum after the steps, with a factor sqrt(beta_0)."""
    z0, log_q0 = encoder.start(x).rsample_and_log_prob((k,))
    z, rho = encoder.move(x, z0, torch.randn_like(z0))
    square = rho.square().sum(-1)
    return Draw(z, log_q0 - 0.5 * math.sqrt(0.3) * square + 0.5 * square)


@pytest.mark.parametrize("dim", [4, 16])
def test_the_constant_decoder_s_likelihood_is_found(dim: int):
    x = torch.tensor(PIXELS).expand(REPLICATES, 3)
    with torch.no_grad():
        weights = (evidence(constant_model(dim), constant_hvae(dim), x, 4).log_weights() - truth()).exp()
    mean = Mean.of(weights.mean(0))
    assert mean.stderr < 0.02
    assert abs(mean.errors_above(1)) < 4


@pytest.mark.parametrize(("dim", "published"), [(4, -0.73), (16, -2.9)])
def test_control_the_momentum_scored_at_its_end_is_caught(dim: int, published: float):
    """log p(x) comes out about as far off as was measured on that implementation, pessimistically."""
    x = torch.tensor(PIXELS).expand(REPLICATES, 3)
    with torch.no_grad():
        draw = scored_at_the_end(constant_hvae(dim), x, 10)
        log_w = weigh(constant_model(dim), x, draw).log_weights() - truth()
    assert abs(Mean.of(log_w.exp().mean(0)).errors_above(1)) > 100
    error = math.log(log_w.exp().mean().item())
    assert error == pytest.approx(published, rel=0.2)


# Langevin -------------------------------------------------------------------------------------------------


def log_q_of_path(path: list[Tensor], encoder: LangevinEncoder, x: Tensor, q0: DiagonalNormal) -> Tensor:
    """Score a path z_0..z_T by the definition: Gaussian kernels forward and backward."""
    step_size = encoder.step_sizes().detach()
    model = linear_gaussian()

    def kernel(at: Tensor, step: int) -> DiagonalNormal:
        at = at.detach().requires_grad_()
        share = step / encoder.steps
        log_joint = sum(model.log_joint(x, at), torch.zeros(()))
        log_gamma = (1 - share) * q0.log_prob(at) + share * log_joint
        (slope,) = torch.autograd.grad(log_gamma.sum(), at)
        return DiagonalNormal(at.detach() + step_size.square() / 2 * slope, step_size)

    log_q = q0.log_prob(path[0])
    for step in range(1, len(path)):
        before, after = path[step - 1], path[step]
        log_q = log_q + kernel(before, step).log_prob(after) - kernel(after, step).log_prob(before)
    return log_q


def test_langevin_log_q_by_hand(monkeypatch: pytest.MonkeyPatch):
    encoder, x = langevin(), torch.randn(5, 3)
    path: list[Tensor] = []
    slopes = encoder._slopes

    def noted(context: object, z: Tensor) -> tuple[Tensor, Tensor]:
        path.append(z.detach())
        return slopes(context, z)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(encoder, "_slopes", noted)
    draw = encoder.draw(x, 4)
    assert len(path) == encoder.steps + 1
    assert torch.equal(path[-1], draw.z)
    expected = log_q_of_path(path, encoder, x, encoder.start(x))
    assert (draw.log_q - expected).abs().max() < 1e-11


def test_control_without_the_backward_kernels_the_weights_are_biased():
    """log q0(z_0) alone, as if the steps had changed nothing; and a kernel that is its own reverse."""
    x, model = one_image(REPLICATES), linear_gaussian()
    for encoder in (langevin(), hamiltonian()):
        torch.manual_seed(5)
        with torch.no_grad():
            draw = encoder.draw(x, 1)
        torch.manual_seed(5)
        q0 = gaussian().draw(x, 1)
        log_joint = model.log_joint(x, draw.z)
        with torch.no_grad():
            log_w = log_joint.log_likelihood + log_joint.log_prior - q0.log_q
        assert abs(Mean.of((log_w - model.log_evidence(x)).exp()).errors_above(1)) > 5


# Gradients ------------------------------------------------------------------------------------------------

MAKERS = {
    "hvi": lambda: hamiltonian("none"),
    "hvae-fixed": lambda: hamiltonian("fixed", False),
    "hvae-free": lambda: hamiltonian("free"),
    "langevin": langevin,
}


def mean_bound(model: GenerativeModel, encoder: Encoder, x: Tensor) -> Tensor:
    with noise.keyed(6, torch.arange(len(x))):
        return bounds.iwae(evidence(model, encoder, x, 3).log_weights()).mean()


@pytest.mark.parametrize("make", MAKERS)
def test_the_gradient_is_the_derivative_of_the_value(make: str):
    """By central differences in every parameter, the model's among them: it reaches z through the steps as well."""
    encoder, x = MAKERS[make](), torch.randn(4, 3)
    assert isinstance(encoder, HamiltonianEncoder | LangevinEncoder)
    (model,) = encoder._model
    parameters = [*encoder.parameters(), *model.parameters()]
    gradients = torch.autograd.grad(mean_bound(model, encoder, x), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat = parameter.data.view(-1)
        index = int(gradient.abs().argmax())
        kept, ends = flat[index].item(), []
        for shift in (1e-5, -1e-5):
            flat[index] = kept + shift
            ends.append(mean_bound(model, encoder, x).item())
        flat[index] = kept
        assert gradient.view(-1)[index].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("make", MAKERS)
def test_evaluation_without_gradients_gives_the_same_numbers(make: str):
    encoder, x = MAKERS[make](), torch.randn(4, 3)
    model = linear_gaussian()
    with torch.no_grad():
        quiet = mean_bound(model, encoder, x)
    assert not quiet.requires_grad
    assert (quiet - mean_bound(model, encoder, x)).abs() < 1e-13


def test_a_frozen_encoder_still_follows_the_model():
    encoder = langevin().requires_grad_(False)
    (model,) = encoder._model
    mean_bound(model, encoder, torch.randn(4, 3)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# The model is followed, not owned -------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_the_model_is_no_part_of_the_encoder(make: str):
    encoder = MAKERS[make]()
    assert isinstance(encoder, HamiltonianEncoder | LangevinEncoder)
    (model,) = encoder._model
    theirs = {id(parameter) for parameter in model.parameters()}
    assert not theirs & {id(parameter) for parameter in encoder.parameters()}
    assert not any("model" in key or "decoder" in key for key in encoder.state_dict())
    # An averaged copy of both follows the copy of the model.
    both = copy.deepcopy(nn.ModuleDict({"model": model, "encoder": encoder}))
    copied = both["encoder"]
    assert isinstance(copied, HamiltonianEncoder | LangevinEncoder)
    assert copied._model[0] is both["model"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["encoder=hvae", "encoder.tempering=fixd"], "did you mean 'fixed'"),
        (["encoder=hvae", "encoder.tempering=free", "encoder.initial_beta=1.5"], "initial_beta"),
        (["encoder=hvae", "encoder.step_size=0.7"], "max_step_size"),
        (["encoder=langevin", "encoder.step_size=0.7"], "max_step_size"),
        (["encoder=hvae", "objective.gradient=stl"], "start of the leapfrog steps"),
        (["encoder=langevin", "objective=iwae", "objective.gradient=dreg"], "that of a path"),
    ],
)
def test_settings_that_make_no_sense_are_refused(overrides: list[str], words: str, default_data_dir: Path):
    torch.set_default_dtype(torch.float32)
    fast = ["encoder.hidden=[4]", "decoder.hidden=[4]", "latent_dim=2", "device=cpu", f"data_dir={default_data_dir}"]
    with pytest.raises(UserError, match=words):
        vaebench.build([*overrides, *fast])
