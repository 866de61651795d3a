"""AIS and BDMC on the linear-Gaussian model, whose annealed densities are Gaussian."""

from collections.abc import Iterator

from torch import Tensor

from vaebench.estimators.ais import ais
from vaebench.estimators.annealing import AnnealedChains, anneal, linear
from vaebench.estimators.bdmc import bdmc, simulated
from vaebench.selftest.bench import Bench
from vaebench.selftest.oracles.annealing import bridge, exact_move, expected_log_weight, shared
from vaebench.selftest.oracles.gaussian import LinearGaussian, linear_gaussian, one_image
from vaebench.selftest.rows import Mean, Row, differs, near

__all__ = ["check"]

REPLICATES = 2500
SIMULATED = 1500
TEMPERATURES = 20


def check(bench: Bench) -> Iterator[Row]:
    """Compare weights of mean p(x) and 1/p(x), and their expected logarithms, with the known ones, nats."""
    with bench.device:
        yield from _exact_moves()
        model, x = linear_gaussian(), one_image(REPLICATES)
        truth = model.log_evidence(x)
    yield from _hamiltonian_moves(model, x, truth, bench.seed)


def _walk(model: LinearGaussian, x: Tensor, betas: Tensor, start: Tensor) -> AnnealedChains:
    return anneal(bridge(model, x), shared(betas.to(x.device), len(x)), start.unsqueeze(0), exact_move(model, x))


def _exact_moves() -> Iterator[Row]:
    """Left and right sums of the same integral, with log p(x) between them."""
    model = linear_gaussian()
    betas = linear(TEMPERATURES)
    x, z = model.simulate(REPLICATES)
    truth, origin = model.log_evidence(x), model.prior().sample((REPLICATES,))
    forward = _walk(model, x, betas, origin).log_weights[0]
    backward = _walk(model, x, betas.flip(0), z).log_weights[0]
    below, above = expected_log_weight(model, x, betas), -expected_log_weight(model, x, betas.flip(0))
    yield near(f"E log w, AIS, T={TEMPERATURES}", below.mean().item(), _paired(forward, below))
    yield near(f"E -log w, BDMC's way back, T={TEMPERATURES}", above.mean().item(), _paired(-backward, above))
    yield near("E[w]/p(x), AIS", 1, Mean.of((forward - truth).exp()))
    yield near("E[w] p(x), BDMC's way back", 1, Mean.of((backward + truth).exp()))
    back = linear(4).flip(0)
    wrong, right = -_walk(model, x, back, origin).log_weights[0], -expected_log_weight(model, x, back)
    yield differs("E -log w, a way back from the prior, T=4", right.mean().item(), _paired(wrong, right))


def _paired(values: Tensor, expected: Tensor) -> Mean:
    """Return the mean of ``values`` with the error of their distance from what each is expected to be."""
    distance = Mean.of(values - expected)
    return Mean(distance.value + expected.mean().item(), distance.stderr)


def _hamiltonian_moves(model: LinearGaussian, x: Tensor, truth: Tensor, seed: int) -> Iterator[Row]:
    """What `vaebench evaluate` runs: pilot, frozen steps, HMC."""
    found = ais(model, x, None, 4, 1, seed=seed, leapfrog=3, batch=len(x), strict=False)
    yield near("E[w]/p(x), AIS by HMC, T=4", 1, Mean.of((found.log_likelihood - truth).exp()))
    both = bdmc(model, SIMULATED, None, 2, 1, seed=seed, leapfrog=3, batch=SIMULATED, strict=False)
    truth = model.log_evidence(simulated(model, SIMULATED, seed)[0])
    yield near("E[w]/p(x), BDMC from below", 1, Mean.of((both.lower - truth).exp()))
    yield near("E[w] p(x), BDMC from above", 1, Mean.of((truth - both.upper).exp()))
    yield differs("BDMC, T=2: log p(x) - lower bound", 0, Mean.of(truth - both.lower))
    yield differs("BDMC, T=2: upper bound - log p(x)", 0, Mean.of(both.upper - truth))
