"""Priors p(z): modules that return a torch distribution over the latents.

Shapes: K samples first, B images, D latent coordinates, N components; nats.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

from vaebench import noise
from vaebench.arguments import at_least, widths
from vaebench.distributions import DiagonalNormal, standard_normal
from vaebench.nets.dense import LOG_SCALE_RANGE, weights_by_name
from vaebench.nets.networks import Networks
from vaebench.runtime import in_float64

if TYPE_CHECKING:
    from vaebench.flows.flow import Flow, StepParameters

__all__ = [
    "ChainedNormal",
    "ChainedPrior",
    "FlowPrior",
    "GaussianMixture",
    "MixturePrior",
    "Prior",
    "PriorContext",
    "PushedNormal",
    "StandardNormalPrior",
    "VampPrior",
]


class Posterior(Protocol):
    """The part of an encoder that a prior may use."""

    def exact_posterior(self, x: Tensor) -> DiagonalNormal | None:
        """Return q(z|x), batch shape (B,), differentiable in its parameters; None if it is not a Gaussian."""
        ...


@dataclass(frozen=True)
class PriorContext:
    """The first argument of every prior's ``build``; the keys of the yaml follow as keyword arguments."""

    latent_dim: int
    """Latent coordinates D."""
    networks: Networks
    """Makes networks of the decoder's architecture."""
    pixel_mean: Tensor
    """The mean of the training images, (X,), in [0, 1]."""


class Prior(nn.Module, ABC):
    """p(z), learned or fixed. Abstract: each family is a final class."""

    layers: tuple[int, ...]
    """Widths of the stochastic layers of z; their sum is D. The first layer is the decoder's input."""

    @abstractmethod
    def forward(self) -> Distribution:
        """Return the distribution, event shape (D,)."""

    def top_down(self) -> nn.Module | None:
        """Return the network z2, (..., D2) -> p(z1|z2), a DiagonalNormal; None if z has one layer."""
        return None

    def attach_encoder(self, encoder: Posterior) -> None:
        """Use the encoder, which is built after the prior. The default does nothing."""


def with_current_weights(module: nn.Module) -> Callable[..., Any]:
    """Return ``module`` as a function with its current weights.

    A distribution may be used after the call that made it, for example after ``functional_call`` with other weights.
    """
    weights = weights_by_name(module)
    return lambda *inputs: functional_call(module, weights, inputs)


# One Gaussian ---------------------------------------------------------------------------------------------


class StandardNormalPrior(Prior):
    """p(z) = N(0, I)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.layers = (latent_dim,)
        # A buffer has the device and dtype of the module; it is not learned or saved.
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)
        self.origin: Tensor

    @classmethod
    def build(cls, context: PriorContext) -> "StandardNormalPrior":
        """Build the prior of the model's width."""
        return cls(context.latent_dim)

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
        """Draw (*sample_shape, D); the weights select the component of each draw."""
        means, scales = self.components.mean.detach(), self.components.scale.detach()
        uniform = noise.uniform((*sample_shape, 1), means)
        # Rounding may make the last sum less than 1, and a uniform number may exceed it.
        edges = self.log_weights.detach().exp().cumsum(0)[:-1]
        chosen = torch.searchsorted(edges, uniform, right=True).squeeze(-1)
        return means[chosen] + scales[chosen] * noise.standard_normal((*sample_shape, means.shape[-1]), means)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p, (...), for values (..., D), in memory of (..., N).

        Matrix products give the squared distances. Their terms cancel, so they are computed in float64.
        """
        with torch.autocast(value.device.type, enabled=False):
            wide = in_float64(value)
            mean, precision = in_float64(self.components.mean), in_float64(self.components.scale).square().reciprocal()
            distance = (
                wide.square() @ precision.T - 2 * (wide @ (mean * precision).T) + (mean.square() * precision).sum(-1)
            )
            log_2pi = value.shape[-1] * math.log(2 * math.pi)
            log_norm = in_float64(self.log_weights) + 0.5 * precision.log().sum(-1) - 0.5 * log_2pi
            return torch.logsumexp(log_norm - 0.5 * distance, -1).to(value)


class MixturePrior(Prior):
    """p(z) = sum_n weight_n N(mean_n, diag(scale_n^2)) with learned weights, means and scales.

    Source: the mixture of Gaussians of Tomczak and Welling 2018, https://arxiv.org/abs/1705.07120, there with equal
    weights

    Args:
        latent_dim: D.
        components: N.
    """

    def __init__(self, latent_dim: int, components: int) -> None:
        super().__init__()
        self.layers = (latent_dim,)
        # The mixture is about N(0, I), and no two components are equal.
        self.means = nn.Parameter(0.1 * torch.randn(components, latent_dim))
        self.log_scales = nn.Parameter(torch.zeros(components, latent_dim))
        self.raw_log_weights = nn.Parameter(torch.zeros(components))

    @classmethod
    def build(cls, context: PriorContext, *, components: int) -> "MixturePrior":
        """Build the prior of the model's width."""
        at_least(1, components=components)
        return cls(context.latent_dim, components)

    def forward(self) -> GaussianMixture:
        """Return the mixture over (D,)."""
        scales = self.log_scales.clamp(*LOG_SCALE_RANGE).exp()
        return GaussianMixture(DiagonalNormal(self.means, scales), self.raw_log_weights.log_softmax(0))


class VampPrior(Prior):
    """p(z) = 1/N sum_n q(z|u_n), with the encoder's q and learned pseudo-inputs u_n in (0, 1).

    The gradient of log p(z) reaches the pseudo-inputs and the encoder's parameters. It is not a path gradient of the
    encoder's draws, and no gradient estimator rescales it.

    Source: Tomczak and Welling 2018, https://arxiv.org/abs/1705.07120, where u_n is clipped to [0, 1]. Here u_n is a
    sigmoid, whose gradient is not 0 at the ends

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
    def build(cls, context: PriorContext, *, components: int) -> "VampPrior":
        """Build the prior; ``attach_encoder`` must follow before its first use."""
        at_least(1, components=components)
        return cls(context.latent_dim, context.pixel_mean, components)

    def attach_encoder(self, encoder: Posterior) -> None:
        """Use the encoder's q(z|x) for the components.

        Raises:
            ValueError: the encoder's q(z|x) is not a Gaussian in closed form.
        """
        with torch.no_grad():
            found = encoder.exact_posterior(self.pseudo_inputs()[:1])
        if found is None:
            raise ValueError(
                "the prior needs an encoder whose q(z|x) is a diagonal Gaussian in closed form: use encoder=gaussian, "
                "or prior=mixture or prior=realnvp"
            )
        # In a tuple, so that torch does not register it as a submodule; copies of model and encoder keep the link.
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
    """The distribution of z for which f(z) ~ N(0, I): log p(z) = log N(f(z); 0, I) + log|det df/dz|.

    Args:
        steps: f, from z to the base.
        conditioned: the parameters of each step, without a batch axis.
        base: N(0, I) over (D,).
    """

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)

    def __init__(self, steps: "Sequence[Flow]", conditioned: "Sequence[StepParameters]", base: DiagonalNormal) -> None:
        self.chain = [(step, with_current_weights(step), known) for step, known in zip(steps, conditioned, strict=True)]
        self.base = base
        super().__init__(torch.Size(), base.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p, (...), for values (..., D), in one pass."""
        log_det = value.new_zeros(value.shape[:-1])
        for _, forward, conditioned in self.chain:
            transformed = forward(value, conditioned)
            value, log_det = transformed.z, log_det + transformed.log_det
        return self.base.log_prob(value) + log_det

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, D) by the inverses of the steps."""
        with torch.no_grad():
            value = self.base.sample(sample_shape)
            for step, _, conditioned in reversed(self.chain):
                value = step.inverse(value, conditioned)
        return value


class FlowPrior(Prior):
    """N(0, I), transformed by invertible steps.

    Training needs the density of given z, not draws, so the steps map z to the normal, and sampling inverts them. They
    are near the identity at first.

    Source: Dinh, Sohl-Dickstein and Bengio 2017, https://arxiv.org/abs/1605.08803; as a prior, Huang et al. 2017,
    "Learnable explicit density for continuous latent space and variational inference",
    https://arxiv.org/abs/1710.02248

    Args:
        latent_dim: D.
        steps: in the order from z to the base; each takes one feature, which is constant here.
    """

    def __init__(self, latent_dim: int, steps: "Sequence[Flow]") -> None:
        super().__init__()
        self.layers = (latent_dim,)
        self.steps = nn.ModuleList(steps)
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)
        self.origin: Tensor

    @classmethod
    def build(cls, context: PriorContext, *, steps: int, width: int, depth: int) -> "FlowPrior":
        """Build the prior of affine coupling steps.

        Raises:
            ValueError: an argument is out of range, or z has fewer than two coordinates.
        """
        from vaebench.flows.flow import FlowContext
        from vaebench.flows.realnvp import RealNVPFlow

        at_least(0, steps=steps)
        dim, activation = context.latent_dim, context.networks.activation
        contexts = [FlowContext(1, dim, index, activation) for index in range(steps)]
        return cls(dim, [RealNVPFlow.build(each, width=width, depth=depth) for each in contexts])

    def forward(self) -> PushedNormal:
        """Return the distribution over (D,)."""
        steps: Sequence[Flow] = list(self.steps)  # pyright: ignore[reportAssignmentType]
        features = self.origin.new_ones(1)
        base = standard_normal(self.layers[0], self.origin)
        return PushedNormal(steps, [step.condition(features) for step in steps], base)


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
        self.top, self.conditional, self.width = top, with_current_weights(conditional), width
        super().__init__(torch.Size(), torch.Size([width + top.event_shape[0]]), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, D1 + D2), differentiable in the parameters."""
        second = self.top.rsample(sample_shape)
        return torch.cat([self.conditional(second).rsample(), second], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p, (...), for values (..., D1 + D2)."""
        first, second = value[..., : self.width], value[..., self.width :]
        return self.top.log_prob(second) + self.conditional(second).log_prob(first)


class ChainedPrior(Prior):
    """p(z2) = N(0, I), p(z1|z2) = N(mean(z2), diag(scale(z2)^2)), learned; the decoder's input is z1 alone.

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
    def build(cls, context: PriorContext, *, top_dim: int | None, hidden: Sequence[int]) -> "ChainedPrior":
        """Build the prior of dense layers.

        Args:
            context: the networks and widths.
            top_dim: D2, a part of the ``latent_dim`` coordinates; None uses a third of them.
            hidden: widths of the layers from z2 to z1.

        Raises:
            ValueError: an argument is out of range, or z has fewer than two coordinates.
        """
        if context.latent_dim < 2:
            raise ValueError(f"latent_dim must be >= 2 for a prior of two layers, got {context.latent_dim}")
        top = max(1, context.latent_dim // 3) if top_dim is None else top_dim
        if type(top) is not int or not 0 < top < context.latent_dim:
            raise ValueError(f"top_dim must be a whole number >= 1 and < latent_dim={context.latent_dim}, got {top}")
        widths(hidden=hidden)
        lower = context.latent_dim - top
        return cls(context.networks.dense_gaussian(top, hidden, lower), (lower, top))

    def top_down(self) -> nn.Module:
        """Return the network of p(z1|z2)."""
        return self.conditional

    def forward(self) -> ChainedNormal:
        """Return the distribution over (D1 + D2,)."""
        return ChainedNormal(standard_normal(self.layers[1], self.origin), self.conditional, self.layers[0])
