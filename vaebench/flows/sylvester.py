"""Sylvester flow."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebench.distributions import at_least_float32
from vaebench.errors import UserError, did_you_mean
from vaebench.flows.flow import Conditioned, Flow, FlowContext, Moved, increasing_root, small_linear

__all__ = ["SylvesterFlow"]

# Keeps the diagonals' product above -1 where tanh is rounded to +-1.
_DIAGONAL_LIMIT = 0.999


class Orthonormal(nn.Module):
    """Features -> Q, (B, D, M), the orthonormal basis of M free columns.

    The paper iterates towards orthogonality and stops at a tolerance; a QR decomposition is exact to rounding,
    and so is the density.
    """

    def __init__(self, place: FlowContext, rank: int) -> None:
        super().__init__()
        # Successive steps start with different coordinates.
        start = torch.eye(place.dim).roll(place.index * rank, 0)[:, :rank]
        self.head = small_linear(place.features, start.numel(), start.flatten())
        self.shape = start.shape

    def forward(self, features: Tensor) -> Tensor:
        columns = at_least_float32(self.head(features)).unflatten(-1, self.shape)
        return torch.linalg.qr(columns)[0]


class Reflections(nn.Module):
    """Features -> Q, (B, D, D), a product of reflections; they start in pairs that undo one another."""

    def __init__(self, place: FlowContext, count: int) -> None:
        super().__init__()
        start = torch.eye(place.dim)[torch.arange(count) // 2 % place.dim]
        self.head = small_linear(place.features, start.numel(), start.flatten())
        self.shape = start.shape

    def forward(self, features: Tensor) -> Tensor:
        normals = F.normalize(at_least_float32(self.head(features)).unflatten(-1, self.shape), dim=-1)
        basis = torch.eye(self.shape[1], dtype=normals.dtype, device=normals.device).expand(len(normals), -1, -1)
        for normal in normals.unbind(1):
            across = normal.unsqueeze(1)
            basis = basis - 2 * (basis * across).sum(-1, keepdim=True) * across
        return basis


class Order(nn.Module):
    """Q, (1, D, D): the coordinates in their order, and in reverse for every other step."""

    def __init__(self, place: FlowContext) -> None:
        super().__init__()
        basis = torch.eye(place.dim)
        self.register_buffer("basis", basis.flip(0) if place.index % 2 else basis, persistent=False)
        self.basis: Tensor

    def forward(self, features: Tensor) -> Tensor:
        del features
        return self.basis.unsqueeze(0)


class SylvesterFlow(Flow):
    """z' = z + Q R tanh(R~ Q^T z + b), with R and R~ upper triangular (M, M) and Q orthonormal (D, M), from x.

    By Sylvester's identity log|det J| = sum_i log(1 + r_ii r~_ii tanh'_i): one step is as much as M planar ones.
    The diagonals lie in (-1, 1), which makes every step invertible.

    Source: van den Berg, Hasenclever, Tomczak and Welling 2018, https://arxiv.org/abs/1803.05649

    Args:
        place: where the step stands.
        basis: maps features to Q.
        rank: M.
    """

    def __init__(self, place: FlowContext, basis: nn.Module, rank: int) -> None:
        super().__init__()
        self.basis, self.rank = basis, rank
        self.register_buffer("above", torch.triu_indices(rank, rank, 1), persistent=False)
        self.above: Tensor
        count = self.above.shape[1]
        self.sizes = [count, count, rank, rank, rank]
        # R about 0 is the identity; an R~ that is not lets it learn.
        start = torch.cat([torch.zeros(2 * count + rank), torch.ones(rank), torch.zeros(rank)])
        self.head = small_linear(place.features, len(start), start)

    @classmethod
    def build(cls, place: FlowContext, *, variant: str, rank: int, reflections: int) -> "SylvesterFlow":
        """Make one.

        Args:
            place: where the step stands.
            variant: orthogonal (M columns), householder (M = D) or triangular (M = D, Q not from x).
            rank: the orthogonal variant's M; D where that is smaller.
            reflections: the Householder variant's.

        Raises:
            UserError: no such variant.
        """
        rank = min(rank, place.dim)
        if variant == "orthogonal":
            return cls(place, Orthonormal(place, rank), rank)
        if variant == "householder":
            return cls(place, Reflections(place, reflections), place.dim)
        if variant == "triangular":
            return cls(place, Order(place), place.dim)
        names = ["orthogonal", "householder", "triangular"]
        raise UserError(
            f"encoder.variant must be one of {', '.join(names)}, not '{variant}'{did_you_mean(variant, names)}"
        )

    def condition(self, features: Tensor) -> Conditioned:
        """Return Q, R, R~ and b, and the products Q R and R~ Q^T that every draw meets."""
        parts = at_least_float32(self.head(features)).split(self.sizes, -1)
        right = self._triangular(parts[0], parts[2])
        left = self._triangular(parts[1], parts[3])
        basis = self.basis(features).expand(len(features), -1, -1)
        with torch.autocast(features.device.type, enabled=False):
            lift, reach = basis @ right, left @ basis.mT
        return basis, right, left, parts[4], lift, reach

    def forward(self, z: Tensor, conditioned: Conditioned) -> Moved:
        """Map (K, B, D) forward."""
        _, right, left, bias, lift, reach = conditioned
        bent = torch.tanh(_times(reach, z) + bias)
        moved = z + _times(lift, bent)
        diagonal = right.diagonal(dim1=-2, dim2=-1) * left.diagonal(dim1=-2, dim2=-1)
        return Moved(moved, torch.log1p(diagonal * (1 - bent.square())).sum(-1))

    def inverse(self, z: Tensor, conditioned: Conditioned) -> Tensor:
        """Solve for y = Q^T z from the last coordinate to the first: each is the root of a scalar equation."""
        basis, right, left, bias, lift, _ = conditioned
        target = _times(basis.mT, z)
        y, bent = torch.zeros_like(target), torch.zeros_like(target)
        for i in reversed(range(self.rank)):
            slope, steepness = right[:, i, i], left[:, i, i]
            # What the later coordinates, already known, contribute.
            inside = (left[:, i] * y).sum(-1) + bias[:, i]
            outside = target[..., i] - (right[:, i] * bent).sum(-1)

            def excess(
                v: Tensor,
                s: Tensor = slope,
                t: Tensor = steepness,
                c: Tensor = inside,
                d: Tensor = outside,
            ) -> Tensor:
                return v + s * torch.tanh(t * v + c) - d

            y[..., i] = increasing_root(excess, outside - slope.abs(), outside + slope.abs())
            bent[..., i] = torch.tanh(steepness * y[..., i] + inside)
        return z - _times(lift, bent)

    def solve_transposed(self, z: Tensor, moved: Tensor, conditioned: Conditioned, gradient: Tensor) -> Tensor:
        """Invert J^T = I + (R~ Q^T)^T H (Q R)^T, H = diag(tanh'), by Woodbury's formula: a triangular system."""
        del moved
        _, right, left, bias, lift, reach = conditioned
        steepness = 1 - torch.tanh(_times(reach, z) + bias).square()
        known = _times(lift.mT, gradient).unsqueeze(-1)
        with torch.autocast(z.device.type, enabled=False):
            inner = (left @ right).mT * steepness.unsqueeze(-2)
            system = inner + torch.eye(self.rank, dtype=inner.dtype, device=inner.device)
            solved = torch.linalg.solve_triangular(system, known, upper=False).squeeze(-1)
        return gradient - _times(reach.mT, steepness * solved)

    def _triangular(self, above: Tensor, diagonal: Tensor) -> Tensor:
        """Return (B, M, M) with ``above`` over a diagonal in (-1, 1)."""
        matrix = torch.diag_embed(_DIAGONAL_LIMIT * torch.tanh(diagonal))
        rows, columns = self.above
        matrix[:, rows, columns] = above
        return matrix


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return each image's matrix, (B, I, J), times its vectors, (..., B, J), in full precision."""
    with torch.autocast(vector.device.type, enabled=False):
        return torch.einsum("bij,...bj->...bi", matrix, vector)
