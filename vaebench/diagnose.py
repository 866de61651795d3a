"""Diagnostics of the best weights of a run: what its posterior does with the latents, and what its gradients are worth.

Every number goes with its definition, since definitions differ between papers.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from vaebench import runtime
from vaebench.config import Config, read
from vaebench.config.diagnosis import Diagnosis
from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import Direction
from vaebench.errors import RunFailed, UserError
from vaebench.estimators.ais import has_density
from vaebench.estimators.diagnostics import (
    ACTIVE_KL,
    ACTIVE_VARIANCE,
    Activity,
    AggregateDensity,
    GradientNoise,
    Seen,
    Spread,
    critic,
    kl_per_coordinate,
    moment_kl_per_coordinate,
    seen,
)
from vaebench.estimators.importance import Chunks, PerImage, weighed
from vaebench.evaluate.job import Images, chosen
from vaebench.experiment import Experiment, build, load_best
from vaebench.records import Diagnostics, Measure, RunFolder, format_table, write_diagnostics
from vaebench.train.update import Loss, Settings, Update
from vaebench.train.updates import updates

__all__ = ["diagnose", "diagnosed"]

T = TypeVar("T")
Measures = dict[str, Measure]


def diagnose(folder: str | Path, given: Diagnosis | None = None) -> Diagnostics:
    """Look at a run's best weights, write diagnostics.json into its folder, and print the table.

    Args:
        folder: a run folder.
        given: the settings; None for the defaults.

    Raises:
        UserError: not a run folder, a setting that is not for this run, no usable checkpoint.
        RunFailed: draws, densities or gradients are not finite.
    """
    given, run = given or Diagnosis(), RunFolder.open(Path(folder))
    experiment = build(_configured(read(run.path), given))
    epoch = load_best(experiment, run)
    found = diagnosed(experiment, given, epoch)
    write_diagnostics(run, found)
    print(f"{run.path}\n{format_table(found)}", flush=True)
    return found


def _configured(config: Config, given: Diagnosis) -> Config:
    """Return the run's configuration with the images, the device and the folders of the diagnosis."""
    replace = dataclasses.replace
    return replace(
        config,
        device=given.device,
        data_dir=given.data_dir or config.data_dir,
        trainer=replace(config.trainer, threads=given.threads, progress=given.progress),
        estimator=replace(
            config.estimator,
            split=given.split,
            images=given.images,
            seed=given.seed,
            image_seed=None,
            binarize="fixed",
        ),
    )


def diagnosed(experiment: Experiment, given: Diagnosis, epoch: int) -> Diagnostics:
    """Look at the experiment's weights, of ``epoch``; the experiment's settings name the images."""
    started = time.monotonic()
    experiment.modules.eval()
    with experiment.autocast(), runtime.forked_randomness(experiment.device, runtime.derived_seed(given.seed, "look")):
        look = _Look.at(experiment, given)
        found = look.seen()
        measures = _rates(look, found) | _activity(found.spread) | _coordinates(look, found)
        measures |= _aggregate(look, found) | _effective_weights(look) | _gradients(look)
    return Diagnostics(
        epoch=epoch,
        split=given.split,
        protocol=look.images.protocol,
        n_images=len(look.x),
        seconds=round(time.monotonic() - started, 3),
        settings={"draws": given.draws, "k": look.k, "inner_k": look.inner_k, "gradients": given.gradients}
        | {"seed": given.seed},
        measures=measures,
        coordinates=_per_coordinate(look, found),
    )


@dataclass(frozen=True)
class _Look:
    """The images that are looked at, and how."""

    experiment: Experiment
    given: Diagnosis
    images: Images
    x: Tensor
    """(N, X)."""
    k: int
    inner_k: int

    @classmethod
    def at(cls, experiment: Experiment, given: Diagnosis) -> "_Look":
        images, k = chosen(experiment), given.k or experiment.k
        inner_k = experiment.inner_k if given.inner_k is None else given.inner_k
        if len(images.numbers) < 3:
            raise UserError("images must be 3 or more: a variance over images has an error of its own")
        inner_k = inner_k if experiment.encoder.has_inner_samples else 0
        return cls(experiment, given, images, experiment.data.observe(images.intensities), k, inner_k)

    def batches(self, what: str) -> Iterator[slice]:
        """Yield all images, batch by batch, the last and smaller one too."""
        size = Chunks.automatic(self.x.device, self.inner_k, batch=self.given.batch).batch
        starts = range(0, len(self.x), size)
        for start in self.shown(starts, what):
            yield slice(start, min(start + size, len(self.x)))

    def shown(self, things: Iterable[T], what: str) -> Iterable[T]:
        """Show progress over ``things`` to a person."""
        return tqdm(things, desc=what, leave=False, disable=None if self.given.progress else True, dynamic_ncols=True)

    def seen(self) -> Seen:
        """Draw from the posterior of every image."""
        parts = []
        for part in self.batches("draws"):
            parts.append(
                seen(
                    self.experiment.model,
                    self.experiment.encoder,
                    self.x[part],
                    self.given.draws,
                    inner_k=self.inner_k,
                    seed=self.given.seed,
                    images=self.images.numbers[part],
                )
            )
        return Seen.joined(parts).check()

    @property
    def exact_normal(self) -> bool:
        """Whether q(z|x) is a diagonal Gaussian in closed form."""
        return self.experiment.encoder.exact_posterior(self.x[:1]) is not None


# Coordinates ----------------------------------------------------------------------------------------------


def _activity(found: Spread) -> Measures:
    activity = Activity.of(found)
    undecided = int(activity.undecided().sum())
    definition = (
        f"coordinates d with Var_x(E_q[z_d|x]) > {ACTIVE_VARIANCE:g} (Burda et al. 2016). The variance is the cross "
        f"product of two independent halves of {found.half} draws, which is 0 on average where q ignores x; counted "
        f"where it exceeds the threshold by {activity.margin:.1f} standard errors"
        + (f". {undecided} may lie on either side of it: more draws or images decide" if undecided else "")
    )
    value = float(activity.active().sum())
    extra = {"of": float(len(activity.variance)), "undecided": float(undecided)}
    return {
        "active_units": Measure(
            title="active units", value=value, definition=definition, extra=extra, unit=f"of {len(activity.variance)}"
        )
    }


@torch.no_grad()
def _kl_values(look: _Look, found: Seen) -> Tensor | None:
    """Return KL by coordinate, (N, D), of the density itself or of Gaussians with its moments; None: no such thing."""
    prior = look.experiment.model.prior()
    if not isinstance(prior, DiagonalNormal):
        return None
    if not look.exact_normal:
        return moment_kl_per_coordinate(found.spread, prior)
    parts = []
    for part in look.batches("KL"):
        posterior = look.experiment.encoder.exact_posterior(look.x[part])
        assert posterior is not None
        parts.append(kl_per_coordinate(posterior, prior))
    return torch.cat(parts)


def _coordinates(look: _Look, found: Seen) -> Measures:
    """Count coordinates by their KL divergence to the prior, and sum it up."""
    values = _kl_values(look, found)
    if values is None:
        reason = "refused: coordinates of this prior are not independent, so that none has a p(z_d) in closed form"
        return {"active_units_kl": Measure(title="active units by KL", value=None, definition=reason)}
    exact, width = look.exact_normal, values.shape[1]
    what = (
        "KL(q(z_d|x) || p(z_d)), in closed form"
        if exact
        else "KL of the Gaussian with q(z_d|x)'s moments to p(z_d) (Gaussian approximation: a lower bound)"
    )
    count = float((values.mean(0) > ACTIVE_KL).sum())
    definition = f"coordinates with E_x {what}, above {ACTIVE_KL:g} nats (NVAE's code)"
    counted = Measure(title="active units by KL", value=count, definition=definition, unit=f"of {width}")
    if exact:
        return {"active_units_kl": counted}
    definition = f"sum over d of E_x {what}: at most E KL(q(z|x) || p(z)), whatever the encoder's log q is"
    return {
        "active_units_kl": counted,
        "rate_gaussian": _mean("rate, Gaussian approximation", values.sum(1), Direction.LOWER_BOUND, definition),
    }


def _per_coordinate(look: _Look, found: Seen) -> dict[str, list[float]]:
    activity, kl = Activity.of(found.spread), _kl_values(look, found)
    rows = {
        "variance_of_mean": activity.variance,
        "variance_of_mean_stderr": activity.stderr,
        "mean_variance": found.spread.variances.mean((0, 1)),
    }
    if kl is not None:
        rows["kl" if look.exact_normal else "kl_gaussian_approximation"] = kl.mean(0)
    return {name: values.tolist() for name, values in rows.items()}


# Rates ----------------------------------------------------------------------------------------------------

_RATES: dict[Direction, str] = {
    Direction.EXACT: "by draws and their exact log q",
    Direction.UPPER_BOUND: "by an upper bound on log q(z|x): what that is loose by is counted too",
    Direction.ESTIMATE: "by a learned log q(z|x), which may be off to either side",
}


def _mean(title: str, values: Tensor, direction: Direction, definition: str, **extra: float) -> Measure:
    """Return the mean over images with its standard error."""
    if not bool(values.isfinite().all()):
        raise RunFailed(f"{title}: {int((~values.isfinite()).sum())} of {len(values)} images have no finite value")
    averaged = PerImage(values)
    return Measure(
        title=title,
        value=averaged.mean,
        stderr=averaged.stderr,
        direction=direction,
        unit="nats",
        definition=definition,
        extra=extra,
    )


def _rates(look: _Look, found: Seen) -> Measures:
    encoder = look.experiment.encoder
    how = _RATES[encoder.direction]
    if encoder.has_inner_samples:
        how += f" (inner_k={look.inner_k})"
    return {
        "reconstruction": _mean(
            "reconstruction", found.log_likelihood, Direction.EXACT, "E_x E_q[log p(x|z)], minus the distortion"
        ),
        "rate": _mean(
            "rate",
            found.rate,
            encoder.direction,
            f"E_x KL(q(z|x) || p(z)) = E_x E_q[log q(z|x) - log p(z)], {how}",
        ),
    }


# The aggregate posterior ----------------------------------------------------------------------------------

_POPULATION = "x from the distribution that the images come from"


def _aggregate(look: _Look, found: Seen) -> Measures:
    encoder = look.experiment.encoder
    with torch.no_grad():
        if has_density(encoder, encoder.encode(look.x[:1])):
            return _by_density(AggregateDensity.of(found.z, _densities(look)), found)
        critics = ((part, critic(found.spread, part)) for part in look.batches("aggregate"))
        return _by_critic(AggregateDensity.of(found.z, critics), found, encoder.direction)


def _densities(look: _Look) -> Iterator[tuple[slice, Any]]:
    for part in look.batches("aggregate"):
        yield part, look.experiment.encoder.encode(look.x[part])


def _by_density(table: AggregateDensity, found: Seen) -> Measures:
    n, cap = len(table.own), table.cap
    return {
        "information_lower": _mean(
            "information I(x; z)",
            table.information_at_least(),
            Direction.LOWER_BOUND,
            f"{_POPULATION}: E log q(z_i|x_i) - log 1/N sum_j q(z_i|x_j) over N={n} images, i among them (Poole et al. "
            f"2019). It cannot exceed log N = {cap:.2f}, however much z tells: near that, the cap is all it says",
            cap=cap,
        ),
        "information_upper": _mean(
            "information I(x; z)",
            table.information_at_most(),
            Direction.UPPER_BOUND,
            f"the same without i in the sum, over the {n - 1} others; the rate is an upper bound, too",
        ),
        "aggregate_kl_lower": _mean(
            "aggregate KL(q(z) || p(z))",
            table.log_mixture_of_others() - found.log_prior,
            Direction.LOWER_BOUND,
            f"q(z) = E_x q(z|x), estimated without i: rate minus the upper bound on I(x; z). Below 0 it says nothing; "
            f"it needs so many images that their posteriors overlap, N={n} here",
        ),
        "aggregate_kl_upper": _mean(
            "aggregate KL(q(z) || p(z))",
            table.log_mixture() - found.log_prior,
            Direction.UPPER_BOUND,
            f"with i in the mixture: rate minus the lower bound on I(x; z), hence at least rate - {cap:.2f}",
        ),
    }


def _by_critic(table: AggregateDensity, found: Seen, direction: Direction) -> Measures:
    """What draws alone say, for encoders whose density cannot be evaluated at the draws of other images."""
    n, cap, least = len(table.own), table.cap, table.information_at_least()
    upper = Direction.ESTIMATE if direction is Direction.ESTIMATE else Direction.UPPER_BOUND
    return {
        "information_lower": _mean(
            "information I(x; z)",
            least,
            Direction.LOWER_BOUND,
            f"{_POPULATION}: E log r(z_i|x_i) - log 1/N sum_j r(z_i|x_j) over N={n} images, r the Gaussian with the "
            "moments of other draws, as q's own density is not known everywhere (InfoNCE, valid for any r; van den "
            f"Oord et al. 2018). It cannot exceed log N = {cap:.2f}",
            cap=cap,
        ),
        "aggregate_kl_upper": _mean(
            "aggregate KL(q(z) || p(z))",
            found.rate - least,
            upper,
            f"q(z) = E_x q(z|x): rate minus the lower bound on I(x; z), hence at least rate - {cap:.2f}. "
            "Without q's density there is no bound from below",
        ),
    }


# Weights and gradients ------------------------------------------------------------------------------------


@torch.no_grad()
def _effective_weights(look: _Look) -> Measures:
    model, encoder = look.experiment.model, look.experiment.encoder
    if look.k == 1:
        reason = "refused: with k=1 there is one weight for each image; k=50, say, asks how even 50 of them are"
        return {"ess": Measure(title="effective weights", value=None, definition=reason)}
    values = []
    for part in look.batches("weights"):
        chunks = Chunks.automatic(look.x.device, look.inner_k, batch=part.stop - part.start)
        seed = runtime.derived_seed(look.given.seed, "weights")
        numbers = look.images.numbers[part]
        values.append(weighed(model, encoder, look.x[part], look.k, look.inner_k, chunks, seed, numbers).ess())
    definition = f"(sum w)^2 / sum w^2 of the k={look.k} weights of an image, from 1 to k, averaged over images"
    if encoder.direction is Direction.ESTIMATE:
        definition += "; by a learned log q, so that it tells of the learned ratio as well as of q"
    found = _mean("effective weights", torch.cat(values), Direction.ESTIMATE, definition)
    return {"ess": dataclasses.replace(found, unit=f"of {look.k}")}


def _gradients(look: _Look) -> Measures:
    """Compare gradients of the training objective on one fixed batch, which differ by the encoder's noise alone."""
    n, experiment = look.given.gradients, look.experiment
    if not n:
        return {}
    x = look.x[: experiment.config.trainer.batch_size]
    shares = _bound_updates(experiment)
    trained = {id(p) for update in shares for p in update.parameters}
    named = {"encoder": experiment.encoder, "decoder": experiment.model}
    networks = {name: [p for p in network.parameters() if id(p) in trained] for name, network in named.items()}
    noises = {name: GradientNoise(n) for name, parameters in networks.items() if parameters}
    for _ in look.shown(range(n), "gradients"):
        gradients = _one_gradient(shares, x, Settings(look.k, look.inner_k, 1.0))
        for name, noise in noises.items():
            noise.add(torch.cat([gradients[id(p)].flatten() for p in networks[name]]))
    return {key: value for name, noise in noises.items() for key, value in _noise(name, noise, look, len(x)).items()}


def _bound_updates(experiment: Experiment) -> list[Update]:
    """Return the updates that raise the bound: not those of auxiliary_losses, whose losses are others."""
    auxiliary_losses = experiment.encoder.auxiliary_losses()
    return [update for update in updates(experiment) if update.name not in auxiliary_losses]


def _one_gradient(shares: list[Update], x: Tensor, settings: Settings) -> dict[int, Tensor]:
    """Return the gradient of each parameter, by its id."""
    gradients = {}
    for update in shares:
        try:
            loss: Loss = update.loss(x, settings)
        except ValueError as error:
            raise UserError(f"k={settings.k}, inner_k={settings.inner_k}: {error}") from error
        found = torch.autograd.grad(loss.value, update.parameters, allow_unused=True)
        for parameter, gradient in zip(update.parameters, found, strict=True):
            gradients[id(parameter)] = torch.zeros_like(parameter) if gradient is None else gradient
    if not all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
        raise RunFailed("a gradient of the training objective is not finite")
    return gradients


def _noise(name: str, noise: GradientNoise, look: _Look, batch: int) -> Measures:
    if noise.constant == noise.parameters:
        reason = f"refused: all {noise.n} gradients were the same"
        return {f"gradient_snr_{name}": Measure(title=f"gradient SNR, {name}", value=None, definition=reason)}
    n, k, (directional, stderr) = noise.n, look.k, noise.directional
    snr = Measure(
        title=f"gradient SNR, {name}",
        value=noise.snr,
        definition=(
            f"|mean| / sd over n={n} gradients of the training objective (k={k}), mean over {noise.parameters:,} "
            f"parameters but {noise.constant:,} whose gradient never varied; the same {batch} images, fresh draws. "
            f"Pure Gaussian noise scores {noise.floor:.3f}"
        ),
        extra={"floor": noise.floor, "n": float(n), "constant": float(noise.constant)},
    )
    dsnr = Measure(
        title=f"gradient DSNR, {name}",
        value=directional,
        stderr=stderr,
        definition=(
            f"E[g_along / |g_across|] of {n - n // 2} gradients, along the mean of {n // 2} others (Rainforth et al. "
            "2018; signed here, so that pure noise scores 0)"
        ),
        extra={"n": float(n)},
    )
    return {f"gradient_snr_{name}": snr, f"gradient_dsnr_{name}": dsnr}
