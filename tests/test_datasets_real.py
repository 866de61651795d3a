"""The published files themselves, where ``VAEBENCH_DATA_DIR`` holds them; the folder is never written to."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from vaebench.datasets import cache
from vaebench.datasets.arrays import departure
from vaebench.datasets.catalog import FINGERPRINTS
from vaebench.datasets.checksum import CorruptFile
from vaebench.datasets.preparation import available, prepare

DATA_DIR = os.environ.get("VAEBENCH_DATA_DIR", "")
pytestmark = pytest.mark.skipif(not DATA_DIR, reason="VAEBENCH_DATA_DIR names no folder with the published files")

RECORDED = {
    ("mnist", "dynamic", "default"): FINGERPRINTS["mnist/dynamic-v1"],
    ("mnist", "static", "default"): FINGERPRINTS["mnist/static-v1"],
    ("mnist", "threshold", "default"): FINGERPRINTS["mnist/threshold-v1"],
    ("mnist", "none", "default"): FINGERPRINTS["mnist/none-v1"],
    ("mnist", "dynamic", "iwae"): FINGERPRINTS["mnist/dynamic-iwae_split-v1"],
    ("fashion_mnist", "dynamic", "default"): "c05e22c40935309c",
    ("omniglot_original", "dynamic", "default"): FINGERPRINTS["omniglot_original/dynamic-v1"],
}


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of our own with links to the real ones, so that caches stay out of them."""
    folder = tmp_path_factory.mktemp("data")
    for entry in Path(DATA_DIR).resolve().iterdir():
        if entry.name != "vaebench":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.mark.parametrize("words", RECORDED, ids="-".join)
def test_real_files_give_the_recorded_pixels(words: tuple[str, str, str], linked: Path):
    name, binarization, split = words
    if {entry.name: entry.state for entry in available(linked)}[name] == "missing":
        pytest.skip(f"{DATA_DIR} does not hold {name}")
    first, second = (
        prepare(name, linked, binarization=binarization, split=split, download=False, progress=False) for _ in "12"
    )
    assert first.fingerprint == RECORDED[words]
    assert (first.reused, second.reused) == (False, True)
    assert second.fingerprint == first.fingerprint
    # Ink on black, about as much of it in every split; a negative or a mixed-up file would show.
    means = [float(np.mean(split)) / 255 for split in (first.arrays.train, first.arrays.test)]
    assert 0.07 < min(means) <= max(means) < 0.3
    assert abs(means[0] - means[1]) < 0.005


def test_other_seeds_are_held_by_the_grey_levels_of_seed_0(linked: Path, tmp_path: Path):
    if {entry.name: entry.state for entry in available(linked)}["mnist"] == "missing":
        pytest.skip(f"{DATA_DIR} does not hold mnist")
    made = prepare("mnist", linked, seed=7, download=False, progress=False)
    assert departure(made.arrays, made.protocol) == ""
    forged = dataclasses.replace(made.arrays, train=np.roll(made.arrays.train, 3, axis=1))
    cache.write(tmp_path / "f.npz", made.protocol, forged)
    with pytest.raises(CorruptFile, match="its images are not the published ones"):
        cache.read(tmp_path / "f.npz", made.protocol)
