"""Hamiltonian Monte Carlo as pure functions of a log density; the arguments hold the complete state of a chain.

Chains are vectorised over all leading axes. Positions are (..., D), for example (chains, B, D). A log density maps
them to (...), in nats; the value of each chain depends on its own position alone.

Source: Neal 2011, https://arxiv.org/abs/1206.1901
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vaebench import noise

__all__ = ["Chains", "LogDensity", "State", "evaluate", "leapfrog", "run", "slope", "transition"]

LogDensity = Callable[[Tensor], Tensor]
StepSize = float | Tensor
"""A number, or a tensor that broadcasts against (..., D): (..., 1) has one number per chain, (D,) one per axis."""


class State(NamedTuple):
    """The state of the chains."""

    position: Tensor
    """(..., D)."""
    log_density: Tensor
    """(...)."""
    gradient: Tensor
    """Gradient of the log density, (..., D)."""


class Chains(NamedTuple):
    """The result of several transitions."""

    positions: Tensor
    """One entry per transition, (T, ..., D)."""
    acceptance: Tensor
    """The acceptance probability of each proposal, (T, ...)."""
    state: State
    """The last state."""


def slope(log_density: LogDensity, position: Tensor) -> Tensor:
    """Return the gradient of ``log_density`` at ``position``, (..., D), even under ``torch.no_grad``.

    Without ``no_grad`` the result is differentiable in ``position`` and in the parameters of the density.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        if not (differentiable and position.requires_grad):
            position = position.detach()
            position.requires_grad = True  # not requires_grad_(), which torch.func refuses
        value = log_density(position).sum()
        return torch.autograd.grad(value, position, create_graph=differentiable)[0]


def evaluate(log_density: LogDensity, position: Tensor) -> State:
    """Return the state at ``position``, without a graph."""
    with torch.enable_grad():
        position = position.detach()
        position.requires_grad = True  # not requires_grad_(), which torch.func refuses
        value = log_density(position)
        (gradient,) = torch.autograd.grad(value.sum(), position)
    return State(position.detach(), value.detach(), gradient)


def leapfrog(
    slope_at: Callable[[Tensor], Tensor], position: Tensor, momentum: Tensor, gradient: Tensor, step_size: StepSize
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one step of the dynamics with energy -log density + momentum^2 / 2: half kick, drift, half kick.

    Each of the three is a shear, so volume is preserved exactly for any ``slope_at``. With the opposite momentum the
    step leads back.

    Args:
        slope_at: the gradient of the log density as a function of the position.
        position: (..., D).
        momentum: (..., D).
        gradient: ``slope_at(position)``, which the step before has computed.
        step_size: see ``StepSize``.

    Returns:
        The new position, the new momentum, and the gradient at the new position.
    """
    momentum = momentum + 0.5 * step_size * gradient
    position = position + step_size * momentum
    gradient = slope_at(position)
    return position, momentum + 0.5 * step_size * gradient, gradient


@torch.no_grad()
def transition(log_density: LogDensity, state: State, step_size: StepSize, steps: int) -> tuple[State, Tensor]:
    """Draw a momentum, take ``steps`` leapfrog steps, and accept or reject their end.

    The density exp(log_density) is invariant for any fixed step size. A proposal whose log density or gradient is not
    finite is rejected.

    Returns:
        The new state, and the probability of acceptance, (...), which is 0 if the proposal was not finite.
    """
    start = state.position
    momentum = noise.standard_normal(start.shape, start)
    energy = 0.5 * momentum.square().sum(-1) - state.log_density
    proposed = state

    def slope_at(position: Tensor) -> Tensor:
        nonlocal proposed
        proposed = evaluate(log_density, position)
        return proposed.gradient

    position, gradient = start, state.gradient
    for _ in range(steps):
        position, momentum, gradient = leapfrog(slope_at, position, momentum, gradient, step_size)
    change = energy - (0.5 * momentum.square().sum(-1) - proposed.log_density)
    sound = proposed.log_density.isfinite() & proposed.gradient.isfinite().all(-1) & ~change.isnan()
    acceptance = torch.where(sound, change.clamp(max=0).exp(), 0.0)
    accepted = noise.uniform((*start.shape[:-1], 1), start).squeeze(-1) < acceptance
    return _where(accepted, proposed, state), acceptance


def run(log_density: LogDensity, position: Tensor, step_size: StepSize, *, steps: int, transitions: int) -> Chains:
    """Take ``transitions`` transitions of ``steps`` leapfrog steps each from ``position``, (..., D)."""
    state = evaluate(log_density, position)
    visited, acceptances = [], []
    for _ in range(transitions):
        state, acceptance = transition(log_density, state, step_size, steps)
        visited.append(state.position)
        acceptances.append(acceptance)
    return Chains(torch.stack(visited), torch.stack(acceptances), state)


def _where(condition: Tensor, proposed: State, current: State) -> State:
    """Select the state of each chain; unlike in a weighted sum, a NaN of the other state has no effect."""
    wide = condition.unsqueeze(-1)
    return State(
        torch.where(wide, proposed.position, current.position),
        torch.where(condition, proposed.log_density, current.log_density),
        torch.where(wide, proposed.gradient, current.gradient),
    )
