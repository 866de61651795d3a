"""Isolation of the jobs of a sweep that run one after another in one process."""

import contextlib
import gc
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy
import torch
from torch.distributions import Distribution

__all__ = ["isolated"]


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Restore, after the block, every global setting that one job could change for the next.

    They are: torch's default dtype and device, threads, gradient mode, determinism and precision switches, argument
    checks of distributions, all random states, numpy's error handling, warning filters, matplotlib's settings, the
    environment and the working folder. Memory on a GPU is freed.
    """
    put_back = [partial(restore, read()) for read, restore in SETTINGS]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for restore in put_back:
            restore()
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_determinism(modes: tuple[bool, bool]) -> None:
    # torch imports its compiler for this switch, which takes seconds: change it only if it differs.
    if modes != _determinism():
        torch.use_deterministic_algorithms(modes[0], warn_only=modes[1])


def _set_device(device: torch.device) -> None:
    # torch keeps a mode for every device that was set, including the CPU; None removes it.
    torch.set_default_device(None if device.type == "cpu" else device)


def _restore_environment(environment: dict[str, str]) -> None:
    """Restore the environment; change only the variables that differ."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _plotting_settings() -> dict[str, Any] | None:
    """Return matplotlib's current settings, or None if it is not imported yet."""
    matplotlib = sys.modules.get("matplotlib")
    return None if matplotlib is None else dict(matplotlib.rcParams)


def _restore_plotting(settings: dict[str, Any] | None) -> None:
    """Restore matplotlib's settings; None: its defaults."""
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is None:
        return
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # copying reads and writes deprecated settings
        matplotlib.rcParams.update(matplotlib.rcParamsOrig if settings is None else settings)


_cudnn = torch.backends.cudnn
# The functions that read and restore each setting.
SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (lambda: Distribution._validate_args, Distribution.set_default_validate_args),
    (_determinism, _set_determinism),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (lambda: _cudnn.benchmark, partial(setattr, _cudnn, "benchmark")),
    (lambda: _cudnn.deterministic, partial(setattr, _cudnn, "deterministic")),
    (torch.get_rng_state, torch.set_rng_state),
    (random.getstate, random.setstate),
    (numpy.random.get_state, numpy.random.set_state),
    (numpy.geterr, lambda errors: numpy.seterr(**errors)),
    (lambda: dict(os.environ), _restore_environment),
    (os.getcwd, os.chdir),
    (_plotting_settings, _restore_plotting),
]
