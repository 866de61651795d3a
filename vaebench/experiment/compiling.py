"""When compiling pays, and which losses of a run it pays for."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from vaebench import runtime
from vaebench.compiler import Compiler
from vaebench.config import Config
from vaebench.errors import UserError
from vaebench.experiment.assembly import Experiment
from vaebench.files import user_cache
from vaebench.gradients import GradientEstimator
from vaebench.training.compiled import Compiled
from vaebench.training.trainer import Plan
from vaebench.training.update import Settings, Update

if TYPE_CHECKING:
    from vaebench.training.counting import Count

__all__ = ["brings_in", "compiled_where_it_pays", "planned_steps"]


@dataclass(frozen=True)
class Rates:
    """What compiling takes once, and saves at each call; seconds."""

    to_start: float
    for_each_operation: float
    saved_with_each_operation: float
    saved_with_each_flop: float

    def cost(self, work: "Count") -> float:
        """Return the seconds that compiling takes."""
        return self.to_start + self.for_each_operation * work.operations

    def saving(self, work: "Count") -> float:
        """Return the seconds that a call saves."""
        return self.saved_with_each_operation * work.operations + self.saved_with_each_flop * work.flops


# Measured on two cores with AVX-512, with an empty cache of kernels: with another run's it would be a fifth, but a run
# that is resumed must decide as it did, whatever has been compiled since. Activations are a share of the work of the
# products before them. On a GPU it is launches that are saved; these rates are not measured.
RATES = {"cpu": Rates(8.0, 0.05, 1e-6, 0.6e-12), "cuda": Rates(15.0, 0.05, 5e-6, 0.0)}
# A compilation has to bring in so many times its cost: the rates are another machine's.
MARGIN = 1.5
# Below so many calls nobody counts operations.
FEW_CALLS = 1_000

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


def _wrapped(experiment: Experiment, update: Update, plan: Plan, compiler: Compiler) -> Compiled:
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
    steps = planned_steps(experiment.config, plan, update, batches)[settings]
    return brings_in(steps, experiment.device, lambda: measured(experiment, update, settings))


def brings_in(calls: int, device: torch.device, count: Callable[[], "Count"]) -> bool:
    """Whether so many calls save what compiling takes, with a margin; the work of one is counted where they might."""
    if calls < FEW_CALLS:
        return False
    work, rates = count(), RATES[device.type]
    return calls * rates.saving(work) > MARGIN * rates.cost(work)


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


def measured(experiment: Experiment, update: Update, settings: Settings) -> "Count":
    """Count the work of one batch, forward and backward, by doing it once; nothing is changed by it."""
    from vaebench.training.counting import count  # a tenth of a second, which short runs do not have

    x = torch.zeros(_images(experiment.config), experiment.data.train.shape[1], device=experiment.device)
    with runtime.forked_randomness(x.device, seed=0):
        return count(lambda: torch.autograd.grad(update.loss(x, settings).value, update.parameters, allow_unused=True))


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
