"""Training images: bytes on the device, shuffled and binarized there."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vaebench.runtime import derived_seed, seed_device

__all__ = ["Batches"]


class Batches:
    """Batches of binarized images, and the seeds of all random numbers of a training.

    The order of the images depends on (seed, epoch) alone. Before each batch, torch's generators are seeded from
    (seed, epoch, batch): the binarization draws first, then the training step. So a run resumes at any batch without
    the state of a generator, also on another device. The drawn numbers depend on the kind of the device, CPU or GPU. On
    a CPU torch uses 32 bits of a seed, so that two of 100,000 batches may draw the same numbers.

    Args:
        intensities: pixel bytes, (N, X), on the device that trains.
        observe: draws images x, (B, X), from bytes with torch's global generator.
        batch_size: images in a batch; the last batch of an epoch may be smaller.
        seed: of the order, the binarization and the noise of the steps.
    """

    def __init__(
        self,
        intensities: Tensor,
        observe: Callable[[Tensor], Tensor],
        batch_size: int,
        seed: int,
    ) -> None:
        self.intensities = intensities
        self.observe = observe
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.intensities) // self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Tensor]:
        """Yield the epoch's batches, from batch ``first`` on: x of (B, X) in [0, 1]; seed what the step draws."""
        shuffle = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
        order = torch.randperm(len(self.intensities), generator=shuffle).to(self.intensities.device)
        for number, chosen in enumerate(order.split(self.batch_size)):
            if number >= first:
                seed_device(order.device, derived_seed(self.seed, "batch", epoch, number))
                yield self.observe(self.intensities.index_select(0, chosen))
