"""A model with finitely many states, on which the expectation of every bound is a finite sum.

z in {0, 1}, psi in {0, 1, 2}. The batch axis holds all outcomes of all draws. The package's own encoder receives
each outcome as its draw.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebench import bounds
from vaebench.encoders.base import Encoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.model import GenerativeModel
from vaebench.nets.heads import Conditional
from vaebench.objective import Objective, evidence

__all__ = [
    "CONDITIONAL",
    "ELBO",
    "EXACT_REVERSE",
    "LIKELIHOOD",
    "LOG_EVIDENCE",
    "MIXING",
    "PRIOR",
    "RENYI",
    "REVERSE",
    "SIVI",
    "TABLE",
    "TVO",
    "Enumeration",
    "Likelihood",
    "Reverse",
    "Row",
    "Scripted",
    "Table",
    "encoder_for",
    "expected_bound",
    "expected_shared",
    "model",
    "states_as_often_as_probable",
]

PRIOR = (0.3, 0.7)
LIKELIHOOD = (0.05, 0.4)
MIXING = (0.5, 0.3, 0.2)
CONDITIONAL = ((0.9, 0.1), (0.4, 0.6), (0.2, 0.8))
REVERSE = ((0.6, 0.25, 0.15), (0.3, 0.35, 0.35))
JOINT = [[MIXING[psi] * CONDITIONAL[psi][z] for psi in range(3)] for z in range(2)]
EXACT_REVERSE = tuple(tuple(entry / sum(row) for entry in row) for row in JOINT)
SIVI = (MIXING, MIXING)
"""tau = q(psi): the same row for both z."""

LOG_EVIDENCE = math.log(0.295)
ELBO = -2.3895286242


class Scripted(Distribution):
    """States 0, 1, ... with given probabilities, (..., S); each draw is the next one of a script."""

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)
    has_rsample = True

    def __init__(self, probabilities: Tensor, script: list[Tensor]) -> None:
        self.probabilities, self.script = probabilities, script
        super().__init__(probabilities.shape[:-1], torch.Size([1]), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        draw = self.script.pop(0)
        assert draw.shape == (*sample_shape, *self.batch_shape, 1)
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape[:-1], self.probabilities.shape[:-1])
        table = self.probabilities.expand(*shape, -1)
        return table.gather(-1, value.long().expand(*shape, 1)).squeeze(-1).log()


class Row(nn.Module):
    """x -> a fixed distribution over states, the same for each image."""

    def __init__(self, probabilities: Sequence[float], script: list[Tensor]) -> None:
        super().__init__()
        self.register_buffer("probabilities", torch.tensor(probabilities))
        self.probabilities: Tensor
        self.script = script

    def forward(self, x: Tensor) -> Scripted:
        return Scripted(self.probabilities.expand(len(x), -1), self.script)


class Table(Conditional):
    """u -> the distribution in row u of a table."""

    def __init__(self, rows: Sequence[Sequence[float]], script: list[Tensor]) -> None:
        super().__init__()
        self.register_buffer("rows", torch.tensor(rows))
        self.rows: Tensor
        self.script = script

    def forward(self, u: Tensor, conditioned: Any) -> Scripted:
        del conditioned
        return Scripted(self.rows[u.long().squeeze(-1)], self.script)


class Prior(nn.Module):
    """p(z)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("probabilities", torch.tensor(PRIOR))
        self.probabilities: Tensor

    def forward(self) -> Scripted:
        return Scripted(self.probabilities, [])


class Likelihood(nn.Module):
    """z -> the probability that x = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ones", torch.tensor(LIKELIHOOD))
        self.ones: Tensor

    def forward(self, z: Tensor) -> Scripted:
        one = self.ones[z.long().squeeze(-1)]
        return Scripted(torch.stack([1 - one, one], -1), [])


def model() -> GenerativeModel:
    """Return p(z) p(x|z)."""
    return GenerativeModel(Prior(), Likelihood())


class Enumeration:
    """All outcomes of K draws of (psi_0, z, psi_1..L), with their probabilities, along the batch axis."""

    def __init__(self, k: int, inner_k: int, reverse: Sequence[Sequence[float]]) -> None:
        single = list(itertools.product(range(3), range(2), *[range(3)] * inner_k))
        outcomes = torch.tensor(list(itertools.product(single, repeat=k)))  # (B, K, 2 + L)
        psi, z, inner = outcomes[..., 0], outcomes[..., 1], outcomes[..., 2:]
        probability = torch.tensor(MIXING)[psi] * torch.tensor(CONDITIONAL)[psi, z]
        probability = probability * torch.tensor(reverse)[z.unsqueeze(-1), inner].prod(-1)
        self.probability = probability.prod(-1)
        self.script = [psi.T.unsqueeze(-1), z.T.unsqueeze(-1)]
        if inner_k:
            self.script.append(inner.permute(2, 1, 0).unsqueeze(-1))
        self.script = [draw.to(torch.get_default_dtype()) for draw in self.script]
        self.x = torch.ones(len(outcomes), 1)

    def expected(self, per_outcome: Tensor) -> float:
        """Average a value per outcome, (B,)."""
        return (self.probability * per_outcome).sum().item()


Reverse = Sequence[Sequence[float]]


def encoder_for(script: list[Tensor], reverse: Reverse) -> HierarchicalEncoder:
    """Return the package's encoder with scripted parts; ``SIVI`` means no reverse model."""
    tau = None if reverse is SIVI else Table(reverse, script)
    return HierarchicalEncoder(Row(MIXING, script), Table(CONDITIONAL, script), tau)


def expected_bound(
    bound: bounds.Bound,
    k: int,
    inner_k: int,
    reverse: Reverse,
    wrong: Callable[[HierarchicalEncoder], Encoder] | None = None,
) -> float:
    """Return the expectation of ``bound`` over all outcomes of K draws with L inner samples."""
    outcomes = Enumeration(k, inner_k, reverse)
    encoder = encoder_for(outcomes.script, reverse)
    value, _ = Objective(bound)(model(), wrong(encoder) if wrong else encoder, outcomes.x, k, inner_k=inner_k)
    assert not outcomes.script, "every scripted draw was used"
    return outcomes.expected(value)


TABLE = {
    "exact ELBO": (bounds.elbo, 1, 0, EXACT_REVERSE, ELBO),
    "exact ELBO, L=2": (bounds.elbo, 1, 2, EXACT_REVERSE, ELBO),
    "IWAE K=2": (bounds.iwae, 2, 0, EXACT_REVERSE, -1.9006176117),
    "IWAE K=5": (bounds.iwae, 5, 0, EXACT_REVERSE, -1.4381554928),
    "HVM": (bounds.elbo, 1, 0, REVERSE, -2.4533480415),
    "IWHVI L=1": (bounds.elbo, 1, 1, REVERSE, -2.4195783906),
    "IWHVI L=2": (bounds.elbo, 1, 2, REVERSE, -2.4090725662),
    "SIVI L=0": (bounds.elbo, 1, 0, SIVI, -2.5937512396),
    "SIVI L=1": (bounds.elbo, 1, 1, SIVI, -2.4912533501),
    "SIVI L=2": (bounds.elbo, 1, 2, SIVI, -2.4560683682),
    "DIWHVI (2,0)": (bounds.iwae, 2, 0, REVERSE, -1.9575946489),
    "DIWHVI (2,1)": (bounds.iwae, 2, 1, REVERSE, -1.9266042926),
    "CIWAE 1 is the ELBO": (lambda log_w: bounds.ciwae(log_w, 1), 2, 1, REVERSE, -2.4195783906),
    "MIWAE (2,1) is the ELBO": (lambda log_w: bounds.miwae(log_w, 2), 2, 1, REVERSE, -2.4195783906),
    "MIWAE (1,2) is IWAE": (lambda log_w: bounds.miwae(log_w, 1), 2, 1, REVERSE, -1.9266042926),
    "MIWAE (2,2) is IWAE K=2": (lambda log_w: bounds.miwae(log_w, 2), 4, 0, EXACT_REVERSE, -1.9006176117),
}
"""Name: bound, K, L, tau, and the expectation of the bound, nats."""


def expected_shared(bound: bounds.Bound, k: int, inner_k: int) -> float:
    """Return the expectation of ``bound`` for SIVI with psi_1..L shared by the K draws of z."""
    pairs = list(itertools.product(itertools.product(range(3), range(2)), repeat=k))
    inner = torch.tensor(list(itertools.product(range(3), repeat=inner_k)))  # (3^L, L)
    draws = torch.tensor(pairs).repeat_interleave(len(inner), 0)  # (B, K, 2)
    inner = inner.repeat(len(pairs), 1)
    psi, z = draws[..., 0], draws[..., 1]
    mixing = torch.tensor(MIXING)
    probability = (mixing[psi] * torch.tensor(CONDITIONAL)[psi, z]).prod(-1) * mixing[inner].prod(-1)
    script = [psi.T.unsqueeze(-1), z.T.unsqueeze(-1), inner.T.unsqueeze(1).unsqueeze(-1)]
    script = [draw.to(probability.dtype) for draw in script]
    encoder = HierarchicalEncoder(Row(MIXING, script), Table(CONDITIONAL, script), None, share_psi=True)
    value, _ = Objective(bound)(model(), encoder, torch.ones(len(draws), 1), k, inner_k=inner_k)
    return (probability * value).sum().item()


def states_as_often_as_probable() -> Tensor:
    """Return exact log weights, (100, 1), of 100 draws with exactly 100 q(z|x) draws of each z."""
    # q(z = 1) = .39
    z = torch.tensor([0.0] * 61 + [1.0] * 39).view(100, 1, 1)
    psi = torch.zeros(100, 1, 1)
    encoder = encoder_for([psi, z], EXACT_REVERSE)
    return evidence(model(), encoder, torch.ones(1, 1), 100).log_weights()


RENYI = {-1.0: -0.8012448201, 0.0: -1.2207799226, 0.5: -1.7061161329, 2.0: -3.2327740339, 1.0: ELBO}
"""Renyi bounds by alpha, nats."""

TVO = {False: -1.4679479152, True: -0.9962955298}
"""TVO with four equal partitions, nats: False is the left Riemann sum, True the right one."""
