"""The example package of docs/examples, built, installed and used as a stranger's package would be.

``scripts/test`` runs the package's own tests.
"""

import os
import subprocess
import sys
import zipfile
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
    with zipfile.ZipFile(wheel) as files:  # faster than pip, with which scripts/test installs the package
        files.extractall(folder / "site")
    return run


def test_it_trains_and_evaluates(python: Python, tmp_path: Path, default_data_dir: Path):
    where = [f"output_dir={tmp_path}", f"data_dir={default_data_dir}"]
    commands = [
        ["train", "-m", "encoder=uha,aisivi", "prior=student", *TINY, *where],
        ["train", "objective=jvi", "k=3", *TINY, *where],
        ["evaluate", str(tmp_path), "estimator=jvi", *TINY[-2:], "progress=false"],
    ]
    python("-c", f"from vaebench.cli import main; assert [main(words) for words in {commands}] == [0, 0, 0]")
    runs = {run.path.parent.name: read_results(run) for run in RunFolder.find([tmp_path])}
    found = {folder: {(r.estimator, r.direction, r.log_q) for r in records} for folder, records in runs.items()}
    assert found == {
        "uha-elbo-k1": {("IWAE", "lower_bound", "upper_bound"), ("JVI-1", "estimate", "upper_bound")},
        "aisivi-elbo-k1": {("DIWHVI", "lower_bound", "upper_bound"), ("JVI-1", "estimate", "upper_bound")},
        "gaussian-jvi-k3": {("IWAE", "lower_bound", "exact"), ("JVI-1", "estimate", "exact")},
    }
