"""Flow encoders: a diagonal Gaussian draw, carried through invertible steps that are scored as they go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder
from vaebench.flows.flow import Conditioned, Flow, FlowContext
from vaebench.nets.heads import TrunkGaussian

__all__ = ["FlowEncoder", "FlowPosterior"]


@dataclass(frozen=True)
class FlowPosterior:
    """q(z|x) for B images: z_0 ~ base, z_t = step_t(z_{t-1}), z = z_T.

    log q(z|x) = log base(z_0) - sum_t log|det dz_t/dz_{t-1}|.
    """

    base: DiagonalNormal
    """Batch shape (B,)."""
    steps: tuple[Flow, ...]
    conditioned: tuple[Conditioned, ...]
    """What each step knows of the images."""

    def rsample_and_log_prob(self, shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw (*shape, B, D) and score it in one pass, both differentiable in all parameters."""
        z, log_q = self.base.rsample_and_log_prob(tuple(shape))
        trail, log_det = self._forward(z)
        return trail[-1], log_q - log_det

    def rsample_and_path_log_prob(self, shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw and score, but let the score's gradient flow through the draw alone, the parameters held constant."""
        z, log_q = self.base.rsample_and_log_prob(tuple(shape))
        trail, log_det = self._forward(z)
        return trail[-1], self._follow(trail, log_q - log_det)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x), (K, B), for any z, (K, B, D), through the inverse of every step.

        Differentiable in z, not in the parameters. The autoregressive step's inverse takes D passes; the planar
        and the Sylvester step's is a root search.
        """
        trail = [z]
        with torch.no_grad():
            for step, conditioned in reversed(self._chain()):
                trail.insert(0, step.inverse(trail[0], conditioned))
            log_q = self.base.log_prob(trail[0]) - self._forward(trail[0])[1]
        return self._follow(trail, log_q)

    def _chain(self) -> list[tuple[Flow, Conditioned]]:
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
        """Return the number ``log_q`` with grad log q(z), parameters constant, as its gradient in z."""
        z = trail[-1]
        if not (torch.is_grad_enabled() and z.requires_grad):
            return log_q.detach()
        mean, scale = self.base.mean.detach(), self.base.scale.detach()
        score = (mean - trail[0].detach()) / scale.square()
        for (step, conditioned), before in zip(self._chain(), trail[:-1], strict=True):
            score = step.push_score(before, conditioned, score)
        return log_q.detach() + ((z - z.detach()) * score).sum(-1)


class FlowEncoder(Encoder):
    """q(z|x) of a diagonal Gaussian and invertible steps, whose density is exact.

    Without steps it is the Gaussian encoder, number for number. Both the Gaussian and the steps are amortised:
    one trunk reads x, and every step has a head of its own on the trunk's features, or takes them as context.

    Source: Rezende and Mohamed 2015, https://arxiv.org/abs/1505.05770; each step names its own.

    Args:
        posterior: maps x, (B, X), to the base, and its trunk to features.
        steps: in the order in which a draw meets them.
    """

    direction = Direction.EXACT

    def __init__(self, posterior: TrunkGaussian, steps: Sequence[Flow]) -> None:
        super().__init__()
        self.posterior = posterior
        self.steps = nn.ModuleList(steps)

    @classmethod
    def build(cls, site: BuildContext, *, step: Callable[..., Flow], steps: int, **settings: Any) -> "FlowEncoder":
        """Make one with the configured trunk and ``steps`` steps, each ``step(place, **settings)``."""
        posterior = site.networks.gaussian(site.x_dim, site.latent_dim)
        width, activation = posterior.trunk.width, site.networks.activation
        places = [FlowContext(width, site.latent_dim, index, activation) for index in range(steps)]
        return cls(posterior, [step(place, **settings) for place in places])

    def encode(self, x: Tensor) -> FlowPosterior:
        """Return q(z|x) for x of shape (B, X)."""
        features = self.posterior.trunk(x)
        steps = cast(tuple[Flow, ...], tuple(self.steps))
        conditioned = tuple(step.condition(features) for step in steps)
        return FlowPosterior(self.posterior.head(features), steps, conditioned)

    def sample(
        self,
        context: FlowPosterior,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        """Draw (K, B, D) with the exact log density, in one pass through the steps."""
        del inner_k, inner_chunk  # the density is known
        if not path_only:
            return Draw(*context.rsample_and_log_prob((k,)))
        z, log_q = context.rsample_and_path_log_prob((k,))
        return Draw(z, log_q, (z,))
