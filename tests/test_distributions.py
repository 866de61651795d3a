"""The library's distributions against torch's own, and against formulas where torch's are not exact enough."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Independent, MultivariateNormal, Normal, StudentT
from torch.nn import functional as F

from vaebench import distributions
from vaebench.distributions import Bernoulli, DiagonalNormal, FullNormal, FullStudentT, standard_normal

BOTH = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)], ids=str)


def normal_parameters(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 5, 50, dtype=dtype), torch.rand(50, dtype=dtype) + 0.3


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Return the gradients of a weighted sum of ``value``, so that no element can stand in for another."""
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view(value.shape)
    return list(torch.autograd.grad((weights * value).sum(), inputs, allow_unused=True, materialize_grads=True))


# Normal ---------------------------------------------------------------------------------------------------


@BOTH
def test_the_normals_density_is_torchs(dtype: torch.dtype, tolerance: float):
    mean, scale = (parameter.requires_grad_() for parameter in normal_parameters(dtype))
    value = torch.randn(4, 5, 50, dtype=dtype, requires_grad=True)
    ours = DiagonalNormal(mean, scale).log_prob(value)
    theirs = Independent(Normal(mean, scale), 1).log_prob(value)
    assert ours.shape == (4, 5)
    assert ours.dtype == dtype
    assert (ours - theirs).abs().max() < tolerance
    inputs = (mean, scale, value)
    for own, other in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        assert (own - other).abs().max() < 10 * tolerance


@BOTH
def test_drawing_and_scoring_at_once_is_drawing_then_scoring(dtype: torch.dtype, tolerance: float):
    """Also in the gradient: through the noise form and through the draw, the total derivative is one."""
    mean, scale = (parameter.requires_grad_() for parameter in normal_parameters(dtype))
    normal = DiagonalNormal(mean, scale)
    torch.manual_seed(1)
    draw, log_prob = normal.rsample_and_log_prob((3,))
    torch.manual_seed(1)
    again = normal.rsample((3,))
    assert draw.shape == (3, 4, 5, 50)
    assert torch.equal(draw, again)
    assert (log_prob - normal.log_prob(again)).abs().max() < tolerance
    own, other = (gradients(value, mean, scale) for value in (log_prob, normal.log_prob(again)))
    # The mean cancels from the density of a draw.
    assert own[0].abs().max() == 0
    assert other[0].abs().max() < 100 * tolerance
    assert (own[1] - other[1]).abs().max() < 100 * tolerance


def test_the_normals_draws_have_its_moments():
    mean, scale = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    normal = DiagonalNormal(mean, scale)
    draws = normal.sample((100_000,))
    assert not draws.requires_grad
    assert ((draws.mean(0) - mean).abs() < 4 * scale / 100_000**0.5).all()
    assert ((draws.std(0) / scale - 1).abs() < 4 / 200_000**0.5).all()
    assert torch.equal(normal.mean, mean)
    assert torch.equal(normal.variance, scale**2)


def test_draws_differentiate_through_mean_and_scale():
    mean, scale = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    draw = DiagonalNormal(mean, scale).rsample((5,))
    to_mean, to_scale = torch.autograd.grad(draw.sum(), (mean, scale))
    assert torch.equal(to_mean, torch.full((2,), 5.0))
    assert (to_scale - draw.detach().sum(0)).abs().max() < 1e-6


def test_expanding_keeps_the_density():
    normal = DiagonalNormal(torch.randn(3, 2), torch.ones(3, 2))
    wide = normal.expand(torch.Size([4, 3]))
    assert wide.batch_shape == (4, 3)
    assert wide.event_shape == (2,)
    value = torch.randn(4, 3, 2)
    assert torch.equal(wide.log_prob(value), normal.log_prob(value))


def test_the_standard_normal_follows_its_model_tensor():
    normal = standard_normal(3, torch.zeros((), dtype=torch.float64))
    value = torch.randn(7, 3, dtype=torch.float64)
    expected = -0.5 * value.square().sum(-1) - 1.5 * math.log(2 * math.pi)
    assert normal.sample().dtype == torch.float64
    assert (normal.log_prob(value) - expected).abs().max() < 1e-12
    assert standard_normal(3).sample().dtype == torch.float32


@pytest.mark.usefixtures("float64")
def test_the_full_normal_of_a_covariance_is_torchs():
    factor = torch.randn(4, 3, 3)
    mean, covariance = torch.randn(4, 3), factor @ factor.mT + 0.1 * torch.eye(3)
    ours, value = FullNormal.of_covariance(mean, covariance), torch.randn(5, 4, 3)
    assert torch.allclose(ours.log_prob(value), MultivariateNormal(mean, covariance).log_prob(value))
    covariance = covariance.clone()
    covariance[1] -= 100
    broken = FullNormal.of_covariance(mean, covariance).log_prob(value)
    assert broken.isnan().all(0).tolist() == [False, True, False, False], "not positive definite"
    standardised = ours.standardised(ours.sample((50_000,)))
    assert (standardised.mean(0).abs() < 4.5 / 50_000**0.5).all()
    assert torch.allclose(torch.stack([image.T.cov() for image in standardised.unbind(1)]), torch.eye(3), atol=0.03)


@pytest.mark.usefixtures("float64")
def test_students_t_is_torchs_in_one_dimension_and_integrates_to_one_in_two():
    one = FullStudentT(FullNormal.of_covariance(torch.tensor([[0.3]]), torch.tensor([[[0.49]]])))
    value = torch.linspace(-5, 5, 11).view(-1, 1, 1)
    assert torch.allclose(one.log_prob(value).squeeze(-1), StudentT(1.0, 0.3, 0.7).log_prob(value.view(-1)))
    two = FullStudentT(FullNormal.of_covariance(torch.tensor([[0.3, -0.2]]), torch.tensor([[[0.6, 0.3], [0.3, 0.5]]])))
    grid = torch.linspace(-200, 200, 4001)
    z = torch.cartesian_prod(grid, grid).unsqueeze(1)
    assert two.log_prob(z).exp().sum().item() * 0.1**2 == pytest.approx(1, abs=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_students_draws_have_its_radius(dim: int):
    """The mean of the squared standardised coordinates has the F distribution with D and D degrees of freedom."""
    factor = torch.randn(dim, dim)
    r = FullStudentT(FullNormal.of_covariance(torch.randn(1, dim), (factor @ factor.T + torch.eye(dim)).unsqueeze(0)))
    radius = r.standardised(r.sample((40_000,))).square().mean(-1)
    assert (radius < 1).double().mean().item() == pytest.approx(0.5, abs=4.5 * 0.5 / 200), "its median is 1"
    # F(D, D) is the odds of Beta(D/2, D/2), whose variance is known.
    share = radius / (1 + radius)
    assert share.var().item() == pytest.approx(1 / (4 * (dim + 1)), rel=0.05)


# Bernoulli ------------------------------------------------------------------------------------------------


@BOTH
def test_the_bernoullis_density_is_torchs(dtype: torch.dtype, tolerance: float):
    """Over the 784 pixels of an image, K samples of B images against one image each, as in training."""
    logits = (4 * torch.randn(3, 5, 784, dtype=dtype)).requires_grad_()
    pixels = torch.bernoulli(torch.full((5, 784), 0.3, dtype=dtype))
    ours = Bernoulli(logits).log_prob(pixels)
    theirs = Independent(TorchBernoulli(logits=logits), 1).log_prob(pixels)
    assert ours.shape == (3, 5)
    assert ours.dtype == dtype
    assert (ours - theirs).abs().max() < 5 * tolerance
    assert (gradients(ours, logits)[0] - gradients(theirs, logits)[0]).abs().max() < tolerance


def test_an_images_log_density_in_float32_is_that_of_float64():
    logits = 6 * torch.randn(200, 784, dtype=torch.float64)
    pixels = torch.bernoulli(logits.sigmoid())
    exact = Bernoulli(logits).log_prob(pixels)
    single = Bernoulli(logits.float()).log_prob(pixels.float())
    assert (single - exact).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confident_pixels_are_exact(dtype: torch.dtype):
    """A wrong pixel at logit 100 costs 100 nats, not a clamp's worth of them, and has a gradient of 1."""
    logits = torch.tensor([[100.0], [-100.0], [100.0], [-100.0], [17.0], [1e4]], dtype=dtype, requires_grad=True)
    pixels = torch.tensor([[0.0], [1.0], [1.0], [0.0], [0.0], [0.0]], dtype=dtype)
    log_prob = Bernoulli(logits).log_prob(pixels)
    expected = torch.tensor([-100.0, -100.0, 0.0, 0.0, -17 - math.log1p(math.exp(-17)), -1e4], dtype=dtype)
    assert (log_prob - expected).abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    assert (gradient.squeeze() - torch.tensor([-1.0, 1.0, 0.0, 0.0, -1.0, -1.0], dtype=dtype)).abs().max() < 1e-6
    # Control: probabilities and their clamped cross-entropy, in float32, saturate at 100 nats, here at 17.
    control = F.binary_cross_entropy(torch.tensor([17.0]).sigmoid(), torch.zeros(1), reduction="sum")
    assert control > 17.1 or dtype == torch.float64


def test_grey_pixels_give_the_cross_entropy():
    logits, grey = torch.randn(6, 20, dtype=torch.float64), torch.rand(6, 20, dtype=torch.float64)
    expected = -F.binary_cross_entropy_with_logits(logits, grey, reduction="none").sum(-1)
    assert (Bernoulli(logits).log_prob(grey) - expected).abs().max() < 1e-12


def test_first_and_second_derivatives_of_the_bernoulli():
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    value = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)

    def log_prob(logits: Tensor, value: Tensor) -> Tensor:
        return Bernoulli(logits).log_prob(value)

    assert torch.autograd.gradcheck(log_prob, (logits, value))
    assert torch.autograd.gradgradcheck(log_prob, (logits, value))


def test_the_second_derivative_by_formula():
    """d2/dl2 of log p is -sigmoid(l) sigmoid(-l)."""
    logits = torch.linspace(-8, 8, 9, dtype=torch.float64, requires_grad=True)
    log_prob = Bernoulli(logits.unsqueeze(-1)).log_prob(torch.ones(9, 1, dtype=torch.float64))
    (first,) = torch.autograd.grad(log_prob.sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), logits)
    assert (second + logits.sigmoid() * (-logits).sigmoid()).abs().max() < 1e-14


@pytest.mark.parametrize("shared", [(7,), (1, 7), (1, 5, 7)])
def test_logits_shared_by_images_collect_every_gradient(shared: tuple[int, ...]):
    pixels = torch.bernoulli(torch.full((3, 5, 7), 0.5, dtype=torch.float64))
    logits = torch.randn(shared, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(Bernoulli(logits).log_prob(pixels).sum(), logits)[0]
    expected = torch.autograd.grad(Bernoulli(logits.expand(3, 5, 7)).log_prob(pixels).sum(), logits)[0]
    assert found.shape == shared
    assert (found - expected).abs().max() < 1e-12


def test_the_bernoullis_draws_have_its_mean():
    logits = torch.tensor([-2.0, 0.0, 3.0])
    bernoulli = Bernoulli(logits)
    draws = bernoulli.sample((50_000,))
    assert draws.shape == (50_000, 3)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    spread = (bernoulli.mean * (1 - bernoulli.mean) / 50_000).sqrt()
    assert ((draws.mean(0) - logits.sigmoid()).abs() < 4 * spread).all()


# Precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stops_at_the_networks(dtype: torch.dtype):
    """Densities of half-precision outputs are computed and summed in float32."""
    logits, pixels = (4 * torch.randn(2, 784)).to(dtype), torch.ones(2, 784)
    log_prob = Bernoulli(logits).log_prob(pixels.to(dtype))
    assert log_prob.dtype == torch.float32
    assert (log_prob - Bernoulli(logits.double()).log_prob(pixels.double())).abs().max() < 1e-3
    mean, scale = torch.randn(2, 50).to(dtype), torch.rand(2, 50).add(0.5).to(dtype)
    normal = DiagonalNormal(mean, scale)
    draw, density = normal.rsample_and_log_prob()
    assert draw.dtype == density.dtype == normal.log_prob(draw).dtype == torch.float32
    exact = DiagonalNormal(mean.double(), scale.double()).log_prob(draw.double())
    assert (normal.log_prob(draw) - exact).abs().max() < 1e-3
    # Control: the sum of 784 terms in bfloat16 is off by far more.
    if dtype == torch.bfloat16:
        terms = -F.binary_cross_entropy_with_logits(logits, pixels.to(dtype), reduction="none")
        assert (terms.sum(-1).double() - log_prob.double()).abs().max() > 1e-2


def test_autocast_does_not_reach_into_densities():
    logits, pixels, value = torch.randn(3, 784), torch.ones(3, 784), torch.randn(3, 784)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Bernoulli(logits).log_prob(pixels), standard_normal(784).log_prob(value)
    outside = Bernoulli(logits).log_prob(pixels), standard_normal(784).log_prob(value)
    for ours, expected in zip(inside, outside, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("pixels", [784, 5, 6, 1])
@pytest.mark.parametrize("shape", [(7, 3), (1, 3), (7, 1), (21,)])
def test_bernoulli_in_blocks_is_the_same_number(
    pixels: int, shape: tuple[int, ...], float64: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(distributions, "_BLOCK", 2 * shape[-1] * pixels)
    logits = (10 * torch.randn(*shape, pixels)).requires_grad_()
    for lead in ((), shape[-1:], shape, (2, *shape)):
        x = torch.rand(*lead, pixels)
        found = Bernoulli(logits).log_prob(x)
        # Not torch's softplus, which is off by 2e-9 beyond 20.
        wanted = (x * logits - logits.clamp(min=0) - logits.abs().neg().exp().log1p()).sum(-1)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        if found.shape == shape:
            weights = torch.randn(shape)
            (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
            (exact,) = torch.autograd.grad((wanted * weights).sum(), logits)
            torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lead", [(), (5,), (3, 5), (2, 3, 5)])
@BOTH
def test_the_fused_bernoulli_of_gpus_is_the_same_number(dtype: torch.dtype, tolerance: float, lead: tuple[int, ...]):
    logits = 30 * torch.randn(3, 5, 784, dtype=dtype)
    x = torch.bernoulli(torch.full((*lead, 784), 0.3, dtype=dtype))
    fused = distributions._fused_bernoulli_log_prob(logits, x)
    torch.testing.assert_close(fused, Bernoulli(logits).log_prob(x), rtol=tolerance, atol=784 * tolerance)


@pytest.mark.parametrize(("device", "fused"), [("cpu", 0), ("meta", 1)])
def test_the_device_decides_which_bernoulli(device: str, fused: int, monkeypatch: pytest.MonkeyPatch):
    calls, plain = [], F.binary_cross_entropy_with_logits
    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", lambda *a, **k: calls.append(a) or plain(*a, **k))
    logits, x = (torch.zeros(shape, device=device) for shape in ((3, 5, 7), (5, 7)))
    assert Bernoulli(logits.requires_grad_()).log_prob(x).shape == (3, 5)
    assert len(calls) == fused


def test_bernoulli_bears_certain_pixels_in_every_precision():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        logits = torch.tensor([[1e4, -1e4, 90.0, -90.0, 0.0, 200.0, -200.0, 1e4]], dtype=dtype)
        x = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]])
        found = Bernoulli(logits).log_prob(x)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.double(), -logits[:, -1].double() - math.log(2), rtol=1e-6, atol=0)
