"""The contract of every encoder.

An encoder returns draws z and numbers log_q with

    E[ exp(-log_q) | z ] = 1 / q(z|x)

so that w = p(x, z) / exp(log_q) has mean p(x). The mean of log w and the log of the mean of w are then lower bounds on
log p(x), and every importance estimator is valid.

Shapes: K samples first, B images, D latent coordinates, L inner samples before K; nats.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vaebench.direction import Direction
from vaebench.distributions import DiagonalNormal
from vaebench.model import GenerativeModel
from vaebench.nets.dense import weights_by_name
from vaebench.nets.networks import Networks

__all__ = [
    "AuxiliaryLoss",
    "BuildContext",
    "Density",
    "Direction",
    "Draw",
    "Encoder",
    "LogQBounds",
    "LossWithMetrics",
    "Tau",
    "detached",
    "frozen",
    "two_sided_bounds",
]

Tau = Literal["learned", "prior"]
"""The distribution of inner samples: a learned tau(psi|z,x), or the prior q(psi|x) of psi."""


class Draw(NamedTuple):
    """K weighted draws for each of B images."""

    z: Tensor
    """Latents, (K, B, D)."""
    log_q: Tensor
    """Log density, its bound or its estimate, (K, B)."""
    paths: tuple[Tensor, ...] = ()
    """The tensors, (K, B, *), through which log weights reach the sampler's parameters; empty without ``path_only``."""
    inner_paths: tuple[Tensor, ...] = ()
    """Inner samples, (L, K, B, *), whose path derivatives include a score term. An objective must scale them by
    :func:`vaebench.gradients.rescale_inner_paths`."""


class LogQBounds(NamedTuple):
    """K draws for each of B images, with bounds on their log density from both sides."""

    z: Tensor
    """Latents, (K, B, D)."""
    lower: Tensor | None
    """(K, B), with E[lower | z] <= log q(z|x), or None if there is no lower bound. If the encoder reports one number,
    the log density or (direction ESTIMATE) its estimate, this is the same tensor as ``upper``."""
    upper: Tensor
    """(K, B), with E[upper | z] >= log q(z|x)."""
    conditional: Tensor | None = None
    """log q(z|psi_0, x), (K, B), for the psi_0 that made z; None if there is no such density."""


@runtime_checkable
class Density(Protocol):
    """The result of ``encode`` if the density is known at every z."""

    def log_prob(self, value: Tensor, /) -> Tensor:
        """Map (K, B, D) to (K, B)."""
        ...


class LossWithMetrics(NamedTuple):
    """An auxiliary loss and metrics to record with it."""

    loss: Tensor
    metrics: dict[str, Tensor]
    """Scalars by name."""


@dataclass(frozen=True)
class AuxiliaryLoss:
    """A loss with its own optimiser beside the main loss: AVB's discriminator, extra steps for tau."""

    parameters: Iterable[nn.Parameter]
    loss: Callable[[Tensor], Tensor | LossWithMetrics]
    """Maps images (B, X) to a scalar, with or without metrics."""
    repeats: int = 1
    """Steps for each step of the main loss."""
    exclusive: bool = True
    """Whether the main loss does not update these parameters."""
    lr: float | None = None
    """Learning rate, on the schedule of the main loss; None takes the rate of the main loss."""
    betas: tuple[float, float] | None = None
    """Adam's betas; None takes the betas of the main loss."""
    warmup_epochs: int = 0
    """Epochs at the start of training in which this loss is minimised and the main loss is not."""
    stop_epoch: float = math.inf
    """The first epoch without steps on this loss."""


@dataclass(frozen=True)
class BuildContext:
    """The first argument of every encoder's ``build``; the keys of the encoder's yaml follow as keyword arguments.

    ``build`` raises ValueError if an argument is out of range.
    """

    networks: Networks
    """Makes the encoder's networks."""
    x_dim: int
    """Pixels X."""
    latent_dim: int
    """Latent coordinates D."""
    model: GenerativeModel
    """For encoders that use the model's gradient; they must not register it as a submodule."""


class Encoder(nn.Module, ABC):
    """An approximate posterior q(z|x), amortised over x. Abstract: each family is a final class."""

    direction: ClassVar[Direction]
    """Whether log_q is exactly log q(z|x), an upper bound on it or an estimate of it."""
    has_inner_samples: ClassVar[bool] = False
    """Whether log_q uses ``inner_k`` samples of an auxiliary variable psi."""
    trained_tau: Tau | None = None
    """The distribution of the inner samples whose bound on log q(z|x) training tightens; None if there is none."""
    no_path_gradient: str | None = None
    """Why STL and DReG (``path_only``) are not valid for the encoder, as a clause; None if they are valid. If they are
    not, ``path_only`` does not change the gradient, and ``paths`` is empty."""
    proposal_label: ClassVar[str] = "valid"
    """How results name this encoder if its draws are weighed in place of another encoder's."""
    only_elbo: str | None = None
    """Why a bound of several samples cannot train the encoder, as a clause; None if it can."""
    no_total_gradient: ClassVar[str | None] = None
    """Why the reparameterised gradient of a bound of several samples is biased, as a clause; None if it is not."""

    @abstractmethod
    def encode(self, x: Tensor) -> Any:
        """Compute the part that depends on the images x, (B, X), alone, once for any number of draws."""

    @abstractmethod
    def sample(
        self, encoded: Any, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        """Draw K latents per image, with E[exp(-log_q) | z] = 1/q(z|x).

        Args:
            encoded: the result of ``encode``.
            k: number of draws K.
            inner_k: number L of inner samples, by which a hierarchical encoder tightens log_q.
            path_only: hold the sampler's parameters constant inside log_q, so that gradients flow through the draws
                alone. STL and DReG need this. ``paths`` then lists the tensors through which gradients flow.
            inner_chunk: number of inner samples computed at a time; it does not change the value.
        """

    def draw(self, x: Tensor, k: int, *, inner_k: int = 0, path_only: bool = False) -> Draw:
        """Encode x, (B, X), and sample."""
        return self.sample(self.encode(x), k, inner_k=inner_k, path_only=path_only)

    def latents(self, x: Tensor, k: int) -> Tensor:
        """Draw K latents, (K, B, D), for each image of x, (B, X), without their density if it costs extra."""
        return self.draw(x, k).z

    def log_q_at(self, encoded: Any, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor | None:
        """Estimate log q(z|x), (K, B), at any latents z, whose auxiliary variables are not known.

        The exponential of the estimate has mean q(z|x), so its expectation is a lower bound. Returns None if the family
        has no such estimate.

        Args:
            encoded: the result of ``encode``.
            z: latents, (K, B, D).
            samples: number of fresh auxiliary variables for each z, at least 1; ignored if the density is known.
            chunk: number of them computed at a time.
        """
        del samples, chunk
        return encoded.log_prob(z) if self.direction is Direction.EXACT and isinstance(encoded, Density) else None

    def log_q_bounds(self, encoded: Any, k: int, *, inner_k: int = 0, inner_chunk: int | None = None) -> LogQBounds:
        """Draw K latents per image with bounds on log q(z|x) from both sides.

        r_0 is the ratio of the psi_0 that made z, as ``sample`` reports it without inner samples. r_1..L are the ratios
        of fresh psi. Then

        E log 1/L sum_{l=1..L} r_l  <=  log q(z|x)  <=  E log 1/(L+1) sum_{l=0..L} r_l

        Source: Sobolev and Vetrov 2019, https://arxiv.org/abs/1905.03290

        Args:
            encoded: the result of ``encode``.
            k: number of draws K.
            inner_k: number L of fresh auxiliary variables for each draw; 0 gives no lower bound.
            inner_chunk: number of them computed at a time.
        """
        draw = self.sample(encoded, k)
        if self.direction is not Direction.UPPER_BOUND:
            return LogQBounds(draw.z, draw.log_q, draw.log_q)
        fresh = self.log_q_at(encoded, draw.z, samples=inner_k, chunk=inner_chunk) if inner_k else None
        return two_sided_bounds(draw.z, draw.log_q, fresh, inner_k)

    def proposal(self, model: GenerativeModel) -> "Encoder":
        """Return the encoder, with shared parameters, whose draws validation and evaluation weigh.

        An encoder that keeps the contract returns itself. A family whose log_q is an ESTIMATE must return an encoder
        that keeps it, which may use ``model``.
        """
        del model
        return self

    def with_inner_samples(self, *, tau: Tau | None = None, share_psi: bool | None = None) -> "Encoder":
        """Return an encoder with shared parameters and the same draws of z, but with other inner samples in log_q.

        For evaluation, for example to evaluate a trained encoder without its reverse model. Returns itself if nothing
        changes.

        Args:
            tau: distribution of the inner samples: ``learned`` for tau(psi|z,x), ``prior`` for q(psi|x), as in SIVI.
                None leaves it unchanged.
            share_psi: whether all K draws share their inner samples, which must then not depend on z. None leaves it
                unchanged.

        Raises:
            ValueError: not supported; the message is a clause with the reason.
        """
        if tau is not None or share_psi is not None:
            raise ValueError("it has no inner samples psi")
        return self

    def exact_posterior(self, x: Tensor) -> DiagonalNormal | None:
        """Return q(z|x) for x of shape (B, X), differentiable in its parameters, for priors that use it.

        Returns None if q(z|x) is not a diagonal Gaussian in closed form.
        """
        del x
        return None

    def posterior_mean(self, x: Tensor) -> Tensor | None:
        """Return E z under q(z|x), (B, D), for x of shape (B, X); None if it is not known in closed form."""
        posterior = self.exact_posterior(x)
        return None if posterior is None else posterior.mean

    def auxiliary_losses(self) -> dict[str, AuxiliaryLoss]:
        """Return, by name, the losses that have their own optimisers."""
        return {}


def two_sided_bounds(
    z: Tensor, own: Tensor, fresh: Tensor | None, inner_k: int, conditional: Tensor | None = None
) -> LogQBounds:
    """Return bounds from r_0, the ratio of the psi_0 that made z, and the ratios of L fresh psi.

    The upper bound includes r_0.

    Args:
        z: latents, (K, B, D).
        own: log r_0, (K, B).
        fresh: log 1/L sum_{l=1..L} r_l, (K, B); None if L = 0.
        inner_k: L.
        conditional: log q(z|psi_0, x), (K, B).
    """
    if fresh is None:
        return LogQBounds(z, None, own, conditional)
    total = torch.logaddexp(own, fresh + math.log(inner_k))
    return LogQBounds(z, fresh, total - math.log(inner_k + 1), conditional)


def frozen(module: nn.Module) -> Callable[..., Any]:
    """Return ``module`` as a function with constant parameters; gradients reach its inputs alone."""
    constants = {name: value.detach() for name, value in weights_by_name(module).items()}
    return lambda *inputs: functional_call(module, constants, inputs)


def detached(encoded: Any) -> Any:
    """Return a tensor, or a tuple of tensors, detached from its graph."""
    if isinstance(encoded, tuple):
        return tuple(detached(part) for part in encoded)
    return encoded.detach()
