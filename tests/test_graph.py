"""Steps as graphs: static tensors and replays give bitwise what eager steps give, and a wrong graph is not used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vaebench.config import compose, identity
from vaebench.errors import UserError
from vaebench.experiment import build
from vaebench.signals import Interruption
from vaebench.train import graph
from vaebench.train.graph import Capture, CudaCapture, StepGraph
from vaebench.train.session import train, trainer_for
from vaebench.train.step import AveragedWeights, Moment, Step
from vaebench.train.trainer import Callbacks, Trainer

SMALL = ["latent_dim=3", "encoder.hidden=[8]", "decoder.hidden=[8]", "trainer.threads=1", "trainer.progress=false"]
SMALL += ["trainer.epochs=2", "trainer.batch_size=420", "trainer.log_every=3", "trainer.image_every=0"]
"""9 full batches and one of 220 in each epoch."""

CELLS = {
    "gaussian": [],
    "iwhvi": [
        "encoder=iwhvi",
        "objective=iwae",
        "k=1",
        "objective.gradient=dreg",
        "encoder.inner_k=1",
        "trainer.k_schedule={0:1,1:3}",
        "trainer.inner_k_schedule={0:0,1:2}",
        "trainer.kl_warmup=1",
        "trainer.ema=0.9",
    ],
    "iaf": ["encoder=iaf", "trainer.clip_norm=1.0", "optimizer.schedule=cosine"],
    "avb": ["encoder=avb", "encoder.discriminator_hidden=[8]", "trainer.ema=0.5", "optimizer.schedule=exponential"],
    "a warm-up of tau": ["encoder=hvm", "encoder.tau_warmup=1", "trainer.clip_norm=1.0"],
    "a weighted warm-up": ["objective=beta", "objective.kl_weight=0.7", "trainer.kl_warmup=2"],
    "free bits in a warm-up": ["objective=free_bits", "trainer.kl_warmup=2", "optimizer.schedule=burda"],
    "parts of a batch": ["trainer.microbatch=200"],
    "two rates": ["encoder=hvm", "optimizer.encoder_lr=1e-4", "optimizer.schedule=cosine"],
}


class StandIn:
    """Repeats the work itself in place of its kernels, and notes whether the work changes something on the host."""

    def __init__(self) -> None:
        self.recorded = self.replays = self.changes = 0
        self.host: Callable[[], Any] = lambda: None

    def eagerly(self, work: Callable[[], Any]) -> str | None:
        work()
        return None

    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        self.recorded += 1

        def replay() -> None:
            before = self.host()
            work()
            self.changes += self.host() != before
            self.replays += 1

        return replay


Made = tuple[dict[str, Any], list[dict[str, float]]]
"""The state at the end, and the logged values."""


def trained(
    words: list[str],
    said: list[str] | None = None,
    kind: type[StepGraph] = StepGraph,
    capture: Capture | None = None,
    *,
    device: str = "cpu",
    required: bool = False,
) -> Made:
    """Train a run; by ``kind`` of graph if ``said``, a list of its messages, is given."""
    run = build(compose([*SMALL, *words, f"device={device}", "trainer.graph=false"]))
    trainer = trainer_for(run, Callbacks(validate=lambda modules: 0.0), Interruption())
    if said is not None:
        capture = capture or StandIn()
        trainer.graphs = partial(kind, images=420, capture=capture, required=required, tell=said.append)
        trainer._take = trainer._taker()
        if isinstance(capture, StandIn):
            capture.host = partial(on_the_host, trainer)
    logged: list[dict[str, float]] = []
    trainer._record = lambda epoch, values: logged.append(values)
    trainer.epoch()
    addresses = state_addresses(trainer)
    trainer.epoch()
    assert addresses <= state_addresses(trainer)  # a graph would still find its tensors
    for values in logged:
        values.pop("train/images_per_second", None)
    return trainer.state_dict(), logged


@lru_cache
def eager(*words: str) -> Made:
    return trained(list(words))


def on_the_host(trainer: Trainer) -> Any:
    groups = [group for update in trainer.updates for group in update.optimizer.param_groups]
    numbers = [(group["lr"], group["capturable"]) for group in groups]
    return dict(trainer._metrics._counts), numbers, trainer.averaged and trainer.averaged.count


def state_addresses(trainer: Trainer) -> set[int]:
    step = Step(trainer.modules, trainer.updates, trainer._metrics, trainer.averaged)
    return {tensor.data_ptr() for found in step.tensors().values() for tensor in found}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "seconds")
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.fixture
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "WARM_UP", 1)
    monkeypatch.setattr(graph, "TRIALS", 2)


@pytest.mark.usefixtures("short_trials")
@pytest.mark.parametrize("words", CELLS.values(), ids=CELLS)
def test_the_path_of_a_graph_gives_bitwise_the_eager_run(words: list[str]):
    said: list[str] = []
    capture = StandIn()
    assert same(eager(*words), trained(words, said, capture=capture))
    assert said == ["training steps run as CUDA graphs; they agree with eager steps to 0e+00"]
    assert capture.replays > 2 * capture.recorded  # some after the trials
    assert capture.changes == 0


class OldImages(StepGraph):
    def _fill(self, x: Tensor, at: Moment) -> None:
        super()._fill(x if self._x is None else self._x, at)


class RateOfTheRecording(StepGraph):
    @contextmanager
    def _rates_in_tensors(self) -> Iterator[None]:
        yield


class WeightOfTheRecording(StepGraph):
    def _work(self, at: Moment) -> None:
        with self._rates_in_tensors():
            self.step.compute(self._x, at)  # pyright: ignore[reportArgumentType]


class FurtherNoise(StepGraph):
    def _work(self, at: Moment) -> None:
        super()._work(at)
        torch.rand(())


class NotFinite(StepGraph):
    def _work(self, at: Moment) -> None:
        super()._work(at)
        self.step.tensors()["exp_avg of main"][0].fill_(float("nan"))


WRONG = [
    (OldImages, []),
    (RateOfTheRecording, ["optimizer.schedule=cosine"]),
    (WeightOfTheRecording, ["trainer.kl_warmup=2"]),
    (FurtherNoise, []),
    (NotFinite, []),
]


@pytest.mark.usefixtures("short_trials")
@pytest.mark.parametrize(("kind", "words"), WRONG)
def test_a_wrong_graph_is_not_used_and_leaves_no_trace(kind: type[StepGraph], words: list[str]):
    said: list[str] = []
    capture = StandIn()
    assert same(eager(*words), trained(words, said, kind, capture))
    assert len(said) == 1
    assert said[0].startswith("training steps run without CUDA graphs: a graph's results differ")
    assert capture.replays <= 2


@pytest.mark.usefixtures("short_trials")
@pytest.mark.parametrize(("kind", "words"), WRONG[:3])
def test_control_a_wrong_graph_changes_the_run(
    kind: type[StepGraph], words: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(graph, "TOLERANCE", float("inf"))
    assert not same(eager(*words), trained(words, [], kind))


class Refusing(StandIn):
    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


class Waiting(StandIn):
    def eagerly(self, work: Callable[[], Any]) -> str | None:
        work()
        return "the step waits for the device"


def test_a_step_that_cannot_be_recorded_runs_eagerly_or_is_refused():
    said: list[str] = []
    assert same(eager(), trained([], said, capture=Waiting()))
    assert said == ["training steps run without CUDA graphs: the step waits for the device"]
    with pytest.raises(UserError, match=r"cannot run as a CUDA graph \(operation not permitted .* capturing\)\. Use"):
        trained([], said, capture=Refusing(), required=True)


@pytest.mark.parametrize("name", ["adamax", "rmsprop"])
def test_an_optimiser_that_counts_on_the_host_runs_eagerly(name: str):
    said: list[str] = []
    words = [f"optimizer={name}"] + ["optimizer.betas=[0,0.9]"] * (name == "rmsprop")
    assert same(trained(words), trained(words, said))
    (line,) = said
    assert line.endswith(": the optimiser counts its steps on the host, which optimizer=adam does not")


def test_it_is_no_part_of_a_runs_identity_and_refused_on_a_cpu(tmp_path: Path):
    assert len({identity(compose([f"trainer.graph={word}"])) for word in ("auto", "true", "false")}) == 1
    words = [*SMALL, "device=cpu", "trainer.graph=true", f"output_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"^trainer\.graph=true needs a CUDA device, and this run uses the cpu: set"):
        train(compose(words))
    assert not list(tmp_path.iterdir())


def test_averaged_weights_are_bitwise_those_of_torch():
    modules = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    ours, torchs = AveragedWeights(modules, 0.9), AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    assert same(ours.state_dict(), torchs.state_dict())
    for step in range(6):
        if step == 3:  # a checkpoint of an earlier version
            ours = AveragedWeights(modules, 0.9)
            ours.load_state_dict(torchs.state_dict())
        with torch.no_grad():
            for parameter in modules.parameters():
                parameter.add_(torch.randn_like(parameter))
        modules(torch.randn(5, 3))  # changes the buffers
        ours.update()
        ours.count += 1
        torchs.update_parameters(modules)
        assert same(ours.state_dict(), torchs.state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("words", CELLS.values(), ids=CELLS)
def test_cuda_graphs_give_bitwise_the_eager_run(words: list[str]):
    said: list[str] = []
    capture = CudaCapture(torch.device("cuda", 0))
    assert same(trained(words, device="cuda:0"), trained(words, said, capture=capture, device="cuda:0"))
    assert said == ["training steps run as CUDA graphs; they agree with eager steps to 0e+00"]
