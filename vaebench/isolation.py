"""Isolation of the jobs of a sweep that run one after another in one process."""

import contextlib
import gc
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch

__all__ = ["isolated"]


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Restore, after the block, every global setting that one job could change for the next.

    They are: torch's default dtype and device, threads, gradient mode, determinism and precision switches, argument
    checks of distributions, all random states, numpy's error handling, warning filters, matplotlib's settings, the
    environment and the working folder. Memory on a GPU is freed.
    """
    put_back = [*_torch_settings(), *_other_settings()]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for restore in put_back:
            restore()
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()


def _torch_settings() -> list[Callable[[], Any]]:
    """Return functions that restore torch's current global settings."""
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    gradients, checks = torch.is_grad_enabled(), torch.distributions.Distribution._validate_args
    strict = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    state = torch.get_rng_state()
    return [
        lambda: torch.set_default_dtype(dtype),
        # torch keeps a mode for every device that was set, including the CPU; None removes it.
        lambda: torch.set_default_device(None if device.type == "cpu" else device),
        lambda: torch.set_num_threads(threads),
        lambda: torch.set_grad_enabled(gradients),
        lambda: torch.distributions.Distribution.set_default_validate_args(checks),
        lambda: torch.use_deterministic_algorithms(strict, warn_only=lenient),
        lambda: torch.set_float32_matmul_precision(precision),
        lambda: setattr(cudnn, "benchmark", benchmark),
        lambda: setattr(cudnn, "deterministic", deterministic),
        lambda: torch.set_rng_state(state),
    ]


def _other_settings() -> list[Callable[[], Any]]:
    """Return functions that restore the current global settings of Python, numpy and matplotlib."""
    python, drawn, errors = random.getstate(), numpy.random.get_state(), numpy.geterr()
    environment, folder = dict(os.environ), os.getcwd()
    return [
        lambda: random.setstate(python),
        lambda: numpy.random.set_state(drawn),
        lambda: numpy.seterr(**errors),
        lambda: _restore_environment(environment),
        lambda: os.chdir(folder),
        _plotting_settings(),
    ]


def _restore_environment(environment: dict[str, str]) -> None:
    """Restore the environment; change only the variables that differ."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _plotting_settings() -> Callable[[], None]:
    """Return a function that restores matplotlib's current settings, or its defaults if it is not imported yet."""
    before = sys.modules.get("matplotlib")
    settings: dict[str, Any] | None = None if before is None else dict(before.rcParams)

    def restore() -> None:
        matplotlib = sys.modules.get("matplotlib")
        if matplotlib is None:
            return
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # copying reads and writes deprecated settings
            matplotlib.rcParams.update(matplotlib.rcParamsOrig if settings is None else settings)

    return restore
