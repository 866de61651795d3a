"""Losses as compiled graphs: the same numbers but for rounding, in fewer and larger kernels."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from vaebench import runtime
from vaebench.errors import UserError
from vaebench.training.update import Loss, Settings

__all__ = ["Compiled", "Compiler"]

LossFunction = Callable[[Tensor, Settings], Loss]

_NUMBERS = count()


@dataclass(frozen=True)
class Compiler:
    """How losses are compiled.

    Args:
        tolerance: how far a compiled gradient may be from the plain one, relative to its norm, by rounding alone.
        cache: where compiled kernels are kept for later runs, unless ``TORCHINDUCTOR_CACHE_DIR`` says so.
        derivatives: let a graph hold derivatives of its own, as the doubly reparameterised gradient has them. They
            must not be differentiated again: torch would lose that part without a word.
        graphs: replay kernels as CUDA graphs.
        required: what cannot be compiled ends the run, with a ``UserError``; it goes on uncompiled otherwise.
        tell: is told what was compiled, and what was not and why.
        backend: of ``torch.compile``.
    """

    tolerance: float
    cache: Path
    derivatives: bool = False
    graphs: bool = False
    required: bool = False
    tell: Callable[[str], None] = print
    backend: str = "inductor"

    def compiled(self, loss: LossFunction, settings: Settings) -> LossFunction:
        """Return a function that makes one graph of ``loss`` at its first call, or raises what torch raises."""

        def run(x: Tensor) -> Loss:
            return loss(x, settings)

        # torch counts and limits what it compiles by code object: each of ours has its own.
        name = f"loss_{next(_NUMBERS)}"
        fresh = FunctionType(run.__code__.replace(co_name=name), run.__globals__, name, None, run.__closure__)
        # Random numbers come from torch's own generators, so that a compiled step draws what a plain one draws.
        inductor = {"fallback_random": True, "triton.cudagraphs": self.graphs} if self.backend == "inductor" else {}
        graph = torch.compile(
            fresh, fullgraph=True, dynamic=False, backend=self.backend, options={**inductor, **_FEWER_CHECKS}
        )

        def replay(x: Tensor, settings: Settings) -> Loss:
            del settings  # part of the graph
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            with _derivatives_in_graphs(self.derivatives):
                return graph(x)

        return replay


@dataclass
class Compiled:
    """A loss that runs compiled at the settings at which that pays, for batches of one size, and plain otherwise.

    The first batch of a setting goes through both. Where the two gradients differ by more than rounding, or no one
    graph can be made, the loss stays as it is, and it is said why: a compiler that loses a part of a gradient (torch's
    does, of second derivatives) must not go unnoticed.
    """

    name: str
    loss: LossFunction
    parameters: Sequence[nn.Parameter]
    images: int
    """In the batches that are compiled for."""
    pays: Callable[[Settings], bool]
    compiler: Compiler
    _graphs: dict[Settings, LossFunction] = field(default_factory=dict)

    def __call__(self, x: Tensor, settings: Settings) -> Loss:
        """Return the loss for images x, (B, X)."""
        if len(x) != self.images:
            return self.loss(x, settings)
        if settings not in self._graphs:
            if not self.pays(settings):
                return self.loss(x, settings)
            self._graphs[settings] = self._made(x, settings)
        return self._graphs[settings](x, settings)

    def _made(self, x: Tensor, settings: Settings) -> LossFunction:
        """Return the compiled loss, or the plain one where it cannot be trusted."""
        random = runtime.random_state(x.device)
        plain = self._gradient(self.loss, x, settings)
        runtime.set_random_state(random, x.device)
        started = time.monotonic()
        try:
            with _compiling(self.compiler.cache):
                graph = self.compiler.compiled(self.loss, settings)
                error = difference(plain, self._gradient(graph, x, settings))
        except Exception as failure:  # whatever torch's compiler raises: the plain loss has just done the same work
            return self._left_plain(f"torch.compile: {_first_line(failure)}", failure)
        finally:
            runtime.set_random_state(random, x.device)
        if not error <= self.compiler.tolerance:
            return self._left_plain(f"its compiled gradient is off by {error:.1e} of its norm", None)
        seconds = time.monotonic() - started
        self.compiler.tell(f"compiled the {self.name} loss in {seconds:.1f} s; its gradient agrees to {error:.0e}")
        return graph

    def _left_plain(self, reason: str, cause: Exception | None) -> LossFunction:
        if self.compiler.required:
            raise UserError(
                f"trainer.compile=true: the {self.name} loss cannot be compiled ({reason}). "
                "Use trainer.compile=auto or trainer.compile=false."
            ) from cause
        self.compiler.tell(f"the {self.name} loss runs uncompiled: {reason}")
        return self.loss

    def _gradient(self, loss: LossFunction, x: Tensor, settings: Settings) -> list[Tensor]:
        """Return the loss and its gradient, as tensors of their own."""
        value = loss(x, settings).value
        gradient = torch.autograd.grad(value, list(self.parameters), allow_unused=True, materialize_grads=True)
        return [value.detach().clone(), *(part.clone() for part in gradient)]


def difference(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Return the larger relative error of two losses and of their gradients: [value, gradient, ...], all detached."""
    value = (got[0] - wanted[0]).abs() / wanted[0].abs().clamp(min=1)
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


def _worth_checking(guards: Sequence[Any]) -> list[bool]:
    """Say which of the graph's assumptions are looked at before each step: numbers, global modes, and x.

    Of the rest there are hundreds, whether every module is of the class that it was and has no hooks yet. A trainer
    changes no such thing, and to look takes a tenth of a small step.
    """
    return [guard.guard_type in _MAY_CHANGE or guard.name in ("x", "L['x']") for guard in guards]


# Versions of torch without these functions do not take the option.
_FEWER_CHECKS = {"guard_filter_fn": _worth_checking} if hasattr(torch.compiler, "skip_all_guards_unsafe") else {}


@contextmanager
def _compiling(cache: Path) -> Iterator[None]:
    """Keep kernels in ``cache``, and keep torch from talking of what is not there."""
    loggers = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "torch._inductor", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with suppress(OSError):  # a home that cannot be written: torch's own place for temporary files will do
        cache.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
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
