"""Inference gaps in the linear-Gaussian model, where every one of them is a known KL divergence."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from toys import (
    AffineGaussian,
    LinearGaussian,
    Mean,
    exact_gaussian,
    exact_reverse,
    full_gaussian,
    gaussian,
    learned,
    linear_gaussian,
    one_image,
)

from vaebench.bounds import log_mean_exp
from vaebench.config import compose, for_evaluation
from vaebench.encoders.base import Draw, Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.estimators import gaps
from vaebench.estimators.gaps import (
    Optimisation,
    best_gaussian,
    best_of_family,
    elbo,
    per_image,
    selected_log_likelihood,
)
from vaebench.estimators.importance import estimated, log_likelihood
from vaebench.estimators.sampling import Sampling
from vaebench.evaluate.job import Estimate, EstimatorInputs, job_for
from vaebench.experiment import build

exactly = pytest.mark.usefixtures("float64")
QUICK = Optimisation(steps=300, lr=0.05)
EIGHT = Sampling(8, seed=0)


def images(count: int = 5) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def correlated() -> LinearGaussian:
    """Return a model whose posterior is no diagonal Gaussian."""
    weight = torch.tensor([[1.0, 0.8], [0.3, 0.9], [-0.5, 0.4]])
    return LinearGaussian(weight, torch.tensor([0.1, -0.2, 0.3]), 0.7)


def posterior_of(model: LinearGaussian, x: Tensor) -> MultivariateNormal:
    gain, constant, variance = model.posterior()
    return MultivariateNormal(x @ gain.T + constant, variance)


def elbo_of(model: LinearGaussian, encoder: Encoder | list[Encoder], x: Tensor, draws: int = 4000) -> Tensor:
    return per_image(partial(elbo, model), encoder, x, Sampling(draws, seed=0))


def divergence(encoder: GaussianEncoder, posterior: MultivariateNormal, x: Tensor) -> Tensor:
    q = encoder.encode(x)
    return kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), posterior)


@exactly
def test_the_amortisation_gap_of_a_wrong_gaussian_is_its_kl_and_the_approximation_gap_is_zero():
    model, encoder, x = linear_gaussian(), gaussian(), images()
    best = elbo_of(model, best_gaussian(model, encoder, x, QUICK, EIGHT), x)
    exact = divergence(encoder, posterior_of(model, x), x)
    assert (model.log_evidence(x) - best).abs().max() < 1e-3
    assert (best - elbo_of(model, encoder, x) - exact).abs().max() < 0.05
    assert exact.min() > 0.1


@exactly
def test_the_best_diagonal_gaussian_of_a_correlated_posterior():
    """Its mean is the posterior's, its precisions the diagonal of the posterior's precision."""
    model, x = correlated(), images()
    posterior = posterior_of(model, x)
    best = best_gaussian(model, gaussian(), x, QUICK, Sampling(64, seed=0))
    variance = posterior.precision_matrix[0].diagonal().reciprocal()
    for one, found in enumerate(best):
        q = found.exact_posterior(x[one : one + 1])
        assert q is not None
        assert torch.allclose(q.mean[0], posterior.mean[one], atol=0.02)
        assert torch.allclose(q.variance[0], variance, rtol=0.05)
    exact = kl_divergence(MultivariateNormal(posterior.mean, torch.diag(variance)), posterior)
    gap = model.log_evidence(x) - elbo_of(model, best, x, 20_000)
    assert exact[0] > 0.1
    assert (gap - exact).abs().max() < 0.02


@exactly
def test_a_full_gaussian_fits_where_a_diagonal_one_does_not():
    model, encoder, x = correlated(), full_gaussian(), images(2)
    best = best_of_family(model, encoder, x, Optimisation(steps=250, lr=0.05), EIGHT)
    gap = model.log_evidence(x) - elbo_of(model, best, x)
    assert gap.abs().max() < 0.01
    assert (model.log_evidence(x) - elbo_of(model, encoder, x)).min() > 0.1


@exactly
@pytest.mark.parametrize("fit", [best_gaussian, best_of_family])
def test_the_posterior_itself_has_no_gap(fit: Callable[..., list[Encoder]]):
    model, encoder, x = linear_gaussian(), exact_gaussian(), images(2)
    assert (model.log_evidence(x) - elbo_of(model, encoder, x, 20)).abs().max() < 1e-9
    best = fit(model, encoder, x, Optimisation(steps=100, lr=0.01), Sampling(2, seed=0))
    assert (model.log_evidence(x) - elbo_of(model, best, x, 20)).abs().max() < 1e-4


@exactly
def test_a_copy_of_the_gaussian_encoder_reaches_the_best_gaussian():
    model, encoder, x = correlated(), gaussian(), images(1)
    how, sampling = Optimisation(steps=200, lr=0.05), Sampling(16, seed=0)
    both = [elbo_of(model, fit(model, encoder, x, how, sampling), x) for fit in (best_gaussian, best_of_family)]
    assert (both[0] - both[1]).abs().max() < 0.01


@exactly
def test_fitting_leaves_the_encoder_and_the_model_as_they_were():
    model, encoder, x = linear_gaussian(), learned(), images(2)
    before = [p.clone() for p in (*encoder.parameters(), *model.parameters())]
    best_of_family(model, encoder, x, Optimisation(steps=3, lr=0.1), Sampling(2, 1, seed=0))
    best_gaussian(model, encoder, x, Optimisation(steps=3, lr=0.1), Sampling(2, seed=0))
    after = [*encoder.parameters(), *model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)


@exactly
def test_images_do_not_influence_each_other():
    model, x, numbers = correlated(), images(4), torch.arange(4)
    how, sampling = Optimisation(steps=20, lr=0.05), Sampling(4, seed=0)
    whole = elbo_of(model, best_gaussian(model, learned(), x, how, sampling.on(numbers)), x, 50)
    alone = [best_gaussian(model, learned(), x[one], how, sampling.on(numbers[one])) for one in numbers.split(3)]
    assert torch.allclose(whole, elbo_of(model, [q for part in alone for q in part], x, 50))


@pytest.mark.parametrize("family", ["iwhvi", "realnvp", "hvae"])
def test_all_images_at_once_are_fitted_as_each_alone(family: str, default_data_dir: Path):
    """A flow is fitted by its path gradient, hvae by gradients of the model."""
    run = build(compose([*TINY, f"encoder={family}", "encoder.hidden=[5]", f"data_dir={default_data_dir}"]))
    run.modules.eval()
    x, how = run.data.observe(run.data.test[:3]), Optimisation(steps=4, lr=0.01)
    fit = gaps._Fit(run.model, run.encoder, Sampling(2, 1, seed=0, images=torch.tensor([7, 2, 5])))
    together, alone = gaps._fitted_together(fit, x, how), gaps._fitted_one_by_one(fit, x, how)
    assert together is not None
    assert farthest(together, alone) < 1e-4
    # Control: other noise, as images with other numbers have, leads elsewhere.
    other = gaps._Fit(run.model, run.encoder, Sampling(2, 1, seed=0, images=torch.tensor([7, 2, 4])))
    assert farthest(gaps._fitted_one_by_one(other, x, how), alone) > 1e-3


def farthest(some: Sequence[Encoder], others: Sequence[Encoder]) -> float:
    """Return the largest difference of a parameter."""
    pairs = [
        (p, q) for a, b in zip(some, others, strict=True) for p, q in zip(a.parameters(), b.parameters(), strict=True)
    ]
    return max((p - q).abs().max().item() for p, q in pairs)


class Mixing(GaussianEncoder):
    """An encoder whose noise torch.func cannot key by image."""

    def sample(self, encoded: Any, k: int, **rest: Any) -> Draw:
        drawn = super().sample(encoded, k, **rest)
        return drawn._replace(z=drawn.z + torch.randn(drawn.z.shape))


@pytest.mark.parametrize(("family", "reason"), [("iaf", "RuntimeError: vmap: "), (None, "the gradients differ by ")])
def test_what_cannot_be_fitted_at_once_is_fitted_image_by_image(
    family: str | None, reason: str, default_data_dir: Path, capsys: pytest.CaptureFixture[str]
):
    run = build(compose([*TINY, f"encoder={family or 'gaussian'}", f"data_dir={default_data_dir}"]))
    encoder = run.encoder if family else Mixing(run.encoder.get_submodule("posterior"))
    gaps._refused.cache_clear()
    x = run.data.observe(run.data.test[:2])
    assert len(best_of_family(run.model, encoder, x, Optimisation(steps=1), Sampling(2, seed=0))) == 2
    assert f"each image is fitted alone, which takes longer: {reason}" in capsys.readouterr().err


@exactly
def test_the_elbo_is_unbiased():
    model, encoder, x = linear_gaussian(), gaussian(), one_image(4000)
    exact = model.log_evidence(x) - divergence(encoder, posterior_of(model, x), x)
    assert abs(Mean.of(elbo(model, encoder, x, Sampling(4, seed=0)) - exact).errors_above(0)) < 4


@exactly
def test_the_bound_gap_of_a_hierarchy_closes_with_inner_samples():
    model, x = linear_gaussian(), one_image(500)
    loose, tight = (elbo(model, learned(), x, Sampling(20, k, seed=0)) for k in (0, 30))
    best = elbo(model, exact_reverse(), x, Sampling(20, seed=0))
    assert Mean.of(tight - loose).errors_above(0) > 10
    assert Mean.of(best - tight).value == pytest.approx(0, abs=0.02)


# log p(x) -------------------------------------------------------------------------------------------------


def hopeless() -> GaussianEncoder:
    """Return an encoder whose draws are nowhere near the posterior."""
    encoder = gaussian()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("bias"):
                parameter += 15.0
    return encoder


@exactly
def test_a_hopeless_proposal_does_not_lower_the_estimate():
    model, x = linear_gaussian(), images(6)
    proposals = [hopeless(), exact_gaussian()]
    found = selected_log_likelihood(model, proposals, x, Sampling(50, seed=0))
    assert torch.allclose(found, model.log_evidence(x))
    # The control: weights of both in one mean cost log 2.
    pooled = log_mean_exp(torch.stack([log_likelihood(model, each, x, 50, seed=0) for each in proposals]))
    assert (pooled - model.log_evidence(x)).max() < -0.69


@exactly
def test_each_image_has_its_own_proposal():
    model, x = linear_gaussian(), images(4)
    good, bad = exact_gaussian(), hopeless()
    found = selected_log_likelihood(model, [[good, bad, good, bad], [bad, good, bad, good]], x, Sampling(50, seed=0))
    assert torch.allclose(found, model.log_evidence(x))


@exactly
def test_the_estimate_is_a_lower_bound_although_the_best_proposal_is_chosen():
    model, x = linear_gaussian(), one_image(3000)
    found = Mean.of(selected_log_likelihood(model, [gaussian(2.0), gaussian(1.2), gaussian()], x, Sampling(2, seed=0)))
    assert found.errors_above(model.log_evidence(x[:1]).item()) < 3
    # The control: the larger of two estimates is none.
    parts = [log_likelihood(model, gaussian(), x, 2, seed=seed) for seed in range(12)]
    assert Mean.of(torch.stack(parts).amax(0)).errors_above(model.log_evidence(x[:1]).item()) > 3


def wide_model(correlation: float) -> LinearGaussian:
    """Return a model with 20 latents; its posterior is a diagonal Gaussian without ``correlation``."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.linalg.qr(torch.randn(40, 20, generator=generator))[0]
    mixing = torch.eye(20) + correlation * torch.randn(20, 20, generator=generator) / 20**0.5
    return LinearGaussian(weight @ mixing, torch.zeros(40), 0.5)


def by_its_own_estimate(model: LinearGaussian, proposals: list[Encoder], x: Tensor, sampling: Sampling) -> Tensor:
    """Return what `selected_log_likelihood` returned when a pilot's estimates chose the proposal."""
    pilot = replace(sampling, k=sampling.k // 10, seed=1)
    choice = torch.stack([estimated(model, each, x, pilot) for each in proposals]).argmax(0)
    return torch.stack([estimated(model, each, x, sampling) for each in proposals]).gather(0, choice[None])[0]


@exactly
@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_the_approximation_gap_is_the_true_one_beside_a_proposal_with_heavy_tails(correlation: float):
    """The encoder is 0.6 times as wide as the posterior: its weights have heavy tails, and its ELBO shows that."""
    model, sampling = wide_model(correlation), Sampling(2000, seed=0)
    x, _ = model.simulate(60)
    gain, constant, variance = model.posterior()
    encoder = GaussianEncoder(AffineGaussian(gain, constant, 0.6 * variance.diagonal().sqrt()))
    best = 1 / torch.linalg.inv(variance).diagonal()
    true = 0.5 * (best.log().sum().neg() + torch.logdet(variance)).item()
    fitted = GaussianEncoder(AffineGaussian(gain, constant, best.sqrt()))
    # Each image's part of the gap is the same: the ELBO of q* has no error but that of log p(x).
    lost = Mean.of(selected_log_likelihood(model, [encoder, fitted], x, sampling) - model.log_evidence(x))
    measured = true + lost.value
    assert measured == pytest.approx(true, abs=max(1e-9, 4 * lost.stderr))
    assert lost.stderr < 0.02
    if not correlation:
        assert true == pytest.approx(0, abs=1e-9)
        # Control: the largest of noisy estimates.
        wrong = by_its_own_estimate(model, [encoder, fitted], x, sampling) - model.log_evidence(x)
        assert Mean.of(wrong).value < -0.03
        assert wrong.min() < -0.5


# The estimator --------------------------------------------------------------------------------------------

TINY = ["latent_dim=2", "decoder.hidden=[6]", "device=cpu", "trainer.threads=1", "trainer.progress=false", "seed=1"]
GAPS = ["estimator=gaps", "estimator.images=5", "estimator.k=20", "estimator.draws=6", "estimator.steps=3"]
GAPS += ["estimator.fit_draws=2", "estimator.inner_k=4"]


def estimates(default_data_dir: Path, *words: str, batch: int = 2) -> tuple[dict[str, Estimate], Tensor]:
    """Run the estimator on fresh weights; return its estimates by quantity, and its rows."""
    config = for_evaluation(
        compose([*TINY, f"data_dir={default_data_dir}", *(w for w in words if not w.startswith("estimator."))]),
        [*GAPS, "device=cpu", "progress=false", f"estimator.batch={batch}", *(w for w in words if "estimator." in w)],
    )
    job = job_for(EstimatorInputs.of(build(config)))
    parts = [slice(start, min(start + job.batch, 5)) for start in range(0, 5, job.batch)]
    rows = torch.cat([job.numbers(part) for part in parts], 1)
    return {estimate.quantity: estimate for estimate in job.summarise(rows)}, rows


GAUSSIAN = {"log p(x)", "ELBO of q", "ELBO of the best Gaussian", "inference gap", "approximation gap"}
GAUSSIAN |= {"amortisation gap"}
OTHER = GAUSSIAN | {"ELBO of q*", "approximation gap of a Gaussian"}


@pytest.mark.parametrize(
    ("words", "quantities"),
    [
        (("encoder=gaussian",), GAUSSIAN),
        (("encoder=gaussian", "objective=iwae", "k=3"), GAUSSIAN | {"gap of the IWAE-3 bound"}),
        (("encoder=planar",), OTHER),
        (("encoder=iwhvi", "encoder.psi_dim=2"), OTHER | {"bound gap"}),
        (("encoder=uivi", "encoder.psi_dim=2"), OTHER | {"bound gap"}),
        (("encoder=hvae",), OTHER),
        (("encoder=two_layer", "prior=chained"), OTHER),
        (("encoder=avb",), OTHER - {"ELBO of q*", "approximation gap", "amortisation gap"}),
        (
            ("encoder=planar", "estimator.finetune=false"),
            OTHER - {"ELBO of q*", "approximation gap", "amortisation gap"},
        ),
    ],
    ids=lambda value: value[0].partition("=")[2] if isinstance(value, tuple) else None,
)
def test_every_family_has_its_gaps(words: tuple[str, ...], quantities: set[str], default_data_dir: Path):
    found, _ = estimates(default_data_dir, *words)
    assert set(found) == quantities
    assert all(bool(estimate.values.isfinite().all()) and len(estimate.values) == 5 for estimate in found.values())
    assert found["inference gap"].direction == "lower_bound"
    if "approximation gap" in found:
        parts = [q for q in ("approximation gap", "amortisation gap", "bound gap") if q in found]
        total = torch.stack([found[q].values for q in parts]).sum(0)
        assert torch.allclose(total, found["inference gap"].values)
        assert found["approximation gap"].direction == "estimate"
    shown = {"proposal": "widened moments"} if words[0] == "encoder=avb" else {}
    assert found["ELBO of q"].settings == shown | {"draws": 6, "steps": 3}
    # k is the number of weights of log p(x): a line that has no weights has no k.
    without = {"ELBO of q", "ELBO of the best Gaussian", "ELBO of q*", "amortisation gap", "bound gap"}
    assert {quantity for quantity, estimate in found.items() if estimate.k is None} == without & quantities
    inner = [quantity for quantity, estimate in found.items() if estimate.inner_k is not None]
    assert set(inner) == (quantities - {"ELBO of the best Gaussian"} if "bound gap" in quantities else set())


@pytest.mark.parametrize("words", [("encoder=gaussian",), ("encoder=iwhvi", "encoder.psi_dim=2")])
def test_batches_do_not_show_and_an_interrupted_evaluation_goes_on(words: tuple[str, ...], default_data_dir: Path):
    _, whole = estimates(default_data_dir, *words, batch=5)
    _, parts = estimates(default_data_dir, *words, batch=2)
    assert torch.allclose(whole, parts, atol=1e-3)
    config = for_evaluation(compose([*TINY, f"data_dir={default_data_dir}", *words]), [*GAPS, "estimator.batch=2"])
    again = job_for(EstimatorInputs.of(build(config))).numbers(slice(4, 5))
    assert torch.allclose(again, whole[:, 4:], atol=1e-3)


def test_optimisation_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        Optimisation(steps=0)
    with pytest.raises(ValueError, match="lr must be > 0, got -1"):
        Optimisation(lr=-1)
    assert Optimisation(steps=10, lr=1.0).rate(0) == 1.0
    assert Optimisation(steps=10, lr=1.0).rate(9) < 0.03
