"""Importance-weighted estimates of log p(x), with memory that does not depend on k.

The weights are as in training (:func:`vaebench.objective.weigh`), but arrive in chunks.

Shapes: K samples first, B images; nats.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vaebench.bounds import LogMeanExp
from vaebench.encoders.base import Draw, Encoder
from vaebench.estimators.memory import peak_bytes
from vaebench.estimators.sampling import Sampling, ShrinkingBatches
from vaebench.estimators.weights import WeightSummary
from vaebench.images import checked_images, refuse_estimate
from vaebench.model import GenerativeModel
from vaebench.objective import weigh
from vaebench.runtime import ByDevice, derived_seed, forked_randomness, free_memory, in_float64

__all__ = ["Chunks", "PerImage", "chunks_within", "draws", "log_likelihood", "log_likelihoods", "weighed"]

# Rows (image x sample x inner sample) in memory at once: enough to keep matrix products busy, few enough for the
# activations of a 784-pixel decoder to stay near the caches of a CPU, or well inside a small GPU.
ROWS = ByDevice(4_000, 200_000)
# Images at once, and the most if each has so few samples that ROWS would allow more: encoders take memory for each.
IMAGES = 100
MOST_IMAGES = ByDevice(400, 4_000)
LARGEST_ROW = 2**20
"""Bytes that exceed the size of a row of every network here, for 784 numbers from the decoder. With as much free for
each row, nothing is measured."""

TRIED_ROWS = 500
"""Rows of the measurement: enough to outweigh memory that is allocated once."""


@dataclass
class Chunks:
    """How an evaluation is cut up. This changes time and memory, and the result by rounding only."""

    batch: int
    """Images at a time."""
    samples: int
    """Samples k of each image at a time."""
    inner: int
    """Inner samples at a time."""

    @classmethod
    def automatic(cls, device: torch.device, sampling: Sampling, *, images: int, batch: int | None = None) -> "Chunks":
        """Choose chunks of about ``ROWS`` rows for a sampling of a number of images; its own chunks are kept.

        Chunks have equal sizes where possible: a small last chunk takes almost as long as a whole one.

        Args:
            device: where the computation runs.
            sampling: of each image.
            images: images in all, of which there may be fewer than a batch.
            batch: images at a time; chosen if None.
        """
        rows, images = ROWS.on(device), max(1, images)
        if batch is None:
            fitting = min(MOST_IMAGES.on(device), rows // (sampling.k * (1 + sampling.inner_k)))
            batch = _even(images, max(IMAGES, fitting))
        batch = min(batch, images)
        inner = sampling.inner_chunk or max(1, min(sampling.inner_k, rows // batch - 1))
        samples = sampling.chunk or _even(sampling.k, max(1, rows // (batch * (1 + inner))))
        return cls(batch, samples, inner)

    @classmethod
    def of(cls, x: Tensor, sampling: Sampling) -> "Chunks":
        """Choose chunks for the images x, (B, X), all of them at once."""
        return cls.automatic(x.device, sampling, images=len(x), batch=max(1, len(x)))

    @property
    def rows(self) -> int:
        """Rows at a time."""
        return self.batch * self.samples * (1 + self.inner)

    def fit(self, model: GenerativeModel, encoder: Encoder, x: Tensor, budget: float) -> None:
        """Reduce samples until at most ``budget`` bytes are in use, if one sample fits.

        Args:
            model: p(x, z).
            encoder: q(z|x).
            x: one image, (1, X), for a measurement.
            budget: bytes.
        """
        likelihood = getattr(model.decoder, "likelihood", None)
        numbers = x.shape[1] * getattr(likelihood, "outputs", 1)
        if self.rows * LARGEST_ROW * max(1, numbers / 784) <= budget:
            return
        context = encoder.encode(x)
        samples = max(1, TRIED_ROWS // (1 + self.inner))
        peak = peak_bytes(
            lambda: weigh(model, x, encoder.sample(context, samples, inner_k=self.inner, inner_chunk=self.inner))
        )
        each = max(1, peak // samples)
        self.samples = max(1, min(self.samples, int(budget / (each * self.batch))))


def _even(total: int, most: int) -> int:
    """Return the size of the fewest equal parts of ``total`` that have at most ``most`` each."""
    return math.ceil(total / math.ceil(total / most))


def chunks_within(
    share: float, model: GenerativeModel, encoder: Encoder, x: Tensor, sampling: Sampling, chunks: Chunks
) -> Chunks:
    """Return ``chunks``, or ones of fewer samples, for half of the free memory; a chunk of the sampling is kept.

    Args:
        share: part of the device's free memory that this process may use, from 0 to 1.
        model: p(x, z).
        encoder: q(z|x).
        x: one image, (1, X), for a measurement.
        sampling: of each image.
        chunks: automatic ones.
    """
    chunks, free = replace(chunks), free_memory(x.device)
    if free is not None and sampling.chunk is None:
        with torch.no_grad(), forked_randomness(x.device, 0):
            chunks.fit(model, encoder, x, share * free / 2)
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
    estimate: bool = False,
) -> Tensor:
    """Return the importance-weighted estimate of log p(x) for each image, (B,) float64, in nats.

    log 1/K sum_k p(x, z_k) / exp(log_q_k): its expectation is a lower bound on log p(x) for every encoder
    whose direction is not ESTIMATE, and rises with ``k`` and ``inner_k``. With a hierarchical encoder this is
    DIWHVI. Memory does not depend on ``k``, nor on ``inner_k``. If memory runs out, fewer images are computed at a
    time.

    Source: Burda et al. 2016, https://arxiv.org/abs/1509.00519; Sobolev and Vetrov 2019,
    https://arxiv.org/abs/1905.03290

    Args:
        model: p(x, z).
        encoder: q(z|x); its network runs once per image. ``encoder.proposal(model)`` where its log_q is an estimate.
        x: images, (B, X) or (B, C, H, W); see :func:`vaebench.images.checked_images`.
        k: samples per image.
        inner_k: inner samples per sample, for hierarchical encoders.
        chunk: samples at a time; chosen if None. It changes a seeded result by rounding only.
        inner_chunk: inner samples at a time.
        seed: makes the result a function of (seed, image number); None draws from the global generator.
        images: the images' numbers, (B,), with ``seed``; 0..B-1 if None.
        estimate: accept an encoder whose log_q is an estimate: the result is then no bound.

    Raises:
        ValueError: k < 1 or inner_k < 0; unusable images, or an encoder whose log_q is an estimate.
        RunFailed: the memory is too small for a single image.
    """
    refuse_estimate(encoder, estimate)
    x = checked_images(model, encoder, x)
    return estimated(model, encoder, x, Sampling(k, inner_k, seed, images, chunk, inner_chunk))


@torch.no_grad()
def estimated(model: GenerativeModel, encoder: Encoder, x: Tensor, sampling: Sampling) -> Tensor:
    """Return :func:`log_likelihood` of a sampling."""
    chunks, numbers = Chunks.automatic(x.device, sampling, images=len(x)), sampling.numbers(x)
    batches = ShrinkingBatches(chunks.batch)
    parts = batches.run(0, len(x), lambda part: _log_mean(model, encoder, x[part], sampling.on(numbers[part]), chunks))
    return torch.cat([values for _, values in parts])


def _log_mean(model: GenerativeModel, encoder: Encoder, x: Tensor, sampling: Sampling, chunks: Chunks) -> Tensor:
    total = LogMeanExp()
    for draw in draws(encoder, x, sampling, chunks):
        total.add(weigh(model, x, draw).log_weights())
    return total.value()


@torch.no_grad()
def weighed(
    model: GenerativeModel, encoder: Encoder, x: Tensor, sampling: Sampling, chunks: Chunks | None = None
) -> WeightSummary:
    """Return a summary of the weights of :func:`log_likelihood`: their mean, effective sample size and tail.

    Memory grows as sqrt(k).
    """
    summary = WeightSummary(sampling.k)
    for draw in draws(encoder, x, sampling, chunks):
        summary.add(weigh(model, x, draw).log_weights())
    return summary


def draws(encoder: Encoder, x: Tensor, sampling: Sampling, chunks: Chunks | None = None) -> Iterator[Draw]:
    """Yield the draws of a sampling for the images x, (B, X), in chunks; the encoder's network runs once."""
    chunks = chunks or Chunks.of(x, sampling)
    # Moved once for all chunks: each copy to a device makes the host wait.
    sampling = sampling.on(sampling.numbers(x).to(x.device))
    # An encoder may draw in encode(). Those draws must depend on the seed too, but share no noise with those below.
    with sampling.noise(x, "encode"):
        context = encoder.encode(x)
    for first in range(0, sampling.k, chunks.samples):
        count = min(chunks.samples, sampling.k - first)
        with sampling.noise(x, first=first):
            drawn = encoder.sample(context, count, inner_k=sampling.inner_k, inner_chunk=chunks.inner)
        yield drawn


@dataclass(frozen=True)
class PerImage:
    """Per-image estimates of log p(x), in nats."""

    values: Tensor
    """(N,), float64."""

    @property
    def mean(self) -> float:
        return in_float64(self.values).mean().item()

    @property
    def stderr(self) -> float:
        """Standard error of the mean over images: how much the images vary, not the error of the estimator."""
        if len(self.values) < 2:
            return float("nan")
        return (in_float64(self.values).std() / len(self.values) ** 0.5).item()


def log_likelihoods(
    model: GenerativeModel,
    encoder: Encoder,
    observe: Callable[[Tensor], Tensor],
    intensities: Tensor,
    sampling: Sampling,
    *,
    batch: int | None = None,
    first: int = 0,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield estimates of log p(x) batch by batch, as (which images, values), from image ``first`` on.

    The values depend on the seed and on each image's number alone, so that an interrupted evaluation can resume at
    any image, whatever the batch size. No global random state is used or changed.

    Args:
        model: p(x, z).
        encoder: q(z|x).
        observe: maps pixel bytes, (B, X), to images x in [0, 1] (binarized splits do not change).
        intensities: pixel bytes, (N, X).
        sampling: with a seed.
        batch: images at a time (chosen if None).
        first: the place in ``intensities`` to start from.
    """
    seed, numbers = sampling.known_seed(), sampling.numbers(intensities).cpu()
    chunks = Chunks.automatic(intensities.device, sampling, images=len(intensities) - first, batch=batch)

    def values(part: slice) -> Tensor:
        # Distributions that draw from torch's own generator are seeded too; the state outside is restored.
        with torch.no_grad(), forked_randomness(intensities.device, derived_seed(seed, part.start)):
            return _log_mean(model, encoder, observe(intensities[part]), sampling.on(numbers[part]), chunks)

    return ShrinkingBatches(chunks.batch).run(first, len(intensities), values)
