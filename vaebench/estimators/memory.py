"""The memory that a computation takes, measured on a small one."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["peak_bytes"]


def peak_bytes(compute: Callable[[], object]) -> int:
    """Return the largest number of bytes in tensors made by ``compute()`` at any one time, on any device."""
    with _LiveBytes() as memory:
        compute()
    return memory.peak


class _LiveBytes(TorchDispatchMode):
    """Tracks the storage of every tensor that an operation returns; views share their storage."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._tensors: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not self._tensors[place]:
            self.live += size
            self.peak = max(self.peak, self.live)
        self._tensors[place] += 1
        weakref.finalize(tensor, self._remove, place, size)

    def _remove(self, place: int, size: int) -> None:
        self._tensors[place] -= 1
        if not self._tensors[place]:
            self.live -= size
