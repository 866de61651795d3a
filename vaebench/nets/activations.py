"""Elementwise activations by name, and the maps that make scales positive.

On CPUs torch's softplus, elu and tanh can cost more than the matrix product before them, for the log1p, expm1 and tanh
inside; log, exp and sigmoid run at the speed of memory. Here they are made of these, which pays from a few thousand
numbers on. Other devices take torch's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from vaebench.distributions import at_least_float32

__all__ = ["ACTIVATIONS", "elu", "positive", "softplus", "tanh"]


class _Softplus(torch.autograd.Function):
    """max(v, 0) - log sigmoid(|v|), in float32 or better. The error is the rounding of a number near 1, absolute."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        wide = at_least_float32(value)
        return wide.clamp(min=0).sub_(wide.abs().sigmoid_().log_()).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (value,) = ctx.saved_tensors
        return gradient * value.sigmoid()


class _Positive(_Softplus):
    """max(v, 0) + log1p(u) with u = exp(-|v|), and log1p(u) = log(w) + (u - (w - 1)) / w with w = 1 + u, rounded.

    w - 1 is exact, so that the second term is what rounding took from u; it matters where w is near 1 alone, and there
    its division by w does not.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        rest = value.abs().neg_().exp_()
        rounded = rest + 1
        rest.sub_(rounded - 1)
        return rest.add_(rounded.log_()).add_(value.clamp(min=0))


class _Elu(torch.autograd.Function):
    """max(v, exp(min(v, 0)) - 1), in float32 or better. The error is absolute, as that of softplus."""

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
    """2 sigmoid(2 v) - 1, in float32 or better. The error is absolute, as that of softplus."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        result = (2 * at_least_float32(value)).sigmoid_().mul_(2).sub_(1).to(value.dtype)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (result,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, result)


def _on_cpu(own: type[torch.autograd.Function], torchs: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    return own.apply(value) if value.device.type == "cpu" else torchs(value)  # pyright: ignore[reportReturnType]


def softplus(value: Tensor) -> Tensor:
    """Return log(1 + exp(value)), accurate in absolute terms; :func:`positive` is where tiny values matter."""
    return _on_cpu(_Softplus, F.softplus, value)


def positive(value: Tensor) -> Tensor:
    """Return log(1 + exp(value)), accurate in relative terms however small: a scale, whose logarithm is taken."""
    return _on_cpu(_Positive, F.softplus, value)


def elu(value: Tensor) -> Tensor:
    """Return ``value`` where it is positive, and exp(value) - 1 elsewhere, accurate in absolute terms."""
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
