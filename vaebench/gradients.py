"""Estimators of the gradient of a bound in the encoder's parameters, for any bound."""

import math
from collections.abc import Callable, Sequence
from enum import Enum
from functools import lru_cache, partial
from itertools import pairwise
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from vaebench.bounds import Bound, ciwae, elbo, iwae, miwae, renyi, tvo

__all__ = [
    "CLOSED_FORMS",
    "GradientEstimator",
    "is_curved",
    "relative_curvature",
    "rescale_inner_paths",
    "rescale_paths",
]


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
    factor = 1 - beta * relative_curvature(log_w.detach(), bound)
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
    factor = 1 + beta * relative_curvature(log_w.detach(), bound)
    for path in paths:
        path.register_hook(lambda gradient: gradient * factor.unsqueeze(-1).to(gradient.dtype))


def relative_curvature(log_w: Tensor, bound: Bound) -> Tensor:
    """Return (d^2 B / d log w_k^2) / (dB / d log w_k), (K, B), without a graph.

    The bounds in ``CLOSED_FORMS`` take one pass, any other bound K backward passes.

    Raises:
        ValueError: the bound selects a weight and has no second derivatives (VR-max).
    """
    settings: dict[str, Any]
    of, settings = (bound.func, bound.keywords) if isinstance(bound, partial) and not bound.args else (bound, {})
    form = CLOSED_FORMS.get(of) if isinstance(of, FunctionType) else None
    return _by_autograd(log_w, bound) if form is None else form(log_w, **settings)


# With p_k the normalised weight, dp_k / dlog w_k = p_k (1 - p_k).


def _of_iwae(log_w: Tensor) -> Tensor:
    return 1 - log_w.softmax(0)


def _of_ciwae(log_w: Tensor, beta: float) -> Tensor:
    share = (1 - beta) * log_w.softmax(0)
    return _quotient(share * _of_iwae(log_w), beta / len(log_w) + share)


def _of_miwae(log_w: Tensor, groups: int) -> Tensor:
    return 1 - log_w.unflatten(0, (groups, -1)).softmax(1).flatten(0, 1)


def _of_renyi(log_w: Tensor, alpha: float) -> Tensor:
    if alpha == -math.inf:
        return _by_autograd(log_w, _LARGEST)
    return (1 - alpha) * _of_iwae((1 - alpha) * log_w)


def _of_tvo(log_w: Tensor, betas: Sequence[float], *, upper: bool = False) -> Tensor:
    """With p at power b and E the mean of log w under p: dE / dlog w_k = p_k a_k, a_k = 1 + b (log w_k - E)."""
    slope = curvature = torch.zeros_like(log_w)
    for low, high in pairwise(betas):
        width, power = high - low, high if upper else low
        p = (power * log_w).softmax(0)
        a = 1 + power * (log_w - (p * log_w).sum(0))
        slope = slope + width * p * a
        curvature = curvature + width * power * p * (a + 1 - 2 * p * a)
    return _quotient(curvature, slope)


def _quotient(curvature: Tensor, slope: Tensor) -> Tensor:
    """Return curvature / slope; 0 for a weight of no influence, whose gradient is 0."""
    return torch.where(slope != 0, curvature / slope, 0)


_LARGEST: Bound = partial(torch.amax, dim=0)

CLOSED_FORMS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    elbo: torch.zeros_like,
    iwae: _of_iwae,
    ciwae: _of_ciwae,
    miwae: _of_miwae,
    renyi: _of_renyi,
    tvo: _of_tvo,
}
"""Bound -> its :func:`relative_curvature`, with the keyword arguments of the bound."""


@lru_cache(maxsize=64)
def _selects(bound: Bound, k: int) -> bool:
    """Return whether a bound without second derivatives differs from the mean of K = ``k`` log weights.

    It is computed once per bound on the CPU, because a test of a step's values would make the host wait for a GPU.
    """
    log_w = torch.linspace(-1.0, 1.0, k, device="cpu").unsqueeze(-1).requires_grad_()
    (slope,) = torch.autograd.grad(bound(log_w).sum(), log_w)
    return not torch.allclose(slope.amax(0), slope.amin(0))


def _by_autograd(log_w: Tensor, bound: Bound) -> Tensor:
    with torch.enable_grad():
        log_w = log_w.detach().requires_grad_()
        (slope,) = torch.autograd.grad(bound(log_w).sum(), log_w, create_graph=True)
        if not slope.requires_grad:  # the bound is linear in log w, as the ELBO is
            if _selects(bound, len(log_w)):
                raise ValueError("dreg needs a bound with second derivatives; the largest weight has none")
            return torch.zeros_like(log_w)
        # One row of the Hessian at a time; the sum over images is exact, because images do not interact.
        rows = [torch.autograd.grad(slope[k].sum(), log_w, retain_graph=True)[0][k] for k in range(len(log_w))]
    return _quotient(torch.stack(rows), slope).detach()
