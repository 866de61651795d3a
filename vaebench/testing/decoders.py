"""The contract of a decoder, which makes the networks of a run: (inputs, hidden, activation) -> a trunk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from vaebench.nets.dense import Trunk
from vaebench.runtime import forked_randomness
from vaebench.selftest.rows import CheckRow, distance, exact
from vaebench.testing.contract import CPU, Contract, no_problem, verify
from vaebench.testing.encoders import moved, reloaded

__all__ = ["check_decoder", "decoder_contract"]

INPUTS, HIDDEN, ACTIVATION = 5, (8, 6), "tanh"


def check_decoder(network: Callable[..., Trunk], /) -> None:
    """Print the checks of a dense decoder, and raise AssertionError with one line for each that fails.

    Args:
        network: what the entry point of the decoder names: (inputs, hidden, activation) -> the network. Networks of
            images are not dense, and are not checked.
    """
    verify(decoder_contract(network))


def decoder_contract(network: Callable[..., Trunk]) -> Contract:
    """Return the checks of a dense decoder; for the argument see :func:`check_decoder`."""
    subject = _Subject(network)
    return {check.__name__: partial(check, subject) for check in (shapes, gradients, storage)}


@dataclass(frozen=True)
class _Subject:
    """What makes the network."""

    network: Callable[..., Trunk]

    def make(self, seed: int = 0) -> Trunk:
        """Return the network with weights of ``seed``, away from their initial values."""
        with forked_randomness(CPU, seed):
            network = self.network(INPUTS, HIDDEN, ACTIVATION)
            moved(network)
        return network


@torch.no_grad()
def shapes(subject: _Subject) -> Iterator[CheckRow]:
    """The network acts on the last axis, row by row."""
    network, value, problems = subject.make(), torch.randn(2, 7, INPUTS), []
    for part in (value, value[0], value[0, :1]):
        found = network(part)
        right = (*part.shape[:-1], network.width)
        problems += [f"features of {tuple(part.shape)} are {tuple(found.shape)}, not {right}"] * (found.shape != right)
    yield no_problem(f"features of (..., {INPUTS}) are (..., {network.width})", problems)
    error = distance(network(value)[0, 2:5], network(value[0, 2:5]))
    yield exact("features of a part of the rows - of all rows", 0, error)


def gradients(subject: _Subject) -> Iterator[CheckRow]:
    """The inputs and each parameter have a gradient."""
    network, value = subject.make(), torch.randn(20, INPUTS, requires_grad=True)
    parts = {"the inputs": value} | dict(network.named_parameters())
    slopes = torch.autograd.grad(network(value).square().sum(), list(parts.values()), allow_unused=True)
    found = zip(parts, slopes, strict=True)
    lacking = [f"no gradient: {name}" for name, slope in found if slope is None or not bool((slope != 0).any())]
    yield no_problem(f"the inputs and {len(parts) - 1} parameters have gradients", lacking)


@torch.no_grad()
def storage(subject: _Subject) -> Iterator[CheckRow]:
    """A network that loads the weights of another one is the same function."""
    network, other, value = subject.make(), subject.make(seed=1), torch.randn(4, INPUTS)
    reloaded(network, other)
    yield exact("features after save and load", 0, distance(network(value), other(value)))
