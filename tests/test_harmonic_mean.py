"""The harmonic mean bound on log q(z): right with exact posterior samples, and no good otherwise."""

import pytest
import torch
from torch.distributions import Normal

from vaebench.bounds import harmonic_mean, log_mean_exp

A, S, REPLICATES, K = 0.8, 0.6, 20_000, 20

pytestmark = pytest.mark.usefixtures("float64")


def gaps(width: float) -> dict[str, tuple[float, float]]:
    """Bound - log q(z) with its standard error, for psi ~ N(0, 1), z|psi ~ N(A psi, S^2), by where psi comes from."""
    psi_0 = torch.randn(REPLICATES)
    z = A * psi_0 + S * torch.randn(REPLICATES)
    variance = 1 / (1 + A**2 / S**2)
    posterior = Normal(variance * A * z / S**2, variance**0.5)
    tau = Normal(posterior.mean, width * posterior.stddev)

    def log_r(psi: torch.Tensor) -> torch.Tensor:
        return Normal(0.0, 1.0).log_prob(psi) + Normal(A * psi, S).log_prob(z) - tau.log_prob(psi)

    log_q = Normal(0.0, (A**2 + S**2) ** 0.5).log_prob(z)
    fresh = tau.sample((K,))
    values = {
        "posterior": harmonic_mean(log_r(posterior.sample((K,)))),
        "tau": harmonic_mean(log_r(fresh)),
        "iwhvi": log_mean_exp(log_r(torch.cat([psi_0[None], fresh[1:]]))),
    }
    return {
        name: ((value - log_q).mean().item(), ((value - log_q).std() / REPLICATES**0.5).item())
        for name, value in values.items()
    }


@pytest.mark.parametrize("width", [0.7, 1.2, 2.0])
def test_it_bounds_from_above_with_posterior_samples_and_from_below_with_others(width: float):
    found = gaps(width)
    for name in ("posterior", "iwhvi"):
        mean, stderr = found[name]
        assert mean > -3 * stderr
    mean, stderr = found["tau"]
    assert mean < -20 * stderr


def test_it_is_exact_where_tau_is_the_posterior():
    for mean, _ in gaps(1.0).values():
        assert mean == pytest.approx(0, abs=1e-12)


def test_a_wide_tau_ruins_it_and_not_iwhvi():
    found = gaps(2.0)
    assert found["posterior"][0] - 5 * found["posterior"][1] > 4 * found["iwhvi"][0]
