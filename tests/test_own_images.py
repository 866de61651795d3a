"""A user's own images: one fingerprint in every format, seeded splits, runs that pixels define, short refusals."""

import gzip
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from vaebench.config import compose, identity, run_folder
from vaebench.datasets import array_files, image_folder
from vaebench.datasets.dataset import Dataset, load
from vaebench.datasets.own import fingerprint_of, located, part_of, read_own
from vaebench.errors import UserError
from vaebench.records import RunFolder, read_manifest
from vaebench.train.session import train

SHAPE = (1, 9, 7)
PARTS = {"train": 24, "validation": 6, "test": 8}


def grey(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, *shape), dtype=np.uint8)


def parts(shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    return {name: grey(count, shape, seed) for seed, (name, count) in enumerate(PARTS.items())}


def idx(images: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{images.ndim}I", 0, 0, 8, images.ndim, *images.shape) + images.tobytes()


def pictures(folder: Path, images: np.ndarray, suffix: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(folder / f"{number}.{suffix}")


def table(images: np.ndarray, separator: str = ",", header: bool = False) -> str:
    rows = [separator.join(map(str, image.ravel())) for image in images]
    if header:
        names = separator.join(["label", *(f"pixel{i}" for i in range(images[0].size))])
        rows = [names, *(f"{number % 10}{separator}{row}" for number, row in enumerate(rows))]
    return "\n".join(rows) + "\n"


# One form for all formats

Save = Callable[[Path, dict[str, np.ndarray]], Any]


def saved_npz(path: Path, images: dict[str, np.ndarray], names: tuple[str, ...]) -> None:
    labels: dict[str, Any] = {f"y_{name}": np.zeros(len(array)) for name, array in images.items()}
    np.savez(path.with_suffix(".npz"), **(labels | dict(zip(names, images.values(), strict=True))))
    path.with_suffix(".npz").rename(path)


def saved_folder(path: Path, images: dict[str, np.ndarray], write: Callable[[Path, np.ndarray], Any]) -> None:
    path.mkdir()
    for name, array in images.items():
        write(path / name, array)


SPLIT_FORMATS: dict[str, Save] = {
    "npz": lambda path, images: saved_npz(path, images, ("x_train", "x_valid", "x_test")),
    "npz of floats": lambda path, images: saved_npz(
        path, {name: array / np.float32(255) for name, array in images.items()}, ("train_images", "dev", "test_images")
    ),
    "npz without channels": lambda path, images: saved_npz(
        path, {name: array[:, 0].astype(np.int64) for name, array in images.items()}, ("Xtrain", "Xval", "Xtest")
    ),
    "npz, channels last": lambda path, images: saved_npz(
        path, {name: array.transpose(0, 2, 3, 1) for name, array in images.items()}, ("train", "val", "test")
    ),
    "mat": lambda path, images: savemat(path, images | {"labels": np.zeros((24, 1)), "names": "text"}, appendmat=False),
    "folder of images": lambda path, images: saved_folder(path, images, pictures),
    "folder of classes in parts": lambda path, images: saved_folder(
        path, images, lambda place, array: (pictures(place / "a", array[:3]), pictures(place / "b", array[3:]))
    ),
    "folder of npy": lambda path, images: saved_folder(path, images, lambda place, array: np.save(place, array)),
    "folder of idx": lambda path, images: saved_folder(
        path,
        images,
        lambda place, array: place.with_name(f"{place.name}-idx3.gz").write_bytes(gzip.compress(idx(array[:, 0]))),
    ),
}


@pytest.mark.parametrize("words", SPLIT_FORMATS)
def test_a_split_has_one_fingerprint_in_every_format(words: str, tmp_path: Path):
    SPLIT_FORMATS[words](tmp_path / "own", parts())
    found = read_own(tmp_path / "own")
    assert found.shape == SHAPE
    assert all(np.array_equal(found.parts[name], array) for name, array in parts().items())
    np.savez(tmp_path / "plain.npz", **parts())
    assert found.fingerprint == fingerprint_of(tmp_path / "plain.npz")


POOLED: dict[str, tuple[Callable[[Path, np.ndarray], Any], bool]] = {
    "npy": (lambda path, images: np.save(path.open("wb"), images), False),
    "npz of one array": (lambda path, images: np.savez(path.open("wb"), images), False),
    "idx": (lambda path, images: path.write_bytes(idx(images[:, 0])), False),
    "csv": (lambda path, images: path.write_text(table(images)), True),
    "csv with labels": (lambda path, images: path.write_text(table(images, header=True)), True),
    "csv.gz": (lambda path, images: path.write_bytes(gzip.compress(table(images).encode())), True),
    "amat": (lambda path, images: path.write_text(table(images, " ")), True),
    "floats as text": (lambda path, images: path.write_text(table(np.round(images / 255, 8))), True),
    "mat, images last": (
        lambda path, images: savemat(path, {"X": images.transpose(2, 3, 1, 0)}, appendmat=False),
        False,
    ),
    "images": (pictures, False),
    "images of classes": (
        lambda path, images: (pictures(path / "a", images[:9]), pictures(path / "b", images[9:])),
        False,
    ),
}


@pytest.mark.parametrize("words", POOLED)
def test_one_array_has_one_fingerprint_in_every_format(words: str, tmp_path: Path):
    write, needs_shape = POOLED[words]
    write(tmp_path / "own", grey(40))
    np.save(tmp_path / "plain.npy", grey(40))
    assert read_own(tmp_path / "own", SHAPE if needs_shape else None).fingerprint == fingerprint_of(
        tmp_path / "plain.npy"
    )


def test_colour_images_have_one_fingerprint_too(tmp_path: Path):
    images = grey(30, (3, 8, 6))
    pictures(tmp_path / "rgb", images)
    np.save(tmp_path / "chw.npy", images)
    np.save(tmp_path / "hwc.npy", images.transpose(0, 2, 3, 1))
    np.save(tmp_path / "rows.npy", images.reshape(30, -1))
    prints = {fingerprint_of(tmp_path / name) for name in ("rgb", "chw.npy", "hwc.npy")}
    assert prints == {fingerprint_of(tmp_path / "rows.npy", [3, 8, 6])}
    # Control: other pixels, another order and another shape of the same numbers have other fingerprints.
    np.save(tmp_path / "changed.npy", np.concatenate([images[:-1], images[-1:] ^ 1]))
    np.save(tmp_path / "turned.npy", images[::-1])
    others = [fingerprint_of(tmp_path / "changed.npy"), fingerprint_of(tmp_path / "turned.npy")]
    others.append(fingerprint_of(tmp_path / "rows.npy", [3, 6, 8]))
    assert len({*prints, *others}) == 4


def test_hdf5_is_read_or_its_package_is_named(tmp_path: Path):
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError:
        (tmp_path / "own.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
        with pytest.raises(UserError, match="needs h5py: run `pip install h5py`"):
            read_own(tmp_path / "own.h5")
        return
    with h5py.File(tmp_path / "own.h5", "w") as file:
        for name, images in parts().items():
            file[f"images/{name}"] = images
    np.savez(tmp_path / "plain.npz", **parts())
    assert fingerprint_of(tmp_path / "own.h5") == fingerprint_of(tmp_path / "plain.npz")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("x_train", "train"),
        ("Xval", "validation"),
        ("valid_images", "validation"),
        ("testdata", "test"),
        ("t10k-images-idx3-ubyte", "test"),
        ("train-images.idx3-ubyte", "train"),
        ("train-labels-idx1-ubyte", "labels"),
        ("y_train", "labels"),
        ("values", ""),
        ("images", ""),
    ],
)
def test_names_of_parts(name: str, part: str):
    assert part_of(name) == part


# Levels


def own(tmp_path: Path, images: np.ndarray, **words: Any) -> Dataset:
    np.save(tmp_path / "own.npy", images)
    return load("own", tmp_path, path=str(tmp_path / "own.npy"), progress=False, **words)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32])
def test_binary_images_are_static_whatever_the_setting(kind: type, tmp_path: Path):
    bits = np.random.RandomState(0).randint(0, 2, (40, 4, 5)).astype(kind)
    data = [own(tmp_path, bits, binarization=words) for words in ("dynamic", "none")]
    assert [each.pixel_kind for each in data] == ["binary"] * 2
    assert str(data[0].protocol) == str(data[1].protocol)
    assert "static" in str(data[0].protocol)
    assert set(data[0].train.unique().tolist()) == {0, 255}


def test_floats_off_the_grid_of_bytes_stay_floats(tmp_path: Path):
    levels = np.random.RandomState(0).rand(40, 4, 5)
    levels[:, 0, 0], levels[:, 0, 1] = 0, 1
    plain, drawn, halved = (own(tmp_path, levels, binarization=word) for word in ("none", "dynamic", "threshold"))
    assert (plain.pixel_kind, drawn.pixel_kind) == ("continuous", "binary")
    assert plain.image_shape == (1, 4, 5)
    assert plain.train.dtype == torch.float32
    assert torch.equal(plain.observe(plain.train), plain.train)
    assert torch.allclose(plain.pixel_mean, plain.train.mean(0))
    assert torch.equal(halved.test, (plain.test > 0.5).to(torch.uint8) * 255)
    # Both draws, that of numpy and that of torch, have the levels as probabilities; 0 and 1 are certain.
    assert set(drawn.test.unique().tolist()) == {0, 255}
    assert (drawn.test[:, 0] == 0).all()
    assert (drawn.test[:, 1] == 255).all()
    wanted = plain.train[0].double()
    seen = drawn.observe(plain.train[:1].expand(20_000, -1), torch.Generator().manual_seed(0)).double().mean(0)
    assert ((seen - wanted).abs() <= 4.5 * (wanted * (1 - wanted) / 20_000).sqrt()).all()
    again = torch.stack([drawn.rebinarized("test", seed) for seed in range(300)]).double().mean(0) / 255
    error = (plain.test * (1 - plain.test) / 300).sqrt().clamp_min(1e-9)
    assert ((again - plain.test) / error).abs().max() < 4.5


BAD_LEVELS = {
    r"pixels lie in \[-0.42, 2.82\]": np.linspace(-0.42, 2.82, 40 * 16).reshape(40, 4, 4),
    r"pixels lie in \[0, 65535\]": np.linspace(0, 65535, 40 * 16).astype(np.uint16).reshape(40, 4, 4),
    r"pixels lie in \[-1, 1\]": np.linspace(-1, 1, 40 * 16).reshape(40, 4, 4),
    r"pixels lie in \[0, 254.5\]": np.linspace(0, 254.5, 40 * 16).reshape(40, 4, 4),
    "some pixels are not finite": np.full((40, 4, 4), np.nan),
}


@pytest.mark.parametrize("message", BAD_LEVELS)
def test_other_ranges_are_refused_with_the_range(message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        own(tmp_path, BAD_LEVELS[message])


def test_all_parts_are_read_in_one_range(tmp_path: Path):
    # The test images alone would be zeros and ones.
    np.savez(tmp_path / "own.npz", train=grey(30), validation=grey(9), test=grey(9) % 2)
    found = read_own(tmp_path / "own.npz")
    assert found.parts["test"].max() == 1
    assert not found.binary


# Splits and identity


def test_missing_parts_are_a_seeded_tenth_each(tmp_path: Path):
    images = grey(60)
    first, again, other = (own(tmp_path, images, binarization="none", seed=seed) for seed in (0, 0, 1))
    assert first.protocol.sizes == (48, 6, 6) == tuple(map(len, (first.train, first.validation, first.test)))
    together = torch.cat([first.train, first.validation, first.test])
    assert len(together.unique(dim=0)) == 60
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert "-seed1-" in str(other.protocol)
    np.savez(tmp_path / "two.npz", train=images[:50], test=images[50:])
    two = load("own", tmp_path, path="two.npz", binarization="none")
    assert two.protocol.sizes == (45, 5, 10)
    assert torch.equal(two.test, torch.from_numpy(images[50:]).flatten(1))
    assert "validation: a tenth" in two.note


TINY = ["latent_dim=2", "decoder.hidden=[4]", "encoder.hidden=[4]", "trainer.epochs=1", "trainer.validation_k=2"]
TINY += ["trainer.evaluate=false", "trainer.threads=1", "trainer.progress=false", "device=cpu", "trainer.image_every=0"]


def test_the_pixels_define_a_run_and_the_path_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", grey(40, (1, 4, 4)))
    np.save("b.npy", grey(40, (1, 4, 4), seed=1))
    first, second = (compose(["dataset=own", f"dataset.path={name}"]) for name in ("a.npy", "b.npy"))
    assert run_folder(first) != run_folder(second)
    assert Path(first.dataset.path).is_absolute()
    Path("moved, and renamed").mkdir()
    Path("a.npy").rename("moved, and renamed/c.npy")
    moved = compose(["dataset=own", "dataset.path=moved, and renamed/c.npy"])
    assert identity(moved) == identity(first)
    # The same name with other pixels is another run, and pixels= refuses it.
    Path("b.npy").rename("a.npy")
    assert identity(compose(["dataset=own", "dataset.path=a.npy"])) == identity(second)
    with pytest.raises(UserError, match=f"has the fingerprint {second.dataset.pixels}"):
        compose(["dataset=own", "dataset.path=a.npy", f"dataset.pixels={first.dataset.pixels}"])
    # Control: settings that change the data change the run.
    assert identity(compose(["dataset=own", "dataset.path=a.npy", "dataset.seed=1"])) != identity(second)


def test_a_run_is_resumed_with_its_own_pixels_only(tmp_path: Path):
    path = tmp_path / "own.npy"
    np.save(path, grey(40, (1, 4, 4)))
    config = compose(["dataset=own", f"dataset.path={path}", f"output_dir={tmp_path}/out", *TINY])
    train(config)
    folder = RunFolder.open(run_folder(config))
    assert read_manifest(folder)["dataset"]["protocol"] == f"own-{config.dataset.pixels[:12]}/dynamic-v1"
    np.save(path, grey(40, (1, 4, 4), seed=1))
    with pytest.raises(UserError, match=f"holds other pixels .* than the run .{config.dataset.pixels}."):
        train(config)


def test_moved_images_are_found_in_data_dir(tmp_path: Path):
    (tmp_path / "new").mkdir()
    np.save(tmp_path / "new/own.npy", grey(20))
    assert located("/gone/own.npy", tmp_path / "new") == tmp_path / "new/own.npy"
    assert located("own.npy", tmp_path / "new") == tmp_path / "new/own.npy"
    with pytest.raises(UserError, match=r"dataset.path=gone.npy does not exist"):
        located("gone.npy", tmp_path)
    with pytest.raises(UserError, match=r"dataset=own needs dataset.path"):
        compose(["dataset=own"])
    with pytest.raises(UserError, match=r"dataset.shape must be \[channels,height,width\]"):
        compose(["dataset=own", f"dataset.path={tmp_path}/new/own.npy", "dataset.shape=[28,28]"])


def test_composing_a_run_needs_no_torch(tmp_path: Path):
    np.save(tmp_path / "own.npy", grey(20))
    code = (
        "import sys; from vaebench.config import compose;"
        f"compose(['dataset=own', 'dataset.path={tmp_path}/own.npy']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Refusals


def bomb(path: Path) -> None:
    """An npz whose array unpacks to 16 MB from a few kilobytes."""
    np.savez_compressed(path, np.zeros((1 << 10, 128, 128), np.uint8))


def claims(path: Path) -> None:
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 28, 28), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())


def two_sizes(path: Path) -> None:
    pictures(path, grey(3, (1, 5, 5)))
    Image.new("L", (6, 5)).save(path / "9.png")


def transparent(path: Path) -> None:
    path.mkdir()
    Image.new("RGBA", (4, 4), (1, 2, 3, 90)).save(path / "a.png")


def zip_of(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"x")


def written(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


OBJECTS = np.empty(3, object)
HOSTILE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "own.pkl": ("is a pickle and is never opened", written(b"(lp0\n.")),
    "own": ("is a pickle and is never opened", written(b"\x80\x04\x95")),
    "page.npz": ("is an HTML page, not the file itself", written(b"\n<!DOCTYPE html><html>")),
    "pointer.npz": ("is a Git LFS pointer", written(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")),
    "objects.npz": ("an array holds Python objects", lambda path: np.savez(path, OBJECTS)),
    "objects.npy": ("an array holds Python objects", lambda path: np.save(path, OBJECTS)),
    "claim.npy": ("header does not describe its content", claims),
    "bomb.npz": ("its arrays have 167773.. bytes, expected at most 1000000", bomb),
    "bomb.gz": ("it has more than 1000000 bytes", written(gzip.compress(bytes(2_000_000)))),
    "text.csv": ("its text is no table of numbers", written(b"1,2,3,4\n1,2,three,4\n")),
    "gap.csv": ("its text is no table of numbers", written(b"1,,3,4\n1,2,3,4\n")),
    "ragged.csv": ("its text is no table of numbers", written(b"1,2,3,4\n1,2,3,4,5\n")),
    "labels.csv": (
        "rows of 10 numbers are no square image; set dataset.shape",
        written(table(grey(30, (1, 2, 5))).encode()),
    ),
    "cut.idx": (r"its header claims \(9, 28, 28\)", written(idx(np.zeros((9, 28, 28), np.uint8))[:-1])),
    "other.bin": ("it is none of: npz, npy", written(bytes(range(1, 100)))),
    "zip.npz": ("it is a zip file with a.png, not npz: unpack it", zip_of),
    "half.npz": ("damaged", lambda path: (np.savez(path, grey(9)), path.write_bytes(path.read_bytes()[:300]))),
    "v73.mat": ("which needs h5py", written(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF")),
    "bad.mat": ("damaged|keep one array", written(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"\x0e" * 64)),
    "two.npz": (
        r"keep one array of images.*a \(9, 4, 4\), b",
        lambda path: np.savez(path, a=grey(9, (4, 4)), b=grey(9, (4, 4))),
    ),
    "shapes.npz": (
        "different shapes: train 1x4x4, test 1x5x5",
        lambda p: np.savez(p, train=grey(30, (4, 4)), test=grey(9, (5, 5))),
    ),
    "few.npy": ("train has 9 images, at least 20 are needed", lambda path: np.save(path, grey(9, (4, 4)))),
    "four.npy": (r"30x5x5x5: set dataset.shape=", lambda path: np.save(path, grey(30, (5, 5, 5)))),
    "sizes": (r"0.png is 5x5 grey and 9.png is 5x6 grey", two_sizes),
    "alpha": ("a.png is no usable image: it is transparent", transparent),
    "crowd": ("it holds more than 50 files", lambda path: pictures(path, grey(51, (1, 2, 2)))),
    "nothing": ("the folder is empty", lambda path: path.mkdir()),
    "wide": (
        r"3 images have 1200000 bytes of pixels, expected at most 1000000",
        lambda p: pictures(p, np.zeros((3, 1, 400, 1000), np.uint8)),
    ),
    "void": ("an empty file", written(b"")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_used_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    message, write = HOSTILE[name]
    monkeypatch.setattr(image_folder.walk, "__defaults__", (50,))
    for module in (array_files, sys.modules["vaebench.datasets.own"]):
        monkeypatch.setattr(module, "LARGEST_ARRAYS", 1_000_000)
    monkeypatch.setattr(array_files.read_limited, "__defaults__", (1_000_000,))
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as refused:
        read_own(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value).replace(str(tmp_path), "")) < 260


def test_no_file_runs_code(tmp_path: Path):
    """A pickle inside an npz, or under the name of an npz, is not opened."""
    mark = tmp_path / "ran"
    code = b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    (tmp_path / "own.npz").write_bytes(code)
    with pytest.raises(UserError):
        read_own(tmp_path / "own.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        head = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        archive.writestr("train.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + code)
    with pytest.raises(UserError, match="Python objects"):
        read_own(tmp_path / "zip.npz")
    assert not mark.exists()
