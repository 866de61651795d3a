"""Encoders refined by unadjusted Langevin steps towards the model's posterior."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench import hmc, noise
from vaebench.bounds import LogMeanExp
from vaebench.distributions import standard_normal
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder
from vaebench.encoders.hamiltonian import StepSizes, log_joint_at
from vaebench.model import GenerativeModel

__all__ = ["LangevinEncoder"]


class _Context(NamedTuple):
    x: Tensor
    start: Distribution


class LangevinEncoder(Encoder):
    """z_0 ~ q0(z|x), then T noisy steps along densities gamma_t that lead from q0 to the model's posterior:

    z_t = z_{t-1} + e^2/2 dlog gamma_t(z_{t-1})/dz + e xi_t,  log gamma_t = (1 - t/T) log q0(z|x) + t/T log p(x, z)
    log_q = log q0(z_0|x) + sum_t [ log m_t(z_t|z_{t-1}) - log m_t(z_{t-1}|z_t) ]

    m_t being the Gaussian kernel of step t, forward to draw with and backward as the model of what came before.
    The backward kernels are normalised densities of z_0..z_{T-1} given z = z_T, whatever the steps do, hence
    E[exp(-log_q) | z] = 1/q(z|x): log_q is an upper bound, as in HVM, with the path as the auxiliary variable. No
    step is ever rejected, so that all is differentiable; T = 0 is q0 itself.

    Source: the Langevin encoder of Thin et al. 2021, https://arxiv.org/abs/2106.15921

    Args:
        start: ``start(x)`` is q0(z|x), batch shape (B,).
        model: p(x, z); it is followed, and no part of this module.
        step_sizes: returns e, (D,).
        steps: number T of steps.
    """

    direction = Direction.UPPER_BOUND
    no_path_gradient = "its log density is that of a path, not a function of the path's end"

    def __init__(self, start: nn.Module, model: GenerativeModel, step_sizes: nn.Module, *, steps: int) -> None:
        super().__init__()
        self.start = start
        self.step_sizes = step_sizes
        self.steps = steps
        # A tuple hides it from the module's parameters and states, and is copied along with the encoder.
        self._model = (model,)

    @classmethod
    def build(cls, site: BuildContext, *, steps: int, step_size: float, max_step_size: float) -> "LangevinEncoder":
        """Make one with the configured networks."""
        start = site.networks.gaussian(site.x_dim, site.latent_dim)
        return cls(start, site.model, StepSizes(site.latent_dim, step_size, max_step_size), steps=steps)

    def encode(self, x: Tensor) -> _Context:
        """Return q0(z|x) for x of shape (B, X)."""
        return _Context(x, self.start(x))

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
        log_q = context.start.log_prob(z)
        if self.steps == 0:
            return Draw(z, log_q)
        step_size, slopes = self.step_sizes(), self._slopes(context, z)
        for step in range(1, self.steps + 1):
            before = z
            xi = standard_normal(z.shape[-1], z).rsample(z.shape[:-1])
            z = before + self._drift(slopes, step, step_size) + step_size * xi
            slopes = self._slopes(context, z)
            back = (before - z - self._drift(slopes, step, step_size)) / step_size
            # The two kernels have the same scales, so that only the squares differ.
            log_q = log_q + 0.5 * (back.square() - xi.square()).sum(-1)
        return Draw(z, log_q)

    def log_q_at(self, context: _Context, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor:
        """Return log 1/L sum_l q(path_l, z|x) / m(path_l|z), (K, B), at z of (K, B, D), with L fresh paths.

        Each comes from the backward kernels, which model the path that led to z.
        """
        ratios = LogMeanExp()
        for first in range(0, samples, chunk or samples):
            count = min(chunk or samples, samples - first)
            # Inner samples join the K draws of an image, for models that take no further axis.
            ends = z.expand(count, *z.shape).flatten(0, 1)
            ratios.add(self._back(context, ends, count, first).unflatten(0, (count, -1)))
        return ratios.value().to(z.dtype)

    def _back(self, context: _Context, z: Tensor, count: int, first: int) -> Tensor:
        """Draw a path back from each z, (count K, B, D), and return its log density over that of the draw."""
        if self.steps == 0:
            return context.start.log_prob(z)
        log_ratio: Tensor | float = 0.0
        step_size, slopes = self.step_sizes(), self._slopes(context, z)
        with noise.inner_samples(first):
            for step in reversed(range(1, self.steps + 1)):
                after = z
                back = standard_normal(z.shape[-1], z).rsample((count, len(z) // count, z.shape[1])).flatten(0, 1)
                z = after + self._drift(slopes, step, step_size) + step_size * back
                slopes = self._slopes(context, z)
                xi = (after - z - self._drift(slopes, step, step_size)) / step_size
                # The two kernels have the same scales, so that only the squares differ.
                log_ratio = log_ratio + 0.5 * (back.square() - xi.square()).sum(-1)
        return context.start.log_prob(z) + log_ratio

    def _slopes(self, context: _Context, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of log q0(z|x) and log p(x, z) in z, (K, B, D) each."""
        log_joint = log_joint_at(self._model[0], context.x)
        return hmc.slope(context.start.log_prob, z), hmc.slope(log_joint, z)

    def _drift(self, slopes: tuple[Tensor, Tensor], step: int, step_size: Tensor) -> Tensor:
        """Return e^2/2 dlog gamma_t/dz from the two gradients."""
        return 0.5 * step_size.square() * torch.lerp(*slopes, step / self.steps)
