"""One run in several processes is the run of one process: gradients, numbers, checkpoints."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from vaebench import experiment, noise, runtime
from vaebench.config import compose, run_folder
from vaebench.records import RunFolder, read_metrics, read_results
from vaebench.records.checkpoint import Checkpoints
from vaebench.train import replicas
from vaebench.train.replicas import Replicas
from vaebench.train.schedules import StepSettings
from vaebench.train.session import train
from vaebench.train.update import Update
from vaebench.train.updates import updates

PROCESSES = 2
IMAGES = 7  # shares of 3 and 4
TINY = ["latent_dim=2", "decoder.hidden=[8]", "trainer.progress=false", "device=cpu", "trainer.threads=1"]
CASES = {
    "gaussian": [],
    "one image more than none": ["trainer.microbatch=2"],
    "iwae": ["objective=iwae", "k=3", "objective.gradient=dreg"],
    "two encoder targets": ["objective=piwae", "k=4", "objective.groups=2"],
    "a mean over the batch that is no sum over images": ["objective=free_bits", "objective.nats=40"],
    "full_gaussian": ["encoder=full_gaussian"],
    "flow": ["encoder=nsf"],
    "hvm": ["encoder=hvm", "objective=iwae", "k=2"],
    "iwhvi": ["encoder=iwhvi", "encoder.inner_k=3", "k=2", "objective.gradient=stl"],
    "sivi": ["encoder=sivi", "encoder.inner_k=3", "encoder.share_psi=true"],
    "coins": ["encoder=sivi", "encoder.sampler=bernoulli_noise", "encoder.inner_k=2"],
    "a step size that adapts to all": ["encoder=uivi"],
    "auxiliary_losses": ["encoder=avb"],
    "auxiliary_losses, adaptive contrast": ["encoder=avb_ac"],
    "hvae": ["encoder=hvae"],
    "langevin": ["encoder=langevin"],
    "two layers": ["encoder=two_layer", "prior=chained"],
    "vamp": ["prior=vamp"],
    "mixture": ["prior=mixture"],
    "warm-up, clipping": ["trainer.kl_warmup=10", "trainer.clip_norm=1"],
}


def gradients(run: experiment.Experiment, processes: Replicas) -> dict[str, torch.Tensor]:
    """Return every number of a training step: gradients, losses, metrics, buffers; the modules stay as they are."""
    before = {key: value.clone() for key, value in run.modules.state_dict().items()}
    x = run.data.observe(run.data.train[:IMAGES], torch.Generator().manual_seed(0)).double()
    runtime.seed_everything(1)
    found: dict[str, torch.Tensor] = {}
    settings = StepSettings(run.config.k, run.config.encoder.inner_k, 0.5)
    for update in updates(run, processes):
        loss = update.step(x, settings, 6.0, with_norm=True)
        found |= {f"{update.name} {n}": p.grad.clone() for n, p in enumerate(update.parameters) if p.grad is not None}
        found |= {f"{update.name} {key}": number for key, number in {"loss": loss.value, **loss.metrics}.items()}
    found |= {key: value.clone() for key, value in run.modules.named_buffers() if value.is_floating_point()}
    run.modules.load_state_dict(before)
    return found | {"next noise": noise.standard_normal((2, 3, 4), x)}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference, relative to the size of the numbers."""
    assert one.keys() == other.keys()
    assert any(key.startswith("main") for key in one)
    return max(float((one[key] - other[key]).norm() / (1e-3 + one[key].norm())) for key in one)


@contextlib.contextmanager
def careless(images: slice, total: int) -> Iterator[None]:
    """Draw noise for this process's images alone, as if the batch had no others."""
    yield


def work(rank: int, place: str, data: str) -> None:
    """Compare the step of one process with that of all together, and write how far they are apart."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", f"file://{place}/meeting", rank=rank, world_size=PROCESSES)
    apart, together = {}, Replicas(rank, PROCESSES)
    for name, words in CASES.items():
        run = experiment.build(compose([*words, *TINY, f"data_dir={data}"]))
        apart[name] = distance(gradients(run, Replicas()), gradients(run, together))
    alone = gradients(run, Replicas())
    noise.part_of_batch, kept = careless, noise.part_of_batch
    apart["control: noise of one's own"] = distance(alone, gradients(run, together))
    noise.part_of_batch = kept
    together.part = lambda total: slice(0, 3) if rank == 0 else slice(4, 7)
    apart["control: an image left out"] = distance(alone, gradients(run, together))
    Path(place, f"{rank}.json").write_text(json.dumps(apart))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, default_data_dir: Path) -> list[dict[str, float]]:
    """How far the step of two processes is from that of one, by case, in either process."""
    place = tmp_path_factory.mktemp("replicas")
    spawn(work, (str(place), str(default_data_dir)), nprocs=PROCESSES)
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_step_of_one(case: str, apart: list[dict[str, float]]):
    assert max(numbers[case] for numbers in apart) < 1e-9


@pytest.mark.parametrize("case", ["control: noise of one's own", "control: an image left out"])
def test_control_a_careless_division_is_noticed(case: str, apart: list[dict[str, float]]):
    assert min(numbers[case] for numbers in apart) > 1e-3


@pytest.mark.parametrize("total", [1, 2, 5, 100, 500])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_cover_everything_once(total: int, count: int):
    parts = [range(total)[Replicas(rank, count).part(total)] for rank in range(count)]
    assert [i for part in parts for i in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("size", [1, 2])
def test_fewer_images_than_processes(size: int):
    """Those without an image draw as much as the others, and count for nothing."""
    x, weights, drawn = torch.zeros(size, 4), [], []
    for rank in range(3):
        torch.manual_seed(0)
        with Replicas(rank, 3).share(x) as (own, weight):
            assert len(own) == 1
            drawn.append(noise.standard_normal((5, 1, 2), x))
        weights.append(weight)
        drawn.append(torch.randn(1))
    assert sum(weights) == 1
    assert all(torch.equal(drawn[1], other) for other in drawn[3::2])


def test_noise_of_another_shape_is_refused():
    with (
        Replicas(0, 2).share(torch.zeros(4, 1)) as (own, _),
        pytest.raises(ValueError, match=r"2 images.*for 4"),
    ):
        noise.standard_normal((3, 4, 2), own)


# A whole run.

RUN = [
    *TINY,
    "encoder=iwhvi",
    "objective=iwae",
    "k=2",
    "encoder.inner_k=2",
    "trainer.epochs=2",
    "trainer.batch_size=256",
    "trainer.ema=0.9",
    "trainer.log_every=1",
    "trainer.validation_k=2",
    "estimator.k=3",
]


def torchrun(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "vaebench", "train", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_a_run_begun_by_one_process_and_finished_by_two(
    tmp_path: Path, default_data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is the run of one process, but for rounding; only the first process writes."""
    words = [*RUN, f"data_dir={default_data_dir}"]
    whole = train(compose([*words, f"output_dir={tmp_path / 'one'}"]))
    words.append(f"output_dir={tmp_path / 'two'}")
    step, taken = Update.step, [0]

    def counting(self: Update, *args: Any, **kwargs: Any) -> Any:
        taken[0] += 1
        if taken[0] == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Update, "step", counting)
        with pytest.raises(SystemExit):
            train(compose(words))
    done = torchrun(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("processes  2, each with a part of every batch") == 1
    assert done.stdout.count("resuming from epoch 0, step 5") == 1
    run = run_folder(compose(words))
    assert json.loads((run / "manifest.json").read_text())["restarts"][0]["device"] == "cpu (1 thread), 2 processes"
    lines = [read_metrics(RunFolder(path)) for path in (whole, run)]
    for one, two in zip(*lines, strict=True):
        assert one.keys() == two.keys()
        keys = one.keys() - {"wall", "train/images_per_second"}
        assert {key: two[key] for key in keys} == pytest.approx({key: one[key] for key in keys}, abs=2e-3)
    last = [Checkpoints(path / "checkpoints").load().state for path in (whole, run)]
    for key, value in last[0]["modules"].items():
        assert torch.allclose(value, last[1]["modules"][key], atol=1e-4)
    means = [read_results(RunFolder(path))[0].mean for path in (whole, run)]
    assert means[1] == pytest.approx(means[0], abs=1e-3)
    again = torchrun(tmp_path, *words)  # it is finished, and every process goes home
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("this run is finished") == 1


def test_a_sweep_is_not_for_torchrun(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    from vaebench.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "-m", "k=1,2"]) == 2
    assert "torchrun starts several processes for one run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("device", "number", "message"),
    [
        ("cuda:1", 0, "names one GPU, but each process needs its own: use device=cuda"),
        ("auto", 2, "--nproc-per-node=2"),
        ("xpu", 0, "a run in several processes supports device=cuda and device=cpu, got device=xpu"),
    ],
)
def test_gpus_that_cannot_be_divided(
    device: str, number: int, message: str, monkeypatch: pytest.MonkeyPatch, accelerators: Callable[[str, int], None]
):
    accelerators("cuda", 2)
    for name, value in {"RANK": number, "WORLD_SIZE": 3, "LOCAL_RANK": number, "MASTER_ADDR": "here"}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(replicas.UserError, match=message), replicas.joined(device):
        pass
