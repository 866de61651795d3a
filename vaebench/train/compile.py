"""Compiles the losses of runs that are long enough for a compilation to save time."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vaebench import runtime
from vaebench.compiler import Compiler
from vaebench.errors import UserError
from vaebench.experiment import Experiment
from vaebench.files import user_cache
from vaebench.gradients import GradientEstimator
from vaebench.train.schedules import Course, StepSettings
from vaebench.train.update import Loss, LossFunction, Update

__all__ = ["CompiledLoss", "compiled_where_it_pays", "planned_steps"]


STEPS_TO_PAY = 20_000
"""Calls after which a compilation has saved the time that it takes, for the slowest family measured: with an empty
cache of kernels it takes up to 34 s on two CPU cores, and it saves at least 1.7 ms per step at batch size 256
(docs/results/speed.md)."""

TOLERANCE = {"float32": 1e-3, "bf16": 0.1}
"""The error that rounding may cause in a gradient, relative to its norm. Compiled kernels round to bf16 less often."""


def compiled_where_it_pays(
    experiment: Experiment, updates: list[Update], course: Course, tell: Callable[[str], None]
) -> list[Update]:
    """Return the updates, with compiled losses as ``trainer.compile`` asks for.

    The decision depends on the config and on the number of training images only. So it is the same on every machine and
    after every resume.

    Raises:
        UserError: ``trainer.compile=true`` and the run cannot be compiled.
    """
    trainer = experiment.config.trainer
    if trainer.compile is False:
        return updates
    if any(update.replicas.count > 1 for update in updates):
        if trainer.compile is True:
            raise UserError(
                "trainer.compile=true is not supported for a run in several processes: set trainer.compile=false"
            )
        return updates
    compiler = Compiler(
        "trainer.compile",
        TOLERANCE[trainer.precision],
        user_cache() / "compiled",
        derivatives=experiment.objective.gradient is GradientEstimator.DREG,
        # Otherwise a graph of the whole step contains the compiled loss, and graphs cannot contain graphs.
        graphs=experiment.device.type == "cuda" and trainer.graph is False and trainer.microbatch is None,
        required=trainer.compile is True,
        tell=tell,
    )
    fewest = 0 if trainer.compile is True else STEPS_TO_PAY
    made = []
    for update in updates:
        steps = planned_steps(course, update, len(experiment.data.train), trainer.batch_size)
        pays = {settings for settings, count in steps.items() if count > fewest}
        images = min(trainer.microbatch or trainer.batch_size, trainer.batch_size)
        loss = CompiledLoss(update.name, update.loss, update.parameters, images, pays, compiler)
        made.append(replace(update, loss=loss) if pays else update)
    return made


def planned_steps(course: Course, update: Update, images: int, batch_size: int) -> Counter[StepSettings]:
    """Return how often a whole run calls an update's loss, for each of the settings that last a whole epoch.

    A KL warm-up is left out: its settings change at every step.

    Args:
        course: of the run.
        update: whose loss is called.
        images: number of training images.
        batch_size: images in a full batch; smaller batches do not count.
    """
    batches, parts = images // batch_size, -(-batch_size // (update.microbatch or batch_size))
    steps = Counter[StepSettings]()
    for epoch in range(course.epochs):
        first, last = course.settings(epoch), course.settings(epoch + 1 - 0.5 / max(1, batches))
        if first == last and update.starts <= epoch < update.ends:
            steps[first] += batches * update.repeats * parts
    return steps


@dataclass
class CompiledLoss:
    """A loss that runs compiled for full batches at the settings where that pays, and uncompiled otherwise.

    The first batch at a setting runs both ways with the same noise, and the two gradients are compared.
    """

    name: str
    loss: LossFunction
    parameters: Sequence[nn.Parameter]
    images: int
    """Images in a batch to compile for."""
    pays: Collection[StepSettings]
    compiler: Compiler
    _graphs: dict[StepSettings, Callable[[Tensor], Loss]] = field(default_factory=dict)

    def __call__(self, x: Tensor, settings: StepSettings) -> Loss:
        """Return the loss for images x, (B, X)."""
        if len(x) != self.images or settings not in self.pays:
            return self.loss(x, settings)
        if settings not in self._graphs:
            self._graphs[settings] = self._compiled(x, settings)
        return self._graphs[settings](x)

    def _compiled(self, x: Tensor, settings: StepSettings) -> Callable[[Tensor], Loss]:
        """Return the compiled loss, or the uncompiled one if the compiled one is wrong."""
        random = runtime.random_state(x.device)

        def loss(x: Tensor) -> Loss:
            return self.loss(x, settings)

        def gradient(loss: Callable[[Tensor], Loss]) -> list[Tensor]:
            runtime.set_random_state(random, x.device)
            value = loss(x).value
            parts = torch.autograd.grad(value, list(self.parameters), allow_unused=True, materialize_grads=True)
            # Copies, because a compiled graph may reuse its memory.
            return [value.detach().clone(), *(part.clone() for part in parts)]

        try:
            return self.compiler.trusted(f"the {self.name} loss", loss, gradient)
        finally:
            runtime.set_random_state(random, x.device)
