"""Hamiltonian Monte Carlo as pure functions of a log density; a chain's whole state is in its arguments.

Chains are vectorised over all leading axes: positions are (..., D), for instance (chains, B, D), and a log
density maps them to (...), in nats, each chain's value depending on its own position alone.

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
"""A number, or a tensor that broadcasts against (..., D): (..., 1) gives each chain its own, (D,) each axis."""


class State(NamedTuple):
    """Where the chains are."""

    position: Tensor
    """(..., D)."""
    log_density: Tensor
    """(...)."""
    gradient: Tensor
    """Of the log density, (..., D)."""


class Chains(NamedTuple):
    """What a run of several transitions visited."""

    positions: Tensor
    """One entry per transition, (T, ..., D)."""
    acceptance: Tensor
    """The probability with which each proposal was to be accepted, (T, ...)."""
    state: State
    """The last one."""


def slope(log_density: LogDensity, position: Tensor) -> Tensor:
    """Return the gradient of ``log_density`` at ``position``, (..., D), also where gradients are switched off.

    Where they are switched on, the result is itself differentiable, in ``position`` and in whatever the density
    is made of.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        if not (differentiable and position.requires_grad):
            position = position.detach().requires_grad_()
        value = log_density(position).sum()
        return torch.autograd.grad(value, position, create_graph=differentiable)[0]


def evaluate(log_density: LogDensity, position: Tensor) -> State:
    """Return the state at ``position``, without history."""
    with torch.enable_grad():
        position = position.detach().requires_grad_()
        value = log_density(position)
        (gradient,) = torch.autograd.grad(value.sum(), position)
    return State(position.detach(), value.detach(), gradient)


def leapfrog(
    slope_at: Callable[[Tensor], Tensor],
    position: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    step_size: StepSize,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one step of the dynamics with energy -log density + momentum^2 / 2: half kick, drift, half kick.

    Each of the three is a shear, so that volume is preserved exactly, whatever ``slope_at`` returns; with the
    momentum turned round the step leads back.

    Args:
        slope_at: the gradient of the log density as a function of the position.
        position: (..., D).
        momentum: (..., D).
        gradient: ``slope_at(position)``, which the step before has computed already.
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
    """Draw a momentum, follow it for ``steps`` leapfrog steps, and accept or reject where that leads.

    The density exp(log_density) is left invariant, for any fixed step size. A proposal with a log density or a
    gradient that is not finite is rejected, and leaves no trace.

    Returns:
        The new state, and the probability of acceptance, (...), 0 where the proposal was not finite.
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
    """Choose chain by chain; unlike a weighted sum, this keeps a NaN on the side that is not taken."""
    wide = condition.unsqueeze(-1)
    return State(
        torch.where(wide, proposed.position, current.position),
        torch.where(condition, proposed.log_density, current.log_density),
        torch.where(wide, proposed.gradient, current.gradient),
    )
