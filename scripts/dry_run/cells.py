"""Steps of trainings on the device that is not there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from benchmark.counting import count

from dry_run.device import Seen
from vaebench.config import compose, config_dir
from vaebench.experiment import Experiment, build
from vaebench.signals import Interruption
from vaebench.train.session import trainer_for
from vaebench.train.trainer import Callbacks

__all__ = ["Step", "choices", "every_cell", "step_of", "tiny"]

GRADIENTS = ("reparam", "stl", "dreg")


@dataclass(frozen=True)
class Step:
    """One step of a training."""

    launches: int
    """Kernels, a floor: an operation that torch computes by several kernels counts as one."""
    events: dict[str, int]
    """What the host did beside asking for kernels; see :mod:`dry_run.device`."""


def tiny(words: Sequence[str]) -> Experiment:
    """Return a run with tiny networks on the other device; UserError for an invalid combination."""
    small = [
        "latent_dim=4",
        "encoder.hidden=[8,7]",
        "decoder.hidden=[8,7]",
        "trainer.batch_size=4",
        "trainer.progress=false",
        "trainer.threads=1",
    ]
    fixed = ["device=cuda", "trainer.compile=false", "trainer.graph=false", "trainer.epochs=1"]
    return build(compose([*small, *fixed, *words]))


def step_of(experiment: Experiment, seen: Seen) -> Step:
    """Return what one step does: the difference between trainings of two steps and of one step.

    Both have the same start and end. The longer one is the first: what happens once in a process adds to the
    difference, and so hides nothing.
    """
    two, twice = _training(experiment, 2, seen)
    one, once = _training(experiment, 1, seen)
    return Step(two - one, Seen(twice - once).of("wait", "up", "down", "host"))


def _training(experiment: Experiment, steps: int, seen: Seen) -> tuple[int, Seen]:
    images = steps * experiment.config.trainer.batch_size
    data = replace(experiment.data, train=experiment.data.train[:images])
    trainer = trainer_for(replace(experiment, data=data), Callbacks(lambda modules: 0.0), Interruption())
    seen.clear()
    return count(trainer.run).kernels, seen.copy()


def choices(group: str) -> list[str]:
    """Return the names of a group of the configuration."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def every_cell() -> Iterator[list[str]]:
    """Yield the words of every encoder x objective x gradient estimator, of priors, of decoders; some are invalid."""
    for encoder, objective, gradient in product(choices("encoder"), choices("objective"), GRADIENTS):
        yield [f"encoder={encoder}", f"objective={objective}", f"objective.gradient={gradient}", "k=4"]
    for encoder, prior in product(choices("encoder"), choices("prior")):
        yield [f"encoder={encoder}", f"prior={prior}"]
    for encoder, decoder in product(choices("encoder"), choices("decoder")):
        yield [f"encoder={encoder}", f"decoder={decoder}", "decoder.hidden=[2,3,7]"]
