"""Training steps as CUDA graphs: one launch replays all kernels of a step.

A graph does what the host's kernels did when it was recorded, with the same memory. So whatever changes from step to
step is in tensors that are filled before a replay: the images, the learning rates, the KL weight, the number of the
step. Everything that a step leaves (weights, moments, averages, metrics) is in tensors made before the recording.
Gradients live in the graph's own memory: nothing reads them between two steps.

Random numbers: a replay begins at the seed and the offset that torch's CUDA generator has at that time, and moves the
offset on as an eager step does (CUDAGeneratorState::replay_prologue of torch). So seeding the generator before each
batch gives a graph the noise of that batch. A graph of several steps would draw from one seed only.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.errors import UserError
from vaebench.experiment import Experiment
from vaebench.train.replicas import Replicas
from vaebench.train.step import Moment, Step

__all__ = ["Capture", "CudaCapture", "StepGraph", "check_graph", "graphs_of"]

WARM_UP = 3
"""Eager steps before a recording, in which libraries, optimisers and compiled losses set themselves up."""

TRIALS = 3
"""Steps that run both ways before a graph is used."""

TOLERANCE = 1e-3
"""The largest difference between the changes that an eager step and a graph make, relative to their norm. The kernels
are the same, so a difference can come only from kernels that add up in a varying order."""


def check_graph(experiment: Experiment, processes: Replicas) -> None:
    """Raise UserError if ``trainer.graph=true`` and the run cannot use graphs."""
    reason = _reason_against(experiment, processes)
    if reason and experiment.config.trainer.graph is True:
        raise UserError(f"trainer.graph=true {reason}: set trainer.graph=auto or trainer.graph=false")


def graphs_of(
    experiment: Experiment, processes: Replicas, tell: Callable[[str], None]
) -> Callable[[Step], "StepGraph"] | None:
    """Return the maker of the run's graphs as ``trainer.graph`` asks for; None if steps run eagerly."""
    trainer = experiment.config.trainer
    if trainer.graph is False or _reason_against(experiment, processes):
        return None
    capture, required = CudaCapture(experiment.device), trainer.graph is True
    return partial(StepGraph, images=trainer.batch_size, capture=capture, required=required, tell=tell)


def _reason_against(experiment: Experiment, processes: Replicas) -> str | None:
    if experiment.device.type != "cuda":
        return f"needs a CUDA device, and this run uses the {experiment.device.type}"
    return "is not supported for a run in several processes" if processes.count > 1 else None


class Capture(Protocol):
    """A way to record work on a device."""

    def eagerly(self, work: Callable[[], Any]) -> str | None:
        """Do the work on the stream of the recordings; return the reason why it cannot be recorded, or None."""
        ...

    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """Return a function that repeats the kernels of ``work``, which itself changes nothing on the device."""
        ...


class CudaCapture:
    """Records work as CUDA graphs, which share their memory: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def eagerly(self, work: Callable[[], Any]) -> str | None:
        """Do the work, and note whether the host had to wait for the device: a recording cannot do that."""
        current, before = torch.cuda.current_stream(self.device), torch.cuda.get_sync_debug_mode()
        self._stream.wait_stream(current)
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with torch.cuda.stream(self._stream):
                    work()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        current.wait_stream(self._stream)
        waits = [warning for warning in noted if "synchronizing CUDA operation" in str(warning.message)]
        for warning in noted:
            if warning not in waits:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return "the step waits for the device" if waits else None

    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """Return the replay of a CUDA graph of the work."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            work()
        return graph.replay


class _Number:
    """A number in a tensor, which is filled only when the number changes."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = torch.zeros((), dtype=dtype, device=device)
        self._value: float | None = None

    def fill(self, value: float) -> None:
        if value != self._value:
            self.tensor.fill_(value)
            self._value = value


class _Kind(NamedTuple):
    """What is fixed in a graph."""

    k: int
    inner_k: int
    warming: bool
    """Whether the KL weight changes."""
    active: tuple[bool, ...]
    """Which updates do something."""
    with_norm: bool


@dataclass
class _Recorded:
    """The graph of one kind of step."""

    steps: int = 0
    """Steps of this kind so far, until the graph is used."""
    replay: Callable[[], Any] | None = None
    names: list[str] = field(default_factory=list)
    """The metrics of the step."""
    error: float = 0.0

    @property
    def trusted(self) -> bool:
        return self.steps >= WARM_UP + TRIALS


class StepGraph:
    """Takes training steps as ``step`` does, by graphs as soon as these have given the results of eager steps.

    The first steps of each kind run eagerly. Then the step is recorded. The next steps run both ways, from the same
    state and random numbers, and the training continues from the eager result. If a graph fails or differs, all steps
    run eagerly from then on. Batches of another size always do.

    Args:
        step: takes a step eagerly.
        images: images in a batch of a graph.
        capture: records work.
        required: raise UserError if a graph fails or differs.
        tell: called with one line: graphs are used, or why not.
    """

    def __init__(
        self, step: Step, images: int, capture: Capture, *, required: bool, tell: Callable[[str], None]
    ) -> None:
        self.step, self.images = step, images
        self.usable = True
        self._capture, self._required, self._tell = capture, required, tell
        self._recorded: dict[_Kind, _Recorded] = {}
        self._told = False
        self._x: Tensor | None = None
        device = step.means.number.device
        # Fused Adam reads float32 on CUDA. Elsewhere, float64 holds what a Python number holds.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self._rates = [[_Number(dtype, device) for _ in update.shares] for update in step.updates]
        self._beta = _Number(torch.float64, device)
        if not all(update.optimizer.param_groups[0].get("fused") for update in step.updates):
            # A graph would repeat the number of the recorded step.
            self._give_up("the optimiser counts its steps on the host, which optimizer=adam does not")

    def __call__(self, x: Tensor, at: Moment) -> None:
        """Take a step for images x, (B, X)."""
        if not self.usable or len(x) != self.images:
            self.step(x, at)
            return
        recorded = self._recorded.setdefault(self._kind(at), _Recorded())
        if not recorded.trusted:
            self._prepare(recorded, x, at)
            return
        self._fill(x, at)
        assert recorded.replay is not None
        recorded.replay()
        self.step.count(recorded.names)

    def _kind(self, at: Moment) -> _Kind:
        active = tuple(update.active(at.epoch) for update in self.step.updates)
        # A clipped update always has a norm.
        with_norm = at.with_norm and any(update.clip_norm is None for update in self.step.updates)
        return _Kind(at.settings.k, at.settings.inner_k, bool(at.settings.beta != 1), active, with_norm)

    def _fill(self, x: Tensor, at: Moment) -> None:
        """Fill the tensors that a graph reads; each fill is one small kernel, in order with the replays."""
        if self._x is None:
            self._x = torch.empty_like(x)
        self._x.copy_(x)
        self.step.means.number.fill_(at.number)
        for update, numbers in zip(self.step.updates, self._rates, strict=True):
            for number, rate in zip(numbers, update.set_rates(at.epoch), strict=True):
                number.fill(rate)
        self._beta.fill(float(at.settings.beta))

    def _prepare(self, recorded: _Recorded, x: Tensor, at: Moment) -> None:
        """Take a step eagerly, and bring its graph closer to being trusted."""
        recorded.steps += 1
        if recorded.steps <= WARM_UP:
            reason = self._capture.eagerly(lambda: self.step(x, at))
            if recorded.steps == WARM_UP and reason:
                self._give_up(reason)
            return
        if recorded.replay is None and not self._record(recorded, x, at):
            self.step(x, at)
            return
        recorded.error = max(recorded.error, self._difference(recorded, x, at))
        if not recorded.error <= TOLERANCE:
            self._give_up(f"a graph's results differ from those of an eager step by {recorded.error:.1e}")
        elif recorded.trusted and not self._told:
            self._told = True
            self._tell(f"training steps run as CUDA graphs; they agree with eager steps to {recorded.error:.0e}")

    def _record(self, recorded: _Recorded, x: Tensor, at: Moment) -> bool:
        """Return whether the step could be recorded."""
        noise = runtime.random_state(x.device)
        self._fill(x, at)
        try:
            recorded.replay = self._capture.record(partial(self._work, at))
        except Exception as failure:  # of any type; eager steps have run before
            self._give_up((str(failure).strip().splitlines() or [type(failure).__name__])[0][:200])
            return False
        finally:
            runtime.set_random_state(noise, x.device)
        return True

    def _work(self, at: Moment) -> None:
        """Take a step that reads its images and its numbers from tensors."""
        assert self._x is not None
        if at.settings.beta != 1:
            at = at._replace(settings=at.settings._replace(beta=self._beta.tensor))
        with self._rates_in_tensors():
            self.step.compute(self._x, at)

    @contextmanager
    def _rates_in_tensors(self) -> Iterator[None]:
        """Let the optimisers read their rates from tensors; outside, they hold numbers, as checkpoints do."""
        groups = [
            (group, number.tensor)
            for update, numbers in zip(self.step.updates, self._rates, strict=True)
            for group, number in zip(update.optimizer.param_groups, numbers, strict=True)
        ]
        kept = [{key: group[key] for key in ("lr", "capturable")} for group, _ in groups]
        for group, rate in groups:
            group.update(lr=rate, capturable=True)
        try:
            yield
        finally:
            for (group, _), values in zip(groups, kept, strict=True):
                group.update(values)

    def _difference(self, recorded: _Recorded, x: Tensor, at: Moment) -> float:
        """Take a step both ways, keep the eager result, and return the relative difference of the two."""
        tensors, device = self.step.tensors(), x.device
        before, noise = _copies(tensors), runtime.random_state(device)
        names: list[str] = []

        def eager() -> None:
            self.step.means.number.fill_(at.number)
            names.extend(self.step.compute(x, at))

        self._capture.eagerly(eager)
        wanted, noise_after = _copies(tensors), runtime.random_state(device)
        _restore(tensors, before)
        runtime.set_random_state(noise, device)
        self._fill(x, at)
        assert recorded.replay is not None
        recorded.replay()
        error = max(_relative_error(before[kind], wanted[kind], tensors[kind]) for kind in tensors)
        drawn = runtime.random_state(device)
        _restore(tensors, wanted)
        runtime.set_random_state(noise_after, device)
        recorded.names = names
        self.step.count(names)
        return error if all(torch.equal(drawn[key], noise_after[key]) for key in drawn) else math.inf

    def _give_up(self, reason: str) -> None:
        if self._required:
            raise UserError(
                f"trainer.graph=true: the training step cannot run as a CUDA graph ({reason}). "
                "Use trainer.graph=auto or trainer.graph=false."
            )
        self.usable = False
        self._recorded.clear()
        self._tell(f"training steps run without CUDA graphs: {reason}")


_State = dict[str, list[Tensor]]


def _copies(tensors: _State) -> _State:
    return {kind: [tensor.detach().clone() for tensor in found] for kind, found in tensors.items()}


@torch.no_grad()
def _restore(tensors: _State, values: _State) -> None:
    for kind, found in tensors.items():
        for tensor, value in zip(found, values[kind], strict=True):
            tensor.copy_(value)


@torch.no_grad()
def _relative_error(before: list[Tensor], wanted: list[Tensor], got: list[Tensor]) -> float:
    """Return the norm of ``got - wanted`` relative to that of ``wanted - before``.

    It is 0 only if all numbers are equal, and infinite if one is not finite.
    """
    if all(map(torch.equal, wanted, got)):  # also if there are none
        return 0.0
    error = torch.stack([(b.double() - a.double()).norm() for a, b in zip(wanted, got, strict=True)]).norm()
    change = torch.stack([(b.double() - a.double()).norm() for a, b in zip(before, wanted, strict=True)]).norm()
    relative = (error / change.clamp(min=1e-30)).item()
    return relative if math.isfinite(relative) else math.inf
