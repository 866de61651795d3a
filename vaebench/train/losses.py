"""The losses of a run's updates."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaebench.encoders.base import AuxiliaryLoss, Direction, Encoder, LossWithMetrics
from vaebench.estimators.weights import effective_sample_size
from vaebench.model import GenerativeModel
from vaebench.objective import Objective
from vaebench.train.schedules import StepSettings
from vaebench.train.update import Loss

__all__ = ["AuxiliaryUpdateLoss", "BoundLoss"]


@dataclass(frozen=True)
class BoundLoss:
    """Minus the mean of the training objective over a batch.

    Metrics, in nats: ``bound`` with KL weight 1, its parts ``reconstruction`` and ``kl``, and for k > 1 ``ess``, the
    effective sample size. ``objective`` is added while the objective is not the bound (a KL warm-up, for example). If
    the encoder's log q is only an estimate, then so are the metrics, and their names end with ``_estimate``.
    """

    objective: Objective
    model: GenerativeModel
    encoder: Encoder
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Makes the context that sets the precision of the networks."""

    def __call__(self, x: Tensor, settings: StepSettings) -> Loss:
        """Return the loss for images x, (B, X)."""
        k, inner_k, beta = settings
        with self.autocast():
            value, drawn = self.objective(self.model, self.encoder, x, k, inner_k=inner_k, beta=beta)
        mean = value.mean()
        same = not isinstance(beta, Tensor) and beta == 1 and self.objective.maximises_its_bound
        with torch.no_grad():
            bound = mean.detach() if same else self.objective.bound(drawn.log_weights()).mean()
            kl = (drawn.log_q - drawn.log_prior).mean()
            metrics = {"bound": bound, "reconstruction": drawn.log_likelihood.mean(), "kl": kl}
            if k > 1:
                metrics["ess"] = effective_sample_size(drawn.log_weights()).mean()
        if not same:
            metrics["objective"] = mean.detach()
        if self.encoder.direction is Direction.ESTIMATE:
            metrics = {key if key == "reconstruction" else f"{key}_estimate": v for key, v in metrics.items()}
        return Loss(-mean, metrics)


@dataclass(frozen=True)
class AuxiliaryUpdateLoss:
    """An auxiliary loss of the encoder, in the form that an update takes."""

    auxiliary: AuxiliaryLoss
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """As in ``BoundLoss``."""

    def __call__(self, x: Tensor, settings: StepSettings) -> Loss:
        """Return the loss for images x, (B, X)."""
        del settings
        with self.autocast():
            scored = self.auxiliary.loss(x)
        value, metrics = scored if isinstance(scored, LossWithMetrics) else (scored, {})
        return Loss(value, {"loss": value, **metrics})
