"""What importance weights say of their mean: effective sample size, and k-hat where the tail index is known."""

import math

import pytest
import torch
from torch import Tensor
from toys import exact_gaussian, gaussian, learned, linear_gaussian

from vaebench.distributions import DiagonalNormal
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.estimators.importance import Chunks, log_likelihood, weighed
from vaebench.estimators.sampling import Sampling
from vaebench.estimators.weights import RELIABLE, WAITING, WeightSummary, pareto_k, reliable_k_hat, tail_length

pytestmark = pytest.mark.usefixtures("float64")

K, IMAGES = 5000, 200


def summary(log_w: Tensor, chunk: int = 170) -> WeightSummary:
    """Summarise log weights, (K, B), in chunks."""
    found = WeightSummary(len(log_w))
    for part in log_w.split(chunk):
        found.add(part)
    return found


def generalised_pareto(k: float) -> Tensor:
    """Return log weights, (K, IMAGES), with a tail of shape k above 3."""
    u = torch.rand(K, IMAGES)
    return (torch.special.expm1(-k * u.log()) / k + 3).log()


def of_a_narrow_proposal(scale: float) -> Tensor:
    """Return log N(z; 0, 1) - log N(z; 0, scale^2), z from the latter: for scale < 1 the tail index is 1 - scale^2."""
    z = scale * torch.randn(4 * K, IMAGES)
    return z.square() * (1 / scale**2 - 1) / 2 + math.log(scale)


# The tail -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-0.5, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_k_hat_of_a_generalised_pareto_tail(k: float):
    found = summary(generalised_pareto(k)).pareto_k()
    # The weak prior draws it towards 1/2, by ten weights' worth among two hundred.
    pulled = k + (0.5 - k) * 10 / (tail_length(K) + 10)
    assert abs(found.mean().item() - pulled) < 0.03
    assert 0.03 < found.std().item() < 0.15


@pytest.mark.parametrize("scale", [0.6, 0.7, 0.8, 0.9])
def test_k_hat_of_a_gaussian_proposal_that_is_too_narrow(scale: float):
    """The tail is a Pareto's but for a logarithm, which makes it look lighter than it is."""
    found, exact = summary(of_a_narrow_proposal(scale)).pareto_k().mean().item(), 1 - scale**2
    assert exact - 0.05 < found < exact + 0.03


def arviz_k_hat(log_w: Tensor) -> Tensor:
    """Return k-hat, (B,), from arviz-stats, for log weights (K, B)."""
    from arviz_stats.base.array import array_stats  # here, because its import is slow

    # Its argument is minus the log weights, as in leave-one-out cross-validation.
    return torch.from_numpy(array_stats.psislw(-log_w.numpy(), axis=0)[1])


# The two round the tail length differently unless K is a square, or a multiple of five below 225.
@pytest.mark.parametrize("k", [50, 225, 900, 4900])
@pytest.mark.parametrize("shape", [-0.5, 0.3, 0.7, 1.2])
def test_k_hat_is_that_of_arviz(shape: float, k: int):
    log_w = generalised_pareto(shape)[:k, :20]
    found, reference = summary(log_w).pareto_k(), arviz_k_hat(log_w)
    assert (found - reference).abs().max() < 1e-9


def test_control_another_tail_is_not_that_of_arviz():
    log_w = generalised_pareto(0.7)[:4900, :20]
    assert (pareto_k(log_w.topk(tail_length(4900), 0).values) - arviz_k_hat(log_w)).abs().min() > 1e-6


def test_the_threshold_of_k_hat_depends_on_the_number_of_weights():
    assert reliable_k_hat(100) == pytest.approx(0.5)
    assert [reliable_k_hat(k) for k in (2155, 5000, 10**6)] == [RELIABLE] * 3
    assert reliable_k_hat(2000) == pytest.approx(0.697, abs=1e-3)


def test_control_k_hat_tells_narrow_proposals_from_wide_ones():
    assert (summary(of_a_narrow_proposal(0.35)).pareto_k() > RELIABLE).double().mean() > 0.6
    assert (summary(of_a_narrow_proposal(0.8)).pareto_k() > RELIABLE).double().mean() < 0.02
    assert (summary(of_a_narrow_proposal(1.3)).pareto_k() < 0).all()


def test_control_without_its_threshold_the_tail_has_another_shape():
    log_w = generalised_pareto(0.5)
    largest = log_w.topk(tail_length(K) + 1, 0).values
    right, wrong = pareto_k(largest), pareto_k(torch.cat([largest[:-1], torch.full((1, IMAGES), -torch.inf)]))
    assert abs(right.mean() - 0.5) < 0.03
    assert abs(wrong.mean() - 0.5) > 0.1


def test_k_hat_does_not_depend_on_the_weights_scale():
    log_w = generalised_pareto(0.4)
    assert (summary(log_w).pareto_k() - summary(log_w - 5000).pareto_k()).abs().max() < 1e-9


def test_k_hat_of_weights_without_a_tail_and_of_one_that_outweighs_all():
    assert summary(torch.zeros(100, 2)).pareto_k().tolist() == [-math.inf] * 2
    lonely = torch.zeros(100, 2)
    lonely[7] = 2000.0
    assert summary(lonely).pareto_k().tolist() == [math.inf] * 2


@pytest.mark.parametrize(("k", "length"), [(1, 0), (20, 0), (21, 5), (100, 20), (225, 45), (400, 60), (5000, 213)])
def test_the_tail_s_length(k: int, length: int):
    assert tail_length(k) == length
    assert bool(summary(torch.randn(k, 3)).pareto_k().isnan().all()) == (length == 0)


# In chunks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 60, 1000])
def test_chunks_do_not_show(chunk: int):
    log_w = 2 * torch.randn(300, 5)
    found, w = summary(log_w, chunk), log_w.exp()
    assert (found.log_mean() - w.mean(0).log()).abs().max() < 1e-12
    assert (found.ess() - w.sum(0) ** 2 / w.square().sum(0)).abs().max() < 1e-9
    assert (found.pareto_k() - summary(log_w, 300).pareto_k()).abs().max() < 1e-12
    # Control: the tail of the last chunk is another.
    if chunk < 200:
        last = log_w[-max(chunk, 30) :]
        assert (summary(last).pareto_k() - found.pareto_k()).abs().max() > 0.05


def test_extremes_of_the_effective_sample_size():
    assert summary(torch.zeros(50, 1)).ess().item() == pytest.approx(50)
    one = torch.full((50, 1), -2000.0)
    one[3] = 0
    assert summary(one).ess().item() == pytest.approx(1)


def test_memory_grows_as_the_square_root_of_k():
    for k in (100, 10_000):
        found = WeightSummary(k)
        for _ in range(k // 50):
            found.add(torch.randn(50, 2))
        assert sum(map(len, found._largest)) <= tail_length(k) + 1 + WAITING
    assert tail_length(10_000) == 10 * tail_length(100) * 1.5


def test_an_empty_summary_has_no_tail():
    with pytest.raises(ValueError, match="no weights were added"):
        WeightSummary(10).pareto_k()


# Of encoders ----------------------------------------------------------------------------------------------


def test_the_estimate_is_the_plain_one_and_good_proposals_look_good():
    model = linear_gaussian()
    x = model.simulate(IMAGES)[0]
    chunks = Chunks(IMAGES, 64, 3)
    found = weighed(model, learned(), x, Sampling(400, 2, seed=3), chunks)
    plain = log_likelihood(model, learned(), x, 400, 2, 64, inner_chunk=3, seed=3)
    # A batch of another size can round another way: log_likelihood takes 100 images at a time.
    torch.testing.assert_close(found.log_mean(), plain, rtol=0, atol=1e-12)
    assert (found.pareto_k() < RELIABLE).double().mean() > 0.95
    exact = weighed(model, exact_gaussian(), x, Sampling(400, seed=3), chunks)
    assert exact.ess().min().item() == pytest.approx(400)
    assert (exact.pareto_k() == -torch.inf).all()


def test_a_proposal_too_narrow_is_flagged_and_its_bound_is_loose():
    """What k-hat is for: one coordinate of the posterior three times as wide as the proposal."""
    model = linear_gaussian()
    x = model.simulate(IMAGES)[0]

    class Narrow(torch.nn.Module):
        def forward(self, x: Tensor) -> DiagonalNormal:
            q = exact_gaussian().encode(x)
            return DiagonalNormal(q.mean, q.scale * torch.tensor([1 / 3, 1.0]))

    truth = model.log_evidence(x)
    narrow = weighed(model, GaussianEncoder(Narrow()), x, Sampling(1000, seed=0), Chunks(IMAGES, 100, 1))
    wide = weighed(model, gaussian(), x, Sampling(1000, seed=0), Chunks(IMAGES, 100, 1))
    # 1 - 1/9 is the tail index.
    assert abs(narrow.pareto_k().mean().item() - 8 / 9) < 0.15
    assert (narrow.pareto_k() > RELIABLE).double().mean() > 0.5
    assert (wide.pareto_k() > RELIABLE).double().mean() < 0.05
    assert (narrow.log_mean() - truth).mean() < -0.05
    assert abs((wide.log_mean() - truth).mean()) < 0.01
