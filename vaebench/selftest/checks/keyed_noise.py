"""Noise is a function of its key."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vaebench import noise
from vaebench.selftest.rows import CheckRow, Mean, differs, distance, exact, near
from vaebench.selftest.running import Bench

__all__ = ["check"]

SHAPE = (200, 40, 25)
"""Samples, images, coordinates."""


def check(bench: Bench) -> Iterator[CheckRow]:
    """Compare noise of the same keys in other chunks, orders and devices; compare its moments with N(0, 1)."""
    whole = _normals(bench.device, *SHAPE)
    chunks = torch.cat([_normals(bench.device, 50, *SHAPE[1:], first=first) for first in range(0, 200, 50)])
    yield exact("max |in chunks - at once|", 0, distance(chunks, whole), 0)
    order = torch.arange(SHAPE[1]).flip(0)
    turned = _normals(bench.device, *SHAPE, images=order)
    yield exact("max |images in reverse - in order|", 0, distance(turned.flip(1), whole), 0)
    yield exact("max |this device - CPU|", 0, distance(whole.cpu(), _normals(torch.device("cpu"), *SHAPE)))
    single = _normals(bench.device, *SHAPE, dtype=torch.float32)
    yield exact("max |float32 - float64|", 0, distance(single, whole), 1e-4)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        yield near(f"E epsilon^{power}", moment, Mean.of(whole**power))
    other = _normals(bench.device, *SHAPE, seed=1)
    yield near("correlation of two seeds", 0, Mean.of(whole * other))
    yield near("correlation of neighbouring images", 0, Mean.of((whole[:, 1:] * whole[:, :-1])[:, ::2]))
    yield differs("max |another seed - whole|", 0, distance(other, whole))


def _normals(
    device: torch.device,
    *shape: int,
    seed: int = 0,
    images: Tensor | None = None,
    first: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    numbers = torch.arange(shape[1]) if images is None else images
    with noise.keyed(seed, numbers, first):
        return noise.standard_normal(shape, torch.zeros((), dtype=dtype, device=device))
