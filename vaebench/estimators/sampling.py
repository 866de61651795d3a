"""How many draws an estimate takes, their noise, and how many of them are in memory at once."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from vaebench import noise
from vaebench.arguments import at_least
from vaebench.errors import RunFailed
from vaebench.runtime import derived_seed, notice, unless_memory_runs_out

__all__ = ["Sampling", "ShrinkingBatches", "keyed_noise"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Sampling:
    """How each image is sampled; ValueError for k < 1, or an inner_k < 0."""

    k: int
    """Draws per image."""
    inner_k: int = 0
    """Inner samples per draw, for hierarchical encoders."""
    seed: int | None = None
    """Makes the result a function of the seed and the images' numbers; None draws from torch's global generator."""
    images: Tensor | None = None
    """The images' numbers, (B,); 0..B-1 if None."""
    chunk: int | None = None
    """Draws at a time; chosen if None. It changes a seeded result by rounding only."""
    inner_chunk: int | None = None
    """Inner samples at a time; chosen if None."""

    def __post_init__(self) -> None:
        at_least(1, k=self.k)
        at_least(0, inner_k=self.inner_k)

    def numbers(self, x: Tensor) -> Tensor:
        """Return the numbers of the images x, (B,)."""
        return torch.arange(len(x)) if self.images is None else self.images

    def known_seed(self) -> int:
        """Return the seed; ValueError if it is None."""
        if self.seed is None:
            raise ValueError("this estimate needs a seed, got None")
        return self.seed

    def on(self, numbers: Tensor) -> "Sampling":
        """Return the same sampling for the images with these numbers."""
        return replace(self, images=numbers)

    def noise(self, x: Tensor, *purpose: str, first: int = 0) -> AbstractContextManager[Any]:
        """Return the source of noise of one purpose for the images x, as a context."""
        return keyed_noise(self.seed, self.numbers(x), *purpose, first=first)


def keyed_noise(seed: int | None, numbers: Tensor, *purpose: str, first: int = 0) -> AbstractContextManager[Any]:
    """Return the noise of a seed and a purpose as a context, or torch's global generator for no seed.

    Args:
        seed: the seed of an estimate.
        numbers: the images' numbers, (B,).
        purpose: words; two purposes share no noise.
        first: the number of the first draw.
    """
    if seed is None:
        return nullcontext()
    return noise.keyed(derived_seed(seed, *purpose) if purpose else seed, numbers, first)


class ShrinkingBatches:
    """Compute something of images batch by batch, with smaller batches once memory has run out.

    This is the only retry after running out of memory. Every estimator works on batches of images, but only some have
    chunks of samples. The noise of an image depends on its number, so that smaller batches change the result by
    rounding only.

    Args:
        most: images at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def run(self, start: int, stop: int, compute: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
        """Yield (part, compute(part)) for consecutive parts of the images from ``start`` to ``stop``.

        Raises:
            RunFailed: the memory is too small for a single image.
        """
        while start < stop:
            part = slice(start, min(stop, start + self.most))
            found = unless_memory_runs_out(lambda part=part: compute(part))
            if found is None:
                self._halve(part)
            else:
                yield part, found
                start = part.stop

    def _halve(self, part: slice) -> None:
        self.most = (part.stop - part.start) // 2
        if self.most == 0:
            raise RunFailed("out of memory even for one image: free memory or use another device")
        notice(f"out of memory: continuing with {self.most} images at a time; this does not change the result")
