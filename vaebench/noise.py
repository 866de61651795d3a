"""Where random numbers come from.

Training draws from torch's global generator. Evaluation draws ``keyed`` noise: a number that depends only on
(seed, image, sample, inner sample, coordinate), so that an estimate does not change with chunk sizes, batch
sizes, the number of processes, or an interruption.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor

from vaebench.batch import own_part

__all__ = ["inner_samples", "keyed", "shared_over_samples", "standard_normal", "uniform"]

_MASK = (1 << 64) - 1
# Inner samples have a stream of their own, so that chunks of them can be drawn one after another.
_INNER_STREAM = 1 << 20


def standard_normal(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return N(0, 1) noise of ``shape`` = (..., K, B, D), with the dtype and device of ``like``."""
    source = _SOURCE.get()
    if source is None:
        return own_part(partial(torch.randn, dtype=like.dtype, device=like.device), tuple(shape))
    return source.normal(tuple(shape), like)


def uniform(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return uniform noise on (0, 1) of ``shape`` = (..., K, B, D), with the dtype and device of ``like``."""
    source = _SOURCE.get()
    if source is None:
        return own_part(partial(torch.rand, dtype=like.dtype, device=like.device), tuple(shape))
    return source.uniform(tuple(shape), like)


@contextlib.contextmanager
def keyed(seed: int, images: Tensor, first_sample: int = 0) -> Iterator[None]:
    """Within the block, noise is a function of its key.

    Args:
        seed: names the whole table of random numbers.
        images: the images' places in their data set, shape (B,), integer.
        first_sample: the number of the first of the K samples about to be drawn.
    """
    token = _SOURCE.set(_Keyed(seed, images, first_sample))
    try:
        yield
    finally:
        _SOURCE.reset(token)


@contextlib.contextmanager
def inner_samples(first: int) -> Iterator[None]:
    """Say that the leading axis of what is drawn in the block counts inner samples from ``first`` on."""
    source = _SOURCE.get()
    if source is None:
        yield
        return
    kept = source.stream, source.first_inner
    source.stream, source.first_inner = _INNER_STREAM, first
    try:
        yield
    finally:
        source.stream, source.first_inner = kept


@contextlib.contextmanager
def shared_over_samples() -> Iterator[None]:
    """Say that what is drawn in the block serves all K samples, also those of later chunks."""
    source = _SOURCE.get()
    if source is None:
        yield
        return
    kept, source.first_sample = source.first_sample, 0
    try:
        yield
    finally:
        source.first_sample = kept


class _Keyed:
    """A counter-based generator: each number is a hash of its key, by SplitMix64's finaliser.

    Source: Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195
    """

    def __init__(self, seed: int, images: Tensor, first_sample: int) -> None:
        self.seed = seed
        self.images = images
        self.first_sample = first_sample
        self.first_inner = 0
        self.stream = 0

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        width = shape[-1]
        # Box and Muller's transform makes two normals out of one 64-bit hash.
        bits = self._bits((*shape[:-1], (width + 1) // 2), like.device)
        radius = _unit(bits >> 32, like.dtype).log_().mul_(-2).sqrt_()
        angle = _unit(bits, like.dtype).mul_(2 * math.pi)
        return torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)], -1)[..., :width]

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return _unit(self._bits(shape, like.device), like.dtype)

    def _bits(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return one 64-bit hash for each element of ``shape`` = (..., K, B, D)."""
        *lead, k, batch, width = shape
        if batch != len(self.images):
            raise ValueError(f"keyed noise for {len(self.images)} images was asked for {batch}")
        inner = torch.arange(math.prod(lead), device=device).view(*lead, 1, 1, 1) + self.first_inner
        sample = torch.arange(k, device=device).view(k, 1, 1) + self.first_sample
        image = self.images.to(device, torch.int64).view(batch, 1)
        coordinate = torch.arange(width, device=device)
        key = _mix(coordinate + _constant(self.seed, self.stream))
        self.stream += 1
        # Axis by axis: only the last mix runs over the whole shape.
        return _mix(_mix(_mix(inner + 1) + sample) + _mix(key + image))


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's output function on int64 tensors; products wrap around."""
    value = value * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        # In place: half of the passes over memory. The mask makes the shift one without sign.
        value.bitwise_xor_((value >> shift).bitwise_and_((1 << (64 - shift)) - 1))
        if factor is not None:
            value.mul_(_signed(factor))
    return value


def _constant(*words: int) -> int:
    """Fold integers into one signed 64-bit word."""
    folded = 0
    for word in words:
        folded = ((folded ^ (word & _MASK)) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK
        folded ^= folded >> 29
    return _signed(folded)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _unit(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Map the low 32 bits to the open interval (0, 1)."""
    # float32 rounds 1 - 2^-33 up to 1; a uniform of exactly 1 would be outside the interval.
    unit = (bits & 0xFFFFFFFF).to(dtype).add_(0.5).mul_(2.0**-32)
    return unit.clamp_(max=1 - torch.finfo(dtype).eps / 2)


_SOURCE: ContextVar[_Keyed | None] = ContextVar("noise_source", default=None)
