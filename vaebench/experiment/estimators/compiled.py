"""Which evaluations run compiled: those for which the planned work pays."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vaebench import runtime
from vaebench.compiler import Compiler
from vaebench.evaluation.compiled import CompiledModel
from vaebench.experiment.assembly import Experiment
from vaebench.experiment.compiling import brings_in
from vaebench.experiment.estimators.plan import at_a_time
from vaebench.files import user_cache
from vaebench.model import GenerativeModel

if TYPE_CHECKING:
    from vaebench.training.counting import Count

__all__ = ["model_for"]

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
    settings, model, device = experiment.config.estimator, experiment.model, experiment.device
    if settings.compile is False:
        return model
    together = at_a_time(experiment, batch, images)

    def work() -> "Count":
        return _measured_log_joint(experiment, samples, together, differentiated)

    # Each process compiles, and makes its part of the calls.
    planned = calls * (images // together) // settings.processes
    if settings.compile == "auto" and not brings_in(planned, device, work):
        return model
    compiler = Compiler(
        "compile",
        TOLERANCE[settings.precision],
        user_cache() / "compiled",
        required=settings.compile is True,
        tell=runtime.notice,
    )
    return CompiledModel(model, samples, together, compiler, differentiated=differentiated)


def _measured_log_joint(experiment: Experiment, samples: int, images: int, differentiated: bool) -> "Count":
    """Count the work of one call, by that of one sample: what is done in pieces for many is one graph's operation."""
    from vaebench.training.counting import count  # a tenth of a second, which small evaluations do not have

    x = torch.zeros(images, experiment.data.train.shape[1], device=experiment.device)
    z = torch.zeros(1, images, experiment.config.latent_dim, device=experiment.device)
    with runtime.forked_randomness(x.device, seed=0), torch.set_grad_enabled(differentiated):
        z.requires_grad_(differentiated)

        def once() -> object:
            value = torch.add(*experiment.model.log_joint(x, z))
            return torch.autograd.grad(value.sum(), z) if differentiated else value

        one = count(once)
    return replace(one, flops=samples * one.flops, moved=samples * one.moved)
