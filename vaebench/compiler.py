"""Functions of tensors as compiled graphs: the same numbers but for rounding, in fewer and larger kernels."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor

from vaebench.errors import UserError

__all__ = ["Compiler", "difference"]

F = TypeVar("F", bound=Callable[..., Any])

_NUMBERS = count()

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
# Looked at before torch does: it sets the variable itself, to a place for temporary files, when an optimiser is made.
_CACHE_GIVEN = _CACHE in os.environ


@dataclass(frozen=True)
class Compiler:
    """How functions are compiled, and when a compiled one is believed.

    Args:
        setting: the word by which the user chose to compile.
        tolerance: how far compiled numbers may be from the plain ones by rounding alone: relative, see ``difference``.
        cache: where compiled kernels are kept for later runs, unless ``TORCHINDUCTOR_CACHE_DIR`` said so at the start.
        derivatives: let a graph hold derivatives of its own, as the doubly reparameterised gradient has them. They
            must not be differentiated again: torch would lose that part without a word.
        graphs: replay kernels as CUDA graphs.
        required: what cannot be compiled ends the work, with a ``UserError``; it goes on uncompiled otherwise.
        tell: is told what was compiled, and what was not and why.
        backend: of ``torch.compile``.
    """

    setting: str
    tolerance: float
    cache: Path
    derivatives: bool = False
    graphs: bool = False
    required: bool = False
    tell: Callable[[str], None] = print
    backend: str = "inductor"

    def compiled(self, function: F) -> F:
        """Return a function that makes one graph of ``function`` at its first call, or raises what torch raises.

        It is a Python function of tensors alone; the graph is for their shapes, and for all else that it holds.
        """
        # torch counts and limits what it compiles by code object: each of ours has its own.
        code, name = function.__code__, f"compiled_{next(_NUMBERS)}"
        fresh = FunctionType(code.replace(co_name=name), function.__globals__, name, None, function.__closure__)
        # Random numbers come from torch's own generators, so that a compiled step draws what a plain one draws.
        inductor = {"fallback_random": True, "triton.cudagraphs": self.graphs} if self.backend == "inductor" else {}
        arguments = code.co_varnames[: code.co_argcount]
        graph = torch.compile(
            fresh, fullgraph=True, dynamic=False, backend=self.backend, options={**inductor, **_fewer_checks(arguments)}
        )

        def replay(*tensors: Tensor) -> Any:
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            with _derivatives_in_graphs(self.derivatives):
                return graph(*tensors)

        return replay  # pyright: ignore[reportReturnType]

    def trusted(self, name: str, function: F, numbers: Callable[[F], Sequence[Tensor]]) -> F:
        """Return the compiled ``function``, or itself where no one graph can be made or its numbers are others.

        A compiler that loses a part of a gradient (torch's does, of second derivatives) must not go unnoticed.

        Args:
            name: what it is, to the user.
            function: see ``compiled``.
            numbers: what is compared, of a function: values first, then gradients, as ``difference`` takes them.

        Raises:
            UserError: it cannot be compiled, and that is required.
        """
        plain = numbers(function)
        started = time.monotonic()
        try:
            with _compiling(self.cache):
                graph = self.compiled(function)
                error = difference(plain, numbers(graph))
        except Exception as failure:  # whatever torch's compiler raises: the plain one has just done the same work
            return self._left_plain(name, function, f"torch.compile: {_first_line(failure)}", failure)
        if not error <= self.tolerance:
            return self._left_plain(name, function, f"compiled, it is off by {error:.1e}", None)
        self.tell(f"compiled {name} in {time.monotonic() - started:.1f} s; it agrees to {error:.0e}")
        return graph

    def _left_plain(self, name: str, function: F, reason: str, cause: Exception | None) -> F:
        if self.required:
            raise UserError(
                f"{self.setting}=true: {name} cannot be compiled ({reason}). "
                f"Use {self.setting}=auto or {self.setting}=false."
            ) from cause
        self.tell(f"{name} runs uncompiled: {reason}")
        return function


def difference(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Return the larger relative error of values and of their gradients: [value, gradient, ...], all detached.

    That of the values is their largest, by number, where the number is above 1; that of the gradients is of their norm.
    """
    value = ((got[0] - wanted[0]).abs() / wanted[0].abs().clamp(min=1)).max()
    if len(wanted) == 1:
        return value.item()
    error = torch.stack([(b - a).norm() for a, b in zip(wanted[1:], got[1:], strict=True)]).norm()
    norm = torch.stack([a.norm() for a in wanted[1:]]).norm()
    return torch.maximum(value, error / norm.clamp(min=1e-12)).item()


_MAY_CHANGE = {
    "AUTOGRAD_SAVED_TENSORS_HOOKS",
    "CONSTANT_MATCH",
    "DEFAULT_DEVICE",
    "DETERMINISTIC_ALGORITHMS",
    "EQUALS_MATCH",
    "GLOBAL_STATE",
    "GRAD_MODE",
    "SEQUENCE_LENGTH",
    "SHAPE_ENV",
    "TORCH_FUNCTION_STATE",
}


def _fewer_checks(arguments: Sequence[str]) -> dict[str, Any]:
    """Say which of a graph's assumptions are looked at before each call: numbers, global modes, and its arguments.

    Of the rest there are hundreds, whether every module is of the class that it was and has no hooks yet. Neither a
    trainer nor an evaluation changes such a thing, and to look takes a tenth of a small step.
    """
    if not hasattr(torch.compiler, "skip_all_guards_unsafe"):
        return {}  # a version of torch that does not take the option
    names = {*arguments, *(f"L['{argument}']" for argument in arguments)}
    return {"guard_filter_fn": lambda guards: [g.guard_type in _MAY_CHANGE or g.name in names for g in guards]}


@contextmanager
def _compiling(cache: Path) -> Iterator[None]:
    """Keep kernels in ``cache``, and keep torch from talking of what is not there."""
    loggers = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "torch._inductor", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with suppress(OSError):  # a home that cannot be written: torch's own place for temporary files will do
        cache.mkdir(parents=True, exist_ok=True)
        if not _CACHE_GIVEN:
            os.environ[_CACHE] = str(cache)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _derivatives_in_graphs(wanted: bool) -> Iterator[None]:
    """Let graphs hold derivatives, where this version of torch can; otherwise it says that it cannot."""
    config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage]
    if not (wanted and hasattr(config, "trace_autograd_ops")):
        yield
        return
    kept, config.trace_autograd_ops = config.trace_autograd_ops, True
    try:
        yield
    finally:
        config.trace_autograd_ops = kept


def _first_line(error: Exception) -> str:
    """Return what an error says first, without the advice that torch adds."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
