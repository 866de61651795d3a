"""Every bound by enumeration on a model with finitely many states."""

from collections.abc import Iterator

from vaebench import bounds
from vaebench.selftest.bench import Bench
from vaebench.selftest.oracles.finite import (
    ELBO,
    EXACT_REVERSE,
    RENYI,
    REVERSE,
    SIVI,
    TABLE,
    TVO,
    expected_bound,
    expected_shared,
    states_as_often_as_probable,
)
from vaebench.selftest.oracles.wrong import Miscounted, WithoutOwnPsi
from vaebench.selftest.rows import Row, differs, exact

__all__ = ["check"]

EVIDENCE = 0.295
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def check(bench: Bench) -> Iterator[Row]:
    """Compare expectations over all outcomes with their known values, nats."""
    with bench.device:
        for name, (bound, k, inner_k, reverse, expected) in TABLE.items():
            yield exact(name, expected, expected_bound(bound, k, inner_k, reverse))
        yield from _weights()
        yield from _of_exact_weights()
        yield from _controls()


def _weights() -> Iterator[Row]:
    def mean(log_w: bounds.Tensor) -> bounds.Tensor:
        return log_w.exp().mean(0)

    for inner_k in (0, 1, 2):
        yield exact(f"E[w], IWHVI L={inner_k}", EVIDENCE, expected_bound(mean, 1, inner_k, REVERSE))
    yield exact("E[w], SIVI K=2 L=1", EVIDENCE, expected_bound(mean, 2, 1, SIVI))
    yield exact("E[w], SIVI with shared psi, K=2 L=2", EVIDENCE, expected_shared(mean, 2, 2))


def _of_exact_weights() -> Iterator[Row]:
    log_w = states_as_often_as_probable()
    for alpha, expected in RENYI.items():
        yield exact(f"Renyi alpha={alpha:g}", expected, bounds.renyi(log_w, alpha).item())
    for upper, expected in TVO.items():
        name = f"TVO, 4 partitions, {'right' if upper else 'left'}"
        yield exact(name, expected, bounds.tvo(log_w, QUARTERS, upper=upper).item())


def _controls() -> Iterator[Row]:
    wrong = expected_bound(bounds.elbo, 1, 1, REVERSE, WithoutOwnPsi)
    yield exact("IWHVI L=1 without psi_0, as predicted", -2.3128623409, wrong)
    yield differs("IWHVI L=1 without psi_0", -2.4195783906, wrong)
    yield differs("SIVI L=1 without psi_0", -2.4912533501, expected_bound(bounds.elbo, 1, 1, SIVI, WithoutOwnPsi))
    yield differs("IWHVI L=1 divided by L", -2.4195783906, expected_bound(bounds.elbo, 1, 1, REVERSE, Miscounted))
    yield differs("IWHVI L=2 for the ELBO", ELBO, expected_bound(bounds.elbo, 1, 2, REVERSE))
    yield exact("IWHVI L=2, tau exact", ELBO, expected_bound(bounds.elbo, 1, 2, EXACT_REVERSE))
