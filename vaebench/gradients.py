"""Gradient estimators: how a bound is differentiated with respect to the encoder, independent of which bound."""

from enum import Enum

import torch
from torch import Tensor

from vaebench.bounds import Bound

__all__ = ["GradientEstimator", "rescale_paths"]


class GradientEstimator(Enum):
    """The value of the bound is the same under all three; only the encoder's gradient differs.

    REPARAM: the total derivative of the bound; unbiased, with a signal-to-noise ratio that falls with K.
        Kingma and Welling 2014, https://arxiv.org/abs/1312.6114
    STL: the derivative through the draws alone ("sticking the landing"): zero at the optimum. Unbiased for the
        ELBO; biased for a bound of several samples. Roeder, Wu and Duvenaud 2017, https://arxiv.org/abs/1703.09194
    DREG: the derivative through the draws, each rescaled so that it is unbiased for any bound
        ("doubly reparameterised"). Tucker et al. 2019, https://arxiv.org/abs/1810.04152
    """

    REPARAM = "reparam"
    STL = "stl"
    DREG = "dreg"

    @property
    def path_only(self) -> bool:
        """Whether the encoder has to hold its parameters constant inside log_q."""
        return self is not GradientEstimator.REPARAM


def rescale_paths(paths: tuple[Tensor, ...], log_w: Tensor, bound: Bound, beta: float) -> None:
    """Turn the path derivatives of ``bound`` into the doubly reparameterised gradient.

    With c_k = dB/dlog w_k, the missing score term is E[-beta sum_k c_k dlog q(z_k)/dphi], which equals
    E[-beta sum_k (dc_k/dlog w_k) dlog w_k/dz_k dz_k/dphi]. So the path of draw k is scaled by
    1 - beta (dc_k/dlog w_k) / c_k; for the IWAE bound, c_k the normalised weight, that is 1 - beta (1 - c_k).

    Args:
        paths: tensors of (K, B, *) through which the log weights reach the sampler's parameters.
        log_w: log weights (K, B) as ``bound`` takes them.
        bound: maps (K, B) to (B,).
        beta: weight of the KL term inside ``log_w``.
    """
    factor = 1 - beta * _relative_curvature(log_w.detach(), bound)
    for path in paths:
        if path.requires_grad:
            path.register_hook(lambda gradient: gradient * factor.unsqueeze(-1).to(gradient.dtype))


def _relative_curvature(log_w: Tensor, bound: Bound) -> Tensor:
    """Return (d^2 B / d log w_k^2) / (dB / d log w_k), (K, B)."""
    with torch.enable_grad():
        log_w = log_w.requires_grad_()
        (slope,) = torch.autograd.grad(bound(log_w).sum(), log_w, create_graph=True)
        if not slope.requires_grad:  # the bound is linear in log w, as the ELBO is
            return torch.zeros_like(log_w)
        # One row of the Hessian at a time: images do not interact, so a row sums over them at no loss.
        rows = [torch.autograd.grad(slope[k].sum(), log_w, retain_graph=True)[0][k] for k in range(len(log_w))]
    curvature = torch.stack(rows)
    return torch.where(slope > 0, curvature / slope, torch.zeros_like(slope)).detach()
