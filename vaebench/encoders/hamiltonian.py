"""Encoders refined by a few steps of Hamiltonian dynamics on the model's log density."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench import hmc, noise
from vaebench.arguments import at_least, between, one_of
from vaebench.bounds import LogMeanExp
from vaebench.distributions import standard_normal
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder
from vaebench.model import GenerativeModel
from vaebench.nets.dense import Conditional

__all__ = ["HamiltonianEncoder", "StepSizes", "Tempering", "log_joint_at"]


class _Encoded(NamedTuple):
    x: Tensor
    start: Distribution
    reverse: Any


def log_joint_at(model: GenerativeModel, x: Tensor) -> hmc.LogDensity:
    """Return log p(x, z), (K, B), as a function of z, (K, B, D), for images x, (B, X)."""
    return lambda z: torch.add(*model.log_joint(x, z))


class StepSizes(nn.Module):
    """One learned step size per latent coordinate, in (0, ``max_step_size``), at first ``step_size``."""

    def __init__(self, dim: int, step_size: float, max_step_size: float) -> None:
        super().__init__()
        if not 0 < step_size < max_step_size:
            raise ValueError(f"step_size must be > 0 and < max_step_size={max_step_size}, got {step_size}")
        self.raw = nn.Parameter(torch.full((dim,), step_size / max_step_size).logit())
        self.max_step_size = max_step_size

    def forward(self) -> Tensor:
        """Return the step sizes, (D,)."""
        return self.max_step_size * self.raw.sigmoid()


class Tempering(nn.Module):
    """Factors, one per step, that reduce the momentum; before the first step it is divided by their product.

    ``fixed`` sets the inverse temperatures beta_0 (learned), ..., beta_K = 1 by 1/sqrt(beta_k) = 1/sqrt(beta_0) +
    (1 - 1/sqrt(beta_0)) k^2/K^2, with factors sqrt(beta_{k-1}/beta_k); ``free`` learns each factor.

    Source: Caterini, Doucet and Sejdinovic 2018, https://arxiv.org/abs/1805.11328
    """

    def __init__(self, tempering: str, steps: int, initial_beta: float) -> None:
        super().__init__()
        one_of(["none", "fixed", "free"], tempering=tempering)
        between(0, 1, initial_beta=initial_beta)
        self.kind, self.steps = tempering, steps
        if tempering == "fixed":
            self.raw = nn.Parameter(torch.tensor(initial_beta).logit())
        elif tempering == "free":
            factor = torch.tensor(initial_beta) ** (0.5 / max(1, steps))
            self.raw = nn.Parameter(factor.logit().repeat(steps))

    def forward(self) -> Tensor | None:
        """Return the factors, (K,), or None if there are none."""
        if self.kind == "none" or self.steps == 0:
            return None
        if self.kind == "free":
            return self.raw.sigmoid()
        hottest = self.raw.sigmoid().rsqrt()
        progress = torch.arange(self.steps + 1, dtype=hottest.dtype, device=hottest.device) / self.steps
        inverse_root = hottest + (1 - hottest) * progress.square()
        return inverse_root[1:] / inverse_root[:-1]


class HamiltonianEncoder(Encoder):
    """z_0 ~ q0(z|x) and a momentum rho_0 ~ N(0, I), which K leapfrog steps move together to (z, rho):

    log_q = log q0(z_0|x) + log N(rho_0; 0, I) - log r(rho|z,x)

    The energy is -log p(x, z) + rho^2/2. Leapfrog steps preserve volume, and the factors of tempering over all steps
    cancel its factor before the first step. So the first two terms are the exact density of the pair (z, rho): the
    momentum has the density of its draw rho_0. The reverse model r approximates q(rho|z,x), hence
    E[exp(-log_q) | z] = 1/q(z|x): log_q is an upper bound, as in HVM. It is exact if r = q(rho|z,x). For K = 0 and
    r = N(0, I) it is the density of q0.

    ======================  ============  ==============================================================
    r learned               no tempering  HVI    Salimans, Kingma and Welling 2015, https://arxiv.org/abs/1410.6460
    r = N(0, I)             tempering     HVAE   Caterini et al. 2018, https://arxiv.org/abs/1805.11328
    ======================  ============  ==============================================================

    The gradient of the bound flows through the steps, by second derivatives, to all parameters, the model's included.

    Args:
        start: ``start(x)`` is q0(z|x), batch shape (B,).
        model: p(x, z); it is not a submodule of the encoder.
        step_sizes: returns the step sizes, (D,).
        tempering: returns the factors on the momentum, (K,), or None.
        reverse: ``reverse(z, reverse.condition(x))`` is r(rho|z,x), batch shape (K, B); None uses N(0, I).
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
        # In a tuple, so that torch does not register it as a submodule; copies of the encoder copy it too.
        self._model = (model,)

    @classmethod
    def build(
        cls,
        context: BuildContext,
        *,
        leapfrog_steps: int,
        step_size: float,
        max_step_size: float,
        learned_reverse: bool,
        tempering: str,
        initial_beta: float,
    ) -> "HamiltonianEncoder":
        """Build the encoder with the configured networks."""
        at_least(0, leapfrog_steps=leapfrog_steps)
        latent = context.latent_dim
        return cls(
            context.networks.gaussian(context.x_dim, latent),
            context.model,
            StepSizes(latent, step_size, max_step_size),
            Tempering(tempering, leapfrog_steps, initial_beta),
            context.networks.conditional(context.x_dim, latent, latent) if learned_reverse else None,
            steps=leapfrog_steps,
        )

    def encode(self, x: Tensor) -> _Encoded:
        """Return q0(z|x) and the part of the reverse model that depends on x, (B, X), alone."""
        return _Encoded(x, self.start(x), None if self.reverse is None else self.reverse.condition(x))

    def sample(
        self, encoded: _Encoded, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        """Draw z of (K, B, D) and its log_q."""
        del inner_k, inner_chunk, path_only  # see no_path_gradient
        z = encoded.start.rsample((k,))
        rest = standard_normal(z.shape[-1], z)
        rho = rest.rsample(z.shape[:-1])
        log_joint = encoded.start.log_prob(z) + rest.log_prob(rho)
        z, rho = self.move(encoded.x, z, rho)
        reverse = rest if self.reverse is None else self.reverse(z, encoded.reverse)
        return Draw(z, log_joint - reverse.log_prob(rho))

    def log_q_at(self, encoded: _Encoded, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor:
        """Return log 1/L sum_l q(z, rho_l|x) / r(rho_l|z,x), (K, B), at z of (K, B, D), with L fresh rho ~ r.

        The density of a pair is the density of its start, which the reversed steps compute.
        """
        rest = standard_normal(z.shape[-1], z)
        reverse = rest if self.reverse is None else self.reverse(z, encoded.reverse)
        missing = z.shape[: z.dim() - 1 - len(reverse.batch_shape)]
        ratios = LogMeanExp()
        for first in range(0, samples, chunk or samples):
            count = min(chunk or samples, samples - first)
            with noise.inner_samples(first):
                rho = reverse.rsample((count, *missing))
            log_r = reverse.log_prob(rho)
            # Inner samples share an axis with the K draws, because some models take no further axis.
            ends = z.expand_as(rho).flatten(0, 1), rho.flatten(0, 1)
            start, momentum = self.back(encoded.x, *ends)
            log_pair = encoded.start.log_prob(start) + rest.log_prob(momentum)
            ratios.add(log_pair.unflatten(0, (count, -1)) - log_r)
        return ratios.value().to(z)

    def back(self, x: Tensor, z: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Return the start from which :meth:`move` leads to (z, rho), both (K, B, D)."""
        if self.steps == 0:
            return z, rho
        slope_at = partial(hmc.slope, log_joint_at(self._model[0], x))
        step_sizes, factors = self.step_sizes(), self.tempering()
        gradient = slope_at(z)
        for step in reversed(range(self.steps)):
            if factors is not None:
                rho = rho / factors[step]
            # A step of the opposite sign reverses a step.
            z, rho, gradient = hmc.leapfrog(slope_at, z, rho, gradient, -step_sizes)
        return z, rho if factors is None else rho * factors.prod()

    def move(self, x: Tensor, z: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Return the end of K leapfrog steps from (z, rho), both (K, B, D); the map preserves volume."""
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
