"""E[w] = p(x), for a small encoder of each family, and for AIS and BDMC."""

from collections.abc import Iterator

import torch

from vaebench.encoders.base import Encoder
from vaebench.estimators.ais import ais
from vaebench.estimators.bdmc import bdmc, simulated
from vaebench.objective import evidence
from vaebench.selftest.oracles.families import FAMILIES
from vaebench.selftest.oracles.gaussian import hierarchical, linear_gaussian, one_image, sivi
from vaebench.selftest.oracles.wrong import Miscounted, WithoutOwnPsi
from vaebench.selftest.rows import CheckRow, Mean, differs, near
from vaebench.selftest.running import Bench

__all__ = ["check"]

REPLICATES = 20_000
ANNEALED = 1500


def check(bench: Bench) -> Iterator[CheckRow]:
    """Compare mean weights, divided by p(x), with 1."""
    for name, (make, inner_k) in FAMILIES.items():
        with bench.device:
            encoder = make()
        level = f" L={inner_k}" if inner_k else ""
        yield near(f"E[w]/p(x), {name}{level}", 1, _mean_weight(bench, encoder, inner_k))
    with bench.device:
        controls = {"iwhvi": hierarchical(), "sivi": sivi()}
    for name, right in controls.items():
        wrong = _mean_weight(bench, WithoutOwnPsi(right), 3, 5 * REPLICATES)
        yield differs(f"E[w]/p(x), {name} L=3, psi_0 left out", 1, wrong)
        yield differs(f"E[w]/p(x), {name} L=3, divided by L", 1, _mean_weight(bench, Miscounted(right), 3))
    yield from _annealed(bench)


@torch.no_grad()
def _mean_weight(bench: Bench, encoder: Encoder, inner_k: int, replicates: int = REPLICATES) -> Mean:
    with bench.device:
        model, x = linear_gaussian(), one_image(replicates)
    log_w = evidence(model, encoder, x, 1, inner_k=inner_k, estimate=True).log_weights()
    return Mean.of((log_w - model.log_evidence(x)).exp())


def _annealed(bench: Bench) -> Iterator[CheckRow]:
    """Run AIS and BDMC as `vaebench evaluate` does: tune the HMC steps, then freeze them."""
    with bench.device:
        model, x = linear_gaussian(), one_image(ANNEALED)
    found = ais(model, x, None, 4, 1, seed=bench.seed, leapfrog=3, batch=ANNEALED, strict=False)
    yield near("E[w]/p(x), AIS, T=4", 1, Mean.of((found.log_likelihood - model.log_evidence(x)).exp()))
    both = bdmc(model, ANNEALED, None, 2, 1, seed=bench.seed, leapfrog=3, batch=ANNEALED, strict=False)
    truth = model.log_evidence(simulated(model, ANNEALED, bench.seed)[0])
    yield near("E[w]/p(x), BDMC, lower bound", 1, Mean.of((both.lower - truth).exp()))
    yield near("E[w] p(x), BDMC, upper bound", 1, Mean.of((truth - both.upper).exp()))
    yield differs("BDMC, T=2: upper bound - log p(x)", 0, Mean.of(both.upper - truth))
