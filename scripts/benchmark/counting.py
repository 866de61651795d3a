"""What a piece of work asks of a machine, counted while it runs: the same on every machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Count", "count"]


@dataclass(frozen=True)
class Count:
    """What some work asks of a machine."""

    flops: float
    """Of the matrix products."""
    moved: float
    """Bytes read and written by everything else, the optimiser included."""
    kernels: int
    """Calls that compute something; views are free."""
    operations: int
    """Calls of torch's operators, views among them."""


def count(work: Callable[[], object]) -> Count:
    """Count what ``work()`` does, in its backward pass too."""
    with _Traffic() as traffic:
        work()
    return Count(float(traffic.flops), float(traffic.moved), traffic.kernels, traffic.operations)


class _Traffic(TorchDispatchMode):
    """Adds up the operations of matrix products, and the bytes of what all others read and write.

    Not torch's FlopCounterMode: it follows modules by hooks, which flows that take derivatives do not bear.
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
        places = {one.untyped_storage().data_ptr() for one in given}
        view = bool(made) and all(one.untyped_storage().data_ptr() in places for one in made)
        if (view and not func._schema.is_mutable) or not given + made:
            return result
        self.kernels += 1
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        else:
            # What is changed in place is read and written.
            changed = given if func._schema.is_mutable and not made else []
            self.moved += sum(map(_bytes, [*given, *made, *changed]))
        return result


def _bytes(tensor: Tensor) -> int:
    """Return the bytes behind a tensor: of an expanded one, those that are there."""
    held = tensor.untyped_storage().nbytes()
    return min(held, tensor.numel() * tensor.element_size())
