"""Checks of the images and the encoder of a call from Python, where no run has prepared them.

Training and evaluation do not need them: :mod:`vaebench.datasets` gives their images.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench.encoders.base import Direction, Encoder
from vaebench.model import GenerativeModel

__all__ = ["checked_images", "refuse_estimate"]

_MOST_CHANNELS = 4
"""In the last axis of an array (N, H, W, C): a larger last axis is the width of an image."""


@torch.no_grad()
def checked_images(model: GenerativeModel, encoder: Encoder | None, x: Any) -> Tensor:
    """Return the images x as (B, X), for which p(x|z) is defined.

    (N, H, W) and (N, C, H, W) are flattened. The range of pixels is that of p(x|z): [0, 1], multiples of 1/255, or all
    finite numbers for a density on the line.

    Raises:
        ValueError: x is no tensor of floats, is on another device or of another dtype than a model, has another shape,
            or has pixels that are not finite or out of range. The message says what to do.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a tensor of images, (B, X), got {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating-point, got {x.dtype}: give bytes as x.float() / 255")
    for name, part in (("the model", model), ("the encoder", encoder)):
        _check_place(x, name, part)
    likelihood = _of_one_latent(model)
    x = _rows(x, likelihood.event_shape[0] if likelihood is not None else None)
    if not bool(x.isfinite().all()):
        count = int((~x.isfinite()).sum())
        raise ValueError(f"x must be finite, but {count} of its {x.numel()} pixels are NaN or infinite")
    if likelihood is not None:
        _check_range(x, likelihood)
    return x


def refuse_estimate(encoder: Encoder, estimate: bool) -> None:
    """Raise ValueError for an encoder whose log_q is an estimate, unless the caller wants an ``estimate``."""
    if encoder.direction is Direction.ESTIMATE and not estimate:
        raise ValueError(
            f"the log_q of {type(encoder).__name__} is a learned estimate, so that the result is no bound on log p(x): "
            "pass encoder.proposal(model), the Gaussian with its widened moments, for a lower bound, or estimate=True"
        )


def _check_place(x: Tensor, name: str, module: nn.Module | None) -> None:
    """Raise ValueError if x is not where the weights of a module are, or is of another dtype."""
    weights = [] if module is None else [p for p in module.parameters() if p.is_floating_point()]
    if not weights:
        return
    device, dtype = weights[0].device, weights[0].dtype
    if x.device != device:
        raise ValueError(f"x is on {x.device} and {name} is on {device}: use x.to({str(device)!r})")
    if x.dtype != dtype:
        raise ValueError(f"x is {x.dtype} and {name} is {dtype}: use x.to({dtype})")


def _of_one_latent(model: GenerativeModel) -> Distribution | None:
    """Return p(x|z) at z = 0, which tells X and the range of pixels; None if it has not one axis of pixels."""
    prior_shape = getattr(model.prior(), "event_shape", None)
    if prior_shape is None:
        return None
    weight = next(model.parameters(), torch.zeros(()))
    z = torch.zeros(1, 1, *prior_shape, dtype=weight.dtype, device=weight.device)
    likelihood = model.likelihood(z)
    return likelihood if len(getattr(likelihood, "event_shape", ())) == 1 else None


def _rows(x: Tensor, pixels: int | None) -> Tensor:
    """Return images as (B, X); ``pixels`` is X, or None if it is unknown."""
    shape = tuple(x.shape)
    wanted = f"(B, {pixels or 'X'})"
    if x.numel() == 0:
        raise ValueError(f"x must have the shape {wanted}, got no images: {shape}")
    if x.ndim == 1:
        raise ValueError(f"x must have the shape {wanted}, got {shape}: use x.unsqueeze(0) for one image")
    if x.ndim == 4 and 1 < shape[3] <= _MOST_CHANNELS < shape[1]:
        raise ValueError(f"x must have the shape {wanted} or (B, C, H, W), got {shape}: use x.movedim(-1, 1)")
    if x.ndim > 4 or pixels not in (None, math.prod(shape[1:])):
        raise ValueError(f"x must have the shape {wanted}, or (B, C, H, W) with that many numbers, got {shape}")
    return x.flatten(1)


def _check_range(x: Tensor, likelihood: Distribution) -> None:
    """Raise ValueError if p(x|z) is not defined at x."""
    try:
        support: Any = likelihood.support
    except NotImplementedError:
        return
    support = getattr(support, "base_constraint", support)
    if bool(support.check(x).all()):
        return
    low, high = float(x.min()), float(x.max())
    least, most = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
    if least <= low and high <= most:
        raise ValueError(f"x must hold {support} for this likelihood, got other numbers in [{low:.4g}, {high:.4g}]")
    advice = "undo Normalize" if low < 0 else "divide by 255" if high > 2 else "divide by the largest level"
    raise ValueError(f"x must be in [{least:g}, {most:g}], but its pixels lie in [{low:.4g}, {high:.4g}]: {advice}")
