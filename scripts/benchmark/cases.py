"""The cases of the speed table: vaebench's trainer or evaluator beside a loop written by hand."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from benchmark.baselines import (
    AdversarialBaseline,
    Baseline,
    GaussianBaseline,
    HandWritten,
    HierarchicalBaseline,
    InverseAutoregressiveBaseline,
    binary,
)
from benchmark.counting import count
from benchmark.measure import seconds_of
from vaebench import runtime
from vaebench.config import compose, for_evaluation, to_yaml
from vaebench.errors import UserError
from vaebench.estimators.importance import ROWS
from vaebench.evaluate.job import EstimatorInputs
from vaebench.evaluate.loop import Evaluator, Task
from vaebench.experiment import Experiment, build
from vaebench.records import Recorder, RunFolder
from vaebench.records.checkpoint import Checkpoints
from vaebench.signals import Interruption
from vaebench.train.session import trainer_for
from vaebench.train.trainer import Callbacks

__all__ = ["CASES", "Bench", "Case", "Work"]

Candidates = dict[str, Callable[[], float]]
HAND, OURS, PYTHAE = "hand-written", "vaebench", "pythae"
COMPILED = ", compiled"
PRECISIONS = {"float32": "", "bf16": ", bf16"}
EVALUATED_IMAGES = 100


@dataclass(frozen=True)
class Bench:
    """The settings of a measurement."""

    device: torch.device
    threads: int
    batch: int = 256
    seconds: float = 1.0
    """Approximate time of a candidate in a round."""
    rounds: int = 5
    compiled: bool = False
    """Whether losses are compiled too, ours and those written by hand."""
    precision: str | None = None
    """``float32`` or ``bf16``; None: both."""

    @property
    def suffixes(self) -> dict[str, str]:
        """The precisions to measure, and what the names of their candidates end with."""
        return {name: suffix for name, suffix in PRECISIONS.items() if self.precision in (name, None)}


@dataclass(frozen=True)
class Work:
    """One case, ready to be timed."""

    candidates: Candidates
    """By name; each does some work and returns its amount, in units of the case."""
    flops: float
    """Of the matrix products behind one unit of work."""
    rows: int
    """Rows of its matrix products."""


@dataclass(frozen=True)
class Case:
    """A piece of work."""

    name: str
    unit: str
    words: Sequence[str]
    """The words after ``vaebench train``."""
    baseline: Callable[[], Baseline]
    k: int = 1
    evaluates: bool = False
    in_pythae: bool = False
    """Whether pythae has this model too, and is timed if installed."""
    batch: int | None = None
    """Images in a batch; None: as in all other cases."""

    def prepare(self, bench: Bench, folder: Path, stack: ExitStack) -> Work:
        """Make the models and the data; ``stack`` closes the files."""
        runtime.seed_everything(0)
        bench = replace(bench, batch=self.batch or bench.batch)
        return self._evaluation(bench) if self.evaluates else self._training(bench, folder, stack)

    def _experiment(self, bench: Bench, images: int, precision: str, compiled: bool = False) -> Experiment:
        words = [*self.words, f"k={self.k}", f"device={bench.device}", f"trainer.threads={bench.threads}"]
        words += [f"trainer.batch_size={bench.batch}", "trainer.progress=false", f"trainer.precision={precision}"]
        words.append(f"trainer.compile={str(compiled).lower()}")
        # The benchmark stops the training, not the number of epochs. Every 215 steps write a checkpoint, as on MNIST.
        every = max(1, round(55_000 / images))
        words += ["trainer.epochs=1000000", "trainer.validate_every=1000000", f"trainer.checkpoint_every={every}"]
        built = build(compose([*words, "trainer.image_every=0"]))
        return replace(built, data=replace(built.data, train=grey_images(images)))

    def _training(self, bench: Bench, folder: Path, stack: ExitStack) -> Work:
        steps = self._steps_in_a_round(bench)
        images = steps * bench.batch
        data = grey_images(images).to(bench.device)
        candidates: Candidates = {}
        for precision, suffix in bench.suffixes.items():
            for compiled, way in ((False, ""), (True, COMPILED)) if bench.compiled else ((False, ""),):
                loop = HandWritten(self.baseline(), data, self.k, bench.batch, precision, compiled)
                candidates[HAND + way + suffix] = returning(images, loop.epoch)
                own = folder / f"{self.name}{way}{suffix}".replace(" ", "-")
                epoch = self._trainer(self._experiment(bench, images, precision, compiled), own, stack)
                candidates[OURS + way + suffix] = returning(images, epoch)
        if self.in_pythae and pythae_is_installed():
            epoch = _pythae().training(binary(data.float() / 255), self.k, bench.batch, folder)
            candidates[PYTHAE] = returning(images, epoch)
        x = torch.zeros(bench.batch, data.shape[1], device=bench.device)
        flops = counted(lambda: HandWritten(self.baseline(), data, self.k, bench.batch).step(x))
        return Work(candidates, flops / bench.batch, bench.batch * self.k)

    def _trainer(self, experiment: Experiment, folder: Path, stack: ExitStack) -> Callable[[], None]:
        run = RunFolder(folder).create(to_yaml(experiment.config))
        recorder = stack.enter_context(Recorder(run))
        trainer = trainer_for(
            experiment,
            Callbacks(lambda modules: 0.0),
            Interruption(),
            recorder=recorder,
            checkpoints=Checkpoints(run.checkpoints),
        )
        return trainer.epoch

    def _steps_in_a_round(self, bench: Bench) -> int:
        """Return how many steps the loop written by hand takes in the time of a round."""
        few = 3
        loop = HandWritten(self.baseline(), grey_images(few * bench.batch).to(bench.device), self.k, bench.batch)
        loop.epoch()
        return max(few, round(few * bench.seconds / seconds_of(loop.epoch, bench.device)))

    def _evaluation(self, bench: Bench) -> Work:
        data = grey_images(EVALUATED_IMAGES).to(bench.device)
        rows = ROWS.on(bench.device)
        loops = {p: HandWritten(self.baseline(), data, 1, bench.batch, p) for p in PRECISIONS}
        hand = loops["float32"]
        hand.evaluate(100, rows)
        k = max(100, round(100 * bench.seconds / seconds_of(lambda: hand.evaluate(100, rows), bench.device)))
        amount = len(data) * k
        candidates: Candidates = {}
        for precision, suffix in bench.suffixes.items():
            for compiled, way in ((False, ""), (True, COMPILED)) if bench.compiled else ((False, ""),):
                loop = HandWritten(loops[precision].baseline, data, 1, bench.batch, precision, compiled)
                candidates[HAND + way + suffix] = returning(amount, lambda loop=loop: loop.evaluate(k, rows))
                words = [f"estimator.k={k}", f"precision={precision}", f"compile={str(compiled).lower()}"]
                work = evaluation(self._experiment(bench, bench.batch, precision), data, words)
                candidates[OURS + way + suffix] = returning(amount, work)
        if self.in_pythae and pythae_is_installed():
            candidates[PYTHAE] = returning(*_pythae().evaluation(binary(hand.probabilities), k))
        flops = counted(lambda: hand.evaluate(100, rows)) / (100 * len(data))
        return Work(candidates, flops, rows)


def pythae_is_installed() -> bool:
    """Whether pythae is installed."""
    return importlib.util.find_spec("pythae") is not None


def _pythae() -> ModuleType:
    """Return the module that runs pythae. UserError if pythae is installed but cannot be imported."""
    try:
        return importlib.import_module("benchmark.pythae")
    except ImportError as error:
        raise UserError(
            f"pythae is installed and cannot be imported ({error}): repair it with `pip install pythae`, or remove it"
        ) from error


def evaluation(experiment: Experiment, data: Tensor, words: Sequence[str]) -> Callable[[], Tensor]:
    """Return a function that computes the numbers of ``vaebench evaluate RUN <words>`` for the images ``data``."""
    config = for_evaluation(experiment.config, [*words, f"device={experiment.device}", "progress=false"])
    evaluated = replace(experiment, config=config, data=replace(experiment.data, test=data))
    evaluator = Evaluator(EstimatorInputs.of(evaluated))
    return lambda: evaluator.compute(Task(0, 0, len(data)))


def returning(amount: float, work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that does ``work`` and returns ``amount``."""

    def timed() -> float:
        work()
        return amount

    return timed


def grey_images(count: int) -> Tensor:
    """Make pixel bytes, (count, 784), a fifth of them grey or white, as in MNIST."""
    generator = torch.Generator().manual_seed(0)
    bright = torch.rand(count, 784, generator=generator) < 0.2
    return torch.randint(0, 256, (count, 784), generator=generator).mul(bright).to(torch.uint8)


def counted(work: Callable[[], object]) -> float:
    """Return the floating-point operations of the matrix products in ``work``."""
    return count(work).flops


INNER = 5
CASES = [
    Case("train gaussian", "images/s", ["encoder=gaussian"], GaussianBaseline, in_pythae=True),
    Case("train gaussian, batch 20", "images/s", ["encoder=gaussian"], GaussianBaseline, in_pythae=True, batch=20),
    Case(
        "train gaussian, iwae-16",
        "images/s",
        ["encoder=gaussian", "objective=iwae"],
        GaussianBaseline,
        k=16,
        in_pythae=True,
    ),
    Case(
        "evaluate gaussian", "image-samples/s", ["encoder=gaussian"], GaussianBaseline, evaluates=True, in_pythae=True
    ),
    Case(
        "train iwhvi",
        "images/s",
        ["encoder=iwhvi", f"encoder.inner_k={INNER}"],
        lambda: HierarchicalBaseline(INNER),
    ),
    Case(
        "train iwhvi, batch 20",
        "images/s",
        ["encoder=iwhvi", f"encoder.inner_k={INNER}"],
        lambda: HierarchicalBaseline(INNER),
        batch=20,
    ),
    Case("train iaf", "images/s", ["encoder=iaf"], lambda: InverseAutoregressiveBaseline(4, 128, 2)),
    Case("train avb", "images/s", ["encoder=avb"], lambda: AdversarialBaseline(64, (512, 512), 3)),
]
