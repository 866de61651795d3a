"""Elementwise activations by name.

On CPUs torch's softplus, elu and tanh can cost more than the matrix product before them, because of log1p, expm1 and
tanh. log, exp and sigmoid run at the speed of memory. So the functions here use log, exp and sigmoid on CPUs, which is
faster for a few thousand numbers or more. Other devices use torch's functions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from vaebench.distributions import at_least_float32, on_cpu

__all__ = ["ACTIVATIONS", "elu", "softplus", "tanh"]


class _Softplus(torch.autograd.Function):
    """max(v, 0) - log sigmoid(|v|), in float32 or better. The absolute error is the rounding of a number near 1."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        wide = at_least_float32(value)
        return wide.clamp(min=0).sub_(wide.abs().sigmoid_().log_()).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (value,) = ctx.saved_tensors
        return gradient * value.sigmoid()


class _Elu(torch.autograd.Function):
    """max(v, exp(min(v, 0)) - 1), in float32 or better. The error is absolute, as for softplus."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        wide = at_least_float32(value)
        return torch.maximum(wide, wide.clamp(max=0).exp_().sub_(1)).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (value,) = ctx.saved_tensors
        return torch.ops.aten.elu_backward(gradient, 1, 1, 1, False, value)


class _Tanh(torch.autograd.Function):
    """2 sigmoid(2 v) - 1, in float32 or better. The error is absolute, as for softplus."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        result = (2 * at_least_float32(value)).sigmoid_().mul_(2).sub_(1).to(value.dtype)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (result,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, result)


def _on_cpu(fast: type[torch.autograd.Function], plain: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    return fast.apply(value) if on_cpu(value) else plain(value)  # pyright: ignore[reportReturnType]


def softplus(value: Tensor) -> Tensor:
    """Return log(1 + exp(value)), accurate in absolute terms; for scales see ``positive``."""
    return _on_cpu(_Softplus, F.softplus, value)


def elu(value: Tensor) -> Tensor:
    """Return ``value`` if it is positive, else exp(value) - 1, accurate in absolute terms."""
    return _on_cpu(_Elu, F.elu, value)


def tanh(value: Tensor) -> Tensor:
    """Return the hyperbolic tangent, accurate in absolute terms."""
    return _on_cpu(_Tanh, torch.tanh, value)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": softplus,
    "tanh": tanh,
    "relu": F.relu,
    "elu": elu,
    "gelu": F.gelu,
    "silu": F.silu,
}
