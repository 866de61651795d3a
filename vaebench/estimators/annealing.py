"""Annealing: chains from one density to another, whose mean weight is the ratio of their normalisers.

    f_b = f_0^(1-b) f_1^b
    log w = sum_t (b_{t+1} - b_t) (log f_1 - log f_0)(z_t)

z_0 is drawn from the first f_b, and z_t from z_{t-1} by a move that leaves f_{b_t} invariant. Then E[w] is the
normaliser of the last f_b over the normaliser of the first, for any number of temperatures and any rate of mixing. This
fails if a move depends on the past of its chain: so a pilot run with separate noise tunes the step sizes, then fixed.
One function serves both directions: from 0 to 1, and from 1 to 0.

Source: Neal 2001, https://arxiv.org/abs/physics/9803008

Shapes: N chains first, B images, D latent coordinates; T temperatures between 0 and 1, T + 2 with these; nats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vaebench import hmc
from vaebench.runtime import float64_device, in_float64

__all__ = [
    "SCHEDULES",
    "AnnealedChains",
    "AnnealingSchedule",
    "Ends",
    "GeometricPath",
    "Move",
    "Pilot",
    "anneal",
    "inverse_temperatures",
    "tune_steps",
]

MOST_PILOT_TEMPERATURES, LEAST_PILOT_TEMPERATURES = 40, 10
PILOT_CHAINS = 8
PILOT_MOVES = 3
"""At each temperature of the pilot."""
WARM_UP_MOVES = 10
"""Additional moves at its first temperature."""
TARGET_ACCEPTANCE = 0.7
"""A little above 0.65, the best for long chains in high dimensions (Beskos et al. 2013,
https://arxiv.org/abs/1001.4460): fixed steps cannot be corrected, and steps that are too long cost more."""
SCALE_DRAWS = 256
STEEPNESS = 4.0
GOLDEN = 0.5 * (math.sqrt(5) - 1)


class Ends(NamedTuple):
    """The densities at both ends of a path, at the positions of the chains."""

    initial: hmc.State
    target: hmc.State

    @property
    def ratio(self) -> Tensor:
        """log f_1 - log f_0, (N, B)."""
        return self.target.log_density - self.initial.log_density

    def at(self, beta: Tensor) -> hmc.State:
        """Return the state under f_b, without another evaluation; ``beta`` is (B,)."""
        return hmc.State(
            self.initial.position,
            torch.lerp(self.initial.log_density, self.target.log_density, beta),
            torch.lerp(self.initial.gradient, self.target.gradient, beta.unsqueeze(-1)),
        )


@dataclass(frozen=True)
class GeometricPath:
    """The densities f_b = f_0^(1-b) f_1^b; each maps (N, B, D) to (N, B)."""

    initial: hmc.LogDensity
    """log f_0."""
    target: hmc.LogDensity
    """log f_1."""

    def at(self, beta: Tensor) -> hmc.LogDensity:
        """Return log f_b; ``beta`` is (B,)."""
        return lambda z: torch.lerp(self.initial(z), self.target(z), beta)

    def ends(self, z: Tensor) -> Ends:
        """Evaluate both ends and their gradients at ``z``."""
        return Ends(hmc.evaluate(self.initial, z), hmc.evaluate(self.target, z))


Move = Callable[[int, Tensor, Ends], tuple[Tensor, Tensor]]
"""(number t of the temperature, b_t of shape (B,), positions of the chains) -> (new positions (N, B, D), probability of
acceptance (N, B)). It leaves f_{b_t} invariant, and does not depend on the past of the chains."""


class AnnealedChains(NamedTuple):
    """The weights and diagnostics of chains after their last temperature."""

    log_weights: Tensor
    """(N, B), float64."""
    acceptance: Tensor
    """Mean over the chains at each temperature, (T, B)."""
    position: Tensor
    """The last positions of the chains, (N, B, D)."""


def anneal(path: GeometricPath, betas: Tensor, position: Tensor, move: Move) -> AnnealedChains:
    """Run chains along ``betas`` and return their weights.

    Args:
        path: the densities.
        betas: b_0, ..., b_{T+1}, (T + 2, B), float64, rising or falling.
        position: z_0, exact draws from f_{b_0}, (N, B, D).
        move: moves the chains at b_1, ..., b_T.
    """
    ends = path.ends(position)
    # The first term of log w is at z_0, before any move.
    log_weights = (betas[1] - betas[0]) * in_float64(ends.ratio)
    acceptances = []
    for t in range(1, len(betas) - 1):
        position, acceptance = move(t, betas[t].to(position), ends)
        ends = path.ends(position)
        log_weights += (betas[t + 1] - betas[t]) * in_float64(ends.ratio)
        acceptances.append(acceptance.mean(0))
    none = position.new_zeros(0, position.shape[1])
    return AnnealedChains(log_weights, torch.stack(acceptances) if acceptances else none, position)


# Schedules ------------------------------------------------------------------------------------------------


def linear(temperatures: int) -> Tensor:
    """Return T + 2 equally spaced numbers from 0 to 1, float64."""
    return torch.linspace(0, 1, temperatures + 2, dtype=torch.float64)


def sigmoid(temperatures: int) -> Tensor:
    """Return T + 2 numbers from 0 to 1, dense at both ends, float64.

    Source: Wu et al. 2017, https://arxiv.org/abs/1611.04273
    """
    curve = torch.sigmoid(STEEPNESS * (2 * linear(temperatures) - 1))
    spaced_out = (curve - curve[0]) / (curve[-1] - curve[0])
    spaced_out[-1] = 1.0
    return spaced_out


SCHEDULES = ("linear", "sigmoid", "adaptive")


def inverse_temperatures(schedule: str, temperatures: int, pilot: "Pilot") -> Tensor:
    """Return the b_t of each image, (T + 2, B), float64.

    ``adaptive`` puts half of them where log f_1 - log f_0 varies most: for a given T and perfect moves, log w
    varies least if their density is proportional to the standard deviation of this difference under f_b (Gelman and
    Meng 1998, https://doi.org/10.1214/ss/1028905934). The other half follows ``sigmoid``: so an inaccurate pilot wastes
    at most half of the temperatures.
    """
    count = pilot.spread.shape[1]
    if schedule != "adaptive":
        shared = linear(temperatures) if schedule == "linear" else sigmoid(temperatures)
        return shared.to(pilot.betas.device).unsqueeze(1).expand(-1, count)
    knots = pilot.betas.unsqueeze(1)
    spread = in_float64(pilot.spread)
    pieces = 0.5 * (spread[1:] + spread[:-1]) * knots.diff(dim=0)
    length = torch.cat([torch.zeros_like(spread[:1]), pieces.cumsum(0)])
    progress = linear(len(knots) - 2).to(spread.device).unsqueeze(1)
    travelled = 0.5 * (length / length[-1] + progress)
    wanted = linear(temperatures).to(spread.device).unsqueeze(1).expand(-1, count)
    betas = interpolate(wanted, travelled, knots.expand(-1, count))
    betas[0], betas[-1] = 0, 1
    return betas


def interpolate(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Return the piecewise linear function through (knots, values), (P, B) each, at ``at``, (T, B)."""
    found = torch.searchsorted(knots.T.contiguous(), at.T.contiguous()).T
    above = found.clamp(1, len(knots) - 1)
    low, high = knots.gather(0, above - 1), knots.gather(0, above)
    share = ((at - low) / (high - low)).clamp(0, 1)
    return torch.lerp(values.gather(0, above - 1), values.gather(0, above), share)


# The pilot ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pilot:
    """Step sizes and spreads along each image's path, from a pilot run."""

    betas: Tensor
    """The pilot's own temperatures from 0 to 1, (P,), float64."""
    log_steps: Tensor
    """Log of HMC's step size in units of ``scale``, (P, B)."""
    spread: Tensor
    """Standard deviation of log f_1 - log f_0 under f_b, (P, B)."""
    scale: Tensor
    """Standard deviations of the initial density, (B, D)."""

    def steps(self, betas: Tensor) -> Tensor:
        """Return step sizes for the temperatures ``betas``, (T, B), in units of ``scale``.

        They vary by a fifth from one temperature to the next. With equal steps, a coordinate could have a period after
        which a chain returns to the same position.
        """
        knots = self.betas.unsqueeze(1).expand_as(self.log_steps).contiguous()
        tuned = interpolate(betas, knots, in_float64(self.log_steps)).exp()
        turn = torch.arange(len(betas), device=betas.device, dtype=betas.dtype) * GOLDEN
        return (tuned * (0.8 + 0.4 * turn.frac()).unsqueeze(1)).to(self.scale)


def tune_steps(path: GeometricPath, draw: Callable[[int], Tensor], leapfrog: int, temperatures: int) -> Pilot:
    """Tune HMC's step size for each image along the path, to an acceptance of about ``TARGET_ACCEPTANCE``.

    Args:
        path: the densities.
        draw: draws from the initial density, as in (N) -> (N, B, D).
        leapfrog: leapfrog steps in each move.
        temperatures: T of the chains to come; fewer of them get a shorter pilot.
    """
    scale = draw(SCALE_DRAWS).std(0)
    ends = path.ends(draw(PILOT_CHAINS))
    betas = sigmoid(min(MOST_PILOT_TEMPERATURES, LEAST_PILOT_TEMPERATURES + temperatures // 10))
    betas = betas.to(float64_device(scale.device))
    log_step = torch.full_like(scale[:, 0], math.log(0.5))
    log_steps, spreads = [], [ends.ratio.std(0)]
    for t, beta in enumerate(betas[1:-1].to(scale)):
        tuned, ratios = [], []
        for _ in range(PILOT_MOVES + (WARM_UP_MOVES if t == 0 else 0)):
            step_size = log_step.exp().unsqueeze(-1) * scale
            state, acceptance = hmc.transition(path.at(beta), ends.at(beta), step_size, leapfrog)
            log_step = log_step + acceptance.mean(0) - TARGET_ACCEPTANCE
            ends = path.ends(state.position)
            tuned.append(log_step)
            ratios.append(ends.ratio)
        log_steps.append(torch.stack(tuned[-PILOT_MOVES:]).mean(0))
        spreads.append(torch.cat(ratios[-PILOT_MOVES:]).std(0))
    log_steps = [log_steps[0], *log_steps, log_steps[-1]]
    return Pilot(betas, torch.stack(log_steps), torch.stack([*spreads, spreads[-1]]), scale)


# The measured chains --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hamiltonian:
    """HMC with fixed step sizes, which do not depend on the chains."""

    path: GeometricPath
    steps: Tensor
    """One per temperature and image, (T + 2, B), in units of ``scale``."""
    scale: Tensor
    """(B, D)."""
    leapfrog: int

    def __call__(self, t: int, beta: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
        """Move at temperature ``beta``."""
        step_size = self.steps[t].unsqueeze(-1) * self.scale
        state, acceptance = hmc.transition(self.path.at(beta), ends.at(beta), step_size, self.leapfrog)
        return state.position, acceptance


@dataclass(frozen=True)
class AnnealingSchedule:
    """A path with its temperatures and fixed step sizes, for chains in either direction."""

    path: GeometricPath
    draw: Callable[[int], Tensor]
    """Draws from the initial density, as in (N) -> (N, B, D)."""
    betas: Tensor
    """From 0 to 1, (T + 2, B), float64."""
    steps: Tensor
    """(T + 2, B)."""
    scale: Tensor
    """(B, D)."""
    leapfrog: int

    @classmethod
    def tuned(
        cls, path: GeometricPath, draw: Callable[[int], Tensor], *, schedule: str, temperatures: int, leapfrog: int
    ) -> "AnnealingSchedule":
        """Choose the temperatures and the step sizes with a pilot run."""
        pilot = tune_steps(path, draw, leapfrog, temperatures)
        betas = inverse_temperatures(schedule, temperatures, pilot)
        return cls(path, draw, betas, pilot.steps(betas), pilot.scale, leapfrog)

    def forward(self, chains: int) -> AnnealedChains:
        """Run chains from the initial density to the target: E[w] = Z_1 / Z_0."""
        move = Hamiltonian(self.path, self.steps, self.scale, self.leapfrog)
        return anneal(self.path, self.betas, self.draw(chains), move)

    def backward(self, exact: Tensor, chains: int) -> AnnealedChains:
        """Run chains back from ``exact``, one draw from the target for each image, (B, D): E[w] = Z_0 / Z_1."""
        move = Hamiltonian(self.path, self.steps.flip(0), self.scale, self.leapfrog)
        return anneal(self.path, self.betas.flip(0), exact.expand(chains, *exact.shape), move)
