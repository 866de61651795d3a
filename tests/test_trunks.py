"""Gated and convolutional networks: what they compute, for any leading axes, and that nothing crosses a batch."""

import math

import pytest
import torch
from torch import Tensor, nn

from vaebench import bounds
from vaebench.encoders.base import BuildContext, Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.likelihoods import LogisticMixtureLikelihood
from vaebench.model import GenerativeModel
from vaebench.nets.convolutional import GatedConvDecoder, GatedConvTrunk, ResNetDecoder, ResNetTrunk
from vaebench.nets.dense import BernoulliLikelihood, ConvolutionalDecoder, Trunk
from vaebench.nets.gated import GatedDense, GatedMLP
from vaebench.nets.networks import TRUNKS, Networks
from vaebench.objective import Objective
from vaebench.priors import StandardNormalPrior

pytestmark = pytest.mark.usefixtures("float64")

SIDE, Z = 8, 3
X = SIDE * SIDE
HIDDEN = [2, 3, 5]
SHAPE = (1, SIDE, SIDE)
BERNOULLI = BernoulliLikelihood()
READERS = {"gated": GatedMLP, "gated_conv": GatedConvTrunk, "resnet": ResNetTrunk}
DECODERS = [GatedConvDecoder, ResNetDecoder]
LEADING = [(), (4,), (2, 4), (3, 2, 4)]


def images(*leading: int) -> Tensor:
    return torch.bernoulli(torch.full((*leading, X), 0.5))


# What they compute ----------------------------------------------------------------------------------------


def test_a_gated_layer_is_its_formula():
    layer, value = GatedDense(4, 3), torch.randn(2, 5, 4)
    nn.init.normal_(layer.gate.bias)
    opened = value @ layer.value.weight.T + layer.value.bias
    gate = torch.sigmoid(value @ layer.gate.weight.T + layer.gate.bias)
    assert (layer(value) - opened * gate).abs().max() < 1e-14


@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("reader", READERS)
def test_readers_take_any_leading_axes(reader: str, leading: tuple[int, ...]):
    trunk, x = READERS[reader](X if reader == "gated" else SHAPE, HIDDEN, "silu"), images(*leading)
    features = trunk(x)
    assert features.shape == (*leading, trunk.width) == (*leading, 5)
    one_by_one = torch.stack([trunk(row) for row in x.view(-1, X)])
    assert (features.view(-1, 5) - one_by_one).abs().max() < 1e-13


@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("painter", DECODERS)
def test_decoders_take_any_leading_axes(painter: type[nn.Module], leading: tuple[int, ...]):
    network, z = painter(Z, SHAPE, 1, HIDDEN, "silu"), torch.randn(*leading, Z)
    pixels = network(z)
    assert pixels.shape == (*leading, X)
    one_by_one = torch.stack([network(row) for row in z.view(-1, Z)])
    assert (pixels.view(-1, X) - one_by_one).abs().max() < 1e-13


@pytest.mark.parametrize("hidden", [[5], [2, 5], HIDDEN, [2, 2, 2, 5]], ids=str)
@pytest.mark.parametrize("side", [7, 8, 28])
@pytest.mark.parametrize("kind", ["gated_conv", "resnet"])
def test_any_sides_and_any_number_of_stages(kind: str, side: int, hidden: list[int]):
    """From images without a single convolution up to three halvings of odd sides."""
    networks = Networks(kind, hidden, "silu")
    x, z = torch.rand(2, side * side), torch.randn(2, Z)
    assert networks.reader(side * side)(x).shape == (2, 5)
    assert networks.decoder(Z, side * side, BERNOULLI, None)(z).mean.shape == (2, side * side)


@pytest.mark.parametrize("kind", TRUNKS)
def test_colour_images_of_any_height_and_width(kind: str):
    """Also with several outputs for each pixel and channel."""
    networks = Networks(kind, HIDDEN, "silu", (3, 6, 11))
    x, likelihood = torch.rand(2, 3 * 6 * 11), LogisticMixtureLikelihood(components=2)
    assert networks.reader(x.shape[1])(x).shape == (2, 5)
    decoder = networks.decoder(Z, x.shape[1], likelihood, x.mean(0))
    pixels = decoder(torch.randn(4, 2, Z))
    assert pixels.mean.shape == (4, 2, 3 * 6 * 11)
    assert pixels.log_prob(x).shape == (4, 2)


@pytest.mark.parametrize("kind", ["gated_conv", "resnet"])
def test_a_convolution_sees_each_channel_at_its_place(kind: str):
    """A change of one corner of one channel reaches the outputs of this corner first."""
    trunk = Networks(kind, [2, 5], "silu", (3, 8, 12)).reader(3 * 8 * 12)
    seen: list[Tensor] = []
    trunk.layers[0].register_forward_hook(  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
        lambda module, inputs, output: seen.append(output)
    )
    image = torch.zeros(3, 8, 12)
    trunk(image.view(1, -1))
    image[2, 0, 11] = 1
    trunk(image.view(1, -1))
    change = (seen[1] - seen[0]).abs().sum((0, 1))
    assert change[0, -1] > 0
    assert change[:, : change.shape[1] // 2].max() == 0


def weights(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for key, p in network.named_parameters() if key.endswith("weight")]


def test_the_gated_networks_are_those_of_the_sylvester_paper():
    """5 x 5 at 28, 14 and 7 pixels a side, both halves of each gated layer in one kernel."""
    reader = GatedConvTrunk((1, 28, 28), [32, 64, 256], "silu")
    painter = GatedConvDecoder(64, (1, 28, 28), 1, [32, 64, 256], "silu")
    kernels = [(64, 1), (64, 32), (128, 32), (128, 64), (128, 64)]
    assert weights(reader) == [*((*pair, 5, 5) for pair in kernels), (2 * 256, 64 * 7 * 7)]
    # Of a transposed convolution, the inputs come first.
    kernels = [(128, 64), (64, 64), (64, 32), (32, 64), (64, 32)]
    assert weights(painter) == [(2 * 64 * 7 * 7, 64), *((*pair, 5, 5) for pair in kernels), (1, 32, 1, 1)]


def test_a_decoder_keeps_left_and_right():
    """Maps keep the order of rows and columns: a corner of the map is a corner of the image."""
    network = GatedConvDecoder(Z, (1, 28, 28), 1, [2, 5], "silu")
    blank = torch.zeros(1, 2, 14, 14)
    touched = blank.clone()
    touched[0, :, 0, -1] = 1
    change = (network.brush(network.layers(touched)) - network.brush(network.layers(blank))).view(28, 28).abs()
    assert change[0, -1] > 0
    assert change[:, :10].max() == change[18:].max() == 0


@pytest.mark.parametrize("kind", ["gated_conv", "resnet"])
def test_a_decoder_starts_at_the_mean_image(kind: str):
    mean = torch.rand(X)
    head = Networks(kind, HIDDEN, "silu").decoder(Z, X, BERNOULLI, mean)
    assert isinstance(head, ConvolutionalDecoder)
    plain = Networks(kind, HIDDEN, "silu").decoder(Z, X, BERNOULLI, None)
    assert isinstance(plain, ConvolutionalDecoder)
    assert plain.bias.abs().max() == 0
    brush = head.painter.brush
    with torch.no_grad():
        for parameter in brush.parameters():  # pyright: ignore[reportAttributeAccessIssue]
            parameter.zero_()
    assert (head(torch.randn(2, Z)).mean - mean.clamp(1e-3, 1 - 1e-3)).abs().max() < 1e-12


# Batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRUNKS)
def test_no_network_looks_across_the_batch(kind: str):
    """Training and evaluation are the same function, and an image's numbers depend on no other image."""
    networks = Networks(kind, HIDDEN, "silu")
    for network, value in (
        (networks.reader(X), images(6)),
        (networks.decoder(Z, X, BERNOULLI, None), torch.randn(6, Z)),
    ):
        assert not [m for m in network.modules() if "Norm" in type(m).__name__ or "Dropout" in type(m).__name__]
        both = [out if isinstance(out, Tensor) else out.logits for out in (network(value), network.eval()(value))]
        assert torch.equal(*both)
        other = value.clone()
        other[3:] = 1 - other[3:]
        changed = network(other)
        changed = changed if isinstance(changed, Tensor) else changed.logits
        assert (changed[:3] - both[0][:3]).abs().max() < 1e-13
        assert (changed[3:] - both[0][3:]).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["gated_conv", "resnet"])
def test_many_rows_without_gradient_are_taken_in_parts(kind: str):
    networks = Networks(kind, [2, 3], "silu")
    head, z = networks.decoder(Z, X, BERNOULLI, None), torch.randn(3, 250, Z)
    whole = head(z).logits
    rows: list[int] = []
    assert isinstance(head, ConvolutionalDecoder)
    head.painter.brush.register_forward_hook(  # pyright: ignore[reportAttributeAccessIssue]
        lambda module, inputs, output: rows.append(len(inputs[0]))
    )
    with torch.no_grad():
        parts = head(z).logits
    assert rows == [250, 250, 250]
    assert (whole - parts).abs().max() < 1e-13


# Encoders and decoders made of them -----------------------------------------------------------------------


def model_of(networks: Networks) -> GenerativeModel:
    return GenerativeModel(StandardNormalPrior(Z), networks.decoder(Z, X, BERNOULLI, None))


def encoders(networks: Networks) -> list[Encoder]:
    context = BuildContext(networks, X, Z, model_of(networks))
    return [GaussianEncoder.build(context), HierarchicalEncoder.build(context, psi_dim=2, learned_reverse=True)]


@pytest.mark.parametrize("kind", TRUNKS)
def test_every_parameter_gets_a_gradient(kind: str):
    networks = Networks(kind, HIDDEN, "silu")
    for encoder in encoders(networks):
        model = model_of(networks)
        Objective(bounds.iwae)(model, encoder, images(5), 4, inner_k=2)[0].sum().backward()
        for module in (model, encoder):
            for key, parameter in module.named_parameters():
                assert parameter.grad is not None, key
                assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(("k", "inner_k"), [(1, 0), (4, 3)])
def test_the_convolutions_run_once_per_image(kind: str, k: int, inner_k: int):
    """However many psi and z are drawn: they enter in the dense layers after them."""
    _, encoder = encoders(Networks(kind, HIDDEN, "silu"))
    rows = []
    for module in encoder.modules():
        if isinstance(module, Trunk) and type(module) is READERS[kind]:
            module.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape))
    encoder.draw(images(5), k, inner_k=inner_k)
    # q(psi|x), q(z|psi,x) and tau(psi|z,x) have a trunk each.
    assert rows == [(5, X)] * 3


def test_a_conditional_network_depends_on_both_its_inputs():
    for kind in TRUNKS:
        network = Networks(kind, HIDDEN, "silu").conditional(X, 2, Z)
        u, x = torch.randn(3, 5, 2), images(5)
        mean = network(u, network.condition(x)).mean
        assert mean.shape == (3, 5, Z)
        assert (network(u, network.condition(1 - x)).mean - mean).abs().max() > 1e-6
        assert (network(u + 1, network.condition(x)).mean - mean).abs().max() > 1e-6


@pytest.mark.parametrize("kind", TRUNKS)
def test_likelihoods_are_float32_under_bf16(kind: str):
    torch.set_default_dtype(torch.float32)
    networks = Networks(kind, HIDDEN, "silu")
    model, encoder = model_of(networks), encoders(networks)[0]
    x = images(4)
    exact = model.log_joint(x, torch.ones(2, 4, Z)).log_likelihood
    with torch.autocast("cpu", torch.bfloat16):
        found = model.log_joint(x, torch.ones(2, 4, Z)).log_likelihood
        drawn = encoder.draw(x, 2)
    assert found.dtype == drawn.z.dtype == drawn.log_q.dtype == torch.float32
    assert (found - exact).abs().max() < 0.02 * X * math.log(2)


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gated_conv", "resnet"])
def test_what_cannot_be_convolved_is_refused(kind: str):
    with pytest.raises(ValueError, match="square images, got 65 pixels"):
        Networks(kind, HIDDEN, "silu").reader(X + 1)
    with pytest.raises(ValueError, match="hidden must have fewer stages for images of 8x8 pixels"):
        Networks(kind, [2] * 6, "silu").reader(X)
    with pytest.raises(ValueError, match=r"images of shape \(3, 8, 8\), got 64 pixels"):
        Networks(kind, HIDDEN, "silu", (3, 8, 8)).reader(X)


def test_an_unknown_trunk_is_refused():
    with pytest.raises(ValueError, match=r"^trunk must be one of .*, got 'resnt' .did you mean 'resnet'"):
        Networks("resnt", HIDDEN, "silu")
