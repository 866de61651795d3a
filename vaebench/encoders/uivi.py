"""Unbiased implicit variational inference: SIVI's encoder with a gradient from Hamiltonian Monte Carlo."""

import math
from typing import Any

import torch
from torch import Tensor

from vaebench import hmc
from vaebench.arguments import above, at_least, between
from vaebench.batch import batch_mean
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder, LogQBounds, Tau, detached, frozen
from vaebench.encoders.hierarchical import Encoded, HierarchicalEncoder, Joint
from vaebench.runtime import tf32

__all__ = ["UnbiasedEncoder"]

# Change of the log step size at each gradient, per unit of acceptance above the target.
ADAPTATION_RATE = 0.05


class UnbiasedEncoder(Encoder):
    """q(z|x) = integral of q(z|psi,x) q(psi|x) dpsi, with an estimate of the gradient of its log density:

    dlog q(z|x)/dz = E_q(psi|z,x) dlog q(z|psi,x)/dz

    Hamiltonian Monte Carlo on q(psi|z,x) estimates the mean. Its chain starts at the psi_0 that made z, an exact sample
    of q(psi|z,x), so the chain is in equilibrium from the start. But psi_0 and the noise that made z from it are
    correlated, so the gradient with respect to the parameters is unbiased only in the limit of a long burn-in. Against
    an exact gradient it is 5 to 7 % off with the initial step size, and 1.6 % off at the defaults after adaptation.
    The gradient of the ELBO flows through z alone, because E_q dlog q(z|x)/dphi = 0.

    The value of log_q is another estimate than its gradient. It is SIVI's upper bound, which includes psi_0. The
    paper's estimate, from fresh psi alone, is a lower bound on log q(z|x) and overestimates log p(x).

    Source: Titsias and Ruiz 2019, https://arxiv.org/abs/1808.02078

    Args:
        marginal: q(psi|x) and q(z|psi,x), without a reverse model.
        hmc_burn_in: transitions before those that are used.
        hmc_samples: transitions that are used.
        leapfrog_steps: leapfrog steps of each transition.
        step_size: initial step size; training adapts and saves it, and evaluation does not use it.
        target_acceptance: the acceptance probability to which the step size is adapted.
    """

    direction = Direction.UPPER_BOUND
    has_inner_samples = True
    no_path_gradient = "its gradient already flows through z alone"
    only_elbo = "its gradient is that of the ELBO"

    def __init__(
        self,
        marginal: HierarchicalEncoder,
        *,
        hmc_burn_in: int = 5,
        hmc_samples: int = 5,
        leapfrog_steps: int = 5,
        step_size: float = 0.05,
        target_acceptance: float = 0.9,
    ) -> None:
        super().__init__()
        at_least(0, hmc_burn_in=hmc_burn_in)
        at_least(1, hmc_samples=hmc_samples, leapfrog_steps=leapfrog_steps)
        above(0, step_size=step_size)
        between(0, 1, target_acceptance=target_acceptance)
        self.marginal = marginal
        self.burn_in, self.samples, self.leapfrog_steps = hmc_burn_in, hmc_samples, leapfrog_steps
        self.target = target_acceptance
        self.register_buffer("log_step_size", torch.tensor(math.log(step_size)))
        self.log_step_size: Tensor

    @classmethod
    def build(cls, context: BuildContext, *, psi_dim: int, **settings: Any) -> "UnbiasedEncoder":
        """Build the encoder of Gaussian parts with the configured networks; ``settings``: arguments of the class."""
        return cls(HierarchicalEncoder.build(context, psi_dim=psi_dim, learned_reverse=False), **settings)

    def encode(self, x: Tensor) -> Encoded:
        """Compute the parts of the networks that depend on x, (B, X), alone."""
        return self.marginal.encode(x)

    def sample(
        self, encoded: Encoded, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        """Draw z of (K, B, D) and SIVI's bound on its log density with L = ``inner_k``."""
        del path_only  # see no_path_gradient
        if not torch.is_grad_enabled():
            return self.marginal.sample(encoded, k, inner_k=inner_k, inner_chunk=inner_chunk)
        joint = self.marginal.joint(encoded, k)
        with torch.no_grad():
            value = self.marginal.log_q(encoded, joint, inner_k, inner_chunk)
        if not joint.z.requires_grad:
            return Draw(joint.z, value)
        surrogate = self._surrogate(encoded, joint)
        return Draw(joint.z, value + (surrogate - surrogate.detach()))

    def with_inner_samples(self, *, tau: Tau | None = None, share_psi: bool | None = None) -> Encoder:
        """Return SIVI's encoder, which equals this encoder in evaluation, with the given inner samples."""
        marginal = self.marginal.with_inner_samples(tau=tau, share_psi=share_psi)
        return self if marginal is self.marginal else marginal

    def log_q_at(self, encoded: Encoded, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor:
        """Return the logarithm of the mean of q(z|psi,x) over ``samples`` fresh psi for each z, (K, B)."""
        return self.marginal.log_q_at(encoded, z, samples=samples, chunk=chunk)

    def log_q_bounds(self, encoded: Encoded, k: int, *, inner_k: int = 0, inner_chunk: int | None = None) -> LogQBounds:
        """Draw z of (K, B, D) with SIVI's bounds on its log q(z|x) from both sides."""
        return self.marginal.log_q_bounds(encoded, k, inner_k=inner_k, inner_chunk=inner_chunk)

    def _surrogate(self, encoded: Encoded, joint: Joint) -> Tensor:
        """Return (K, B) values whose gradient in z estimates dlog q(z|x)/dz; they have no other gradient."""
        conditional, conditioned = frozen(self.marginal.conditional), detached(encoded.conditional)
        mixing, z = frozen(self.marginal.mixing)(encoded.x), joint.z
        fixed = z.detach()

        def log_posterior(psi: Tensor) -> Tensor:
            return conditional(psi, conditioned).log_prob(fixed) + mixing.log_prob(psi)

        # The rounding of energies would decide which proposals are accepted.
        with torch.autocast(z.device.type, enabled=False), tf32(z.device, False):
            chains = hmc.run(
                log_posterior,
                joint.psi.detach(),
                self.log_step_size.exp(),
                steps=self.leapfrog_steps,
                transitions=self.burn_in + self.samples,
            )
        if self.training:
            excess = batch_mean(chains.acceptance) - self.target
            # In a hook, so that the step size changes only if the gradient is used.
            z.register_hook(lambda gradient: self._adapt(excess))
        psi = chains.positions[self.burn_in :]
        return conditional(psi, conditioned).log_prob(z).mean(0)

    def _adapt(self, excess: Tensor) -> None:
        self.log_step_size += ADAPTATION_RATE * excess
