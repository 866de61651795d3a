"""Means and maxima over a whole batch that several processes share.

In a run of one process every function here acts on its argument alone.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from vaebench import noise

__all__ = ["batch_max", "batch_mean", "sharing"]


@dataclass(frozen=True)
class _Share:
    """The part of the current batch that this process computes; see :func:`sharing`."""

    weight: float
    sum: Callable[[Tensor], Tensor]
    largest: Callable[[Tensor], Tensor]


_SHARE: ContextVar[_Share | None] = ContextVar("share_of_a_batch", default=None)


@contextmanager
def sharing(
    own: slice, total: int, weight: float, sum: Callable[[Tensor], Tensor], largest: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Within the block, this process computes the images ``own`` of a batch of ``total`` images.

    Args:
        own: indices of this process's images in the batch.
        total: images in the batch.
        weight: fraction of the batch; 0 if this process has no image and computes the first, to draw the same noise.
        sum: sums a tensor over all processes.
        largest: returns the largest value over all processes.
    """
    token = _SHARE.set(_Share(weight, sum, largest))
    try:
        with noise.part_of_batch(own, total):
            yield
    finally:
        _SHARE.reset(token)


def batch_mean(values: Tensor) -> Tensor:
    """Return the mean of ``values`` over the whole batch; gradients reach this process's images alone.

    Use it for every mean over images on which a loss depends nonlinearly.
    """
    mean, share = values.mean(), _SHARE.get()
    if share is None:
        return mean
    return mean + (share.sum(share.weight * mean) - mean).detach()


def batch_max(values: Tensor) -> Tensor:
    """Return the largest of ``values`` over the whole batch, without a gradient."""
    largest, share = values.detach().max(), _SHARE.get()
    if share is None:
        return largest
    return share.largest(largest if share.weight else torch.full_like(largest, -math.inf))
