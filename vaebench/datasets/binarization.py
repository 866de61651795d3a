"""Dynamic binarisation on the device where the bytes are."""

import torch
from torch import Tensor

__all__ = ["binarize"]


def binarize(intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw pixels with P(1) = byte / 255: uint8 of any shape -> float32 of zeros and ones, on its device.

    A byte of 0 never and one of 255 always gives 1, so that images that are binary already pass unchanged.
    Reproducible from the generator's state; without one, from torch's global one.
    """
    if intensities.device.type == "cpu" and intensities.numel() % 8 == 0:
        return _by_digits(intensities, generator).float()
    return _by_threshold(intensities, generator).float()


def _by_threshold(intensities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Whether a whole number uniform on 0..254 is below the byte.

    The number is a 32-bit draw modulo 255: its probabilities are right to 3e-10.
    """
    return torch.empty_like(intensities).random_(0, 255, generator=generator) < intensities


def _by_digits(intensities: Tensor, generator: torch.Generator | None) -> Tensor:
    """The same law from a quarter of the random bits, in less than half the time on a CPU.

    A byte's b / 255 is 0.bbb... in base 256. So a random byte decides where it differs from b, and where it ties, one
    pixel in 256, what remains to be decided has probability b / 255 again. Eight bytes come with each 64-bit draw.
    """
    words = torch.empty(intensities.numel() // 8, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    digits = words.view(torch.uint8).view(intensities.shape)
    ones, tied = digits < intensities, digits == intensities
    # Looked for among eights of pixels, which is eight times faster.
    some = tied.view(-1).view(torch.int64).nonzero().squeeze(-1)
    found, decided = ones.view(-1, 8), _by_threshold(intensities.reshape(-1, 8)[some], generator)
    found[some] = torch.where(tied.view(-1, 8)[some], decided, found[some])
    return ones
