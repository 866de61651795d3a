"""E[w] = p(x): the contract behind every bound and every estimate, for each family of encoders."""

from collections.abc import Iterator

import torch

from vaebench.encoders.base import Encoder
from vaebench.objective import evidence
from vaebench.selftest.bench import Bench
from vaebench.selftest.oracles.families import CELLS
from vaebench.selftest.oracles.gaussian import learned, linear_gaussian, one_image, sivi
from vaebench.selftest.oracles.wrong import Miscounted, WithoutOwnPsi
from vaebench.selftest.rows import Mean, Row, differs, near

__all__ = ["check"]

REPLICATES = 20_000


def check(bench: Bench) -> Iterator[Row]:
    """Compare mean weights, relative to p(x), with 1."""
    for family, inner_k in CELLS:
        with bench.device:
            encoder = family.make()
        level = f" L={inner_k}" if encoder.has_inner_samples else ""
        yield near(f"E[w]/p(x), {family.name}{level}", 1, _mean_weight(bench, encoder, inner_k))
    with bench.device:
        controls = {"learned": (learned(), 3), "sivi": (sivi(), 3)}
    for name, (right, inner_k) in controls.items():
        wrong = _mean_weight(bench, WithoutOwnPsi(right), inner_k, 5 * REPLICATES)
        yield differs(f"E[w]/p(x), hierarchical-{name} L={inner_k} without psi_0", 1, wrong)
        wrong = _mean_weight(bench, Miscounted(right), inner_k)
        yield differs(f"E[w]/p(x), hierarchical-{name} L={inner_k} divided by L", 1, wrong)


@torch.no_grad()
def _mean_weight(bench: Bench, encoder: Encoder, inner_k: int, replicates: int = REPLICATES) -> Mean:
    with bench.device:
        model, x = linear_gaussian(), one_image(replicates)
    log_w = evidence(model, encoder, x, 1, inner_k=inner_k).log_weights()
    return Mean.of((log_w - model.log_evidence(x)).exp())
