"""Training images: bytes on the device, shuffled and binarized there."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vaebench.runtime import derived_seed

__all__ = ["Batches"]


class Batches:
    """Batches of observed images, in an order that depends on (seed, epoch) alone.

    Args:
        intensities: pixel bytes, (N, X), on the device that trains.
        observe: draws images x, (B, X), from bytes, with the generator given.
        batch_size: images in a batch; the last of an epoch may be smaller.
        seed: of the order and of the binarization.
    """

    def __init__(
        self,
        intensities: Tensor,
        observe: Callable[[Tensor, torch.Generator], Tensor],
        batch_size: int,
        seed: int,
    ) -> None:
        self.intensities = intensities
        self.observe = observe
        self.batch_size = batch_size
        self.seed = seed
        self.generator = torch.Generator(intensities.device)
        # Keep this spelling: the word is hashed into the seed, and another word would change every trained model.
        self.generator.manual_seed(derived_seed(seed, "binarisation"))

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self.intensities) // self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Tensor]:
        """Yield the epoch's batches from number ``first`` on, x of (B, X) in [0, 1]."""
        shuffle = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
        order = torch.randperm(len(self.intensities), generator=shuffle).to(self.intensities.device)
        for start in range(first * self.batch_size, len(order), self.batch_size):
            yield self.observe(self.intensities[order[start : start + self.batch_size]], self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Return the binarization's generator; the order needs no state."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on binarizing where ``state`` was taken."""
        self.generator.set_state(state["generator"])
