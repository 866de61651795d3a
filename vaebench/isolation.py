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

from vaebench.runtime import release_memory

__all__ = ["isolated"]


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Restore, after the block, every global setting that one job could change for the next.

    They are: torch's default dtype and device, threads, gradient mode, determinism and precision switches, argument
    checks of distributions, all random states, numpy's error handling, warning filters, matplotlib's settings, the
    environment and the working folder. Memory on an accelerator is freed.
    """
    put_back = [partial(restore, read()) for read, restore in SETTINGS]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for restore in put_back:
            restore()
        if torch.accelerator.is_available():
            gc.collect()
            release_memory()


def _set_determinism(mode: int) -> None:
    # torch's other function for it takes seconds, because it imports torch's compiler, of which it sets a switch.
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)
    torch.set_deterministic_debug_mode(mode)


def _fields_of_products() -> list[tuple[Any, str]]:
    """Return the objects and fields that set the precision of float32 products, the older ones first."""
    if not hasattr(_cudnn, "conv"):  # torch before 2.9
        return [(_cudnn, "allow_tf32")]
    newer = (torch.backends.cuda.matmul, _cudnn.conv, _cudnn.rnn)
    return [(_cudnn, "allow_tf32"), *((part, "fp32_precision") for part in newer)]


def _products() -> list[Any]:
    values: list[Any] = [torch.get_float32_matmul_precision()]
    for part, name in _fields_of_products():
        try:
            values.append(getattr(part, name))
        except RuntimeError:  # allow_tf32, if the newer fields of convolutions and of recurrent networks differ
            values.append(False)
    return values


def _set_products(values: list[Any]) -> None:
    torch.set_float32_matmul_precision(values[0])
    for (part, name), value in zip(_fields_of_products(), values[1:], strict=True):
        setattr(part, name, value)


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


def _plotting_settings() -> tuple[dict[str, Any] | None, list[int]]:
    """Return matplotlib's current settings, or None if it is not imported yet, and the numbers of open figures."""
    matplotlib, pyplot = sys.modules.get("matplotlib"), sys.modules.get("matplotlib.pyplot")
    return None if matplotlib is None else dict(matplotlib.rcParams), pyplot.get_fignums() if pyplot else []


def _restore_plotting(before: tuple[dict[str, Any] | None, list[int]]) -> None:
    """Restore matplotlib's settings (None: its defaults) and close the figures opened since."""
    settings, figures = before
    matplotlib, pyplot = sys.modules.get("matplotlib"), sys.modules.get("matplotlib.pyplot")
    if matplotlib is None:
        return
    if pyplot is not None:
        for number in set(pyplot.get_fignums()) - set(figures):
            pyplot.close(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # copying reads and writes deprecated settings
        matplotlib.rcParams.update(matplotlib.rcParamsOrig if settings is None else settings)


_cudnn: Any = torch.backends.cudnn
_deterministic: Any = torch.utils.deterministic
# The functions that read and restore each setting.
SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (lambda: Distribution._validate_args, Distribution.set_default_validate_args),
    (torch.get_deterministic_debug_mode, _set_determinism),
    (_products, _set_products),
    (
        lambda: _deterministic.fill_uninitialized_memory,
        partial(setattr, _deterministic, "fill_uninitialized_memory"),
    ),
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
