"""No step waits for the device: counted on a CPU, by the operations that would make a host wait for a GPU."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vaebench.config import compose
from vaebench.errors import UserError
from vaebench.experiment import Experiment, build
from vaebench.train.schedules import StepSettings
from vaebench.train.step import AveragedWeights, MetricMeans
from vaebench.train.updates import updates

ENCODERS = sorted(path.stem for path in (Path(__file__).parents[1] / "configs" / "encoder").glob("*.yaml"))
SMALL = ["encoder.hidden=[8,7]", "decoder.hidden=[8,7]", "latent_dim=4", "device=cpu", "trainer.progress=false"]
WAITING = {
    "_local_scalar_dense",  # item(), float(), bool()
    "is_nonzero",
    "nonzero",  # and by it an index with a mask
    "masked_select",
    "equal",
    "allclose",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}
MEANT = {
    ("iaf", "stl"): "back-substitution stops after the few rounds that a gentle step needs, in place of one for each "
    "coordinate: a round costs more than to wait",
}
MEANT["iaf", "dreg"] = MEANT["iaf", "stl"]
"""What has to wait, and why."""


class Waits(TorchDispatchMode):
    """Counts the operations whose result a host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or masked:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def one_step(experiment: Experiment, x: torch.Tensor) -> None:
    """All updates, with their metrics, the means between two log lines, and the averaged weights."""
    config, means = experiment.config, MetricMeans(x.device)
    averaged = AveragedWeights(experiment.modules, 0.9)
    settings = StepSettings(config.k, config.encoder.inner_k, 0.5)
    for update in updates(experiment):
        for _ in range(update.repeats):
            loss = update.step(x, settings, 0.0, with_norm=True)
            means.count(means.add(update.name, loss))
    averaged.update()


def made(encoder: str, objective: str, gradient: str) -> Experiment:
    words = [f"encoder={encoder}", f"objective={objective}", f"objective.gradient={gradient}", *SMALL]
    words.append("k=3" if objective == "iwae" else "k=1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(compose(words))


@pytest.mark.parametrize("gradient", ["reparam", "stl", "dreg"])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_no_step_waits_for_the_device(encoder: str, objective: str, gradient: str):
    torch.manual_seed(0)
    try:
        experiment = made(encoder, objective, gradient)
    except UserError as error:
        pytest.skip(f"not allowed: {error}")
    x = torch.bernoulli(torch.full((4, experiment.data.train.shape[1]), 0.3))
    one_step(experiment, x)  # what is found out once, and the optimiser's state
    with Waits() as waits:
        one_step(experiment, x)
    assert set(waits.count) == ({"_local_scalar_dense"} if (encoder, gradient) in MEANT else set())


def test_the_count_of_averaged_weights_is_on_the_host():
    averaged = AveragedWeights(torch.nn.Linear(2, 2, device="meta"), 0.9)
    assert type(averaged.count) is int
    assert {tensor.device.type for tensor in averaged.tensors()} == {"meta"}


@pytest.mark.parametrize(
    "waiting",
    [
        lambda v: v.sum().item(),
        lambda v: bool(v.isfinite().all()),
        lambda v: v[v > 0],
        lambda v: torch.allclose(v, v),
        lambda v: torch.equal(v, v),
        lambda v: v.nonzero(),
    ],
)
def test_control_what_waits_is_counted(waiting: Any):
    with Waits() as waits:
        waiting(torch.randn(5))
    assert waits.count
