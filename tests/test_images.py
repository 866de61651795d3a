"""The public functions check their images and the encoder; training does not pay for it."""

from collections.abc import Callable

import numpy
import pytest
import torch
from oracles.gaussian import learned
from torch import Tensor, nn
from toys import gaussian, linear_gaussian

import vaebench
from vaebench.direction import Direction
from vaebench.encoders.base import Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.gradients import GradientEstimator
from vaebench.images import checked_images
from vaebench.likelihoods import (
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
    LogisticLikelihood,
    LogisticMixtureLikelihood,
)
from vaebench.model import GenerativeModel
from vaebench.nets.dense import BernoulliLikelihood, Likelihood
from vaebench.nets.networks import Networks
from vaebench.objective import Objective
from vaebench.priors import StandardNormalPrior

PIXELS, D = 75, 2
LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": BernoulliLikelihood,
    "continuous": ContinuousBernoulliLikelihood,
    "gaussian": GaussianLikelihood,
    "logistic": LogisticLikelihood,
    "mixture": lambda: LogisticMixtureLikelihood(components=2),
    "categorical": CategoricalLikelihood,
}


def model_of(likelihood: Likelihood | None = None) -> GenerativeModel:
    decoder = Networks("mlp", [4], "tanh").decoder(D, PIXELS, likelihood or BernoulliLikelihood(), None)
    return GenerativeModel(StandardNormalPrior(D), decoder)


def encoder_of() -> GaussianEncoder:
    return GaussianEncoder(Networks("mlp", [4], "tanh").gaussian(PIXELS, D))


def each_function(model: GenerativeModel, encoder: Encoder) -> list[Callable[[Tensor], object]]:
    return [
        lambda x: vaebench.log_likelihood(model, encoder, x, k=3, seed=0),
        lambda x: vaebench.evidence(model, encoder, x, 2),
        lambda x: vaebench.ais(model, x, temperatures=1, chains=2, seed=0, strict=False),
    ]


def bits(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.5).float()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (bits(3, PIXELS) * 3.24 - 0.42, r"x must be in \[0, 1\], but .* \[-0.42, 2.82\]: undo Normalize"),
        (bits(3, PIXELS) * 255, r"\[0, 255\]: divide by 255"),
        (bits(3, PIXELS) / 0.0, "must be finite, but 225 of its 225 pixels"),
        ((bits(3, PIXELS) * 255).byte(), r"got torch.uint8: give bytes as x.float\(\) / 255"),
        (bits(3, PIXELS).double(), r"x is torch.float64 and the model is torch.float32: use x.to\(torch.float32\)"),
        (bits(3, PIXELS).to("meta"), r"x is on meta and the model is on cpu: use x.to\('cpu'\)"),
        (bits(PIXELS), r"use x.unsqueeze\(0\)"),
        (bits(0, PIXELS), "got no images"),
        (bits(3, PIXELS + 1), r"must have the shape \(B, 75\), or .* got \(3, 76\)"),
        (bits(3, 5, 5, 3), r"use x.movedim\(-1, 1\)"),
        (numpy.zeros((3, PIXELS)), "must be a tensor of images, .* got ndarray"),
    ],
)
def test_unusable_images_are_refused_by_every_function(x: Tensor, message: str):
    for function in each_function(model_of(), encoder_of()):
        with pytest.raises(ValueError, match=message):
            function(x)


def test_an_encoder_elsewhere_is_named():
    with pytest.raises(ValueError, match=r"x is torch.float32 and the encoder is torch.float64"):
        vaebench.evidence(model_of(), encoder_of().double(), bits(3, PIXELS), 2)


@pytest.mark.parametrize("shape", [(3, 15, 5), (3, 1, 25, 3), (3, 3, 5, 5), (3, 25, 3, 1)])
def test_images_with_axes_are_the_same_images(shape: tuple[int, ...]):
    x = bits(3, PIXELS)
    model, encoder = model_of(), encoder_of()
    for function in each_function(model, encoder)[::2]:
        flat, whole = function(x), function(x.view(shape))
        assert torch.allclose(torch.stack(list(flat)), torch.stack(list(whole)), equal_nan=True)  # pyright: ignore


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_range_is_that_of_the_likelihood(name: str):
    model = model_of(LIKELIHOODS[name]())
    grey = torch.randint(0, 256, (5, PIXELS)) / 255
    assert checked_images(model, None, grey) is not None
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        checked_images(model, None, 2 * grey + 0.1)
    between = (grey * 254 + 0.5) / 255
    if name in ("bernoulli", "continuous"):
        checked_images(model, None, between)
    else:
        with pytest.raises(ValueError, match="must hold bytes / 255"):
            checked_images(model, None, between)


def test_a_density_on_the_line_takes_every_finite_number():
    x = 100 * torch.randn(4, 3)
    assert torch.equal(checked_images(linear_gaussian(), gaussian(), x), x)
    model = model_of(GaussianLikelihood(discretized=False))
    assert checked_images(model, None, torch.full((2, PIXELS), -3.0)).shape == (2, PIXELS)


def test_the_check_draws_no_random_numbers():
    model, x, state = model_of(), bits(2, PIXELS), torch.get_rng_state()
    checked_images(model, None, x)
    assert torch.equal(torch.get_rng_state(), state)


class Estimated(Encoder):
    """A learned ratio: an ESTIMATE."""

    direction = Direction.ESTIMATE

    def __init__(self) -> None:
        super().__init__()
        self.inner = learned()

    def encode(self, x: Tensor) -> object:
        return self.inner.encode(x)

    def sample(self, encoded: object, k: int, **options: object):
        return self.inner.sample(encoded, k, **options)  # pyright: ignore


def test_an_estimate_is_refused_unless_it_is_asked_for():
    model, x = linear_gaussian(), torch.randn(2, 3)
    for function in (vaebench.log_likelihood, vaebench.evidence):
        with pytest.raises(ValueError, match=r"learned estimate.*encoder.proposal\(model\).*or estimate=True"):
            function(model, Estimated(), x, 2)
        function(model, Estimated(), x, 2, estimate=True)


class Counting(nn.Module):
    """A decoder that counts its calls."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder, self.calls = decoder, 0

    def forward(self, z: Tensor) -> object:
        self.calls += 1
        return self.decoder(z)


def test_an_objective_does_not_check():
    """Control: the public function decodes one more latent."""
    model = model_of()
    model.decoder = counter = Counting(model.decoder)
    bound = Objective(vaebench.bounds.elbo, GradientEstimator.REPARAM)
    bound(model, encoder_of(), bits(2, PIXELS) * 255, 1)
    assert counter.calls == 1
    vaebench.evidence(model, encoder_of(), bits(2, PIXELS), 1)
    assert counter.calls == 3
