"""The example package of docs/examples, built, installed and used as a stranger's package would be."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vaebench.records import RunFolder, read_results

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "docs" / "examples" / "vaebench-since2018"
TINY = ["latent_dim=2", "decoder.hidden=[8]", "trainer.epochs=1", "trainer.batch_size=1000", "trainer.validation_k=2"]
TINY += ["trainer.image_every=0", "trainer.progress=false", "device=cpu", "estimator.k=4", "estimator.images=20"]

Python = Callable[..., str]
"""Runs a Python with the installed package, and returns its output."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    folder = tmp_path_factory.mktemp("since2018")

    def run(*words: str, path: Path | None = folder / "site") -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        # Source checkouts of vaebench are installed in place, and their folder is not the working folder here.
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, [path, ROOT] if path else [ROOT]))}
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "wheel", *offline, "--wheel-dir", str(folder), str(PACKAGE), path=None)
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel), path=None)
    return run


def test_its_own_tests_pass(python: Python):
    assert " passed" in python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(PACKAGE / "tests"))


@pytest.mark.parametrize(
    ("words", "folder", "label"),
    [
        (["encoder=uha", "prior=student", "objective=jvi", "k=3"], "uha-jvi-k3", "IWAE"),
        (["encoder=aisivi", "encoder.score_samples=2"], "aisivi-elbo-k1", "DIWHVI"),
    ],
)
def test_it_trains_and_evaluates(
    words: list[str], folder: str, label: str, python: Python, tmp_path: Path, default_data_dir: Path
):
    where = [f"output_dir={tmp_path}", f"data_dir={default_data_dir}"]
    python("-m", "vaebench", "train", *words, *TINY, *where)
    (run,) = RunFolder.find([tmp_path / "mnist5k" / folder])
    python("-m", "vaebench", "evaluate", str(run.path), "estimator=jvi", *TINY[-2:], "progress=false")
    bound, jackknife = sorted(read_results(run), key=lambda record: record.direction == "estimate")
    assert (bound.estimator, bound.direction) == (label, "lower_bound")
    assert (jackknife.estimator, jackknife.direction) == ("JVI-1", "estimate")
    assert bound.log_q == "upper_bound"
