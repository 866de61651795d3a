"""The contract that every encoder keeps.

An encoder returns draws z and numbers log_q with

    E[ exp(-log_q) | z ] = 1 / q(z|x)

so that w = p(x, z) / exp(log_q) has mean p(x): the mean of log w and the log of the mean of w are then lower
bounds on log p(x), and every importance estimator is valid.

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
from vaebench.nets.networks import Networks
from vaebench.nets.trunks import weights_of

__all__ = [
    "AuxiliaryLoss",
    "BuildContext",
    "Density",
    "Direction",
    "Draw",
    "Encoder",
    "LogQBounds",
    "Scored",
    "Tau",
    "detached",
    "enclosed",
    "frozen",
]

Tau = Literal["learned", "prior"]
"""Where inner samples come from: tau(psi|z,x), or q(psi|x)."""


class Draw(NamedTuple):
    """K weighted draws for each of B images."""

    z: Tensor
    """Latents, (K, B, D)."""
    log_q: Tensor
    """Log density or its stand-in, (K, B)."""
    paths: tuple[Tensor, ...] = ()
    """The tensors, (K, B, *), through which log weights reach the sampler's parameters; filled by path_only."""
    inner_paths: tuple[Tensor, ...] = ()
    """Inner samples, (L, K, B, *), whose path derivatives stand for a score term too: an objective has to scale
    them by :func:`vaebench.gradients.rescale_inner_paths`."""


class LogQBounds(NamedTuple):
    """K draws for each of B images, each with numbers on both sides of its log density."""

    z: Tensor
    """Latents, (K, B, D)."""
    lower: Tensor | None
    """(K, B), with E[lower | z] <= log q(z|x); None where there is none. The same tensor as ``upper`` where the encoder
    reports one number: the log density itself, or (direction ESTIMATE) what stands in for it."""
    upper: Tensor
    """(K, B), with E[upper | z] >= log q(z|x)."""
    conditional: Tensor | None = None
    """log q(z|psi_0, x), (K, B), for the psi_0 that made z; None where there is no such density."""


@runtime_checkable
class Density(Protocol):
    """What an encoder with a density that is known everywhere makes of images."""

    def log_prob(self, value: Tensor, /) -> Tensor:
        """Map (K, B, D) to (K, B)."""
        ...


class Scored(NamedTuple):
    """A player's loss and what is to be shown beside it."""

    loss: Tensor
    metrics: dict[str, Tensor]
    """Scalars by name."""


@dataclass(frozen=True)
class AuxiliaryLoss:
    """A further loss with its own optimiser: AVB's discriminator, extra steps for tau."""

    parameters: Iterable[nn.Parameter]
    loss: Callable[[Tensor], Tensor | Scored]
    """Maps images (B, X) to a scalar, alone or with metrics."""
    repeats: int = 1
    """Steps for each step of the main loss."""
    exclusive: bool = True
    """Whether the main loss leaves these parameters alone."""
    lr: float | None = None
    """Learning rate, on the main one's schedule; None takes the main one."""
    betas: tuple[float, float] | None = None
    """Of Adam; None takes the main ones."""
    warmup_epochs: int = 0
    """Epochs at the start of the training in which the main loss rests and this player learns alone."""
    stop_epoch: float = math.inf
    """The epoch at which it stops."""


@dataclass(frozen=True)
class BuildContext:
    """What an encoder is built for: a family's ``build`` takes it, and the keys of its own yaml."""

    networks: Networks
    x_dim: int
    latent_dim: int
    model: GenerativeModel
    """For encoders that follow the model's gradient; they must not register it as a part of themselves."""


class Encoder(nn.Module, ABC):
    """An approximate posterior q(z|x), amortised over x. Abstract: the families are final classes."""

    direction: ClassVar[Direction]
    has_inner_samples: ClassVar[bool] = False
    """Whether ``inner_k`` means something to the family."""
    no_path_gradient: str | None = None
    """Why the encoder cannot serve STL and DReG (``path_only``), in half a sentence; None where it can. Where it
    cannot, ``path_only`` leaves the gradient as it is and ``paths`` empty."""
    only_elbo: str | None = None
    """Why the encoder cannot be trained on a bound of several samples, in half a sentence; None where it can."""
    no_total_gradient: ClassVar[str | None] = None
    """Why the reparameterised gradient lacks a part that bounds of several samples need; None where it is whole."""

    @abstractmethod
    def encode(self, x: Tensor) -> Any:
        """Do all the work that depends on the images x, (B, X), alone; it runs once for any number of draws."""

    @abstractmethod
    def sample(
        self,
        context: Any,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        """Draw K latents per image, with E[exp(-log_q) | z] = 1/q(z|x).

        Args:
            context: what ``encode`` returned.
            k: number of draws K.
            inner_k: number L of inner samples with which a hierarchical encoder tightens log_q.
            path_only: hold the sampler's parameters constant inside log_q, so that its gradient flows through
                the draws alone (STL and DReG need this); ``paths`` then lists the tensors it flows through.
            inner_chunk: compute so many inner samples at a time; the value does not change.
        """

    def draw(self, x: Tensor, k: int, *, inner_k: int = 0, path_only: bool = False) -> Draw:
        """Encode x, (B, X), and sample."""
        return self.sample(self.encode(x), k, inner_k=inner_k, path_only=path_only)

    def log_q_at(self, context: Any, z: Tensor, *, samples: int = 1, chunk: int | None = None) -> Tensor | None:
        """Estimate log q(z|x) at latents that need not be this encoder's own, without knowing what made them.

        Its exponential has mean q(z|x), so that its own expectation is a lower bound, (K, B). None where the family has
        no such estimate.

        Args:
            context: what ``encode`` returned.
            z: latents, (K, B, D).
            samples: fresh auxiliary variables for each z, at least 1; of no use where the density is known.
            chunk: so many of them at a time.
        """
        del samples, chunk
        return context.log_prob(z) if self.direction is Direction.EXACT and isinstance(context, Density) else None

    def log_q_bounds(self, context: Any, k: int, *, inner_k: int = 0, inner_chunk: int | None = None) -> LogQBounds:
        """Draw K latents per image with bounds on log q(z|x) from both sides.

        With r_0 the ratio of the psi_0 that made z, which ``sample`` reports without inner samples, and r_1..L those of
        fresh ones,

        E log 1/L sum_{l=1..L} r_l  <=  log q(z|x)  <=  E log 1/(L+1) sum_{l=0..L} r_l

        Source: Sobolev and Vetrov 2019, https://arxiv.org/abs/1905.03290

        Args:
            context: what ``encode`` returned.
            k: number of draws K.
            inner_k: number L of fresh auxiliary variables for each draw; without one there is no lower bound.
            inner_chunk: so many of them at a time.
        """
        draw = self.sample(context, k)
        if self.direction is not Direction.UPPER_BOUND:
            return LogQBounds(draw.z, draw.log_q, draw.log_q)
        fresh = self.log_q_at(context, draw.z, samples=inner_k, chunk=inner_chunk) if inner_k else None
        return enclosed(draw.z, draw.log_q, fresh, inner_k)

    def proposal(self) -> "Encoder":
        """Return the encoder whose draws are weighed in validation and evaluation, made of the same parameters.

        Itself, where the contract holds. A family whose log_q is an ESTIMATE has to offer one that keeps it.
        """
        return self

    def rescored(self, *, tau: Tau | None = None, share_psi: bool | None = None) -> "Encoder":
        """Return the encoder with the same draws of z whose log_q takes other inner samples, of the same parameters.

        For evaluation: what a trained encoder is worth without its reverse model, say. Itself, where nothing changes.

        Args:
            tau: where inner samples come from: a ``learned`` tau(psi|z,x), or q(psi|x), the ``prior`` of psi, as in
                SIVI. None leaves it as it is.
            share_psi: whether all K draws share their inner samples, which must then not follow z. None leaves it.

        Raises:
            ValueError: the encoder cannot; the message, half a sentence, says why.
        """
        if tau is not None or share_psi is not None:
            raise ValueError("it has no inner samples psi")
        return self

    def exact_posterior(self, x: Tensor) -> DiagonalNormal | None:
        """Return q(z|x) for x of shape (B, X), differentiable in its parameters, for priors that are made of it.

        None, where it is not a diagonal Gaussian in closed form.
        """
        del x
        return None

    def auxiliary_losses(self) -> dict[str, AuxiliaryLoss]:
        """Return further losses with optimisers of their own, by name."""
        return {}


def enclosed(
    z: Tensor, own: Tensor, fresh: Tensor | None, inner_k: int, conditional: Tensor | None = None
) -> LogQBounds:
    """Put the ratio of the psi_0 that made z beside those of L fresh ones: a bound from above with it, below without.

    Args:
        z: latents, (K, B, D).
        own: log r_0, (K, B).
        fresh: log 1/L sum_{l=1..L} r_l, (K, B); None for none.
        inner_k: L.
        conditional: log q(z|psi_0, x), (K, B).
    """
    if fresh is None:
        return LogQBounds(z, None, own, conditional)
    total = torch.logaddexp(own, fresh + math.log(inner_k))
    return LogQBounds(z, fresh, total - math.log(inner_k + 1), conditional)


def frozen(module: nn.Module) -> Callable[..., Any]:
    """Return ``module`` as a function whose parameters are constants but whose inputs are not."""
    constants = {name: value.detach() for name, value in weights_of(module).items()}
    return lambda *inputs: functional_call(module, constants, inputs)


def detached(context: Any) -> Any:
    """Return a tensor, or a tuple of tensors, without its history."""
    if isinstance(context, tuple):
        return tuple(detached(part) for part in context)
    return context.detach()
