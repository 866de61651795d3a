"""The share of a batch that this process works on, where several processes divide one batch.

A run in one process works on whole batches: then every function here acts on what it is given.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["batch_max", "batch_mean", "own_part", "sharing"]


@dataclass(frozen=True)
class _Share:
    """This process's images of the current batch."""

    own: slice
    """Their places in the batch."""
    total: int
    """Images in the batch."""
    weight: float
    """Part of the batch that counts: 0 if a process has no image of its own and repeats the first one."""
    sum: Callable[[Tensor], Tensor]
    """Adds a tensor up over all processes."""
    largest: Callable[[Tensor], Tensor]
    """Takes the largest value of all processes."""


_SHARE: ContextVar[_Share | None] = ContextVar("share_of_a_batch", default=None)


@contextmanager
def sharing(
    own: slice, total: int, weight: float, sum: Callable[[Tensor], Tensor], largest: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Let the functions of this module act on the images ``own`` of a batch of ``total`` images within the block."""
    token = _SHARE.set(_Share(own, total, weight, sum, largest))
    try:
        yield
    finally:
        _SHARE.reset(token)


def own_part(draw: Callable[[Sequence[int]], Tensor], shape: Sequence[int]) -> Tensor:
    """Return noise of ``shape`` = (..., B, D): the part of this process's images in the noise for the whole batch."""
    share = _SHARE.get()
    if share is None:
        return draw(shape)
    *lead, batch, width = shape
    if batch != share.own.stop - share.own.start:
        raise ValueError(f"this process has {share.own.stop - share.own.start} images, but noise was asked for {batch}")
    return draw((*lead, share.total, width))[..., share.own, :]


def batch_mean(values: Tensor) -> Tensor:
    """Return the mean of ``values`` over the whole batch; gradients reach this process's share alone.

    Use it for every mean over images that enters a loss nonlinearly.
    """
    mean, share = values.mean(), _SHARE.get()
    if share is None:
        return mean
    return mean + (share.sum(share.weight * mean) - mean).detach()


def batch_max(values: Tensor) -> Tensor:
    """Return the largest of ``values`` in the whole batch, without a gradient."""
    largest, share = values.detach().max(), _SHARE.get()
    if share is None:
        return largest
    return share.largest(largest if share.weight else torch.full_like(largest, -math.inf))
