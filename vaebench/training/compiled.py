"""Losses as compiled graphs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vaebench import runtime
from vaebench.compiler import Compiler
from vaebench.training.update import Loss, Settings

__all__ = ["Compiled"]

LossFunction = Callable[[Tensor, Settings], Loss]


@dataclass
class Compiled:
    """A loss that runs compiled at the settings at which that pays, for batches of one size, and plain otherwise.

    The first batch of a setting goes through both, with the same noise, and their gradients are compared.
    """

    name: str
    loss: LossFunction
    parameters: Sequence[nn.Parameter]
    images: int
    """In the batches that are compiled for."""
    pays: Callable[[Settings], bool]
    compiler: Compiler
    _graphs: dict[Settings, Callable[[Tensor], Loss]] = field(default_factory=dict)

    def __call__(self, x: Tensor, settings: Settings) -> Loss:
        """Return the loss for images x, (B, X)."""
        if len(x) != self.images:
            return self.loss(x, settings)
        if settings not in self._graphs:
            if not self.pays(settings):
                return self.loss(x, settings)
            self._graphs[settings] = self._made(x, settings)
        return self._graphs[settings](x)

    def _made(self, x: Tensor, settings: Settings) -> Callable[[Tensor], Loss]:
        """Return the compiled loss, or the plain one where it cannot be trusted."""
        random = runtime.random_state(x.device)

        def loss(x: Tensor) -> Loss:
            return self.loss(x, settings)

        def gradient(loss: Callable[[Tensor], Loss]) -> list[Tensor]:
            # Tensors of their own: a compiled graph may use its memory again.
            runtime.set_random_state(random, x.device)
            value = loss(x).value
            parts = torch.autograd.grad(value, list(self.parameters), allow_unused=True, materialize_grads=True)
            return [value.detach().clone(), *(part.clone() for part in parts)]

        try:
            return self.compiler.trusted(f"the {self.name} loss", loss, gradient)
        finally:
            runtime.set_random_state(random, x.device)
