"""RealNVP: affine coupling."""

import torch
from torch import Tensor

from vaebench.flows.coupling import Coupling
from vaebench.flows.flow import FlowContext

__all__ = ["RealNVPFlow"]

# One step scales a coordinate by at most exp(2).
_LOG_SCALE_LIMIT = 2.0


class RealNVPFlow(Coupling):
    """z'_i = z_i exp(s_i) + t_i, with s and t from the kept half and x, |s| < 2.

    Source: Dinh, Sohl-Dickstein and Bengio 2017, https://arxiv.org/abs/1605.08803
    """

    def __init__(self, context: FlowContext, width: int, depth: int) -> None:
        super().__init__(context, 2, width, depth)

    def transform(self, value: Tensor, settings: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift."""
        log_scale, shift = self._bounded(settings)
        return value * log_scale.exp() + shift, log_scale

    def restore(self, value: Tensor, settings: Tensor) -> Tensor:
        """Invert the shift and the scale."""
        log_scale, shift = self._bounded(settings)
        return (value - shift) * (-log_scale).exp()

    @staticmethod
    def _bounded(settings: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = settings.unbind(-2)
        return _LOG_SCALE_LIMIT * torch.tanh(raw / _LOG_SCALE_LIMIT), shift
