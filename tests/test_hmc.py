"""Hamiltonian Monte Carlo: invariance, reversibility, volume, order, and proposals that are not numbers."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from toys import Mean

from vaebench import hmc, noise

pytestmark = pytest.mark.usefixtures("float64")

CHAINS = 20_000
MEAN = (0.5, -1.0)
COVARIANCE = ((1.0, 0.6), (0.6, 0.8))


def target() -> MultivariateNormal:
    return MultivariateNormal(torch.tensor(MEAN), torch.tensor(COVARIANCE))


def quartic(position: Tensor) -> Tensor:
    """A density whose dynamics are not linear."""
    return -(position**4).sum(-1) / 4 - position.prod(-1) ** 2 / 2


def follow(position: Tensor, momentum: Tensor, step_size: float | Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Take leapfrog steps along ``quartic``, differentiably."""
    gradient = hmc.slope(quartic, position)
    for _ in range(steps):
        position, momentum, gradient = hmc.leapfrog(
            lambda at: hmc.slope(quartic, at), position, momentum, gradient, step_size
        )
    return position, momentum


def moments_off(positions: Tensor) -> float:
    """Return the largest deviation of a mean or a covariance from the target's, in standard errors."""
    centred = positions - torch.tensor(MEAN)
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    errors = [Mean.of(centred[:, i]).errors_above(0) for i in range(2)]
    errors += [Mean.of(products[:, i, j]).errors_above(COVARIANCE[i][j]) for i in range(2) for j in range(i + 1)]
    return max(abs(error) for error in errors)


@pytest.mark.parametrize("step_size", [0.3, 0.9, 1.05])
def test_the_target_is_left_invariant_whatever_the_step_size(step_size: float):
    chains = hmc.run(target().log_prob, target().sample((CHAINS,)), step_size, steps=3, transitions=4)
    assert chains.positions.shape == (4, CHAINS, 2)
    assert chains.acceptance.shape == (4, CHAINS)
    assert 0.2 < chains.acceptance.mean() < 0.999
    assert moments_off(chains.positions[-1]) < 4
    assert torch.equal(chains.positions[-1], chains.state.position)


def test_control_without_rejection_the_target_is_not_left_invariant():
    position = target().sample((CHAINS,))
    for _ in range(4):
        state, momentum = hmc.evaluate(target().log_prob, position), torch.randn(CHAINS, 2)
        position, _, _ = hmc.leapfrog(
            lambda at: hmc.evaluate(target().log_prob, at).gradient, position, momentum, state.gradient, 0.9
        )
    assert moments_off(position) > 10


def test_chains_find_the_target_from_afar():
    chains = hmc.run(target().log_prob, torch.full((CHAINS, 2), 6.0), 0.6, steps=4, transitions=15)
    assert moments_off(chains.positions[-1]) < 4
    assert moments_off(chains.positions[0]) > 20


def test_the_dynamics_are_reversible():
    position, momentum = torch.randn(2, 7, 3)
    there, speed = follow(position, momentum, 0.2, 9)
    back, _ = follow(there, -speed, 0.2, 9)
    assert (back - position).abs().max() < 1e-12
    assert (there - position).abs().max() > 0.5


def test_the_dynamics_preserve_volume():
    def flow(both: Tensor) -> Tensor:
        return torch.cat(follow(both[:2], both[2:], torch.tensor([0.3, 0.5]), 4))

    jacobian = torch.autograd.functional.jacobian(flow, torch.randn(4))
    assert isinstance(jacobian, Tensor)
    assert abs(torch.det(jacobian).item() - 1) < 1e-12
    assert (jacobian - torch.eye(4)).abs().max() > 0.5


def test_the_error_of_the_energy_is_of_second_order():
    position, momentum = 0.7 * torch.randn(2, 50, 3)

    def error(steps: int) -> float:
        there, speed = follow(position, momentum, 1.0 / steps, steps)
        change = quartic(there) - quartic(position) - 0.5 * (speed.square() - momentum.square()).sum(-1)
        return change.abs().mean().item()

    errors = [error(steps) for steps in (16, 32, 64)]
    assert 3.6 < errors[0] / errors[1] < 4.4
    assert 3.8 < errors[1] / errors[2] < 4.2


def cliff(position: Tensor) -> Tensor:
    """A standard normal density that is no number beyond 1 in the first coordinate."""
    value = -0.5 * position.square().sum(-1)
    return value.masked_fill(position[..., 0] > 1, torch.nan)


def test_proposals_that_are_no_numbers_are_rejected_and_leave_no_trace():
    start = torch.randn(CHAINS, 2).clamp(max=0.9)
    chains = hmc.run(cliff, start, 0.8, steps=2, transitions=6)
    assert chains.positions.isfinite().all()
    assert chains.positions[..., 0].max() <= 1
    assert chains.state.gradient.isfinite().all()
    rejected = chains.acceptance[0] == 0
    assert 0.05 < rejected.double().mean() < 0.5
    assert torch.equal(chains.positions[0][rejected], start[rejected])
    # What is sampled is the normal cut off at 1: E = -phi(1)/Phi(1).
    first = hmc.run(cliff, start, 0.8, steps=2, transitions=60).positions[-1][:, 0]
    assert abs(Mean.of(first).errors_above(-0.24197072 / 0.84134475)) < 4


def test_control_a_weighted_sum_spreads_what_is_no_number():
    current, proposed, accept = torch.zeros(3), torch.tensor([1.0, torch.nan, 2.0]), torch.tensor([1.0, 0.0, 0.0])
    assert (accept * proposed + (1 - accept) * current).isnan().tolist() == [False, True, False]


def test_chains_that_start_where_the_density_is_zero_leave():
    def half(position: Tensor) -> Tensor:
        inside = position[..., 0] < 1
        return torch.where(inside, -0.5 * position.square().sum(-1), -torch.inf)

    chains = hmc.run(half, torch.full((200, 1), 1.05), 0.5, steps=1, transitions=30)
    assert (chains.positions[-1] < 1).all()


def test_each_chain_may_have_its_own_step_size():
    sizes = torch.tensor([0.01, 0.5, 1.3]).view(3, 1, 1).expand(3, 500, 1)
    chains = hmc.run(target().log_prob, target().sample((3, 500)), sizes, steps=3, transitions=3)
    rates = chains.acceptance.mean((0, 2))
    assert rates[0] > 0.999
    assert rates[0] > rates[1] > rates[2]
    alone = hmc.run(target().log_prob, target().sample((500,)), 1.3, steps=3, transitions=3)
    assert abs(rates[2] - alone.acceptance.mean()) < 0.05


def test_each_step_takes_one_gradient():
    calls = []

    def counted(position: Tensor) -> Tensor:
        calls.append(position)
        return target().log_prob(position)

    hmc.run(counted, torch.zeros(2, 2), 0.1, steps=5, transitions=3)
    assert len(calls) == 1 + 5 * 3


def test_the_chains_follow_keyed_noise():
    """A chain depends on its image and its number alone, and not on what is run beside it."""
    start = torch.randn(4, 5, 2)
    with noise.keyed(3, torch.arange(5)):
        whole = hmc.run(target().log_prob, start, 0.7, steps=2, transitions=3)
    with noise.keyed(3, torch.tensor([1, 4]), first_sample=2):
        part = hmc.run(target().log_prob, start[2:, [1, 4]], 0.7, steps=2, transitions=3)
    assert torch.equal(whole.positions[:, 2:, [1, 4]], part.positions)


def test_the_slope_is_differentiable_exactly_where_gradients_are_on():
    position = torch.randn(4, 3, requires_grad=True)
    slope = hmc.slope(quartic, position)
    (second,) = torch.autograd.grad(slope.sum(), position)
    assert second.abs().max() > 0
    with torch.no_grad():
        plain = hmc.slope(quartic, position)
    assert torch.equal(plain, slope)
    assert not plain.requires_grad
    assert not hmc.run(quartic, position, 0.1, steps=1, transitions=1).positions.requires_grad
