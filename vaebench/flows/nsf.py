"""Neural spline flow: rational-quadratic coupling."""

from torch import Tensor

from vaebench.arguments import above
from vaebench.flows.coupling import Coupling
from vaebench.flows.flow import FlowContext
from vaebench.flows.spline import RationalQuadraticSpline, settings_count

__all__ = ["SplineFlow"]

# The least width of a bin is a thousandth of the interval.
_MOST_BINS = 100


class SplineFlow(Coupling):
    """z'_i = spline(z_i), a rational-quadratic spline on [-bound, bound] from the kept half and x.

    Source: Durkan, Bekasov, Murray and Papamakarios 2019, https://arxiv.org/abs/1906.04032
    """

    def __init__(self, context: FlowContext, width: int, depth: int, bins: int, bound: float) -> None:
        if not 2 <= bins <= _MOST_BINS:
            raise ValueError(f"bins must be >= 2 and <= {_MOST_BINS}, got {bins}")
        above(0, bound=bound)
        super().__init__(context, settings_count(bins), width, depth)
        self.bins, self.bound = bins, bound

    def transform(self, value: Tensor, settings: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the splines."""
        return RationalQuadraticSpline(settings, self.bins, self.bound).forward(value)

    def restore(self, value: Tensor, settings: Tensor) -> Tensor:
        """Apply the inverse splines."""
        return RationalQuadraticSpline(settings, self.bins, self.bound).inverse(value)
