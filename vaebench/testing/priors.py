"""The contract of a prior: its density integrates to one, its draws follow it, its weights are learned and saved."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from vaebench import noise
from vaebench.encoders.base import BuildContext
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.nets.networks import Networks
from vaebench.priors import Prior, PriorContext
from vaebench.runtime import forked_randomness
from vaebench.selftest.rows import CheckRow, Mean, distance, exact, near
from vaebench.testing.contract import CPU, Contract, no_problem, verify
from vaebench.testing.encoders import images, moved, reference_model, reloaded
from vaebench.testing.quadrature import grid

__all__ = ["check_prior", "prior_contract"]

DRAWS = 20_000
STEP = 1e-6


def check_prior(build: Callable[..., Prior], /, **settings: Any) -> None:
    """Print the checks of a prior, and raise AssertionError with one line for each that fails.

    Args:
        build: what the entry point of the prior names: (context, **settings) -> the prior.
        settings: the keys of its yaml besides ``name``.
    """
    verify(prior_contract(build, settings))


def prior_contract(build: Callable[..., Prior], settings: Mapping[str, Any] | None = None) -> Contract:
    """Return the checks of a prior; for the arguments see :func:`check_prior`."""
    subject = _Subject(build, settings or {})
    checks = [shapes, density, draws, gradients, storage]
    return {check.__name__: partial(check, subject) for check in checks}


@dataclass(frozen=True)
class _Subject:
    """A prior's ``build``, with its settings."""

    build: Callable[..., Prior]
    settings: Mapping[str, Any]

    def make(self, latent_dim: int = 2, seed: int = 0) -> Prior:
        """Return the prior with weights of ``seed``, away from their initial values."""
        networks, pixel_mean = Networks("mlp", [8], "tanh"), torch.tensor([0.5, 0.4, 0.6])
        with forked_randomness(CPU, seed):
            prior = self.build(PriorContext(latent_dim, networks, pixel_mean), **self.settings)
            moved(prior)
        with forked_randomness(CPU, 0):
            context = BuildContext(networks, len(pixel_mean), latent_dim, reference_model())
            prior.attach_encoder(GaussianEncoder.build(context))
        return prior

    def smallest(self) -> Prior:
        """Return the prior over one coordinate, or over two if it needs two."""
        try:
            return self.make(1)
        except ValueError:
            return self.make(2)


def shapes(subject: _Subject) -> Iterator[CheckRow]:
    """Compare the shapes of draws and densities, and the widths of the layers, for four coordinates."""
    prior = subject.make(4)
    p, problems = prior(), []
    wrong = [f"layers are {prior.layers}, whose sum is not 4"] if sum(prior.layers) != 4 else []
    yield no_problem("widths of the layers", wrong)
    for shape in ((), (5,), (2, 3)):
        z = p.sample(shape)
        problems += [f"a draw of {shape} has shape {tuple(z.shape)}"] * (tuple(z.shape) != (*shape, 4))
        problems += ["draws have a gradient"] * z.requires_grad
        problems += ["draws are not finite"] * (not bool(z.isfinite().all()))
        log_p = p.log_prob(z)
        problems += [f"log_prob of {tuple(z.shape)} has shape {tuple(log_p.shape)}"] * (log_p.shape != z.shape[:-1])
        problems += ["log_prob of draws is not finite"] * (not bool(log_p.isfinite().all()))
    yield no_problem("shapes, for z of (4,), (5, 4) and (2, 3, 4)", dict.fromkeys(problems))


def _on_grid(p: Distribution) -> tuple[Tensor, Tensor]:
    """Return points, (N, D), and their probabilities, (N,), by quadrature."""
    drawn = p.sample((2000,))
    points, sizes = grid(drawn.median(0).values, drawn.std(0))
    return points, p.log_prob(points).exp() * sizes


@torch.no_grad()
def density(subject: _Subject) -> Iterator[CheckRow]:
    """Compare the integral of the density with 1."""
    points, probability = _on_grid(subject.smallest()())
    yield exact(f"integral of p(z), D={points.shape[-1]}", 1, probability.sum().item(), 2e-3)


@torch.no_grad()
def draws(subject: _Subject) -> Iterator[CheckRow]:
    """Compare means over draws with quadrature; draws under keyed noise depend on the seed alone."""
    p = subject.smallest()()
    points, probability = _on_grid(p)
    z = p.sample((DRAWS,))
    for name, function in _MOMENTS.items():
        for coordinate in range(z.shape[-1]):
            expected = (function(points[:, coordinate]) * probability).sum().item()
            yield near(f"E[{name}] of z_{coordinate + 1}", expected, Mean.of(function(z[:, coordinate])))
    if z.shape[-1] == 2:
        expected = (points.tanh().prod(-1) * probability).sum().item()
        yield near("E[tanh(z_1) tanh(z_2)]", expected, Mean.of(z.tanh().prod(-1)))

    def seeded() -> Tensor:
        with noise.keyed(3, torch.arange(6)):
            return p.sample((2, 6))

    if not torch.equal(seeded(), seeded()):
        with forked_randomness(CPU, 1):
            one = p.sample((6,))
        with forked_randomness(CPU, 1):
            yield exact("draws of the same seed", 0, distance(one, p.sample((6,))))


_MOMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh(z)": torch.tanh,
    "cos(z)": torch.cos,
    "1 / (1 + z^2)": lambda z: 1 / (1 + z.square()),
}
"""Bounded functions, whose means exist for every prior."""


def gradients(subject: _Subject) -> Iterator[CheckRow]:
    """Every parameter has a gradient; the gradient of log p(z) in z against finite differences."""
    prior = subject.make()
    z = torch.randn(64, 2)
    own = {name: parameter for name, parameter in prior.named_parameters() if parameter.requires_grad}
    slopes = torch.autograd.grad(prior().log_prob(z).mean(), list(own.values()), allow_unused=True) if own else ()
    missing = [name for name, slope in zip(own, slopes, strict=True) if slope is None or not bool((slope != 0).any())]
    yield no_problem(f"each of {len(own)} parameters has a gradient", [f"no gradient: {name}" for name in missing])
    z, step = z.requires_grad_(), torch.randn(64, 2)
    (slope,) = torch.autograd.grad(prior().log_prob(z).sum(), z)
    with torch.no_grad():
        difference = prior().log_prob(z + STEP * step) - prior().log_prob(z - STEP * step)
    error = (slope * step).sum(-1) - difference / (2 * STEP)
    yield exact("gradient of log p(z) - finite difference", 0, error.median().item(), 1e-5)
    yield exact("largest error over 64 z", 0, error.abs().max().item(), 1e-4)


@torch.no_grad()
def storage(subject: _Subject) -> Iterator[CheckRow]:
    """A prior that loads the weights of another one has the same density."""
    prior, other = subject.make(), subject.make(seed=1)
    z = images(2)[:, :2]
    reloaded(prior, other)
    yield exact("log p(z) after save and load", 0, distance(prior().log_prob(z), other().log_prob(z)))
