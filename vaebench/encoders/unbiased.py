"""Unbiased implicit variational inference: SIVI's encoder with a gradient from Hamiltonian Monte Carlo."""

import math

import torch
from torch import Tensor

from vaebench import hmc
from vaebench.batch import batch_mean
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder, LogQBounds, Tau, detached, frozen
from vaebench.encoders.hierarchical import Context, HierarchicalEncoder, Joint

__all__ = ["UnbiasedEncoder"]

# Of the logarithm of the step size, per unit of acceptance too many or too few, at each gradient.
ADAPTATION_RATE = 0.05


class UnbiasedEncoder(Encoder):
    """q(z|x) = integral of q(z|psi,x) q(psi|x) dpsi, with an estimate of the gradient of its own log density:

    dlog q(z|x)/dz = E_q(psi|z,x) dlog q(z|psi,x)/dz

    by Hamiltonian Monte Carlo on q(psi|z,x), started at the psi_0 that made z, which is an exact sample of it; so
    the chain is at its target from the start, and burn-in only makes it forget psi_0, with which z is correlated.
    The gradient of the ELBO goes through z alone, since E_q dlog q(z|x)/dphi = 0.

    The value of log_q is not what has that gradient. It is SIVI's upper bound, which counts psi_0; the paper's
    own estimate, from fresh psi alone, lies below log q(z|x) and overstates log p(x).

    Source: Titsias and Ruiz 2019, https://arxiv.org/abs/1808.02078

    Args:
        marginal: q(psi|x) and q(z|psi,x), without a reverse model.
        burn_in: transitions thrown away.
        samples: transitions kept.
        leapfrog_steps: of each transition.
        step_size: at first; it is adapted while training, saved, and of no use in evaluation.
        target: the acceptance to which the step size is adapted.
    """

    direction = Direction.UPPER_BOUND
    has_inner_samples = True
    no_path_gradient = "its gradient runs through z alone as it is"
    only_elbo = "its gradient is that of the ELBO"

    def __init__(
        self,
        marginal: HierarchicalEncoder,
        *,
        burn_in: int = 5,
        samples: int = 5,
        leapfrog_steps: int = 5,
        step_size: float = 0.05,
        target: float = 0.9,
    ) -> None:
        super().__init__()
        self.marginal = marginal
        self.burn_in = burn_in
        self.samples = samples
        self.leapfrog_steps = leapfrog_steps
        self.target = target
        self.register_buffer("log_step_size", torch.tensor(math.log(step_size)))
        self.log_step_size: Tensor

    @classmethod
    def build(
        cls,
        site: BuildContext,
        *,
        psi_dim: int,
        hmc_burn_in: int,
        hmc_samples: int,
        leapfrog_steps: int,
        step_size: float,
        target_acceptance: float,
    ) -> "UnbiasedEncoder":
        """Make one of Gaussian parts with the configured networks."""
        return cls(
            HierarchicalEncoder.build(site, psi_dim=psi_dim, learned_reverse=False),
            burn_in=hmc_burn_in,
            samples=hmc_samples,
            leapfrog_steps=leapfrog_steps,
            step_size=step_size,
            target=target_acceptance,
        )

    def encode(self, x: Tensor) -> Context:
        """Run the parts of the networks that depend on x, (B, X), alone."""
        return self.marginal.encode(x)

    def sample(
        self,
        context: Context,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        """Draw z of (K, B, D) and SIVI's bound on its log density with L = ``inner_k``."""
        del path_only  # there is no other gradient
        if not torch.is_grad_enabled():
            return self.marginal.sample(context, k, inner_k=inner_k, inner_chunk=inner_chunk)
        joint = self.marginal.joint(context, k)
        with torch.no_grad():
            value = self.marginal.log_q(context, joint, inner_k, inner_chunk)
        if not joint.z.requires_grad:
            return Draw(joint.z, value)
        surrogate = self._surrogate(context, joint)
        return Draw(joint.z, value + (surrogate - surrogate.detach()))

    def rescored(self, *, tau: Tau | None = None, share_psi: bool | None = None) -> Encoder:
        """Return SIVI's encoder, which is this one in evaluation, with the inner samples asked for."""
        marginal = self.marginal.rescored(tau=tau, share_psi=share_psi)
        return self if marginal is self.marginal else marginal

    def log_q_at(self, context: Context, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor:
        """Return the mean of q(z|psi,x) over ``samples`` fresh psi for each z, as a logarithm, (K, B)."""
        return self.marginal.log_q_at(context, z, samples=samples, chunk=chunk)

    def log_q_bounds(self, context: Context, k: int, *, inner_k: int = 0, inner_chunk: int | None = None) -> LogQBounds:
        """Draw z of (K, B, D) with SIVI's bounds on its log q(z|x) from both sides."""
        return self.marginal.log_q_bounds(context, k, inner_k=inner_k, inner_chunk=inner_chunk)

    def _surrogate(self, context: Context, joint: Joint) -> Tensor:
        """Return a number, (K, B), whose gradient in z estimates that of log q(z|x); no other gradient flows."""
        conditional, conditioned = frozen(self.marginal.conditional), detached(context.conditional)
        mixing, z = frozen(self.marginal.mixing)(context.x), joint.z
        fixed = z.detach()

        def log_posterior(psi: Tensor) -> Tensor:
            return conditional(psi, conditioned).log_prob(fixed) + mixing.log_prob(psi)

        # bf16 energies would be accepted and rejected at random.
        with torch.autocast(z.device.type, enabled=False):
            chains = hmc.run(
                log_posterior,
                joint.psi.detach(),
                self.log_step_size.exp(),
                steps=self.leapfrog_steps,
                transitions=self.burn_in + self.samples,
            )
        if self.training:
            excess = batch_mean(chains.acceptance) - self.target
            # Where the gradient is used, the step size is adapted; a look at the value changes nothing.
            z.register_hook(lambda gradient: self._adapt(excess))
        psi = chains.positions[self.burn_in :]
        return conditional(psi, conditioned).log_prob(z).mean(0)

    def _adapt(self, excess: Tensor) -> None:
        self.log_step_size += ADAPTATION_RATE * excess
