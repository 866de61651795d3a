"""What each dataset is, in words and numbers: no data, no torch, nothing slow to import."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BINARIZATIONS", "CATALOG", "NAMES", "Entry", "Sizes"]

Sizes = tuple[int, int, int]
"""Numbers of training, validation and test images."""

BINARIZATIONS: Mapping[str, str] = {
    "dynamic": "training images drawn from their grey levels at every use, validation and test once",
    "static": "all images drawn once from their grey levels",
    "threshold": "a pixel is 1 where its grey level is above one half",
    "none": "grey levels as they are; a Bernoulli likelihood of them is not a proper log-likelihood",
}

_GREY = ("dynamic", "static", "threshold", "none")


@dataclass(frozen=True)
class Entry:
    """One dataset: its sizes per split, how each split is made, and the binarisations it allows.

    The first of ``binarizations`` is the default. ``seeded_split`` says that the protocol's seed moves
    images between the parts; otherwise the seed only draws the binarisation. ``version`` goes up
    whenever the same words would give other pixels.
    """

    name: str
    summary: str
    splits: Mapping[str, Sizes]
    how: Mapping[str, str]
    binarizations: tuple[str, ...] = _GREY
    seeded_split: bool = False
    version: int = 1

    @property
    def binary(self) -> bool:
        """Whether the files themselves hold only black and white, with no grey levels to draw from."""
        return "none" not in self.binarizations


_ENTRIES = (
    Entry(
        name="mnist5k",
        summary="5,000 MNIST digits that come with the installation; works offline; not a benchmark",
        splits={"default": (4_000, 500, 500)},
        how={"default": "embedded 5,000-image MNIST subset, 400/50/50 of each digit; benchmarks: dataset=mnist"},
        seeded_split=True,
    ),
    Entry(
        name="mnist",
        summary="the 70,000 MNIST digits, 28x28; the benchmark",
        splits={"default": (55_000, 5_000, 10_000), "iwae": (59_600, 400, 10_000)},
        how={
            "default": "MNIST, the first 5,000 training images validate",
            "iwae": "MNIST with the IWAE paper's split, the last 400 training images validate",
        },
    ),
    Entry(
        name="binarized_mnist",
        summary="MNIST binarised once by Larochelle; results compare with papers on 'static MNIST'",
        splits={"default": (50_000, 10_000, 10_000)},
        how={"default": "Larochelle's binarised MNIST, with its own split"},
        binarizations=("static",),
    ),
    Entry(
        name="omniglot",
        summary="28x28 Omniglot of the IWAE paper (chardata.mat); the one behind published figures",
        splits={"default": (23_000, 1_345, 8_070)},
        how={"default": "Omniglot as in the IWAE paper, 1,345 training images (shuffled, seed 123) validate"},
    ),
    Entry(
        name="omniglot_original",
        summary="the 32,460 original Omniglot drawings reduced to 28x28; not the published figures' data",
        splits={"default": (23_000, 1_345, 8_115)},
        how={"default": "original Omniglot reduced to 28x28, 5 of the 20 drawings of each character test"},
        seeded_split=True,
    ),
    Entry(
        name="fashion_mnist",
        summary="70,000 pictures of clothes, 28x28, in MNIST's format",
        splits={"default": (55_000, 5_000, 10_000)},
        how={"default": "Fashion-MNIST, the first 5,000 training images validate"},
    ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
NAMES: tuple[str, ...] = tuple(CATALOG)
