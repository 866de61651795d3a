"""Describe each dataset in words and numbers; imports neither data nor torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BINARIZATIONS", "CATALOG", "FINGERPRINTS", "GREY", "IMAGES", "NAMES", "DatasetInfo", "Shape", "Sizes"]

Sizes = tuple[int, int, int]
"""Numbers of training, validation and test images."""

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

BINARIZATIONS: Mapping[str, str] = {
    "dynamic": "training images are drawn from their grey levels at every use, validation and test images once",
    "static": "all images are drawn once from their grey levels",
    "threshold": "a pixel is 1 if its grey level is above one half",
    "none": "pixels are grey levels",
}

GREY = ("dynamic", "static", "threshold", "none")


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset: the sizes of each split, how the split is made, and the allowed binarizations.

    The first of ``binarizations`` is the default. ``seeded_split``: the protocol's seed decides which images are in
    which part; otherwise it only draws the binarization. Raise ``version`` when the same settings give new pixels.
    ``floats``: pixels are float32 in [0, 1], not bytes.
    """

    name: str
    summary: str
    splits: Mapping[str, Sizes]
    how_split: Mapping[str, str]
    binarizations: tuple[str, ...] = GREY
    seeded_split: bool = False
    version: int = 1
    shape: Shape = (1, 28, 28)
    floats: bool = False

    @property
    def binary(self) -> bool:
        """Whether the files hold only black and white pixels, without grey levels to draw from."""
        return "none" not in self.binarizations

    @property
    def numbers(self) -> int:
        """The numbers of an image: channels * height * width."""
        return math.prod(self.shape)


_UNVERIFIED = "; not verified: no checksum of its files is published"


def _emnist(name: str, summary: str, sizes: Sizes) -> DatasetInfo:
    how = f"EMNIST turned upright; validation: the last {sizes[1]:,} training images{_UNVERIFIED}"
    return DatasetInfo(name, f"{sum(sizes):,} images, 28x28: {summary}", {"default": sizes}, {"default": how})


_DATASETS = (
    DatasetInfo(
        name="mnist5k",
        summary="5,000 MNIST digits included in the installation; works offline; not a benchmark",
        splits={"default": (4_000, 500, 500)},
        how_split={"default": "MNIST subset of 5,000 images, 400/50/50 of each digit; benchmarks: dataset=mnist"},
        seeded_split=True,
    ),
    DatasetInfo(
        name="mnist",
        summary="the 70,000 MNIST digits, 28x28; the benchmark",
        splits={"default": (55_000, 5_000, 10_000), "iwae": (59_600, 400, 10_000)},
        how_split={
            "default": "MNIST; validation: the first 5,000 training images",
            "iwae": "MNIST, split of the IWAE paper; validation: the last 400 training images",
        },
    ),
    DatasetInfo(
        name="binarized_mnist",
        summary="MNIST binarized once by Larochelle: the 'static MNIST' of papers",
        splits={"default": (50_000, 10_000, 10_000)},
        how_split={"default": "Larochelle's binarized MNIST and split"},
        binarizations=("static",),
    ),
    DatasetInfo(
        name="omniglot",
        summary="28x28 Omniglot of the IWAE paper (chardata.mat), used in published results",
        splits={"default": (23_000, 1_345, 8_070)},
        how_split={"default": "Omniglot as in the IWAE paper; validation: 1,345 training images (shuffled, seed 123)"},
    ),
    DatasetInfo(
        name="omniglot_original",
        summary="the 32,460 original Omniglot drawings reduced to 28x28; not comparable with published results",
        splits={"default": (23_000, 1_345, 8_115)},
        how_split={"default": "original Omniglot reduced to 28x28; test: 5 of the 20 drawings of each character"},
        seeded_split=True,
    ),
    DatasetInfo(
        name="fashion_mnist",
        summary="70,000 pictures of clothes, 28x28, in MNIST's format",
        splits={"default": (55_000, 5_000, 10_000)},
        how_split={"default": "Fashion-MNIST; validation: the first 5,000 training images"},
    ),
    DatasetInfo(
        name="kmnist",
        summary="70,000 Japanese characters, 28x28, in MNIST's format",
        splits={"default": (55_000, 5_000, 10_000)},
        how_split={"default": "Kuzushiji-MNIST; validation: the first 5,000 training images"},
    ),
    _emnist("emnist", "the 47 classes of EMNIST Balanced", (94_000, 18_800, 18_800)),
    _emnist("emnist_digits", "the digits of EMNIST", (200_000, 40_000, 40_000)),
    _emnist("emnist_letters", "the 26 letters of EMNIST", (104_000, 20_800, 20_800)),
    DatasetInfo(
        name="caltech101_silhouettes",
        summary="8,671 black-and-white silhouettes of Caltech 101, 28x28",
        splits={"default": (4_100, 2_264, 2_307)},
        how_split={"default": f"Caltech 101 silhouettes in the split of their file{_UNVERIFIED}"},
        binarizations=("static",),
    ),
    DatasetInfo(
        name="frey_faces",
        summary="1,965 frames of a film of a face, 28x20 grey",
        splits={"default": (1_565, 200, 200)},
        how_split={
            "default": f"Frey faces, shuffled with dataset.seed: test frames have near copies in training{_UNVERIFIED}"
        },
        binarizations=("none",),
        seeded_split=True,
        shape=(1, 28, 20),
    ),
    DatasetInfo(
        name="cifar10",
        summary="60,000 colour photographs, 3x32x32",
        splits={"default": (45_000, 5_000, 10_000)},
        how_split={"default": "CIFAR-10; validation: the first 5,000 training images"},
        binarizations=("none",),
        shape=(3, 32, 32),
    ),
    DatasetInfo(
        name="svhn",
        summary="99,289 colour photographs of house numbers, 3x32x32",
        splits={"default": (68_257, 5_000, 26_032)},
        how_split={
            "default": "SVHN, cropped digits without the extra ones; validation: the first 5,000 training images"
        },
        binarizations=("none",),
        shape=(3, 32, 32),
    ),
)

CATALOG: dict[str, DatasetInfo] = {info.name: info for info in _DATASETS}
NAMES: tuple[str, ...] = tuple(CATALOG)

FINGERPRINTS: dict[str, str] = {
    "mnist5k/dynamic-v1": "104206d0d278edc0",
    "mnist5k/static-v1": "3c3db9962c830377",
    "mnist5k/threshold-v1": "9dbeaa4f3c6a21a2",
    "mnist5k/none-v1": "8ff019f55fc9578a",
    "mnist/dynamic-v1": "9ba27cf8359bae59",
    "mnist/static-v1": "8a1432fadc752988",
    "mnist/threshold-v1": "b24110f336b241ab",
    "mnist/none-v1": "db55e738e23ee816",
    "mnist/dynamic-iwae_split-v1": "176d7ddf4f0d9a48",
    "mnist/static-iwae_split-v1": "c6ff3c6af014662f",
    "mnist/threshold-iwae_split-v1": "482ee8287ea25e38",
    "mnist/none-iwae_split-v1": "c8a3501d50e76723",
    "omniglot_original/dynamic-v1": "f428e4c339b13b70",
    "omniglot_original/static-v1": "d1dcdc8bd858aef3",
    "omniglot_original/threshold-v1": "a292d6ac9f17e25f",
    "omniglot_original/none-v1": "58d807cb7a1c0c02",
}
"""The fingerprints of protocols with seed 0 (`Arrays.fingerprint`), made from the published files."""

IMAGES: dict[tuple[str, str], str] = {
    ("mnist5k", "none"): "7138eba63cd2f42a",
    ("mnist5k", "threshold"): "5919a2a687d895fe",
    ("omniglot_original", "none"): "2e3921d76682de1e",
    ("omniglot_original", "threshold"): "752e8b241d02b2ae",
}
"""Hashes of a dataset's images in sorted order (`arrays.hash_of_images`), by dataset and binarization.

They hold for every seed where the seed decides the split.
"""
