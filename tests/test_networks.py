"""Networks: what they compute, how often, and that nothing in them is left untrained."""

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import linear_gaussian

from vaebench import bounds
from vaebench.distributions import DiagonalNormal, positive
from vaebench.encoders.base import detached, frozen
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.model import GenerativeModel
from vaebench.nets.activations import ACTIVATIONS, elu, softplus, tanh
from vaebench.nets.dense import (
    LOG_SCALE_RANGE,
    MLP,
    SCALE_FLOOR,
    AdditiveGaussian,
    AdditiveMLP,
    BernoulliLikelihood,
    DenseDecoder,
    GaussianHead,
    NormalLikelihood,
    TrunkGaussian,
    linear,
)
from vaebench.objective import Objective
from vaebench.priors import StandardNormalPrior

pytestmark = pytest.mark.usefixtures("float64")

X, Z, PSI = 6, 2, 3

Activation = Callable[[Tensor], Tensor]


def hierarchy(activation: str = "softplus", scale: str = "softplus") -> HierarchicalEncoder:
    return HierarchicalEncoder(
        TrunkGaussian(MLP(X, [5, 4], activation), PSI, scale),
        AdditiveGaussian(AdditiveMLP(X, PSI, [5, 4], activation), Z, scale),
        AdditiveGaussian(AdditiveMLP(X, Z, [5, 4], activation), PSI, scale),
    )


# Activations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 3e-7)], ids=str)
def test_softplus_is_torchs(dtype: torch.dtype, tolerance: float):
    value = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])]).to(dtype)
    # logaddexp(v, 0) is softplus to the last digit; F.softplus gives the argument itself from 20 on.
    error = (softplus(value) - torch.logaddexp(value, torch.zeros_like(value))).abs()
    assert (error <= tolerance * value.abs().clamp(min=1)).all()


OWN: dict[Activation, Activation] = {softplus: F.softplus, positive: F.softplus, elu: F.elu, tanh: torch.tanh}


@pytest.mark.parametrize("own", OWN, ids=lambda own: own.__name__)
def test_activations_differentiate_twice(own: Activation):
    value = torch.linspace(-4, 4, 8, requires_grad=True)
    assert torch.autograd.gradcheck(own, value)
    assert torch.autograd.gradgradcheck(own, value)
    (slope,) = torch.autograd.grad(own(value).sum(), value)
    (torchs,) = torch.autograd.grad(OWN[own](value).sum(), value)
    assert (slope - torchs).abs().max() < 1e-15


@pytest.mark.parametrize("own", OWN, ids=lambda own: own.__name__)
def test_activations_leave_their_input_alone(own: Activation):
    value = torch.randn(5)
    kept = value.clone()
    own(value)
    assert torch.equal(value, kept)


@pytest.mark.parametrize("own", OWN, ids=lambda own: own.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_activations_are_torchs(own: Activation, dtype: torch.dtype):
    """bf16 is computed in float32 and rounded once, so that it is off by half a step of bf16."""
    edges = torch.tensor([-math.inf, -1e4, -100.0, -0.0, 0.0, 100.0, 1e4, math.inf, math.nan])
    value = torch.cat([torch.linspace(-30, 30, 4001), edges]).to(dtype)
    result = own(value)
    expected = OWN[own](value.double())
    size = torch.finfo(dtype).eps * expected.abs().clamp(min=1)
    if dtype is torch.float64:
        size = size.clamp(min=3e-9)  # torch's softplus is the argument itself from 20 on
    assert result.dtype == dtype
    assert torch.equal(result.isnan(), expected.isnan())
    right = (result.double() - expected).abs() <= 2 * size
    assert (right | (result == expected) | expected.isnan()).all()


SCALES = torch.cat([torch.linspace(-87, 20, 200_001), torch.logspace(1, 4, 1001), -torch.logspace(-8, 1.9, 10_001)])


def test_positive_is_right_in_relative_terms_from_1e38th_to_1e4():
    """In float32 against float64; the softplus of activations, right in absolute terms, is not (negative control)."""
    value = SCALES.float()
    wide = value.double()
    expected = torch.where(wide > 40, wide, wide.exp().log1p())
    assert expected.min() < 2e-38
    assert expected.max() == 1e4

    def error(result: Tensor) -> float:
        return ((result.double() - expected) / expected).abs().max().item()

    assert error(positive(value)) < 2e-7
    assert error(softplus(value)) > 0.5


def test_positive_is_right_in_relative_terms_in_float64():
    value = numpy.asarray(SCALES.double().numpy(), dtype=numpy.longdouble)
    expected = numpy.where(value > 60, value, numpy.log1p(numpy.exp(numpy.minimum(value, 60))))
    error = numpy.abs((positive(SCALES.double()).numpy() - expected) / expected).max()
    assert error < 5e-16


def test_positive_has_the_slope_of_softplus_where_it_is_tiny():
    value = SCALES.float().requires_grad_()
    (slope,) = torch.autograd.grad(positive(value).sum(), value)
    expected = SCALES.float().double().sigmoid()
    assert ((slope.double() - expected) / expected).abs().max() < 2e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("own", OWN, ids=lambda own: own.__name__)
def test_activations_are_torchs_on_a_gpu(own: Activation):
    value = SCALES.float().cuda()
    assert torch.equal(own(value), OWN[own](value))


# Trunks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_trunk_maps_the_last_axis(activation: str):
    trunk = MLP(X, [5, 4], activation)
    value = torch.randn(3, 2, X)
    first, second = (layer for layer in trunk.layers)
    act = ACTIVATIONS[activation]
    assert trunk.width == 4
    assert (trunk(value) - act(second(act(first(value))))).abs().max() < 1e-14
    assert (trunk(value)[1, 0] - trunk(value[1, 0])).abs().max() < 1e-14


def test_an_additive_trunk_is_dense_layers_over_both_inputs():
    """h_1 = act(W_1 x + U_1 u + b_1), h_2 = act(W_2 h_1 + U_2 u + b_2): a layer over [x, u], spelled apart."""
    network = AdditiveMLP(X, PSI, [5, 4], "tanh")
    u, x = torch.randn(7, 3, PSI), torch.randn(3, X)
    hidden = x.expand(7, 3, X)
    for layer, injection in zip(network.layers, network.injections, strict=True):
        assert isinstance(layer, nn.Linear)
        assert isinstance(injection, nn.Linear)
        joint = torch.cat([layer.weight, injection.weight], 1)
        hidden = torch.tanh(F.linear(torch.cat([hidden, u], -1), joint, layer.bias))
    assert (network(u, network.condition(x)) - hidden).abs().max() < 1e-14


@pytest.mark.parametrize(("k", "inner_k"), [(1, 0), (1, 5), (8, 0), (8, 5)])
def test_the_work_on_x_is_done_once_per_image(k: int, inner_k: int):
    """The product with x, the widest of all, sees B rows; only what depends on psi or z sees K (1 + L) B."""
    encoder, rows = hierarchy(), {"x": 0, "deeper": 0}
    for network in (encoder.conditional, encoder.reverse):
        assert isinstance(network, AdditiveGaussian)
        first, second = network.network.layers
        for key, layer in (("x", first), ("deeper", second)):
            layer.register_forward_hook(
                lambda _, inputs, __, key=key: rows.update({key: rows[key] + inputs[0].numel() // inputs[0].shape[-1]})
            )
    encoder.draw(torch.rand(4, X), k, inner_k=inner_k)
    assert rows["x"] == 2 * 4
    # q(z|psi) for psi_0 and psi_1..L, and tau once for each z.
    assert rows["deeper"] == 4 * k * (1 + inner_k) + 4 * k


def test_weights_start_glorot_uniform_and_biases_at_zero():
    layer = linear(300, 200)
    bound = math.sqrt(6 / 500)
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert layer.bias.abs().max() == 0
    assert linear(3, 2, bias=False).bias is None


# Heads ----------------------------------------------------------------------------------------------------


def test_scales_are_positive_whatever_the_features():
    for scale, low in (("softplus", SCALE_FLOOR), ("exp", math.exp(LOG_SCALE_RANGE[0]))):
        head = GaussianHead(2, 3, scale)
        for magnitude in (-1e5, 1e5):
            normal = head(torch.full((4, 2), magnitude))
            assert isinstance(normal, DiagonalNormal)
            assert normal.scale.min() >= low
            assert normal.scale.isfinite().all()
            assert normal.log_prob(normal.mean).isfinite().all()


@pytest.mark.parametrize("scale", ["softplus", "exp"])
def test_a_gaussian_head_splits_its_outputs(scale: str):
    head, features = GaussianHead(5, 3, scale), torch.randn(2, 5)
    mean, raw = head.affine(features).split(3, -1)
    normal = head(features)
    assert torch.equal(normal.mean, mean)
    expected = F.softplus(raw) + SCALE_FLOOR if scale == "softplus" else raw.exp()
    assert (normal.scale - expected).abs().max() < 1e-14


def test_a_decoder_starts_at_the_mean_image():
    """As in IWAE's code: the output bias is the logit of the training mean, kept within .001 and .999."""
    mean = torch.tensor([0.0, 0.2, 0.9, 1.0])
    head = DenseDecoder(MLP(Z, [5], "tanh"), BernoulliLikelihood(), 4, mean)
    with torch.no_grad():
        head.affine.weight.zero_()
    expected = torch.tensor([0.001, 0.2, 0.9, 0.999])
    assert (head(torch.randn(3, Z)).mean - expected).abs().max() < 1e-12
    assert DenseDecoder(MLP(Z, [5], "tanh"), BernoulliLikelihood(), 4).affine.bias.abs().max() == 0


def test_the_normal_likelihood_is_its_formula():
    weight, bias, z = torch.randn(X, Z), torch.randn(X), torch.randn(3, 5, Z)
    normal = NormalLikelihood(weight, bias, 0.3)(z)
    assert (normal.mean - (z @ weight.T + bias)).abs().max() < 1e-14
    assert torch.equal(normal.variance, torch.full((3, 5, X), 0.3).square())


# Gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale", ["softplus", "exp"])
def test_every_parameter_of_every_network_gets_a_gradient(activation: str, scale: str):
    decoder = DenseDecoder(MLP(Z, [5, 4], activation), BernoulliLikelihood(), X)
    model = GenerativeModel(StandardNormalPrior(Z), decoder)
    x = torch.bernoulli(torch.full((20, X), 0.5))
    for encoder in (hierarchy(activation, scale), GaussianEncoder(TrunkGaussian(MLP(X, [5], activation), Z, scale))):
        model.zero_grad()
        Objective(bounds.iwae)(model, encoder, x, 8, inner_k=2)[0].sum().backward()
        for module in (model, encoder):
            for key, parameter in module.named_parameters():
                assert parameter.grad is not None, key
                assert parameter.grad.abs().max() > 0, key


def test_frozen_modules_pass_gradients_to_their_inputs_alone():
    module, value = MLP(X, [5], "tanh"), torch.randn(3, X, requires_grad=True)
    kept = {key: parameter.clone() for key, parameter in module.named_parameters()}
    output = frozen(module)(value)
    assert torch.equal(output, module(value))
    output.sum().backward()
    assert value.grad is not None
    assert value.grad.abs().min() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(kept[key], parameter) for key, parameter in module.named_parameters())


def test_detaching_a_context_keeps_its_values():
    tensor = torch.randn(3, requires_grad=True)
    context = (tensor * 2, (tensor * 3, tensor * 4))
    first, (second, third) = detached(context)
    assert not any(part.requires_grad for part in (first, second, third))
    assert torch.equal(first, tensor * 2)
    assert torch.equal(third, tensor * 4)


# The model ------------------------------------------------------------------------------------------------


def test_the_log_joint_has_one_number_per_draw():
    model, x, z = linear_gaussian(), torch.randn(4, 3), torch.randn(5, 4, 2)
    joint = model.log_joint(x, z)
    assert joint.log_likelihood.shape == joint.log_prior.shape == (5, 4)
    mean: Tensor = z @ model.weight.T + model.bias
    likelihood = -0.5 * ((x - mean) / 0.8).square().sum(-1) - 3 * math.log(0.8) - 1.5 * math.log(2 * math.pi)
    prior = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    assert (joint.log_likelihood - likelihood).abs().max() < 1e-12
    assert (joint.log_prior - prior).abs().max() < 1e-12


def test_the_prior_follows_its_model_to_another_precision_and_is_not_saved():
    prior = StandardNormalPrior(3).to(torch.float32)
    assert prior().sample((2,)).dtype == torch.float32
    assert prior.state_dict() == {}
