"""AISIVI, beyond the contract of encoders: the score against the exact density, tau against the exact reverse model."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from vaebench.bounds import elbo
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.objective import Objective
from vaebench.selftest.oracles.gaussian import (
    AffineConditional,
    AffineGaussian,
    exact_hierarchical,
    hierarchical,
    linear_gaussian,
    one_image,
)

from vaebench_since2018.aisivi import ImportanceScoredEncoder


def encoder(score_samples: int = 5, own_psi: bool = True) -> ImportanceScoredEncoder:
    return ImportanceScoredEncoder(hierarchical(), score_samples=score_samples, own_psi=own_psi)


def exact_density(aisivi: ImportanceScoredEncoder, x: Tensor) -> MultivariateNormal:
    """Return q(z|x) of the affine hierarchy, for the first image."""
    mixing, conditional = aisivi.marginal.mixing, aisivi.marginal.conditional
    assert isinstance(mixing, AffineGaussian)
    assert isinstance(conditional, AffineConditional)
    slope, psi = conditional.u_weight, mixing(x[:1])
    mean = psi.mean[0] @ slope.T + conditional.condition(x[:1])[0]
    covariance = slope @ torch.diag(psi.variance[0]) @ slope.T + torch.diag((2 * conditional.log_scale).exp())
    return MultivariateNormal(mean, covariance)


def gradients(aisivi: ImportanceScoredEncoder, value: Tensor) -> Tensor:
    parameters = [*aisivi.marginal.mixing.parameters(), *aisivi.marginal.conditional.parameters()]
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(value, parameters)])


@pytest.mark.parametrize("own_psi", [True, False])
def test_the_gradient_is_that_of_the_exact_density(own_psi: bool):
    """With the same draws of z, so that the difference is the error of the score alone."""
    x, aisivi = one_image(2000), encoder(200, own_psi)
    encoded = aisivi.encode(x)
    torch.manual_seed(1)
    log_q = aisivi.sample(encoded, 1).log_q
    found = gradients(aisivi, log_q.mean())
    torch.manual_seed(1)
    z = aisivi.marginal.joint(aisivi.encode(x), 1).z
    density = exact_density(aisivi, x)
    constant = MultivariateNormal(density.mean.detach(), density.covariance_matrix.detach())
    exact = gradients(aisivi, constant.log_prob(z).mean())
    assert (found - exact).norm() < 0.03 * exact.norm()
    torch.manual_seed(1)
    given_psi = aisivi.marginal.joint(aisivi.encode(x), 1)
    naive = gradients(aisivi, given_psi.q_z.log_prob(given_psi.z).mean())  # control: the score of the own psi
    assert (naive - exact).norm() > 0.3 * exact.norm()


def test_tau_s_loss_has_its_minimum_at_the_exact_reverse_model():
    x = one_image(100_000)
    at_minimum, elsewhere = tau_gradient(exact_hierarchical(), x), tau_gradient(hierarchical(), x)
    assert at_minimum < 0.02 < 0.2 < elsewhere


def tau_gradient(marginal: HierarchicalEncoder, x: Tensor) -> float:
    """Return the norm of the gradient of tau's loss."""
    (auxiliary,) = ImportanceScoredEncoder(marginal).auxiliary_losses().values()
    assert auxiliary.exclusive
    loss = auxiliary.loss(x)
    assert isinstance(loss, Tensor)
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(auxiliary.parameters))]).norm().item()


def test_the_main_loss_leaves_tau_alone():
    aisivi = encoder()
    value, _ = Objective(elbo)(linear_gaussian(), aisivi, one_image(5), 1, inner_k=2)
    value.sum().backward()
    with_gradient = {name.split(".")[1] for name, p in aisivi.named_parameters() if p.grad is not None}
    assert with_gradient == {"mixing", "conditional"}


def test_settings_out_of_range():
    with pytest.raises(ValueError, match=r"^score_samples must be >= 1, got 0$"):
        encoder(score_samples=0)
