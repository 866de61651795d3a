"""Annealing on the linear-Gaussian model: every annealed density is Gaussian, so moves can be exact draws.

The expected log weight is then known.
"""

import math

import torch
from torch import Tensor

from vaebench.estimators.annealing import Ends, Hamiltonian, Move, Path
from vaebench.selftest.oracles.gaussian import LinearGaussian

__all__ = ["bridge", "exact_move", "expected_log_weight", "hmc_move", "shared"]


def bridge(model: LinearGaussian, x: Tensor) -> Path:
    """Return the path from the prior to p(x, z)."""
    return Path(model.prior().log_prob, lambda z: torch.add(*model.log_joint(x, z)))


def annealed_gaussian(model: LinearGaussian, x: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return mean (B, D) and covariance of p(z) p(x|z)^beta, normalised."""
    precision = beta * model.weight.T @ model.weight / model.scale**2
    precision.diagonal().add_(1)
    variance = torch.linalg.inv(precision)
    return beta * (x - model.bias) @ model.weight @ variance / model.scale**2, variance


def expected_ratio(model: LinearGaussian, x: Tensor, beta: float) -> Tensor:
    """Return E log p(x|z) under the annealed density, (B,)."""
    mean, variance = annealed_gaussian(model, x, beta)
    spread = torch.trace(model.weight @ variance @ model.weight.T)
    squares = (x - model.bias - mean @ model.weight.T).square().sum(-1) + spread
    return -0.5 * squares / model.scale**2 - len(model.bias) * math.log(model.scale * math.sqrt(2 * math.pi))


def expected_log_weight(model: LinearGaussian, x: Tensor, betas: Tensor) -> Tensor:
    """Return E log w for exact moves along ``betas``, (B,); falling ``betas`` give that of the reverse chain."""
    ratios = torch.stack([expected_ratio(model, x, beta.item()) for beta in betas[:-1]])
    return (betas.diff().unsqueeze(1) * ratios).sum(0)


def exact_move(model: LinearGaussian, x: Tensor) -> Move:
    """Return the move that draws independently from each annealed density."""

    def move(t: int, beta: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
        mean, variance = annealed_gaussian(model, x, beta[0].item())
        z = mean + torch.randn_like(ends.initial.position) @ torch.linalg.cholesky(variance).T
        return z, torch.ones_like(z[..., 0])

    return move


def hmc_move(path: Path, temperatures: int, batch: int, step: float = 0.5) -> Move:
    """Return HMC moves of three leapfrog steps with a fixed step size."""
    return Hamiltonian(path, torch.full((temperatures + 2, batch), step), torch.ones(batch, 2), leapfrog=3)


def shared(betas: Tensor, batch: int) -> Tensor:
    """Return the same temperatures, (T + 2,), for each of ``batch`` images."""
    return betas.unsqueeze(1).expand(-1, batch)
