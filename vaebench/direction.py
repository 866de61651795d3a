"""How a number relates to the quantity that it estimates, and what p(x) is. Imports no torch."""

from enum import StrEnum

__all__ = ["Direction", "Measure", "checked_direction", "checked_measure"]


class Direction(StrEnum):
    """How a number relates, in expectation, to the quantity that it estimates.

    The values are those in results.json. Of an encoder's ``log_q``, which estimates log q(z|x), a member states:
    """

    EXACT = "exact"
    """log_q = log q(z|x)."""
    LOWER_BOUND = "lower_bound"
    """Of results only: the contract of encoders has no lower bound on log q(z|x)."""
    UPPER_BOUND = "upper_bound"
    """E[exp(-log_q) | z] = 1/q(z|x), hence E[log_q | z] >= log q(z|x)."""
    ESTIMATE = "estimate"
    """A learned density ratio: it violates the contract, and no number made from it is a bound."""

    @property
    def of_log_likelihood(self) -> "Direction":
        """The direction of an importance-weighted estimate of log p(x) made with this log_q."""
        return Direction.ESTIMATE if self is Direction.ESTIMATE else Direction.LOWER_BOUND

    @property
    def negated(self) -> "Direction":
        """The direction of minus such a number."""
        opposite = {Direction.LOWER_BOUND: Direction.UPPER_BOUND, Direction.UPPER_BOUND: Direction.LOWER_BOUND}
        return opposite.get(self, self)


class Measure(StrEnum):
    """What p(x) is: numbers of different measures are never comparable. The values are those in results.json."""

    PROBABILITY = "probability"
    """The probability of an image of binary pixels."""
    EIGHT_BIT = "8-bit probability"
    """The probability of an image of 8-bit pixels; also reported in bits per dimension (pixel and channel)."""
    DENSITY = "density"
    """The density of pixels in [0, 1], which may exceed 1."""
    CROSS_ENTROPY = "cross-entropy"
    """Bernoulli's formula at grey levels: neither a probability nor a density."""

    @classmethod
    def of_early_version(cls, protocol: str) -> "Measure":
        """Return the measure of a run or result that does not name it; early versions had Bernoulli's formula alone."""
        return cls.CROSS_ENTROPY if "/none" in protocol else cls.PROBABILITY

    def named(self, quantity: str) -> str:
        """Return the name of a quantity with the measure, for example ``log p(x) (density)``.

        A KL divergence, a gap or an information is the same for every measure, and keeps its name.
        """
        plain = self is Measure.PROBABILITY or not quantity.startswith(("log p(x)", "ELBO"))
        return quantity if plain else f"{quantity} ({self})"


def checked_direction(name: str) -> Direction:
    """Return the direction of that name, as results.json holds it. ValueError when there is none."""
    if name not in list(Direction):
        raise ValueError(f"direction must be one of {', '.join(Direction)}, not {name!r}")
    return Direction(name)


def checked_measure(name: str) -> Measure:
    """Return the measure of that name, as results.json holds it. ValueError when there is none."""
    if name not in list(Measure):
        raise ValueError(f"measure must be one of {', '.join(Measure)}, not {name!r}")
    return Measure(name)
