"""Importance-weighted estimates of log p(x), with memory that does not depend on k.

The weights are those of training (:func:`vaebench.objective.weigh`); here they only arrive in chunks.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaebench import noise
from vaebench.bounds import LogMeanExp
from vaebench.encoders.base import Encoder
from vaebench.estimators.memory import peak_bytes
from vaebench.estimators.weights import WeightSummary
from vaebench.model import GenerativeModel
from vaebench.objective import weigh
from vaebench.runtime import derived_seed, forked_randomness, free_memory, notice, unless_memory_runs_out

__all__ = ["Chunks", "PerImage", "chunks_within", "log_likelihood", "log_likelihoods", "weighed"]

# Rows (image x sample x inner sample) in flight: enough to keep matrix products busy, small enough for the
# activations of a 784-pixel decoder to stay near the caches of a CPU, or well inside a small GPU.
ROWS = {"cpu": 4_000, "cuda": 200_000}
LARGEST_ROW = 2**20
"""Bytes that no network here needs for a row: where as much is free for each, nothing is measured."""

TRIED_ROWS = 500
"""Rows by which it is measured: enough for them to outweigh what is taken once."""


@dataclass
class Chunks:
    """How an evaluation is cut up. It changes time and memory, never the result beyond rounding."""

    batch: int
    """Images at a time."""
    samples: int
    """Samples k of each image at a time."""
    inner: int
    """Inner samples at a time."""
    halved: bool = False
    """Whether memory has run out."""

    @classmethod
    def automatic(
        cls, device: torch.device, inner_k: int = 0, batch: int | None = None, samples: int | None = None
    ) -> "Chunks":
        """Choose what was not given so that about ``ROWS`` rows are in flight."""
        rows = ROWS["cuda" if device.type == "cuda" else "cpu"]
        batch = batch or min(100, rows)
        inner = max(1, min(inner_k, rows // batch - 1))
        return cls(batch, samples or max(1, rows // (batch * (1 + inner))), inner)

    @property
    def rows(self) -> int:
        """Rows in flight."""
        return self.batch * self.samples * (1 + self.inner)

    def fit(self, model: GenerativeModel, encoder: Encoder, x: Tensor, budget: float) -> None:
        """Take fewer samples at a time, and then fewer images, where more than ``budget`` bytes would be in use.

        Args:
            model: p(x, z).
            encoder: q(z|x).
            x: one image, (1, X), to try with.
            budget: bytes.
        """
        if self.rows * LARGEST_ROW <= budget:
            return
        context = encoder.encode(x)
        samples = max(1, TRIED_ROWS // (1 + self.inner))
        peak = peak_bytes(
            lambda: weigh(model, x, encoder.sample(context, samples, inner_k=self.inner, inner_chunk=self.inner))
        )
        each = max(1, peak // samples)
        self.samples = max(1, min(self.samples, int(budget / (each * self.batch))))
        self.batch = max(1, min(self.batch, int(budget / (each * self.samples))))

    def halve(self, k: int, inner_k: int) -> bool:
        """Take half as many of ``k`` samples at a time from now on, then of inner samples; False if that cannot be."""
        samples, inner = min(self.samples, k), min(self.inner, max(1, inner_k))
        if samples == 1 and inner == 1:
            return False
        if not self.halved:
            notice("out of memory: going on with smaller chunks, which does not change the result")
        self.halved = True
        self.samples, self.inner = (samples // 2, inner) if samples > 1 else (1, inner // 2)
        return True


def chunks_within(
    share: float,
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    inner_k: int,
    batch: int | None,
    samples: int | None,
) -> Chunks:
    """Choose chunks that take up half of the memory that is free for them, at most; what is given stays.

    Args:
        share: how much of the device's free memory is this process's, from 0 to 1.
        model: p(x, z).
        encoder: q(z|x).
        x: one image, (1, X), to try with.
        inner_k: inner samples per sample.
        batch: images at a time, or None.
        samples: samples at a time, or None.
    """
    chunks = Chunks.automatic(x.device, inner_k, batch, samples)
    free = free_memory(x.device)
    if free is not None and samples is None:
        with torch.no_grad(), forked_randomness(x.device, 0):
            chunks.fit(model, encoder, x, share * free / 2)
        chunks.batch = batch or chunks.batch
    return chunks


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
    DIWHVI. Memory does not depend on ``k``, nor on ``inner_k``; where it runs out, chunks are halved.

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
    chunks = Chunks.automatic(x.device, inner_k, batch=len(x), samples=chunk)
    chunks.inner = inner_chunk or chunks.inner
    total = LogMeanExp()
    for log_w in _in_chunks(model, encoder, x, k, inner_k, chunks, seed, images):
        total.add(log_w)
    return total.value()


@torch.no_grad()
def weighed(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    k: int,
    inner_k: int,
    chunks: Chunks,
    seed: int | None = None,
    images: Tensor | None = None,
) -> WeightSummary:
    """Return what the weights of :func:`log_likelihood` say: their mean, effective sample size and tail.

    The arguments are as there; ``chunks`` become smaller where memory runs out. Memory grows as sqrt(k).
    """
    summary = WeightSummary(k)
    for log_w in _in_chunks(model, encoder, x, k, inner_k, chunks, seed, images):
        summary.add(log_w)
    return summary


def _in_chunks(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    k: int,
    inner_k: int,
    chunks: Chunks,
    seed: int | None,
    images: Tensor | None,
) -> Iterator[Tensor]:
    """Yield log weights, (some, B), until there are ``k`` for each image."""
    numbers = torch.arange(len(x)) if images is None else images
    # An encoder may draw as it encodes (moments, say): from a table of its own, not the one of the draws below.
    with _table(None if seed is None else derived_seed(seed, "encode"), numbers):
        context = encoder.encode(x)

    def draw(first: int) -> Tensor:
        count = min(chunks.samples, k - first)
        with _table(seed, numbers, first):
            drawn = encoder.sample(context, count, inner_k=inner_k, inner_chunk=chunks.inner)
        return weigh(model, x, drawn).log_weights()

    first = 0
    while first < k:
        log_w = unless_memory_runs_out(lambda at=first: draw(at))
        if log_w is not None:
            yield log_w
            first += len(log_w)
        elif not chunks.halve(k, inner_k):
            raise MemoryError("memory does not suffice for one sample at a time of so many images")


def _table(seed: int | None, numbers: Tensor, first: int = 0) -> AbstractContextManager[Any]:
    """Return the source of noise: the table named by the seed, from sample ``first`` on, or torch's generator."""
    return nullcontext() if seed is None else noise.keyed(seed, numbers, first)


@dataclass(frozen=True)
class PerImage:
    """Per-image estimates of log p(x), in nats."""

    values: Tensor
    """(N,), float64."""

    @property
    def mean(self) -> float:
        return self.values.double().mean().item()

    @property
    def stderr(self) -> float:
        """Standard error of the mean over images: it measures how much the images vary, not the estimator."""
        if len(self.values) < 2:
            return float("nan")
        return (self.values.double().std() / len(self.values) ** 0.5).item()


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
        observe: maps pixel bytes, (B, X), to images x in [0, 1] (binarized splits stay as they are).
        intensities: pixel bytes, (N, X).
        k: samples per image.
        inner_k: inner samples per sample.
        seed: names the table of random numbers.
        batch: images at a time (chosen if None).
        chunk: samples at a time (chosen if None).
        images: the images' numbers in their split, (N,); 0..N-1 if None.
        first: the place in ``intensities`` to start from.
    """
    chunks = Chunks.automatic(intensities.device, inner_k, batch=batch, samples=chunk)
    numbers = torch.arange(len(intensities)) if images is None else images.cpu()
    for start in range(first, len(intensities), chunks.batch):
        part = slice(start, min(start + chunks.batch, len(intensities)))
        # Distributions that draw from torch's own generator are seeded too, and leave no trace outside.
        with torch.no_grad(), forked_randomness(intensities.device, derived_seed(seed, start)):
            x, total = observe(intensities[part]), LogMeanExp()
            for log_w in _in_chunks(model, encoder, x, k, inner_k, chunks, seed, numbers[part]):
                total.add(log_w)
        yield part, total.value()
