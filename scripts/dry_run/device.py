"""A device that is not there. Its tensors say cuda:0, hold their numbers on the CPU and obey torch's rules of devices.

A program runs on it to its end, with real numbers. What would make a GPU wait is recorded with the function of the
package that asked for it:

    wait   the host waits for a result: item(), nonzero, an index by a mask, synchronize
    up     a copy from the host's pageable memory, for which the host waits, too
    down   a copy to the host
    host   an operation on tensors of the host alone: harmless, except within a step

An operation on tensors of both devices raises MixedDevices where CUDA raises an error. Three things are not covered:
kernels and their rounding, autocast (which leaves these tensors in float32), and memory.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # now: its import within other_device() would find replaced functions
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

import vaebench

__all__ = ["DEVICE", "MixedDevices", "OtherTensor", "Seen", "other_device"]

DEVICE = torch.device("cuda", 0)
PACKAGE = f"{Path(vaebench.__file__).parent}/"
# What torch itself says of an operation whose result a host has to know.
WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# These wait within one operation of torch.
WAITING = {"_linalg_check_errors", "multinomial", "histc"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class MixedDevices(RuntimeError):
    """An operation on tensors of two devices."""


class Seen(Counter[tuple[str, str]]):
    """How often (kind, what and where) was recorded."""

    def note(self, kind: str, what: str) -> None:
        """Count an event at the innermost function of the package."""
        frame: Any = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        if frame is not None:
            what += f" in {frame.f_code.co_filename.removeprefix(PACKAGE)}, {frame.f_code.co_qualname}"
        self[kind, what] += 1

    def of(self, *kinds: str) -> dict[str, int]:
        """Return the events of some kinds."""
        return {f"{kind}: {what}": count for (kind, what), count in sorted(self.items()) if kind in kinds}


class OtherTensor(Tensor):
    """A tensor on the other device. To C++ it is on the device ``meta``, so that autograd runs without a driver."""

    held: Tensor
    """Its numbers, on the CPU."""

    @staticmethod
    def __new__(cls: type["OtherTensor"], held: Tensor) -> "OtherTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("meta"),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]
    device = property(lambda self: DEVICE)  # pyright: ignore[reportAssignmentType]
    is_cuda = property(lambda self: True)  # pyright: ignore[reportAssignmentType]
    is_cpu = is_meta = property(lambda self: False)  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a tensor of other_device() outside its block")

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError(f"numpy() of a tensor on {DEVICE}")

    def __repr__(self, **kwargs: Any) -> str:
        return f"OtherTensor({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "OtherTensor":
        if id(self) not in memo:
            made = OtherTensor(self.held.clone()).requires_grad_(self.requires_grad)
            vars(made).update((key, value) for key, value in vars(self).items() if key != "held")
            memo[id(self)] = made
        return memo[id(self)]


class _Device(TorchDispatchMode):
    """Runs every operation on the CPU, and applies the rules of two devices."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, structure = tree_flatten((args, kwargs or {}))
        there = [one for one in leaves if isinstance(one, OtherTensor)]
        here = [one for one in leaves if isinstance(one, Tensor) and not isinstance(one, OtherTensor)]
        wanted = next((one for one in leaves if isinstance(one, torch.device)), None)
        on_device = bool(there) if wanted is None else wanted.type != "cpu"
        if func.overloadpacket.__name__ == "copy_":
            on_device = isinstance(args[0], OtherTensor)
        self._check(func, args, leaves, there, here, on_device)
        if func is torch.ops.aten._to_copy.default and there and on_device and _same_kind(args[0], kwargs):
            return OtherTensor(args[0].held)  # to C++ another device, so that it asks for a copy; a GPU makes none
        args, kwargs = tree_unflatten([_held(one) for one in leaves], structure)
        if func is torch.ops.aten._efficientzerotensor.default:
            func = torch.ops.aten.zeros.default  # such a tensor has no numbers that another one could hold
        made = func(*args, **kwargs)
        if not on_device or func is torch.ops.aten._local_scalar_dense.default:
            return made
        same = {id(one.held): one for one in there}  # an operation in place returns its argument
        changed = [one for one in there if one.shape != one.held.shape]
        if changed:
            raise NotImplementedError(f"{func} changes the shape of a tensor")
        return tree_map_only(Tensor, lambda one: same[id(one)] if id(one) in same else OtherTensor(one), made)

    def _check(
        self, func: Any, args: Any, leaves: list[Any], there: list[Any], here: list[Tensor], on_device: bool
    ) -> None:
        name = func.overloadpacket.__name__
        if name.startswith("_record_function"):
            return
        indices = [one for one in args[1] if one is not None] if name in INDEXING else []
        if on_device and any(isinstance(one, torch.Generator) for one in leaves):
            raise MixedDevices(f"{name}: a generator of the CPU and a tensor of {DEVICE}")
        if name in ("copy_", "_to_copy"):
            if here and on_device:
                self.seen.note("up", "copy")
            elif there and not on_device:
                self.seen.note("down", "copy")
        elif there and here:
            numbers = torch.Tag.pointwise in func.tags or name in INDEXING
            if any(one.dim() or not numbers for one in here if not any(one is index for index in indices)):
                raise MixedDevices(f"{name}: tensors of both devices, {[tuple(one.shape) for one in here]} on the CPU")
            if not isinstance(args[0], OtherTensor) and indices:
                raise MixedDevices(f"{name}: an index on {DEVICE} into a tensor on the CPU")
            # A GPU gets a number as an argument of the kernel, and a copy of an index.
            self.seen.note("up" if indices else "host", f"{name} with {[tuple(one.shape) for one in here]}")
        if not on_device and not there:
            self.seen.note("host", name)
        mask = any(one.dtype in (torch.bool, torch.uint8) for one in indices)
        if there and (mask if name in INDEXING else name in WAITING or WAITING_TAGS & set(func.tags)):
            self.seen.note("wait", name)


def _same_kind(tensor: Tensor, kwargs: Any) -> bool:
    return kwargs.get("dtype") in (None, tensor.dtype) and kwargs.get("memory_format") is None


def _held(value: Any) -> Any:
    """Return what the CPU computes with."""
    if isinstance(value, OtherTensor):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) else value


@contextmanager
def other_device() -> Iterator[Seen]:
    """Let ``device=cuda`` mean the device that is not there within the block; yield what is recorded.

    Its generator is that of the CPU, so that a program draws the same numbers as on the CPU.
    """
    seen = Seen()
    nothing, first = (lambda *args, **kwargs: None), (lambda *args, **kwargs: 0)
    cuda = {
        "_lazy_init": nothing,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": first,
        "set_device": nothing,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_name": lambda device=None: "a GPU that is not there",
        "mem_get_info": lambda device=None: (2**36, 2**36),
        "memory_reserved": first,
        "memory_allocated": first,
        "manual_seed_all": nothing,
        "default_generators": (torch.default_generator,),
        "get_rng_state": lambda device=None: torch.default_generator.get_state(),
        "set_rng_state": lambda state, device=None: torch.default_generator.set_state(state),
        "synchronize": lambda device=None: seen.note("wait", "synchronize"),
        "empty_cache": lambda: seen.note("wait", "empty_cache"),
    }
    accelerator = {
        "is_available": lambda: True,
        "current_accelerator": lambda: torch.device("cuda"),
        "device_count": lambda: 1,
        "current_device_index": first,
        "set_device_index": nothing,
    }
    with ExitStack() as stack:
        stack.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        stack.enter_context(patch.multiple(torch.cuda, **cuda))
        stack.enter_context(patch.multiple(torch.accelerator, **accelerator))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(patch.object(torch, name, _made_here_first(getattr(torch, name))))
        # C++ calls the device of these tensors "meta", which has no kernels for lists of tensors.
        stack.enter_context(patch.object(torch.nn.utils.clip_grad, "_has_foreach_support", lambda *args: True))
        stack.enter_context(
            patch.object(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", nothing, create=True)
        )
        stack.enter_context(patch.object(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True))
        stack.enter_context(_Device(seen))
        yield seen


def _made_here_first(make: Any) -> Any:
    """Return torch.tensor or torch.as_tensor as a copy from the CPU, which they are on a GPU; C++ hides this copy."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None:
            return make(data, *args, **kwargs)
        return make(data, *args, **kwargs).to(device)

    return made
