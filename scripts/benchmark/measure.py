"""Time candidates alternately in several rounds, so that noise of the machine affects all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

__all__ = ["Timing", "seconds_of", "side_by_side"]


@dataclass(frozen=True)
class Timing:
    """The rates of each candidate, round by round."""

    rates: dict[str, list[float]]
    """Units of work per second, one number for each round."""

    def rate(self, name: str) -> float:
        """Return the median over rounds."""
        return median(self.rates[name])

    def ratio(self, name: str, base: str) -> float:
        """Return the median over rounds of rate(name) / rate(base), pair by pair."""
        return median(a / b for a, b in zip(self.rates[name], self.rates[base], strict=True))


def side_by_side(
    candidates: Mapping[str, Callable[[], float]], rounds: int, device: torch.device, warm_up: int = 1
) -> Timing:
    """Run each candidate once a round, one after another.

    Args:
        candidates: each does a piece of work and returns its amount, in units of the case.
        rounds: measured rounds.
        device: the clock is read after it has finished.
        warm_up: rounds before them, not measured.
    """
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warm_up + rounds):
        for name, work in candidates.items():
            amounts: list[float] = []
            seconds = seconds_of(lambda work=work, into=amounts: into.append(work()), device)
            if number >= warm_up:
                rates[name].append(amounts[0] / seconds)
    return Timing(rates)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that ``work`` takes; the clock is read after the device has finished."""
    _settle(device)
    started = time.perf_counter()
    work()
    _settle(device)
    return time.perf_counter() - started


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
