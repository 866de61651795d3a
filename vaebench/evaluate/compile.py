"""p(x, z) as a compiled graph, in the evaluations that are long enough for a compilation to pay."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vaebench import runtime
from vaebench.compiler import Compiler
from vaebench.evaluate.job import at_a_time
from vaebench.experiment import Experiment
from vaebench.files import user_cache
from vaebench.model import GenerativeModel, LogJoint

__all__ = ["CompiledModel", "model_for"]

CALLS_TO_PAY = 10_000
"""Calls of ``log_joint`` after which a compilation has paid for itself: it takes up to 20 s on two cores, and a call
with the default decoder and chunk is then 2 ms faster (docs/results/speed.md)."""

# What rounding alone may change in log p(x, z), relative to it, and in its gradient in z, relative to its norm.
TOLERANCE = {"float32": 1e-4, "bf16": 1e-2}


def model_for(
    experiment: Experiment, batch: int, images: int, calls: int, samples: int, *, differentiated: bool = False
) -> GenerativeModel:
    """Return the experiment's p(x, z) for an evaluation, compiled as ``estimator.compile`` has it.

    Args:
        experiment: a run, with the weights that are evaluated.
        batch: images at a time, at most.
        images: images in all, wherever the evaluation stands.
        calls: of ``log_joint`` for each batch, at one size.
        samples: K of these calls.
        differentiated: whether it is the gradient in z that they are for.
    """
    settings, model = experiment.config.estimator, experiment.model
    if settings.compile is False:
        return model
    together = at_a_time(experiment, batch, images)

    # Each process compiles, and makes its part of the calls.
    planned = calls * (images // together) // settings.processes
    if settings.compile == "auto" and planned < CALLS_TO_PAY:
        return model
    compiler = Compiler(
        "compile",
        TOLERANCE[settings.precision],
        user_cache() / "compiled",
        required=settings.compile is True,
        tell=runtime.notice,
    )
    return CompiledModel(model, samples, together, compiler, differentiated=differentiated)


class CompiledModel(GenerativeModel):
    """A model that shares another's weights, whose ``log_joint`` runs compiled at one size.

    At the first call of that size both run, and their numbers are compared. At any other size it is the plain model.

    Args:
        model: p(x, z).
        samples: K of the calls that are compiled for.
        images: B of these calls.
        differentiated: whether they are those that z takes a gradient from, or those without gradients.
        compiler: how it is compiled.
    """

    def __init__(
        self, model: GenerativeModel, samples: int, images: int, compiler: Compiler, *, differentiated: bool = False
    ) -> None:
        # Weights that take no gradient: a compiled backward pass would compute it, asked for or not.
        shared = [nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()]
        memo: dict[int, Any] = {id(weight): own for weight, own in zip(model.parameters(), shared, strict=True)}
        frozen = copy.deepcopy(model, memo | {id(buffer): buffer for buffer in model.buffers()})
        super().__init__(frozen.latent_prior, frozen.decoder, frozen.seen)
        self.train(model.training)
        self._size = (samples, images)
        self._differentiated = differentiated
        self._compiler = compiler
        self._graph: Callable[[Tensor, Tensor], LogJoint] | None = None

    def log_joint(self, x: Tensor, z: Tensor) -> LogJoint:
        """Return log p(x|z) and log p(z), (K, B) each, for x (B, X) and z (K, B, D)."""
        differentiated = torch.is_grad_enabled() and z.requires_grad
        if (*z.shape[:-1],) != self._size or len(x) != z.shape[1] or differentiated is not self._differentiated:
            return super().log_joint(x, z)
        if self._graph is None:
            self._graph = self._made(x, z)
        return self._graph(x, z)

    def _made(self, x: Tensor, z: Tensor) -> Callable[[Tensor, Tensor], LogJoint]:
        plain = super().log_joint

        def log_joint(x: Tensor, z: Tensor) -> LogJoint:
            return plain(x, z)

        def numbers(log_joint: Callable[[Tensor, Tensor], LogJoint]) -> Sequence[Tensor]:
            values = torch.stack(log_joint(x, z))
            return [values.detach(), *(torch.autograd.grad(values.sum(), z) if self._differentiated else ())]

        return self._compiler.trusted("log p(x, z)", log_joint, numbers)
