"""Count the operations, bytes and kernels of a piece of work while it runs: the same counts on every machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Count", "count"]

_WITHOUT_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_efficientzerotensor"}


@dataclass(frozen=True)
class Count:
    """The counts of a piece of work."""

    flops: float
    """Of the matrix products."""
    moved: float
    """Bytes read and written by all other kernels, the optimiser included."""
    kernels: int
    """Calls that compute; views do not count."""
    operations: int
    """Calls of torch's operators, views among them."""


def count(work: Callable[[], object]) -> Count:
    """Count what ``work()`` does, in its backward pass too."""
    with _Traffic() as traffic:
        work()
    return Count(float(traffic.flops), float(traffic.moved), traffic.kernels, traffic.operations)


class _Traffic(TorchDispatchMode):
    """Add up the operations of matrix products, and the bytes that all other kernels read and write.

    Not torch's FlopCounterMode: its module hooks fail for flows that take derivatives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = self.kernels = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.operations += 1
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        made = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        places = {one.untyped_storage()._cdata for one in given}
        view = bool(made) and all(one.untyped_storage()._cdata in places for one in made)
        if (view and not func._schema.is_mutable) or not given + made:
            return result
        if func.overloadpacket.__name__ in _WITHOUT_KERNEL:
            return result
        self.kernels += 1
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        else:
            # A tensor changed in place is read and written.
            changed = given if func._schema.is_mutable and not made else []
            self.moved += sum(map(_bytes, [*given, *made, *changed]))
        return result


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor in memory; an expanded tensor has fewer than its shape needs."""
    held = tensor.untyped_storage().nbytes()
    return min(held, tensor.numel() * tensor.element_size())
