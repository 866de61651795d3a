"""Densities of flow encoders against zuko's transformations with the same parameters.

zuko computes the density from its own inverse and log-determinant; only the conditioning networks are ours.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from vaebench.distributions import DiagonalNormal
from vaebench.encoders.flow import FlowPosterior
from vaebench.flows.flow import Flow, FlowContext, StepParameters
from vaebench.flows.iaf import IAFFlow
from vaebench.flows.nsf import SplineFlow
from vaebench.flows.realnvp import RealNVPFlow
from vaebench.flows.spline import RationalQuadraticSpline, _slope

pytestmark = pytest.mark.usefixtures("float64")

DRAWS, IMAGES, DIM, FEATURES = 5, 4, 5, 3
STEPS = 3
SLOPE = 1e-12
"""zuko's smallest slope: its parameters are soft limits, and this one is far from ours."""


@contextmanager
def loaded() -> Iterator[ModuleType]:
    """Import zuko; undo its changes to torch.distributions after the block."""
    changed = ("_validate_args", "arg_constraints")
    before = {name: vars(Distribution)[name] for name in changed}
    try:
        import zuko
        import zuko.distributions
        import zuko.transforms

        # A second import does not make the changes again, and zuko needs them.
        Distribution._validate_args = False
        Distribution.arg_constraints = {}  # pyright: ignore[reportAttributeAccessIssue]
        yield zuko
    finally:
        for name, value in before.items():
            setattr(Distribution, name, value)


@pytest.fixture
def zuko() -> Iterator[ModuleType]:
    with loaded() as module:
        yield module


def test_zuko_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Distribution, "_validate_args", True)
    with loaded():
        Normal(0.0, -1.0)
    with pytest.raises(ValueError, match="scale"):
        Normal(0.0, -1.0)


def unlimited(value: Tensor, limit: Tensor) -> Tensor:
    """Return the parameter that zuko's soft limit v / (1 + |v / limit|) maps to ``value``."""
    return value / (1 - (value / limit).abs())


LIMIT = torch.tensor(SLOPE, dtype=torch.float64).log().abs()


def affine(zuko: ModuleType, shift: Tensor, log_scale: Tensor) -> torch.distributions.Transform:
    return summed(zuko, zuko.transforms.MonotonicAffineTransform(shift, unlimited(log_scale, LIMIT), slope=SLOPE))


def summed(zuko: ModuleType, transform: torch.distributions.Transform) -> torch.distributions.Transform:
    """Return the transformation with its log-determinant summed over coordinates."""
    return zuko.transforms.DependentTransform(transform, 1)


def iaf(zuko: ModuleType, step: IAFFlow, conditioned: StepParameters) -> torch.distributions.Transform:
    def meta(z: Tensor) -> torch.distributions.Transform:
        gate, target = step._gate_and_target(z, conditioned)
        return affine(zuko, (1 - gate) * target, gate.log())

    return zuko.transforms.AutoregressiveTransform(meta, passes=DIM)


def realnvp(zuko: ModuleType, step: RealNVPFlow, conditioned: StepParameters) -> torch.distributions.Transform:
    def meta(kept: Tensor) -> torch.distributions.Transform:
        log_scale, shift = step._bounded(step._settings(kept, conditioned))
        return affine(zuko, shift, log_scale)

    return zuko.transforms.CouplingTransform(meta, kept_coordinates(step))


def spline(zuko: ModuleType, step: SplineFlow, conditioned: StepParameters) -> torch.distributions.Transform:
    def meta(kept: Tensor) -> torch.distributions.Transform:
        ours = RationalQuadraticSpline(step._settings(kept, conditioned), step.bins, step.bound)
        widths, heights = (knots.diff(dim=-2).mT / (2 * step.bound) for knots in (ours.across, ours.up))
        slopes = _slope(ours.raw_slopes[..., 1:-1, :]).mT
        limited = (
            unlimited(widths.log(), LIMIT / 2),
            unlimited(heights.log(), LIMIT / 2),
            unlimited(slopes.log(), LIMIT),
        )
        return summed(zuko, zuko.transforms.MonotonicRQSTransform(*limited, bound=step.bound, slope=SLOPE))

    return zuko.transforms.CouplingTransform(meta, kept_coordinates(step))


def kept_coordinates(step: RealNVPFlow | SplineFlow) -> Tensor:
    first = torch.arange(DIM) < step.cut
    return first if step.moves_second else ~first


FAMILIES: dict[str, tuple[Callable[[FlowContext], Flow], Callable[..., torch.distributions.Transform]]] = {
    "iaf": (lambda place: IAFFlow.build(place, width=8, depth=2), iaf),
    "realnvp": (lambda place: RealNVPFlow.build(place, width=8, depth=2), realnvp),
    "nsf": (lambda place: SplineFlow.build(place, width=8, depth=2, bins=6, bound=3.0), spline),
}


def posterior(make: Callable[[FlowContext], Flow]) -> FlowPosterior:
    """Return q(z|x) for random images, with steps far from their initial values."""
    steps = tuple(make(FlowContext(FEATURES, DIM, index, "tanh")) for index in range(STEPS))
    with torch.no_grad():
        for step in steps:
            for parameter in step.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    features = torch.randn(IMAGES, FEATURES)
    base = DiagonalNormal(0.3 * torch.randn(IMAGES, DIM), 0.5 + torch.rand(IMAGES, DIM))
    return FlowPosterior(base, steps, tuple(step.condition(features) for step in steps))


def zukos(zuko: ModuleType, q: FlowPosterior, translate: Callable[..., torch.distributions.Transform]) -> Distribution:
    """Return zuko's distribution with the parameters of ``q``."""
    forward = [translate(zuko, step, known) for step, known in zip(q.steps, q.conditioned, strict=True)]
    towards_base = zuko.transforms.ComposedTransform(*(step.inv for step in reversed(forward)))
    return zuko.distributions.NormalizingFlow(towards_base, zuko.distributions.DiagNormal(q.base.mean, q.base.stddev))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_density_is_that_of_zuko(family: str, zuko: ModuleType):
    make, translate = FAMILIES[family]
    q = posterior(make)
    reference = zukos(zuko, q, translate)
    z, log_q = q.rsample_and_log_prob((DRAWS,))
    assert torch.allclose(log_q, reference.log_prob(z), atol=1e-10)
    anywhere = 2 * torch.randn(DRAWS, IMAGES, DIM)
    assert torch.allclose(q.log_prob(anywhere), reference.log_prob(anywhere), atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_control_a_log_det_with_the_wrong_sign_is_not_that_of_zuko(
    family: str, zuko: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    make, translate = FAMILIES[family]
    q = posterior(make)
    reference, forward = zukos(zuko, q, translate), Flow.__call__

    def turned(self: Flow, z: Tensor, conditioned: StepParameters) -> object:
        moved = forward(self, z, conditioned)
        return moved._replace(log_det=-moved.log_det)

    monkeypatch.setattr(Flow, "__call__", turned)
    z, log_q = q.rsample_and_log_prob((DRAWS,))
    monkeypatch.undo()
    assert (log_q - reference.log_prob(z)).abs().max() > 0.1


@torch.no_grad()
def test_control_a_network_without_masks_is_not_that_of_zuko(zuko: ModuleType):
    """zuko inverts coordinate by coordinate: exact only if the network is autoregressive."""
    q = posterior(FAMILIES["iaf"][0])
    for name, mask in ((name, mask) for step in q.steps for name, mask in step.named_buffers()):
        assert name.endswith("mask")
        mask.fill_(1)
    z, log_q = q.rsample_and_log_prob((DRAWS,))
    assert (log_q - zukos(zuko, q, iaf).log_prob(z)).abs().max() > 1e-6
