"""Sylvester flow."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebench.arguments import at_least, one_of
from vaebench.distributions import at_least_float32
from vaebench.flows.flow import Flow, FlowContext, StepParameters, Transformed, increasing_root, small_linear

__all__ = ["SylvesterFlow"]

# Keeps the product of the diagonals above -1 if tanh is rounded to +-1.
_DIAGONAL_LIMIT = 0.999


class Orthonormal(nn.Module):
    """Features -> Q, (B, D, M), the orthonormal basis of M free columns.

    The paper iterates to orthogonality within a tolerance. A QR decomposition is exact to rounding, and so is the
    density.
    """

    def __init__(self, context: FlowContext, rank: int) -> None:
        super().__init__()
        # Successive steps start from different coordinates.
        start = torch.eye(context.latent_dim).roll(context.index * rank, 0)[:, :rank]
        self.head = small_linear(context.features, start.numel(), start.flatten())
        self.shape = start.shape

    def forward(self, features: Tensor) -> Tensor:
        columns = at_least_float32(self.head(features)).unflatten(-1, self.shape)
        return torch.linalg.qr(columns)[0]


class Reflections(nn.Module):
    """Features -> Q, (B, D, D), a product of reflections, which cancel in pairs at first."""

    def __init__(self, context: FlowContext, count: int) -> None:
        super().__init__()
        start = torch.eye(context.latent_dim)[torch.arange(count) // 2 % context.latent_dim]
        self.head = small_linear(context.features, start.numel(), start.flatten())
        self.shape = start.shape

    def forward(self, features: Tensor) -> Tensor:
        normals = F.normalize(at_least_float32(self.head(features)).unflatten(-1, self.shape), dim=-1)
        basis = torch.eye(self.shape[1], dtype=normals.dtype, device=normals.device).expand(len(normals), -1, -1)
        for normal in normals.unbind(1):
            across = normal.unsqueeze(1)
            basis = basis - 2 * (basis * across).sum(-1, keepdim=True) * across
        return basis


class Order(nn.Module):
    """Q, (1, D, D): the coordinates in order, or in reverse order for every other step."""

    def __init__(self, context: FlowContext) -> None:
        super().__init__()
        basis = torch.eye(context.latent_dim)
        self.register_buffer("basis", basis.flip(0) if context.index % 2 else basis, persistent=False)
        self.basis: Tensor

    def forward(self, features: Tensor) -> Tensor:
        del features
        return self.basis.unsqueeze(0)


class SylvesterFlow(Flow):
    """z' = z + Q R tanh(R~ Q^T z + b), with R and R~ upper triangular (M, M) and Q orthonormal (D, M), from x.

    By Sylvester's identity log|det J| = sum_i log(1 + r_ii r~_ii tanh'_i): one step is as flexible as M planar steps.
    The diagonals lie in (-1, 1), which makes every step invertible.

    Source: van den Berg, Hasenclever, Tomczak and Welling 2018, https://arxiv.org/abs/1803.05649

    Args:
        context: the widths of the step.
        basis: maps features to Q.
        rank: M.
    """

    def __init__(self, context: FlowContext, basis: nn.Module, rank: int) -> None:
        super().__init__()
        self.basis, self.rank = basis, rank
        self.register_buffer("above", torch.triu_indices(rank, rank, 1), persistent=False)
        self.above: Tensor
        count = self.above.shape[1]
        self.sizes = [count, count, rank, rank, rank]
        # R about 0 is the identity; R~ with diagonal 1 gives R a gradient.
        start = torch.cat([torch.zeros(2 * count + rank), torch.ones(rank), torch.zeros(rank)])
        self.head = small_linear(context.features, len(start), start)

    @classmethod
    def build(cls, context: FlowContext, *, variant: str, rank: int, reflections: int) -> "SylvesterFlow":
        """Build the step.

        Args:
            context: the widths of the step.
            variant: orthogonal (M columns), householder (M = D) or triangular (M = D, Q does not depend on x).
            rank: M of the orthogonal variant; D if D is smaller.
            reflections: number of reflections of the Householder variant.
        """
        one_of(["orthogonal", "householder", "triangular"], variant=variant)
        at_least(1, rank=rank, reflections=reflections)
        rank = min(rank, context.latent_dim)
        if variant == "orthogonal":
            return cls(context, Orthonormal(context, rank), rank)
        if variant == "householder":
            return cls(context, Reflections(context, reflections), context.latent_dim)
        return cls(context, Order(context), context.latent_dim)

    def condition(self, features: Tensor) -> StepParameters:
        """Return Q, R, R~ and b, and the products Q R and R~ Q^T."""
        parts = at_least_float32(self.head(features)).split(self.sizes, -1)
        right = self._triangular(parts[0], parts[2])
        left = self._triangular(parts[1], parts[3])
        basis = self.basis(features).expand(len(features), -1, -1)
        with torch.autocast(features.device.type, enabled=False):
            lift, reach = basis @ right, left @ basis.mT
        return basis, right, left, parts[4], lift, reach

    def forward(self, z: Tensor, conditioned: StepParameters) -> Transformed:
        _, right, left, bias, lift, reach = conditioned
        bent = torch.tanh(_times(reach, z) + bias)
        moved = z + _times(lift, bent)
        diagonal = right.diagonal(dim1=-2, dim2=-1) * left.diagonal(dim1=-2, dim2=-1)
        return Transformed(moved, torch.log1p(diagonal * (1 - bent.square())).sum(-1))

    def inverse(self, z: Tensor, conditioned: StepParameters) -> Tensor:
        """Solve for y = Q^T z from the last coordinate to the first: each is the root of a scalar equation."""
        basis, right, left, bias, lift, _ = conditioned
        target = _times(basis.mT, z)
        y, bent = torch.zeros_like(target), torch.zeros_like(target)
        for i in reversed(range(self.rank)):
            slope, steepness = right[:, i, i], left[:, i, i]
            # The contribution of the later coordinates, which are known.
            inside = (left[:, i] * y).sum(-1) + bias[:, i]
            outside = target[..., i] - (right[:, i] * bent).sum(-1)

            def excess(
                v: Tensor, s: Tensor = slope, t: Tensor = steepness, c: Tensor = inside, d: Tensor = outside
            ) -> Tensor:
                return v + s * torch.tanh(t * v + c) - d

            y[..., i] = increasing_root(excess, outside - slope.abs(), outside + slope.abs())
            bent[..., i] = torch.tanh(steepness * y[..., i] + inside)
        return z - _times(lift, bent)

    def solve_transposed(self, z: Tensor, transformed: Tensor, conditioned: StepParameters, gradient: Tensor) -> Tensor:
        """Invert J^T = I + (R~ Q^T)^T H (Q R)^T, H = diag(tanh'), by Woodbury's formula: a triangular system."""
        del transformed
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
