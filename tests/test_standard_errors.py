"""The stated errors of importance estimates are right: as many truths lie within two of them as should.

(Those of annealed importance sampling are tested in test_ais.py.)
"""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import t as student
from torch import Tensor
from toys import exact_gaussian, expected_iwae, gaussian, learned, linear_gaussian, normal_nodes, one_image, sivi

from vaebench.encoders.base import Encoder
from vaebench.estimators.importance import PerImage, log_likelihood
from vaebench.evaluate.run import over_repeats
from vaebench.objective import weigh

pytestmark = pytest.mark.usefixtures("float64")

TRIALS = 600


def covered(errors: Tensor, stated: Tensor) -> float:
    """Return the share of errors within two stated ones."""
    return (errors.abs() < 2 * stated).double().mean().item()


def expected(degrees: int) -> float:
    """Return the share that should lie within, for a standard error with so many degrees of freedom."""
    return float(1 - 2 * student.sf(2, degrees))


SLACK = 4 * (0.05 * 0.95 / TRIALS) ** 0.5
"""Four standard errors of a share of 95 % over the trials."""


# Over images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "k"), [(exact_gaussian, 1), (gaussian, 200)])
def test_the_error_over_images_covers_the_mean_of_all_images(make: Callable[[], Encoder], k: int):
    """E log p(x) is minus the entropy of N(b, WW' + s^2 I)."""
    model, count = linear_gaussian(), 40
    covariance = model.weight @ model.weight.T + model.scale**2 * torch.eye(3)
    truth = -0.5 * (3 * (1 + math.log(2 * math.pi)) + torch.logdet(covariance))
    x = model.simulate(TRIALS * count)[0]
    values = log_likelihood(model, make(), x, k=k, seed=1).view(TRIALS, count)
    stated = torch.tensor([PerImage(row).stderr for row in values])
    errors = values.mean(1) - truth
    assert abs(covered(errors, stated) - expected(count - 1)) < SLACK
    # Controls: the standard deviation, and an error that is a third too small.
    assert covered(errors, stated * count**0.5) > 0.99
    assert covered(errors, stated / 1.5) < expected(count - 1) - SLACK


# Over repeats ---------------------------------------------------------------------------------------------


def exact_bound(encoder: Encoder, k: int) -> float:
    """Return E log 1/K sum_k w_k for ``one_image``, by quadrature over the noise of one draw."""
    model, x = linear_gaussian(), one_image(1)
    nodes, probability = normal_nodes(2, 61)
    with torch.no_grad():
        q = encoder.encode(x)
        draw = encoder.sample(q, len(nodes))
        z = q.mean + q.scale * nodes.unsqueeze(1)
        log_w = weigh(model, x, draw._replace(z=z, log_q=q.log_prob(z))).log_weights().squeeze(1)
    return expected_iwae(log_w, probability, k).item()


@pytest.mark.parametrize("repeats", [2, 10])
@pytest.mark.parametrize("k", [1, 5])
def test_the_error_over_repeats_covers_the_expectation_of_the_estimate(repeats: int, k: int):
    model, encoder = linear_gaussian(), gaussian()
    truth = exact_bound(encoder, k)
    # A test set of twenty times the one image whose bound is known.
    values = log_likelihood(model, encoder, one_image(TRIALS * repeats * 20), k=k, seed=2)
    values = values.view(TRIALS, repeats, 20).mean(2)
    found = [over_repeats(row) for row in values]
    stated = torch.tensor([one["repeat_stderr"] for one in found])
    errors = values.mean(1) - truth
    assert abs(covered(errors, stated) - expected(repeats - 1)) < SLACK
    assert found[0]["repeat_std"] == pytest.approx(found[0]["repeat_stderr"] * repeats**0.5)
    # Control: the spread of the repetitions is not the error of their mean, and log p(x) is not what they estimate.
    if repeats == 10:
        assert covered(errors, stated * repeats**0.5) > 0.99
        assert covered(errors, stated / 2) < expected(repeats - 1) - 0.1
        evidence = model.log_evidence(one_image(1)).item()
        assert covered(values.mean(1) - evidence, stated) < expected(repeats - 1) - SLACK


def test_one_repetition_has_no_error():
    assert over_repeats(torch.tensor([-80.0])) == {}


# Every estimator, within its error ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "inner_k"),
    [
        (gaussian, 0),
        (learned, 0),
        (learned, 5),
        (sivi, 5),
        (lambda: learned().with_inner_samples(tau="prior"), 5),
    ],
    ids=["iwae", "diwhvi-0", "diwhvi-5", "sivi-5", "prior-5"],
)
def test_every_estimate_is_within_its_error(make: Callable[[], Encoder], inner_k: int):
    """Fixed images: the error over images says nothing, the one over repeats all but the bias, O(1/k)."""
    model, repeats, k = linear_gaussian(), 12, 500
    x = model.simulate(40)[0]
    values = torch.stack([log_likelihood(model, make(), x, k, inner_k, seed=seed) for seed in range(repeats)])
    found = over_repeats(values.mean(1))
    error = values.mean().item() - model.log_evidence(x).mean().item()
    assert abs(error) < 4 * found["repeat_stderr"] + 1e-3
    # Power: what is stated is small.
    assert found["repeat_stderr"] < 4e-3


def test_the_mean_over_many_images_is_kept_in_float64():
    values = -87.0 + 0.01 * torch.rand(10_000)
    exact = math.fsum(values.tolist()) / len(values)
    assert abs(PerImage(values).mean - exact) < 1e-12
    single = torch.zeros((), dtype=torch.float32)
    for value in values.float():
        single = single + value
    assert abs(single.item() / len(values) - exact) > 1e-4
