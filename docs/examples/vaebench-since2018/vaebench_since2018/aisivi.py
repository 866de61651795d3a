"""Adaptively informed semi-implicit variational inference: a path gradient with an importance-sampled score."""

from typing import Any

import torch
from torch import Tensor, nn
from vaebench.arguments import at_least
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
)
from vaebench.encoders.hierarchical import Encoded, HierarchicalEncoder, Joint
from vaebench.nets.dense import Conditional

__all__ = ["ImportanceScoredEncoder", "StandardMixing"]


class StandardMixing(nn.Module):
    """q(psi|x) = N(0, I) for any x: only q(z|psi,x) depends on the image.

    As in the paper. With a learned q(psi|x), training on MNIST diverged to infinite psi.
    """

    def __init__(self, psi_dim: int) -> None:
        super().__init__()
        self.psi_dim = psi_dim

    def forward(self, x: Tensor) -> DiagonalNormal:
        """Return N(0, I), batch shape (B,), for x of shape (B, X)."""
        zeros = x.new_zeros(len(x), self.psi_dim)
        return DiagonalNormal(zeros, torch.ones_like(zeros))


class ImportanceScoredEncoder(Encoder):
    """q(z|x) = integral of q(z|psi,x) q(psi) dpsi, q(psi) = N(0, I), with an estimate of its score:

    dlog q(z|x)/dz = E_q(psi|z,x) dlog q(z|psi,x)/dz  ~  sum_l v_l dlog q(z|psi_l,x)/dz,  psi_l ~ tau(psi|z,x)

    v_l is the self-normalised weight of psi_l, in proportion to q(z, psi_l|x) / tau(psi_l|z,x). As in UIVI, the
    gradient of the ELBO flows through z alone, because E_q dlog q(z|x)/dphi = 0. UIVI's Markov chain is replaced by
    importance sampling. The bias of self-normalisation is O(1/L).

    With ``own_psi`` the psi_0 that made z is one of the samples. It correlates with the path of z, which adds a bias of
    O(1/L) too. Without it, as in the paper, the score is far too large if no sample is near psi_0: training on MNIST
    then diverged.

    tau minimises the forward divergence E KL(q(psi|z,x) | tau(psi|z,x)), that is E_q(z,psi|x)[-log tau(psi|z,x)]. This
    loss has an unbiased gradient, and its minimum covers the whole of q(psi|z,x).

    The value of log_q is IWHVI's upper bound with the same tau. It includes psi_0, so that it holds for any tau.

    Source: Pielok, Bischl and Ruegamer 2025, https://arxiv.org/abs/2506.03839. There tau is a conditional flow; here it
    is a diagonal Gaussian.

    Args:
        marginal: q(psi), q(z|psi,x) and tau(psi|z,x).
        score_samples: number L of fresh psi for the gradient.
        own_psi: also use psi_0 for the gradient.
        tau_steps: steps on tau's loss for each step of the main loss.
        tau_warmup: epochs at the start of training in which only tau is trained.

    Raises:
        ValueError: an argument is out of range, or ``marginal`` has no reverse model.
    """

    direction = Direction.UPPER_BOUND
    has_inner_samples = True
    trained_tau = "learned"
    no_path_gradient = "its gradient already flows through z alone"
    only_elbo = "its gradient is that of the ELBO"

    def __init__(
        self,
        marginal: HierarchicalEncoder,
        *,
        score_samples: int = 10,
        own_psi: bool = True,
        tau_steps: int = 1,
        tau_warmup: int = 0,
    ) -> None:
        super().__init__()
        at_least(1, score_samples=score_samples, tau_steps=tau_steps)
        at_least(0, tau_warmup=tau_warmup)
        if marginal.reverse is None:
            raise ValueError("the marginal must have a reverse model tau(psi|z,x)")
        self.marginal = marginal
        self.score_samples, self.own_psi = score_samples, own_psi
        self.tau_steps, self.tau_warmup = tau_steps, tau_warmup

    @classmethod
    def build(cls, context: BuildContext, *, psi_dim: int, **settings: Any) -> "ImportanceScoredEncoder":
        """Build the encoder of Gaussian parts with the configured networks; ``settings``: arguments of the class."""
        at_least(1, psi_dim=psi_dim)
        networks, x_dim, latent_dim = context.networks, context.x_dim, context.latent_dim
        given_psi = networks.conditional(x_dim, psi_dim, latent_dim)
        reverse = networks.conditional(x_dim, latent_dim, psi_dim)
        return cls(HierarchicalEncoder(StandardMixing(psi_dim), given_psi, reverse), **settings)

    @property
    def reverse(self) -> Conditional:
        """The reverse model tau(psi|z,x)."""
        assert self.marginal.reverse is not None
        return self.marginal.reverse

    def encode(self, x: Tensor) -> Encoded:
        """Compute the parts of the networks that depend on x, (B, X), alone."""
        return self.marginal.encode(x)

    def sample(
        self, encoded: Encoded, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        """Draw z of (K, B, D) and IWHVI's bound on its log density with L = ``inner_k``."""
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

    def log_q_at(self, encoded: Encoded, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor:
        """Return log 1/L sum_l q(z, psi_l|x) / tau(psi_l|z,x), (K, B), with ``samples`` fresh psi for each z."""
        return self.marginal.log_q_at(encoded, z, samples=samples, chunk=chunk)

    def log_q_bounds(self, encoded: Encoded, k: int, *, inner_k: int = 0, inner_chunk: int | None = None) -> LogQBounds:
        """Draw z of (K, B, D) with IWHVI's bounds on its log q(z|x) from both sides."""
        return self.marginal.log_q_bounds(encoded, k, inner_k=inner_k, inner_chunk=inner_chunk)

    def with_inner_samples(self, *, tau: Tau | None = None, share_psi: bool | None = None) -> Encoder:
        """Return the hierarchical encoder, which equals this encoder in evaluation, with the given inner samples."""
        marginal = self.marginal.with_inner_samples(tau=tau, share_psi=share_psi)
        return self if marginal is self.marginal else marginal

    def auxiliary_losses(self) -> dict[str, AuxiliaryLoss]:
        """Return tau's loss; the main loss has no gradient in tau."""
        parameters = list(self.reverse.parameters())
        return {"tau": AuxiliaryLoss(parameters, self.tau_loss, self.tau_steps, warmup_epochs=self.tau_warmup)}

    def tau_loss(self, x: Tensor) -> Tensor:
        """Return the mean of -log tau(psi|z,x) over images x, (B, X), and draws of (z, psi); nats."""
        with torch.no_grad():
            joint = self.marginal.joint(self.encode(x), 1)
        return -self.reverse(joint.z, self.reverse.condition(x)).log_prob(joint.psi).mean()

    def _surrogate(self, encoded: Encoded, joint: Joint) -> Tensor:
        """Return (K, B) values whose gradient in z estimates dlog q(z|x)/dz; they have no other gradient."""
        conditional, conditioned = frozen(self.marginal.conditional), detached(encoded.conditional)
        z = joint.z
        with torch.no_grad():
            tau = self.reverse(z, encoded.reverse)
            psi = tau.rsample((self.score_samples,))
            if self.own_psi:
                psi = torch.cat([joint.psi.unsqueeze(0), psi])
            log_rest = encoded.mixing.log_prob(psi) - tau.log_prob(psi)
        log_given_psi = conditional(psi, conditioned).log_prob(z)
        weights = (log_given_psi.detach() + log_rest).softmax(0)
        return (weights * log_given_psi).sum(0)
