"""Loops written by hand for one model each, in plain torch: the baselines of the speed table.

They compute what the package computes for the same settings (784-300-300-32, SiLU, one Adam step for each batch, pixels
binarized at each visit) and nothing more: no log, no checkpoint, no check that a loss is finite.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AdversarialBaseline",
    "Baseline",
    "GaussianBaseline",
    "HandWritten",
    "HierarchicalBaseline",
    "InverseAutoregressiveBaseline",
    "autocast",
    "binary",
]

PIXELS, HIDDEN, LATENT = 784, (300, 300), 32
SCALE_FLOOR = 1e-6


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Make a dense network with SiLU between its layers."""
    widths = [inputs, *HIDDEN]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def normal(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Split a network's output into mean and scale, in float32."""
    mean, scale = raw.float().chunk(2, -1)
    return mean, F.softplus(scale) + SCALE_FLOOR


def log_normal(value: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return log N(value; mean, scale^2) summed over the last axis."""
    return (-0.5 * ((value - mean) / scale).square() - scale.log()).sum(-1) - 0.5 * math.log(2 * math.pi) * LATENT


def log_standard_normal(value: Tensor) -> Tensor:
    return -0.5 * value.square().sum(-1) - 0.5 * math.log(2 * math.pi) * LATENT


class Baseline(nn.Module):
    """A model with a decoder; ``log_weights(x, k)`` is (K, B)."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = mlp(LATENT, PIXELS)

    def draw(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return z, (K, B, D), and log q, (K, B)."""
        raise NotImplementedError

    def log_weights(self, x: Tensor, k: int) -> Tensor:
        z, log_q = self.draw(x, k)
        logits = self.decoder(z).float()
        error = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        return log_standard_normal(z) - error - log_q

    def forward(self, x: Tensor, k: int) -> Tensor:
        """Return the loss: minus the importance-weighted bound, which for k = 1 is the ELBO."""
        return -(torch.logsumexp(self.log_weights(x, k), 0) - math.log(k)).mean()

    def updates(self) -> "list[tuple[list[nn.Parameter], Callable[[Tensor, int], Tensor], int]]":
        """Return the losses of a step: (parameters, loss, repeats)."""
        return [(list(self.parameters()), self, 1)]


class GaussianBaseline(Baseline):
    """The variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(PIXELS, 2 * LATENT)

    def draw(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        mean, scale = normal(self.encoder(x))
        noise = torch.randn(k, *mean.shape, device=x.device)
        return mean + scale * noise, log_standard_normal(noise) - scale.log().sum(-1)


class _Additive(nn.Module):
    """(u, x) -> raw outputs, u added to each layer."""

    def __init__(self, inputs: int, given: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, HIDDEN[0]), nn.Linear(*HIDDEN)
        self.inject_first, self.inject_second = (nn.Linear(given, width, bias=False) for width in HIDDEN)
        self.last = nn.Linear(HIDDEN[1], outputs)

    def condition(self, x: Tensor) -> Tensor:
        return self.first(x)

    def forward(self, u: Tensor, conditioned: Tensor) -> Tensor:
        hidden = F.silu(conditioned + self.inject_first(u))
        return self.last(F.silu(self.second(hidden) + self.inject_second(u)))


class HierarchicalBaseline(Baseline):
    """IWHVI with L inner samples; the part of each network that depends on x runs once per image."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.mixing = mlp(PIXELS, 2 * LATENT)
        self.conditional = _Additive(PIXELS, LATENT, 2 * LATENT)
        self.reverse = _Additive(PIXELS, LATENT, 2 * LATENT)

    def draw(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        mixing, conditioned = normal(self.mixing(x)), self.conditional.condition(x)
        psi = mixing[0] + mixing[1] * torch.randn(k, *mixing[0].shape, device=x.device)
        given = normal(self.conditional(psi, conditioned))
        z = given[0] + given[1] * torch.randn_like(given[0])
        tau = normal(self.reverse(z, self.reverse.condition(x)))
        others = tau[0] + tau[1] * torch.randn(self.inner, *tau[0].shape, device=x.device)
        own = log_normal(psi, *mixing) + log_normal(z, *given) - log_normal(psi, *tau)
        theirs = log_normal(z, *normal(self.conditional(others, conditioned)))
        theirs = theirs + log_normal(others, *mixing) - log_normal(others, *tau)
        ratios = torch.cat([own.unsqueeze(0), theirs])
        return z, torch.logsumexp(ratios, 0) - math.log(self.inner + 1)


class InverseAutoregressiveBaseline(Baseline):
    """A Gaussian and ``steps`` inverse autoregressive steps with one masked hidden stack each."""

    def __init__(self, steps: int, width: int, depth: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(PIXELS, HIDDEN[0]), nn.SiLU(), nn.Linear(*HIDDEN), nn.SiLU())
        self.head = nn.Linear(HIDDEN[1], 2 * LATENT)
        self.steps = nn.ModuleList(_Masked(width, depth, index % 2 == 1) for index in range(steps))

    def draw(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        mean, scale = normal(self.head(features))
        noise = torch.randn(k, *mean.shape, device=x.device)
        z, log_q = mean + scale * noise, log_standard_normal(noise) - scale.log().sum(-1)
        for step in self.steps:
            target, gate = step(z, features)
            z, log_q = gate * z + (1 - gate) * target, log_q - gate.log().sum(-1)
        return z, log_q


class _Masked(nn.Module):
    """(z, features) -> what one step moves each coordinate to and the gate; coordinates see those before them."""

    first_mask: Tensor
    inner_mask: Tensor
    outer_mask: Tensor

    def __init__(self, width: int, depth: int, backward: bool) -> None:
        super().__init__()
        ranks = torch.arange(1, LATENT + 1)
        inputs = ranks.flip(0) if backward else ranks
        units = torch.arange(width) * LATENT // width
        self.features, self.first = nn.Linear(HIDDEN[1], width), nn.Linear(LATENT, width, bias=False)
        self.others: Sequence[nn.Linear] = nn.ModuleList(  # pyright: ignore[reportAttributeAccessIssue]
            nn.Linear(width, width) for _ in range(depth - 1)
        )
        self.last = nn.Linear(width, 2 * LATENT)
        nn.init.constant_(self.last.bias[LATENT:], 3.0)
        self.register_buffer("first_mask", (inputs <= units.unsqueeze(-1)).float())
        self.register_buffer("inner_mask", (units <= units.unsqueeze(-1)).float())
        self.register_buffer("outer_mask", (units < inputs.unsqueeze(-1)).float().repeat(2, 1))

    def forward(self, z: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.silu(F.linear(z, self.first.weight * self.first_mask) + self.features(features))
        for layer in self.others:
            hidden = F.silu(F.linear(hidden, layer.weight * self.inner_mask, layer.bias))
        raw = F.linear(hidden, self.last.weight * self.outer_mask, self.last.bias).float()
        target, gate = raw.chunk(2, -1)
        return target, 1e-3 + (1 - 1e-3) * gate.sigmoid()


class AdversarialBaseline(Baseline):
    """Adversarial variational Bayes: a sampler fed with noise, and a discriminator with separate steps."""

    def __init__(self, noise: int, hidden: tuple[int, ...], repeats: int) -> None:
        super().__init__()
        self.noise, self.repeats = noise, repeats
        self.sampler = _Additive(PIXELS, noise, LATENT)
        self.judge = _Judge(hidden)

    def sample(self, x: Tensor, k: int) -> Tensor:
        epsilon = torch.randn(k, len(x), self.noise, device=x.device)
        return self.sampler(epsilon, self.sampler.condition(x)).float()

    def draw(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        z = self.sample(x, k)
        # The judge is a constant function here: its weights need no gradient.
        self.judge.requires_grad_(False)
        log_q = log_standard_normal(z) + self.judge(x, z)
        self.judge.requires_grad_(True)
        return z, log_q

    def discriminator_loss(self, x: Tensor, k: int) -> Tensor:
        del k
        with torch.no_grad():
            drawn = self.sample(x, 1)
        # Both in one pass, so that the network over x runs once.
        from_q, from_r = self.judge(x, torch.cat([drawn, torch.randn_like(drawn)]))
        return F.softplus(-from_q).mean() + F.softplus(from_r).mean()

    def updates(self) -> "list[tuple[list[nn.Parameter], Callable[[Tensor, int], Tensor], int]]":
        main = [*self.decoder.parameters(), *self.sampler.parameters()]
        return [(main, self, 1), (list(self.judge.parameters()), self.discriminator_loss, self.repeats)]


class _Judge(nn.Module):
    """T(x, z) = g(theta(x) . s(z) + t(x) + u(z)) + 1/2 ||z||^2."""

    def __init__(self, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.theta, self.z_trunk = _tower(PIXELS, hidden), _tower(LATENT, hidden)
        self.t, self.s_and_u = nn.Linear(hidden[-1], 1), nn.Linear(hidden[-1], hidden[-1] + 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        theta, terms = self.theta(x), self.s_and_u(self.z_trunk(z))
        bilinear = (theta / math.sqrt(theta.shape[-1]) * terms[..., :-1]).sum(-1)
        learned = (bilinear + self.t(theta).squeeze(-1) + terms[..., -1]).float()
        return 100 * torch.asinh(learned / 100) + 0.5 * z.square().sum(-1)


def _tower(inputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    widths = [inputs, *hidden]
    return nn.Sequential(*(layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ELU())))


def binary(probabilities: Tensor) -> Tensor:
    """Draw pixels. On a CPU a quarter of the time of torch.bernoulli, which is not vectorised over probabilities."""
    return (torch.rand_like(probabilities) < probabilities).float()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context for the networks' precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


class HandWritten:
    """The training loop: shuffle, binarize, step.

    Args:
        baseline: the model.
        intensities: pixel bytes, (N, 784), on the device.
        k: importance samples.
        batch: images in a batch.
        precision: ``float32`` or ``bf16``.
        compiled: compile each loss, and the weights of an evaluation.
    """

    def __init__(
        self,
        baseline: Baseline,
        intensities: Tensor,
        k: int,
        batch: int,
        precision: str = "float32",
        compiled: bool = False,
    ) -> None:
        self.baseline, self.k, self.batch, self.precision = baseline.to(intensities.device), k, batch, precision
        self.probabilities = intensities.float() / 255
        self.shares = [
            (torch.optim.Adam(parameters, lr=1e-3, fused=True), torch.compile(loss) if compiled else loss, repeats)
            for parameters, loss, repeats in self.baseline.updates()
        ]
        self.log_weights = torch.compile(baseline.log_weights) if compiled else baseline.log_weights

    def epoch(self) -> None:
        """Take one step for each batch."""
        order = torch.randperm(len(self.probabilities), device=self.probabilities.device)
        for some in order.split(self.batch):
            self.step(binary(self.probabilities[some]))

    def step(self, x: Tensor) -> None:
        """Take one step of each share."""
        for optimizer, loss, repeats in self.shares:
            for _ in range(repeats):
                optimizer.zero_grad(set_to_none=True)
                with autocast(x.device, self.precision):
                    value = loss(x, self.k)
                value.backward()
                optimizer.step()

    @torch.no_grad()
    def evaluate(self, k: int, rows: int) -> Tensor:
        """Return the importance-weighted estimate of each image, (N,), ``rows`` image-samples at a time."""
        x, total = binary(self.probabilities), None
        chunk = max(1, rows // len(x))
        with autocast(x.device, self.precision):
            for first in range(0, k, chunk):
                part = torch.logsumexp(self.log_weights(x, min(chunk, k - first)).double(), 0)
                total = part if total is None else torch.logaddexp(total, part)
        assert total is not None
        return total - math.log(k)
