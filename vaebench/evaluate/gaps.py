"""Inference gaps as an estimator: what separates an encoder's bound from log p(x), in parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.encoders.base import Direction, Encoder
from vaebench.errors import UserError
from vaebench.estimators.gaps import (
    Optimisation,
    best_gaussian,
    best_of_family,
    elbo,
    per_image,
    selected_log_likelihood,
)
from vaebench.estimators.importance import log_likelihood
from vaebench.evaluate.importance import proposal
from vaebench.evaluate.job import Estimate, EstimatorJob, chosen
from vaebench.experiment import Experiment

__all__ = ["inference_gaps"]

ROWS = ("log_likelihood", "bound", "elbo", "importance_weighted", "gaussian", "family")
"""What is kept of each image; see :class:`_Parts`."""
_EITHER_WAY = "too small where log p(x) is loose, too large where q* is not fitted to the end"


def inference_gaps(experiment: Experiment) -> EstimatorJob:
    """Plan the gaps of the encoder, or of its proposal where its own log q is an estimate."""
    given, images, gaps = experiment.config.estimator, chosen(experiment), _Gaps.of(experiment)

    def numbers(part: slice) -> Tensor:
        with runtime.forked_randomness(experiment.device, runtime.derived_seed(given.seed, part.start)):
            return gaps.measure(experiment.data.observe(images.intensities[part]), images.numbers[part])

    return EstimatorJob(
        split=given.split,
        protocol=images.protocol,
        images=images.numbers,
        key=["gaps", given.seed, given.k, *gaps.key()],
        rows=ROWS,
        batch=given.batch or 10,
        numbers=numbers,
        summarise=lambda rows: gaps.summarise(_Parts(*rows)),
    )


@dataclass(frozen=True)
class _Parts:
    """Numbers of N images, (N,) each; where two are the same by definition, they are the same."""

    log_likelihood: Tensor
    """A lower bound on log p(x), close to it."""
    bound: Tensor
    """The ELBO of the amortised posterior, with the inner samples of training."""
    elbo: Tensor
    """The same, with many inner samples."""
    importance_weighted: Tensor
    """L_k of training."""
    gaussian: Tensor
    """The ELBO of the best diagonal Gaussian."""
    family: Tensor
    """The ELBO of the best posterior of the encoder's family, with many inner samples; NaN where none was fitted."""


@dataclass(frozen=True)
class _Gaps:
    """How gaps are measured for one run."""

    experiment: Experiment
    encoder: Encoder
    """The trained one, or its proposal."""
    is_gaussian: bool
    """Whether its family is that of the diagonal Gaussians."""
    tuned: bool
    """Whether copies of it are trained on single images."""
    gaussian_fit: Optimisation
    family_fit: Optimisation
    inner_k: int
    """What counts as many."""
    shown: dict[str, Any]
    """What sets the encoder apart from the trained one."""

    @classmethod
    def of(cls, experiment: Experiment) -> "_Gaps":
        """Read the configuration; UserError for settings that make no sense for the run."""
        given, (encoder, shown) = experiment.config.estimator, proposal(experiment)
        if encoder.direction is Direction.ESTIMATE:
            raise UserError("estimator=gaps needs an encoder, or a proposal, whose log q is valid")
        x = torch.zeros(1, experiment.data.train.shape[1], device=experiment.device)
        with torch.no_grad(), runtime.forked_randomness(experiment.device, seed=0):
            is_gaussian = encoder.exact_posterior(x) is not None
        inner_k = given.inner_k if given.inner_k is not None else experiment.inner_k
        fit = partial(Optimisation, steps=given.steps, draws=given.fit_draws)
        return cls(
            experiment,
            encoder,
            is_gaussian,
            given.finetune and not is_gaussian,
            fit(lr=given.lr),
            fit(lr=given.finetune_lr),
            max(inner_k, experiment.inner_k) if encoder.has_inner_samples else 0,
            shown,
        )

    @property
    def hierarchical(self) -> bool:
        """Whether the bound has inner samples."""
        return self.encoder.has_inner_samples

    def key(self) -> list[object]:
        """Return all that the numbers depend on beside the seed and k."""
        given = self.experiment.config.estimator
        fits = [given.steps, given.fit_draws, given.lr, given.finetune_lr]
        return [given.draws, self.tuned, self.inner_k, *fits, type(self.encoder).__name__, *self.shown.items()]

    def measure(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Return the rows of images x, (B, X)."""
        experiment, model, seed = self.experiment, self.experiment.model, self.experiment.config.estimator.seed
        encoder, trained_inner_k = self.encoder, self.experiment.inner_k
        gaussian = best_gaussian(model, encoder, x, self.gaussian_fit, seed=seed, images=numbers)
        proposals: list[Encoder | Sequence[Encoder]] = [encoder, gaussian]
        if self.tuned:
            proposals.append(
                best_of_family(model, encoder, x, self.family_fit, inner_k=trained_inner_k, seed=seed, images=numbers)
            )
        k = experiment.config.estimator.k
        reference = selected_log_likelihood(
            model, proposals, x, k, inner_k=self.inner_k, seed=runtime.derived_seed(seed, "k"), images=numbers
        )
        tight = [self._elbo(proposal, x, numbers, self.inner_k) for proposal in proposals]
        bound = self._elbo(encoder, x, numbers, trained_inner_k) if self.hierarchical else tight[0]
        family = tight[-1] if self.tuned or self.is_gaussian else torch.full_like(tight[0], torch.nan)
        weighted = self._importance_weighted(x, numbers) if experiment.k > 1 else bound
        return torch.stack([reference, bound, tight[0], weighted, tight[1], family])

    def _elbo(self, encoder: Encoder | Sequence[Encoder], x: Tensor, numbers: Tensor, inner_k: int) -> Tensor:
        given, model = self.experiment.config.estimator, self.experiment.model
        # One seed for all: their differences share the noise.
        seed = runtime.derived_seed(given.seed, "elbo")

        def estimate(encoder: Encoder, x: Tensor, numbers: Tensor, inner_k: int) -> Tensor:
            return elbo(model, encoder, x, given.draws, inner_k=inner_k, seed=seed, images=numbers)

        return per_image(estimate, encoder, x, numbers, inner_k)

    def _importance_weighted(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Return L_k of training, from about as many draws as an ELBO has."""
        experiment, given = self.experiment, self.experiment.config.estimator
        repeats = -(-given.draws // experiment.k)
        estimates = [
            log_likelihood(
                experiment.model,
                self.encoder,
                x,
                experiment.k,
                experiment.inner_k if self.hierarchical else 0,
                seed=runtime.derived_seed(given.seed, "weighted", repeat),
                images=numbers,
            )
            for repeat in range(repeats)
        ]
        return torch.stack(estimates).mean(0)

    # What is reported -------------------------------------------------------------------------------------

    def summarise(self, found: _Parts) -> list[Estimate]:
        """Return the gaps, and what they are differences of, each with its direction."""
        exact = self.encoder.direction is Direction.EXACT
        estimates = [
            self._found("log p(x)", Direction.LOWER_BOUND, found.log_likelihood),
            self._found("ELBO of q", Direction.EXACT if exact else Direction.LOWER_BOUND, found.elbo),
            self._found("ELBO of the best Gaussian", Direction.LOWER_BOUND, found.gaussian),
        ]
        if self.tuned:
            estimates.append(self._found("ELBO of q*", Direction.LOWER_BOUND, found.family))
        estimates.append(self._found("inference gap", Direction.LOWER_BOUND, found.log_likelihood - found.bound))
        if self.tuned or self.is_gaussian:
            amortised = found.family - found.elbo
            estimates += [
                self._found("approximation gap", Direction.ESTIMATE, found.log_likelihood - found.family),
                self._found("amortisation gap", Direction.LOWER_BOUND if exact else Direction.ESTIMATE, amortised),
            ]
        if not self.is_gaussian:
            gap = found.log_likelihood - found.gaussian
            estimates.append(self._found("approximation gap of a Gaussian", Direction.ESTIMATE, gap))
        return estimates + self._bound_gaps(found)

    def _bound_gaps(self, found: _Parts) -> list[Estimate]:
        estimates, k = [], self.experiment.k
        if self.hierarchical:
            estimates.append(self._found("bound gap", Direction.LOWER_BOUND, found.elbo - found.bound))
        if k > 1:
            gap = found.log_likelihood - found.importance_weighted
            estimates.append(self._found(f"gap of the IWAE-{k} bound", Direction.LOWER_BOUND, gap))
        return estimates

    def _found(self, quantity: str, direction: Direction, values: Tensor) -> Estimate:
        given = self.experiment.config.estimator
        return Estimate(
            estimator="gaps",
            direction=direction,
            values=values,
            quantity=quantity,
            k=given.k,
            inner_k=self.inner_k if self.hierarchical else None,
            settings=self.shown | {"draws": given.draws, "steps": given.steps},
            note=_EITHER_WAY if quantity.startswith("approximation") else "",
        )
