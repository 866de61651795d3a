"""The families of p(x|z): exact sums and integrals, tails, gradients, draws; each with a control that must fail."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from made_runs import made_run, record
from PIL import Image
from torch import Tensor
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions import Distribution

from vaebench import draw, likelihoods
from vaebench.config import compose, from_yaml, identity
from vaebench.config.pictures import Sample
from vaebench.direction import Measure
from vaebench.errors import UserError
from vaebench.experiment import Experiment, build
from vaebench.likelihoods import (
    CategoricalLikelihood,
    CategoricalPixels,
    ContinuousBernoulli,
    ContinuousBernoulliLikelihood,
    DiscretizedLogistic,
    DiscretizedNormal,
    EightBitPixels,
    GaussianLikelihood,
    LogisticLikelihood,
    LogisticMixture,
    LogisticMixtureLikelihood,
)
from vaebench.nets.dense import BernoulliLikelihood, Likelihood
from vaebench.records import ResultRecord, RunFolder, format_line, read_manifest, read_results
from vaebench.records.pictures import Sheet, grid
from vaebench.registry import LIKELIHOODS
from vaebench.report.comparison import compare
from vaebench.report.runs import Run
from vaebench.train.session import train

BYTES = torch.arange(256, dtype=torch.float64) / 255
LOGITS = torch.tensor([-800.0, -30.0, -0.3, -0.021, -0.019, -1e-5, 0.0, 1e-9, 0.15, 0.25, 2.0, 40.0, 900.0])

FAMILIES: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": BernoulliLikelihood,
    "continuous_bernoulli": ContinuousBernoulliLikelihood,
    "gaussian": GaussianLikelihood,
    "gaussian_density": lambda: GaussianLikelihood(discretized=False),
    "logistic": LogisticLikelihood,
    "logistic_mixture": lambda: LogisticMixtureLikelihood(components=3),
    "categorical": CategoricalLikelihood,
}
EIGHT_BIT = [name for name, family in FAMILIES.items() if family().measure is Measure.EIGHT_BIT]
Binned = type[DiscretizedNormal] | type[DiscretizedLogistic]
BINNED: list[Binned] = [DiscretizedNormal, DiscretizedLogistic]


def places(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return locations inside, at the edges of and far outside [0, 1], with scales from 1/12 bins to 5,000 bins."""
    location = torch.tensor([-30.0, -1.0, 0.0, 0.003, 0.2, 0.5, 127 / 255, 0.999, 1.0, 1.7, 50.0], dtype=dtype)
    log_scale = torch.tensor([-9.0, -8.0, -6.0, -5.5, -4.0, -2.0, -0.7, 0.0, 1.5, 3.0], dtype=dtype)
    location, log_scale = torch.meshgrid(location, log_scale, indexing="ij")
    return location.flatten(), log_scale.flatten()


def outputs(family: Likelihood, pixels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(family.outputs * pixels, dtype=dtype)


def total(pixels: EightBitPixels) -> Tensor:
    """Return the sum of the probabilities of the 256 values of each pixel, (X,)."""
    return pixels.each_log_prob(BYTES.unsqueeze(-1).expand(256, *pixels.event_shape)).exp().sum(0)


# Sums and integrals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_the_256_probabilities_of_a_pixel_sum_to_one(name: str):
    family = FAMILIES[name]()
    distribution = family(3 * outputs(family, 50))
    assert isinstance(distribution, EightBitPixels)
    assert (total(distribution) - 1).abs().max() < 1e-10


@pytest.mark.parametrize("binned", BINNED)
def test_they_sum_to_one_at_any_location_and_scale(binned: Binned):
    assert (total(binned(*places())) - 1).abs().max() < 1e-10


@pytest.mark.parametrize("binned", BINNED)
def test_control_without_the_tails_the_sum_is_less(binned: Binned, monkeypatch: pytest.MonkeyPatch):
    """The first and the last bin as wide as the others: the density outside [0, 1] is lost."""
    monkeypatch.setattr(likelihoods, "_is_edge", lambda level: level < -1)
    logistic = likelihoods._log_logistic_bin
    monkeypatch.setattr(
        likelihoods,
        "_log_logistic_bin",
        lambda level, m, s: logistic(torch.full_like(level, 100), m - (level - 100) / 255, s),
    )
    assert total(binned(torch.tensor([0.1]).double(), torch.tensor([-1.0]).double())).item() < 0.9


def integral(distribution: Distribution, low: float, high: float) -> Tensor:
    """Return the integral of the density of each pixel by Gauss and Legendre's rule on 400 parts, (X,)."""
    nodes, weights = (torch.from_numpy(each) for each in numpy.polynomial.legendre.leggauss(12))
    edges = torch.linspace(low, high, 401, dtype=torch.float64)
    half = (edges[1:] - edges[:-1]) / 2
    x = (half[:, None] * (nodes + 1) + edges[:-1, None]).flatten()
    density = distribution.log_prob(x[:, None, None]).exp()
    return ((half[:, None] * weights).flatten()[:, None] * density).sum(0)


def test_the_continuous_bernoulli_integrates_to_one():
    distribution = ContinuousBernoulli(LOGITS.double().unsqueeze(-1))
    assert (integral(distribution, 0, 1) - 1).abs().max() < 1e-10


def test_control_bernoullis_own_formula_does_not():
    formula = lambda x: x * 2.0 - math.log1p(math.exp(2.0))  # noqa: E731
    distribution = ContinuousBernoulli(torch.full((1, 1), 2.0).double())
    distribution.log_prob = lambda value: formula(value).squeeze(-1)  # pyright: ignore[reportAttributeAccessIssue]
    assert integral(distribution, 0, 1).item() < 0.9


def test_the_gaussian_density_integrates_to_one():
    family = GaussianLikelihood(discretized=False)
    distribution = family(torch.cat([torch.randn(20), torch.linspace(-2.5, 0.5, 20)]).double().unflatten(0, (2, 20)).mT)
    assert (integral(distribution, -20, 21) - 1).abs().max() < 1e-10


# Against other formulas -----------------------------------------------------------------------------------


def test_the_continuous_bernoulli_is_torchs_where_torch_is_exact():
    logits = torch.linspace(-12, 12, 97).double()
    x = torch.linspace(0, 1, 7).double().unsqueeze(-1).expand(7, 97)
    ours = ContinuousBernoulli(logits.unsqueeze(-1)).log_prob(x.unsqueeze(-1))
    theirs = TorchContinuousBernoulli(logits=logits)
    assert (ours - theirs.log_prob(x)).abs().max() < 1e-9
    assert (ContinuousBernoulli(logits).mean - theirs.mean).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_series_of_the_normaliser_meets_the_formula(dtype: torch.dtype):
    """log(sinh(t) / t) at t = l / 2, in float64, on both sides of the limit and near 0."""
    logits = torch.cat([10.0 ** torch.linspace(-9, 1, 400), torch.linspace(0.015, 0.3, 200)]).to(dtype)
    half = logits.double() / 2
    truth = torch.where(half > 1e-3, torch.log(half.sinh() / half), half**2 / 6)
    own = ContinuousBernoulli(logits.unsqueeze(-1)).log_prob(torch.full((1,), 0.5, dtype=dtype))
    assert (own.double() + truth).abs().max() < (1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("binned", BINNED)
def test_float32_agrees_with_float64_far_into_the_tails(binned: Binned):
    location, log_scale = places()
    x = BYTES.unsqueeze(-1).expand(256, len(location))
    exact = binned(location, log_scale).each_log_prob(x)
    single = binned(location.float(), log_scale.float()).each_log_prob(x.float()).double()
    assert exact.min() < -1e4
    # The location and the scale themselves are rounded: an error of 1e-7 in (x - location) / scale.
    assert ((exact - single).abs() / (1 + exact.abs())).max() < 1e-4


def test_control_a_difference_of_distribution_functions_is_lost_in_the_tails():
    middle, half = torch.tensor(-9.0), torch.tensor(0.1)
    assert torch.special.ndtr(-middle + half) - torch.special.ndtr(-middle - half) == 0
    assert likelihoods._log_normal_interval(middle, half).item() == pytest.approx(-42.87, abs=0.2)


def test_the_normals_bins_are_differences_of_its_distribution_function():
    location, log_scale = torch.full((5,), 0.4).double(), torch.tensor([-5.0, -4.0, -3.0, -1.0, 0.0]).double()
    x = BYTES[60:140].unsqueeze(-1).expand(80, 5)
    above, below = ((x + side / 510 - location) / log_scale.exp() for side in (1, -1))
    truth = torch.special.ndtr(above) - torch.special.ndtr(below)
    own = DiscretizedNormal(location, log_scale).each_log_prob(x).exp()
    assert ((own - truth).abs() - 1e-10 * truth).max() < 1e-14


def test_a_mixture_of_one_component_is_the_logistic():
    location, log_scale = places()
    mixture = LogisticMixture(torch.zeros(1, len(location)).double(), location[None], log_scale[None])
    x = BYTES.unsqueeze(-1).expand(256, len(location))
    single = DiscretizedLogistic(location, log_scale)
    assert (mixture.each_log_prob(x) - single.each_log_prob(x)).abs().max() < 1e-12
    assert (mixture.mean - single.mean).abs().max() < 1e-14


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_the_mean_is_that_of_the_256_values(name: str):
    family = FAMILIES[name]()
    distribution = family(outputs(family, 20))
    assert isinstance(distribution, EightBitPixels)
    each = distribution.each_log_prob(BYTES.unsqueeze(-1).expand(256, 20)).exp()
    assert (distribution.mean - (BYTES.unsqueeze(-1) * each).sum(0)).abs().max() < 1e-12


# Shapes, gradients, draws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_of_any_leading_axes_score_images_of_a_batch(name: str):
    family = FAMILIES[name]()
    pixels = family(torch.randn(5, 3, family.outputs * 4))
    x = torch.randint(0, 2, (3, 4)).float()
    assert pixels.log_prob(x).shape == (5, 3)
    assert pixels.mean.shape == pixels.sample().shape == (5, 3, 4)
    assert pixels.sample((2,)).shape == (2, 5, 3, 4)
    # One image at a time, to see that no axis is taken for another.
    raw = torch.randn(5, 3, family.outputs * 4)
    alone = torch.stack([torch.stack([family(raw[k, b]).log_prob(x[b]) for b in range(3)]) for k in range(5)])
    assert (family(raw).log_prob(x) - alone).abs().max() < 1e-3


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_finite_at_extreme_outputs(name: str, size: float):
    """Also second derivatives, which encoders with the model's gradient need."""
    family = FAMILIES[name]()
    raw = (size * outputs(family, 64, torch.float32)).requires_grad_()
    x = (
        torch.tensor([0.0, 1 / 255, 0.5, 1.0]).repeat(16)
        if name != "bernoulli"
        else torch.tensor([0.0, 1.0]).repeat(32)
    )
    value = family(raw).log_prob((x * 255).round() / 255)
    (first,) = torch.autograd.grad(value, raw, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum() if size < 10 else first.sum(), raw)
    assert value.isfinite().all()
    assert first.isfinite().all()
    assert second.isfinite().all()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bernoulli"])
def test_gradients_are_those_of_finite_differences(name: str):
    family = FAMILIES[name]()
    raw = outputs(family, 6).requires_grad_()
    x = (torch.rand(6, dtype=torch.float64) * 255).round() / 255
    torch.autograd.gradcheck(lambda raw: family(raw).log_prob(x), raw)
    if name.startswith(("gaussian", "logistic")):
        location, log_scale = (each.requires_grad_() for each in places())
        for binned in BINNED:
            near = binned(location, log_scale.clamp(-7.9, 2.9))
            x = BYTES[torch.randint(256, (len(location),))]
            (slope,) = torch.autograd.grad(near.log_prob(x), location, retain_graph=True)
            step = 1e-6 * log_scale.detach().clamp(-7.9, 2.9).exp()
            moved = [binned(location + side * step, log_scale.clamp(-7.9, 2.9)).each_log_prob(x) for side in (1, -1)]
            assert ((slope - (moved[0] - moved[1]) / (2 * step)).abs() / (1 + slope.abs())).max() < 1e-4


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_draws_have_the_probabilities(name: str):
    """Pearson's statistic of 40,000 draws of one pixel in 16 cells: its mean is 15, its standard deviation 5.5."""
    family = FAMILIES[name]()
    raw = torch.randn(family.outputs, dtype=torch.float64)
    distribution = family(raw)
    assert isinstance(distribution, EightBitPixels)
    draws = distribution.sample((40_000,)).squeeze(-1)
    levels = (draws * 255).round().long()
    assert (draws * 255 - levels).abs().max() < 1e-12
    probabilities = distribution.each_log_prob(BYTES.unsqueeze(-1)).exp().squeeze(-1)
    assert statistic(levels, probabilities) < 15 + 5 * 5.5
    # control: the probabilities of other outputs
    other = family(raw + torch.randn_like(raw))
    assert isinstance(other, EightBitPixels)
    assert statistic(levels, other.each_log_prob(BYTES.unsqueeze(-1)).exp().squeeze(-1)) > 60


def statistic(levels: Tensor, probabilities: Tensor) -> float:
    """Return Pearson's statistic in 16 cells of about equal probability."""
    cell = ((probabilities.cumsum(0) - probabilities / 2) * 16).long().clamp(0, 15)
    expected = torch.zeros(16).double().index_add(0, cell, probabilities) * len(levels)
    seen = torch.bincount(cell[levels], minlength=16)
    used = expected > 0
    return ((seen - expected)[used].square() / expected[used]).sum().item()


def test_draws_of_the_continuous_bernoulli_have_its_mean_and_distribution():
    logits = torch.tensor([-50.0, -3.0, 0.0, 1e-4, 0.7, 20.0]).double()
    distribution = ContinuousBernoulli(logits)
    draws = distribution.sample((40_000,))
    error = draws.std(0) / 200
    assert ((draws.mean(0) - distribution.mean).abs() / error).max() < 4.5
    # P(x < 1/2) = (e^(l/2) - 1) / (e^l - 1) = 1 / (1 + e^(l/2))
    below = torch.sigmoid(-logits / 2)
    error = (below * (1 - below) / 40_000).sqrt().clamp(min=1e-9)
    assert (((draws < 0.5).double().mean(0) - below).abs() / error).max() < 4.5


def test_bytes_are_read_without_error_from_float32():
    x = torch.arange(256).float() / 255
    logits = torch.eye(256).double() * 50
    assert CategoricalPixels(logits).each_log_prob(x).exp().sum().item() == pytest.approx(256)


@pytest.mark.parametrize("name", FAMILIES)
def test_first_biases_give_a_plausible_image(name: str):
    family, mean = FAMILIES[name](), torch.tensor([0.0, 0.1, 0.5, 1.0])
    biases = family.first_biases(mean)
    assert biases.shape == (family.outputs, 4)
    found = family(biases.flatten()).mean
    if name in ("bernoulli", "gaussian", "gaussian_density", "logistic"):
        assert (found - mean).abs().max() < 0.15
    else:
        assert (found - 0.5).abs().max() < 1e-3


# Runs -----------------------------------------------------------------------------------------------------


def test_a_run_of_binary_pixels_has_the_identity_of_before_the_group():
    """Identities that the version without ``likelihood`` gave to the same commands."""
    assert identity(compose([])) == "8c9a1902"
    assert identity(compose(["dataset.binarization=none"])) == "37ca0fa9"
    older = compose([]).to_dict()
    del older["likelihood"]
    assert identity(from_yaml(yaml.safe_dump(older))) == "8c9a1902"
    others = [["likelihood=logistic"], ["likelihood=gaussian"], ["likelihood=gaussian", "likelihood.discretized=false"]]
    found = {identity(compose(["dataset.binarization=none", *words])) for words in others}
    assert len(found - {"37ca0fa9"}) == 3


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "bernoulli"])
def test_binary_pixels_have_bernoullis_likelihood_alone(name: str):
    message = f"likelihood={name} needs grey levels, but dataset.binarization=dynamic makes pixels binary"
    with pytest.raises(UserError, match=message):
        compose([f"likelihood={name}"])


def made(path: Path, name: str, images: numpy.ndarray, *words: str) -> Experiment:
    """Return a run on made images, the same in all three parts."""
    numpy.savez(path / "made.npz", train=images, validation=images, test=images)
    small = ["decoder.hidden=[4]", "latent_dim=2", "trainer.progress=false", "device=cpu"]
    own = ["dataset=own", f"dataset.path={path / 'made.npz'}", "dataset.binarization=none", f"data_dir={path}"]
    return build([*own, *small, f"likelihood={name}", *words])


def colours() -> numpy.ndarray:
    return numpy.random.RandomState(0).randint(0, 256, (12, 4, 6, 3), dtype=numpy.uint8)


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("gaussian", Measure.EIGHT_BIT),
        ("gaussian likelihood.discretized=false", Measure.DENSITY),
        ("continuous_bernoulli", Measure.DENSITY),
        ("categorical", Measure.EIGHT_BIT),
        ("logistic_mixture likelihood.components=2", Measure.EIGHT_BIT),
    ],
)
def test_a_run_on_colour_images_has_the_measure_of_its_likelihood(tmp_path: Path, name: str, measure: Measure):
    name, *words = name.split()
    run = made(tmp_path, name, colours(), *words)
    assert run.data.image_shape == (3, 4, 6)
    assert run.measure is measure
    x = run.data.observe(run.data.train)
    value, _ = run.objective(run.model, run.encoder, x, 2)
    value.sum().backward()
    assert all(each.grad is not None for each in run.modules.parameters())
    assert draw.samples(run, run.modules, 5).shape == (5, 72)


def test_bernoulli_takes_grey_levels_as_a_cross_entropy_and_refuses_colours(tmp_path: Path):
    run = made(tmp_path, "bernoulli", colours()[..., :1])
    assert run.measure is Measure.CROSS_ENTROPY
    with pytest.raises(UserError, match=r"likelihood=bernoulli is for binary pixels, and .* grey levels of 3 channels"):
        made(tmp_path, "bernoulli", colours())


def test_numbers_that_are_not_bytes_have_no_8_bit_likelihood(tmp_path: Path):
    images = numpy.random.RandomState(0).rand(12, 4, 6).astype(numpy.float32)
    with pytest.raises(UserError, match="likelihood=logistic is for 8-bit pixels"):
        made(tmp_path, "logistic", images)
    assert made(tmp_path, "continuous_bernoulli", images).measure is Measure.DENSITY


def test_an_evaluation_says_the_measure_and_the_bits(tmp_path: Path):
    """Bits per dimension are those of the mean, over all pixels and channels, and bounded from the other side."""
    words = ["trainer.epochs=1", "trainer.validation_k=2", "estimator.k=3", "trainer.image_every=1"]
    experiment = made(tmp_path, "logistic", colours(), *words, f"output_dir={tmp_path}")
    folder = RunFolder(train(experiment.config))
    (record,) = read_results(folder)
    assert record.measure is Measure.EIGHT_BIT
    bits = -record.mean / (3 * 4 * 6 * math.log(2))
    assert record.extra["bits_per_dimension"] == pytest.approx(bits)
    line = format_line(record)
    assert line.startswith("test log p(x) (8-bit probability) >= ")
    assert f"(<= {bits:.3f} +- " in line
    assert "bits per dimension, IWAE, k=3" in line
    assert format_line(replace(record, quantity="KL(q(z|x)||p(z))")).startswith("test KL(q(z|x)||p(z)) >= ")
    assert read_manifest(folder)["measure"] == "8-bit probability"
    (path,) = {draw.draw(Sample(n=4, columns=2, scale=1), folder.path)}
    assert Image.open(path).mode == "RGB"


def test_a_density_and_a_probability_never_share_a_table(tmp_path: Path):
    of_all = ["dataset.binarization=none"]
    for name, measure in (("logistic", Measure.EIGHT_BIT), ("categorical", Measure.EIGHT_BIT)):
        made_run(tmp_path, *of_all, f"likelihood={name}", results=[grey(measure, -1500.0)], measure=measure)
    for name, measure in (("continuous_bernoulli", Measure.DENSITY), ("bernoulli", Measure.CROSS_ENTROPY)):
        made_run(tmp_path, *of_all, f"likelihood={name}", results=[grey(measure, 900.0)], measure=measure)
    tables = compare([tmp_path]).tables
    assert sorted((len(table.rows), table.conditions.measure) for table in tables) == [
        (1, Measure.CROSS_ENTROPY),
        (1, Measure.DENSITY),
        (2, Measure.EIGHT_BIT),
    ]
    assert any("test log p(x) (density), mnist5k/none-v1" in table.conditions.heading() for table in tables)


def grey(measure: Measure, mean: float) -> ResultRecord:
    return record(mean, protocol="mnist5k/none-v1", measure=measure)


def test_a_result_of_an_early_version_of_grey_levels_is_a_cross_entropy(tmp_path: Path):
    folder = made_run(tmp_path, "dataset.binarization=none", results=[grey(Measure.CROSS_ENTROPY, -90.0)])
    (entry,) = json.loads(folder.results.read_text())
    del entry["measure"], entry["checksum"]
    folder.results.write_text(json.dumps([entry]))
    (found,) = read_results(folder)
    assert found.measure is Measure.CROSS_ENTROPY
    assert Run.read(folder).measure is Measure.CROSS_ENTROPY


def test_colours_are_drawn_in_colour():
    red = numpy.zeros((2, 3, 4, 5), dtype=numpy.uint8)
    red[:, 0] = 255
    pixels = grid(red, 2)
    assert pixels.shape == (4, 11, 3)
    assert (pixels[0, 0] == [255, 0, 0]).all()
    sheet = Sheet(red, 2, "title", scale=2).pixels()
    assert sheet.shape[2] == 3
    assert (sheet == [255, 0, 0]).all(-1).sum() == 2 * 4 * 5 * 4
    with pytest.raises(ValueError, match="images must be"):
        grid(numpy.zeros((2, 2, 4, 5)), 2)
