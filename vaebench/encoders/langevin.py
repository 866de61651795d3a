"""Encoders refined by unadjusted Langevin steps towards the model's posterior."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench import hmc, noise
from vaebench.arguments import at_least
from vaebench.bounds import LogMeanExp
from vaebench.distributions import standard_normal
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder
from vaebench.encoders.hamiltonian import StepSizes, log_joint_at
from vaebench.model import GenerativeModel

__all__ = ["LangevinEncoder"]


class _Encoded(NamedTuple):
    x: Tensor
    start: Distribution


class LangevinEncoder(Encoder):
    """z_0 ~ q0(z|x), then T noisy steps along densities gamma_t from q0 to the model's posterior:

    z_t = z_{t-1} + e^2/2 dlog gamma_t(z_{t-1})/dz + e xi_t,  log gamma_t = (1 - t/T) log q0(z|x) + t/T log p(x, z)
    log_q = log q0(z_0|x) + sum_t [ log m_t(z_t|z_{t-1}) - log m_t(z_{t-1}|z_t) ]

    m_t is the Gaussian kernel of step t: forward it draws z_t, backward it models z_{t-1}. The backward kernels are
    normalised densities of z_0..z_{T-1} given z = z_T for any steps, hence E[exp(-log_q) | z] = 1/q(z|x): log_q is an
    upper bound, as in HVM, with the path as the auxiliary variable. No step is rejected, so log_q is differentiable.
    T = 0 gives q0.

    Source: the Langevin encoder of Thin et al. 2021, https://arxiv.org/abs/2106.15921

    Args:
        start: ``start(x)`` is q0(z|x), batch shape (B,).
        model: p(x, z); it is not a submodule of the encoder.
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
        # In a tuple, so that torch does not register it as a submodule; copies of the encoder copy it too.
        self._model = (model,)

    @classmethod
    def build(cls, context: BuildContext, *, steps: int, step_size: float, max_step_size: float) -> "LangevinEncoder":
        """Build the encoder with the configured networks."""
        at_least(0, steps=steps)
        start = context.networks.gaussian(context.x_dim, context.latent_dim)
        return cls(start, context.model, StepSizes(context.latent_dim, step_size, max_step_size), steps=steps)

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
        if self.steps == 0:
            return Draw(z, log_q)
        step_size, slopes = self.step_sizes(), self._slopes(encoded, z)
        for step in range(1, self.steps + 1):
            before = z
            xi = standard_normal(z.shape[-1], z).rsample(z.shape[:-1])
            z = before + self._drift(slopes, step, step_size) + step_size * xi
            slopes = self._slopes(encoded, z)
            back = (before - z - self._drift(slopes, step, step_size)) / step_size
            # The two kernels have the same scales, so only the squares differ.
            log_q = log_q + 0.5 * (back.square() - xi.square()).sum(-1)
        return Draw(z, log_q)

    def log_q_at(self, encoded: _Encoded, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor:
        """Return log 1/L sum_l q(path_l, z|x) / m(path_l|z), (K, B), at z of (K, B, D), with L fresh paths.

        The paths are draws of the backward kernels.
        """
        ratios = LogMeanExp()
        for first in range(0, samples, chunk or samples):
            count = min(chunk or samples, samples - first)
            # Inner samples share an axis with the K draws, because some models take no further axis.
            ends = z.expand(count, *z.shape).flatten(0, 1)
            ratios.add(self._back(encoded, ends, count, first).unflatten(0, (count, -1)))
        return ratios.value().to(z)

    def _back(self, encoded: _Encoded, z: Tensor, count: int, first: int) -> Tensor:
        """Draw a path back from each z, (count K, B, D), and return the log ratio of its two densities."""
        if self.steps == 0:
            return encoded.start.log_prob(z)
        log_ratio: Tensor | float = 0.0
        step_size, slopes = self.step_sizes(), self._slopes(encoded, z)
        with noise.inner_samples(first):
            for step in reversed(range(1, self.steps + 1)):
                after = z
                back = standard_normal(z.shape[-1], z).rsample((count, len(z) // count, z.shape[1])).flatten(0, 1)
                z = after + self._drift(slopes, step, step_size) + step_size * back
                slopes = self._slopes(encoded, z)
                xi = (after - z - self._drift(slopes, step, step_size)) / step_size
                # The two kernels have the same scales, so only the squares differ.
                log_ratio = log_ratio + 0.5 * (back.square() - xi.square()).sum(-1)
        return encoded.start.log_prob(z) + log_ratio

    def _slopes(self, encoded: _Encoded, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of log q0(z|x) and log p(x, z) in z, (K, B, D) each."""
        log_joint = log_joint_at(self._model[0], encoded.x)
        return hmc.slope(encoded.start.log_prob, z), hmc.slope(log_joint, z)

    def _drift(self, slopes: tuple[Tensor, Tensor], step: int, step_size: Tensor) -> Tensor:
        """Return e^2/2 dlog gamma_t/dz from the two gradients."""
        return 0.5 * step_size.square() * torch.lerp(*slopes, step / self.steps)
