"""Losses as compiled graphs, in the runs that are long enough for a compilation to pay."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from vaebench import runtime
from vaebench.compiler import Compiler
from vaebench.config import Config
from vaebench.errors import UserError
from vaebench.experiment import Experiment
from vaebench.files import user_cache
from vaebench.gradients import GradientEstimator
from vaebench.train.trainer import Plan
from vaebench.train.update import Loss, Settings, Update

__all__ = ["Compiled", "compiled_where_it_pays", "planned_steps"]


STEPS_TO_PAY = 20_000
"""Calls after which a compilation has paid for itself on the slowest family measured: with an empty cache of kernels it
takes up to 34 s on two CPU cores, and it saves at least 1.7 ms per step at batch size 256 (docs/results/speed.md)."""

# What rounding alone may change in a gradient, relative to its norm. Compiled kernels round to bf16 less often.
TOLERANCE = {"float32": 1e-3, "bf16": 0.1}


def compiled_where_it_pays(
    experiment: Experiment, updates: list[Update], plan: Plan, tell: Callable[[str], None]
) -> list[Update]:
    """Return the updates, with losses that are compiled as ``trainer.compile`` has it.

    Raises:
        UserError: ``trainer.compile=true`` and the run cannot be compiled.
    """
    config = experiment.config
    wanted = config.trainer.compile
    if wanted is False:
        return updates
    if any(update.replicas.count > 1 for update in updates):
        if wanted is True:
            raise UserError("trainer.compile=true is for one process: leave it out where several share a run")
        return updates
    compiler = Compiler(
        "trainer.compile",
        TOLERANCE[config.trainer.precision],
        user_cache() / "compiled",
        derivatives=experiment.objective.gradient is GradientEstimator.DREG,
        graphs=experiment.device.type == "cuda" and config.trainer.microbatch is None,
        required=wanted is True,
        tell=tell,
    )
    return [replace(update, loss=_wrapped(experiment, update, plan, compiler)) for update in updates]


def _wrapped(experiment: Experiment, update: Update, plan: Plan, compiler: Compiler) -> "Compiled":
    trainer = experiment.config.trainer
    pays = _always if trainer.compile is True else partial(_pays, experiment, update, plan)
    return Compiled(
        update.name, update.loss, update.parameters, _images(experiment.config), _Remembered(pays), compiler
    )


def _images(config: Config) -> int:
    """Return how many images a loss is given at a time."""
    return min(config.trainer.microbatch or config.trainer.batch_size, config.trainer.batch_size)


def _always(settings: Settings) -> bool:
    del settings
    return True


def _pays(experiment: Experiment, update: Update, plan: Plan, settings: Settings) -> bool:
    batches = len(experiment.data.train) // experiment.config.trainer.batch_size
    return planned_steps(experiment.config, plan, update, batches)[settings] > STEPS_TO_PAY


def planned_steps(config: Config, plan: Plan, update: Update, batches: int) -> Counter[Settings]:
    """Return how often the whole plan calls a loss at each setting that lasts for an epoch or more.

    The whole plan, wherever a run stands in it: one that is resumed decides as it did at its start.

    Args:
        config: of the run.
        plan: its course.
        update: whose loss is called.
        batches: full batches in an epoch.
    """
    trainer, steps = config.trainer, Counter[Settings]()
    changes = {0, trainer.kl_warmup, trainer.epochs, *(trainer.k_schedule or {}), *(trainer.inner_k_schedule or {})}
    parts = -(-trainer.batch_size // trainer.microbatch) if trainer.microbatch else 1
    for start, end in pairwise(sorted(change for change in changes if change <= trainer.epochs)):
        first, last = plan.settings(start), plan.settings(end - 0.5 / max(1, batches))
        if first == last:
            epochs = max(0.0, min(end, update.ends) - max(start, update.starts))
            steps[first] += round(epochs * batches * update.repeats * parts)
    return steps


class _Remembered:
    """Asks once for each setting that lasts: a KL warm-up has another one at every step, and none of them pays."""

    def __init__(self, pays: Callable[[Settings], bool]) -> None:
        self._pays = pays
        self._known: dict[Settings, bool] = {}

    def __call__(self, settings: Settings) -> bool:
        if settings.beta != 1:
            return False
        if settings not in self._known:
            self._known[settings] = self._pays(settings)
        return self._known[settings]


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
