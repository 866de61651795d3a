"""The published files themselves, where ``VAEBENCH_DATA_DIR`` holds them; the folder is never written to."""

import os
from pathlib import Path

import numpy as np
import pytest

from vaebench.datasets.preparation import available, prepare

DATA_DIR = os.environ.get("VAEBENCH_DATA_DIR", "")
pytestmark = pytest.mark.skipif(not DATA_DIR, reason="VAEBENCH_DATA_DIR names no folder with the published files")

FINGERPRINTS = {
    ("mnist", "dynamic", "default"): "9ba27cf8359bae59",
    ("mnist", "static", "default"): "8a1432fadc752988",
    ("mnist", "threshold", "default"): "b24110f336b241ab",
    ("mnist", "none", "default"): "db55e738e23ee816",
    ("mnist", "dynamic", "iwae"): "176d7ddf4f0d9a48",
    ("fashion_mnist", "dynamic", "default"): "c05e22c40935309c",
    ("omniglot_original", "dynamic", "default"): "f428e4c339b13b70",
}


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of our own with links to the real ones, so that caches stay out of them."""
    folder = tmp_path_factory.mktemp("data")
    for entry in Path(DATA_DIR).resolve().iterdir():
        if entry.name != "vaebench":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.mark.parametrize("words", FINGERPRINTS, ids="-".join)
def test_real_files_give_the_recorded_pixels(words: tuple[str, str, str], linked: Path):
    name, binarization, split = words
    if {entry.name: entry.state for entry in available(linked)}[name] == "missing":
        pytest.skip(f"{DATA_DIR} does not hold {name}")
    first, second = (
        prepare(name, linked, binarization=binarization, split=split, download=False, progress=False) for _ in "12"
    )
    assert first.fingerprint == FINGERPRINTS[words]
    assert (first.reused, second.reused) == (False, True)
    assert second.fingerprint == first.fingerprint
    # Ink on black, about as much of it in every split; a negative or a mixed-up file would show.
    means = [float(np.mean(split)) / 255 for split in (first.arrays.train, first.arrays.test)]
    assert 0.07 < min(means) <= max(means) < 0.3
    assert abs(means[0] - means[1]) < 0.005
