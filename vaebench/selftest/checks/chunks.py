"""A seeded estimate of log p(x) is a function of the seed and the image, however it is cut up."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vaebench.encoders.base import Encoder
from vaebench.estimators.importance import log_likelihood, log_likelihoods
from vaebench.estimators.sampling import Sampling
from vaebench.selftest.bench import Bench
from vaebench.selftest.oracles.families import network_gaussian, network_hierarchy
from vaebench.selftest.oracles.gaussian import X, linear_gaussian
from vaebench.selftest.rows import Row, differs, exact

__all__ = ["check"]

IMAGES, K = 30, 40


def check(bench: Bench) -> Iterator[Row]:
    """Compare estimates in pieces with those in one piece, nats."""
    with bench.device:
        pixels = torch.randint(0, 256, (IMAGES, X), dtype=torch.uint8)
        encoders: dict[str, tuple[Encoder, int]] = {
            "gaussian": (network_gaussian(), 0),
            "iwhvi L=6": (network_hierarchy(), 6),
        }
        model = linear_gaussian()
    x = _observe(pixels)
    for name, (encoder, inner_k) in encoders.items():

        def pieces(encoder: Encoder = encoder, inner_k: int = inner_k, **cut: Any) -> Tensor:
            parts = log_likelihoods(model, encoder, _observe, pixels, Sampling(K, inner_k, seed=5), **cut)
            return torch.cat([values for _, values in parts])

        whole = log_likelihood(model, encoder, x, K, inner_k, K, inner_chunk=inner_k, seed=5)
        small = log_likelihood(model, encoder, x, K, inner_k, 7, inner_chunk=2, seed=5)
        yield exact(f"max |chunks of 7 - whole|, {name}", 0, _distance(small, whole))
        yield exact(f"max |batches of 4 - whole|, {name}", 0, _distance(pieces(batch=4), whole))
        yield exact(f"max |after a pause - whole|, {name}", 0, _distance(pieces(first=11), whole[11:]))
        other = log_likelihood(model, encoder, x, K, inner_k, seed=6)
        yield differs(f"max |another seed - whole|, {name}", 0, _distance(other, whole))


def _observe(pixels: Tensor) -> Tensor:
    return pixels.to(torch.get_default_dtype()) / 255


def _distance(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()
