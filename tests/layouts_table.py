"""File layouts of MNIST, made in a folder: those that are taken, and those that are named and refused."""

import gzip
import io
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"


class Files(NamedTuple):
    """The images of MNIST's two files, (N, 28, 28) bytes."""

    train: np.ndarray
    test: np.ndarray

    @property
    def contents(self) -> dict[str, bytes]:
        """The two files."""
        pairs = zip((TRAIN, TEST), self, strict=True)
        return {name: struct.pack(">IIII", 0x803, *images.shape) + images.tobytes() for name, images in pairs}


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def table(images: np.ndarray, first: str, *, label: str | None) -> bytes:
    """Return rows of pixels as csv after the line ``first``; ``label``: "first", "last" or None."""
    rows = images.reshape(len(images), -1)
    digits = np.arange(len(rows))[:, None] % 10
    columns = {"first": (digits, rows), "last": (rows, digits), None: (rows,)}[label]
    text = io.StringIO()
    text.write(first)
    np.savetxt(text, np.hstack(columns), fmt="%d", delimiter=",")
    return text.getvalue().encode()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def packed(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


PIXELS = ",".join(f"pixel{i + 1}" for i in range(784))
ARFF = "@RELATION mnist\n" + "".join(f"@ATTRIBUTE pixel{i + 1} real\n" for i in range(784))
ARFF += "@ATTRIBUTE class {0,1,2,3,4,5,6,7,8,9}\n@DATA\n"


def _each(pattern: str, change: Callable[[bytes], bytes] = bytes) -> Callable[[Files], dict[str, bytes]]:
    """Return a maker of both files under other names; ``{dot}`` and ``{name}`` stand for theirs."""
    return lambda files: {
        pattern.format(name=name, dot=name.replace("-idx3", ".idx3")): change(content)
        for name, content in files.contents.items()
    }


def _keras(files: Files) -> dict[str, bytes]:
    labels = {"y_train": np.zeros(len(files.train)), "y_test": np.zeros(len(files.test))}
    return {"mnist.npz": npz(x_train=files.train, x_test=files.test, **labels)}


def _openml(files: Files) -> np.ndarray:
    return np.concatenate(files)


FORMS: dict[str, tuple[str, Callable[[Files], dict[str, bytes]]]] = {
    "torchvision's folders": ("MNIST/raw/train-images-idx3-ubyte", _each("MNIST/raw/{name}")),
    "data_dir=.../MNIST": ("raw/train-images-idx3-ubyte", _each("raw/{name}")),
    "a dot for the dash": ("train-images.idx3-ubyte", _each("{dot}")),
    "a folder of the file's name": ("train-images.idx3-ubyte/train-images.idx3-ubyte", _each("{dot}/{dot}")),
    "TensorFlow's folder": ("MNIST_data/train-images-idx3-ubyte.gz", _each("MNIST_data/{name}.gz", gzip.compress)),
    "folders of one's own": ("a/b/mnist/train-images-idx3-ubyte.gz", _each("a/b/mnist/{name}.gz", gzip.compress)),
    "keras' npz": ("mnist.npz", _keras),
    "zip of the files": ("archive.zip", lambda files: {"archive.zip": packed(_each("x/{dot}")(files))}),
    "zip of gz files": ("mnist.zip", lambda files: {"mnist.zip": packed(_each("{name}.gz", gzip.compress)(files))}),
    "zip of keras' npz": ("mnist.zip", lambda files: {"mnist.zip": packed(_keras(files))}),
    "OpenML's csv": (
        "mnist_784.csv",
        lambda files: {"mnist_784.csv": table(_openml(files), f"{PIXELS},class\n", label="last")},
    ),
    "OpenML's arff": ("mnist_784.arff", lambda files: {"mnist_784.arff": table(_openml(files), ARFF, label="last")}),
    "csv without a header": (
        "mnist_train.csv, mnist_test.csv",
        lambda files: {
            "mnist_train.csv": table(files.train, "", label="first"),
            "mnist_test.csv": table(files.test, "", label="first"),
        },
    ),
    "Kaggle's csv": (
        "mnist_train.csv, mnist_test.csv in archive.zip",
        lambda files: {
            "archive.zip": packed(
                {
                    "mnist_train.csv": table(files.train, f"label,{PIXELS}\n", label="first"),
                    "mnist_test.csv": table(files.test, f"label,{PIXELS}\n", label="first"),
                }
            )
        },
    ),
}
"""Layouts that are taken: the file that a reader of the table sees, and what makes them."""

Refused = tuple[str, str, Callable[[Files], dict[str, bytes]]]


def _first(content: bytes) -> Callable[[Files], dict[str, bytes]]:
    return lambda files: {f"MNIST/raw/{TRAIN}": content, f"MNIST/raw/{TEST}": files.contents[TEST]}


REFUSED: dict[str, Refused] = {
    "pickle": (
        "mnist.pkl.gz",
        r"mnist\.pkl\.gz is a pickle and is never opened",
        lambda files: {"mnist.pkl.gz": gzip.compress(b"\x80\x04")},
    ),
    "torchvision's old tensors": (
        "MNIST/processed/training.pt",
        r"training\.pt is a pickle and is never opened",
        lambda files: {"MNIST/processed/training.pt": b"PK"},
    ),
    "test file under the training file's name": (
        "train-images-idx3-ubyte",
        f"{TRAIN} holds the content of {TEST} of dataset=mnist",
        lambda files: dict.fromkeys((f"MNIST/raw/{TRAIN}", f"MNIST/raw/{TEST}"), files.contents[TEST]),
    ),
    "Fashion-MNIST's files": (
        "train-images-idx3-ubyte",
        f"{TRAIN} holds the content of {TRAIN} of dataset=fashion_mnist",
        lambda files: Files(*(np.roll(images, 1, axis=2) for images in files)).contents,
    ),
    "HTML page": ("train-images-idx3-ubyte", f"{TRAIN} is an HTML page", _first(b"<!DOCTYPE html>\n<html>")),
    "Git LFS pointer": (
        "train-images-idx3-ubyte",
        f"{TRAIN} is a Git LFS pointer",
        _first(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ),
    "cut file": (
        "train-images-idx3-ubyte",
        f"{TRAIN} is truncated or altered",
        lambda files: {f"MNIST/raw/{name}": content[:-1] for name, content in files.contents.items()},
    ),
    "npz of other images": (
        "mnist.npz",
        r"mnist\.npz: it does not hold the published images of dataset=mnist",
        lambda files: _keras(Files(255 - files.train, 255 - files.test)),
    ),
    "parquet": (
        "mnist/train.parquet",
        r"train\.parquet is in a format that is not read",
        lambda files: {"mnist/train.parquet": b"PAR1"},
    ),
    "tar": ("mnist.tar.gz", r"mnist\.tar\.gz is packed: unpack it", lambda files: {"mnist.tar.gz": b"x"}),
}
"""Layouts that are refused: the file, the message, and what makes them."""


def markdown() -> str:
    """Return the table of docs/datasets.md; run this file to print it."""
    lines = ["| layout below `data_dir` | files | result |", "|---|---|---|"]
    lines += [f"| {form} | {_code(files)} | taken |" for form, (files, _) in FORMS.items()]
    lines += [
        f'| {form} | {_code(files)} | refused: "... {_words(message)}" |'
        for form, (files, message, _) in REFUSED.items()
    ]
    return "\n".join(lines) + "\n"


def _code(files: str) -> str:
    return ", ".join(f"`{name}`" for name in files.split(", "))


def _words(message: str) -> str:
    """Return the pattern of a message as text."""
    return re.sub(r"\\(.)", r"\1", message)


def make(form: str, files: Files, folder: Path) -> Path:
    """Write a layout into ``folder``; return the folder."""
    maker = FORMS[form][1] if form in FORMS else REFUSED[form][2]
    for name, content in maker(files).items():
        write(folder / name, content)
    return folder


if __name__ == "__main__":
    print(markdown(), end="")
