"""Progress of a training: a bar on a terminal, lines elsewhere."""

import contextlib
import sys
from collections.abc import Iterator, Mapping

from tqdm import tqdm

from vaebench.direction import Direction
from vaebench.records.text import with_sign

__all__ = ["Display"]

LINES = 20
"""Approximate number of lines for a whole training in a log file."""


class Display:
    """Shows a bar with the remaining time on a terminal, and some lines elsewhere.

    Args:
        progress: whether to show anything.
    """

    def __init__(self, progress: bool = True) -> None:
        self.progress = progress
        self.terminal = sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._bound = ""
        self._validation = ""

    @contextlib.contextmanager
    def training(self, steps: int, done: int) -> Iterator[None]:
        """Show a bar over ``steps``, of which ``done`` are done."""
        if not (self.progress and self.terminal):
            yield
            return
        with tqdm(total=steps, initial=done, unit="step", desc="train", dynamic_ncols=True) as self._bar:
            yield

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Move the bar to ``step``."""
        shown = {"train/bound": "bound", "train/bound_estimate": "estimate, no bound,"}
        self._bound = "".join(f"{words} {values[key]:.2f}" for key, words in shown.items() if key in values)
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(filter(None, (self._bound, self._validation))), refresh=False)
            self._bar.update(step - self._bar.n)

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        if self.progress:
            tqdm.write(line)
            sys.stdout.flush()

    def validated(self, epoch: int, epochs: int, value: float, best_epoch: int) -> None:
        """Show a validation log-likelihood, in nats: a lower bound, because its encoder keeps the contract."""
        self._validation = f"validation {with_sign(Direction.LOWER_BOUND, f'{value:.2f}')} (best: epoch {best_epoch})"
        every = max(1, epochs // LINES)
        if self.progress and self._bar is None and (epoch % every == 0 or epoch == epochs):
            print(f"epoch {epoch}/{epochs}  {self._bound}  {self._validation}", flush=True)
