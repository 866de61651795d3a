"""Importance-weighted estimates of log p(x), with memory that does not depend on k.

The weights are those of training (:func:`vaebench.objective.weigh`); here they only arrive in chunks.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from vaebench import noise
from vaebench.bounds import LogMeanExp
from vaebench.encoders import Encoder
from vaebench.model import GenerativeModel
from vaebench.objective import weigh
from vaebench.runtime import derived_seed, forked_randomness

__all__ = ["Chunks", "PerImage", "log_likelihood", "log_likelihoods"]

# Rows (image x sample x inner sample) in flight: enough to keep matrix products busy, small enough for the
# activations of a 784-pixel decoder to stay near the caches of a CPU, or well inside a small GPU.
ROWS = {"cpu": 4_000, "cuda": 200_000}


@dataclass(frozen=True)
class Chunks:
    """How an evaluation is cut up. It changes time and memory, never the result."""

    batch: int
    """Images at a time."""
    samples: int
    """Samples k of each image at a time."""
    inner: int
    """Inner samples at a time."""

    @classmethod
    def automatic(
        cls, device: torch.device, inner_k: int = 0, batch: int | None = None, samples: int | None = None
    ) -> "Chunks":
        """Choose what was not given so that about ``ROWS`` rows are in flight."""
        rows = ROWS["cuda" if device.type == "cuda" else "cpu"]
        batch = batch or min(100, rows)
        inner = max(1, min(inner_k, rows // batch - 1))
        return cls(batch, samples or max(1, rows // (batch * (1 + inner))), inner)


@torch.no_grad()
def log_likelihood(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    k: int = 5000,
    inner_k: int = 0,
    chunk: int | None = None,
    *,
    inner_chunk: int | None = None,
    seed: int | None = None,
    images: Tensor | None = None,
) -> Tensor:
    """Return the importance-weighted estimate of log p(x) for each image, (B,) float64, in nats.

    log 1/K sum_k p(x, z_k) / exp(log_q_k): its expectation is a lower bound on log p(x) for every encoder
    whose direction is not ESTIMATE, and rises with ``k`` and ``inner_k``. With a hierarchical encoder this is
    DIWHVI.

    Source: Burda et al. 2016, https://arxiv.org/abs/1509.00519; Sobolev and Vetrov 2019,
    https://arxiv.org/abs/1905.03290

    Args:
        model: p(x, z).
        encoder: q(z|x); its network runs once per image. ``encoder.proposal()`` where its log_q is an estimate.
        x: images, (B, X).
        k: samples per image.
        inner_k: inner samples per sample, for hierarchical encoders.
        chunk: samples at a time (chosen if None); does not change a seeded result beyond rounding.
        inner_chunk: inner samples at a time.
        seed: makes the result a function of (seed, image number); None draws from the global generator.
        images: the images' numbers, (B,), with ``seed``; 0..B-1 if None.

    Raises:
        ValueError: k < 1 or inner_k < 0.
    """
    if k < 1 or inner_k < 0:
        raise ValueError(f"k must be at least 1 and inner_k at least 0, got k={k}, inner_k={inner_k}")
    sizes = Chunks.automatic(x.device, inner_k, batch=len(x), samples=chunk)
    numbers = torch.arange(len(x)) if images is None else images
    # An encoder may draw as it encodes (moments, say): from a table of its own, not the one of the draws below.
    source = nullcontext() if seed is None else noise.keyed(derived_seed(seed, "encode"), numbers)
    with source:
        context = encoder.encode(x)
    total = LogMeanExp()
    for first in range(0, k, sizes.samples):
        source = nullcontext() if seed is None else noise.keyed(seed, numbers, first)
        with source:
            draw = encoder.sample(
                context,
                min(sizes.samples, k - first),
                inner_k=inner_k,
                inner_chunk=inner_chunk or sizes.inner,
            )
        total.add(weigh(model, x, draw).log_weights())
    return total.value()


@dataclass(frozen=True)
class PerImage:
    """Per-image estimates of log p(x), in nats."""

    values: Tensor
    """(N,), float64."""

    @property
    def mean(self) -> float:
        return self.values.mean().item()

    @property
    def stderr(self) -> float:
        """Standard error of the mean over images: it measures how much the images vary, not the estimator."""
        if len(self.values) < 2:
            return float("nan")
        return (self.values.std() / len(self.values) ** 0.5).item()


def log_likelihoods(
    model: GenerativeModel,
    encoder: Encoder,
    observe: Callable[[Tensor], Tensor],
    intensities: Tensor,
    *,
    k: int,
    inner_k: int = 0,
    seed: int = 0,
    batch: int | None = None,
    chunk: int | None = None,
    images: Tensor | None = None,
    first: int = 0,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield estimates of log p(x) batch by batch, as (which images, values), from image ``first`` on.

    The values depend on ``seed`` and on each image's number alone, so that an interrupted evaluation goes on
    from where it was, whatever the batch size. No global random state is used or changed.

    Args:
        model: p(x, z).
        encoder: q(z|x).
        observe: maps pixel bytes, (B, X), to images x in [0, 1] (binarised splits stay as they are).
        intensities: pixel bytes, (N, X).
        k: samples per image.
        inner_k: inner samples per sample.
        seed: names the table of random numbers.
        batch: images at a time (chosen if None).
        chunk: samples at a time (chosen if None).
        images: the images' numbers in their split, (N,); 0..N-1 if None.
        first: the place in ``intensities`` to start from.
    """
    sizes = Chunks.automatic(intensities.device, inner_k, batch=batch, samples=chunk)
    numbers = torch.arange(len(intensities)) if images is None else images.cpu()
    for start in range(first, len(intensities), sizes.batch):
        part = slice(start, min(start + sizes.batch, len(intensities)))
        # Distributions that draw from torch's own generator are seeded too, and leave no trace outside.
        with forked_randomness(intensities.device, derived_seed(seed, start)):
            values = log_likelihood(
                model,
                encoder,
                observe(intensities[part]),
                k,
                inner_k,
                chunk or sizes.samples,
                inner_chunk=sizes.inner,
                seed=seed,
                images=numbers[part],
            )
        yield part, values
