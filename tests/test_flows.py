"""Flows: exact log-determinants, inverses, densities and scores, one pass per draw, and gradients by path."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal
from torch.nn import functional as F
from toys import Mean, X, linear_gaussian

from vaebench import bounds
from vaebench.distributions import DiagonalNormal, FullNormal
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder
from vaebench.encoders.flow import FlowEncoder, FlowPosterior
from vaebench.encoders.full_gaussian import FullGaussianEncoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.flows.flow import Flow, FlowContext, StepParameters
from vaebench.flows.iaf import IAFFlow
from vaebench.flows.masked import MaskedNetwork
from vaebench.flows.planar import invertible_direction
from vaebench.flows.spline import RationalQuadraticSpline, settings_count
from vaebench.flows.sylvester import SylvesterFlow
from vaebench.gradients import GradientEstimator
from vaebench.nets.networks import Networks
from vaebench.objective import Objective
from vaebench.registry import FLOWS

FEATURES = 5
NETWORK = {"width": 12, "depth": 2}
SYLVESTER = {"rank": 2, "reflections": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "planar": {},
    "radial": {},
    "householder": {},
    "sylvester-orthogonal": {**SYLVESTER, "variant": "orthogonal"},
    "sylvester-householder": {**SYLVESTER, "variant": "householder"},
    "sylvester-triangular": {**SYLVESTER, "variant": "triangular"},
    "realnvp": NETWORK,
    "iaf": NETWORK,
    "nsf": {**NETWORK, "bins": 4, "bound": 3.0},
}
NAMES = list(SETTINGS)
NETWORKS = ["realnvp", "iaf", "nsf"]

float64 = pytest.mark.usefixtures("float64")


def step(name: str, dim: int, index: int = 0) -> Flow:
    """Make one step as an encoder does."""
    return FLOWS[name.partition("-")[0]](FlowContext(FEATURES, dim, index, "tanh"), **SETTINGS[name])


def rough(module: nn.Module, size: float = 0.4) -> nn.Module:
    """Move all parameters far from where they start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module


def posterior(name: str, dim: int, steps: int = 3, batch: int = 2, size: float = 0.4) -> FlowPosterior:
    """Return q(z|x) of rough steps for a few images."""
    chain = tuple(rough(step(name, dim, index), size) for index in range(steps))
    features = torch.randn(batch, FEATURES)
    base = DiagonalNormal(0.3 * torch.randn(batch, dim), 0.6 + 0.4 * torch.rand(batch, dim))
    return FlowPosterior(base, chain, tuple(flow.condition(features) for flow in chain))  # pyright: ignore


def encoder(name: str, latent_dim: int = 2, steps: int = 2, x_dim: int = X) -> Encoder:
    """Build an encoder as an experiment does."""
    context = BuildContext(Networks("mlp", [6], "tanh"), x_dim, latent_dim, linear_gaussian())
    if name == "full_gaussian":
        return FullGaussianEncoder.build(context)
    return FlowEncoder.build(context, step=FLOWS[name.partition("-")[0]], steps=steps, **SETTINGS[name])


DIMS = [(name, dim) for name in NAMES for dim in (1, 2, 5) if dim > 1 or name not in ("realnvp", "nsf")]

# Log-determinants and inverses -----------------------------------------------------------------------------


def blocks(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return the Jacobian of each draw, (K, B, D, D), having checked that draws and images do not mix."""
    whole = jacobian(function, z)
    assert isinstance(whole, Tensor)
    k, b, d = z.shape
    whole = whole.reshape(k * b, d, k * b, d).transpose(1, 2)
    own = torch.eye(k * b, dtype=torch.bool)
    assert not whole[~own].any()
    return whole[own].reshape(k, b, d, d)


@float64
@pytest.mark.parametrize(("name", "dim"), DIMS)
def test_log_det_is_that_of_the_jacobian(name: str, dim: int):
    for index in (0, 1):
        flow = rough(step(name, dim, index))
        assert isinstance(flow, Flow)
        conditioned = flow.condition(torch.randn(2, FEATURES))
        z = 1.5 * torch.randn(3, 2, dim)
        exact = torch.linalg.slogdet(blocks(lambda v, f=flow, c=conditioned: f(v, c).z, z)).logabsdet
        found = flow(z, conditioned).log_det
        assert found.shape == (3, 2)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10)
        if name != "householder":
            assert (found + exact).abs().max() > 0.05  # a sign error would show


@float64
@pytest.mark.parametrize(("name", "dim"), DIMS)
def test_inverse_goes_back(name: str, dim: int):
    for index in (0, 1):
        flow = rough(step(name, dim, index))
        assert isinstance(flow, Flow)
        conditioned = flow.condition(torch.randn(2, FEATURES))
        z = 2 * torch.randn(6, 2, dim)
        there = flow(z, conditioned).z
        assert (there - z).abs().max() > 0.05
        torch.testing.assert_close(flow.inverse(there, conditioned), z, rtol=1e-8, atol=1e-8)


@float64
@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one(name: str):
    # Rougher networks are too spiky, or too wide, for the grid.
    q = posterior(name, 2, batch=1, size={"nsf": 0.15, "realnvp": 0.25}.get(name, 0.4))
    line, pitch = torch.linspace(-9, 9, 181), 0.1
    grid = torch.cartesian_prod(line, line).unsqueeze(1)
    assert (q.log_prob(grid).exp().sum() * pitch**2).item() == pytest.approx(1, abs=2e-3)
    draws, log_q = q.rsample_and_log_prob((50,))
    torch.testing.assert_close(q.log_prob(draws), log_q, rtol=1e-8, atol=1e-8)
    if name != "householder":
        base = FlowPosterior(q.base, (), ())
        start = draws
        for flow, conditioned in zip(reversed(q.steps), reversed(q.conditioned), strict=True):
            start = flow.inverse(start, conditioned)
        wrong = 2 * base.log_prob(start) - log_q  # the log-determinant with its sign turned
        assert abs((wrong - log_q).exp().mean().item() - 1) > 0.02


@float64
def test_full_gaussian_is_the_multivariate_normal():
    found = rough(encoder("full_gaussian", 4))
    assert isinstance(found, FullGaussianEncoder)
    q = found.encode(torch.randn(3, X))
    tril = q.diagonal.scale.unsqueeze(-1) * (torch.eye(4) + q.lower)
    exact = MultivariateNormal(q.diagonal.mean, scale_tril=tril)
    assert (q.lower.abs().amax((1, 2)) > 0.1).all()
    draws, log_q = q.rsample_and_log_prob((200_000,))
    torch.testing.assert_close(log_q, exact.log_prob(draws), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(q.log_prob(draws), log_q, rtol=1e-9, atol=1e-9)
    centred = draws[:, 0] - q.diagonal.mean[0]
    torch.testing.assert_close(centred.T @ centred / len(draws), exact.covariance_matrix[0], rtol=0.03, atol=0.02)


# Families --------------------------------------------------------------------------------------------------


@float64
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1000.0])
def test_planar_is_always_invertible(scale: float):
    u, w = scale * torch.randn(1000, 4), scale * torch.randn(1000, 4)
    direction, slope = invertible_direction(u, w)
    assert (slope > -1).all()
    product = (w * direction).sum(-1)
    torch.testing.assert_close(product, slope.squeeze(-1), rtol=1e-6, atol=1e-6 * scale**2)
    # Along w the step moves a to a + w.u tanh(a + b): it must never turn back.
    a = torch.linspace(-4, 4, 401).unsqueeze(-1)
    assert ((a + slope.squeeze(-1) * torch.tanh(a)).diff(dim=0) > 0).all()
    # Control: u as it is.
    if scale >= 1:
        raw = (w * u).sum(-1)
        assert (raw <= -1).float().mean() > 0.2
        assert ((a + raw * torch.tanh(a)).diff(dim=0) < 0).any(0).float().mean() > 0.2


@float64
def test_control_planar_constrained_by_the_norm_itself_is_not_invertible():
    """Dividing by ||w|| in place of its square, an error of several published codes."""
    u, w = 10 * torch.randn(1000, 4), 0.2 * torch.randn(1000, 4)
    direction, slope = invertible_direction(u, w)
    halfway = u + (direction - u) * w.norm(dim=-1, keepdim=True)
    assert ((w * direction).sum(-1) > -1).all()
    assert ((w * halfway).sum(-1) <= -1).float().mean() > 0.2
    assert slope.shape == (1000, 1)


@float64
def test_planar_without_a_direction_is_the_identity():
    direction, slope = invertible_direction(torch.zeros(1, 3), torch.randn(1, 3))
    assert direction.abs().max() < 1e-15
    assert slope.abs().max() < 1e-15
    direction, slope = invertible_direction(torch.randn(1, 3), torch.zeros(1, 3))
    assert direction.isfinite().all()
    assert slope.abs().max() < 1e-15


@float64
@pytest.mark.parametrize("variant", ["orthogonal", "householder", "triangular"])
def test_sylvester_bases_are_orthonormal(variant: str):
    for index in (0, 1):
        flow = rough(step(f"sylvester-{variant}", 5, index))
        assert isinstance(flow, SylvesterFlow)
        basis = flow.condition(torch.randn(3, FEATURES))[0]
        rank = 2 if variant == "orthogonal" else 5
        assert basis.shape == (3, 5, rank)
        torch.testing.assert_close(basis.mT @ basis, torch.eye(rank).expand(3, -1, -1), rtol=0, atol=1e-12)


@float64
@pytest.mark.parametrize("dim", [1, 2, 5, 20])
@pytest.mark.parametrize("backward", [False, True])
def test_masks_let_by_every_earlier_coordinate_and_no_other(dim: int, backward: bool):
    network = MaskedNetwork(
        FEATURES, dim, 2, hidden=[12, 12], activation="tanh", backward=backward, bias=torch.zeros(2)
    )
    rough(network)
    first = network.condition(torch.randn(1, FEATURES))
    reach = blocks(lambda z: network(z, first).sum(-2), torch.randn(1, 1, dim)).squeeze((0, 1)) != 0
    # 20 coordinates and 12 hidden units: each output still sees the first of the earlier ones, and no later one.
    allowed = torch.ones(dim, dim).triu(1) if backward else torch.ones(dim, dim).tril(-1)
    assert not reach[allowed == 0].any()
    if dim <= 12:
        assert reach[allowed == 1].all()


@float64
@pytest.mark.parametrize("name", ["iaf", "realnvp", "nsf"])
def test_steps_take_the_coordinates_by_turns(name: str):
    """Each coordinate of a chain of two steps depends on every other one; of one step, it does not."""
    chain = [rough(step(name, 4, index)) for index in (0, 1)]
    conditioned = [flow.condition(torch.randn(1, FEATURES)) for flow in chain]  # pyright: ignore
    z = torch.randn(1, 1, 4)
    first, second = (blocks(lambda v, f=f, c=c: f(v, c).z, z)[0, 0] for f, c in zip(chain, conditioned, strict=True))
    assert not first.triu(1).any()
    assert not second.tril(-1).any()
    assert first.tril(-1).any()
    assert second.triu(1).any()


@float64
def test_spline_is_the_identity_outside_and_joins_it():
    settings = 2 * torch.randn(settings_count(5), 1)

    def curve(x: Tensor, size: float = 1.0) -> tuple[Tensor, Tensor]:
        table = (size * settings).expand(len(x), -1, -1)
        return RationalQuadraticSpline(table, 5, 3.0).forward(x)

    outside = torch.tensor([[-40.0], [-3.0], [3.0], [1e30]])
    value, log_slope = curve(outside)
    assert torch.equal(value, outside)
    assert log_slope.abs().max() == 0
    value, log_slope = curve(torch.tensor([[-3 + 1e-9], [3 - 1e-9]]))
    torch.testing.assert_close(value.abs(), torch.full((2, 1), 3.0), rtol=0, atol=1e-8)
    assert log_slope.abs().max() < 1e-4
    x = torch.linspace(-4, 4, 801).unsqueeze(-1)
    assert (curve(x)[0].diff(dim=0) > 0).all()
    straight = curve(x, 0.0)
    torch.testing.assert_close(straight[0], x)
    assert straight[1].abs().max() < 1e-12


@float64
@pytest.mark.parametrize("name", NAMES)
def test_the_image_matters(name: str):
    for index in (0, 1):
        flow = rough(step(name, 4, index))
        assert isinstance(flow, Flow)
        z = torch.randn(3, 1, 4)
        one, other = (flow(z, flow.condition(torch.randn(1, FEATURES))) for _ in range(2))
        assert (one.z - other.z).abs().max() > 0.01
        if name != "householder":
            assert (one.log_det - other.log_det).abs().max() > 0.01


@pytest.mark.parametrize("name", ["realnvp", "nsf"])
def test_coupling_needs_two_halves(name: str):
    with pytest.raises(ValueError, match=r"^latent_dim must be >= 2 for coupling flows, got 1$"):
        step(name, 1)


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="did you mean 'householder'"):
        FLOWS["sylvester"](FlowContext(3, 3, 0, "tanh"), variant="housholder", rank=2, reflections=2)
    with pytest.raises(ValueError, match=r"^bins must be >= 2 and <= 100, got 1$"):
        FLOWS["nsf"](FlowContext(3, 3, 0, "tanh"), width=4, depth=1, bins=1, bound=3.0)


# Encoders --------------------------------------------------------------------------------------------------


def seeded(make: Callable[[], Encoder], path_only: bool = False) -> tuple[Encoder, Tensor, Tensor]:
    """Build and draw from one seed."""
    torch.manual_seed(3)
    made = make()
    draw = made.draw(torch.linspace(0, 1, 4 * X).view(4, X), 5, path_only=path_only)
    return made, draw.z, draw.log_q


@pytest.mark.parametrize("name", NAMES)
def test_zero_steps_is_the_gaussian_encoder(name: str):
    context = BuildContext(Networks("mlp", [6], "tanh"), X, 2, linear_gaussian())
    gaussian, z, log_q = seeded(lambda: GaussianEncoder.build(context))
    flow, flow_z, flow_log_q = seeded(lambda: encoder(name, steps=0))
    assert torch.equal(z, flow_z)
    assert torch.equal(log_q, flow_log_q)
    weights = gaussian.state_dict()
    assert flow.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in flow.state_dict().items())
    # Also by path: the gradients, which are those of a frozen density.
    gaussian, _, log_q = seeded(lambda: GaussianEncoder.build(context), path_only=True)
    flow, _, flow_log_q = seeded(lambda: encoder(name, steps=0), path_only=True)
    torch.testing.assert_close(flow_log_q, log_q)
    for one in (log_q, flow_log_q):
        one.sum().backward()
    for ours, theirs in zip(flow.parameters(), gaussian.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    # Control: with steps the numbers differ.
    assert not torch.equal(seeded(lambda: encoder(name, steps=2))[1], z)


@pytest.mark.parametrize("name", [*NAMES, "full_gaussian"])
def test_training_starts_about_at_the_gaussian(name: str):
    torch.manual_seed(3)
    made = encoder(name, latent_dim=8, steps=4)
    torch.manual_seed(3)
    gaussian = GaussianEncoder.build(BuildContext(Networks("mlp", [6], "tanh"), X, 8, linear_gaussian()))
    draws = []
    for one in (made, gaussian):
        torch.manual_seed(4)
        draws.append(one.draw(torch.rand(6, X), 20))
    # The inverse autoregressive step starts with its gates at 0.95, which is 0.05 nats for each coordinate.
    allowed = 1.8 if name == "iaf" else 0.2
    assert (draws[0].log_q - draws[1].log_q).abs().max() < allowed
    if name != "iaf":
        assert (draws[0].z - draws[1].z).abs().max() < 0.3


@pytest.mark.parametrize("name", [*NAMES, "full_gaussian"])
@pytest.mark.parametrize("gradient", [GradientEstimator.REPARAM, GradientEstimator.DREG])
def test_every_parameter_gets_a_gradient_from_the_start(name: str, gradient: GradientEstimator):
    made = encoder(name, steps=4)
    objective = Objective(bounds.iwae, gradient)
    objective(linear_gaussian(), made, torch.rand(8, X), 4)[0].sum().backward()
    for key, parameter in made.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


class Counter:
    """Counts a module's calls."""

    def __init__(self, module: nn.Module) -> None:
        self.calls = 0
        module.register_forward_hook(self._called)

    def _called(self, *_: object) -> None:
        self.calls += 1


@pytest.mark.parametrize("name", NETWORKS)
def test_a_draw_is_one_pass_and_an_image_is_read_once(name: str):
    made = encoder(name, latent_dim=7, steps=3)
    assert isinstance(made, FlowEncoder)
    trunk = Counter(made.posterior.trunk)
    passes = [Counter(module.network) for module in made.steps]  # pyright: ignore
    encoded = made.encode(torch.rand(4, X))
    assert [counter.calls for counter in passes] == [0, 0, 0]
    for _ in range(2):
        made.sample(encoded, 5)
    assert [counter.calls for counter in passes] == [2, 2, 2]
    assert trunk.calls == 1
    # Control: the inverse, which evaluation never needs, is the slow direction of the autoregressive one.
    encoded.log_prob(torch.randn(1, 4, 7))
    assert passes[0].calls == 2 + (8 if name == "iaf" else 2)


@pytest.mark.parametrize("name", [*NAMES, "full_gaussian"])
def test_under_autocast_densities_stay_in_float32(name: str):
    made = rough(encoder(name, latent_dim=8), 0.1)
    assert isinstance(made, Encoder)
    x = torch.rand(6, X)
    for path_only in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = made.encode(x)
            draw = made.sample(encoded, 5, path_only=path_only)
        assert draw.z.dtype == draw.log_q.dtype == torch.float32
        # The networks are rough under autocast; the density of what they did is not.
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z, log_q = encoded.rsample_and_log_prob((5,))
            again = encoded.log_prob(z)
        torch.testing.assert_close(again, log_q, rtol=0, atol=0.1 if name in NETWORKS else 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [3.0, 100.0])
def test_float32_survives_wild_weights(name: str, size: float):
    q = posterior(name, 6, size=size)
    z = torch.cat([torch.randn(4, 2, 6), 1e4 * torch.randn(4, 2, 6)]).requires_grad_()
    for flow, conditioned in zip(q.steps, q.conditioned, strict=True):
        moved, log_det = flow(z, conditioned)
        (gradient,) = torch.autograd.grad(log_det.sum() + moved.sum(), z)
        assert moved.isfinite().all()
        assert log_det.isfinite().all()
        assert gradient.isfinite().all()


# Gradients by path -----------------------------------------------------------------------------------------


@float64
@pytest.mark.parametrize(("name", "dim"), DIMS)
def test_score_is_pushed_forward_exactly(name: str, dim: int):
    """Against a dense solve with the autograd Jacobian."""
    for index in (0, 1):
        flow = rough(step(name, dim, index))
        assert isinstance(flow, Flow)
        conditioned: StepParameters = flow.condition(torch.randn(2, FEATURES))
        z, score = torch.randn(3, 2, dim), torch.randn(3, 2, dim)
        found = flow.push_score(z, conditioned, score)
        dense = blocks(lambda v, f=flow, c=conditioned: f(v, c).z, z).mT
        slope = jacobian(lambda v, f=flow, c=conditioned: f(v, c).log_det.sum(), z)
        assert isinstance(slope, Tensor)
        exact = torch.linalg.solve(dense, (score - slope).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-9)
        if name != "householder" and (name, dim) != ("iaf", 1):  # whose determinants do not depend on z
            without = torch.linalg.solve(dense, score.unsqueeze(-1)).squeeze(-1)
            assert (without - exact).abs().max() > 0.003


@float64
@pytest.mark.parametrize("name", [*NAMES, "full_gaussian"])
def test_path_gradient_is_the_score_of_the_density(name: str):
    """Against central differences of log q(z), which goes through the inverse of every step."""
    if name == "full_gaussian":
        made = rough(encoder(name, 3))
        assert isinstance(made, FullGaussianEncoder)
        q = made.encode(torch.randn(2, X)).detached()
    else:
        q = posterior(name, 3)
    z = torch.randn(4, 2, 3).requires_grad_()
    (found,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    width = 1e-5
    for i in range(3):
        shift = width * torch.eye(3)[i]
        with torch.no_grad():
            difference = (q.log_prob(z + shift) - q.log_prob(z - shift)) / (2 * width)
        torch.testing.assert_close(found[..., i], difference, rtol=1e-5, atol=1e-6)


@float64
@pytest.mark.parametrize("name", [*NAMES, "full_gaussian"])
def test_path_only_changes_the_gradient_and_not_the_value(name: str):
    made = rough(encoder(name))
    assert isinstance(made, Encoder)
    x = torch.randn(4, X)
    draws = []
    for path_only in (False, True):
        torch.manual_seed(5)
        draws.append(made.draw(x, 3, path_only=path_only))
    torch.testing.assert_close(draws[0].log_q, draws[1].log_q, rtol=1e-10, atol=1e-10)
    assert torch.equal(draws[0].z, draws[1].z)
    assert draws[1].paths[0] is draws[1].z
    # With z held in place, nothing of the sampler's parameters is left in log_q.
    own = torch.autograd.grad(draws[1].log_q.sum(), draws[1].z, retain_graph=True)[0]
    through_z = torch.autograd.grad(draws[1].z, list(made.parameters()), own, allow_unused=True, retain_graph=True)
    total = torch.autograd.grad(draws[1].log_q.sum(), list(made.parameters()), allow_unused=True)
    for part, whole in zip(through_z, total, strict=True):
        assert part is not None
        assert whole is not None
        torch.testing.assert_close(part, whole)


class Replicated(Encoder):
    """Any posterior over B independent replicates, whose parameters are leaves with a row for each replicate."""

    direction = Direction.EXACT

    def __init__(self, name: str, replicates: int) -> None:
        super().__init__()
        rows = {"mean": torch.randn(2) * 0.3, "scale": torch.tensor([0.8, 0.9]), "features": torch.randn(FEATURES)}
        if name == "full_gaussian":
            rows["features"] = torch.tensor([0.7])
        self.rows = nn.ParameterDict({key: value.repeat(replicates, 1) for key, value in rows.items()})
        size = {"nsf": 0.3, "iaf": 1.0}.get(name, 0.4)
        self.chain = [] if name == "full_gaussian" else [rough(step(name, 2, index), size) for index in (0, 1)]

    def encode(self, x: Tensor) -> FlowPosterior | FullNormal:
        del x
        base, features = DiagonalNormal(self.rows["mean"], self.rows["scale"]), self.rows["features"]
        if not self.chain:
            return FullNormal(base, F.pad(features.unsqueeze(-1), (0, 1, 1, 0)))
        return FlowPosterior(base, tuple(self.chain), tuple(flow.condition(features) for flow in self.chain))  # pyright: ignore

    def sample(
        self,
        encoded: FlowPosterior | FullNormal,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        family = FullGaussianEncoder if isinstance(encoded, FullNormal) else FlowEncoder
        return family.sample(self, encoded, k, path_only=path_only)  # pyright: ignore


def replicate_gradients(made: Replicated, gradient: GradientEstimator, bound: bounds.Bound) -> Tensor:
    """Return independent samples of the gradient in base and features, (replicates, numbers), from one seed."""
    torch.manual_seed(8)
    x = torch.tensor([0.9, 0.2, -0.4]).expand(len(made.rows["mean"]), X)
    value, _ = Objective(bound, gradient)(linear_gaussian(), made, x, 3)
    return torch.cat(torch.autograd.grad(value.sum(), list(made.rows.values())), -1)


def largest_error(difference: Tensor) -> float:
    """Return the largest mean of a column, in standard errors."""
    return max(abs(Mean.of(column).errors_above(0)) for column in difference.T)


@float64
@pytest.mark.parametrize("name", [*NAMES, "full_gaussian"])
def test_stl_and_dreg_agree_with_reparam(name: str):
    """The same noise on both sides, so that the differences' means are zero in every parameter."""
    made = Replicated(name, 8_000)
    for bound, by_path in ((bounds.elbo, GradientEstimator.STL), (bounds.iwae, GradientEstimator.DREG)):
        total = replicate_gradients(made, GradientEstimator.REPARAM, bound)
        difference = replicate_gradients(made, by_path, bound) - total
        assert difference.std(0).min() > 1e-3
        assert largest_error(difference) < 4.5
    # Control: without the rescaling the gradient of several samples is biased.
    assert largest_error(replicate_gradients(made, GradientEstimator.STL, bounds.iwae) - total) > 20


@float64
@pytest.mark.parametrize("name", ["planar", "radial", "sylvester-orthogonal", "realnvp", "nsf"])
def test_control_a_score_without_the_log_det_is_biased(name: str, monkeypatch: pytest.MonkeyPatch):
    made = Replicated(name, 8_000)
    truth = replicate_gradients(made, GradientEstimator.REPARAM, bounds.elbo)
    right = Flow.push_score

    def forgetful(self: Flow, z: Tensor, conditioned: StepParameters, score: Tensor) -> Tensor:
        return right(self, z, conditioned, score) - right(self, z, conditioned, torch.zeros_like(score))

    monkeypatch.setattr(Flow, "push_score", forgetful)
    assert largest_error(replicate_gradients(made, GradientEstimator.STL, bounds.elbo) - truth) > 8


def test_substitution_stops_when_it_has_settled():
    """A gentle autoregressive step takes few rounds, and never more than D."""
    flow = IAFFlow.build(FlowContext(FEATURES, 30, 0, "tanh"), width=32, depth=2)
    counter = Counter(flow.network)
    rounds = []
    original = torch.autograd.grad

    def counted(*arguments: object, **keywords: object) -> object:
        rounds.append(1)
        return original(*arguments, **keywords)  # pyright: ignore

    torch.autograd.grad = counted  # pyright: ignore
    try:
        flow.push_score(torch.randn(2, 2, 30), flow.condition(torch.randn(2, FEATURES)), torch.randn(2, 2, 30))
    finally:
        torch.autograd.grad = original
    assert counter.calls == 2
    assert len(rounds) < 10
    assert math.isfinite(sum(rounds))
