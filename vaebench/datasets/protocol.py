"""Name exactly the pixels that a result was measured on: dataset, split, binarization, seed and version."""

from dataclasses import dataclass, replace

from vaebench.datasets.catalog import CATALOG, Sizes
from vaebench.errors import UserError, did_you_mean

__all__ = ["Protocol", "protocol_for"]


@dataclass(frozen=True)
class Protocol:
    """The name of a prepared dataset; results are comparable only if their protocols are equal.

    ``str(protocol)`` is ``mnist/dynamic-v1``. It includes a split or a seed other than the default, as in
    ``mnist/dynamic-iwae_split-v1`` and ``mnist/static-seed3-v1``.
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
        """Return the protocol as a file name, without a folder separator."""
        return str(self).replace("/", "-")

    @property
    def sizes(self) -> Sizes:
        """Numbers of training, validation and test images."""
        return CATALOG[self.dataset].splits[self.split]

    @property
    def drawn(self) -> bool:
        """Whether validation and test are drawn from grey levels."""
        return self.binarization in ("dynamic", "static") and not CATALOG[self.dataset].binary

    @property
    def continuous(self) -> bool:
        """Whether pixels are grey levels in [0, 1], not 0 or 1."""
        return self.binarization == "none"


def protocol_for(name: str, binarization: str | None = None, split: str = "default", seed: int = 0) -> Protocol:
    """Validate a user's settings and return the protocol that they name.

    ``binarization=None`` means the dataset's default. A seed that changes no pixel (neither split nor binarization is
    random) becomes 0, so that equal data have equal names.

    Raises:
        UserError: a setting is unknown, or the seed is not in [0, 2**32).
    """
    if name not in CATALOG:
        raise UserError(f"unknown dataset={name}{did_you_mean(name, CATALOG)}; choose from: {', '.join(CATALOG)}")
    info = CATALOG[name]
    binarization = info.binarizations[0] if binarization is None else binarization
    _require("dataset.binarization", binarization, info.binarizations, name)
    _require("dataset.split", split, tuple(info.splits), name)
    if not 0 <= seed < 2**32:
        raise UserError(f"dataset.seed must be >= 0 and < 2**32, got {seed}")
    protocol = Protocol(name, split, binarization, info.version, seed)
    return protocol if info.seeded_split or protocol.drawn else replace(protocol, seed=0)


def _require(key: str, word: str, choices: tuple[str, ...], name: str) -> None:
    if word not in choices:
        listed = ", ".join(choices)
        hint = did_you_mean(word, choices)
        raise UserError(f"{key}={word} is not available for dataset={name}{hint}; choose from: {listed}")
