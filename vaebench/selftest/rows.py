"""One row of the self-test: the expected value, the computed value and the tolerance."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["EXACT", "CheckRow", "Mean", "Side", "differs", "distance", "exact", "near"]

Side = Literal["=", ">=", "<="]
"""How a number must relate to the expected value, within the tolerance."""

EXACT = 1e-9
"""Tolerance for a number without sampling noise, in float64."""
ERRORS = 4.0
"""Tolerance for a Monte Carlo mean, in standard errors; by chance one in 16,000 exceeds it."""
CAUGHT = 8.0
"""A control's mean must differ from the right value by more than this many standard errors."""


@dataclass(frozen=True)
class Mean:
    """A Monte Carlo mean with its standard error, from independent replicates."""

    value: float
    stderr: float

    @classmethod
    def of(cls, replicates: Tensor) -> "Mean":
        """Average ``replicates``, a tensor of any shape whose elements are independent."""
        flat = replicates.detach().double().flatten()
        return cls(flat.mean().item(), (flat.std() / flat.numel() ** 0.5).item())

    def errors_above(self, truth: float) -> float:
        """Return (mean - truth) in standard errors; 0 if the difference is rounding."""
        distance = self.value - truth
        return 0.0 if abs(distance) < 1e-12 else distance / max(self.stderr, 1e-300)


@dataclass(frozen=True)
class CheckRow:
    """A computed number and its expected value; for a control, the value from which it must differ."""

    name: str
    expected: float
    got: float
    tolerance: float
    rule: str
    """The source of the tolerance, in a few words."""
    control: bool = False
    """Whether this is a wrong formula, which passes if it differs by more than the tolerance."""
    side: Side = "="

    @property
    def passed(self) -> bool:
        """Whether the number is within the tolerance, or, for a control, outside it; NaN and inf never pass."""
        distance = self.got - self.expected
        distance = abs(distance) if self.side == "=" else distance if self.side == "<=" else -distance
        if not math.isfinite(distance) or not math.isfinite(self.tolerance):
            return False
        return distance > self.tolerance if self.control else distance <= self.tolerance


def exact(name: str, expected: float, got: float, tolerance: float = EXACT, side: Side = "=") -> CheckRow:
    """Return the row of a number without sampling noise."""
    return CheckRow(name, expected, got, tolerance, "exact", side=side)


def near(name: str, expected: float, mean: Mean, side: Side = "=") -> CheckRow:
    """Return the row of a Monte Carlo mean."""
    return CheckRow(name, expected, mean.value, max(ERRORS * mean.stderr, EXACT), f"{ERRORS:g} s.e.", side=side)


def differs(name: str, right: float, wrong: Mean | float, tolerance: float = EXACT) -> CheckRow:
    """Return the row of a control: a wrong formula, which must differ from the ``right`` value."""
    if isinstance(wrong, Mean):
        return CheckRow(name, right, wrong.value, CAUGHT * wrong.stderr, f"{CAUGHT:g} s.e.", control=True)
    return CheckRow(name, right, wrong, tolerance, "exact", control=True)


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference between two tensors, computed in float64."""
    return (one.double() - other.double()).abs().max().item()
