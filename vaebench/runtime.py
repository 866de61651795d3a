"""The machine: device, memory, seeds, precision, threads, signals."""

import contextlib
import hashlib
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy
import torch

from vaebench.errors import UserError

__all__ = [
    "Interruption",
    "autocast",
    "derived_seed",
    "describe",
    "forked_randomness",
    "free_memory",
    "notice",
    "out_of_memory",
    "random_state",
    "resolve_device",
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
        UserError: the device is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if count else torch.device("cpu")
    device = torch.device(wanted)
    if device.type != "cuda":
        return device
    if not count:
        raise UserError(f"device={wanted}: this machine has no CUDA device that torch can use; try device=cpu")
    if device.index is not None and device.index >= count:
        raise UserError(f"device={wanted}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def use_gpu_in_turn(number: int) -> None:
    """Make ``device=auto`` and ``device=cuda`` mean the GPU whose turn it is: of N, that of ``number`` modulo N."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def describe(device: torch.device) -> str:
    """Return the device in words, for headers and manifests."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


_DEFAULT_THREADS = torch.get_num_threads()


def set_threads(threads: int | None) -> None:
    """Use so many CPU threads; None goes back to torch's own choice, whatever an earlier job of a sweep set."""
    torch.set_num_threads(threads or _DEFAULT_THREADS)


def set_default_threads(threads: int) -> None:
    """Make ``threads`` what ``set_threads(None)`` goes back to, where several jobs share this machine."""
    global _DEFAULT_THREADS
    _DEFAULT_THREADS = threads
    set_threads(None)


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes may still be used on the device; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has reserved and not given out is free, too.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = [bytes_ for bytes_ in (_available_memory(), _left_to_the_group()) if bytes_ is not None]
    return min(known, default=None)


def _available_memory() -> int | None:
    """Return what the system could give without swapping."""
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
    """Return what is left of a container's or a batch job's limit; None where there is none."""
    try:
        # Caches of files count as used there, and are given back when they are wanted.
        cached = re.search(r"^inactive_file (\d+)", (root / "memory.stat").read_text(), re.MULTILINE)
        used = int((root / "memory.current").read_text()) - (int(cached[1]) if cached else 0)
        return int((root / "memory.max").read_text()) - used
    except (OSError, ValueError):  # another system, or the limit is "max"
        return None


_OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory did not suffice, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator, and libraries of CUDA's, raise errors of no type of their own.
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def unless_memory_runs_out(compute: Callable[[], T]) -> T | None:
    """Return what is computed, or None, with the memory that it took given back, where memory did not suffice."""
    try:
        return compute()
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Outside of the handler: the error holds on to all that was computed.
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return None


def notice(line: str) -> None:
    """Tell the user something where it does not mix with results."""
    print(f"vaebench: {line}", file=sys.stderr, flush=True)


def derived_seed(*words: int | str) -> int:
    """Return a seed that depends on every word, for generators that must not repeat one another."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed every generator that a run may draw from."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return torch's generators' states as plain tensors."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def forked_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators within the block, and put back their states after it."""
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        # Not torch.manual_seed: it would reach the generators of devices that are not put back.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def autocast(device: torch.device, precision: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return a maker of contexts in which networks run in ``precision``, float32 or bf16.

    Log-densities stay in float32 (see :mod:`vaebench.distributions`).
    """
    if precision == "bf16":
        return partial(torch.autocast, device.type, torch.bfloat16)
    return contextlib.nullcontext


# A terminal's Ctrl-C reaches a worker twice, as its own and passed on by the process that started it.
_SAME_PRESS = 1.0  # seconds


class Interruption:
    """Notes SIGINT and SIGTERM so that work can stop at the next safe place; a second signal stops at once.

    So too SIGUSR1 and SIGUSR2 where somebody handles them: a batch system says with one of these that the job is
    about to be taken off the machine, and its own handler would end the work wherever it stands.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._noted_at = 0.0

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, as shells have it."""
        return 128 + (self.signal or 0)

    @contextlib.contextmanager
    def watching(self) -> Iterator["Interruption"]:
        """Take the signals within the block, and put the old handlers back."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may set handlers
            return
        kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        kept |= {number: handler for number, handler in _batch_system_handlers().items() if callable(handler)}
        for number in kept:
            signal.signal(number, self._note)
        try:
            yield self
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._noted_at = number, time.monotonic()
        elif time.monotonic() - self._noted_at > _SAME_PRESS:
            raise KeyboardInterrupt


def _batch_system_handlers() -> dict[int, Any]:
    names = ("SIGUSR1", "SIGUSR2")  # Windows has neither
    return {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None)) is not None}
