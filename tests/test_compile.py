"""trainer.compile: the same gradient from a compiled graph, or a plain loss and the reason why."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vaebench.compiler import Compiler, difference
from vaebench.config import compose, identity
from vaebench.errors import GivenUp, UserError
from vaebench.experiment import build
from vaebench.files import user_cache
from vaebench.records import RunFolder, read_metrics, read_results
from vaebench.records.checkpoint import Checkpoints
from vaebench.train.compile import STEPS_TO_PAY, CompiledLoss, compiled_where_it_pays, planned_steps
from vaebench.train.schedules import StepSettings
from vaebench.train.session import train
from vaebench.train.update import Loss, LossFunction, Update
from vaebench.train.updates import course_of, updates

SMALL = ["latent_dim=3", "decoder.hidden=[8]", "device=cpu", "trainer.threads=1", "trainer.progress=false"]
TRACED = 1e-5
"""The backend of these tests runs torch's own operators, so that the two gradients are the same but for their order."""

CELLS = {
    "gaussian": [],
    "gaussian, dreg": ["objective=iwae", "k=4", "objective.gradient=dreg"],
    "full_gaussian, stl": ["encoder=full_gaussian", "objective.gradient=stl"],
    "hvm, stl": ["encoder=hvm", "objective.gradient=stl"],
    "iwhvi, dreg": ["encoder=iwhvi", "objective=iwae", "k=3", "objective.gradient=dreg", "encoder.inner_k=2"],
    "iaf": ["encoder=iaf"],
    "avb": ["encoder=avb"],
    "two_layer": ["encoder=two_layer", "prior=chained"],
    "piwae": ["objective=piwae", "k=4"],
    "bf16": ["trainer.precision=bf16"],
}

needs_a_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler on a CPU"
)


class Always(frozenset[StepSettings]):
    def __contains__(self, settings: object) -> bool:
        return True


def compiler(said: list[str], cache: Path, tolerance: float = TRACED, *, required: bool = False) -> Compiler:
    how = Compiler("trainer.compile", tolerance, cache, derivatives=True, tell=said.append, backend="aot_eager")
    return replace(how, required=required)


def of_update(update: Update, said: list[str], cache: Path, images: int) -> CompiledLoss:
    return CompiledLoss(update.name, update.loss, update.parameters, images, Always(), compiler(said, cache))


def gradient(
    loss: LossFunction, update: Update, x: Tensor, settings: StepSettings
) -> tuple[Loss, list[Tensor], Tensor]:
    """Return the loss, its gradient, and the next random number."""
    torch.manual_seed(5)
    found = loss(x, settings)
    parts = torch.autograd.grad(found.value, update.parameters, allow_unused=True, materialize_grads=True)
    return found, list(parts), torch.rand(())


@pytest.mark.parametrize("words", CELLS.values(), ids=CELLS)
def test_a_compiled_loss_has_the_same_value_noise_metrics_and_gradient(words: list[str], tmp_path: Path):
    run = build(compose([*words, *SMALL]))
    x, settings = run.data.observe(run.data.train[:6]), StepSettings(run.config.k, run.config.encoder.inner_k, 1.0)
    for update in updates(run):
        said: list[str] = []
        compiled = of_update(update, said, tmp_path, 6)
        compiled(x, settings)
        assert len(said) == 1
        assert said[0].startswith(f"compiled the {update.name} loss")
        plain, wanted, after = gradient(update.loss, update, x, settings)
        other, got, after_other = gradient(compiled, update, x, settings)
        assert difference([plain.value.detach(), *wanted], [other.value.detach(), *got]) < TRACED
        assert plain.metrics.keys() == other.metrics.keys()
        for name, value in plain.metrics.items():
            torch.testing.assert_close(other.metrics[name], value, rtol=1e-4, atol=1e-4)
        assert after == after_other
        assert len(said) == 1


def test_the_first_call_draws_what_a_plain_one_draws(tmp_path: Path):
    run = build(compose([*SMALL]))
    (update,) = updates(run)
    x, settings = run.data.observe(run.data.train[:6]), StepSettings(1, 0, 1.0)
    plain, _, after = gradient(update.loss, update, x, settings)
    first, _, after_first = gradient(of_update(update, [], tmp_path, 6), update, x, settings)
    torch.testing.assert_close(first.value, plain.value)
    assert after == after_first


@pytest.mark.parametrize("encoder", ["hvae", "langevin"])
def test_a_gradient_that_the_compiler_loses_a_part_of_is_not_used(encoder: str, tmp_path: Path):
    # The control: torch's compiler drops derivatives of derivatives, which these samplers are made of. (A run of theirs
    # does not let its graph hold derivatives, and is refused sooner.)
    run = build(compose([f"encoder={encoder}", *SMALL]))
    (update,) = updates(run)
    x, settings, said = run.data.observe(run.data.train[:6]), StepSettings(1, 0, 1.0), []
    compiled = of_update(update, said, tmp_path, 6)
    compiled(x, settings)
    assert "runs uncompiled" in said[0]
    plain, wanted, _ = gradient(update.loss, update, x, settings)
    other, got, _ = gradient(compiled, update, x, settings)
    assert difference([plain.value.detach(), *wanted], [other.value.detach(), *got]) == 0


class Careless(Compiler):
    """Returns losses whose gradient is off by a thousandth, and whose value is right."""

    def compiled(self, function: Callable[[Tensor], Loss]) -> Callable[[Tensor], Loss]:
        def wrong(x: Tensor) -> Loss:
            value, metrics = function(x)
            return Loss(value.detach() + 1.001 * (value - value.detach()), metrics)

        return wrong


@pytest.mark.parametrize(("tolerance", "used"), [(1e-4, False), (1e-2, True)])
def test_a_gradient_is_compared_with_the_plain_one(tolerance: float, used: bool, tmp_path: Path):
    weight, said = nn.Parameter(torch.ones(3)), []

    def loss(x: Tensor, settings: StepSettings) -> Loss:
        return Loss((x * weight).square().mean(), {})

    careless = Careless("trainer.compile", tolerance, tmp_path, tell=said.append)
    compiled = CompiledLoss("main", loss, [weight], 2, Always(), careless)
    compiled(torch.ones(2, 3), StepSettings(1, 0, 1.0))
    assert ("off by 1.0e-03" in said[0]) is not used
    assert ("compiled the main loss" in said[0]) is used


class WrongReplay(Compiler):
    """Returns losses that are right until they replay a CUDA graph, of which torch made one only."""

    def compiled(self, function: Callable[[Tensor], Loss]) -> Callable[[Tensor], Loss]:
        calls, factor = iter([1.0, 1.0]), 1.001 if self.cache.name == "wrong" else 1.0
        torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] += 1

        def late(x: Tensor) -> Loss:
            value, metrics = function(x)
            return Loss(value * next(calls, factor), metrics)

        return late


@pytest.mark.parametrize(("replay", "says"), [("wrong", "the compiled result is off by"), ("right", "it agrees to")])
def test_the_replay_of_a_graph_is_compared_and_a_skipped_graph_told(replay: str, says: str, tmp_path: Path):
    said: list[str] = []
    how = WrongReplay("trainer.compile", 1e-4, tmp_path / replay, graphs=True, tell=said.append)
    loss = CompiledLoss("main", lambda x, settings: Loss((x * WEIGHT).mean(), {}), [WEIGHT], 2, Always(), how)
    loss(torch.ones(2, 3), StepSettings(1, 0, 1.0))
    assert says in said[0]
    assert ("but torch made no CUDA graph of 1 part of it" in said[0]) is (replay == "right")


def not_a_graph(x: Tensor, settings: StepSettings) -> Loss:
    if x.sum() > 0:  # depends on the data
        return Loss((x * WEIGHT).mean(), {})
    return Loss((x - WEIGHT).mean(), {})


WEIGHT = nn.Parameter(torch.ones(()))


def test_what_is_no_one_graph_stays_plain_or_is_refused(tmp_path: Path):
    said: list[str] = []
    x, settings = torch.ones(2, 3), StepSettings(1, 0, 1.0)
    plain = CompiledLoss("main", not_a_graph, [WEIGHT], 2, Always(), compiler(said, tmp_path))
    assert plain(x, settings).value == 1
    assert plain(-x, settings).value == -2
    assert len(said) == 1
    assert said[0].startswith("the main loss runs uncompiled: torch.compile: ")
    assert "\n" not in said[0]
    strict = CompiledLoss("main", not_a_graph, [WEIGHT], 2, Always(), compiler(said, tmp_path, required=True))
    with pytest.raises(UserError, match=r"trainer\.compile=true: the main loss cannot be compiled"):
        strict(x, settings)


def test_only_full_batches_at_settings_that_pay_are_compiled(tmp_path: Path):
    def loss(x: Tensor, settings: StepSettings) -> Loss:
        return Loss(x.mean() * WEIGHT * settings.k, {})

    said: list[str] = []
    compiled = CompiledLoss("main", loss, [WEIGHT], 2, {StepSettings(2, 0, 1.0)}, compiler(said, tmp_path))
    for images, k in ((1, 2), (2, 1), (3, 2)):
        assert compiled(torch.ones(images, 3), StepSettings(k, 0, 1.0)).value == k
    assert not said
    for _ in range(3):
        assert compiled(torch.ones(2, 3), StepSettings(2, 0, 1.0)).value == 2
    assert len(said) == 1


def test_it_is_no_part_of_a_runs_identity():
    assert len({identity(compose([f"trainer.compile={word}"])) for word in ("auto", "true", "false")}) == 1


@pytest.mark.parametrize("word", ["ture", "1", "null"])
def test_other_words_are_refused(word: str):
    with pytest.raises(UserError, match=r"trainer\.compile must be one of auto, true, false"):
        compose([f"trainer.compile={word}"])


# What the planned work says ---------------------------------------------------------------------------------


def planned(words: list[str], batches: int = 40, **changes: float) -> dict[StepSettings, int]:
    run = build(compose([*words, *SMALL]))
    (update, *_) = updates(run)
    batch_size = run.config.trainer.batch_size
    return dict(planned_steps(course_of(run), replace(update, **changes), batches * batch_size, batch_size))


def test_planned_steps_follow_the_schedules():
    assert planned(["trainer.epochs=5"]) == {StepSettings(1, 0, 1.0): 200}
    words = ["encoder=iwhvi", "objective=iwae", "k=1", "encoder.inner_k=1", "trainer.epochs=10"]
    words += ["trainer.k_schedule={0:1,4:8}", "trainer.inner_k_schedule={0:0,6:3}"]
    assert planned(words) == {StepSettings(1, 0, 1.0): 160, StepSettings(8, 0, 1.0): 80, StepSettings(8, 3, 1.0): 160}
    # During a warm-up the settings of every step differ.
    assert planned(["trainer.epochs=5", "trainer.kl_warmup=3"]) == {StepSettings(1, 0, 1.0): 80}
    assert planned(["trainer.epochs=5", "trainer.kl_warmup=5"]) == {}
    assert planned(["trainer.epochs=5"], starts=1.0, ends=4.0, repeats=3) == {StepSettings(1, 0, 1.0): 360}
    assert planned(["trainer.epochs=5", "trainer.batch_size=100", "trainer.microbatch=30"]) == {
        StepSettings(1, 0, 1.0): 800
    }


def decided(*words: str) -> bool:
    """Return whether the main loss would be compiled at the end of training."""
    run = build(compose([*words, *SMALL]))
    (update, *_) = compiled_where_it_pays(run, updates(run), course_of(run), print)
    return isinstance(update.loss, CompiledLoss) and StepSettings(run.k, run.inner_k, 1.0) in update.loss.pays


def test_auto_compiles_a_plan_with_enough_steps():
    # 4,000 training images in batches of 100: 40 steps an epoch.
    enough = STEPS_TO_PAY // 40
    assert not decided("trainer.batch_size=100", f"trainer.epochs={enough}")
    assert decided("trainer.batch_size=100", f"trainer.epochs={enough + 1}")
    assert decided("trainer.epochs=2", "trainer.compile=true")
    assert not decided("trainer.epochs=1000000", "trainer.compile=false")


# Whole runs, compiled for this processor --------------------------------------------------------------------

RUN = ["trainer.epochs=2", "trainer.batch_size=900", "trainer.validation_k=2", "trainer.log_every=1", "estimator.k=3"]
"""Four full batches and one of 400 in each epoch."""


def trained(folder: Path, data: Path, *words: str, watch: Callable[[int, float], bool] | None = None) -> Path:
    config = compose([*RUN, *SMALL, *words, "trainer.image_every=0", f"output_dir={folder}", f"data_dir={data}"])
    return train(config) if watch is None else train(config, watch)


@needs_a_compiler
def test_a_compiled_run_is_the_plain_run_but_for_rounding_and_goes_on_bitwise(tmp_path: Path, default_data_dir: Path):
    plain = trained(tmp_path / "plain", default_data_dir, "trainer.compile=false")
    whole = trained(tmp_path / "whole", default_data_dir, "trainer.compile=true")
    bounds = [
        [line["train/bound"] for line in read_metrics(RunFolder.open(path)) if "train/bound" in line]
        for path in (plain, whole)
    ]
    assert len(bounds[0]) == 10
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-4)
    assert bounds[0] != bounds[1]  # it was compiled
    assert any((user_cache() / "compiled").iterdir())
    results = [read_results(RunFolder.open(path))[0] for path in (plain, whole)]
    assert results[0].mean == pytest.approx(results[1].mean, rel=1e-4)
    with pytest.raises(GivenUp):
        trained(tmp_path / "halves", default_data_dir, "trainer.compile=true", watch=lambda epoch, value: True)
    halves = trained(tmp_path / "halves", default_data_dir, "trainer.compile=true")
    weights = [Checkpoints(path / "checkpoints").load().state["modules"] for path in (whole, halves)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@needs_a_compiler
def test_a_run_that_cannot_be_compiled_says_so(tmp_path: Path, default_data_dir: Path):
    with pytest.raises(UserError, match=r"trainer\.compile=true: the main loss cannot be compiled"):
        trained(tmp_path, default_data_dir, "encoder=hvae", "trainer.compile=true")
