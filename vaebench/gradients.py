"""Estimators of the gradient of a bound in the encoder's parameters, for any bound."""

from enum import Enum
from functools import lru_cache

import torch
from torch import Tensor

from vaebench.bounds import Bound

__all__ = ["GradientEstimator", "is_curved", "rescale_inner_paths", "rescale_paths"]


class GradientEstimator(Enum):
    """The value of the bound is the same for all three; only the encoder's gradient differs.

    REPARAM: the total derivative of the bound; unbiased, with a signal-to-noise ratio that falls with K.
        Kingma and Welling 2014, https://arxiv.org/abs/1312.6114
    STL: the derivative through the draws alone ("sticking the landing"): zero at the optimum. Unbiased for the
        ELBO; biased for a bound of several samples. Roeder, Wu and Duvenaud 2017, https://arxiv.org/abs/1703.09194
    DREG: the derivative through the draws, each rescaled so that it is unbiased for any smooth bound
        ("doubly reparameterised"). Tucker et al. 2019, https://arxiv.org/abs/1810.04152
    """

    REPARAM = "reparam"
    STL = "stl"
    DREG = "dreg"

    def __init__(self, value: str) -> None:
        self.path_only = value != "reparam"
        """Whether the encoder must hold its parameters constant inside log_q."""


def rescale_paths(paths: tuple[Tensor, ...], log_w: Tensor, bound: Bound, beta: float | Tensor) -> None:
    """Turn the path derivatives of ``bound`` into the doubly reparameterised gradient.

    With c_k = dB/dlog w_k, the missing score term is E[-beta sum_k c_k dlog q(z_k)/dphi], which equals
    E[-beta sum_k (dc_k/dlog w_k) dlog w_k/dz_k dz_k/dphi]. So the path of draw k is scaled by
    1 - beta (dc_k/dlog w_k) / c_k; for the IWAE bound, c_k the normalised weight, that is 1 - beta (1 - c_k).

    Args:
        paths: tensors of (K, B, *) through which the log weights reach the sampler's parameters.
        log_w: log weights, (K, B), the argument of ``bound``.
        bound: maps (K, B) to (B,); twice differentiable and symmetric in the K weights of a group.
        beta: weight of the KL term inside ``log_w``.

    Raises:
        ValueError: the bound selects a weight and has no second derivatives (VR-max).
    """
    factor = 1 - beta * _relative_curvature(log_w.detach(), bound)
    for path in paths:
        if path.requires_grad:
            path.register_hook(lambda gradient: gradient * factor.unsqueeze(-1).to(gradient.dtype))


def is_curved(bound: Bound, k: int) -> bool:
    """Return whether ``bound`` of K = ``k`` log weights differs from their mean, so that it has a score term.

    Raises:
        ValueError: the bound is not defined for ``k`` samples.
    """
    log_w = torch.linspace(-1.0, 1.0, k).unsqueeze(-1)
    return not torch.allclose(bound(log_w), log_w.mean(0), atol=1e-5)


def rescale_inner_paths(paths: tuple[Tensor, ...], log_w: Tensor, bound: Bound, beta: float | Tensor) -> None:
    """Finish the doubly reparameterised gradient of the reverse model tau inside log_q.

    With b_kl the share of inner sample l in log_q of draw k, the score term of tau in the gradient of the bound is
    E[beta sum_k c_k sum_l b_kl dlog tau(psi_kl)/deta]. Its factor c_k b_kl depends on psi_kl, so the term equals a path
    derivative of that factor. Together with the path term of the bound this gives b_kl^2, which a hook of the encoder
    applies, times 1 + beta (dc_k/dlog w_k) / c_k: 2 - c_k for the IWAE bound, and 1 for the ELBO.

    Args:
        paths: tensors of (L, K, B, *).
        log_w: log weights, (K, B), the argument of ``bound``.
        bound: as for :func:`rescale_paths`.
        beta: weight of the KL term inside ``log_w``.
    """
    factor = 1 + beta * _relative_curvature(log_w.detach(), bound)
    for path in paths:
        path.register_hook(lambda gradient: gradient * factor.unsqueeze(-1).to(gradient.dtype))


@lru_cache(maxsize=64)
def _selects(bound: Bound, k: int) -> bool:
    """Return whether a bound without second derivatives differs from the mean of K = ``k`` log weights.

    It is computed once per bound on the CPU, because a test of a step's values would make the host wait for a GPU.
    """
    log_w = torch.linspace(-1.0, 1.0, k, device="cpu").unsqueeze(-1).requires_grad_()
    (slope,) = torch.autograd.grad(bound(log_w).sum(), log_w)
    return not torch.allclose(slope.amax(0), slope.amin(0))


def _relative_curvature(log_w: Tensor, bound: Bound) -> Tensor:
    """Return (d^2 B / d log w_k^2) / (dB / d log w_k), (K, B)."""
    with torch.enable_grad():
        log_w = log_w.requires_grad_()
        (slope,) = torch.autograd.grad(bound(log_w).sum(), log_w, create_graph=True)
        if not slope.requires_grad:  # the bound is linear in log w, as the ELBO is
            if _selects(bound, len(log_w)):
                raise ValueError("dreg needs a bound with second derivatives; the largest weight has none")
            return torch.zeros_like(log_w)
        # One row of the Hessian at a time; the sum over images is exact, because images do not interact.
        rows = [torch.autograd.grad(slope[k].sum(), log_w, retain_graph=True)[0][k] for k in range(len(log_w))]
    curvature = torch.stack(rows)
    return torch.where(slope != 0, curvature / slope, torch.zeros_like(slope)).detach()
