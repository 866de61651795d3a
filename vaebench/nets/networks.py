"""The networks of one run: every family asks here for its parts, so that all use the same architecture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vaebench.errors import UserError, did_you_mean
from vaebench.nets.convolutional import GatedPainter, GatedReader, ResidualPainter, ResidualReader
from vaebench.nets.gated import GatedMLP
from vaebench.nets.heads import AdditiveGaussian, BernoulliHead, PaintedBernoulli, TrunkGaussian
from vaebench.nets.trunks import MLP, AdditiveMLP, Trunk

__all__ = ["PAINTERS", "TRUNKS", "Networks"]

TRUNKS: dict[str, Callable[[int, Sequence[int], str], Trunk]] = {
    "mlp": MLP,
    "iwae": MLP,
    "iwhvi": MLP,
    "gated": GatedMLP,
    "gated_conv": GatedReader,
    "resnet": ResidualReader,
}
"""From (inputs, hidden, activation) to a network over x; those of dense layers take any input."""

PAINTERS: dict[str, Callable[[int, int, Sequence[int], str], nn.Module]] = {
    "gated_conv": GatedPainter,
    "resnet": ResidualPainter,
}
"""From (inputs, pixels, hidden, activation) to a network over z, where it is another kind than that over x."""


@dataclass(frozen=True)
class Networks:
    """An architecture by name, from which encoders and decoders are made.

    Args:
        trunk: a key of ``TRUNKS``.
        hidden: widths of the hidden layers; with convolutions, of their channels, and of the features at the end.
        activation: a key of ``ACTIVATIONS``.

    Raises:
        UserError: there is no such trunk.
    """

    trunk: str
    hidden: Sequence[int]
    activation: str

    def __post_init__(self) -> None:
        if self.trunk not in TRUNKS:
            hint = did_you_mean(self.trunk, TRUNKS)
            raise UserError(f"encoder.trunk must be one of {', '.join(TRUNKS)}, not '{self.trunk}'{hint}")

    @property
    def scale(self) -> str:
        """How standard deviations are made positive: exp in the IWAE paper's network, softplus in IWHVI's."""
        return "exp" if self.trunk == "iwae" else "softplus"

    def reader(self, inputs: int) -> Trunk:
        """Make x, (B, inputs) -> features."""
        return TRUNKS[self.trunk](inputs, self.hidden, self.activation)

    def gaussian(self, inputs: int, dim: int) -> TrunkGaussian:
        """Make x, (B, inputs) -> DiagonalNormal over (B, dim)."""
        return TrunkGaussian(self.reader(inputs), dim, self.scale)

    def additive(self, inputs: int, given: int) -> AdditiveMLP:
        """Make (u, x) -> features, with u of width ``given``.

        Where the trunk is more than dense layers, it reads x by itself, and two dense layers follow that see u.
        """
        if TRUNKS[self.trunk] is MLP:
            return AdditiveMLP(inputs, given, self.hidden, self.activation)
        return AdditiveMLP(inputs, given, [self.hidden[-1]] * 2, self.activation, self.reader(inputs))

    def conditional(self, inputs: int, given: int, dim: int) -> AdditiveGaussian:
        """Make (u, x) -> DiagonalNormal over (..., B, dim), with u of width ``given``."""
        return AdditiveGaussian(self.additive(inputs, given), dim, self.scale)

    def dense_gaussian(self, inputs: int, hidden: Sequence[int], dim: int) -> TrunkGaussian:
        """Make (..., inputs) -> DiagonalNormal over (..., dim): dense layers between latents.

        Raises:
            UserError: ``hidden`` is no list of widths.
        """
        if not isinstance(hidden, list | tuple) or not all(type(width) is int and width > 0 for width in hidden):
            raise UserError(f"the widths of the layers between latents must be a list such as [100,100], not {hidden}")
        return TrunkGaussian(MLP(inputs, hidden, self.activation), dim, self.scale)

    def bernoulli(self, latent_dim: int, pixels: int, pixel_mean: Tensor | None) -> BernoulliHead | PaintedBernoulli:
        """Make z, (..., latent_dim) -> Bernoulli pixels."""
        if self.trunk in PAINTERS:
            painter = PAINTERS[self.trunk](latent_dim, pixels, self.hidden, self.activation)
            return PaintedBernoulli(painter, pixels, pixel_mean)
        return BernoulliHead(self.reader(latent_dim), pixels, pixel_mean)
