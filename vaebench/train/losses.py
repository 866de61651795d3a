"""What the updates of a run minimise."""

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
from vaebench.train.update import Loss, Settings

__all__ = ["AuxiliaryUpdateLoss", "BoundLoss"]


@dataclass(frozen=True)
class BoundLoss:
    """Minus the mean bound over a batch.

    The metrics are the bound itself with KL weight 1, its two parts, for k > 1 the effective number of weights, and,
    where something else is maximised (during a KL warm-up, or by choice), that under the name ``objective``. Where
    log q is an estimate, so are they, and their names say it.
    """

    objective: Objective
    model: GenerativeModel
    encoder: Encoder
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Makes the context that sets the precision of the networks."""

    def __call__(self, x: Tensor, settings: Settings) -> Loss:
        """Return the loss for images x, (B, X)."""
        k, inner_k, beta = settings
        with self.autocast():
            value, drawn = self.objective(self.model, self.encoder, x, k, inner_k=inner_k, beta=beta)
        same = beta == 1 and self.objective.maximises_its_bound
        with torch.no_grad():
            log_w = drawn.log_weights()
            metrics = {
                "bound": (value if same else self.objective.bound(log_w)).mean(),
                "reconstruction": drawn.log_likelihood.mean(),
                "kl": (drawn.log_q - drawn.log_prior).mean(),
            }
            if k > 1:
                metrics["ess"] = effective_sample_size(log_w).mean()
        if not same:
            metrics["objective"] = value.mean()
        if self.encoder.direction is Direction.ESTIMATE:
            metrics = {key if key == "reconstruction" else f"{key}_estimate": v for key, v in metrics.items()}
        return Loss(-value.mean(), metrics)


@dataclass(frozen=True)
class AuxiliaryUpdateLoss:
    """The loss of a auxiliary loss that an encoder brings along."""

    auxiliary: AuxiliaryLoss
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self, x: Tensor, settings: Settings) -> Loss:
        """Return the loss for images x, (B, X)."""
        del settings
        with self.autocast():
            scored = self.auxiliary.loss(x)
        value, metrics = scored if isinstance(scored, LossWithMetrics) else (scored, {})
        return Loss(value, {"loss": value, **metrics})
