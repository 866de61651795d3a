"""Hierarchical encoders: q(z|x) = integral of q(z|psi,x) q(psi|x) dpsi.

One class computes these three bounds, which differ in the reverse model and in L:

    learned reverse, L = 0     HVM    Ranganath, Tran and Blei 2016, https://arxiv.org/abs/1511.02386
                               (= auxiliary deep generative models, https://arxiv.org/abs/1602.05473)
    reverse = q(psi|x), L > 0  SIVI   Yin and Zhou 2018, https://arxiv.org/abs/1805.11183
    learned reverse, L > 0     IWHVI  Sobolev and Vetrov 2019, https://arxiv.org/abs/1905.03290

UIVI has SIVI's bound with another gradient: vaebench.encoders.uivi.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench import noise
from vaebench.arguments import at_least, one_of, widths
from vaebench.bounds import LogMeanExp, log_mean_exp
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
    frozen,
    two_sided_bounds,
)
from vaebench.encoders.gated_reverse import GatedReverse
from vaebench.encoders.implicit_mixing import MeanGiven, StochasticLayers
from vaebench.nets.dense import Conditional

__all__ = ["Encoded", "HierarchicalEncoder", "Joint"]


class Encoded(NamedTuple):
    """The parts of a hierarchical encoder's computation that depend on the images alone."""

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
    log_q_z: Tensor
    """log q(z|psi_0,x), (K, B)."""


class _Ratio(NamedTuple):
    """log r(psi) = log q(z, psi|x) - log tau(psi|z, x) for one z."""

    conditional: Callable[..., Distribution]
    conditioned: Any
    mixing: Distribution | None
    """q(psi|x); None if tau is the same distribution, so that the two cancel."""
    tau: Distribution

    def log_ratio(self, z: Tensor, psi: Tensor) -> Tensor:
        """Return log r, (..., K, B), for z (K, B, D) and psi (..., K, B, P)."""
        return self.correction(psi) + self.log_conditional(z, psi)

    def log_conditional(self, z: Tensor, psi: Tensor) -> Tensor:
        """Return log q(z|psi,x)."""
        return self.conditional(psi, self.conditioned).log_prob(z)

    def correction(self, psi: Tensor) -> Tensor:
        """Return log q(psi|x) - log tau(psi|z, x)."""
        if self.mixing is None:
            return psi.new_zeros(())
        return self.mixing.log_prob(psi) - self.tau.log_prob(psi)


class HierarchicalEncoder(Encoder):
    """q(z|x) with the multisample upper bound on log q(z|x)

    log_q = log 1/(L+1) sum_{l=0..L} q(z, psi_l|x) / tau(psi_l|z, x)

    psi_0 made z, so it is a sample of q(psi|z,x); psi_1..L ~ tau. Without psi_0, or divided by L, log_q would be a
    lower bound, and log p(x) would be overestimated.

    Args:
        mixing: ``mixing(x)`` is q(psi|x), batch shape (B,).
        conditional: ``conditional(psi, conditional.condition(x))`` is q(z|psi,x).
        reverse: ``reverse(z, reverse.condition(x))`` is tau(psi|z,x), batch shape (K, B). None uses q(psi|x) (SIVI);
            psi then needs no density.
        share_psi: draw psi_1..L once for all K draws of z; only valid if tau does not depend on z. It is cheaper, and
            still gives a lower bound on log p(x), but a bound that does not converge in K alone, because all weights
            share psi_1..L.
        tau_gradient: ``reparam``, or ``dreg`` for a gradient in tau's parameters with the same mean and less variance;
            tau must then be a DiagonalNormal.
        tau_steps: extra steps on tau's parameters alone for each step of the main loss.
        tau_warmup: epochs at the start of training in which only tau is trained.

    Raises:
        ValueError: an argument is out of range, or ``share_psi`` with a learned tau.
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
            raise ValueError("share_psi must be false for a learned tau(psi|z,x), whose psi depend on z")
        one_of(["reparam", "dreg"], tau_gradient=tau_gradient)
        at_least(0, tau_steps=tau_steps, tau_warmup=tau_warmup)
        self.mixing = mixing
        self.conditional = conditional
        self.reverse = reverse
        self.share_psi = share_psi
        self.trained_tau = "prior" if reverse is None else "learned"
        self.tau_gradient = tau_gradient
        self.tau_steps, self.tau_warmup = tau_steps, tau_warmup
        self._last_inner_k = 1
        if tau_gradient == "dreg":
            self.no_path_gradient = "tau_gradient=dreg changes the gradient that flows back through z"

    @classmethod
    def build(
        cls,
        context: BuildContext,
        *,
        psi_dim: int,
        learned_reverse: bool,
        tau_gate: float | None = None,
        sampler: str = "gaussian",
        noise_dims: Sequence[int] = (),
        **options: Any,
    ) -> "HierarchicalEncoder":
        """Build the encoder with the configured networks.

        Args:
            context: the networks and widths.
            psi_dim: width of psi.
            learned_reverse: whether tau(psi|z,x) is learned; if not, tau is q(psi|x).
            tau_gate: initial bias of a gate between q(psi|x) and tau's own Gaussian; None for no gate.
            sampler: q(psi|x) is ``gaussian``, or the implicit ``bernoulli_noise`` of the SIVI paper.
            noise_dims: number of coin flips that each layer of ``bernoulli_noise`` takes.
            **options: keyword arguments of the class.

        Raises:
            ValueError: an argument is out of range or contradicts another argument.
        """
        at_least(1, psi_dim=psi_dim)
        one_of(["gaussian", "bernoulli_noise"], sampler=sampler)
        if sampler == "bernoulli_noise":
            return cls._implicit(context, psi_dim, noise_dims, **options)
        networks, x_dim, latent_dim = context.networks, context.x_dim, context.latent_dim
        mixing = networks.gaussian(x_dim, psi_dim)
        reverse = networks.conditional(x_dim, latent_dim, psi_dim) if learned_reverse else None
        if reverse is not None and tau_gate is not None:
            reverse = GatedReverse(reverse, mixing, psi_dim, tau_gate)
        return cls(mixing, networks.conditional(x_dim, psi_dim, latent_dim), reverse, **options)

    @classmethod
    def _implicit(
        cls, context: BuildContext, psi_dim: int, noise_dims: Sequence[int], **options: Any
    ) -> "HierarchicalEncoder":
        """Build SIVI's encoder with the paper's implicit mixing distribution."""
        if psi_dim != context.latent_dim:
            raise ValueError(
                f"psi_dim must be latent_dim={context.latent_dim} for sampler=bernoulli_noise, whose psi is the mean "
                f"of z, got {psi_dim}: leave psi_dim out"
            )
        widths(noise_dims=noise_dims)
        hidden, activation = context.networks.hidden, context.networks.activation
        encoder = cls(
            StochasticLayers(context.x_dim, context.latent_dim, noise_dims, hidden, activation),
            MeanGiven(context.x_dim, context.latent_dim, hidden, activation),
            None,
            **options,
        )
        encoder.no_path_gradient = "sampler=bernoulli_noise has no density of psi"
        return encoder

    def encode(self, x: Tensor) -> Encoded:
        """Compute the parts of all three networks that depend on x, (B, X), alone."""
        reverse = None if self.reverse is None else self.reverse.condition(x)
        return Encoded(x, self.mixing(x), self.conditional.condition(x), reverse)

    def sample(
        self, encoded: Encoded, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        """Draw z of (K, B, D) and its log_q with L = ``inner_k`` further samples of psi."""
        if path_only and self.share_psi and inner_k and k > 1:
            # The DReG identity exchanges psi_0 with psi_1..L within one weight, but shared psi enter all weights.
            raise ValueError("share_psi=true biases stl and dreg for k > 1: use share_psi=false or reparam")
        if torch.is_grad_enabled():
            self._last_inner_k = inner_k
        joint = self.joint(encoded, k)
        if path_only and self.no_path_gradient is None:
            # Views, so that a hook scales the gradient of the log weights, but not the gradient from z to psi.
            z, psi = joint.z.view_as(joint.z), joint.psi.view_as(joint.psi)
            ratio = self._frozen_ratio(encoded, self._tau(encoded, z))
            conditional = ratio.log_conditional(z, psi)
            return Draw(z, self._log_q(ratio, z, psi, conditional, inner_k, inner_chunk), (z, psi))
        if self.tau_gradient == "dreg" and inner_k and torch.is_grad_enabled():
            tau = self._tau(encoded, joint.z)
            log_q, inner = self._log_q_for_dreg(self._ratio(encoded, tau), joint, inner_k)
            return Draw(joint.z, log_q, (), inner)
        return Draw(joint.z, self.log_q(encoded, joint, inner_k, inner_chunk))

    def joint(self, encoded: Encoded, k: int) -> Joint:
        """Draw K pairs of psi_0 and z for each image."""
        psi = encoded.mixing.rsample((k,))
        q_z = self.conditional(psi, encoded.conditional)
        if isinstance(q_z, DiagonalNormal):  # from the noise of z: fewer kernels than the density at z
            return Joint(psi, q_z, *q_z.rsample_and_log_prob())
        z = q_z.rsample()
        return Joint(psi, q_z, z, q_z.log_prob(z))

    def log_q(self, encoded: Encoded, joint: Joint, inner_k: int, inner_chunk: int | None = None) -> Tensor:
        """Return the bound on log q(z|x), (K, B), from psi_0 and ``inner_k`` fresh samples."""
        ratio = self._ratio(encoded, self._tau(encoded, joint.z))
        return self._log_q(ratio, joint.z, joint.psi, joint.log_q_z, inner_k, inner_chunk)

    def log_q_at(self, encoded: Encoded, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor:
        """Return log 1/L sum_{l=1..L} r_l, (K, B), at z of (K, B, D), with L = ``samples`` fresh psi for each."""
        return self._fresh(self._ratio(encoded, self._tau(encoded, z)), z, samples, chunk)

    def log_q_bounds(self, encoded: Encoded, k: int, *, inner_k: int = 0, inner_chunk: int | None = None) -> LogQBounds:
        """Draw z of (K, B, D) with bounds on its log q(z|x) from both sides, and with log q(z|psi_0,x).

        Each z has its own psi_1..L even if training shares them, so that the errors of the draws are independent.
        """
        joint = self.joint(encoded, k)
        ratio = self._ratio(encoded, self._tau(encoded, joint.z))
        conditional = joint.log_q_z
        fresh = self._fresh(ratio, joint.z, inner_k, inner_chunk) if inner_k else None
        return two_sided_bounds(joint.z, ratio.correction(joint.psi) + conditional, fresh, inner_k, conditional)

    def _fresh(self, ratio: _Ratio, z: Tensor, samples: int, chunk: int | None) -> Tensor:
        """Return the log-mean-exp of the ratios of ``samples`` fresh psi for each z, (K, B)."""
        ratios = LogMeanExp()
        for psi in self._inner(ratio.tau, z, samples, chunk or samples, share=False):
            ratios.add(ratio.log_ratio(z, psi))
        return ratios.value().to(z)

    def _tau(self, encoded: Encoded, z: Tensor) -> Distribution:
        return encoded.mixing if self.reverse is None else self.reverse(z, encoded.reverse)

    def _ratio(self, encoded: Encoded, tau: Distribution) -> _Ratio:
        mixing = None if self.reverse is None else encoded.mixing
        return _Ratio(self.conditional, encoded.conditional, mixing, tau)

    def _log_q(
        self, ratio: _Ratio, z: Tensor, own: Tensor, conditional: Tensor, inner_k: int, inner_chunk: int | None
    ) -> Tensor:
        """Return the log-mean-exp of the ratios of psi_0 and of ``inner_k`` fresh samples, (K, B).

        ``own`` is psi_0, (K, B, P), and ``conditional`` is log q(z|psi_0,x), (K, B).
        """
        if inner_k and not inner_chunk and ratio.mixing is not None:
            # In one pass: q(psi|x) and tau compute the densities of all psi at once.
            (psi,) = self._inner(ratio.tau, z, inner_k, inner_k, share=False)
            conditionals = torch.cat([conditional.unsqueeze(0), ratio.log_conditional(z, psi)])
            return log_mean_exp(ratio.correction(torch.cat([own.unsqueeze(0), psi])) + conditionals)
        ratios = LogMeanExp() if inner_chunk else _Terms()
        ratios.add((ratio.correction(own) + conditional).unsqueeze(0))
        for psi in self._inner(ratio.tau, z, inner_k, inner_chunk or inner_k, share=self.share_psi):
            ratios.add(ratio.log_ratio(z, psi))
        return ratios.value().to(z)

    def _log_q_for_dreg(self, ratio: _Ratio, joint: Joint, inner_k: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the value of :meth:`_log_q`, with a constant tau in the densities of tau's own samples.

        b_l is the share of sample l in the mean. The path derivative of psi_l is weighted by b_l^2, which accounts for
        the score of tau. The sample psi_0 keeps its score, -b_0 dlog tau(psi_0)/deta.
        """
        log_ratio = ratio.correction(joint.psi) + joint.log_q_z
        (psi,) = self._inner(ratio.tau, joint.z, inner_k, inner_k, share=self.share_psi)
        tau = ratio.tau
        if not isinstance(tau, DiagonalNormal):
            raise TypeError("tau_gradient='dreg' needs a reverse model that returns a DiagonalNormal")
        constant = ratio._replace(tau=tau.detached())
        ratios = _Terms()
        ratios.add(log_ratio.unsqueeze(0))
        ratios.add(constant.log_ratio(joint.z, psi))
        if not psi.requires_grad:
            return ratios.value(), ()
        share = torch.cat(ratios.parts).detach().softmax(0)[1:].unsqueeze(-1)
        psi.register_hook(lambda gradient: gradient * share.to(gradient.dtype))
        return ratios.value(), (psi,)

    def with_inner_samples(self, *, tau: Tau | None = None, share_psi: bool | None = None) -> "HierarchicalEncoder":
        """Return the same q(z|x) with another tau, or with inner samples that all draws of z share."""
        if tau == "learned" and self.reverse is None:
            raise ValueError("it has no learned tau(psi|z,x): its inner samples come from q(psi|x)")
        reverse = None if tau == "prior" else self.reverse
        shared = self.share_psi if share_psi is None else share_psi
        if shared and reverse is not None:
            raise ValueError("the inner samples of a learned tau(psi|z,x) depend on z and cannot be shared")
        if reverse is self.reverse and shared == self.share_psi:
            return self
        return HierarchicalEncoder(self.mixing, self.conditional, reverse, share_psi=shared)

    def auxiliary_losses(self) -> dict[str, AuxiliaryLoss]:
        """Return the loss of tau's warm-up and extra steps, if there are any."""
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
        """Return the mean of log_q over images x, (B, X), whose minimum in tau is the tightest bound.

        It uses as many inner samples as the last step of the main loss.
        """
        assert self.reverse is not None
        with torch.no_grad():
            encoded = self.encode(x)
            joint = self.joint(encoded, 1)
        tau = self.reverse(joint.z, self.reverse.condition(x))
        ratio = self._frozen_ratio(encoded, tau)
        if self.tau_gradient == "dreg" and self._last_inner_k:
            return self._log_q_for_dreg(ratio, joint, self._last_inner_k)[0].mean()
        return self._log_q(ratio, joint.z, joint.psi, joint.log_q_z, self._last_inner_k, None).mean()

    def _inner(self, tau: Distribution, z: Tensor, inner_k: int, chunk: int, *, share: bool) -> Iterator[Tensor]:
        """Yield psi_1..L ~ tau as (chunk, K, B, P), or (chunk, 1, B, P) if all z share them."""
        follows_z = len(tau.batch_shape) == z.dim() - 1
        k = () if follows_z else (1,) if share else (z.shape[0],)
        for first in range(0, inner_k, chunk or 1):
            sharing = noise.shared_over_samples() if share else nullcontext()
            with noise.inner_samples(first), sharing:
                psi = tau.rsample((min(chunk, inner_k - first), *k))
            yield psi

    def _frozen_ratio(self, encoded: Encoded, tau: Distribution) -> _Ratio:
        """Return the ratio with constant parameters of q; gradients reach the parameters of tau."""
        conditioned = detached(encoded.conditional)
        return _Ratio(frozen(self.conditional), conditioned, frozen(self.mixing)(encoded.x), tau)


class _Terms:
    """The form of :class:`LogMeanExp` for training: one differentiable log-sum-exp in the dtype of its terms."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, log_ratios: Tensor) -> None:
        self.parts.append(log_ratios)

    def value(self) -> Tensor:
        return log_mean_exp(torch.cat(self.parts))
