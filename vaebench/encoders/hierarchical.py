"""Hierarchical encoders: q(z|x) = integral of q(z|psi,x) q(psi|x) dpsi.

One class holds the whole school of bounds; its cells differ in the reverse model and in L:

    learned reverse, L = 0     HVM    Ranganath, Tran and Blei 2016, https://arxiv.org/abs/1511.02386
                               (= auxiliary deep generative models, https://arxiv.org/abs/1602.05473)
    reverse = q(psi|x), L > 0  SIVI   Yin and Zhou 2018, https://arxiv.org/abs/1805.11183
    learned reverse, L > 0     IWHVI  Sobolev and Vetrov 2019, https://arxiv.org/abs/1905.03290

UIVI takes SIVI's cell and differentiates it otherwise: vaebench.encoders.unbiased.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench import noise
from vaebench.bounds import LogMeanExp
from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import (
    AuxiliaryLoss,
    BuildContext,
    Direction,
    Draw,
    Encoder,
    LogQBounds,
    Tau,
    detached,
    enclosed,
    frozen,
)
from vaebench.encoders.implicit import MeanGiven, StochasticLayers
from vaebench.encoders.reverse import GatedReverse
from vaebench.errors import UserError, did_you_mean
from vaebench.nets.heads import Conditional

__all__ = ["Context", "HierarchicalEncoder", "Joint"]


class Context(NamedTuple):
    """What a hierarchical encoder knows of the images alone."""

    x: Tensor
    mixing: Distribution
    conditional: Any
    reverse: Any


class Joint(NamedTuple):
    """A draw from q(z, psi|x)."""

    psi: Tensor
    """The psi_0 that made z, (K, B, P)."""
    q_z: Distribution
    """q(z|psi_0,x)."""
    z: Tensor
    """(K, B, D)."""


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


SAMPLERS = ("gaussian", "bernoulli_noise")
TAU_GRADIENTS = ("reparam", "dreg")


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
        share_psi: draw psi_1..L once for all K draws of z; only valid where tau ignores z. Cheaper, and still a
            lower bound on log p(x), but one that does not converge in K alone: the shared psi sit in every weight.
        tau_gradient: ``reparam``, or ``dreg`` for a gradient in tau's parameters of less variance and the same
            mean; tau must then be a DiagonalNormal.
        tau_steps: extra steps for tau's parameters alone, for each step of the main loss.
        tau_warmup: epochs at the start of the training in which tau alone is trained.
    """

    direction = Direction.UPPER_BOUND
    has_inner_samples = True

    def __init__(
        self,
        mixing: nn.Module,
        conditional: Conditional,
        reverse: Conditional | None,
        *,
        share_psi: bool = False,
        tau_gradient: str = "reparam",
        tau_steps: int = 0,
        tau_warmup: int = 0,
    ) -> None:
        super().__init__()
        if share_psi and reverse is not None:
            raise ValueError("share_psi needs reverse=None (SIVI): a learned tau(psi|z,x) has its own psi for each z")
        self.mixing = mixing
        self.conditional = conditional
        self.reverse = reverse
        self.share_psi = share_psi
        self.tau_gradient = _one_of("tau_gradient", tau_gradient, TAU_GRADIENTS)
        self.tau_steps, self.tau_warmup = tau_steps, tau_warmup
        self._last_inner_k = 1
        if tau_gradient == "dreg":
            self.no_path_gradient = "encoder.tau_gradient=dreg changes what flows back through z"

    @classmethod
    def build(
        cls,
        site: BuildContext,
        *,
        psi_dim: int,
        learned_reverse: bool,
        share_psi: bool = False,
        tau_gate: float | None = None,
        tau_gradient: str = "reparam",
        tau_steps: int = 0,
        tau_warmup: int = 0,
        sampler: str = "gaussian",
        noise_dims: Sequence[int] = (),
    ) -> "HierarchicalEncoder":
        """Make one with the configured networks.

        Args:
            site: the networks and widths.
            psi_dim: width of psi.
            learned_reverse: whether there is a tau(psi|z,x), or q(psi|x) stands in for it.
            share_psi: see the class.
            tau_gate: initial bias of a gate between q(psi|x) and tau's own Gaussian; None for no gate.
            tau_gradient: see the class.
            tau_steps: see the class.
            tau_warmup: see the class.
            sampler: q(psi|x) is ``gaussian``, or the implicit ``bernoulli_noise`` of the SIVI paper.
            noise_dims: coin flips fed to each of the layers of ``bernoulli_noise``.

        Raises:
            UserError: settings that do not go together.
        """
        if _one_of("sampler", sampler, SAMPLERS) == "bernoulli_noise":
            return cls._implicit(site, psi_dim, noise_dims, share_psi)
        networks, x_dim, latent_dim = site.networks, site.x_dim, site.latent_dim
        mixing = networks.gaussian(x_dim, psi_dim)
        reverse = networks.conditional(x_dim, latent_dim, psi_dim) if learned_reverse else None
        if reverse is not None and tau_gate is not None:
            reverse = GatedReverse(reverse, mixing, psi_dim, _number("tau_gate", tau_gate))
        conditional = networks.conditional(x_dim, psi_dim, latent_dim)
        return cls(
            mixing,
            conditional,
            reverse,
            share_psi=share_psi,
            tau_gradient=tau_gradient,
            tau_steps=tau_steps,
            tau_warmup=tau_warmup,
        )

    @classmethod
    def _implicit(
        cls, site: BuildContext, psi_dim: int, noise_dims: Sequence[int], share_psi: bool
    ) -> "HierarchicalEncoder":
        """Make SIVI's encoder with the paper's implicit mixing distribution."""
        if psi_dim != site.latent_dim:
            raise UserError(
                "encoder.sampler=bernoulli_noise draws the mean of z, so that encoder.psi_dim has to be "
                f"latent_dim={site.latent_dim}, not {psi_dim}: leave it out"
            )
        if not noise_dims or not all(type(width) is int and width > 0 for width in noise_dims):
            raise UserError(f"encoder.noise_dims must be a list of widths such as [150,100,50], not {noise_dims}")
        hidden, activation = site.networks.hidden, site.networks.activation
        encoder = cls(
            StochasticLayers(site.x_dim, site.latent_dim, noise_dims, hidden, activation),
            MeanGiven(site.x_dim, site.latent_dim, hidden, activation),
            None,
            share_psi=share_psi,
        )
        encoder.no_path_gradient = "encoder.sampler=bernoulli_noise has no density of psi"
        return encoder

    def encode(self, x: Tensor) -> Context:
        """Run the parts of all three networks that depend on x, (B, X), alone."""
        reverse = None if self.reverse is None else self.reverse.condition(x)
        return Context(x, self.mixing(x), self.conditional.condition(x), reverse)

    def sample(
        self,
        context: Context,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        """Draw z of (K, B, D) and its log_q with L = ``inner_k`` further samples of psi."""
        if path_only and self.share_psi and inner_k and k > 1:
            # The DReG identity exchanges psi_0 with psi_1..L within one weight; shared ones sit in all of them.
            raise ValueError("share_psi=True biases STL and DReG for k > 1: use share_psi=False, or reparam")
        if torch.is_grad_enabled():
            self._last_inner_k = inner_k
        joint = self.joint(context, k)
        if path_only and self.no_path_gradient is None:
            # Views: a hook on them scales what the log weights send back, and not what flows from z into psi.
            z, psi = joint.z.view_as(joint.z), joint.psi.view_as(joint.psi)
            ratio = self._frozen_ratio(context, self._tau(context, z))
            log_ratio = ratio.log_ratio(z, psi)
            return Draw(z, self._log_q(ratio, z, log_ratio, inner_k, inner_chunk), (z, psi))
        if self.tau_gradient == "dreg" and inner_k and torch.is_grad_enabled():
            tau = self._tau(context, joint.z)
            log_q, inner = self._log_q_for_dreg(self._ratio(context, tau), joint, inner_k)
            return Draw(joint.z, log_q, (), inner)
        return Draw(joint.z, self.log_q(context, joint, inner_k, inner_chunk))

    def joint(self, context: Context, k: int) -> Joint:
        """Draw psi_0 and z, K for each image."""
        psi = context.mixing.rsample((k,))
        q_z = self.conditional(psi, context.conditional)
        return Joint(psi, q_z, q_z.rsample())

    def log_q(self, context: Context, joint: Joint, inner_k: int, inner_chunk: int | None = None) -> Tensor:
        """Return the bound on log q(z|x), (K, B), from psi_0 and ``inner_k`` fresh samples."""
        ratio = self._ratio(context, self._tau(context, joint.z))
        log_ratio = ratio.correction(joint.psi) + joint.q_z.log_prob(joint.z)
        return self._log_q(ratio, joint.z, log_ratio, inner_k, inner_chunk)

    def log_q_at(self, context: Context, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor:
        """Return log 1/L sum_{l=1..L} r_l, (K, B), at z of (K, B, D), with L = ``samples`` fresh psi for each."""
        return self._fresh(self._ratio(context, self._tau(context, z)), z, samples, chunk)

    def log_q_bounds(self, context: Context, k: int, *, inner_k: int = 0, inner_chunk: int | None = None) -> LogQBounds:
        """Draw z of (K, B, D) with bounds on its log q(z|x) from both sides, and with log q(z|psi_0,x).

        Each z has its own psi_1..L, also where training shares them: errors of the draws are then independent.
        """
        joint = self.joint(context, k)
        ratio = self._ratio(context, self._tau(context, joint.z))
        conditional = joint.q_z.log_prob(joint.z)
        fresh = self._fresh(ratio, joint.z, inner_k, inner_chunk) if inner_k else None
        return enclosed(joint.z, ratio.correction(joint.psi) + conditional, fresh, inner_k, conditional)

    def _fresh(self, ratio: _Ratio, z: Tensor, samples: int, chunk: int | None) -> Tensor:
        """Average the ratios of ``samples`` fresh psi for each z, (K, B), in the log domain."""
        ratios = LogMeanExp()
        for psi in self._inner(ratio.tau, z, samples, chunk or samples, share=False):
            ratios.add(ratio.log_ratio(z, psi))
        return ratios.value().to(z.dtype)

    def _tau(self, context: Context, z: Tensor) -> Distribution:
        return context.mixing if self.reverse is None else self.reverse(z, context.reverse)

    def _ratio(self, context: Context, tau: Distribution) -> _Ratio:
        mixing = None if self.reverse is None else context.mixing
        return _Ratio(self.conditional, context.conditional, mixing, tau)

    def _log_q(self, ratio: _Ratio, z: Tensor, log_ratio: Tensor, inner_k: int, inner_chunk: int | None) -> Tensor:
        """Average the ratio of psi_0, (K, B), with those of ``inner_k`` fresh samples."""
        ratios = LogMeanExp() if inner_chunk else _Gather()
        ratios.add(log_ratio.unsqueeze(0))
        for psi in self._inner(ratio.tau, z, inner_k, inner_chunk or inner_k, share=self.share_psi):
            ratios.add(ratio.log_ratio(z, psi))
        return ratios.value().to(z.dtype)

    def _log_q_for_dreg(self, ratio: _Ratio, joint: Joint, inner_k: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same number, with tau held constant where it scores its own samples.

        b_l being the share of sample l in the mean, the path derivative of psi_l is weighted by b_l^2, in which
        the score of tau is contained; the sample psi_0 keeps its score, -b_0 dlog tau(psi_0)/deta.
        """
        log_ratio = ratio.correction(joint.psi) + joint.q_z.log_prob(joint.z)
        (psi,) = self._inner(ratio.tau, joint.z, inner_k, inner_k, share=self.share_psi)
        tau = ratio.tau
        if not isinstance(tau, DiagonalNormal):
            raise TypeError("tau_gradient='dreg' needs a reverse model that returns a DiagonalNormal")
        constant = ratio._replace(tau=DiagonalNormal(tau.mean.detach(), tau.scale.detach()))
        ratios = _Gather()
        ratios.add(log_ratio.unsqueeze(0))
        ratios.add(constant.log_ratio(joint.z, psi))
        if not psi.requires_grad:
            return ratios.value(), ()
        share = torch.cat(ratios.parts).detach().softmax(0)[1:].unsqueeze(-1)
        psi.register_hook(lambda gradient: gradient * share.to(gradient.dtype))
        return ratios.value(), (psi,)

    def rescored(self, *, tau: Tau | None = None, share_psi: bool | None = None) -> "HierarchicalEncoder":
        """Return the same q(z|x) with another tau, or with inner samples that all draws of z share."""
        if tau == "learned" and self.reverse is None:
            raise ValueError("it has no learned tau(psi|z,x): its inner samples come from q(psi|x)")
        reverse = None if tau == "prior" else self.reverse
        shared = self.share_psi if share_psi is None else share_psi
        if shared and reverse is not None:
            raise ValueError("the inner samples of a learned tau(psi|z,x) follow their z and cannot be shared")
        if reverse is self.reverse and shared == self.share_psi:
            return self
        return HierarchicalEncoder(self.mixing, self.conditional, reverse, share_psi=shared)

    def auxiliary_losses(self) -> dict[str, AuxiliaryLoss]:
        """Return tau's warm-up and extra steps, if there are any."""
        if self.reverse is None or not (self.tau_steps or self.tau_warmup):
            return {}
        return {
            "tau": AuxiliaryLoss(
                list(self.reverse.parameters()),
                self.tau_loss,
                max(1, self.tau_steps),
                exclusive=False,
                warmup_epochs=self.tau_warmup,
                stop_epoch=math.inf if self.tau_steps else self.tau_warmup,
            )
        }

    def tau_loss(self, x: Tensor) -> Tensor:
        """Return the mean of log_q over images x, (B, X), to be lowered in tau: it does no more than tighten it.

        With as many inner samples as the main loss has just had.
        """
        assert self.reverse is not None
        with torch.no_grad():
            context = self.encode(x)
            joint = self.joint(context, 1)
        tau = self.reverse(joint.z, self.reverse.condition(x))
        ratio = self._frozen_ratio(context, tau)
        if self.tau_gradient == "dreg" and self._last_inner_k:
            return self._log_q_for_dreg(ratio, joint, self._last_inner_k)[0].mean()
        log_ratio = ratio.correction(joint.psi) + joint.q_z.log_prob(joint.z)
        return self._log_q(ratio, joint.z, log_ratio, self._last_inner_k, None).mean()

    def _inner(self, tau: Distribution, z: Tensor, inner_k: int, chunk: int, *, share: bool) -> Iterator[Tensor]:
        """Yield psi_1..L ~ tau as (chunk, K, B, P), or (chunk, 1, B, P) where all z share them."""
        follows_z = len(tau.batch_shape) == z.dim() - 1
        k = () if follows_z else (1,) if share else (z.shape[0],)
        for first in range(0, inner_k, chunk or 1):
            sharing = noise.shared_over_samples() if share else nullcontext()
            with noise.inner_samples(first), sharing:
                psi = tau.rsample((min(chunk, inner_k - first), *k))
            yield psi

    def _frozen_ratio(self, context: Context, tau: Distribution) -> _Ratio:
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


def _one_of(key: str, value: str, words: Sequence[str]) -> str:
    if value not in words:
        hint = did_you_mean(str(value), words)
        raise UserError(f"encoder.{key} must be one of {', '.join(words)}, not {value!r}{hint}")
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"encoder.{key} must be a number or null, not {value!r}")
    return float(value)
