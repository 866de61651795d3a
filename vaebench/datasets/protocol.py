"""A protocol names exactly the pixels behind a number: dataset, split, binarisation, seed, version."""

from dataclasses import dataclass, replace

from vaebench.datasets.catalog import CATALOG, Sizes
from vaebench.errors import UserError, did_you_mean

__all__ = ["Protocol", "protocol_for"]


@dataclass(frozen=True)
class Protocol:
    """The name of a prepared dataset; two results compare only if their protocols are equal.

    ``str(protocol)`` is ``mnist/dynamic-v1``; a split or a seed that is not the default one is spelt out,
    as in ``mnist/dynamic-iwae_split-v1`` and ``mnist/static-seed3-v1``.
    """

    dataset: str
    split: str
    binarization: str
    version: int
    seed: int

    def __str__(self) -> str:
        split = "" if self.split == "default" else f"-{self.split}_split"
        seed = "" if self.seed == 0 else f"-seed{self.seed}"
        return f"{self.dataset}/{self.binarization}{split}{seed}-v{self.version}"

    @property
    def slug(self) -> str:
        """The protocol as a file name, without a folder separator."""
        return str(self).replace("/", "-")

    @property
    def sizes(self) -> Sizes:
        """Numbers of training, validation and test images."""
        return CATALOG[self.dataset].splits[self.split]

    @property
    def drawn(self) -> bool:
        """Whether validation and test are draws from grey levels that are kept."""
        return self.binarization in ("dynamic", "static") and not CATALOG[self.dataset].binary

    @property
    def continuous(self) -> bool:
        """Whether pixels are grey levels in [0, 1] rather than draws of 0 and 1."""
        return self.binarization == "none"


def protocol_for(name: str, binarization: str | None = None, split: str = "default", seed: int = 0) -> Protocol:
    """Check the words that a user typed and return the protocol that they name.

    ``binarization=None`` is the dataset's own default. A seed that cannot change a pixel (a positional
    split without random binarisation) is recorded as 0, so that equal data have equal names.

    Raises:
        UserError: a word is unknown, or the seed is not in [0, 2**32).
    """
    if name not in CATALOG:
        raise UserError(f"unknown dataset={name}{did_you_mean(name, CATALOG)}; there are: {', '.join(CATALOG)}")
    entry = CATALOG[name]
    binarization = entry.binarizations[0] if binarization is None else binarization
    _require("dataset.binarization", binarization, entry.binarizations, name)
    _require("dataset.split", split, tuple(entry.splits), name)
    if not 0 <= seed < 2**32:
        raise UserError(f"dataset.seed={seed} must be at least 0 and below 2**32")
    protocol = Protocol(name, split, binarization, entry.version, seed)
    return protocol if entry.seeded_split or protocol.drawn else replace(protocol, seed=0)


def _require(key: str, word: str, choices: tuple[str, ...], name: str) -> None:
    if word not in choices:
        listed = ", ".join(choices)
        hint = did_you_mean(word, choices)
        raise UserError(f"{key}={word} is not possible for dataset={name}{hint}; choose from: {listed}")
