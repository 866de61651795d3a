"""Elementwise activations by name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "softplus"]


class _Softplus(torch.autograd.Function):
    """max(v, 0) - log sigmoid(|v|): CPUs vectorise it, and torch's own softplus costs more than the matrix
    product before it. The error is the rounding of a number near 1, absolute, which an activation can bear.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.clamp(min=0).sub_(value.abs().sigmoid_().log_())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (value,) = ctx.saved_tensors
        return gradient * value.sigmoid()


def softplus(value: Tensor) -> Tensor:
    """Return log(1 + exp(value)), accurate in absolute terms; use torch's where tiny values matter."""
    if value.device.type == "cpu":
        return _Softplus.apply(value)  # pyright: ignore[reportReturnType]
    return F.softplus(value)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": softplus,
    "tanh": torch.tanh,
    "relu": F.relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
}
