"""Log densities are summed in float32 or better, also if the networks run in bf16."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from vaebench.nets.dense import MLP, BernoulliLikelihood, DenseDecoder, TrunkGaussian
from vaebench.objective import evidence
from vaebench.runtime import autocast
from vaebench.selftest.oracles.gaussian import X, exact_gaussian, linear_gaussian
from vaebench.selftest.rows import CheckRow, differs, distance, exact
from vaebench.selftest.running import Bench, default_dtype

__all__ = ["check"]

PIXELS, LATENTS = 784, 20
FLOAT32 = 1e-3
"""Tolerance for a sum over 784 pixels in float32, nats."""


def check(bench: Bench) -> Iterator[CheckRow]:
    """Compare float32 densities of 784 pixels with float64 ones of the same logits, nats."""
    with default_dtype(torch.float32):
        with bench.device:
            decoder = DenseDecoder(MLP(LATENTS, [100], "tanh"), BernoulliLikelihood(), PIXELS, None)
            reader = TrunkGaussian(MLP(PIXELS, [100], "tanh"), LATENTS)
            x, z = torch.rand(8, PIXELS).round(), torch.randn(5, 8, LATENTS)
        for precision in ("float32", "bf16"):
            with torch.no_grad(), autocast(bench.device, precision)():
                likelihood, posterior = decoder(z), reader(x)
                found, (_, log_q) = likelihood.log_prob(x), posterior.rsample_and_log_prob((5,))
            yield _bits(f"bits of log p(x|z), {precision} networks", found)
            yield _bits(f"bits of log q(z|x), {precision} networks", log_q)
            truth = _log_likelihood(likelihood.logits.double(), x.double())
            yield exact(f"log p(x|z) error, {precision} networks", 0, distance(found, truth), FLOAT32)
        coarse = _log_likelihood(likelihood.logits.bfloat16(), x.bfloat16())
        yield differs("log p(x|z) error, summed in bf16", 0, distance(coarse, truth), FLOAT32)
        with bench.device:
            model, images = linear_gaussian(), torch.randn(20, X)
            log_w = evidence(model, exact_gaussian(), images, 50).log_weights()
            worst = distance(log_w, model.log_evidence(images))
        yield exact("log w error at q = p(z|x), float32", 0, worst, 1e-4)


def _bits(name: str, value: Tensor) -> CheckRow:
    return exact(name, 32, torch.finfo(value.dtype).bits, 0)


def _log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    return (logits * x - F.softplus(logits)).sum(-1)
