"""The machine: device, memory, seeds, precision, threads."""

import contextlib
import hashlib
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy
import torch

from vaebench.errors import UserError

__all__ = [
    "ByDevice",
    "autocast",
    "bf16_gain",
    "bf16_note",
    "derived_seed",
    "describe",
    "float64_device",
    "forked_randomness",
    "free_memory",
    "in_float64",
    "in_precision",
    "notice",
    "out_of_memory",
    "parameters_within_memory",
    "random_state",
    "release_memory",
    "require_tf32",
    "resolve_device",
    "seed_device",
    "seed_everything",
    "set_arithmetic",
    "set_default_threads",
    "set_random_state",
    "set_threads",
    "tf32",
    "unless_memory_runs_out",
    "use_gpu_in_turn",
]

T = TypeVar("T")


def accelerator() -> torch.device | None:
    """Return the kind of accelerator that this machine has, for example ``cuda``; None if it has only CPUs."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def resolve_device(wanted: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``, ``xpu`` or ``xpu:N``.

    ``auto`` is a CUDA device if there is one, else the CPU: nothing was tested on ``mps`` and ``xpu``.

    Raises:
        UserError: this machine has no such device.
    """
    found = accelerator()
    kind = "cpu" if found is None else found.type
    device = torch.device(("cuda" if kind == "cuda" else "cpu") if wanted == "auto" else wanted)
    if device.type == "cpu":
        return device
    if device.type != kind:
        raise UserError(f"device={wanted}: torch finds no {device.type.upper()} device on this machine; use device=cpu")
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise UserError(
            f"device={wanted}: there are {count} {kind.upper()} devices, use {kind}:0 to {kind}:{count - 1}"
        )
    return torch.device(kind, torch.accelerator.current_device_index() if device.index is None else device.index)


def use_gpu_in_turn(number: int) -> None:
    """Make a device without an index, such as ``cuda``, be GPU number ``number`` modulo the number of GPUs."""
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(number % torch.accelerator.device_count())


class ByDevice(NamedTuple):
    """A number for CPUs and one for accelerators, for example of rows to compute at a time."""

    cpu: int
    accelerator: int

    def on(self, device: torch.device) -> int:
        """Return the number for ``device``."""
        return self.cpu if device.type == "cpu" else self.accelerator


def describe(device: torch.device) -> str:
    """Return the device in words, for headers and manifests."""
    if device.type == "cpu":
        count = torch.get_num_threads()
        return f"cpu ({count} thread{'s' * (count > 1)})"
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(device) if name is None else f"{device} ({name(device)})"


_DEFAULT_THREADS = torch.get_num_threads()


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads; None restores torch's default, whatever an earlier job of a sweep set.

    Raises:
        UserError: there are too many threads; OpenMP ends the process where it cannot start one.
    """
    most = max(256, 4 * (os.cpu_count() or 1))
    if threads is not None and threads > most:
        raise UserError(f"threads must be <= {most} on this machine of {os.cpu_count()} cores, got {threads}")
    torch.set_num_threads(threads or _DEFAULT_THREADS)


def bf16_note(device: torch.device, setting: str) -> str:
    """Return a line about the speed of bf16 on ``device``, from one measurement that takes milliseconds.

    Args:
        device: computes the matrix products.
        setting: the setting that holds the precision, for the advice.
    """
    gain = bf16_gain(device)
    if gain >= 1:
        return f"a matrix product in bf16 is {gain:.1f} times as fast as in float32 on this device"
    return (
        f"a matrix product in bf16 takes {1 / gain:.1f} times as long as in float32 on this device: "
        f"set {setting}=float32 for speed"
    )


def bf16_gain(device: torch.device) -> float:
    """Return the time of a matrix product in float32 over the time in bf16."""
    size = 256 if device.type == "cpu" else 4096  # a GPU needs more work than the launch of a kernel

    def seconds(dtype: torch.dtype) -> float:
        factor = torch.ones(size, size, dtype=dtype, device=device)
        times = []
        for _ in range(5):  # the first one prepares, and other processes can disturb some
            started = time.perf_counter()
            # As in a layer of a network; the copy to the host waits for the device.
            torch.nn.functional.linear(factor, factor)[0, 0].item()
            times.append(time.perf_counter() - started)
        return min(times)

    return seconds(torch.float32) / seconds(torch.bfloat16)


def set_default_threads(threads: int) -> None:
    """Set the number of threads that ``set_threads(None)`` restores, for jobs that share this machine."""
    global _DEFAULT_THREADS
    _DEFAULT_THREADS = threads
    set_threads(None)


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of the device, bytes; None if the system does not report it."""
    if device.type in ("cuda", "xpu"):
        module = torch.get_device_module(device)
        if not hasattr(module, "mem_get_info"):  # torch.xpu of early versions
            return None
        free, _ = module.mem_get_info(device)
        # Memory that torch has reserved but not allocated is free, too.
        return free + module.memory_reserved(device) - module.memory_allocated(device)
    limits = [_available_memory(), _left_to_the_group()]
    if device.type == "mps":  # it shares the CPU's memory, of which it may use a part
        limits.append(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min((limit for limit in limits if limit is not None), default=None)


def _available_memory() -> int | None:
    """Return the memory that is available without swapping, bytes, or None."""
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _left_to_the_group(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the free memory below the limit of a container or batch job, bytes; None if there is no limit."""
    try:
        # File caches count as used here, but the system frees them on demand.
        cached = re.search(r"^inactive_file (\d+)", (root / "memory.stat").read_text(), re.MULTILINE)
        used = int((root / "memory.current").read_text()) - (int(cached[1]) if cached else 0)
        return int((root / "memory.max").read_text()) - used
    except (OSError, ValueError):  # another system, or the limit is "max"
        return None


_OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means out of memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator and CUDA's libraries raise plain RuntimeErrors.
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


_TRAINING_BYTES = 16  # of a parameter: its weight, its gradient and two moments of Adam


@contextlib.contextmanager
def parameters_within_memory(advice: str) -> Iterator[None]:
    """Refuse modules made in the block whose training does not fit the free memory, before they fill it.

    Linux hands out memory that it does not have, and kills a process that uses it.

    Args:
        advice: the end of the message.

    Raises:
        UserError: the modules have too many parameters, or memory ran out.
    """
    free, count = free_memory(torch.device("cpu")), 0

    def registered(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal count
        count += 0 if parameter is None else parameter.numel()
        if free is not None and count * _TRAINING_BYTES > free:
            raise UserError(
                f"the networks have {count:,} parameters or more, too many for {free / 1e9:.2g} GB of free memory: "
                f"{advice}"
            )

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(registered)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"out of memory: {advice}") from error
    finally:
        handle.remove()


def unless_memory_runs_out(compute: Callable[[], T]) -> T | None:
    """Return the result of ``compute``, or None if it ran out of memory, which is then freed."""
    try:
        return compute()
    except Exception as error:
        if not out_of_memory(error):
            raise
    # After the handler, because the error keeps references to all tensors of the computation.
    release_memory()
    return None


def release_memory() -> None:
    """Give memory back to the accelerator that torch has reserved but not allocated."""
    if (found := accelerator()) is not None:
        torch.get_device_module(found).empty_cache()


def notice(line: str) -> None:
    """Print a line for the user to stderr, apart from results."""
    print(f"vaebench: {line}", file=sys.stderr, flush=True)


def derived_seed(*words: int | str) -> int:
    """Return a seed that depends on every word, for generators that must differ from each other."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_device(device: torch.device, seed: int) -> None:
    """Seed torch's generators of the CPU and of ``device`` without waiting for the device.

    ``torch.manual_seed`` seeds the generators of every device, which takes longer than a small training step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "mps":
        torch.mps.manual_seed(seed)
    elif device.type != "cpu":
        index = torch.accelerator.current_device_index() if device.index is None else device.index
        torch.get_device_module(device).default_generators[index].manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's generators, for ``set_random_state`` on the same device."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    elif device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "mps":
        torch.mps.set_rng_state(state["mps"])
    elif device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type], device)


@contextlib.contextmanager
def forked_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators within the block, and restore their states after it."""
    state = random_state(device)
    # Not torch.manual_seed: it would seed the generators of devices whose states are not restored.
    seed_device(device, seed)
    try:
        yield
    finally:
        set_random_state(state, device)


# Precision ------------------------------------------------------------------------------------------------


def set_arithmetic(device: torch.device) -> None:
    """Make products of float32 numbers float32, and operations on ``device`` deterministic, from now on.

    torch's defaults are other ones: convolutions in TF32, and sums in an order that may differ between two runs. An
    operation without a deterministic form still runs, and torch warns with its name.
    """
    _set_tf32(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if device.type == "cpu" or torch.get_deterministic_debug_mode():
        return
    # cuBLAS reads it before its first product. This is the size that torch takes on recent GPUs.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not torch.use_deterministic_algorithms, which takes seconds: it imports a compiler.
    torch.set_deterministic_debug_mode("warn")
    # Otherwise torch would fill each new tensor, a launch each.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (unknown to its type)


def require_tf32(device: torch.device) -> None:
    """Refuse ``trainer.precision=tf32`` on a device without TF32.

    Raises:
        UserError: the device is not a GPU by NVIDIA, or is older than Ampere.
    """
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(
            f"trainer.precision=tf32 needs an NVIDIA GPU of compute capability 8.0 or higher, got {describe(device)}: "
            "use trainer.precision=float32"
        )


@contextlib.contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Within the block, round the factors of float32 products to TF32 (10 bits) if ``allowed``, else do not.

    Sums stay in float32. Devices other than CUDA's have no TF32, and compute in float32.
    """
    before = torch.get_float32_matmul_precision() != "highest"
    _set_tf32(allowed and device.type == "cuda")
    try:
        yield
    finally:
        _set_tf32(before)


def _set_tf32(allowed: bool) -> None:
    # The older names of these switches: they work from torch 2.6 on, and set what the newer ones set.
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def in_precision(device: torch.device, precision: str) -> Iterator[None]:
    """Run networks in ``precision`` within the block: float32, tf32 or bf16."""
    with tf32(device, precision == "tf32"), autocast(device, precision)():
        yield


def autocast(device: torch.device, precision: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return a function that makes the context in which networks run in bf16, if ``precision`` is bf16.

    Log-densities stay in float32 (see :mod:`vaebench.distributions`). Unlike :func:`in_precision` it may be a part of
    a compiled function.
    """
    if precision == "bf16":
        return partial(torch.autocast, device.type, torch.bfloat16)
    return contextlib.nullcontext


def float64_device(device: torch.device) -> torch.device:
    """Return the device on which to compute in float64: ``device``, or the CPU if it has no float64."""
    has = device.type != "mps" and (device.type != "xpu" or torch.xpu.get_device_properties(device).has_fp64)
    return device if has else torch.device("cpu")


def in_float64(value: torch.Tensor) -> torch.Tensor:
    """Return ``value`` in float64, on its device or, if that has no float64, on the CPU."""
    # In two steps: a device without float64 could not convert before it copies.
    return value.to(float64_device(value.device)).double()
