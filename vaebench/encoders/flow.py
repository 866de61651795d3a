"""Flow encoders: invertible steps transform a diagonal Gaussian draw and its log density."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vaebench.arguments import at_least
from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder
from vaebench.flows.flow import Flow, FlowContext, StepParameters
from vaebench.nets.dense import TrunkGaussian

__all__ = ["FlowEncoder", "FlowPosterior"]


@dataclass(frozen=True)
class FlowPosterior:
    """q(z|x) for B images: z_0 ~ base, z_t = step_t(z_{t-1}), z = z_T.

    log q(z|x) = log base(z_0) - sum_t log|det dz_t/dz_{t-1}|.
    """

    base: DiagonalNormal
    """Batch shape (B,)."""
    steps: tuple[Flow, ...]
    conditioned: tuple[StepParameters, ...]
    """The parameters of each step, computed from the images."""

    def rsample_and_log_prob(self, shape: Sequence[int] = (), *, path_only: bool = False) -> tuple[Tensor, Tensor]:
        """Return draws, (*shape, B, D), and their log density, in one pass; both differentiable in all parameters.

        With ``path_only`` the gradient of the density flows through the draws alone (constant parameters).
        """
        z, log_base = self.base.rsample_and_log_prob(tuple(shape))
        trail, log_det = self._forward(z)
        log_q = log_base - log_det
        return trail[-1], self._follow(trail, log_q) if path_only else log_q

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x), (K, B), for any z, (K, B, D), by the inverse of every step.

        Differentiable in z, not in the parameters. The inverse of an autoregressive step takes D passes. The inverse of
        a planar or Sylvester step is a root search.
        """
        trail = [z]
        with torch.no_grad():
            for step, conditioned in reversed(self._chain()):
                trail.insert(0, step.inverse(trail[0], conditioned))
            log_q = self.base.log_prob(trail[0]) - self._forward(trail[0])[1]
        return self._follow(trail, log_q)

    def _chain(self) -> list[tuple[Flow, StepParameters]]:
        return list(zip(self.steps, self.conditioned, strict=True))

    def _forward(self, z: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return z_0, ..., z_T and the sum of the steps' log-determinants."""
        trail, log_det = [z], z.new_zeros(z.shape[:-1])
        for step, conditioned in self._chain():
            moved = step(trail[-1], conditioned)
            trail.append(moved.z)
            log_det = log_det + moved.log_det
        return trail, log_det

    def _follow(self, trail: list[Tensor], log_q: Tensor) -> Tensor:
        """Return the value ``log_q`` with the gradient of log q(z) in z, for constant parameters."""
        z = trail[-1]
        if not (torch.is_grad_enabled() and z.requires_grad):
            return log_q.detach()
        base = self.base.detached()
        score = (base.mean - trail[0].detach()) / base.variance
        for (step, conditioned), before in zip(self._chain(), trail[:-1], strict=True):
            score = step.push_score(before, conditioned, score)
        return log_q.detach() + ((z - z.detach()) * score).sum(-1)


class FlowEncoder(Encoder):
    """q(z|x) of a diagonal Gaussian and invertible steps; its density is exact.

    Without steps it equals the Gaussian encoder exactly. The Gaussian and the steps are amortised: one trunk computes
    features of x, and every step computes its parameters from these features.

    Source: Rezende and Mohamed 2015, https://arxiv.org/abs/1505.05770; each step names its source.

    Args:
        posterior: maps x, (B, X), to the base; its trunk maps x to features.
        steps: in the order in which they act on a draw.
    """

    direction = Direction.EXACT

    def __init__(self, posterior: TrunkGaussian, steps: Sequence[Flow]) -> None:
        super().__init__()
        self.posterior = posterior
        self.steps = nn.ModuleList(steps)

    @classmethod
    def build(cls, context: BuildContext, *, step: Callable[..., Flow], steps: int, **settings: Any) -> "FlowEncoder":
        """Build the encoder with the configured trunk and ``steps`` steps, each ``step(context, **settings)``."""
        at_least(0, steps=steps)
        posterior = context.networks.gaussian(context.x_dim, context.latent_dim)
        width, activation = posterior.trunk.width, context.networks.activation
        contexts = [FlowContext(width, context.latent_dim, index, activation) for index in range(steps)]
        return cls(posterior, [step(each, **settings) for each in contexts])

    def encode(self, x: Tensor) -> FlowPosterior:
        """Return q(z|x) for x of shape (B, X)."""
        features = self.posterior.trunk(x)
        steps = cast(tuple[Flow, ...], tuple(self.steps))
        conditioned = tuple(step.condition(features) for step in steps)
        return FlowPosterior(self.posterior.head(features), steps, conditioned)

    def sample(
        self,
        encoded: FlowPosterior,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        """Draw z, (K, B, D), with its exact log density, in one pass through the steps."""
        del inner_k, inner_chunk  # the density is known
        z, log_q = encoded.rsample_and_log_prob((k,), path_only=path_only)
        return Draw(z, log_q, (z,) if path_only else ())
