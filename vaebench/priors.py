"""Priors p(z): modules that return a torch distribution over the latents.

Shapes: K samples first, B images, D latent coordinates, N components; nats.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from vaebench import noise
from vaebench.distributions import DiagonalNormal, standard_normal
from vaebench.errors import UserError
from vaebench.flows.flow import Conditioned, Flow, FlowContext
from vaebench.flows.realnvp import RealNVPFlow
from vaebench.nets.heads import LOG_SCALE_RANGE
from vaebench.nets.networks import Networks
from vaebench.nets.trunks import weights_of

__all__ = [
    "ChainedNormal",
    "ChainedPrior",
    "FlowPrior",
    "GaussianMixture",
    "MixturePrior",
    "Posterior",
    "Prior",
    "PriorContext",
    "PushedNormal",
    "StandardNormalPrior",
    "VampPrior",
]


class Posterior(Protocol):
    """What a prior may ask of an encoder."""

    def exact_posterior(self, x: Tensor) -> DiagonalNormal | None:
        """Return q(z|x), batch shape (B,), differentiable in its parameters; None where it is not a Gaussian."""
        ...


@dataclass(frozen=True)
class PriorContext:
    """What a prior is built for: a family's ``build`` takes it, and the keys of its own yaml."""

    latent_dim: int
    """D."""
    networks: Networks
    """The decoder's."""
    pixel_mean: Tensor
    """The mean of the training images, (X,), in [0, 1]."""


class Prior(nn.Module, ABC):
    """p(z), learned or not. Abstract: the families are final classes."""

    layers: tuple[int, ...]
    """Widths of the stochastic layers that z consists of, the one that the decoder sees first; they add up to D."""

    @abstractmethod
    def forward(self) -> Distribution:
        """Return the distribution, event shape (D,)."""

    def top_down(self) -> nn.Module | None:
        """Return z2, (..., D2) -> p(z1|z2), a DiagonalNormal, where there are two layers."""
        return None

    def attach_encoder(self, encoder: Posterior) -> None:
        """Take note of the encoder, once it is built; a prior that needs nothing of it lets it pass."""


def as_of_now(module: nn.Module) -> Callable[..., Any]:
    """Return ``module`` as a function of the weights that it holds at this moment.

    A distribution outlives the call that made it, and that may have been one with other weights in their place.
    """
    weights = weights_of(module)
    return lambda *inputs: functional_call(module, weights, inputs)


# One Gaussian ---------------------------------------------------------------------------------------------


class StandardNormalPrior(Prior):
    """p(z) = N(0, I)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.layers = (latent_dim,)
        # Follows the module to its device and dtype; there is nothing to learn or to save.
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)
        self.origin: Tensor

    @classmethod
    def build(cls, site: PriorContext) -> "StandardNormalPrior":
        """Make one of the model's width."""
        return cls(site.latent_dim)

    def forward(self) -> DiagonalNormal:
        """Return the distribution over (D,)."""
        return standard_normal(self.layers[0], self.origin)


# Mixtures -------------------------------------------------------------------------------------------------


class GaussianMixture(Distribution):
    """sum_n weight_n N(mean_n, diag(scale_n^2)), event shape (D,).

    Args:
        components: batch shape (N,).
        log_weights: normalised, (N,).
    """

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)

    def __init__(self, components: DiagonalNormal, log_weights: Tensor) -> None:
        self.components = components
        self.log_weights = log_weights
        super().__init__(torch.Size(), components.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.log_weights.exp() @ self.components.mean

    @property
    def variance(self) -> Tensor:
        weights, means = self.log_weights.exp(), self.components.mean
        return weights @ (self.components.variance + means.square()) - self.mean.square()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, D): for each draw a component of its own, by the weights."""
        means, scales = self.components.mean.detach(), self.components.scale.detach()
        uniform = noise.uniform((*sample_shape, 1), means)
        # Rounding may leave the last sum below 1, and a draw above it.
        edges = self.log_weights.detach().exp().cumsum(0)[:-1]
        chosen = torch.searchsorted(edges, uniform, right=True).squeeze(-1)
        return means[chosen] + scales[chosen] * noise.standard_normal((*sample_shape, means.shape[-1]), means)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p, (...), for values (..., D), in memory of (..., N).

        The squared distances come from matrix products, whose terms cancel: float64 keeps what is left of them.
        """
        with torch.autocast(value.device.type, enabled=False):
            wide = value.double()
            mean, precision = self.components.mean.double(), self.components.scale.double().square().reciprocal()
            distance = (
                wide.square() @ precision.T - 2 * (wide @ (mean * precision).T) + (mean.square() * precision).sum(-1)
            )
            log_norm = self.log_weights.double() + 0.5 * precision.log().sum(-1) - 0.5 * _log_2pi(value)
            return torch.logsumexp(log_norm - 0.5 * distance, -1).to(value.dtype)


def _log_2pi(value: Tensor) -> float:
    return value.shape[-1] * math.log(2 * math.pi)


class MixturePrior(Prior):
    """p(z) = sum_n weight_n N(mean_n, diag(scale_n^2)), all of it learned.

    Source: the mixture of Gaussians of Tomczak and Welling 2018, https://arxiv.org/abs/1705.07120, there with equal
    weights

    Args:
        latent_dim: D.
        components: N.
    """

    def __init__(self, latent_dim: int, components: int) -> None:
        super().__init__()
        self.layers = (latent_dim,)
        # Together about N(0, I), but no two alike.
        self.means = nn.Parameter(0.1 * torch.randn(components, latent_dim))
        self.log_scales = nn.Parameter(torch.zeros(components, latent_dim))
        self.raw_log_weights = nn.Parameter(torch.zeros(components))

    @classmethod
    def build(cls, site: PriorContext, *, components: int) -> "MixturePrior":
        """Make one of the model's width."""
        return cls(site.latent_dim, components)

    def forward(self) -> GaussianMixture:
        """Return the mixture over (D,)."""
        scales = self.log_scales.clamp(*LOG_SCALE_RANGE).exp()
        return GaussianMixture(DiagonalNormal(self.means, scales), self.raw_log_weights.log_softmax(0))


class VampPrior(Prior):
    """p(z) = 1/N sum_n q(z|u_n), with the encoder's own q and learned pseudo-inputs u_n in (0, 1).

    The gradient of log p(z) goes to the pseudo-inputs and to the encoder's parameters; it is no path gradient of the
    encoder's draws, and no gradient estimator rescales it.

    Source: Tomczak and Welling 2018, https://arxiv.org/abs/1705.07120, where u_n is clipped to [0, 1]; here it is a
    sigmoid, whose gradient does not die at the ends

    Args:
        latent_dim: D.
        pixel_mean: the mean image, (X,), around which the pseudo-inputs start.
        components: N.
    """

    def __init__(self, latent_dim: int, pixel_mean: Tensor, components: int) -> None:
        super().__init__()
        self.layers = (latent_dim,)
        centre = torch.logit(pixel_mean.clamp(0.01, 0.99))
        self.pseudo_logits = nn.Parameter(centre + 0.1 * torch.randn(components, len(pixel_mean)))
        self._encoder: tuple[Posterior, ...] = ()

    @classmethod
    def build(cls, site: PriorContext, *, components: int) -> "VampPrior":
        """Make one that still has to meet its encoder."""
        return cls(site.latent_dim, site.pixel_mean, components)

    def top_down(self) -> nn.Module | None:
        """Return z2, (..., D2) -> p(z1|z2), a DiagonalNormal, where there are two layers."""
        return None

    def attach_encoder(self, encoder: Posterior) -> None:
        """Borrow the encoder.

        Raises:
            UserError: the encoder has no explicit Gaussian density over all of z.
        """
        with torch.no_grad():
            found = encoder.exact_posterior(self.pseudo_inputs()[:1])
        if found is None:
            raise UserError(
                "prior=vamp is a mixture of the encoder's own densities q(z|u), and this encoder's is no Gaussian in "
                "closed form: use encoder=gaussian, or prior=mixture or prior=realnvp with this one"
            )
        # In a tuple, torch does not take it for a part of this module; copies of model and encoder keep the link.
        self._encoder = (encoder,)

    def pseudo_inputs(self) -> Tensor:
        """Return the u_n, (N, X)."""
        return self.pseudo_logits.sigmoid()

    def forward(self) -> GaussianMixture:
        """Return the mixture over (D,)."""
        components = self._encoder[0].exact_posterior(self.pseudo_inputs())
        assert components is not None
        count = components.mean.shape[0]
        return GaussianMixture(components, components.mean.new_full((count,), -math.log(count)))


# A flow ---------------------------------------------------------------------------------------------------


class PushedNormal(Distribution):
    """The distribution of z where f(z) ~ N(0, I): log p(z) = log N(f(z); 0, I) + log|det df/dz|.

    Args:
        steps: f, from z to the base.
        conditioned: what each step knows beside its input, without a batch axis.
        base: N(0, I) over (D,).
    """

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)

    def __init__(self, steps: Sequence[Flow], conditioned: Sequence[Conditioned], base: DiagonalNormal) -> None:
        self.chain = [(step, as_of_now(step), known) for step, known in zip(steps, conditioned, strict=True)]
        self.base = base
        super().__init__(torch.Size(), base.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p, (...), for values (..., D), in one pass."""
        log_det = value.new_zeros(value.shape[:-1])
        for _, forward, conditioned in self.chain:
            moved = forward(value, conditioned)
            value, log_det = moved.z, log_det + moved.log_det
        return self.base.log_prob(value) + log_det

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, D), by the steps' inverses."""
        with torch.no_grad():
            value = self.base.sample(sample_shape)
            for step, _, conditioned in reversed(self.chain):
                value = step.inverse(value, conditioned)
        return value


class FlowPrior(Prior):
    """N(0, I), pushed through invertible steps.

    Training needs the density of given z, not draws, so the steps lead from z to the normal; sampling inverts them.
    They start out near the identity.

    Source: Dinh, Sohl-Dickstein and Bengio 2017, https://arxiv.org/abs/1605.08803; as a prior, Huang et al. 2017,
    "Learnable explicit density for continuous latent space and variational inference",
    https://arxiv.org/abs/1710.02248

    Args:
        latent_dim: D.
        steps: in the order from z to the base; each takes a context of width 1, which is constant here.
    """

    def __init__(self, latent_dim: int, steps: Sequence[Flow]) -> None:
        super().__init__()
        self.layers = (latent_dim,)
        self.steps = nn.ModuleList(steps)
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)
        self.origin: Tensor

    @classmethod
    def build(cls, site: PriorContext, *, steps: int, width: int, depth: int) -> "FlowPrior":
        """Make one of affine coupling steps.

        Raises:
            UserError: z has one coordinate, which has no half.
        """
        if site.latent_dim < 2:
            raise UserError("prior=realnvp needs latent_dim=2 or more: it moves one half of z given the other")
        places = [FlowContext(1, site.latent_dim, index, site.networks.activation) for index in range(steps)]
        return cls(site.latent_dim, [RealNVPFlow.build(place, width=width, depth=depth) for place in places])

    def forward(self) -> PushedNormal:
        """Return the distribution over (D,)."""
        steps: Sequence[Flow] = list(self.steps)  # pyright: ignore[reportAssignmentType]
        context = self.origin.new_ones(1)
        base = standard_normal(self.layers[0], self.origin)
        return PushedNormal(steps, [step.condition(context) for step in steps], base)


# Two stochastic layers ------------------------------------------------------------------------------------


class ChainedNormal(Distribution):
    """p(z2) p(z1|z2) as one distribution of z = (z1, z2).

    Args:
        top: p(z2), over (D2,).
        conditional: z2, (..., D2) -> p(z1|z2), a DiagonalNormal over (..., D1).
        width: D1.
    """

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)
    has_rsample = True

    def __init__(self, top: DiagonalNormal, conditional: nn.Module, width: int) -> None:
        self.top, self.conditional, self.width = top, as_of_now(conditional), width
        super().__init__(torch.Size(), torch.Size([width + top.event_shape[0]]), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, D1 + D2), differentiable in the parameters."""
        second = self.top.rsample(sample_shape)
        return torch.cat([self.conditional(second).rsample(), second], -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, D1 + D2), without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p, (...), for values (..., D1 + D2)."""
        first, second = value[..., : self.width], value[..., self.width :]
        return self.top.log_prob(second) + self.conditional(second).log_prob(first)


class ChainedPrior(Prior):
    """p(z2) = N(0, I), p(z1|z2) = N(mean(z2), diag(scale(z2)^2)), learned; the decoder sees z1 alone.

    Source: the two-layer models of Burda, Grosse and Salakhutdinov 2016, https://arxiv.org/abs/1509.00519

    Args:
        conditional: z2, (..., D2) -> p(z1|z2), a DiagonalNormal over (..., D1).
        layers: D1 and D2.
    """

    def __init__(self, conditional: nn.Module, layers: tuple[int, int]) -> None:
        super().__init__()
        self.conditional = conditional
        self.layers = layers
        self.register_buffer("origin", torch.zeros(layers[1]), persistent=False)
        self.origin: Tensor

    @classmethod
    def build(cls, site: PriorContext, *, top_dim: int | None, hidden: Sequence[int]) -> "ChainedPrior":
        """Make one of dense layers.

        Args:
            site: the networks and widths.
            top_dim: D2, of the ``latent_dim`` coordinates in all; None takes a third of them.
            hidden: widths of the layers from z2 to z1.

        Raises:
            UserError: z does not divide into two layers.
        """
        if site.latent_dim < 2:
            raise UserError("prior=chained needs latent_dim=2 or more: it divides z into two layers")
        top = max(1, site.latent_dim // 3) if top_dim is None else top_dim
        if type(top) is not int or not 0 < top < site.latent_dim:
            raise UserError(
                f"prior.top_dim must be a whole number from 1 to {site.latent_dim - 1}, so that something is left of "
                f"latent_dim={site.latent_dim} for the layer that the decoder sees, not {top}"
            )
        lower = site.latent_dim - top
        return cls(site.networks.dense_gaussian(top, hidden, lower), (lower, top))

    def top_down(self) -> nn.Module:
        """Return the network of p(z1|z2)."""
        return self.conditional

    def forward(self) -> ChainedNormal:
        """Return the distribution over (D1 + D2,)."""
        return ChainedNormal(standard_normal(self.layers[1], self.origin), self.conditional, self.layers[0])
