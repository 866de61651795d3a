"""Diagnose the best weights of a run: its posterior's use of the latents, and the noise of its gradients.

Each number has its definition, because definitions differ between papers. docs/diagnostics.md explains all of them.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.config import read
from vaebench.config.diagnosis import Diagnosis
from vaebench.config.run import with_images
from vaebench.direction import Direction
from vaebench.distributions import DiagonalNormal
from vaebench.errors import RunFailed, UserError
from vaebench.estimators.ais import has_density
from vaebench.estimators.diagnostics import (
    ACTIVE_KL,
    ACTIVE_VARIANCE,
    Activity,
    AggregateDensity,
    DrawSummary,
    GradientNoise,
    gaussian_critic,
    kl_per_coordinate,
    moment_kl_per_coordinate,
    summarise_draws,
)
from vaebench.estimators.importance import Chunks, PerImage, weighed
from vaebench.estimators.sampling import Sampling, ShrinkingBatches
from vaebench.evaluate.job import Images, choose_images
from vaebench.experiment import Experiment, build, load_best, notices, provenance
from vaebench.progress import ItemProgress
from vaebench.records import Diagnostic, Diagnostics, RunFolder, format_table, write_diagnostics
from vaebench.records.manifest import require_plugins
from vaebench.train.schedules import StepSettings
from vaebench.train.update import Loss, Update
from vaebench.train.updates import updates

__all__ = ["diagnose", "diagnosed"]

T = TypeVar("T")
Named = dict[str, Diagnostic]


def diagnose(folder: str | Path, settings: Diagnosis | None = None) -> Diagnostics:
    """Diagnose a run's best weights, write diagnostics.json to its folder, and print a table.

    Args:
        folder: a run folder.
        settings: None for the defaults.

    Raises:
        UserError: not a run folder, a setting that is invalid for this run, no usable checkpoint.
        RunFailed: draws, densities or gradients are not finite.
    """
    settings, run = settings or Diagnosis(), RunFolder.open(Path(folder))
    require_plugins(run)
    experiment = build(with_images(read(run.path), settings))
    made_by = provenance(experiment, run, load_best(experiment, run))
    for line in notices(experiment, run, made_by):
        print(line, flush=True)
    diagnostics = replace(diagnosed(experiment, settings, made_by.epoch), provenance=made_by)
    write_diagnostics(run, diagnostics)
    print(f"{run.path}\n{format_table(diagnostics)}", flush=True)
    return diagnostics


def diagnosed(experiment: Experiment, settings: Diagnosis, epoch: int) -> Diagnostics:
    """Return the diagnostics of the experiment's weights, from ``epoch``, on the images of its configuration."""
    started = time.monotonic()
    experiment.modules.eval()
    seed = runtime.derived_seed(settings.seed, "look")
    with experiment.autocast(), runtime.forked_randomness(experiment.device, seed):
        subject = _Subject.of(experiment, settings)
        measures = _rates(subject) | _active_units(subject.activity) | _by_coordinate(subject)
        measures |= _aggregate(subject) | _effective_weights(subject) | _gradients(subject)
    return Diagnostics(
        epoch=epoch,
        split=settings.split,
        protocol=subject.images.protocol,
        n_images=len(subject.x),
        seconds=round(time.monotonic() - started, 3),
        settings={
            "draws": settings.draws,
            "k": subject.k,
            "inner_k": subject.inner_k,
            "gradients": settings.gradients,
            "seed": settings.seed,
        },
        measures=measures,
        coordinates=_coordinate_lists(subject),
    )


@dataclass(frozen=True)
class _Subject:
    """The weights and the images of a diagnosis, and the results that several diagnostics use."""

    experiment: Experiment
    settings: Diagnosis
    images: Images
    x: Tensor
    """(N, X)."""
    k: int
    inner_k: int

    @classmethod
    def of(cls, experiment: Experiment, settings: Diagnosis) -> "_Subject":
        images = choose_images(experiment.data, experiment.config.estimator, experiment.device)
        if len(images.numbers) < 3:
            raise UserError(f"images must be 3 or more for a variance over images, got {len(images.numbers)}")
        inner_k = experiment.inner_k if settings.inner_k is None else settings.inner_k
        return cls(
            experiment,
            settings,
            images,
            x=experiment.data.observe(images.intensities),
            k=settings.k or experiment.k,
            inner_k=inner_k if experiment.encoder.has_inner_samples else 0,
        )

    def by_batch(self, label: str, compute: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
        """Yield (part, compute(part)) for all images, and show the progress; after running out of memory, of fewer."""
        sampling, count = Sampling(self.settings.draws, self.inner_k), len(self.x)
        size = Chunks.automatic(self.x.device, sampling, images=count, batch=self.settings.batch).batch
        with self.progress(label, count, "image") as progress:
            for part, found in ShrinkingBatches(size).run(0, count, compute):
                yield part, found
                progress.update(part.stop - part.start)

    def progress(self, label: str, total: int, unit: str) -> ItemProgress:
        return ItemProgress(label if self.settings.progress else None, total, unit)

    def sampling(self, k: int, *purpose: str) -> Sampling:
        """Return k draws for each image; two purposes share no noise."""
        seed = self.settings.seed
        return Sampling(k, self.inner_k, runtime.derived_seed(seed, *purpose) if purpose else seed)

    @cached_property
    def draws(self) -> DrawSummary:
        """The draws from the posterior of every image."""
        model, encoder, sampling = self.experiment.model, self.experiment.encoder, self.sampling(self.settings.draws)

        def summary(part: slice) -> DrawSummary:
            return summarise_draws(model, encoder, self.x[part], sampling.on(self.images.numbers[part]))

        return DrawSummary.joined([found for _, found in self.by_batch("draws", summary)]).check()

    @cached_property
    def activity(self) -> Activity:
        """How much the mean of each coordinate varies over images."""
        return Activity.of(self.draws.moments)

    @cached_property
    def closed_form(self) -> bool:
        """Whether q(z|x) is a diagonal Gaussian in closed form."""
        return self.experiment.encoder.exact_posterior(self.x[:1]) is not None

    @cached_property
    def kl(self) -> Tensor | None:
        """KL to the prior of each coordinate, (N, D); None if the prior's coordinates are dependent.

        Of q itself if it is a diagonal Gaussian in closed form, else of the Gaussian with its moments.
        """
        prior = self.experiment.model.prior()
        if not isinstance(prior, DiagonalNormal):
            return None
        if not self.closed_form:
            return moment_kl_per_coordinate(self.draws.moments, prior)

        def exact(part: slice) -> Tensor:
            posterior = self.experiment.encoder.exact_posterior(self.x[part])
            assert posterior is not None
            return kl_per_coordinate(posterior, prior)

        return torch.cat([kl for _, kl in self.by_batch("KL", exact)])


def _mean(
    title: str, values: Tensor, direction: Direction, definition: str, unit: str = "nats", **extra: float
) -> Diagnostic:
    """Return the mean over images and its standard error. RunFailed if a value is not finite."""
    if not bool(values.isfinite().all()):
        raise RunFailed(f"{title}: {int((~values.isfinite()).sum())} of {len(values)} images have no finite value")
    over_images = PerImage(values)
    return Diagnostic(
        title=title,
        value=over_images.mean,
        stderr=over_images.stderr,
        direction=direction,
        unit=unit,
        definition=definition,
        extra=extra,
    )


# Coordinates ----------------------------------------------------------------------------------------------


def _active_units(activity: Activity) -> Named:
    undecided, count = int(activity.undecided().sum()), len(activity.variance)
    definition = (
        f"coordinates d with Var_x(E_q[z_d|x]) > {ACTIVE_VARIANCE:g} (Burda et al. 2016). The variance is estimated "
        f"without bias from two halves of the draws; a coordinate counts if it is {activity.margin:.1f} standard "
        "errors above the threshold"
        + (f". Undecided, within that margin: {undecided} (take more draws or images)" if undecided else "")
    )
    return {
        "active_units": Diagnostic(
            title="active units",
            value=float(activity.active().sum()),
            definition=definition,
            extra={"of": float(count), "undecided": float(undecided)},
            unit=f"of {count}",
        )
    }


@torch.no_grad()
def _by_coordinate(subject: _Subject) -> Named:
    """Count coordinates by their KL divergence to the prior, and sum the divergences."""
    title, kl = "active units by KL", subject.kl
    if kl is None:
        reason = "not computed: the coordinates of this prior are dependent, so p(z_d) has no closed form"
        return {"active_units_kl": Diagnostic(title=title, value=None, definition=reason)}
    divergence = (
        "KL(q(z_d|x) || p(z_d)), in closed form"
        if subject.closed_form
        else "KL of the Gaussian with the moments of q(z_d|x) to p(z_d) (Gaussian approximation: a lower bound)"
    )
    found = {
        "active_units_kl": Diagnostic(
            title=title,
            value=float((kl.mean(0) > ACTIVE_KL).sum()),
            definition=f"coordinates with E_x {divergence}, above {ACTIVE_KL:g} nats (NVAE's code)",
            unit=f"of {kl.shape[1]}",
        )
    }
    if not subject.closed_form:
        definition = f"sum over d of E_x {divergence}: at most E KL(q(z|x) || p(z)) for every encoder"
        bound = _mean("rate, Gaussian approximation", kl.sum(1), Direction.LOWER_BOUND, definition)
        found["rate_gaussian"] = bound
    return found


def _coordinate_lists(subject: _Subject) -> dict[str, list[float]]:
    rows = {
        "variance_of_mean": subject.activity.variance,
        "variance_of_mean_stderr": subject.activity.stderr,
        "mean_variance": subject.draws.moments.variances.mean((0, 1)),
    }
    if subject.kl is not None:
        rows["kl" if subject.closed_form else "kl_gaussian_approximation"] = subject.kl.mean(0)
    return {name: values.tolist() for name, values in rows.items()}


# Rates ----------------------------------------------------------------------------------------------------

_LOG_Q: dict[Direction, str] = {
    Direction.EXACT: "with the exact log q(z|x)",
    Direction.UPPER_BOUND: "with an upper bound on log q(z|x), so the rate is an upper bound too",
    Direction.ESTIMATE: "with a learned log q(z|x), whose error may have either sign",
}


def _rates(subject: _Subject) -> Named:
    encoder, draws = subject.experiment.encoder, subject.draws
    inner = f" (inner_k={subject.inner_k})" if encoder.has_inner_samples else ""
    definition = f"E_x KL(q(z|x) || p(z)) = E_x E_q[log q(z|x) - log p(z)], {_LOG_Q[encoder.direction]}{inner}"
    return {
        "reconstruction": _mean(
            "reconstruction", draws.log_likelihood, Direction.EXACT, "E_x E_q[log p(x|z)], minus the distortion"
        ),
        "rate": _mean("rate", draws.rate, encoder.direction, definition),
    }


# The aggregate posterior ----------------------------------------------------------------------------------


@torch.no_grad()
def _aggregate(subject: _Subject) -> Named:
    """Bound the mutual information and the KL divergence from the aggregate posterior to the prior."""
    encoder, draws, x = subject.experiment.encoder, subject.draws, subject.x
    if has_density(encoder, encoder.encode(x[:1])):
        densities = subject.by_batch("aggregate", lambda part: encoder.encode(x[part]))
        return _from_density(AggregateDensity.of(draws.z, densities), draws)
    critics = subject.by_batch("aggregate", lambda part: gaussian_critic(draws.moments, part))
    # The moments are in float64, and may lie on another device than the draws.
    return _from_critic(AggregateDensity.of(runtime.in_float64(draws.z), critics), draws, encoder.direction)


_INFORMATION, _AGGREGATE = "information I(x; z)", "aggregate KL(q(z) || p(z))"
_POPULATION = "x from the distribution of which the images are a sample"


def _from_density(density: AggregateDensity, draws: DrawSummary) -> Named:
    """Return the bounds for an encoder whose density can be evaluated at the draws of other images."""
    n, cap = len(density.own), density.cap
    return {
        "information_lower": _mean(
            _INFORMATION,
            density.information_lower_bound(),
            Direction.LOWER_BOUND,
            f"{_POPULATION}: E log q(z_i|x_i) - log 1/N sum_j q(z_i|x_j) over N={n} images, i included (Poole et al. "
            f"2019). At most log N = {cap:.2f}; a value near that cap is not an estimate of I(x; z)",
            cap=cap,
        ),
        "information_upper": _mean(
            _INFORMATION,
            density.information_upper_bound(),
            Direction.UPPER_BOUND,
            f"the same with i left out of the sum, over the {n - 1} others; the rate is another upper bound",
        ),
        "aggregate_kl_lower": _mean(
            _AGGREGATE,
            density.log_mixture_of_others() - draws.log_prior,
            Direction.LOWER_BOUND,
            "q(z) = E_x q(z|x), estimated with i left out: rate minus the upper bound on I(x; z). A value below 0 has "
            f"no information; the bound needs enough images for their posteriors to overlap, N={n} here",
        ),
        "aggregate_kl_upper": _mean(
            _AGGREGATE,
            density.log_mixture() - draws.log_prior,
            Direction.UPPER_BOUND,
            f"with i included: rate minus the lower bound on I(x; z), hence at least rate - {cap:.2f}",
        ),
    }


def _from_critic(density: AggregateDensity, draws: DrawSummary, direction: Direction) -> Named:
    """Return the bounds for an encoder that has draws but no density."""
    n, cap, lower = len(density.own), density.cap, density.information_lower_bound()
    return {
        "information_lower": _mean(
            _INFORMATION,
            lower,
            Direction.LOWER_BOUND,
            f"{_POPULATION}: E log r(z_i|x_i) - log 1/N sum_j r(z_i|x_j) over N={n} images. r is the Gaussian with the "
            "moments of other draws, because q's density is not known everywhere (InfoNCE, valid for any r; van den "
            f"Oord et al. 2018). At most log N = {cap:.2f}",
            cap=cap,
        ),
        "aggregate_kl_upper": _mean(
            _AGGREGATE,
            draws.rate - lower,
            Direction.ESTIMATE if direction is Direction.ESTIMATE else Direction.UPPER_BOUND,
            f"q(z) = E_x q(z|x): rate minus the lower bound on I(x; z), hence at least rate - {cap:.2f}. "
            "Without q's density there is no lower bound",
        ),
    }


# Weights and gradients ------------------------------------------------------------------------------------


@torch.no_grad()
def _effective_weights(subject: _Subject) -> Named:
    title, (model, encoder), x = "effective weights", (subject.experiment.model, subject.experiment.encoder), subject.x
    if subject.k == 1:
        reason = "not computed for k=1 (a single weight); pass k=50 to get the effective sample size of 50 weights"
        return {"ess": Diagnostic(title=title, value=None, definition=reason)}
    sampling, numbers = subject.sampling(subject.k, "weights"), subject.images.numbers

    def ess(part: slice) -> Tensor:
        return weighed(model, encoder, x[part], sampling.on(numbers[part])).ess()

    values = [found for _, found in subject.by_batch("weights", ess)]
    definition = f"(sum w)^2 / sum w^2 of the k={subject.k} weights of an image, from 1 to k, averaged over images"
    if encoder.direction is Direction.ESTIMATE:
        definition += "; the weights contain the error of the learned log q(z|x)"
    return {"ess": _mean(title, torch.cat(values), Direction.ESTIMATE, definition, unit=f"of {subject.k}")}


def _gradients(subject: _Subject) -> Named:
    """Compare gradients of the training objective on one batch; they differ only by the encoder's noise."""
    n, experiment = subject.settings.gradients, subject.experiment
    if not n:
        return {}
    x = subject.x[: experiment.config.trainer.batch_size]
    bounds = _bound_updates(experiment)
    trained = {id(parameter) for update in bounds for parameter in update.parameters}
    named = {"encoder": experiment.encoder, "decoder": experiment.model}
    networks = {name: [p for p in network.parameters() if id(p) in trained] for name, network in named.items()}
    noises = {name: GradientNoise(n) for name, parameters in networks.items() if parameters}
    with subject.progress("gradients", n, "gradient") as progress:
        for _ in range(n):
            gradients = _one_gradient(bounds, x, StepSettings(subject.k, subject.inner_k, 1.0))
            for name, noise in noises.items():
                noise.add(torch.cat([gradients[id(p)].flatten() for p in networks[name]]))
            progress.update(1)
    found: Named = {}
    for name, noise in noises.items():
        found |= _noise(name, noise, k=subject.k, batch=len(x))
    return found


def _bound_updates(experiment: Experiment) -> list[Update]:
    """Return the updates that maximise the bound; auxiliary losses have other objectives."""
    auxiliary = experiment.encoder.auxiliary_losses()
    return [update for update in updates(experiment) if update.name not in auxiliary]


def _one_gradient(bounds: list[Update], x: Tensor, settings: StepSettings) -> dict[int, Tensor]:
    """Return the gradient of each parameter, by the parameter's id."""
    gradients = {}
    for update in bounds:
        try:
            loss: Loss = update.loss(x, settings)
        except ValueError as error:
            raise UserError(f"k={settings.k}, inner_k={settings.inner_k}: {error}") from error
        found = torch.autograd.grad(loss.value, update.parameters, allow_unused=True)
        for parameter, gradient in zip(update.parameters, found, strict=True):
            gradients[id(parameter)] = torch.zeros_like(parameter) if gradient is None else gradient
    # One number for all of them: each bool() waits for the device.
    if not bool(torch.stack([gradient.isfinite().all() for gradient in gradients.values()]).all()):
        raise RunFailed("a gradient of the training objective is not finite")
    return gradients


def _noise(name: str, noise: GradientNoise, *, k: int, batch: int) -> Named:
    title = f"gradient SNR, {name}"
    if noise.constant == noise.parameters:
        reason = f"not computed: all {noise.n} gradients were equal"
        return {f"gradient_snr_{name}": Diagnostic(title=title, value=None, definition=reason)}
    n, (directional, stderr) = noise.n, noise.directional
    snr = Diagnostic(
        title=title,
        value=noise.snr,
        definition=(
            f"|mean| / sd over n={n} gradients of the training objective (k={k}), mean over {noise.parameters:,} "
            f"parameters, without {noise.constant:,} whose gradient never varied; the same {batch} images, new draws. "
            f"Pure Gaussian noise has {noise.floor:.3f}"
        ),
        extra={"floor": noise.floor, "n": float(n), "constant": float(noise.constant)},
    )
    dsnr = Diagnostic(
        title=f"gradient DSNR, {name}",
        value=directional,
        stderr=stderr,
        definition=(
            f"E[g_along / |g_across|] of {n - n // 2} gradients, along the mean of {n // 2} others (Rainforth et al. "
            "2018, but signed, so that pure noise has 0)"
        ),
        extra={"n": float(n)},
    )
    return {f"gradient_snr_{name}": snr, f"gradient_dsnr_{name}": dsnr}
