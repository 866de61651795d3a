"""Encoders refined by a few steps of Hamiltonian dynamics that follow the model's own gradient."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench import hmc, noise
from vaebench.bounds import LogMeanExp
from vaebench.distributions import standard_normal
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder
from vaebench.errors import UserError, did_you_mean
from vaebench.model import GenerativeModel
from vaebench.nets.heads import Conditional

__all__ = ["HamiltonianEncoder", "StepSizes", "Tempering", "log_joint_at"]


class _Context(NamedTuple):
    x: Tensor
    start: Distribution
    reverse: Any


def log_joint_at(model: GenerativeModel, x: Tensor) -> hmc.LogDensity:
    """Return log p(x, z), (K, B), as a function of z, (K, B, D), for images x, (B, X)."""

    def log_joint(z: Tensor) -> Tensor:
        log_likelihood, log_prior = model.log_joint(x, z)
        return log_likelihood + log_prior

    return log_joint


class StepSizes(nn.Module):
    """One learned step size per latent coordinate, in (0, ``largest``)."""

    def __init__(self, dim: int, initial: float, largest: float) -> None:
        super().__init__()
        if not 0 < initial < largest:
            raise UserError(f"encoder.step_size={initial} must lie between 0 and encoder.max_step_size={largest}")
        self.raw = nn.Parameter(torch.full((dim,), initial / largest).logit())
        self.largest = largest

    def forward(self) -> Tensor:
        """Return the step sizes, (D,)."""
        return self.largest * self.raw.sigmoid()


class Tempering(nn.Module):
    """Factors, one per step, by which the momentum shrinks; it starts out larger by their product's inverse.

    ``fixed`` sets the inverse temperatures beta_0 (learned), ..., beta_K = 1 by 1/sqrt(beta_k) = 1/sqrt(beta_0) +
    (1 - 1/sqrt(beta_0)) k^2/K^2, with factors sqrt(beta_{k-1}/beta_k); ``free`` learns each factor.

    Source: Caterini, Doucet and Sejdinovic 2018, https://arxiv.org/abs/1805.11328
    """

    KINDS = ("none", "fixed", "free")

    def __init__(self, kind: str, steps: int, initial_beta: float) -> None:
        super().__init__()
        if kind not in self.KINDS:
            hint = did_you_mean(kind, self.KINDS)
            raise UserError(f"encoder.tempering must be one of {', '.join(self.KINDS)}, not '{kind}'{hint}")
        if not 0 < initial_beta < 1:
            raise UserError(f"encoder.initial_beta must lie between 0 and 1, not {initial_beta}")
        self.kind, self.steps = kind, steps
        if kind == "fixed":
            self.raw = nn.Parameter(torch.tensor(initial_beta).logit())
        elif kind == "free":
            factor = torch.tensor(initial_beta) ** (0.5 / max(1, steps))
            self.raw = nn.Parameter(factor.logit().repeat(steps))

    def forward(self) -> Tensor | None:
        """Return the factors, (K,), or None where there are none."""
        if self.kind == "none" or self.steps == 0:
            return None
        if self.kind == "free":
            return self.raw.sigmoid()
        hottest = self.raw.sigmoid().rsqrt()
        progress = torch.arange(self.steps + 1, dtype=hottest.dtype, device=hottest.device) / self.steps
        inverse_root = hottest + (1 - hottest) * progress.square()
        return inverse_root[1:] / inverse_root[:-1]


class HamiltonianEncoder(Encoder):
    """z_0 ~ q0(z|x) and a momentum rho_0 ~ N(0, I), moved together by K leapfrog steps to (z, rho):

    log_q = log q0(z_0|x) + log N(rho_0; 0, I) - log r(rho|z,x)

    The energy is -log p(x, z) + rho^2/2. Leapfrog steps preserve volume, and tempering takes away in the course of
    the steps what it multiplied the momentum by before the first, so that the first two terms are the exact
    density of the pair (z, rho): the momentum is scored where and as it was drawn. The reverse model r takes the
    place of q(rho|z,x), hence E[exp(-log_q) | z] = 1/q(z|x): log_q is an upper bound, as in HVM. It is the exact
    density where r = q(rho|z,x), and for K = 0, where r is N(0, I), that of q0.

    ======================  ============  ==============================================================
    r learned               no tempering  HVI    Salimans, Kingma and Welling 2015, https://arxiv.org/abs/1410.6460
    r = N(0, I)             tempering     HVAE   Caterini et al. 2018, https://arxiv.org/abs/1805.11328
    ======================  ============  ==============================================================

    The gradient of the bound passes through the steps, by second derivatives, to all parameters, the model's too.

    Args:
        start: ``start(x)`` is q0(z|x), batch shape (B,).
        model: p(x, z); it is followed, and no part of this module.
        step_sizes: returns the step sizes, (D,).
        tempering: returns the factors on the momentum, (K,), or None.
        reverse: ``reverse(z, reverse.condition(x))`` is r(rho|z,x), batch shape (K, B); None takes N(0, I).
        steps: number K of leapfrog steps.
    """

    direction = Direction.UPPER_BOUND
    no_path_gradient = "its log density is known at the start of the leapfrog steps, not as a function of their end"

    def __init__(
        self,
        start: nn.Module,
        model: GenerativeModel,
        step_sizes: nn.Module,
        tempering: nn.Module,
        reverse: Conditional | None,
        *,
        steps: int,
    ) -> None:
        super().__init__()
        self.start = start
        self.step_sizes = step_sizes
        self.tempering = tempering
        self.reverse = reverse
        self.steps = steps
        # A tuple hides it from the module's parameters and states, and is copied along with the encoder.
        self._model = (model,)

    @classmethod
    def build(
        cls,
        site: BuildContext,
        *,
        leapfrog_steps: int,
        step_size: float,
        max_step_size: float,
        learned_reverse: bool,
        tempering: str,
        initial_beta: float,
    ) -> "HamiltonianEncoder":
        """Make one with the configured networks."""
        latent = site.latent_dim
        return cls(
            site.networks.gaussian(site.x_dim, latent),
            site.model,
            StepSizes(latent, step_size, max_step_size),
            Tempering(tempering, leapfrog_steps, initial_beta),
            site.networks.conditional(site.x_dim, latent, latent) if learned_reverse else None,
            steps=leapfrog_steps,
        )

    def encode(self, x: Tensor) -> _Context:
        """Return q0(z|x) and the reverse model's part of x, (B, X)."""
        return _Context(x, self.start(x), None if self.reverse is None else self.reverse.condition(x))

    def sample(
        self,
        context: _Context,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        """Draw z of (K, B, D) and its log_q."""
        del inner_k, inner_chunk, path_only  # see no_path_gradient
        z = context.start.rsample((k,))
        rest = standard_normal(z.shape[-1], z)
        rho = rest.rsample(z.shape[:-1])
        log_joint = context.start.log_prob(z) + rest.log_prob(rho)
        z, rho = self.move(context.x, z, rho)
        reverse = rest if self.reverse is None else self.reverse(z, context.reverse)
        return Draw(z, log_joint - reverse.log_prob(rho))

    def log_q_at(self, context: _Context, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor:
        """Return log 1/L sum_l q(z, rho_l|x) / r(rho_l|z,x), (K, B), at z of (K, B, D), with L fresh rho ~ r.

        The density of a pair is that of the start to which the steps lead back.
        """
        rest = standard_normal(z.shape[-1], z)
        reverse = rest if self.reverse is None else self.reverse(z, context.reverse)
        missing = z.shape[: z.dim() - 1 - len(reverse.batch_shape)]
        ratios = LogMeanExp()
        for first in range(0, samples, chunk or samples):
            count = min(chunk or samples, samples - first)
            with noise.inner_samples(first):
                rho = reverse.rsample((count, *missing))
            log_r = reverse.log_prob(rho)
            # Inner samples join the K draws of an image, for models that take no further axis.
            ends = z.expand_as(rho).flatten(0, 1), rho.flatten(0, 1)
            start, momentum = self.back(context.x, *ends)
            log_pair = context.start.log_prob(start) + rest.log_prob(momentum)
            ratios.add(log_pair.unflatten(0, (count, -1)) - log_r)
        return ratios.value().to(z.dtype)

    def back(self, x: Tensor, z: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Return what :meth:`move` leads from to (z, rho), both (K, B, D)."""
        if self.steps == 0:
            return z, rho
        slope_at = partial(hmc.slope, log_joint_at(self._model[0], x))
        step_sizes, factors = self.step_sizes(), self.tempering()
        gradient = slope_at(z)
        for step in reversed(range(self.steps)):
            if factors is not None:
                rho = rho / factors[step]
            # A step of the opposite size undoes one.
            z, rho, gradient = hmc.leapfrog(slope_at, z, rho, gradient, -step_sizes)
        return z, rho if factors is None else rho * factors.prod()

    def move(self, x: Tensor, z: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Return where K leapfrog steps lead from (z, rho), both (K, B, D): a map of unit volume."""
        if self.steps == 0:
            return z, rho
        slope_at = partial(hmc.slope, log_joint_at(self._model[0], x))
        step_sizes, factors = self.step_sizes(), self.tempering()
        if factors is not None:
            rho = rho / factors.prod()
        gradient = slope_at(z)
        for step in range(self.steps):
            z, rho, gradient = hmc.leapfrog(slope_at, z, rho, gradient, step_sizes)
            if factors is not None:
                rho = rho * factors[step]
        return z, rho
