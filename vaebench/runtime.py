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
from typing import Any, TypeVar

import numpy
import torch

from vaebench.errors import UserError

__all__ = [
    "autocast",
    "bf16_gain",
    "bf16_note",
    "derived_seed",
    "describe",
    "forked_randomness",
    "free_memory",
    "notice",
    "out_of_memory",
    "parameters_within_memory",
    "random_state",
    "resolve_device",
    "seed_device",
    "seed_everything",
    "set_default_threads",
    "set_random_state",
    "set_threads",
    "unless_memory_runs_out",
    "use_gpu_in_turn",
]

T = TypeVar("T")


def resolve_device(wanted: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: this machine has no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if count else torch.device("cpu")
    device = torch.device(wanted)
    if device.type != "cuda":
        return device
    if not count:
        raise UserError(f"device={wanted}: torch finds no CUDA device on this machine; use device=cpu")
    if device.index is not None and device.index >= count:
        raise UserError(f"device={wanted}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def use_gpu_in_turn(number: int) -> None:
    """Make ``device=auto`` and ``device=cuda`` use GPU number ``number`` modulo the number of GPUs."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def describe(device: torch.device) -> str:
    """Return the device in words, for headers and manifests."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


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
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch has reserved but not allocated is free, too.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = [bytes_ for bytes_ in (_available_memory(), _left_to_the_group()) if bytes_ is not None]
    return min(known, default=None)


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
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return None


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
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's generators, for ``set_random_state`` on the same device."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def forked_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators within the block, and restore their states after it."""
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        # Not torch.manual_seed: it would seed the generators of devices whose states are not restored.
        seed_device(device, seed)
        yield


def autocast(device: torch.device, precision: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return a function that makes the context in which networks run in ``precision``.

    Log-densities stay in float32 (see :mod:`vaebench.distributions`).
    """
    if precision == "bf16":
        return partial(torch.autocast, device.type, torch.bfloat16)
    return contextlib.nullcontext
