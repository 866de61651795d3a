"""The networks of one run: every family asks here for its parts, so that all use the same architecture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from vaebench.nets.heads import AdditiveGaussian, BernoulliHead, TrunkGaussian
from vaebench.nets.trunks import MLP, AdditiveMLP, Trunk

__all__ = ["TRUNKS", "Networks"]

TRUNKS: dict[str, Callable[[int, Sequence[int], str], Trunk]] = {"mlp": MLP, "iwae": MLP}


@dataclass(frozen=True)
class Networks:
    """An architecture by name, from which encoders and decoders are made.

    Args:
        trunk: a key of ``TRUNKS``.
        hidden: widths of the hidden layers.
        activation: a key of ``ACTIVATIONS``.
    """

    trunk: str
    hidden: Sequence[int]
    activation: str

    @property
    def scale(self) -> str:
        """How standard deviations are made positive: exp in the IWAE paper's network, softplus in IWHVI's."""
        return "exp" if self.trunk == "iwae" else "softplus"

    def gaussian(self, inputs: int, dim: int) -> TrunkGaussian:
        """Make x, (B, inputs) -> DiagonalNormal over (B, dim)."""
        return TrunkGaussian(TRUNKS[self.trunk](inputs, self.hidden, self.activation), dim, self.scale)

    def conditional(self, inputs: int, given: int, dim: int) -> AdditiveGaussian:
        """Make (u, x) -> DiagonalNormal over (..., B, dim), with u of width ``given``."""
        return AdditiveGaussian(AdditiveMLP(inputs, given, self.hidden, self.activation), dim, self.scale)

    def bernoulli(self, latent_dim: int, pixels: int, pixel_mean: Tensor | None) -> BernoulliHead:
        """Make z, (..., latent_dim) -> Bernoulli pixels."""
        trunk = TRUNKS[self.trunk](latent_dim, self.hidden, self.activation)
        return BernoulliHead(trunk, pixels, pixel_mean)
