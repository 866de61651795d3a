"""The estimator ``gaps``: the parts of the gap between an encoder's bound and log p(x)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench.direction import Direction
from vaebench.encoders.base import Encoder
from vaebench.errors import UserError
from vaebench.estimators.gaps import (
    Optimisation,
    best_gaussian,
    best_of_family,
    elbo,
    per_image,
    selected_log_likelihood,
)
from vaebench.estimators.importance import estimated
from vaebench.estimators.sampling import Sampling
from vaebench.evaluate.job import Estimate, EstimatorInputs, EstimatorJob
from vaebench.runtime import derived_seed, forked_randomness

__all__ = ["inference_gaps"]

_EITHER_WAY = "too small if the bound on log p(x) is loose, too large if the fit of q* has not converged"


def inference_gaps(inputs: EstimatorInputs) -> EstimatorJob:
    """Return the job of the gaps of the encoder, or of its proposal if its own log q is an estimate."""
    settings, images, gaps = inputs.settings, inputs.images, _Gaps.of(inputs)

    def numbers(part: slice) -> Tensor:
        with inputs.seeded(part):
            return gaps.measure(inputs.observed(part), images.numbers[part])

    return EstimatorJob(
        split=settings.split,
        protocol=images.protocol,
        images=images.numbers,
        key=["gaps", settings.seed, settings.k, *gaps.key()],
        rows=_Parts._fields,
        batch=settings.batch or 10,
        numbers=numbers,
        summarise=lambda rows: gaps.summarise(_Parts(*rows)),
    )


class _Parts(NamedTuple):
    """Numbers of N images, (N,) each; two that are equal by definition are equal."""

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
    """The ELBO of the best posterior of the encoder's family, with many inner samples; NaN if none was fitted."""


@dataclass(frozen=True)
class _Gaps:
    """The measurement of the gaps for one run."""

    inputs: EstimatorInputs
    encoder: Encoder
    """The trained one, or its proposal."""
    is_gaussian: bool
    """Whether its family is the diagonal Gaussians."""
    tuned: bool
    """Whether copies of it are trained on single images."""
    gaussian_fit: Optimisation
    family_fit: Optimisation
    inner_k: int
    """The number of inner samples for a tight bound."""
    shown: dict[str, Any]
    """The settings by which the encoder differs from the trained one."""

    @classmethod
    def of(cls, inputs: EstimatorInputs) -> "_Gaps":
        """Read the settings; UserError if they are invalid for the run."""
        given, (encoder, shown) = inputs.settings, inputs.proposal()
        if encoder.direction is Direction.ESTIMATE:
            raise UserError(
                f"estimator=gaps needs a valid log q, and encoder={inputs.encoder_name} has an estimate: use "
                "estimator.proposal=valid"
            )
        with torch.no_grad(), forked_randomness(inputs.device, seed=0):
            is_gaussian = encoder.exact_posterior(inputs.blank()) is not None
        fit = partial(Optimisation, steps=given.steps)
        return cls(
            inputs,
            encoder,
            is_gaussian,
            # A proposal in place of the encoder is no family that was trained.
            given.finetune and not is_gaussian and inputs.encoder.direction is not Direction.ESTIMATE,
            fit(lr=given.lr),
            fit(lr=given.finetune_lr),
            max(inputs.inner_k, inputs.trained_inner_k) if encoder.has_inner_samples else 0,
            shown,
        )

    def key(self) -> list[object]:
        """Return all settings that change the numbers, except the seed and k."""
        given = self.inputs.settings
        fits = [given.steps, given.fit_draws, given.lr, given.finetune_lr]
        return [given.draws, self.tuned, self.inner_k, *fits, type(self.encoder).__name__, *self.shown.items()]

    def measure(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Return the rows of images x, (B, X)."""
        inputs, model, given, encoder = self.inputs, self.inputs.model, self.inputs.settings, self.encoder
        trained_inner_k, seed = inputs.trained_inner_k, given.seed
        fit = Sampling(given.fit_draws, 0, seed, numbers)
        gaussian = best_gaussian(model, encoder, x, self.gaussian_fit, fit)
        proposals: list[Encoder | Sequence[Encoder]] = [encoder, gaussian]
        if self.tuned:
            fit = replace(fit, inner_k=trained_inner_k)
            proposals.append(best_of_family(model, encoder, x, self.family_fit, fit))
        many = Sampling(given.k, self.inner_k, derived_seed(seed, "k"), numbers)
        reference = selected_log_likelihood(model, proposals, x, many)
        # One seed for all ELBOs: their differences then have little noise.
        tight = Sampling(given.draws, self.inner_k, derived_seed(seed, "elbo"), numbers)
        elbos = [per_image(partial(elbo, model), proposal, x, tight) for proposal in proposals]
        bound = elbos[0]
        if self.encoder.has_inner_samples:
            bound = elbo(model, encoder, x, replace(tight, inner_k=trained_inner_k))
        family = elbos[-1] if self.tuned or self.is_gaussian else torch.full_like(bound, torch.nan)
        weighted = self._importance_weighted(x, numbers) if inputs.trained_k > 1 else bound
        return torch.stack([reference, bound, elbos[0], weighted, elbos[1], family])

    def _importance_weighted(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Return the bound L_k of training, from about as many draws as an ELBO has."""
        inputs, k = self.inputs, self.inputs.trained_k
        inner_k = inputs.trained_inner_k if self.encoder.has_inner_samples else 0
        seeds = [derived_seed(inputs.settings.seed, "weighted", i) for i in range(-(-inputs.settings.draws // k))]
        samplings = [Sampling(k, inner_k, seed, numbers) for seed in seeds]
        return torch.stack([estimated(inputs.model, self.encoder, x, one) for one in samplings]).mean(0)

    # The results -------------------------------------------------------------------------------------

    def summarise(self, found: _Parts) -> list[Estimate]:
        """Return the gaps, and the numbers that they are differences of, each with its direction."""
        exact = self.encoder.direction is Direction.EXACT
        estimates = [
            self._of_weights("log p(x)", Direction.LOWER_BOUND, found.log_likelihood),
            self._of_elbos("ELBO of q", Direction.EXACT if exact else Direction.LOWER_BOUND, found.elbo),
            self._of_elbos("ELBO of the best Gaussian", Direction.LOWER_BOUND, found.gaussian, inner=False),
        ]
        if self.tuned:
            estimates.append(self._of_elbos("ELBO of q*", Direction.LOWER_BOUND, found.family))
        estimates.append(self._of_weights("inference gap", Direction.LOWER_BOUND, found.log_likelihood - found.bound))
        if self.tuned or self.is_gaussian:
            gap, amortised = found.log_likelihood - found.family, found.family - found.elbo
            estimates += [
                self._of_weights("approximation gap", Direction.ESTIMATE, gap, note=_EITHER_WAY),
                self._of_elbos("amortisation gap", Direction.LOWER_BOUND if exact else Direction.ESTIMATE, amortised),
            ]
        if not self.is_gaussian:
            gap, name = found.log_likelihood - found.gaussian, "approximation gap of a Gaussian"
            estimates.append(self._of_weights(name, Direction.ESTIMATE, gap, note=_EITHER_WAY))
        return estimates + self._bound_gaps(found)

    def _bound_gaps(self, found: _Parts) -> list[Estimate]:
        estimates, k = [], self.inputs.trained_k
        if self.encoder.has_inner_samples:
            estimates.append(self._of_elbos("bound gap", Direction.LOWER_BOUND, found.elbo - found.bound))
        if k > 1:
            gap = found.log_likelihood - found.importance_weighted
            estimates.append(self._of_weights(f"gap of the IWAE-{k} bound", Direction.LOWER_BOUND, gap))
        return estimates

    def _of_weights(self, quantity: str, direction: Direction, values: Tensor, note: str = "") -> Estimate:
        """Return an estimate that uses the k weights of log p(x)."""
        return replace(self._of_elbos(quantity, direction, values), k=self.inputs.settings.k, note=note)

    def _of_elbos(self, quantity: str, direction: Direction, values: Tensor, *, inner: bool = True) -> Estimate:
        """Return an estimate without weights; ``inner`` if it is of the encoder, and not of the best Gaussian."""
        given = self.inputs.settings
        return Estimate(
            estimator="gaps",
            direction=direction,
            values=values,
            quantity=quantity,
            inner_k=self.inner_k if inner and self.encoder.has_inner_samples else None,
            settings=self.shown | {"draws": given.draws, "steps": given.steps},
            log_q=self.encoder.direction if inner else Direction.EXACT,
        )
