"""Compiles functions of tensors: the same numbers except for rounding, in fewer and larger kernels."""

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

CALLS = 3
"""Calls before a compiled function is compared: torch compiles in the first, records a CUDA graph in the second and
replays it from the third on."""

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
# Read at import, because torch itself sets the variable to a temporary folder when an optimiser is made.
_CACHE_GIVEN = _CACHE in os.environ


@dataclass(frozen=True)
class Compiler:
    """How to compile functions, and how to check a compiled function.

    Args:
        setting: the setting by which the user asked for it, ``trainer.compile`` for example.
        tolerance: the relative error that rounding alone may cause, see ``difference``.
        cache: folder that keeps compiled kernels for later runs, unless ``TORCHINDUCTOR_CACHE_DIR`` is set.
        derivatives: allow derivatives inside a graph, as the doubly reparameterised gradient needs them. They must not
            be differentiated again: torch would silently lose that part.
        graphs: replay kernels as CUDA graphs.
        required: raise ``UserError`` if a function cannot be compiled; otherwise it runs uncompiled.
        tell: called with a line for each function: compiled, or uncompiled and why.
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
        """Return ``function`` as one graph, which torch compiles at the first call; that call raises torch's errors.

        ``function`` takes tensors only. The graph is specialised to their shapes and to the values that it closes over.
        """
        # torch limits the number of graphs of a code object, so each function gets its own.
        code, name = function.__code__, f"compiled_{next(_NUMBERS)}"
        fresh = FunctionType(code.replace(co_name=name), function.__globals__, name, None, function.__closure__)
        # Random numbers come from torch's own generators, so that a compiled step draws the same as an uncompiled step.
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
        """Return the compiled ``function``, or ``function`` itself if it cannot be compiled or its numbers differ.

        The check is needed: torch's compiler silently loses a part of the gradient of some second derivatives. It
        compares the numbers of the third call, the first that replays a CUDA graph.

        Args:
            name: of the function, for messages.
            function: see ``compiled``.
            numbers: maps a function to the tensors to compare: values, then gradients, as in ``difference``.

        Raises:
            UserError: the function cannot be compiled, and ``required`` is set.
        """
        plain = numbers(function)
        started = time.monotonic()
        try:
            with _compiling(self.cache):
                skipped = _skipped_graphs()
                graph = self.compiled(function)
                for _ in range(CALLS - 1):
                    numbers(graph)
                error = difference(plain, numbers(graph))
        except Exception as failure:  # of any type; the uncompiled function has just run
            return self._left_plain(name, function, f"torch.compile: {_first_line(failure)}", failure)
        if not error <= self.tolerance:
            return self._left_plain(name, function, f"the compiled result is off by {error:.1e}", None)
        line, skipped = f"it agrees to {error:.0e}", _skipped_graphs() - skipped
        if self.graphs and skipped:
            line += f", but torch made no CUDA graph of {skipped} part{'s' if skipped > 1 else ''} of it"
        self.tell(f"compiled {name} in {time.monotonic() - started:.1f} s; {line}")
        return graph

    def _left_plain(self, name: str, function: F, reason: str, cause: Exception | None) -> F:
        if self.required:
            raise UserError(
                f"{self.setting}=true: {name} cannot be compiled ({reason}). "
                f"Use {self.setting}=auto or {self.setting}=false."
            ) from cause
        self.tell(f"{name} runs uncompiled: {reason}")
        return function


def _skipped_graphs() -> int:
    """Return how often torch's compiler, in this process, made no CUDA graph where it was asked to."""
    return torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]  # pyright: ignore[reportPrivateUsage]


def difference(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Return the largest relative error of values and gradients: lists [value, gradient, ...] of detached tensors.

    The error of a value is relative to its size, but absolute below 1. The error of the gradients is relative to their
    norm.
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
    """Return the option that limits torch's checks before each call to numbers, global modes and the arguments.

    Hundreds of other checks ask whether each module still has its class and no hooks. Neither a trainer nor an
    evaluation changes these, and the checks take a tenth of a small step.
    """
    if not hasattr(torch.compiler, "skip_all_guards_unsafe"):
        return {}  # this version of torch has no such option
    names = {*arguments, *(f"L['{argument}']" for argument in arguments)}
    return {"guard_filter_fn": lambda guards: [g.guard_type in _MAY_CHANGE or g.name in names for g in guards]}


@contextmanager
def _compiling(cache: Path) -> Iterator[None]:
    """Keep kernels in ``cache``, and suppress torch's warnings about missing tools."""
    loggers = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "torch._inductor", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with suppress(OSError):  # if the home folder is read-only, torch's temporary folder serves
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
    """Allow derivatives inside graphs, if this version of torch can; if not, compiling raises an error."""
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
    """Return the first line of an error's message, without torch's advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
