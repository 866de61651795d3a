"""Points and weights of the trapezoidal rule over the line or the plane, also for densities with heavy tails."""

import torch
from torch import Tensor

__all__ = ["grid"]

REACH = 8.0
"""sinh(8) is 1,500 spreads."""


def grid(centre: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Return points, (N, D), and weights, (N,), for D = 1 or 2: z = centre + spread * sinh(u), evenly spaced in u.

    Args:
        centre: where the density is large, (D,).
        spread: its width, (D,).
    """
    count = 4001 if len(centre) == 1 else 201
    u = torch.linspace(-REACH, REACH, count, dtype=centre.dtype)
    lines = [middle + width * u.sinh() for middle, width in zip(centre, spread, strict=True)]
    sizes = [width * u.cosh() * 2 * REACH / (count - 1) for width in spread]
    points = torch.stack([part.flatten() for part in torch.meshgrid(*lines, indexing="ij")], -1)
    return points, torch.stack([part.flatten() for part in torch.meshgrid(*sizes, indexing="ij")], -1).prod(-1)
