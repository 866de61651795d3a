"""The parts of the check. Each yields a row as soon as it is known."""

import contextlib
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vaebench import cli, runtime
from vaebench.config import Config, compose, config_dir, read, run_folder
from vaebench.config.catalog import described
from vaebench.errors import GivenUp
from vaebench.estimators.importance import log_likelihood
from vaebench.experiment import build, load
from vaebench.records.checkpoint import Checkpoints
from vaebench.signals import Interruption
from vaebench.train.session import resume as resume_run
from vaebench.train.session import train, trainer_for
from vaebench.train.trainer import Callbacks, Trainer

ROOT = Path(__file__).parents[2]
IWAE = ["objective=iwae", "k=50"]
CONVOLUTIONS = ["decoder=resnet", "decoder.hidden=[8,16,64]"]
OPTIONS = [
    IWAE,
    [*IWAE, "objective.gradient=dreg"],
    ["trainer.ema=0.99"],
    ["trainer.clip_norm=1"],
    ["trainer.precision=tf32"],
    ["trainer.precision=bf16"],
    CONVOLUTIONS,
    ["prior=vamp"],
    ["prior=mixture"],
]
SMALL = [
    "decoder.hidden=[64]",
    "encoder.hidden=[64]",
    "latent_dim=8",
    "trainer.validation_k=5",
    "trainer.evaluate=false",
]
ROUNDING = 0.01
"""Nats by which log p(x) of an image may differ between devices."""


@dataclass(frozen=True)
class Check:
    """What to check."""

    device: torch.device
    quick: bool

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def some(self, cases: list[Any], count: int = 1) -> list[Any]:
        """Return the cases, or the first ones of a quick check."""
        return cases[:count] if self.quick else cases

    def config(self, *words: str) -> Config:
        """Return a configuration on the device, without pictures and bars."""
        return compose([f"device={self.device}", "trainer.progress=false", "trainer.image_every=0", *words])

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


Row = dict[str, Any]


def row(what: str, found: str, ok: bool = True, **numbers: Any) -> Row:
    """Return one check: in words, whether it passed, and its numbers."""
    return {"what": what, "found": found, "ok": ok, **numbers}


def attempted(what: str, check: Callable[[], Row]) -> Row:
    """Return the row of a check, or one that names its error: the next check may still pass."""
    try:
        return check()
    except Exception as error:
        return row(what, f"{type(error).__name__}: {str(error)[:160]}", ok=False)


def carry_out(name: str, device: str, quick: bool, rows: Path) -> None:
    """Run a part, and append each of its rows to a file at once."""
    check = Check(runtime.resolve_device(device), quick)
    if check.device.type == "cpu":
        torch.set_num_threads(1)
    with rows.open("a") as out:
        for found in PARTS[name](check):
            out.write(json.dumps(found) + "\n")
            out.flush()


# Training steps -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def trainer(check: Check, *words: str) -> Iterator[Trainer]:
    """Yield a trainer in the precision of its run."""
    config = check.config("trainer.epochs=1000000", "trainer.log_every=1000000", *words)
    experiment = build(config)
    callbacks = Callbacks(validate=lambda modules: 0.0)
    with runtime.tf32(experiment.device, config.trainer.precision == "tf32"):
        yield trainer_for(experiment, callbacks, Interruption())


def rate(check: Check, made: Trainer, epochs: int = 1) -> float:
    """Return images per second."""
    check.wait()
    started = time.perf_counter()
    for _ in range(epochs):
        made.epoch()
    check.wait()
    return epochs * len(made.batches.intensities) / (time.perf_counter() - started)


def steps(check: Check) -> Iterator[Row]:
    """Step every encoder: does anything wait, how many launches are there, and how fast is it."""
    encoders = [[f"encoder={one.choice}"] for one in described("encoder", [config_dir()])]
    for words in check.some([["encoder=gaussian"], *encoders, *OPTIONS], 2):
        # The prior of two layers of latents.
        more = ["prior=chained"] if words == ["encoder=two_layer"] else []
        yield attempted(" ".join(words), lambda words=words, more=more: _stepped(check, words, more))


def _stepped(check: Check, words: list[str], more: list[str]) -> Row:
    eager = ["trainer.compile=false", "trainer.graph=false"]
    with trainer(check, *eager, *words, *more, *(["trainer.batch_size=1000"] if check.quick else [])) as made:
        made.epoch()  # what is done once
        speed, count = rate(check, made), len(made.batches)
        if not check.on_cuda:
            return row(" ".join(words), f"{speed:,.0f} images/s", images_per_second=speed)
        waits = _waits(made)
        launches = _launches(check, made) / count
    # One wait at the end of an epoch looks for losses that are not finite.
    each = sum(waits.values()) // count
    places = f" at {', '.join(waits)}" if each else ""
    found = f"{speed:,.0f} images/s, {launches:,.0f} launches and {each} waits a step{places}"
    return row(" ".join(words), found, each == 0, images_per_second=speed, launches=launches, waits=dict(waits))


def _waits(made: Trainer) -> Counter[str]:
    """Return the lines of code that wait for the GPU in an epoch, with how often."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made.epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [one for one in caught if "synchroniz" in str(one.message)]
    return Counter(f"{Path(one.filename).name}:{one.lineno}" for one in found)


def _launches(check: Check, made: Trainer) -> int:
    """Return how many kernels, graphs and copies an epoch launches."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        made.epoch()
        check.wait()
    names = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
    return sum(event.count for event in profile.key_averages() if any(name in event.key for name in names))


def graphs(check: Check) -> Iterator[Row]:
    """Compare steps as one CUDA graph with eager steps."""
    for words in check.some([["encoder=gaussian"], ["encoder=iwhvi"], ["encoder=iaf"], ["encoder=avb"], IWAE]):
        yield attempted(" ".join(words), lambda words=words: _compared(check, words, "trainer.graph"))


def compiled(check: Check) -> Iterator[Row]:
    """Compare compiled losses with eager ones."""
    for words in check.some([["encoder=gaussian"], ["encoder=iwhvi"], IWAE]):
        yield attempted(" ".join(words), lambda words=words: _compared(check, words, "trainer.compile"))


def _compared(check: Check, words: list[str], setting: str) -> Row:
    """Train two epochs with a setting and without: the same weights but for rounding, and how fast."""
    what, other = " ".join(words), {"trainer.graph": "trainer.compile", "trainer.compile": "trainer.graph"}[setting]
    if setting == "trainer.graph" and not check.on_cuda:
        return row(what, "needs a CUDA device")
    speeds, weights, ready = {}, {}, 0.0
    for value in ("false", "true"):
        with trainer(check, f"{setting}={value}", f"{other}=false", *words) as made:
            started = time.perf_counter()
            made.epoch()
            check.wait()
            ready = time.perf_counter() - started
            weights[value] = torch.cat(
                [tensor.detach().flatten().double().cpu() for tensor in made.modules.parameters()]
            )
            speeds[value] = rate(check, made, epochs=1 if check.quick else 3)
    error = float((weights["true"] - weights["false"]).norm() / weights["false"].norm())
    gain = speeds["true"] / speeds["false"]
    found = f"{speeds['true']:,.0f} images/s, {gain:.2f} times eager; first epoch {ready:.0f} s"
    found += f"; weights differ by {error:.0e}"
    return row(what, found, error < 0.01, images_per_second=speeds["true"], gain=gain, first_epoch=ready, error=error)


# Runs -----------------------------------------------------------------------------------------------------


def resume(check: Check) -> Iterator[Row]:
    """Interrupt and resume runs: bitwise equal on one device; and runs move between devices."""
    cases = {
        "gaussian": SMALL,
        "iwhvi, averaged weights": [*SMALL, "encoder=iwhvi", "trainer.ema=0.9"],
        "nsf": [*SMALL, "encoder=nsf"],
        "convolutions": [*SMALL[1:], *CONVOLUTIONS],
    }
    for name in check.some(list(cases)):
        yield attempted(name, lambda name=name: _resumed(check, name, cases[name]))
    others = ["cpu", str(check.device)] if check.device.type != "cpu" else ["cpu"]
    for first, second in zip(others, reversed(others), strict=True):
        what = f"from {first} to {second}"
        yield attempted(what, lambda first=first, second=second, what=what: _moved(check, what, first, second))


def _resumed(check: Check, name: str, words: list[str]) -> Row:
    ends = []
    for place, stops in (("whole", False), ("stopped", True)):
        config = check.config("trainer.epochs=2", f"output_dir={name.split()[0].strip(',')}-{place}", *words)
        if stops:
            _give_up(config)
        ends.append(_weights(train(config)))
    whole, stopped = ends
    error = max(float((whole[key].double() - stopped[key].double()).abs().max()) for key in whole)
    return row(
        name, "resumed bitwise" if error == 0 else f"resumed weights differ by {error:.0e}", error == 0, error=error
    )


def _moved(check: Check, what: str, first: str, second: str) -> Row:
    config = check.config("trainer.epochs=2", f"device={first}", f"output_dir=moved-from-{first}", *SMALL)
    _give_up(config)
    _weights(resume_run(run_folder(config), {"device": second}))
    return row(what, "resumed")


def _give_up(config: Config) -> None:
    """Train the first epoch, as a search that gives the run up does."""
    with contextlib.suppress(GivenUp):
        train(config, watch=lambda epoch, value: True)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return Checkpoints(folder / "checkpoints").load().state["modules"]


def evaluations(check: Check) -> Iterator[Row]:
    """Compare log p(x) of the same weights on both devices, with and without TF32; run every estimator and picture."""
    cases = {"dense": SMALL[2:], "convolutions": [*SMALL[2:], *CONVOLUTIONS]}
    folders = {}
    for name in check.some(list(cases)):
        folders[name] = train(check.config("trainer.epochs=1", f"output_dir=evaluated-{name}", *cases[name]))
        yield from _compared_devices(check, name, folders[name])
    chains = ["estimator.temperatures=20", "estimator.chains=4", "estimator.leapfrog=3"]
    estimators = [
        ["iwae", "estimator.k=500"],
        ["diwhvi", "estimator.k=100"],
        ["ais", *chains],
        ["bdmc", *chains],
        ["sandwich", "estimator.k=50"],
        ["gaps", "estimator.k=50", "estimator.steps=10"],
    ]
    run, device = str(folders["dense"]), f"device={check.device}"
    for name, *words in check.some(estimators):
        words = [f"estimator={name}", *words, "estimator.images=20", "progress=false"]
        yield _command("evaluate", run, *words, device)
    for command in check.some(["sample", "encode", "diagnose"]):
        yield _command(command, run, device)


def _compared_devices(check: Check, name: str, folder: Path) -> Iterator[Row]:
    truth = _log_likelihood(folder, torch.device("cpu"), "float32")
    for precision in ("float32", "tf32"):
        found = _log_likelihood(folder, check.device, precision)
        error = float((found - truth).abs().max())
        text = f"log p(x) differs from the CPU's by at most {error:.1e} nats"
        yield row(f"{name}, {precision}", text, precision == "tf32" or error < ROUNDING, error=error)


def _log_likelihood(folder: Path, device: torch.device, precision: str) -> torch.Tensor:
    """Return log p(x) of 50 images, on the CPU."""
    run = load(folder, replace(read(folder), device=str(device)))
    run.modules.eval()
    with runtime.in_precision(device, precision):
        x = run.data.observe(run.data.test[:50].to(device))
        return log_likelihood(run.model, run.encoder, x, 100, seed=0).cpu()


def _command(*words: str) -> Row:
    """Run a command of vaebench here."""
    started = time.monotonic()
    code = cli.main(list(words))
    seconds = time.monotonic() - started
    shown = " ".join(word for word in words[:3] if "/" not in word)
    return row(shown, f"exit code {code} in {seconds:.0f} s", code == 0, seconds=seconds)


def memory(check: Check) -> Iterator[Row]:
    """Let memory run out: an evaluation takes fewer images at a time, with the same numbers."""
    free = runtime.free_memory(check.device)
    yield row("free memory", "unknown" if free is None else f"{free / 2**30:.1f} GiB", free is not None)
    if check.on_cuda:
        yield attempted("memory that runs out", lambda: _poor(check))


def _poor(check: Check) -> Row:
    run = build(check.config())
    run.modules.eval()
    x = run.data.observe(run.data.test[:100].to(check.device))
    rich = log_likelihood(run.model, run.encoder, x, 4000, seed=0)
    runtime.release_memory()
    whole = torch.cuda.get_device_properties(check.device).total_memory
    # 400,000 rows of 784 pixels take several times as much.
    torch.cuda.set_per_process_memory_fraction(2**30 / whole, check.device)
    poor = log_likelihood(run.model, run.encoder, x, 4000, chunk=4000, seed=0)
    torch.cuda.set_per_process_memory_fraction(1.0, check.device)
    error = float((rich - poor).abs().max())
    return row("memory that runs out", f"in 1 GiB: log p(x) differs by {error:.0e} nats", error < ROUNDING, error=error)


# What the project has for a GPU already -------------------------------------------------------------------


def tests(check: Check) -> Iterator[Row]:
    """Run the tests that are marked gpu."""
    del check
    marked = [str(path) for path in (ROOT / "tests").glob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    pytest += [f"--config-file={ROOT / 'pyproject.toml'}", *marked]
    done = subprocess.run(pytest, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    yield row("pytest -m gpu", last, done.returncode == 0)


def selftest(check: Check) -> Iterator[Row]:
    """Compare with exact answers."""
    only = ["--only", "checkpoints,resume"] if check.quick else []
    yield _command("selftest", f"device={check.device}", *only)


PARTS: dict[str, Callable[[Check], Iterator[Row]]] = {
    "steps": steps,
    "graphs": graphs,
    "compiled": compiled,
    "resume": resume,
    "evaluations": evaluations,
    "memory": memory,
    "tests": tests,
    "selftest": selftest,
}
