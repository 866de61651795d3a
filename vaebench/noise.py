"""The source of random numbers.

Training draws from torch's global generator, which is seeded before each batch. Evaluation draws ``keyed`` noise: each
number depends only on (seed, image, sample, inner sample, coordinate). An estimate therefore does not change with the
chunk size, the batch size, the number of processes, or an interruption.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["inner_samples", "keyed", "part_of_batch", "shared_over_samples", "standard_normal", "uniform"]

_MASK = (1 << 64) - 1
# Inner samples have a separate stream, so that they can be drawn in chunks.
_INNER_STREAM = 1 << 20


def standard_normal(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return N(0, 1) noise of ``shape`` = (..., K, B, D), with the dtype and device of ``like``."""
    source = _SOURCE.get()
    if source is None:
        return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)
    return source.normal(tuple(shape), like)


def uniform(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return uniform noise on (0, 1) of ``shape`` = (..., K, B, D), with the dtype and device of ``like``."""
    source = _SOURCE.get()
    if source is None:
        return torch.rand(tuple(shape), dtype=like.dtype, device=like.device)
    return source.uniform(tuple(shape), like)


def keyed(seed: int, images: Tensor, first_sample: int = 0) -> AbstractContextManager[None]:
    """Make noise a function of its key within the block.

    Args:
        seed: part of every key.
        images: indices of the images in their data set, (B,), integer.
        first_sample: index of the first of the K samples.
    """
    return _drawing_from(_Keyed(seed, images, first_sample))


def part_of_batch(images: slice, total: int) -> AbstractContextManager[None]:
    """Draw noise for ``images`` of a batch of ``total`` images within the block, as one process would draw it.

    Several processes that share one batch thereby draw the same numbers as one process does for the whole batch.
    """
    return _drawing_from(_PartOfBatch(images, total))


@contextmanager
def _drawing_from(source: "_Keyed | _PartOfBatch") -> Iterator[None]:
    token = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(token)


@contextmanager
def inner_samples(first: int) -> Iterator[None]:
    """Number inner samples from ``first``: the leading axis of all noise in the block counts them."""
    source = _SOURCE.get()
    if not isinstance(source, _Keyed):
        yield
        return
    kept = source.stream, source.first_inner
    source.stream, source.first_inner = _INNER_STREAM, first
    try:
        yield
    finally:
        source.stream, source.first_inner = kept


@contextmanager
def shared_over_samples() -> Iterator[None]:
    """Draw the same noise for all K samples, later chunks included, within the block."""
    source = _SOURCE.get()
    if not isinstance(source, _Keyed):
        yield
        return
    kept, source.first_sample = source.first_sample, 0
    try:
        yield
    finally:
        source.first_sample = kept


class _PartOfBatch:
    """Noise from torch's generator for a whole batch, of which some images are kept."""

    def __init__(self, images: slice, total: int) -> None:
        self.images, self.total = images, total

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return self._part(torch.randn, shape, like)

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return self._part(torch.rand, shape, like)

    def _part(self, draw: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
        *lead, batch, width = shape
        own = self.images.stop - self.images.start
        if batch != own:
            raise ValueError(f"this process has {own} images, but noise was requested for {batch}")
        whole = draw((*lead, self.total, width), dtype=like.dtype, device=like.device)
        return whole[..., self.images, :].contiguous()  # so that it can be viewed in other shapes, as all other noise


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
        # The Box-Muller transform makes two normals of one 64-bit hash.
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
            raise ValueError(f"keyed noise was made for {len(self.images)} images, but requested for {batch}")
        inner = torch.arange(math.prod(lead), device=device).view(*lead, 1, 1, 1) + self.first_inner
        sample = torch.arange(k, device=device).view(k, 1, 1) + self.first_sample
        # Moved once: a copy at each draw would make the host wait for the device.
        self.images = self.images.to(device, torch.int64)
        image = self.images.view(batch, 1)
        coordinate = torch.arange(width, device=device)
        key = _mix(coordinate + _constant(self.seed, self.stream))
        self.stream += 1
        # One axis at a time, so that only the last mix runs over the whole shape.
        return _mix(_mix(_mix(inner + 1) + sample) + _mix(key + image))


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's output function on int64 tensors; products wrap around."""
    value = value * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        # In-place operations halve the passes over memory. The mask turns the shift into an unsigned one.
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
    # float32 rounds 1 - 2^-33 up to 1, which is outside the open interval.
    unit = (bits & 0xFFFFFFFF).to(dtype).add_(0.5).mul_(2.0**-32)
    return unit.clamp_max_(1 - torch.finfo(dtype).eps / 2)


_SOURCE: ContextVar[_Keyed | _PartOfBatch | None] = ContextVar("noise_source", default=None)
