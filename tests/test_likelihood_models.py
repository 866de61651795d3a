"""Whole models with each likelihood: log p(x) from the estimators against exact answers."""

import math

import pytest
import torch
from test_likelihoods import EIGHT_BIT, FAMILIES
from torch import Tensor, nn
from toys import X, Z, exact_gaussian, linear_gaussian

from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.estimators.ais import ais
from vaebench.estimators.importance import log_likelihood
from vaebench.likelihoods import GaussianLikelihood
from vaebench.model import GenerativeModel
from vaebench.nets.dense import MLP, DenseDecoder, Likelihood, Trunk
from vaebench.nets.networks import Networks
from vaebench.priors import StandardNormalPrior

pytestmark = pytest.mark.usefixtures("float64")


class Same(Trunk):
    """The identity, so that the decoder is linear."""

    width = Z

    def forward(self, z: Tensor) -> Tensor:
        return z


def gaussian_decoder(*, discretized: bool) -> GenerativeModel:
    """Return the linear-Gaussian model of the self-test with the Gaussian family in its decoder."""
    exact = linear_gaussian()
    decoder = DenseDecoder(Same(), GaussianLikelihood(discretized=discretized), X)
    with torch.no_grad():
        decoder.affine.weight.copy_(torch.cat([exact.weight, torch.zeros(X, Z)]))
        decoder.affine.bias.copy_(torch.cat([exact.bias, torch.full((X,), math.log(exact.scale))]))
    return GenerativeModel(StandardNormalPrior(Z), decoder)


def images(count: int) -> Tensor:
    """Return bytes / 255, without the bytes 0 and 255, whose bins include the tails."""
    return torch.randint(1, 255, (count, X)) / 255


def test_every_weight_of_the_exact_posterior_is_the_evidence():
    """The model is that of the tests of every encoder, so that these hold for this decoder too."""
    model, exact, x = gaussian_decoder(discretized=False), linear_gaussian(), torch.randn(5, X)
    z = torch.randn(7, 5, Z)
    for own, truth in zip(model.log_joint(x, z), exact.log_joint(x, z), strict=True):
        assert (own - truth).abs().max() < 1e-12
    draw = exact_gaussian().draw(x, 7)
    weights = sum(model.log_joint(x, draw.z)) - draw.log_q
    assert (weights - exact.log_evidence(x)).abs().max() < 1e-11


def test_narrow_bins_are_the_density_times_their_width():
    """The error of a bin is of the order of (width / scale)^2 / 24, here 1e-6."""
    x, z = images(5), torch.randn(3, 5, Z)
    density, probability = (gaussian_decoder(discretized=each).log_joint(x, z)[0] for each in (False, True))
    assert (probability - density + X * math.log(255)).abs().max() < 1e-4


def scalar_model(family: Likelihood) -> GenerativeModel:
    decoder = DenseDecoder(MLP(1, [4], "tanh"), family, X, torch.full((X,), 0.5))
    with torch.no_grad():
        decoder.affine.weight.mul_(2)
    return GenerativeModel(StandardNormalPrior(1), decoder)


def evidence(model: GenerativeModel, x: Tensor) -> Tensor:
    """Return log p(x) by a sum over 20,001 values of the one latent coordinate, (B,)."""
    z = torch.linspace(-9, 9, 2_001).view(-1, 1, 1).expand(-1, len(x), 1)
    with torch.no_grad():
        joint = model.log_joint(x, z)
    return (joint.log_likelihood + joint.log_prior).logsumexp(0) + math.log(18 / 2_000)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_estimators_find_the_evidence(name: str):
    """Importance sampling from a wide encoder, and annealing by HMC, which needs gradients with respect to z."""
    model = scalar_model(FAMILIES[name]())
    x = torch.randint(0, 2, (2, X)).double() if name == "bernoulli" else torch.randint(0, 256, (2, X)) / 255
    truth = evidence(model, x)
    network = Networks("mlp", [3], "tanh").gaussian(X, 1)
    nn.init.zeros_(network.head.affine.weight)
    encoder = GaussianEncoder(network)
    assert (log_likelihood(model, encoder, x, k=4_000, seed=0) - truth).abs().max() < 0.15
    found = ais(model, x, temperatures=30, chains=8, leapfrog=3, seed=0, strict=False)
    assert ((found.log_likelihood - truth).abs() / (0.02 + found.stderr)).max() < 5


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_simulated_images_are_bytes(name: str):
    x, z = scalar_model(FAMILIES[name]()).simulate(50)
    assert x.shape == (50, X)
    assert z.shape == (50, 1)
    assert (x * 255 - (x * 255).round()).abs().max() < 1e-12
    assert x.min() >= 0
    assert x.max() <= 1
