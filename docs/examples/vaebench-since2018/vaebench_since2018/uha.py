"""Uncorrected Hamiltonian annealing: an encoder refined by underdamped dynamics through bridging densities."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from vaebench import hmc, noise
from vaebench.arguments import at_least, between
from vaebench.bounds import LogMeanExp
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder
from vaebench.encoders.hamiltonian import StepSizes, log_joint_at
from vaebench.model import GenerativeModel

__all__ = ["PLUGINS", "AnnealedEncoder"]


class _Encoded(NamedTuple):
    x: Tensor
    start: Distribution


class _Point(NamedTuple):
    """A position and a momentum, with the two gradients at the position; (K, B, D) each."""

    z: Tensor
    rho: Tensor
    start_slope: Tensor
    joint_slope: Tensor


class AnnealedEncoder(Encoder):
    """z_1 ~ q0(z|x), rho_1 ~ N(0, I), and then T transitions. Transition t has two parts:

    1. It refreshes a part of the momentum (for t > 1): rho'_t ~ N(eta rho_t, (1 - eta^2) I). rho'_1 is rho_1.
    2. One leapfrog step on gamma_t(z) = q0(z|x)^(1 - beta_t) p(x, z)^beta_t leads to (z_{t+1}, rho_{t+1}).

    The latent is z_{T+1}, and the other variables are auxiliary. Their backward model draws rho_{T+1} ~ N(0, I),
    reverses each leapfrog step, and refreshes with the same kernel. The leapfrog step preserves volume, and the kernel
    keeps N(0, I). So the ratio of the two joint densities is

    log_q = log q0(z_1|x) + sum_t (|rho_{t+1}|^2 - |rho'_t|^2) / 2

    E[exp(-log_q) | z] = 1/q(z|x) for any temperatures, step sizes and eta, because the backward model is a normalised
    density. No step is accepted or rejected, hence the gradient flows through all steps.

    Source: Geffner and Domke 2021, https://arxiv.org/abs/2107.04150

    Args:
        start: ``start(x)`` is q0(z|x), batch shape (B,).
        model: p(x, z); it is not a submodule of the encoder.
        step_sizes: returns the step sizes, (D,).
        steps: number T of transitions, >= 1.
        refreshment: initial eta, between 0 (a new momentum at each transition) and 1 (the same momentum).
    """

    direction = Direction.UPPER_BOUND
    no_path_gradient = "its log density is that of a path, not a function of the path's end"

    def __init__(
        self, start: nn.Module, model: GenerativeModel, step_sizes: nn.Module, *, steps: int, refreshment: float
    ) -> None:
        super().__init__()
        at_least(1, steps=steps)
        between(0, 1, refreshment=refreshment)
        self.start = start
        self.step_sizes = step_sizes
        # At first equal gaps between 0, beta_1, ..., beta_T, 1.
        self.raw_gaps = nn.Parameter(torch.zeros(steps + 1))
        # One transition refreshes nothing.
        self.raw_refreshment = nn.Parameter(torch.tensor(refreshment).logit()) if steps > 1 else None
        # In a tuple, so that torch does not register it as a submodule; copies of the encoder copy it too.
        self._model = (model,)

    @classmethod
    def build(
        cls, context: BuildContext, *, steps: int, step_size: float, max_step_size: float, refreshment: float
    ) -> "AnnealedEncoder":
        """Build the encoder with the configured networks."""
        start = context.networks.gaussian(context.x_dim, context.latent_dim)
        step_sizes = StepSizes(context.latent_dim, step_size, max_step_size)
        return cls(start, context.model, step_sizes, steps=steps, refreshment=refreshment)

    def temperatures(self) -> Tensor:
        """Return beta_1 < ... < beta_T, (T,), between 0 and 1."""
        return self.raw_gaps.softmax(0).cumsum(0)[:-1]

    def encode(self, x: Tensor) -> _Encoded:
        """Return q0(z|x) for x of shape (B, X)."""
        return _Encoded(x, self.start(x))

    def sample(
        self, encoded: _Encoded, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        """Draw z of (K, B, D) and its log_q."""
        del inner_k, inner_chunk, path_only  # see no_path_gradient
        z = encoded.start.rsample((k,))
        log_q = encoded.start.log_prob(z)
        step_sizes, betas = self.step_sizes(), self.temperatures().unbind()
        point = self._point(encoded, z, noise.standard_normal(z.shape, z))
        for step, beta in enumerate(betas):
            if step:
                point = point._replace(rho=self._refreshed(point.rho, noise.standard_normal(z.shape, z)))
            before = point.rho
            point = self._leapfrog(encoded, point, beta, step_sizes)
            log_q = log_q + _kinetic_energy(point.rho) - _kinetic_energy(before)
        return Draw(point.z, log_q)

    def log_q_at(self, encoded: _Encoded, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor:
        """Return log 1/L sum_l q(path_l, z|x) / r(path_l|z), (K, B), at z of (K, B, D).

        The L paths are draws of the backward model r.
        """
        ratios = LogMeanExp()
        for first in range(0, samples, chunk or samples):
            count = min(chunk or samples, samples - first)
            # Inner samples share an axis with the K draws, because some models take no further axis.
            ends = z.expand(count, *z.shape).flatten(0, 1)
            with noise.inner_samples(first):
                ratios.add(self._back(encoded, ends, count).unflatten(0, (count, -1)))
        return ratios.value().to(z.dtype)

    def _back(self, encoded: _Encoded, z: Tensor, count: int) -> Tensor:
        """Draw a path back from each z, (count K, B, D), and return the log ratio of its two densities."""
        step_sizes, betas = self.step_sizes(), self.temperatures().unbind()
        shape = (count, len(z) // count, *z.shape[1:])
        point = self._point(encoded, z, noise.standard_normal(shape, z).flatten(0, 1))
        log_ratio: Tensor | float = 0.0
        for step in reversed(range(len(betas))):
            after = point.rho
            # A step of the opposite sign reverses a step.
            point = self._leapfrog(encoded, point, betas[step], -step_sizes)
            log_ratio = log_ratio + _kinetic_energy(after) - _kinetic_energy(point.rho)
            if step:
                fresh = noise.standard_normal(shape, z).flatten(0, 1)
                point = point._replace(rho=self._refreshed(point.rho, fresh))
        return encoded.start.log_prob(point.z) + log_ratio

    def _point(self, encoded: _Encoded, z: Tensor, rho: Tensor) -> _Point:
        log_joint = log_joint_at(self._model[0], encoded.x)
        return _Point(z, rho, hmc.slope(encoded.start.log_prob, z), hmc.slope(log_joint, z))

    def _leapfrog(self, encoded: _Encoded, point: _Point, beta: Tensor, step_sizes: Tensor) -> _Point:
        """Take one leapfrog step on log gamma: half kick, drift, half kick."""
        rho = point.rho + 0.5 * step_sizes * torch.lerp(point.start_slope, point.joint_slope, beta)
        end = self._point(encoded, point.z + step_sizes * rho, rho)
        return end._replace(rho=rho + 0.5 * step_sizes * torch.lerp(end.start_slope, end.joint_slope, beta))

    def _refreshed(self, rho: Tensor, fresh: Tensor) -> Tensor:
        """Return a draw of N(eta rho, (1 - eta^2) I), from ``fresh`` noise."""
        assert self.raw_refreshment is not None
        eta = self.raw_refreshment.sigmoid()
        return eta * rho + (1 - eta.square()).sqrt() * fresh


def _kinetic_energy(rho: Tensor) -> Tensor:
    return 0.5 * rho.square().sum(-1)


PLUGINS = {"encoder": {"uha": AnnealedEncoder.build}}
"""For ``vaebench train --plugin uha.py``; the installed package declares its entry points in pyproject.toml."""
