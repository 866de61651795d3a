"""compile=auto|true|false of an evaluation: the same numbers from a compiled p(x, z), or a plain one and why."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaebench.compiler import Compiler
from vaebench.config import compose, for_evaluation, identity, read
from vaebench.errors import UserError
from vaebench.evaluate.compile import CompiledModel, model_for
from vaebench.evaluate.job import EstimatorInputs, job_for
from vaebench.evaluate.loop import Evaluator, Task
from vaebench.evaluate.run import evaluate
from vaebench.experiment import Experiment, build, load_best
from vaebench.model import LogJoint
from vaebench.records import RunFolder, read_per_image
from vaebench.train.session import train

SMALL = ["latent_dim=3", "decoder.hidden=[8]", "device=cpu", "trainer.threads=1", "trainer.progress=false"]
SAMPLES, IMAGES = 4, 5

needs_a_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler on a CPU"
)


def compiler(said: list[str], cache: Path, *, required: bool = False) -> Compiler:
    """Return one whose graphs run torch's own operators, which compile in no time and round alike."""
    how = Compiler("compile", 1e-6, cache, tell=said.append, backend="aot_eager")
    return replace(how, required=required)


def blank(run: Experiment, samples: int = SAMPLES, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    x = run.data.observe(run.data.test[:images])
    return x, torch.randn(samples, images, run.config.latent_dim)


# The model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize(
    "words",
    [[], ["prior=vamp"], ["prior=realnvp"], ["encoder=two_layer", "prior=chained"], ["decoder=gated"]],
    ids=lambda words: " ".join(words) or "default",
)
def test_a_compiled_model_is_the_plain_one(words: list[str], differentiated: bool, tmp_path: Path):
    run, said = build(compose([*words, *SMALL])), []
    run.modules.eval()
    model = CompiledModel(run.model, SAMPLES, IMAGES, compiler(said, tmp_path), differentiated=differentiated)
    for _ in range(3):
        x, z = blank(run)
        with torch.set_grad_enabled(differentiated):
            z.requires_grad_(differentiated)
            wanted, got = run.model.log_joint(x, z), model.log_joint(x, z)
        torch.testing.assert_close(got.log_likelihood, wanted.log_likelihood)
        torch.testing.assert_close(got.log_prior, wanted.log_prior)
        if differentiated:
            slopes = [torch.autograd.grad(torch.add(*one).sum(), z)[0] for one in (wanted, got)]
            torch.testing.assert_close(slopes[1], slopes[0])
    assert len(said) == 1
    assert said[0].startswith("compiled log p(x, z) in ")


def test_other_sizes_and_other_gradients_stay_plain(tmp_path: Path):
    run, said = build(compose([*SMALL])), []
    model = CompiledModel(run.model, SAMPLES, IMAGES, compiler(said, tmp_path))
    for samples, images in ((SAMPLES - 1, IMAGES), (SAMPLES, IMAGES - 1), (IMAGES, SAMPLES)):
        x, z = blank(run, samples, images)
        with torch.no_grad():
            assert torch.equal(model.log_joint(x, z).log_likelihood, run.model.log_joint(x, z).log_likelihood)
    x, z = blank(run)
    slope = torch.autograd.grad(model.log_joint(x, z.requires_grad_()).log_likelihood.sum(), z)[0]
    assert torch.equal(slope, torch.autograd.grad(run.model.log_joint(x, z).log_likelihood.sum(), z)[0])
    assert not said


def test_weights_are_shared_and_take_no_gradient(tmp_path: Path):
    run = build(compose([*SMALL]))
    model = CompiledModel(run.model, SAMPLES, IMAGES, compiler([], tmp_path))
    x, z = blank(run)
    with torch.no_grad():
        before = model.log_joint(x, z).log_likelihood
        for weight in run.model.decoder.parameters():
            weight.add_(0.1)
        after = model.log_joint(x, z).log_likelihood
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, run.model.log_joint(x, z).log_likelihood)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert all(weight.requires_grad for weight in run.model.parameters())


class Careless(Compiler):
    """Compiles to a likelihood that is too high by a hundredth of a nat, or to a gradient off by a thousandth."""

    def compiled(self, function: Callable[[Tensor, Tensor], LogJoint]) -> Callable[[Tensor, Tensor], LogJoint]:
        def wrong(x: Tensor, z: Tensor) -> LogJoint:
            value, log_prior = function(x, z)
            if not value.requires_grad:
                return LogJoint(value + 0.01, log_prior)
            return LogJoint(value.detach() + 1.001 * (value - value.detach()), log_prior)

        return wrong


@pytest.mark.parametrize("differentiated", [False, True])
def test_wrong_numbers_are_not_used(differentiated: bool, tmp_path: Path):
    run, said = build(compose([*SMALL])), []
    careless = Careless("compile", 1e-6, tmp_path, tell=said.append)
    model = CompiledModel(run.model, SAMPLES, IMAGES, careless, differentiated=differentiated)
    x, z = blank(run)
    with torch.set_grad_enabled(differentiated):
        z.requires_grad_(differentiated)
        got, wanted = model.log_joint(x, z), run.model.log_joint(x, z)
    assert said[0].startswith("log p(x, z) runs uncompiled: the compiled result is off by ")
    assert torch.equal(got.log_likelihood, wanted.log_likelihood)
    with pytest.raises(
        UserError, match=r"compile=true: log p\(x, z\) cannot be compiled \(the compiled result is off by"
    ):
        CompiledModel(
            run.model, SAMPLES, IMAGES, replace(careless, required=True), differentiated=differentiated
        ).log_joint(x, z)


# What the amount of work decides ---------------------------------------------------------------------------------


def chosen(*words: str, images: int = 10_000, calls: int = 125) -> bool:
    """Whether p(x, z) would be compiled for so many calls per batch of 100 images."""
    run = build(compose([*SMALL]))
    run = replace(run, config=for_evaluation(run.config, [*words, "device=cpu"]))
    return isinstance(model_for(EstimatorInputs.of(run), 100, images, calls, 40), CompiledModel)


def test_auto_compiles_an_evaluation_with_enough_calls():
    # 12,500 calls.
    assert chosen()
    assert not chosen(images=500)
    assert not chosen(calls=2)
    assert not chosen("compile=false")
    assert chosen("compile=true", images=500)
    # Each of several processes compiles, and makes its part of the calls.
    assert not chosen("processes=8")


@pytest.mark.parametrize("estimator", ["gaps", "sandwich"])
def test_an_estimator_that_is_never_compiled_says_so(estimator: str):
    run = build(compose([*SMALL]))
    words = [f"estimator={estimator}", "estimator.images=2", "device=cpu"]
    job_for(EstimatorInputs.of(replace(run, config=for_evaluation(run.config, words))))
    strict = replace(run, config=for_evaluation(run.config, [*words, "compile=true"]))
    with pytest.raises(UserError, match=f"compile=true is unsupported for estimator={estimator}"):
        job_for(EstimatorInputs.of(strict))


def test_other_words_are_refused():
    with pytest.raises(UserError, match="compile must be one of auto, true, false"):
        for_evaluation(compose([*SMALL]), ["compile=yes please"])


def test_it_is_no_part_of_a_runs_identity():
    config = compose([*SMALL])
    assert identity(for_evaluation(config, ["compile=true"])) == identity(config)


# Whole evaluations, compiled for this processor -------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> Path:
    place = tmp_path_factory.mktemp("runs")
    words = ["encoder=iwhvi", "trainer.epochs=2", "trainer.evaluate=false", "trainer.image_every=0"]
    words += [f"output_dir={place}", f"data_dir={default_data_dir}", "encoder.hidden=[16]", "trainer.validation_k=2"]
    return train(compose([*words, *SMALL]))


def estimated(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Tensor, str]:
    """Return the numbers of an evaluation made anew, (N,), and what was said of compiling."""
    for file in run.glob("evaluations/*.npz"):
        file.unlink()
    (record, *_) = evaluate(run, [*words, "device=cpu", "threads=1", "progress=false"])
    said = "".join(line for line in capsys.readouterr().err.splitlines(keepends=True) if "compiled" in line)
    return torch.from_numpy(read_per_image(RunFolder.open(run), record).values), said


CASES = {
    "iwae": ["estimator=iwae", "estimator.k=50", "estimator.inner_k=2", "estimator.chunk=20", "estimator.images=25"],
    "iwae, bf16": ["estimator=iwae", "estimator.k=50", "estimator.images=20", "estimator.batch=10", "precision=bf16"],
    "ais": ["estimator=ais", "estimator.temperatures=20", "estimator.images=12", "estimator.batch=6"],
    "bdmc": ["estimator=bdmc", "estimator.temperatures=20", "estimator.images=12"],
}


@needs_a_compiler
@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_a_compiled_evaluation_is_the_plain_one_but_for_rounding(
    words: list[str], run: Path, capsys: pytest.CaptureFixture[str]
):
    plain, nothing = estimated(run, capsys, *words, "compile=false")
    found, said = estimated(run, capsys, *words, "compile=true")
    assert not nothing
    assert said.startswith("vaebench: compiled log p(x, z) in ")
    assert said.count("\n") == 1
    # Chains amplify rounding where a proposal is about to be accepted.
    chains = words[0] not in ("estimator=iwae",)
    torch.testing.assert_close(found.mean(), plain.mean(), rtol=0, atol=0.5 if chains else 0.02)
    if not chains and "precision=bf16" not in words:
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-3)


@needs_a_compiler
def test_parts_may_come_in_any_order(run: Path):
    config = for_evaluation(read(run), [*CASES["iwae"], "estimator.batch=10", "compile=true", "device=cpu"])

    def evaluator() -> Evaluator:
        built = build(config)
        load_best(built, RunFolder.open(run))
        return Evaluator(EstimatorInputs.of(built))

    one, other = evaluator(), evaluator()
    first, second = one.compute(Task(0, 0, 10)), one.compute(Task(0, 10, 20))
    assert torch.equal(other.compute(Task(0, 10, 20)), second)
    assert torch.equal(other.compute(Task(0, 0, 10)), first)


@needs_a_compiler
def test_repeats_and_processes_compile_too(run: Path, capsys: pytest.CaptureFixture[str]):
    words = [*CASES["iwae"], "estimator.batch=10"]
    plain, _ = estimated(run, capsys, *words, "estimator.repeats=2", "compile=false")
    found, said = estimated(run, capsys, *words, "estimator.repeats=2", "compile=true")
    assert said.count("\n") == 2
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-3)
    shared, _ = estimated(run, capsys, *words, "compile=true", "processes=2")
    alone, _ = estimated(run, capsys, *words, "compile=false")
    torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-3)
