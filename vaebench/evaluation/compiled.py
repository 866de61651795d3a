"""p(x, z) as a compiled graph, for an evaluation that asks for it at one size, over and over."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.compiler import Compiler
from vaebench.model import GenerativeModel, LogJoint

__all__ = ["CompiledModel"]


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
