"""Log-determinant and inverse of every flow, against autograd."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from vaebench.distributions import DiagonalNormal
from vaebench.encoders.flow import FlowEncoder, FlowPosterior
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.flows.flow import Flow, FlowContext, StepParameters
from vaebench.nets.dense import MLP, TrunkGaussian
from vaebench.selftest.oracles.families import FLOW_SETTINGS, flow_step
from vaebench.selftest.rows import CheckRow, differs, distance, exact
from vaebench.selftest.running import Bench

__all__ = ["check"]

FEATURES, DIM = 5, 4
DRAWS, IMAGES = 3, 2


def check(bench: Bench) -> Iterator[CheckRow]:
    """Compare log-determinants of steps with random parameters with autograd's Jacobian, nats."""
    for name in FLOW_SETTINGS:
        with bench.device:
            steps = [_rough(flow_step(name, FlowContext(FEATURES, DIM, index, "tanh"))) for index in (0, 1)]
            features, z = torch.randn(IMAGES, FEATURES), 1.5 * torch.randn(DRAWS, IMAGES, DIM)
            base = DiagonalNormal(0.3 * torch.randn(IMAGES, DIM), 0.6 + 0.4 * torch.rand(IMAGES, DIM))
        yield from _one_family(name, steps, features, z, base)
    yield from _no_steps(bench)


def _rough(step: Flow) -> Flow:
    """Move all parameters far from their initial values."""
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return step


def _one_family(name: str, steps: list[Flow], features: Tensor, z: Tensor, base: DiagonalNormal) -> Iterator[CheckRow]:
    conditioned = [step.condition(features) for step in steps]
    found = torch.stack([step(z, known).log_det for step, known in zip(steps, conditioned, strict=True)])
    truth = torch.stack([_log_det(step, z, known) for step, known in zip(steps, conditioned, strict=True)])
    yield exact(f"log det error, {name}", 0, distance(found, truth))
    if found.abs().max() > 0:  # a reflection preserves volume
        yield differs(f"log det error, {name}, wrong sign", 0, distance(found, -truth), 0.01)
    posterior = FlowPosterior(base, tuple(steps), tuple(conditioned))
    with torch.no_grad():
        drawn, log_q = posterior.rsample_and_log_prob((DRAWS,))
        # Iterative inverses stop at rounding in float64, and the density amplifies this error.
        worst = distance(posterior.log_prob(drawn), log_q)
    yield exact(f"log q error, {name}", 0, worst, 1e-7)


def _log_det(step: Flow, z: Tensor, conditioned: StepParameters) -> Tensor:
    """Return log |det dz'/dz| of each draw, (K, B), by autograd."""
    whole = jacobian(lambda value: step(value, conditioned).z.sum((0, 1)), z)
    assert isinstance(whole, Tensor)  # (D, K, B, D); draws are independent: the sum has all entries
    return torch.linalg.slogdet(whole.permute(1, 2, 0, 3)).logabsdet


def _no_steps(bench: Bench) -> Iterator[CheckRow]:
    """Compare a flow encoder without steps with the Gaussian encoder."""
    with bench.device:
        posterior, x = TrunkGaussian(MLP(3, [6], "tanh"), DIM), torch.rand(4, 3)
        found = []
        for encoder in (GaussianEncoder(posterior), FlowEncoder(posterior, [])):
            with torch.random.fork_rng():
                torch.manual_seed(1)
                found.append(encoder.draw(x, 5))
    yield exact("max |log_q - Gaussian's|, no steps", 0, distance(found[0].log_q, found[1].log_q), 0)
    yield exact("max |z - Gaussian's|, no steps", 0, distance(found[0].z, found[1].z), 0)
