"""Name exactly the pixels that a result was measured on: dataset, split, binarization, seed and version."""

from dataclasses import dataclass, field, replace
from typing import Literal

from vaebench import plugins
from vaebench.datasets.catalog import BINARIZATIONS, CATALOG, DatasetInfo, Sizes
from vaebench.errors import UserError, did_you_mean

__all__ = ["OWN", "PixelKind", "Protocol", "check_words", "protocol_for", "protocol_of"]

OWN = "own"
"""The dataset of the user's own images."""

PixelKind = Literal["binary", "8-bit", "continuous"]
"""What a model sees: zeros and ones, bytes / 255, or any numbers in [0, 1]."""


@dataclass(frozen=True)
class Protocol:
    """The name of a prepared dataset; results are comparable only if their protocols are equal.

    ``str(protocol)`` is ``mnist/dynamic-v1``. It includes a split or a seed other than the default, as in
    ``mnist/dynamic-iwae_split-v1`` and ``mnist/static-seed3-v1``.
    """

    info: DatasetInfo = field(hash=False)
    split: str
    binarization: str
    seed: int

    @property
    def dataset(self) -> str:
        """The dataset's name; own images have the fingerprint of their pixels in it."""
        return self.info.name

    def __str__(self) -> str:
        split = "" if self.split == "default" else f"-{self.split}_split"
        seed = "" if self.seed == 0 else f"-seed{self.seed}"
        return f"{self.dataset}/{self.binarization}{split}{seed}-v{self.info.version}"

    @property
    def slug(self) -> str:
        """Return the protocol as a file name, without a folder separator."""
        return str(self).replace("/", "-")

    @property
    def sizes(self) -> Sizes:
        """Numbers of training, validation and test images."""
        return self.info.splits[self.split]

    @property
    def drawn(self) -> bool:
        """Whether validation and test are drawn from grey levels."""
        return self.binarization in ("dynamic", "static") and not self.info.binary

    @property
    def continuous(self) -> bool:
        """Whether pixels are grey levels in [0, 1], not 0 or 1."""
        return self.binarization == "none"

    @property
    def pixel_kind(self) -> PixelKind:
        """The kind of pixels that a model sees."""
        return "binary" if not self.continuous else "continuous" if self.info.floats else "8-bit"


def protocol_for(name: str, binarization: str | None = None, split: str = "default", seed: int = 0) -> Protocol:
    """Validate a user's settings and return the protocol that they name.

    ``binarization=None`` means the dataset's default. A seed that changes no pixel (neither split nor binarization is
    random) becomes 0, so that equal data have equal names.

    Raises:
        UserError: a setting is unknown, or the seed is not in [0, 2**32).
    """
    if name not in CATALOG:
        known = [*CATALOG, OWN, *plugins.names("dataset")]
        raise UserError(f"unknown dataset={name}{did_you_mean(name, known)}; choose from: {', '.join(known)}")
    info = CATALOG[name]
    return protocol_of(info, name, info.binarizations[0] if binarization is None else binarization, split, seed)


def protocol_of(info: DatasetInfo, name: str, binarization: str, split: str, seed: int) -> Protocol:
    """Return the protocol of a dataset by its description; ``name`` is for messages."""
    _require("dataset.binarization", binarization, info.binarizations, name)
    _require("dataset.split", split, tuple(info.splits), name)
    if not 0 <= seed < 2**32:
        raise UserError(f"dataset.seed must be >= 0 and < 2**32, got {seed}")
    protocol = Protocol(info, split, binarization, seed)
    return protocol if info.seeded_split or protocol.drawn else replace(protocol, seed=0)


def check_words(name: str, binarization: str, split: str, seed: int) -> None:
    """Raise UserError unless `protocol_for`, or for own images and plug-ins their reader, knows the words."""
    if name == OWN or plugins.foreign("dataset", name, CATALOG) is not None:
        _require("dataset.binarization", binarization, tuple(BINARIZATIONS), name)
        _require("dataset.split", split, ("default",), name)
    else:
        protocol_for(name, binarization, split, seed)


def _require(key: str, word: str, choices: tuple[str, ...], name: str) -> None:
    if word not in choices:
        listed = ", ".join(choices)
        hint = did_you_mean(word, choices)
        raise UserError(f"{key}={word} is not available for dataset={name}{hint}; choose from: {listed}")
