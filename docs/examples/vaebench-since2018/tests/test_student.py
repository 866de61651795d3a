"""The t prior: its density against torch's for one coordinate, its integral, and its draws."""

import pytest
import torch
from vaebench import noise

from vaebench_since2018.student import StudentPrior, StudentT


def test_one_coordinate_is_torch_s_density():
    z = torch.linspace(-9, 9, 50)
    found = StudentT(torch.tensor(5.0), torch.tensor([1.7])).log_prob(z.unsqueeze(-1))
    torch.testing.assert_close(found, torch.distributions.StudentT(5.0, 0.0, 1.7).log_prob(z))


def test_the_density_is_that_of_the_draws():
    """E[N(z) / t(z)] = 1 under draws of t, and the draws have t's variance."""
    prior = StudentPrior(3, 8.0)
    with torch.no_grad():
        prior.log_scales.copy_(torch.tensor([0.0, 0.4, -0.3]))
        t = prior()
        z = t.sample((100_000,))
        ratio = (torch.distributions.Normal(0.0, 0.6).log_prob(z).sum(-1) - t.log_prob(z)).exp()
        error = ratio.std() / len(ratio) ** 0.5
        assert (ratio.mean() - 1).abs() < 4 * error
        assert (1.02 * ratio.mean() - 1).abs() > 4 * error  # control
        torch.testing.assert_close(z.var(0), t.variance, rtol=0.03, atol=0)
        # All coordinates share one radius: their squares are correlated.
        assert torch.corrcoef(z.square().T)[0, 1] > 0.1


def test_keyed_draws_do_not_depend_on_the_chunk():
    t, images = StudentPrior(2, 5.0)(), torch.arange(3)
    with noise.keyed(0, images):
        whole = t.sample((4, 3))
    with noise.keyed(0, images, first_sample=2):
        part = t.sample((2, 3))
    assert torch.equal(whole[2:], part)


def test_too_few_degrees():
    with pytest.raises(ValueError, match=r"^degrees must be > 2, got 2"):
        StudentPrior(2, 2.0)
