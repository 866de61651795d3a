"""Index arithmetic of the splits; random numbers come from numpy's RandomState, whose streams are frozen."""

import numpy as np

__all__ = ["STREAMS", "shuffled_tail", "stratified", "stream"]

STREAMS = ("train", "validation", "test", "split")
"""What a protocol's seed draws; each has its own stream, so that no draw depends on another."""


def stream(seed: int, purpose: str) -> np.random.RandomState:
    """The random numbers that ``seed`` gives to one of ``STREAMS``."""
    return np.random.RandomState([STREAMS.index(purpose), seed])


def shuffled_tail(count: int, n_tail: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle 0..count-1 and cut off the last ``n_tail``: (head, tail)."""
    order = random.permutation(count)
    return order[: count - n_tail], order[count - n_tail :]


def stratified(labels: np.ndarray, shares: tuple[int, ...], random: np.random.RandomState) -> list[np.ndarray]:
    """Deal each class's members out at random, ``shares[i]`` of them to part i; every part is shuffled.

    Raises:
        ValueError: a class has another number of members than the shares add up to.
    """
    dealt: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) != sum(shares):
            raise ValueError(f"class {label} has {len(members)} members, not {sum(shares)}")
        for part, chosen in zip(dealt, np.split(members, np.cumsum(shares)[:-1]), strict=True):
            part.append(chosen)
    return [random.permutation(np.concatenate(part)) for part in dealt]
