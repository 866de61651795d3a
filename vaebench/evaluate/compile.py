"""Compile p(x, z) for evaluations that are long enough to gain from it."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vaebench import runtime
from vaebench.evaluate.job import EstimatorInputs
from vaebench.model import GenerativeModel, LogJoint

if TYPE_CHECKING:
    from vaebench.compiler import Compiler

__all__ = ["CompiledModel", "model_for"]

CALLS_TO_PAY = 10_000
"""Calls of ``log_joint`` after which compiling saves time: it takes up to 20 s on two cores, and a call with the
default decoder and chunk is then 2 ms faster (docs/results/speed.md)."""

# The largest differences due to rounding: of log p(x, z), and of its gradient in z relative to its norm.
TOLERANCE = {"float32": 1e-4, "bf16": 1e-2}


def model_for(
    inputs: EstimatorInputs, batch: int, images: int, calls: int, samples: int, *, differentiated: bool = False
) -> GenerativeModel:
    """Return p(x, z) for an evaluation, compiled or not as ``estimator.compile`` says.

    Args:
        inputs: with the weights to evaluate.
        batch: the most images at a time.
        images: images in all, including finished ones.
        calls: calls of ``log_joint`` for each batch, at one size.
        samples: K of these calls.
        differentiated: whether these calls compute the gradient in z.
    """
    settings, model = inputs.settings, inputs.model
    if settings.compile is False:
        return model
    together = inputs.images_per_task(batch, images)
    # Each process compiles, and makes its part of the calls.
    calls_per_process = calls * (images // together) // settings.processes
    if settings.compile == "auto" and calls_per_process < CALLS_TO_PAY:
        return model
    from vaebench.compiler import Compiler
    from vaebench.files import user_cache

    compiler = Compiler(
        "compile",
        TOLERANCE[settings.precision],
        user_cache() / "compiled",
        # A gradient is kept from call to call, and the next replay of a graph would overwrite it.
        graphs=inputs.device.type == "cuda" and not differentiated,
        required=settings.compile is True,
        tell=runtime.notice,
    )
    return CompiledModel(model, samples, together, compiler, differentiated=differentiated)


class CompiledModel(GenerativeModel):
    """A model that shares another's weights, whose ``log_joint`` runs compiled at one size.

    The first call of that size runs both models and compares their numbers. Calls of other sizes use the plain model.

    Args:
        model: p(x, z).
        samples: K of the compiled calls.
        images: B of the compiled calls.
        differentiated: whether the compiled calls compute the gradient in z.
        compiler: compiles the graph.
    """

    def __init__(
        self, model: GenerativeModel, samples: int, images: int, compiler: "Compiler", *, differentiated: bool = False
    ) -> None:
        # Weights without gradients: a compiled backward pass would compute theirs too.
        shared = [nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()]
        memo: dict[int, Any] = {id(weight): own for weight, own in zip(model.parameters(), shared, strict=True)}
        frozen = copy.deepcopy(model, memo | {id(buffer): buffer for buffer in model.buffers()})
        super().__init__(frozen.latent_prior, frozen.decoder, frozen.decoder_inputs)
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
        found = self._graph(x, z)
        # The next replay of a CUDA graph overwrites its results.
        return LogJoint(*map(torch.clone, found)) if self._compiler.graphs else found

    def _made(self, x: Tensor, z: Tensor) -> Callable[[Tensor, Tensor], LogJoint]:
        plain = super().log_joint

        def log_joint(x: Tensor, z: Tensor) -> LogJoint:
            return plain(x, z)

        def numbers(log_joint: Callable[[Tensor, Tensor], LogJoint]) -> Sequence[Tensor]:
            values = torch.stack(log_joint(x, z))
            return [values.detach(), *(torch.autograd.grad(values.sum(), z) if self._differentiated else ())]

        return self._compiler.trusted("log p(x, z)", log_joint, numbers)
