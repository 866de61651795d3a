"""How fast bounds close: gaps fall as a chi-square divergence over twice the number of samples."""

import math
from collections.abc import Iterator

import torch

from vaebench import bounds
from vaebench.encoders.base import Encoder
from vaebench.objective import Objective
from vaebench.selftest.bench import Bench
from vaebench.selftest.oracles.scalar import (
    GAUSSIAN,
    IMAGE,
    Named,
    Replicated,
    exact_bound,
    model,
    posterior_divergence,
    standard_hierarchy,
)
from vaebench.selftest.oracles.wrong import WithoutOwnPsi
from vaebench.selftest.rows import Mean, Row, differs, exact, near

__all__ = ["check"]

REPLICATES = 50_000
INNER_K = 50


def check(bench: Bench) -> Iterator[Row]:
    """Compare bounds with their exact expectations, and those with their asymptotes, nats."""
    with bench.device:
        log_evidence = model().log_evidence(torch.tensor([IMAGE])).item()
        for k in (10, 50):
            expected = exact_bound(GAUSSIAN, Named("iwae", k))
            yield near(f"IWAE K={k} by quadrature", expected, _mean_bound(k))
        limit = (log_evidence - exact_bound(GAUSSIAN, Named("iwae", 400))) * 800
        # The next term is of relative order 1/K.
        yield exact("2K x gap of IWAE, K=400 = chi^2(p(z|x) || q)", posterior_divergence(), limit, 4e-3 * limit)
        yield differs("IWAE K=10 for log p(x)", log_evidence, _mean_bound(10))
        yield from _bounds_on_log_q()


@torch.no_grad()
def _mean_bound(k: int) -> Mean:
    toy, x = Replicated(GAUSSIAN, REPLICATES), torch.full((REPLICATES, 1), IMAGE)
    return Mean.of(Objective(bounds.iwae)(model(), toy.encoder, x, k)[0])


def _bounds_on_log_q() -> Iterator[Row]:
    """E chi^2(q(psi|z) || q(psi)) = a^2 / s^2 = 16/9, approached from above with psi_0 and from below without."""
    for name, encoder, sign in (
        ("2L x (log_q - log q), SIVI L=50", standard_hierarchy(), 1),
        ("2L x (log_q - log q), the same without psi_0", WithoutOwnPsi(standard_hierarchy()), -1),
    ):
        mean = _scaled_excess(encoder)
        # The next term is of order 1/L, with a coefficient of about 20 here.
        tolerance = 20 / INNER_K + 4 * mean.stderr
        yield Row(name, sign * 16 / 9, mean.value, tolerance, "4 s.e. + O(1/L)")


@torch.no_grad()
def _scaled_excess(encoder: Encoder) -> Mean:
    draw = encoder.draw(torch.zeros(2 * REPLICATES, 1), 1, inner_k=INNER_K)
    log_density = -0.5 * draw.z.square().sum(-1) - 0.5 * math.log(2 * math.pi)
    return Mean.of(2 * INNER_K * (draw.log_q - log_density))
