"""One line of the self-test: what was expected, what came out, and by how much the two may differ."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EXACT", "Mean", "Row", "differs", "exact", "near"]

EXACT = 1e-9
"""How far a number that rounding alone can disturb may lie from its exact value, in float64."""
ERRORS = 4.0
"""How many standard errors a Monte Carlo mean may lie from its exact value: one in 16,000 lies further by chance."""
CAUGHT = 8.0
"""How many standard errors a wrong formula's mean must lie from the right value at least."""


@dataclass(frozen=True)
class Mean:
    """A Monte Carlo mean with its standard error, from independent replicates."""

    value: float
    stderr: float

    @classmethod
    def of(cls, replicates: "Tensor") -> "Mean":
        """Average ``replicates``, any shape, all elements independent."""
        flat = replicates.detach().double().flatten()
        return cls(flat.mean().item(), (flat.std() / flat.numel() ** 0.5).item())

    def errors_above(self, truth: float) -> float:
        """Return how many standard errors the mean lies above ``truth``; rounding counts as no distance."""
        distance = self.value - truth
        return 0.0 if abs(distance) < 1e-12 else distance / max(self.stderr, 1e-300)


@dataclass(frozen=True)
class Row:
    """A number beside the one that it has to be, or, for a control, the one that it must not be."""

    name: str
    expected: float
    got: float
    tolerance: float
    rule: str
    """Where the tolerance comes from, in a word or two."""
    control: bool = False
    """Whether this is a wrong formula, which passes where it is caught: where it differs by more than the tolerance."""

    @property
    def passed(self) -> bool:
        """Whether the number is what it has to be; one that is not finite never is."""
        distance = abs(self.got - self.expected)
        if not math.isfinite(distance) or not math.isfinite(self.tolerance):
            return False
        return distance > self.tolerance if self.control else distance <= self.tolerance


def exact(name: str, expected: float, got: float, tolerance: float = EXACT) -> Row:
    """Return the row of a number without sampling noise."""
    return Row(name, expected, got, tolerance, "exact")


def near(name: str, expected: float, mean: Mean) -> Row:
    """Return the row of a Monte Carlo mean."""
    return Row(name, expected, mean.value, max(ERRORS * mean.stderr, EXACT), f"{ERRORS:g} s.e.")


def differs(name: str, right: float, wrong: "Mean | float", tolerance: float = EXACT) -> Row:
    """Return the row of a wrong formula, which has to differ from the ``right`` value."""
    if isinstance(wrong, Mean):
        return Row(name, right, wrong.value, CAUGHT * wrong.stderr, f"{CAUGHT:g} s.e.", control=True)
    return Row(name, right, wrong, tolerance, "exact", control=True)
