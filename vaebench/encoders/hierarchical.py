"""Hierarchical encoders: q(z|x) = integral of q(z|psi,x) q(psi|x) dpsi.

One class holds the whole school of bounds; its cells differ in the reverse model and in L:

    learned reverse, L = 0     HVM    Ranganath, Tran and Blei 2016, https://arxiv.org/abs/1511.02386
                               (= auxiliary deep generative models, https://arxiv.org/abs/1602.05473)
    reverse = q(psi|x), L > 0  SIVI   Yin and Zhou 2018, https://arxiv.org/abs/1805.11183
    learned reverse, L > 0     IWHVI  Sobolev and Vetrov 2019, https://arxiv.org/abs/1905.03290
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench import noise
from vaebench.bounds import LogMeanExp
from vaebench.encoders.base import Direction, Draw, Encoder, detached, frozen
from vaebench.nets import Conditional, Networks

__all__ = ["HierarchicalEncoder"]


class _Context(NamedTuple):
    x: Tensor
    mixing: Distribution
    conditional: Any
    reverse: Any


class _Ratio(NamedTuple):
    """log r(psi) = log q(z, psi|x) - log tau(psi|z, x) for one z."""

    conditional: Callable[..., Distribution]
    conditioned: Any
    mixing: Distribution | None
    """q(psi|x); None where tau is that same distribution and the two cancel."""
    tau: Distribution

    def log_ratio(self, z: Tensor, psi: Tensor) -> Tensor:
        """Return log r, (..., K, B), for z (K, B, D) and psi (..., K, B, P)."""
        return self.correction(psi) + self.conditional(psi, self.conditioned).log_prob(z)

    def correction(self, psi: Tensor) -> Tensor:
        """Return log q(psi|x) - log tau(psi|z, x)."""
        if self.mixing is None:
            return psi.new_zeros(())
        return self.mixing.log_prob(psi) - self.tau.log_prob(psi)


class HierarchicalEncoder(Encoder):
    """Reports the multisample upper bound on log q(z|x)

    log_q = log 1/(L+1) sum_{l=0..L} q(z, psi_l|x) / tau(psi_l|z, x)

    where psi_0 is the one that made z, a free sample of q(psi|z,x), and psi_1..L ~ tau. Leaving psi_0 out, or
    dividing by L, would turn the bound round and overstate log p(x).

    Args:
        mixing: ``mixing(x)`` is q(psi|x), batch shape (B,).
        conditional: ``conditional(psi, conditional.condition(x))`` is q(z|psi,x).
        reverse: ``reverse(z, reverse.condition(x))`` is tau(psi|z,x), batch shape (K, B); None takes q(psi|x)
            for it (SIVI), and then no density of psi is needed.
        share_psi: draw psi_1..L once for all K draws of z; only valid where tau ignores z.
    """

    direction = Direction.UPPER_BOUND

    def __init__(
        self,
        mixing: nn.Module,
        conditional: Conditional,
        reverse: Conditional | None,
        *,
        share_psi: bool = False,
    ) -> None:
        super().__init__()
        if share_psi and reverse is not None:
            raise ValueError("share_psi needs reverse=None (SIVI): a learned tau(psi|z,x) has its own psi for each z")
        self.mixing = mixing
        self.conditional = conditional
        self.reverse = reverse
        self.share_psi = share_psi

    @classmethod
    def build(
        cls,
        networks: Networks,
        x_dim: int,
        latent_dim: int,
        *,
        psi_dim: int,
        learned_reverse: bool,
        share_psi: bool = False,
    ) -> "HierarchicalEncoder":
        """Make one of Gaussian parts with the configured networks."""
        return cls(
            mixing=networks.gaussian(x_dim, psi_dim),
            conditional=networks.conditional(x_dim, psi_dim, latent_dim),
            reverse=networks.conditional(x_dim, latent_dim, psi_dim) if learned_reverse else None,
            share_psi=share_psi,
        )

    def encode(self, x: Tensor) -> _Context:
        """Run the parts of all three networks that depend on x, (B, X), alone."""
        reverse = None if self.reverse is None else self.reverse.condition(x)
        return _Context(x, self.mixing(x), self.conditional.condition(x), reverse)

    def sample(
        self,
        context: _Context,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        """Draw z of (K, B, D) and its log_q with L = ``inner_k`` further samples of psi."""
        psi = context.mixing.rsample((k,))
        q_z = self.conditional(psi, context.conditional)
        z = q_z.rsample()
        if path_only:
            # Views: a hook on them scales what the log weights send back, and not what flows from z into psi.
            z, psi = z.view_as(z), psi.view_as(psi)
        tau = context.mixing if self.reverse is None else self.reverse(z, context.reverse)
        if path_only:
            ratio = self._frozen_ratio(context, tau)
            log_ratio = ratio.log_ratio(z, psi)
        else:
            mixing = None if self.reverse is None else context.mixing
            ratio = _Ratio(self.conditional, context.conditional, mixing, tau)
            log_ratio = ratio.correction(psi) + q_z.log_prob(z)
        ratios = LogMeanExp() if inner_chunk else _Gather()
        ratios.add(log_ratio.unsqueeze(0))
        for psi_inner in self._inner(tau, z, inner_k, inner_chunk or inner_k):
            ratios.add(ratio.log_ratio(z, psi_inner))
        return Draw(z, ratios.value().to(z.dtype), (z, psi) if path_only else ())

    def _inner(self, tau: Distribution, z: Tensor, inner_k: int, chunk: int) -> Iterator[Tensor]:
        """Yield psi_1..L ~ tau as (chunk, K, B, P), or (chunk, 1, B, P) where all z share them."""
        follows_z = len(tau.batch_shape) == z.dim() - 1
        k = () if follows_z else (1,) if self.share_psi else (z.shape[0],)
        for first in range(0, inner_k, chunk or 1):
            sharing = noise.shared_over_samples() if self.share_psi else nullcontext()
            with noise.inner_samples(first), sharing:
                psi = tau.rsample((min(chunk, inner_k - first), *k))
            yield psi

    def _frozen_ratio(self, context: _Context, tau: Distribution) -> _Ratio:
        """The ratio with the parameters of q held constant, and those of tau live."""
        conditioned = detached(context.conditional)
        return _Ratio(frozen(self.conditional), conditioned, frozen(self.mixing)(context.x), tau)


class _Gather:
    """The plain form of :class:`LogMeanExp` for training: one differentiable log-sum-exp in the native dtype."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, log_ratios: Tensor) -> None:
        self.parts.append(log_ratios)

    def value(self) -> Tensor:
        log_ratios = torch.cat(self.parts)
        return torch.logsumexp(log_ratios, 0) - math.log(len(log_ratios))
