"""The contract of a decoder, which makes the networks of a run: (inputs, hidden, activation) -> a trunk."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from vaebench.nets.dense import Trunk
from vaebench.runtime import forked_randomness
from vaebench.selftest.rows import CheckRow, distance, exact
from vaebench.testing.contract import CPU, Contract, no_problem, verify
from vaebench.testing.encoders import moved, reloaded

__all__ = ["check_decoder", "decoder_contract"]

INPUTS = 5
IMAGE = (3, 8, 8)
NUMBERS = 2
"""Of each pixel and channel, for the likelihood."""


def check_decoder(network: Callable[..., Trunk], /, hidden: Sequence[int] = (8, 6), activation: str = "tanh") -> None:
    """Print the checks of a decoder, and raise AssertionError with one line for each that fails.

    Args:
        network: what the entry point of the decoder names: (inputs, hidden, activation) -> the network. If it has an
            attribute ``decoder``, both are checked with images of 8x8 pixels in three channels.
        hidden: the widths of the layers.
        activation: a key of ``vaebench.nets.activations.ACTIVATIONS``.
    """
    verify(decoder_contract(network, hidden, activation))


def decoder_contract(
    network: Callable[..., Trunk], hidden: Sequence[int] = (8, 6), activation: str = "tanh"
) -> Contract:
    """Return the checks of a decoder; for the arguments see :func:`check_decoder`."""
    subject = _Subject(network, hidden, activation)
    return {check.__name__: partial(check, subject) for check in (shapes, gradients, storage)}


class _Part(NamedTuple):
    """A network of rows, with the widths of its inputs and outputs."""

    outputs_are: str
    inputs: int
    network: nn.Module
    outputs: int


@dataclass(frozen=True)
class _Subject:
    """What makes the networks."""

    network: Callable[..., Trunk]
    hidden: Sequence[int]
    activation: str

    def make(self, seed: int = 0) -> list[_Part]:
        """Return the networks with weights of ``seed``, away from their initial values."""
        painter = getattr(self.network, "decoder", None)
        with forked_randomness(CPU, seed):
            trunk = self.network(INPUTS if painter is None else IMAGE, self.hidden, self.activation)
            parts = [_Part("features", INPUTS if painter is None else math.prod(IMAGE), trunk, trunk.width)]
            if painter is not None:
                decoder = painter(INPUTS, IMAGE, NUMBERS, self.hidden, self.activation)
                parts.append(_Part("numbers of the pixels", INPUTS, decoder, NUMBERS * math.prod(IMAGE)))
            for part in parts:
                moved(part.network)
        return parts


@torch.no_grad()
def shapes(subject: _Subject) -> Iterator[CheckRow]:
    """Each network acts on the last axis, row by row."""
    for outputs_are, inputs, network, outputs in subject.make():
        value, problems = torch.randn(2, 7, inputs), []
        for part in (value, value[0], value[0, :1]):
            found, right = network(part), (*part.shape[:-1], outputs)
            problems += [f"{outputs_are} of {tuple(part.shape)} are {tuple(found.shape)}, not {right}"] * (
                found.shape != right
            )
        yield no_problem(f"{outputs_are} of (..., {inputs}) are (..., {outputs})", problems)
        error = distance(network(value)[0, 2:5], network(value[0, 2:5]))
        yield exact(f"{outputs_are} of a part of the rows - of all rows", 0, error)


def gradients(subject: _Subject) -> Iterator[CheckRow]:
    """The inputs and each parameter have a gradient."""
    for outputs_are, inputs, network, _ in subject.make():
        value = torch.randn(20, inputs, requires_grad=True)
        parts = {"the inputs": value} | dict(network.named_parameters())
        slopes = torch.autograd.grad(network(value).square().sum(), list(parts.values()), allow_unused=True)
        found = zip(parts, slopes, strict=True)
        lacking = [f"no gradient: {name}" for name, slope in found if slope is None or not bool((slope != 0).any())]
        yield no_problem(f"{outputs_are}: the inputs and {len(parts) - 1} parameters have gradients", lacking)


@torch.no_grad()
def storage(subject: _Subject) -> Iterator[CheckRow]:
    """A network that loads the weights of another one is the same function."""
    for one, other in zip(subject.make(), subject.make(seed=1), strict=True):
        value = torch.randn(4, one.inputs)
        reloaded(one.network, other.network)
        yield exact(f"{one.outputs_are} after save and load", 0, distance(one.network(value), other.network(value)))
