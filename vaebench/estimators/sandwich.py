"""Lower and upper bounds on log q(z|x), on divergences, and on mutual informations of the latents.

log q(z|x) of a hierarchical encoder lies between two multisample bounds (see ``log_q_bounds`` of
:class:`vaebench.encoders.base.Encoder`). So does every quantity that is linear in log q: the rate KL(q(z|x) || p(z)),
the ELBO, the mutual information of z and the auxiliary variable. KL(q(z|x) || p(z|x)) = log p(x) - ELBO also needs a
bound on log p(x). A lower bound exists for any image, an upper bound only for simulated images, which come with an
exact draw from their posterior.

Source: Sobolev and Vetrov 2019, https://arxiv.org/abs/1905.03290

Shapes: K draws first, B images, D latent coordinates; nats. docs/sandwich.md lists which combination bounds which
quantity.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench.bounds import LogMeanExp
from vaebench.encoders.base import Draw, Encoder, LogQBounds
from vaebench.estimators.importance import Chunks
from vaebench.estimators.sampling import Sampling, keyed_noise
from vaebench.images import checked_images
from vaebench.model import GenerativeModel
from vaebench.objective import Evidence, weigh
from vaebench.runtime import in_float64

__all__ = ["BoundValue", "Bounds", "SandwichResult", "information_about_images", "sandwich"]

SIDES = ("lower", "upper")


class BoundValue(NamedTuple):
    """A bound of each image and its standard error over the draws; (B,) each, float64, nats."""

    values: Tensor
    stderr: Tensor
    """NaN for a single draw."""


class Bounds(NamedTuple):
    """A lower and an upper bound on one quantity, both in expectation; None for a bound that does not exist.

    Both are the same object if the encoder's log q is a single number: the quantity itself if log q is exact.
    """

    lower: BoundValue | None
    upper: BoundValue | None

    @property
    def single(self) -> bool:
        """Whether both bounds are one number."""
        return self.lower is not None and self.lower is self.upper


NO_BOUNDS = Bounds(None, None)


class SandwichResult(NamedTuple):
    """Bounds for each of B images. Expectations are over z ~ q(z|x)."""

    log_q: Bounds
    """E log q(z|x), minus the entropy of q(z|x)."""
    rate: Bounds
    """KL(q(z|x) || p(z))."""
    elbo: Bounds
    """E log p(x, z) - log q(z|x)."""
    evidence: Bounds
    """log p(x)."""
    divergence: Bounds
    """KL(q(z|x) || p(z|x))."""
    slack: Bounds
    """The difference between the upper bound on E log q(z|x) and E log q(z|x): the q-gap."""
    psi_information: Bounds
    """I_q(z; psi | x)."""
    image_information: Bounds = NO_BOUNDS
    """The image's part of I(x; z): under q if it was computed, else under the model if z* was given."""

    def rows(self) -> dict[str, Tensor]:
        """Return all existing bounds by name, (B,) each; :meth:`from_rows` is the inverse."""
        rows: dict[str, Tensor] = {}
        for name, bounds in self._asdict().items():
            sides = {"value": bounds.upper} if bounds.single else bounds._asdict()
            for side, found in sides.items():
                if found is not None:
                    rows |= {f"{name}.{side}": found.values, f"{name}.{side}.stderr": found.stderr}
        return rows

    @classmethod
    def from_rows(cls, rows: dict[str, Tensor]) -> "SandwichResult":
        """Return the result with these :meth:`rows`."""

        def bounds(name: str) -> Bounds:
            found = {
                side: BoundValue(rows[f"{name}.{side}"], rows[f"{name}.{side}.stderr"])
                for side in ("value", *SIDES)
                if f"{name}.{side}" in rows
            }
            single = found.get("value")
            return Bounds(single, single) if single else Bounds(found.get("lower"), found.get("upper"))

        return cls(*map(bounds, cls._fields))


# Sums over draws ------------------------------------------------------------------------------------------


class _Mean:
    """A running mean over draws that arrive in chunks, with its standard error."""

    def __init__(self) -> None:
        self.count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Add (K_chunk, B)."""
        values = in_float64(values)
        self.count += len(values)
        self._sum = self._sum.to(values) + values.sum(0)
        self._squares = self._squares.to(values) + values.square().sum(0)

    def value(self) -> BoundValue:
        """Return the mean of all draws."""
        mean = self._sum / self.count
        if self.count == 1:
            return BoundValue(mean, torch.full_like(mean, math.nan))
        variance = (self._squares / self.count - mean.square()).clamp(min=0) / (self.count - 1)
        return BoundValue(mean, variance.sqrt())


class _Weights:
    """A running log-mean-exp of importance weights, with its standard error."""

    def __init__(self) -> None:
        self._weights, self._squares = LogMeanExp(), LogMeanExp()

    def add(self, log_w: Tensor) -> None:
        """Add (K_chunk, B)."""
        self._weights.add(log_w)
        self._squares.add(2 * log_w)

    def value(self) -> BoundValue:
        """Return log 1/K sum_k w_k."""
        value, count = self._weights.value(), self._weights.count
        if count == 1:
            return BoundValue(value, torch.full_like(value, math.nan))
        spread = (self._squares.value() - 2 * value).exp() - 1
        return BoundValue(value, (spread.clamp(min=0) / (count - 1)).sqrt())

    def with_posterior_draw(self, log_w: Tensor) -> BoundValue:
        """Return log 1/(K+1) (w* + sum_k w_k), with w* the weight of an exact posterior draw.

        Its mean is an upper bound on log p(x).
        """
        count = self._weights.count
        total = torch.logaddexp(self._weights.value() + math.log(count), in_float64(log_w))
        return BoundValue(total - math.log(count + 1), torch.full_like(total, math.nan))


class _Accumulator:
    """Running means over the draws, of all quantities."""

    def __init__(self) -> None:
        self.means: dict[str, _Mean] = {}
        self.weights = _Weights()
        self.single = False

    def add(self, drawn: LogQBounds, found: Evidence) -> None:
        """Add K_chunk draws; ``found`` weighs them with their upper bound on log q."""
        self.single = drawn.lower is drawn.upper
        self.weights.add(found.log_weights())
        for side, log_q in (("lower", drawn.lower), ("upper", drawn.upper)):
            if log_q is not None:
                self._add_side(side, log_q, found)
                self._add_information(SIDES[side == "lower"], drawn.conditional, log_q)
        if drawn.lower is not None and not self.single:
            self._mean("slack.upper").add(drawn.upper - drawn.lower)

    def _add_side(self, side: str, log_q: Tensor, found: Evidence) -> None:
        opposite = SIDES[side == "lower"]
        self._mean(f"log_q.{side}").add(log_q)
        self._mean(f"rate.{side}").add(log_q - found.log_prior)
        # log q enters the ELBO with a minus sign.
        self._mean(f"elbo.{opposite}").add(found.log_likelihood + found.log_prior - log_q)

    def _add_information(self, side: str, conditional: Tensor | None, log_q: Tensor) -> None:
        if conditional is not None:
            self._mean(f"psi_information.{side}").add(conditional - log_q)

    def _mean(self, name: str) -> _Mean:
        return self.means.setdefault(name, _Mean())

    def bounds(self, name: str) -> Bounds:
        """Return the bounds on a quantity."""
        found = {side: self.means[f"{name}.{side}"].value() for side in SIDES if f"{name}.{side}" in self.means}
        if self.single and found:
            return Bounds(found["upper"], found["upper"])
        return Bounds(found.get("lower"), found.get("upper"))


def difference(first: BoundValue | None, second: BoundValue | None) -> BoundValue | None:
    """Return first - second, with the error of independent numbers; None if either is None."""
    if first is None or second is None:
        return None
    return BoundValue(first.values - second.values, torch.hypot(first.stderr, second.stderr))


# The result -----------------------------------------------------------------------------------------------


@torch.no_grad()
def sandwich(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    sampling: Sampling,
    *,
    posterior: Tensor | None = None,
    evidence: Bounds | None = None,
) -> SandwichResult:
    """Return bounds on log q(z|x), and on the quantities that contain it, for each image.

    Every bound holds in expectation, for any ``k`` and ``inner_k`` of the sampling. More draws lower its error; more
    inner samples move the bounds closer together. The bounds of a single image may cross.

    Args:
        model: p(x, z).
        encoder: q(z|x). If its log q is exact, both bounds are one number; if it is an estimate, both are that
            estimate, and no bounds.
        x: images, (B, X).
        sampling: draws of z per image, and inner samples L per draw for encoders whose log q is an upper bound; with
            L = 0 there is no lower bound on log q.
        posterior: an exact draw from p(z|x) for each image, (B, D), which simulated images have: with it, log p(x)
            has an upper bound too.
        evidence: other bounds on log p(x), for example from annealing, to use in place of those made here.
    """
    x = checked_images(model, encoder, x)
    sizes, sampling = Chunks.of(x, sampling), sampling.on(sampling.numbers(x).to(x.device))
    with sampling.noise(x, "sandwich", "encode"):
        context = encoder.encode(x)
    sums = _Accumulator()
    for first in range(0, sampling.k, sizes.samples):
        count = min(sizes.samples, sampling.k - first)
        with sampling.noise(x, "sandwich", "draw", first=first):
            drawn = encoder.log_q_bounds(context, count, inner_k=sampling.inner_k, inner_chunk=sizes.inner)
        sums.add(drawn, weigh(model, x, Draw(drawn.z, drawn.upper)))
    if evidence is None:
        with sampling.noise(x, "sandwich", "posterior"):
            evidence = _weighed(model, encoder, x, context, sums.weights, posterior, sampling.inner_k)
    elbo = sums.bounds("elbo")
    return SandwichResult(
        log_q=sums.bounds("log_q"),
        rate=sums.bounds("rate"),
        elbo=elbo,
        evidence=evidence,
        divergence=Bounds(difference(evidence.lower, elbo.upper), difference(evidence.upper, elbo.lower)),
        slack=sums.bounds("slack"),
        psi_information=sums.bounds("psi_information"),
        image_information=NO_BOUNDS if posterior is None else _about_own_image(model, x, posterior, evidence),
    )


def _weighed(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    context: Any,
    weights: _Weights,
    posterior: Tensor | None,
    inner_k: int,
) -> Bounds:
    """Return bounds on log p(x) from the weights of the draws; the upper one needs an exact draw from the posterior.

    The psi_0..L of the exact draw are all fresh: given z, the psi_0 that generates it is one of L + 1 draws from tau,
    chosen in proportion to its ratio, and the mean of the ratios does not depend on which one.
    """
    lower = weights.value()
    if posterior is None:
        return Bounds(lower, None)
    z = posterior.unsqueeze(0)
    log_q = encoder.log_q_at(context, z, samples=inner_k + 1)
    if log_q is None:
        return Bounds(lower, None)
    return Bounds(lower, weights.with_posterior_draw(weigh(model, x, Draw(z, log_q)).log_weights()[0]))


def _about_own_image(model: GenerativeModel, x: Tensor, z: Tensor, evidence: Bounds) -> Bounds:
    """Return bounds on I(x; z) = E log p(x|z) - log p(x) under the model, given a draw (x, z) from it."""
    log_likelihood = in_float64(model.likelihood(z.unsqueeze(0)).log_prob(x)[0])
    known = BoundValue(log_likelihood, torch.zeros_like(log_likelihood))
    return Bounds(difference(known, evidence.upper), difference(known, evidence.lower))


# Mutual information of images and latents -----------------------------------------------------------------


@torch.no_grad()
def information_about_images(
    model: GenerativeModel, encoder: Encoder, x: Tensor, part: slice, sampling: Sampling
) -> Bounds:
    """Return bounds on I_q(x; z) = E log q(z|x) - log q(z), with the mixture of N images for q(z) = E_x q(z|x).

    If the image that generated z is among the N, log 1/N sum_i q(z|x_i) is an upper bound on log q(z). It gives a
    lower bound on the information, which is at most log N. With the prior in place of that image, the mixture is a
    density that does not depend on z. It gives an upper bound on the information, which exceeds the rate by at most
    log N. This is the multisample bound of a hierarchical encoder with the image as its auxiliary variable. Inner
    samples take part: the image that generated z has its own psi_0 and L fresh ones, the others have L + 1 fresh ones.

    Source: Poole et al. 2019, https://arxiv.org/abs/1905.06922

    Args:
        model: p(x, z), for its prior.
        encoder: q(z|x).
        x: the N images, drawn independently, (N, X).
        part: the images to return.
        sampling: draws of z and inner samples per image; ``images`` are the numbers of all N.

    Returns:
        The images' parts, (B,). Bounds are missing if the encoder cannot compute the density of other z
        (:meth:`vaebench.encoders.base.Encoder.log_q_at`), or has no lower bound on log q.
    """
    x = checked_images(model, encoder, x)
    numbers, seed, inner_k = sampling.numbers(x), sampling.seed, sampling.inner_k
    with sampling.noise(x, "sandwich", "encode"):
        context = encoder.encode(x)
    with sampling.noise(x, "sandwich", "pair"):
        drawn = encoder.log_q_bounds(context, sampling.k, inner_k=inner_k)
    below: list[BoundValue] = []
    above: list[BoundValue] = []
    for j in range(len(x))[part]:
        # Separate inner samples for each z: errors of different images are then independent.
        with keyed_noise(seed, numbers, "sandwich", f"pairs of {int(numbers[j])}"):
            scores = _scores(encoder, context, drawn, j, inner_k)
        if scores is None:
            return NO_BOUNDS
        if drawn.lower is not None:
            below.append(_mean_of(in_float64(drawn.lower[:, j]) - _log_mean(scores)))
        log_prior = in_float64(model.prior().log_prob(drawn.z[:, j : j + 1]))
        log_mixture = _log_mean(torch.cat([scores[:, :j], log_prior, scores[:, j + 1 :]], 1))
        above.append(_mean_of(in_float64(drawn.upper[:, j]) - log_mixture))
    return Bounds(concatenated(below), concatenated(above))


def _scores(encoder: Encoder, context: Any, drawn: LogQBounds, j: int, inner_k: int) -> Tensor | None:
    """Return an estimate of log q(z|x_i) for the draws z of image ``j``, under all images i, (K, N)."""
    k, count, width = drawn.z.shape
    z = drawn.z[:, j : j + 1].expand(k, count, width)
    sizes = Chunks.automatic(z.device, Sampling(k, inner_k + 1, chunk=k), images=count, batch=count)
    scores = encoder.log_q_at(context, z, samples=inner_k + 1, chunk=sizes.inner)
    if scores is None:
        return None
    scores = in_float64(scores)
    scores[:, j] = in_float64(drawn.upper[:, j])
    return scores


def _log_mean(scores: Tensor) -> Tensor:
    return torch.logsumexp(scores, 1) - math.log(scores.shape[1])


def _mean_of(values: Tensor) -> BoundValue:
    """Return the mean over the K draws of one image, (1,) each, from (K,)."""
    mean = _Mean()
    mean.add(values.unsqueeze(1))
    return mean.value()


def concatenated(parts: Sequence[BoundValue]) -> BoundValue | None:
    """Return the concatenation of several batches of images; None for no batch."""
    return BoundValue(*(torch.cat(part) for part in zip(*parts, strict=True))) if parts else None
