"""Numbers on both sides of what an encoder is: its log density, its divergences, and how much its latents tell.

log q(z|x) of a hierarchical encoder lies between two multisample bounds (see ``log_q_bounds`` of
:class:`vaebench.encoders.base.Encoder`). So does everything that it enters linearly: the rate KL(q(z|x) || p(z)), the
ELBO, the mutual information of z and the auxiliary variable. KL(q(z|x) || p(z|x)) = log p(x) - ELBO also takes a bound
on log p(x): one from below is at hand for any image, one from above only for images that the model made itself, whose
posterior has left an exact draw.

Source: Sobolev and Vetrov 2019, https://arxiv.org/abs/1905.03290

Shapes: K draws first, B images, D latent coordinates; nats. docs/sandwich.md says which combination bounds what.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench import noise
from vaebench.bounds import LogMeanExp
from vaebench.encoders.base import Draw, Encoder, LogQBounds
from vaebench.estimators.importance import Chunks
from vaebench.model import GenerativeModel
from vaebench.objective import Evidence, weigh
from vaebench.runtime import derived_seed

__all__ = ["Between", "SandwichResult", "Side", "information_about_images", "sandwich"]

SIDES = ("lower", "upper")


class Side(NamedTuple):
    """One number per image, with the standard error that the draws leave in it; (B,) each, float64, nats."""

    values: Tensor
    stderr: Tensor
    """NaN where one draw cannot tell."""


class Between(NamedTuple):
    """What is known of a quantity: a bound in expectation from below and from above, or None where there is none.

    Where both are the same object, the encoder's log q is a single number: the quantity itself if that is exact.
    """

    lower: Side | None
    upper: Side | None

    @property
    def single(self) -> bool:
        """Whether both sides are one number."""
        return self.lower is not None and self.lower is self.upper


NOTHING = Between(None, None)


@dataclass(frozen=True)
class SandwichResult:
    """Bounds for each of B images. Expectations are over z ~ q(z|x)."""

    log_q: Between
    """E log q(z|x), minus the entropy of q(z|x)."""
    rate: Between
    """KL(q(z|x) || p(z))."""
    elbo: Between
    """E log p(x, z) - log q(z|x)."""
    evidence: Between
    """log p(x)."""
    divergence: Between
    """KL(q(z|x) || p(z|x))."""
    slack: Between
    """What the upper bound on E log q(z|x) exceeds it by: the q-gap."""
    psi_information: Between
    """I_q(z; psi | x)."""
    image_information: Between = NOTHING
    """The image's part of I(x; z): under q where it was asked for, else under the model where z* was given."""

    def rows(self) -> dict[str, Tensor]:
        """Return everything that there is by name, (B,) each; :meth:`from_rows` undoes it."""
        rows: dict[str, Tensor] = {}
        for name, between in self.quantities():
            sides = {"value": between.upper} if between.single else between._asdict()
            for side, found in sides.items():
                if found is not None:
                    rows |= {f"{name}.{side}": found.values, f"{name}.{side}.stderr": found.stderr}
        return rows

    @classmethod
    def from_rows(cls, rows: dict[str, Tensor]) -> "SandwichResult":
        """Undo :meth:`rows`."""

        def between(name: str) -> Between:
            found = {
                side: Side(rows[f"{name}.{side}"], rows[f"{name}.{side}.stderr"])
                for side in ("value", *SIDES)
                if f"{name}.{side}" in rows
            }
            single = found.get("value")
            return Between(single, single) if single else Between(found.get("lower"), found.get("upper"))

        return cls(**{f.name: between(f.name) for f in fields(cls)})

    def quantities(self) -> Iterator[tuple[str, Between]]:
        """Yield all of it, by name."""
        for f in fields(self):
            yield f.name, getattr(self, f.name)


# Sums over draws ------------------------------------------------------------------------------------------


class _Mean:
    """A running mean over draws that arrive in chunks, with its standard error."""

    def __init__(self) -> None:
        self.count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Take in (K_chunk, B)."""
        values = values.double()
        self.count += len(values)
        self._sum = self._sum.to(values) + values.sum(0)
        self._squares = self._squares.to(values) + values.square().sum(0)

    def side(self) -> Side:
        """Return the mean of all draws."""
        mean = self._sum / self.count
        if self.count == 1:
            return Side(mean, torch.full_like(mean, math.nan))
        variance = (self._squares / self.count - mean.square()).clamp(min=0) / (self.count - 1)
        return Side(mean, variance.sqrt())


class _Weights:
    """A running log-mean-exp of importance weights, with its standard error."""

    def __init__(self) -> None:
        self._weights, self._squares = LogMeanExp(), LogMeanExp()

    def add(self, log_w: Tensor) -> None:
        """Take in (K_chunk, B)."""
        self._weights.add(log_w)
        self._squares.add(2 * log_w)

    def side(self) -> Side:
        """Return log 1/K sum_k w_k."""
        value, count = self._weights.value(), self._weights.count
        if count == 1:
            return Side(value, torch.full_like(value, math.nan))
        spread = (self._squares.value() - 2 * value).exp() - 1
        return Side(value, (spread.clamp(min=0) / (count - 1)).sqrt())

    def with_posterior_draw(self, log_w: Tensor) -> Side:
        """Return log 1/(K+1) (w* + sum_k w_k), with w* that of an exact posterior draw: its mean is an upper bound."""
        count = self._weights.count
        total = torch.logaddexp(self._weights.value() + math.log(count), log_w.double())
        return Side(total - math.log(count + 1), torch.full_like(total, math.nan))


class _Tally:
    """Everything that is averaged over the draws."""

    def __init__(self) -> None:
        self.means: dict[str, _Mean] = {}
        self.weights = _Weights()
        self.single = False

    def add(self, drawn: LogQBounds, found: Evidence) -> None:
        """Take in K_chunk draws; ``found`` weighs them by their upper bound on log q."""
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
        # The more log q, the less the ELBO.
        self._mean(f"elbo.{opposite}").add(found.log_likelihood + found.log_prior - log_q)

    def _add_information(self, side: str, conditional: Tensor | None, log_q: Tensor) -> None:
        if conditional is not None:
            self._mean(f"psi_information.{side}").add(conditional - log_q)

    def _mean(self, name: str) -> _Mean:
        return self.means.setdefault(name, _Mean())

    def between(self, name: str) -> Between:
        """Return a quantity's two sides."""
        found = {side: self.means[f"{name}.{side}"].side() for side in SIDES if f"{name}.{side}" in self.means}
        if self.single and found:
            return Between(found["upper"], found["upper"])
        return Between(found.get("lower"), found.get("upper"))


def less(first: Side | None, second: Side | None) -> Side | None:
    """Return the difference of two sides; its error as if theirs were independent. None where one is missing."""
    if first is None or second is None:
        return None
    return Side(first.values - second.values, torch.hypot(first.stderr, second.stderr))


# The result -----------------------------------------------------------------------------------------------


def _table(seed: int | None, purpose: str, numbers: Tensor, first: int = 0) -> AbstractContextManager[None]:
    return nullcontext() if seed is None else noise.keyed(derived_seed(seed, "sandwich", purpose), numbers, first)


@torch.no_grad()
def sandwich(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    k: int = 100,
    inner_k: int = 0,
    chunk: int | None = None,
    *,
    posterior: Tensor | None = None,
    evidence: Between | None = None,
    inner_chunk: int | None = None,
    seed: int | None = None,
    images: Tensor | None = None,
) -> SandwichResult:
    """Bound log q(z|x), and what is made of it, from both sides for each image.

    Every bound is one in expectation, for any ``k`` and ``inner_k``: the first lowers its error, the second takes the
    sides closer to each other. A single image's may cross.

    Args:
        model: p(x, z).
        encoder: q(z|x). Where its log q is exact, both sides are one number; where it is an estimate, both are that
            estimate, and no bounds.
        x: images, (B, X).
        k: draws of z for each.
        inner_k: inner samples L for each draw, of encoders whose log q is an upper bound; without them there is no
            lower bound on it.
        chunk: draws at a time (chosen if None); does not change a seeded result beyond rounding.
        posterior: an exact draw from p(z|x) for each image, (B, D), of images that the model made: with it, log p(x)
            has an upper bound too.
        evidence: bounds on log p(x) from elsewhere, from annealing say, to be used in place of those made here.
        inner_chunk: inner samples at a time.
        seed: makes the result a function of (seed, image number); None draws from the global generator.
        images: the images' numbers, (B,), with ``seed``; 0..B-1 if None.

    Raises:
        ValueError: k < 1 or inner_k < 0.
    """
    if k < 1 or inner_k < 0:
        raise ValueError(f"k must be at least 1 and inner_k at least 0, got k={k}, inner_k={inner_k}")
    sizes = Chunks.automatic(x.device, inner_k, batch=len(x), samples=chunk)
    numbers = torch.arange(len(x)) if images is None else images
    with _table(seed, "encode", numbers):
        context = encoder.encode(x)
    tally = _Tally()
    for first in range(0, k, sizes.samples):
        count = min(sizes.samples, k - first)
        with _table(seed, "draw", numbers, first):
            drawn = encoder.log_q_bounds(context, count, inner_k=inner_k, inner_chunk=inner_chunk or sizes.inner)
        tally.add(drawn, weigh(model, x, Draw(drawn.z, drawn.upper)))
    if evidence is None:
        with _table(seed, "posterior", numbers):
            evidence = _weighed(model, encoder, x, context, tally, posterior, inner_k)
    elbo, log_q = tally.between("elbo"), tally.between("log_q")
    return SandwichResult(
        log_q=log_q,
        rate=tally.between("rate"),
        elbo=elbo,
        evidence=evidence,
        divergence=Between(less(evidence.lower, elbo.upper), less(evidence.upper, elbo.lower)),
        slack=tally.between("slack"),
        psi_information=tally.between("psi_information"),
        image_information=NOTHING if posterior is None else _about_own_image(model, x, posterior, evidence),
    )


def _weighed(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    context: Any,
    tally: _Tally,
    posterior: Tensor | None,
    inner_k: int,
) -> Between:
    """Bound log p(x) by the weights of the draws, and from above where an exact draw comes with the image.

    The exact draw's own psi_0..L are all fresh: given z, the psi_0 that makes it is one of L + 1 draws from tau, chosen
    in proportion to its ratio, and the mean of the ratios does not tell which.
    """
    lower = tally.weights.side()
    if posterior is None:
        return Between(lower, None)
    z = posterior.unsqueeze(0)
    log_q = encoder.log_q_at(context, z, samples=inner_k + 1)
    if log_q is None:
        return Between(lower, None)
    return Between(lower, tally.weights.with_posterior_draw(weigh(model, x, Draw(z, log_q)).log_weights()[0]))


def _about_own_image(model: GenerativeModel, x: Tensor, z: Tensor, evidence: Between) -> Between:
    """Bound I(x; z) = E log p(x|z) - log p(x) under the model, of which (x, z) is a draw."""
    log_likelihood = model.likelihood(z.unsqueeze(0)).log_prob(x)[0].double()
    known = Side(log_likelihood, torch.zeros_like(log_likelihood))
    return Between(less(known, evidence.upper), less(known, evidence.lower))


# Between images and latents -------------------------------------------------------------------------------


@torch.no_grad()
def information_about_images(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    part: slice,
    k: int = 1,
    inner_k: int = 0,
    *,
    seed: int | None = None,
    images: Tensor | None = None,
) -> Between:
    """Bound I_q(x; z) = E log q(z|x) - log q(z) by N images, whose mixture stands for q(z) = E_x q(z|x).

    With the image that made z among the N, log 1/N sum_i q(z|x_i) is an upper bound on log q(z) and the information is
    bounded from below, never beyond log N. With the prior in the place of that image the mixture is a density that z
    owes nothing to, and the two turn round: the upper bound exceeds the rate by log N at most. This is the multisample
    bound of a hierarchical encoder with the image as its auxiliary variable, and the inner samples of each image take
    part in it: those of the image that made z are its own psi_0 and L fresh ones, those of others L + 1 fresh ones.

    Source: Poole et al. 2019, https://arxiv.org/abs/1905.06922

    Args:
        model: p(x, z), for its prior.
        encoder: q(z|x).
        x: the N images, drawn independently, (N, X).
        part: which of them to return.
        k: draws of z for each.
        inner_k: as for :func:`sandwich`.
        seed: makes the result a function of (seed, the images' numbers); None draws from the global generator.
        images: the images' numbers, (N,), with ``seed``; 0..N-1 if None.

    Returns:
        The images' parts, (B,); sides are missing where the encoder cannot score z that are not its own
        (:meth:`vaebench.encoders.base.Encoder.log_q_at`), or has no lower bound on log q.
    """
    numbers = torch.arange(len(x)) if images is None else images
    with _table(seed, "encode", numbers):
        context = encoder.encode(x)
    with _table(seed, "pair", numbers):
        drawn = encoder.log_q_bounds(context, k, inner_k=inner_k)
    below, above = _Columns(), _Columns()
    for j in range(len(x))[part]:
        # Inner samples of its own for each z: errors of different images are then independent.
        source = nullcontext() if seed is None else _table(seed, f"pairs of {int(numbers[j])}", numbers)
        with source:
            scores = _scores(encoder, context, drawn, j, inner_k)
        if scores is None:
            return NOTHING
        if drawn.lower is not None:
            below.add(drawn.lower[:, j] - _log_mean(scores))
        log_prior = model.prior().log_prob(drawn.z[:, j : j + 1]).double()
        above.add(drawn.upper[:, j] - _log_mean(torch.cat([scores[:, :j], log_prior, scores[:, j + 1 :]], 1)))
    return Between(below.side(), above.side())


def _scores(encoder: Encoder, context: Any, drawn: LogQBounds, j: int, inner_k: int) -> Tensor | None:
    """Return an estimate of log q(z|x_i) for the draws z of image ``j``, under all images i, (K, N)."""
    k, count, width = drawn.z.shape
    z = drawn.z[:, j : j + 1].expand(k, count, width)
    rows = Chunks.automatic(z.device, inner_k + 1, batch=count, samples=k)
    scores = encoder.log_q_at(context, z, samples=inner_k + 1, chunk=rows.inner)
    if scores is None:
        return None
    scores = scores.double()
    scores[:, j] = drawn.upper[:, j].double()
    return scores


def _log_mean(scores: Tensor) -> Tensor:
    return torch.logsumexp(scores, 1) - math.log(scores.shape[1])


class _Columns:
    """Numbers of one image after another."""

    def __init__(self) -> None:
        self._sides: list[Side] = []

    def add(self, values: Tensor) -> None:
        """Take in one image's K numbers."""
        mean = _Mean()
        mean.add(values.unsqueeze(1))
        self._sides.append(mean.side())

    def side(self) -> Side | None:
        """Return all images so far; None where there was none."""
        return Side(*(torch.cat(part) for part in zip(*self._sides, strict=True))) if self._sides else None
