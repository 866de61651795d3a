"""Two stochastic layers as one latent z = (z1, z2): exact answers for linear-Gaussian layers, and both encoders."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from toys import AffineGaussian, Mean

from vaebench import bounds, experiment
from vaebench.config import compose
from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import BuildContext, Draw, Encoder, frozen
from vaebench.encoders.two_layers import LadderEncoder, Layers, TwoLayerEncoder, gaussian_product
from vaebench.errors import UserError
from vaebench.estimators.ais import has_density
from vaebench.estimators.importance import log_likelihood
from vaebench.experiment import Modules
from vaebench.gradients import GradientEstimator, rescale_paths
from vaebench.model import GenerativeModel
from vaebench.nets.dense import MLP, BernoulliLikelihood, DenseDecoder, NormalLikelihood
from vaebench.nets.networks import Networks
from vaebench.objective import Objective, evidence, weigh
from vaebench.priors import ChainedPrior, PriorContext, StandardNormalPrior

pytestmark = pytest.mark.usefixtures("float64")

X, D1, D2 = 3, 2, 1
REPARAM, STL, DREG = GradientEstimator.REPARAM, GradientEstimator.STL, GradientEstimator.DREG
# Of p(z1|z2) and of p(x|z1).
SLOPE, OFFSET, SPREAD = map(torch.DoubleTensor, ([[0.7], [-0.4]], [0.1, 0.2], [0.8, 1.1]))
# The columns are orthogonal, so that what x says of z1 factorises.
WEIGHT, BIAS = map(torch.DoubleTensor, ([[0.6, 0.5], [0.6, -0.25], [0.3, -0.5]], [0.1, -0.2, 0.3]))
NOISE = 0.8


def model() -> GenerativeModel:
    """Return z2 ~ N(0, 1), z1 ~ N(slope z2 + offset, spread^2), x ~ N(W z1 + b, noise^2)."""
    top_down = AffineGaussian(SLOPE, OFFSET, SPREAD)
    decoder = NormalLikelihood(WEIGHT, BIAS, NOISE)
    return GenerativeModel(ChainedPrior(top_down, (D1, D2)), decoder, decoder_inputs=D1)


def joint() -> tuple[Tensor, Tensor]:
    """Return the mean and the covariance of (z1, z2, x) under the model, by its definition."""
    slope, spread, weight = SLOPE, SPREAD.square().diag(), WEIGHT
    of_z1 = slope @ slope.T + spread
    of_z = torch.cat([torch.cat([of_z1, slope], 1), torch.cat([slope.T, torch.eye(1)], 1)])
    to_x = torch.cat([weight, torch.zeros(X, D2)], 1)
    covariance = torch.cat(
        [
            torch.cat([of_z, of_z @ to_x.T], 1),
            torch.cat([to_x @ of_z, to_x @ of_z @ to_x.T + NOISE**2 * torch.eye(X)], 1),
        ]
    )
    mean_z = torch.cat([OFFSET, torch.zeros(D2)])
    return torch.cat([mean_z, to_x @ mean_z + BIAS]), covariance


def log_evidence(x: Tensor) -> Tensor:
    mean, covariance = joint()
    return MultivariateNormal(mean[-X:], covariance[-X:, -X:]).log_prob(x)


def given(target: slice, condition: slice) -> AffineGaussian:
    """Return the model's distribution of some coordinates given others; it has to be diagonal."""
    mean, covariance = joint()
    gain = covariance[target, condition] @ torch.linalg.inv(covariance[condition, condition])
    rest = covariance[target, target] - gain @ covariance[condition, target]
    assert torch.allclose(rest, rest.diagonal().diag(), atol=1e-9)
    return AffineGaussian(gain, mean[target] - gain @ mean[condition], rest.diagonal().sqrt())


Z1, Z2, OBSERVED = slice(0, D1), slice(D1, D1 + D2), slice(D1 + D2, None)


class Affine(nn.Module):
    """Bottom-up work without networks."""

    def __init__(self, lower: AffineGaussian, upper: AffineGaussian) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper

    def forward(self, x: Tensor) -> Layers:
        return Layers(self.lower(x), self.upper(x))


def exact_ladder(of: GenerativeModel) -> LadderEncoder:
    """Return the posterior: p(z2|x), and the likelihood of z1 as the factor that p(z1|z2) is multiplied with."""
    squares = WEIGHT.square().sum(0)
    gain = WEIGHT.T / squares.unsqueeze(-1)
    likelihood = AffineGaussian(gain, -gain @ BIAS, NOISE / squares.sqrt())
    prior = of.latent_prior
    assert isinstance(prior, ChainedPrior)
    return LadderEncoder(Affine(likelihood, given(Z2, OBSERVED)), prior.conditional)


def rough_two_layer(of: GenerativeModel) -> TwoLayerEncoder:
    """Return q(z1|x) q(z2|z1) off the posterior, and wider."""
    del of
    gain = 0.4 * torch.randn(D1, X)
    lower = AffineGaussian(gain, torch.tensor([0.1, -0.1]), torch.tensor([1.0, 1.1]))
    return TwoLayerEncoder(lower, AffineGaussian(torch.tensor([[0.4, -0.3]]), torch.tensor([0.1]), torch.tensor([1.1])))


def steep_two_layer(of: GenerativeModel) -> TwoLayerEncoder:
    """Return one whose z2 follows z1 far too much, so that z1 moves the weights through z2 as well."""
    encoder = rough_two_layer(of)
    with torch.no_grad():
        encoder.upper.get_parameter("weight").mul_(-2.5)
    return encoder


def rough_ladder(of: GenerativeModel) -> LadderEncoder:
    """Return the ladder with factors off the posterior's, and wider."""
    encoder = exact_ladder(of)
    with torch.no_grad():
        for key, parameter in encoder.named_parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
            if key.endswith("log_scale"):
                parameter.add_(0.5)
    return encoder


ROUGH = [rough_two_layer, rough_ladder]
Maker = Callable[[GenerativeModel], Encoder]


# Exact answers --------------------------------------------------------------------------------------------


def test_the_prior_is_the_joint_gaussian():
    mean, covariance = joint()
    both = slice(0, D1 + D2)
    prior, z = model().prior(), torch.randn(5, 4, D1 + D2)
    assert (prior.log_prob(z) - MultivariateNormal(mean[both], covariance[both, both]).log_prob(z)).abs().max() < 1e-12
    draws = prior.sample((100_000,))
    assert (torch.cov(draws.T) - covariance[both, both]).abs().max() < 0.03


def test_the_decoder_sees_the_lower_layer_alone():
    toy, z = model(), torch.randn(5, 4, D1 + D2)
    other = z.clone()
    other[..., D1:] += 1
    assert torch.equal(toy.likelihood(z).mean, toy.likelihood(other).mean)
    assert (toy.likelihood(z).mean - (z[..., :D1] @ WEIGHT.T + BIAS)).abs().max() < 1e-12
    x, z = toy.simulate(6)
    assert (x.shape, z.shape) == ((6, X), (6, D1 + D2))


def test_the_exact_ladder_knows_the_evidence_from_every_draw():
    """q(z2|x) q(z1|z2,x) is the posterior, so that each weight is p(x)."""
    toy, x = model(), torch.randn(7, X)
    log_w = evidence(toy, exact_ladder(toy), x, 5).log_weights()
    assert (log_w - log_evidence(x)).abs().max() < 1e-12
    # Control: without the model's top-down part the combination is another.
    stranger = exact_ladder(model_with(0.5 * SLOPE))
    assert (evidence(toy, stranger, x, 5).log_weights() - log_evidence(x)).std() > 0.05


def model_with(slope: Tensor) -> GenerativeModel:
    other = model()
    prior = other.latent_prior
    assert isinstance(prior, ChainedPrior)
    with torch.no_grad():
        prior.conditional.weight.copy_(slope)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return other


def test_the_exact_bottom_up_encoder_knows_the_evidence_from_every_draw():
    """With p(z1|x) diagonal: the prior's layers independent of each other."""
    toy, weight, spread = model_with(torch.zeros(D1, D2)), WEIGHT, SPREAD
    precision = 1 / spread.square() + weight.square().sum(0) / NOISE**2
    gain = weight.T / NOISE**2 / precision.unsqueeze(-1)
    lower = AffineGaussian(gain, OFFSET / spread.square() / precision - gain @ BIAS, precision.rsqrt())
    upper = AffineGaussian(torch.zeros(D2, D1), torch.zeros(D2), torch.ones(D2))
    x = torch.randn(7, X)
    log_w = evidence(toy, TwoLayerEncoder(lower, upper), x, 5).log_weights()
    covariance = weight @ spread.square().diag() @ weight.T + NOISE**2 * torch.eye(X)
    truth = MultivariateNormal(weight @ OFFSET + BIAS, covariance).log_prob(x)
    assert (log_w - truth).abs().max() < 1e-12


def test_the_top_layer_is_exact_given_the_one_below():
    """p(z2|z1) does not depend on x: a bottom-up encoder with it loses nothing at the top."""
    toy, x = model(), torch.randn(7, X)
    lower = AffineGaussian(0.3 * torch.randn(D1, X), torch.zeros(D1), torch.ones(D1))
    drawn = TwoLayerEncoder(lower, given(Z2, Z1)).draw(x, 5)
    z1, z2 = drawn.z.split([D1, D2], -1)
    upper = drawn.log_q - lower(x).log_prob(z1)
    # p(z2|z1) = p(z1, z2) / p(z1).
    mean, covariance = joint()
    marginal = MultivariateNormal(mean[Z1], covariance[Z1, Z1]).log_prob(z1)
    assert (upper - (toy.prior().log_prob(drawn.z) - marginal)).abs().max() < 1e-12
    assert z2.shape == (5, 7, D2)


def test_a_combination_is_the_normalised_product():
    first, second = (DiagonalNormal(torch.randn(4, 2), torch.rand(4, 2) + 0.1) for _ in range(2))
    product, line = gaussian_product(first, second), torch.linspace(-20, 20, 8001).view(-1, 1, 1).expand(-1, 4, 2)
    density = torch.stack([(-0.5 * ((line - n.mean) / n.scale).square()).exp() for n in (first, second)]).prod(0)
    density = density / density.sum(0) / 0.005
    found = (-0.5 * ((line - product.mean) / product.scale).square()).exp() / product.scale / (2 * torch.pi) ** 0.5
    assert (density - found).abs().max() < 1e-9


def test_a_combination_of_the_extremes_is_finite():
    tiny, huge = torch.tensor([1e-6]), torch.tensor([1e6])
    for a, b in ((tiny, huge), (tiny, tiny), (huge, huge)):
        product = gaussian_product(
            DiagonalNormal(torch.ones(1), a.float()), DiagonalNormal(torch.zeros(1, dtype=torch.float32), b.float())
        )
        assert product.mean.isfinite().all()
        assert (product.scale > 0).all()


# Weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ROUGH)
def test_the_mean_weight_is_the_evidence(make: Maker):
    toy = model()
    encoder, x = make(toy), torch.tensor([0.6, 0.2, -0.4]).expand(40_000, X)
    with torch.no_grad():
        mean = Mean.of((evidence(toy, encoder, x, 2).log_weights() - log_evidence(x)).exp().mean(0))
    assert mean.stderr < 0.02
    assert abs(mean.errors_above(1)) < 4.5
    streamed = Mean.of((log_likelihood(toy, encoder, x, k=3, chunk=2, seed=3) - log_evidence(x)).exp())
    assert abs(streamed.errors_above(1)) < 4.5


@pytest.mark.parametrize("make", ROUGH)
def test_seeded_estimates_do_not_depend_on_chunks(make: Maker):
    toy = model()
    encoder, x = make(toy), torch.randn(4, X)
    whole = log_likelihood(toy, encoder, x, k=20, seed=1)
    parts = log_likelihood(toy, encoder, x, k=20, chunk=3, seed=1)
    assert (whole - parts).abs().max() < 1e-12


@pytest.mark.parametrize("make", ROUGH)
def test_the_density_is_that_of_the_draws_and_integrates_to_one(make: Maker):
    """Annealed importance sampling may start from it."""
    encoder, x = make(model()), torch.randn(1, X)
    posterior = encoder.encode(x)
    drawn = encoder.sample(posterior, 6)
    assert (posterior.log_prob(drawn.z) - drawn.log_q).abs().max() < 1e-12
    line = torch.linspace(-9, 9, 61)
    points = torch.stack([part.flatten() for part in torch.meshgrid(line, line, line, indexing="ij")], -1)
    with torch.no_grad():
        total = posterior.log_prob(points.unsqueeze(1)).exp().sum() * 0.3**3
    assert total.item() == pytest.approx(1, abs=1e-4)
    assert has_density(encoder, posterior)


@pytest.mark.parametrize("make", ROUGH)
def test_all_estimators_draw_and_score_alike(make: Maker):
    """Only gradients differ: with path_only the numbers are the same."""
    toy = model()
    encoder, x, draws = make(toy), torch.randn(4, X), []
    for path_only in (False, True):
        torch.manual_seed(1)
        draws.append(encoder.draw(x, 3, path_only=path_only))
    assert torch.equal(draws[0].z, draws[1].z)
    assert (draws[0].log_q - draws[1].log_q).abs().max() < 1e-12


# Gradients ------------------------------------------------------------------------------------------------


def gradients(
    toy: GenerativeModel, encoder: Encoder, how: GradientEstimator | Callable[[Tensor, float], Tensor]
) -> dict[str, Tensor]:
    """Return independent samples of the gradient of the bound in each parameter, (80, P); the same noise every time.

    ``how`` is an estimator, or a function of (x, beta) that makes the bound itself.
    """
    torch.manual_seed(3)
    modules = Modules(toy, encoder)
    x, found = torch.tensor([0.6, 0.2, -0.4]).expand(300, X), []
    for _ in range(80):
        modules.zero_grad()
        if isinstance(how, GradientEstimator):
            value = Objective(bounds.iwae, how)(toy, encoder, x, 4, beta=0.7)[0]
        else:
            value = how(x, 0.7)
        value.mean().backward()
        found.append({key: p.grad.flatten().clone() for key, p in modules.named_parameters() if p.grad is not None})
    return {key: torch.stack([sample[key] for sample in found]) for key in found[0]}


def largest_error(found: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest distance between two means, in standard errors of the paired difference."""
    assert found.keys() == other.keys()
    columns = [column for key in found for column in (found[key] - other[key]).T]
    return max(abs(Mean.of(column).errors_above(0)) for column in columns)


@pytest.mark.parametrize("make", ROUGH)
def test_dreg_agrees_with_reparam_in_every_parameter(make: Maker):
    """In the ladder, also in those of p(z1|z2), which the encoder shares with the model."""
    toy = model()
    encoder = make(toy)
    reparam = gradients(toy, encoder, REPARAM)
    assert largest_error(gradients(toy, encoder, DREG), reparam) < 4.5
    # Control: STL is biased for several samples.
    assert largest_error(gradients(toy, encoder, STL), reparam) > 8


def hooked(toy: GenerativeModel, encoder: TwoLayerEncoder, wrong: str) -> dict[str, Tensor]:
    """Return samples of a gradient with hooks that look right; on the draws themselves, or on one layer alone."""

    def objective(x: Tensor, beta: float) -> Tensor:
        context = encoder.encode(x)
        z1 = context.lower.rsample((4,))
        z2 = encoder.upper(z1).rsample()
        # With views, a hook scales what the log weights send back; without, also what z2 sends to z1.
        paths = (z1, z2) if wrong == "no views" else (z1.view_as(z1), z2.view_as(z2))
        constant = DiagonalNormal(context.lower.mean.detach(), context.lower.scale.detach())
        log_q = constant.log_prob(paths[0]) + frozen(encoder.upper)(paths[0]).log_prob(paths[1])
        log_w = weigh(toy, x, Draw(torch.cat(paths, -1), log_q)).log_weights(beta)
        rescale_paths(paths[:1] if wrong == "one layer" else paths, log_w, bounds.iwae, beta)
        return bounds.iwae(log_w)

    return gradients(toy, encoder, objective)


def test_control_the_hooks_of_this_file_are_those_of_the_encoder():
    toy = model()
    encoder = steep_two_layer(toy)
    by_hand, found = hooked(toy, encoder, ""), gradients(toy, encoder, DREG)
    assert all((by_hand[key] - found[key]).abs().max() < 1e-12 for key in found)


@pytest.mark.parametrize("wrong", ["no views", "one layer"])
def test_control_other_hooks_are_biased(wrong: str):
    toy = model()
    encoder = steep_two_layer(toy)
    reparam = gradients(toy, encoder, REPARAM)
    assert largest_error(gradients(toy, encoder, DREG), reparam) < 4.5
    assert largest_error(hooked(toy, encoder, wrong), reparam) > 8


def test_at_the_optimum_path_gradients_are_zero_for_every_draw():
    toy = model()
    encoder = exact_ladder(toy)
    for gradient in (STL, DREG, REPARAM):
        encoder.zero_grad()
        Objective(bounds.iwae, gradient)(toy, encoder, torch.randn(5, X), 4)[0].sum().backward()
        largest = max(p.grad.abs().max().item() for p in encoder.parameters() if p.grad is not None)
        assert largest > 0.1 if gradient is REPARAM else largest < 1e-11


def networked(kind: type[TwoLayerEncoder] | type[LadderEncoder]) -> tuple[GenerativeModel, Encoder]:
    networks = Networks("mlp", [5, 4], "tanh")
    prior = ChainedPrior.build(PriorContext(5, networks, torch.full((X,), 0.5)), top_dim=2, hidden=[4])
    toy = GenerativeModel(prior, DenseDecoder(MLP(3, [4], "tanh"), BernoulliLikelihood(), X), decoder_inputs=3)
    return toy, kind.build(BuildContext(networks, X, 5, toy), top_hidden=[4, 3])


@pytest.mark.parametrize("gradient", list(GradientEstimator))
@pytest.mark.parametrize("kind", [TwoLayerEncoder, LadderEncoder])
def test_every_parameter_gets_a_gradient(
    kind: type[TwoLayerEncoder] | type[LadderEncoder], gradient: GradientEstimator
):
    modules = Modules(*networked(kind))
    x = torch.bernoulli(torch.full((5, X), 0.5))
    Objective(bounds.iwae, gradient)(modules.model, modules.encoder, x, 4)[0].sum().backward()
    for key, parameter in modules.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("kind", [TwoLayerEncoder, LadderEncoder])
def test_they_are_saved_and_loaded(kind: type[TwoLayerEncoder] | type[LadderEncoder], tmp_path: Path):
    modules, other = Modules(*networked(kind)), Modules(*networked(kind))
    torch.save(modules.state_dict(), tmp_path / "weights")
    other.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    values = [log_likelihood(m.model, m.encoder, torch.ones(2, X), k=5, seed=1) for m in (modules, other)]
    assert torch.equal(*values)


def test_the_ladder_shares_the_models_network_and_does_not_own_it():
    toy, encoder = networked(LadderEncoder)
    own = {id(parameter) for parameter in encoder.parameters()}
    assert not own & {id(parameter) for parameter in toy.parameters()}
    z2 = torch.randn(4, 2)
    assert isinstance(encoder, LadderEncoder)
    assert isinstance(toy.latent_prior, ChainedPrior)
    assert torch.equal(encoder._top_down[0](z2).mean, toy.latent_prior.conditional(z2).mean)


# Configuration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["two_layer", "ladder"])
def test_the_encoder_brings_its_prior(encoder: str, default_data_dir: Path):
    torch.set_default_dtype(torch.float32)
    config = compose([f"encoder={encoder}", f"data_dir={default_data_dir}", "device=cpu"])
    assert config.prior.name == "chained"
    built = experiment.build(config)
    # A third of 32 coordinates are on top.
    assert (built.model.decoder_inputs, built.encoder.draw(torch.zeros(3, 784), 2).z.shape) == (22, (2, 3, 32))


@pytest.mark.parametrize("encoder", ["two_layer", "ladder"])
@pytest.mark.parametrize("prior", ["standard", "mixture", "vamp"])
def test_another_prior_is_refused(encoder: str, prior: str, default_data_dir: Path):
    torch.set_default_dtype(torch.float32)
    with pytest.raises(UserError, match="needs a prior of two layers: leave prior out") as caught:
        experiment.build([f"encoder={encoder}", f"prior={prior}", f"data_dir={default_data_dir}", "device=cpu"])
    assert "\n" not in str(caught.value)


def test_a_prior_of_one_layer_has_nothing_to_share():
    assert StandardNormalPrior(3).top_down() is None


def test_wrong_widths_are_refused(default_data_dir: Path):
    torch.set_default_dtype(torch.float32)
    with pytest.raises(UserError, match=r"encoder.top_hidden must be a list of widths"):
        experiment.build(["encoder=two_layer", "encoder.top_hidden=[0]", f"data_dir={default_data_dir}"])


def test_the_iwae_papers_model():
    config = compose(["experiment=iwae_paper/mnist_l2_k50"])
    assert (config.encoder.name, config.prior.name, config.decoder.name) == ("two_layer", "chained", "iwae")
    assert (config.latent_dim, config.prior.top_dim, config.k) == (150, None, 50)
    context = PriorContext(150, Networks("iwae", [200, 200], "tanh"), torch.full((784,), 0.5))
    assert ChainedPrior.build(context, top_dim=None, hidden=config.prior.hidden).layers == (100, 50)
    assert (config.decoder.hidden, config.encoder.top_hidden) == ((200, 200), [100, 100])
    assert (config.trainer.epochs, config.trainer.batch_size, config.dataset.split) == (3280, 20, "iwae")
