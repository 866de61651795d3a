"""Neural spline flow: rational-quadratic coupling."""

from torch import Tensor

from vaebench.errors import UserError
from vaebench.flows.coupling import Coupling
from vaebench.flows.flow import FlowContext
from vaebench.flows.spline import RationalQuadraticSpline, settings_count

__all__ = ["SplineFlow"]

# Bins have a smallest width of a thousandth of the interval.
_MOST_BINS = 100


class SplineFlow(Coupling):
    """z'_i = spline(z_i), a rational-quadratic spline on [-bound, bound] from the kept half and x.

    Source: Durkan, Bekasov, Murray and Papamakarios 2019, https://arxiv.org/abs/1906.04032
    """

    def __init__(self, place: FlowContext, width: int, depth: int, bins: int, bound: float) -> None:
        if not 2 <= bins <= _MOST_BINS:
            raise UserError(f"encoder.bins must be from 2 to {_MOST_BINS}, not {bins}")
        super().__init__(place, settings_count(bins), width, depth)
        self.bins, self.bound = bins, bound

    @classmethod
    def build(cls, place: FlowContext, *, width: int, depth: int, bins: int, bound: float) -> "SplineFlow":
        """Make one whose network has ``depth`` hidden layers of ``width`` units."""
        return cls(place, width, depth, bins, bound)

    def transform(self, value: Tensor, settings: Tensor) -> tuple[Tensor, Tensor]:
        """Bend."""
        return RationalQuadraticSpline(settings, self.bins, self.bound).forward(value)

    def restore(self, value: Tensor, settings: Tensor) -> Tensor:
        """Bend back."""
        return RationalQuadraticSpline(settings, self.bins, self.bound).inverse(value)
