"""The program on a device that is not there: no tensors of two devices, and no step that waits or copies.

`python scripts/dry_run` tries every combination; here each choice of each group appears once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dry_run.cells import choices, step_of, tiny
from dry_run.device import DEVICE, MixedDevices, Seen, other_device

from vaebench.config import compose
from vaebench.config.diagnosis import Diagnosis
from vaebench.config.encoding import Encoding
from vaebench.config.pictures import Sample
from vaebench.diagnose import diagnose
from vaebench.draw import draw
from vaebench.encode import encode
from vaebench.evaluate.run import evaluate
from vaebench.train.session import resume, train
from vaebench.train.update import Update

# Every encoder, objective, gradient estimator, prior, decoder and likelihood, and the trainer's options.
CELLS = """
adgm objective=elbo
avb trainer.clip_norm=1 encoder.discriminator_steps=1
avb_ac prior=mixture encoder.discriminator_steps=1
full_gaussian objective=beta objective.gradient=stl decoder=gated_conv decoder.hidden=[2,3,7]
gaussian objective=iwae objective.gradient=dreg k=4 prior=vamp prior.components=5
householder objective=free_bits encoder.steps=2 likelihood=categorical dataset.binarization=none
hvae encoder.leapfrog_steps=1 likelihood=logistic_mixture dataset.binarization=none trainer.precision=bf16
hvm objective=hvm trainer.kl_warmup=1
iaf objective=miwae k=4 encoder.steps=2
iwhvi objective=iwhvi trainer.ema=0.9
ladder decoder=gated
langevin encoder.steps=1 decoder=iwae
nsf encoder.steps=1 likelihood=logistic dataset.binarization=none
planar objective=renyi k=4 encoder.steps=2
radial objective=vr_max k=4 encoder.steps=2 trainer.microbatch=3
realnvp objective=piwae k=4 encoder.steps=2 likelihood=gaussian dataset.binarization=none
sivi objective=sivi decoder=iwhvi
sylvester objective=tvo k=4 encoder.steps=1 decoder=resnet decoder.hidden=[2,3,7]
two_layer prior=chained objective=ciwae k=4
uivi encoder.hmc_burn_in=1 encoder.hmc_samples=1 encoder.leapfrog_steps=1 optimizer=burda
gaussian prior=realnvp likelihood=continuous_bernoulli dataset.binarization=none
""".strip().splitlines()


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_asks_for_kernels_and_for_nothing_else(cell: str):
    with other_device() as seen:
        step = step_of(tiny([f"encoder={cell.split()[0]}", *cell.split()[1:]]), seen)
    assert step.launches > 100
    assert not step.events


def test_the_step_that_waits_is_the_one_that_has_to():
    """Back-substitution stops after the few rounds that a gentle step needs: a round costs more than a wait."""
    with other_device() as seen:
        step = step_of(tiny(["encoder=iaf", "encoder.steps=1", "objective.gradient=stl"]), seen)
    (wait,) = step.events
    assert wait.startswith("wait: _local_scalar_dense in flows/iaf.py")


@pytest.mark.parametrize("group", ["encoder", "objective", "prior", "decoder", "likelihood", "optimizer"])
def test_every_choice_is_in_a_cell(group: str):
    defaults = ["prior=standard", "decoder=mlp", "likelihood=bernoulli", "optimizer=adam"]
    words = {word for cell in CELLS for word in f"encoder={cell}".split()} | {*defaults}
    words |= {"optimizer=adamax", "optimizer=rmsprop"}  # they count steps on the host: tests/test_graph.py
    assert {f"{group}={name}" for name in choices(group)} <= words


# A whole run ----------------------------------------------------------------------------------------------

RUN = [
    "device=cuda",
    "encoder.hidden=[8]",
    "decoder.hidden=[8]",
    "latent_dim=3",
    "trainer.compile=false",
    "trainer.graph=false",
]
RUN += ["trainer.epochs=1", "trainer.batch_size=1000", "trainer.validation_k=2", "trainer.log_every=2"]
RUN += ["trainer.image_every=1", "trainer.evaluate=false", "trainer.progress=false"]
SMALL = ["device=cuda", "progress=false", "estimator.images=2"]
"""Of every evaluation."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a hierarchical encoder, which every estimator takes; trained on the other device."""
    folder = tmp_path_factory.mktemp("other")
    with other_device():
        return train(compose([*RUN, "encoder=iwhvi", "trainer.ema=0.9", f"output_dir={folder}"]))


ANNEALED = ["estimator.temperatures=2", "estimator.chains=2", "estimator.leapfrog=1"]
ESTIMATORS = {
    "ais": [*ANNEALED, "estimator.bdmc=null"],
    "bdmc": ANNEALED,
    "diwhvi": ["estimator.k=4", "estimator.inner_k=2"],
    "gaps": ["estimator.k=4", "estimator.draws=2", "estimator.inner_k=2", "estimator.steps=2", "estimator.fit_draws=2"],
    "iwae": ["estimator.k=4"],
    "sandwich": ["estimator.k=2", "estimator.inner_k=2", "estimator.aggregate=2"],
}


@pytest.mark.parametrize("estimator", choices("estimator"))
def test_estimators(run: Path, estimator: str):
    with other_device():
        records = evaluate(run, [*SMALL, f"estimator={estimator}", *ESTIMATORS[estimator]])
    assert records
    assert all(record.mean == record.mean for record in records)


def test_diagnose_encode_and_sample(run: Path):
    with other_device():
        assert diagnose(run, Diagnosis(device="cuda", images=8, draws=4, gradients=4, progress=False)).measures
        assert encode(run, Encoding(device="cuda", images=8, draws=2, mean_draws=4, progress=False))
        assert draw(Sample(device="cuda", n=4), run).exists()


def test_a_run_resumes_on_the_other_device(run: Path):
    with other_device():
        assert resume(run, {"device": "cuda", "trainer.epochs": 2, "output_dir": str(run.parent)})


# Controls --------------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[torch.Tensor], Any]] = {
    "a sum of two devices": lambda there: there + torch.ones(3),
    "a product of two devices": lambda there: there.expand(2, 3) @ torch.ones(3, 2),
    "a number of the CPU among tensors": lambda there: torch.stack([there[0], torch.tensor(1.0)]),
    "an index on the device into the CPU": lambda there: torch.ones(3)[there.long()],
    "a generator of the CPU": lambda there: there.normal_(generator=torch.Generator()),
    "numpy": lambda there: there.numpy(),
}
RECORDED: dict[str, tuple[str, Callable[[torch.Tensor], Any]]] = {
    "item": ("wait", lambda there: there.sum().item()),
    "bool": ("wait", lambda there: bool(there.isfinite().all())),
    "mask": ("wait", lambda there: there[there > 0]),
    "assignment by a mask": ("wait", lambda there: there.__setitem__(there > 0, there[:1])),
    "nonzero": ("wait", lambda there: there.nonzero()),
    "allclose": ("wait", lambda there: torch.allclose(there, there)),
    "equal": ("wait", lambda there: torch.equal(there, there)),
    "multinomial": ("wait", lambda there: there.multinomial(1)),
    "an error check of linalg": ("wait", lambda there: torch.linalg.cholesky(there.diag())),
    "synchronize": ("wait", lambda there: torch.cuda.synchronize()),
    "cpu": ("down", lambda there: there.cpu()),
    "tolist": ("down", lambda there: there.tolist()),
    "to the device": ("up", lambda there: torch.ones(3).to(DEVICE)),
    "a copy into a tensor": ("up", lambda there: there.copy_(torch.ones(3))),
    "a new tensor of numbers": ("up", lambda there: torch.tensor([1.0, 2.0], device=DEVICE)),
    "an index on the CPU": ("up", lambda there: there[torch.tensor([0, 1])]),
    "a tensor of the host": ("host", lambda there: torch.zeros(3)),
    "a number in a tensor of the host": ("host", lambda there: there * torch.tensor(2.0)),
}
FINE: dict[str, Callable[[torch.Tensor], Any]] = {
    "numbers": lambda there: torch.where(there > 0, 2 * there + 1, 0.0),
    "new tensors": lambda there: torch.zeros(3, device=DEVICE) + torch.zeros_like(there) + there.new_full((3,), 2.0),
    "the same device": lambda there: there.to(DEVICE),
    "a view changed in place": lambda there: there[1:].mul_(2),
    "a fill by a mask": lambda there: there.masked_fill(there > 0, 1.0),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_control_two_devices_are_refused(fault: str):
    with other_device(), pytest.raises((MixedDevices, TypeError)):
        REFUSED[fault](torch.ones(3, device=DEVICE))


@pytest.mark.parametrize("fault", RECORDED)
def test_control_a_fault_is_recorded(fault: str):
    kind, commit = RECORDED[fault]
    with other_device() as seen:
        there = torch.ones(3, device=DEVICE)
        seen.clear()
        commit(there)
    assert seen.of(kind)


@pytest.mark.parametrize("work", FINE)
def test_control_no_fault_is_recorded(work: str):
    with other_device() as seen:
        FINE[work](torch.ones(3, device=DEVICE))
    assert not seen


@pytest.mark.parametrize("fault", ["item", "cpu", "to the device", "a tensor of the host"])
def test_control_a_fault_in_a_step_is_found(monkeypatch: pytest.MonkeyPatch, fault: str):
    kind, commit = RECORDED[fault]
    taken = Update.step

    def faulty(update: Update, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        commit(x)
        return taken(update, x, *args, **kwargs)

    monkeypatch.setattr(Update, "step", faulty)
    with other_device() as seen:
        found = step_of(tiny([]), seen).events
    assert any(line.startswith(kind) for line in found)


def test_control_the_numbers_are_those_of_the_cpu():
    """Trained weights, but for the rounding of code that only CPUs run. Binarization would draw other pixels there."""

    def weights(device: str) -> torch.Tensor:
        words = [f"device={device}", "dataset.binarization=none", "likelihood=continuous_bernoulli"]
        experiment = tiny(words)
        step_of(experiment, Seen())
        return torch.cat([parameter.detach().cpu().view(-1) for parameter in experiment.modules.parameters()])

    with other_device():
        there = weights("cuda")
    assert (there - weights("cpu")).abs().max() < 1e-6
