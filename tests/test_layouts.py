"""Published files in the forms that people have: each is taken by its checksum, and what cannot be used is named."""

import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts_table import FORMS, REFUSED, Files, make, markdown

from vaebench.datasets import layouts
from vaebench.datasets.catalog import CATALOG, FINGERPRINTS
from vaebench.datasets.checksum import sha256
from vaebench.datasets.preparation import available, prepare
from vaebench.datasets.published_files import PUBLISHED_FILES
from vaebench.errors import UserError

TRAIN, TEST = 50, 20


def idx(images: np.ndarray) -> bytes:
    return struct.pack(">IIII", 0x803, len(images), 28, 28) + images.tobytes()


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Small files under the names of MNIST, with their checksums in place of the published ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))
    random = np.random.RandomState(0)
    train, test = (random.randint(0, 256, (count, 28, 28), dtype=np.uint8) for count in (TRAIN, TEST))
    for name, turn in (("mnist", 0), ("fashion_mnist", 1)):  # Fashion-MNIST's are others
        contents = [idx(np.roll(images, turn, axis=2)) for images in (train, test)]
        sources = tuple(
            replace(file, digest=sha256(content), urls=())
            for file, content in zip(PUBLISHED_FILES[name], contents, strict=True)
        )
        monkeypatch.setitem(PUBLISHED_FILES, name, sources)
        sizes = dict.fromkeys(CATALOG[name].splits, (TRAIN - 10, 10, TEST))
        monkeypatch.setitem(CATALOG, name, replace(CATALOG[name], splits=sizes))
        for protocol in [key for key in FINGERPRINTS if key.startswith(f"{name}/")]:
            monkeypatch.delitem(FINGERPRINTS, protocol)
    return Files(train, test)


def prepared(data_dir: Path, name: str = "mnist") -> Any:
    return prepare(name, data_dir, binarization="none", download=False, progress=False, say=lambda _: None)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_taken_with_the_published_pixels(form: str, files: Files, tmp_path: Path):
    data_dir = make(form, files, tmp_path)
    assert {entry.name: entry.state for entry in available(data_dir)}["mnist"] == "found"
    arrays = prepared(data_dir).arrays
    pool = files.train.reshape(TRAIN, -1)
    assert np.array_equal(arrays.validation, pool[:10])
    assert np.array_equal(arrays.train, pool[10:])
    assert np.array_equal(arrays.test, files.test.reshape(TEST, -1))


@pytest.mark.parametrize("form", FORMS)
def test_mnist_is_never_taken_for_fashion_mnist(form: str, files: Files, tmp_path: Path):
    data_dir = make(form, files, tmp_path / "FashionMNIST").parent
    (tmp_path / "FashionMNIST/circle").symlink_to(tmp_path)
    with pytest.raises(UserError, match="dataset=fashion_mnist needs train-images-idx3-ubyte"):
        prepared(data_dir, "fashion_mnist")


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_used_is_named(form: str, files: Files, tmp_path: Path):
    data_dir = make(form, files, tmp_path)
    with pytest.raises(UserError, match=REFUSED[form][1]) as refused:
        prepared(data_dir)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", ["keras' npz", "OpenML's csv", "zip of the files"])
def test_one_other_pixel_is_refused(form: str, files: Files, tmp_path: Path):
    files.train[7, 3, 4] ^= 1
    with pytest.raises(UserError, match="dataset=mnist needs"):
        prepared(make(form, files, tmp_path))


def test_a_folder_with_very_many_files_is_searched_for_a_while_only(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(layouts, "_MOST_ENTRIES", 100)
    for number in range(200):
        (tmp_path / f"a{number}.png").touch()
    seen = []
    monkeypatch.setattr(layouts, "_plain", lambda name: seen.append(name) or name)
    layouts.likely("mnist", tmp_path)
    assert len(seen) < 300


def test_an_unpacked_omniglot_has_the_checksum_of_its_zip_files(tmp_path: Path):
    data_dir = Path(os.environ.get("VAEBENCH_DATA_DIR", ""))
    if not (data_dir / "omniglot-py/images_background.zip").is_file():
        pytest.skip("VAEBENCH_DATA_DIR holds no omniglot-py")
    for part in ("background", "evaluation"):
        with zipfile.ZipFile(data_dir / f"omniglot-py/images_{part}.zip") as archive:
            archive.extractall(tmp_path / "drawings")
    made = prepare("omniglot_original", tmp_path, download=False, progress=False, say=lambda _: None)
    assert made.fingerprint == FINGERPRINTS["omniglot_original/dynamic-v1"]


def test_control_a_made_form_differs_from_the_published_layout(files: Files, tmp_path: Path):
    """A form that the plain search finds already would test nothing."""
    for form in set(FORMS) - {"torchvision's folders"}:
        data_dir = make(form, files, tmp_path / form.replace(" ", "_"))
        assert not all(file.found(data_dir) for file in PUBLISHED_FILES["mnist"]), form


def test_the_table_of_the_docs_holds_every_layout():
    docs = (Path(__file__).parents[1] / "docs/datasets.md").read_text()
    assert markdown() in docs, "python tests/layouts_table.py prints the table for docs/datasets.md"
