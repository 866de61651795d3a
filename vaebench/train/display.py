"""Progress of a training: a bar on a terminal, lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

from tqdm import tqdm

from vaebench.direction import Direction
from vaebench.progress import LINE_SECONDS, clock, shows_bar
from vaebench.records.text import with_sign

__all__ = ["Display"]


class Display:
    """Shows a bar with the remaining time on a terminal, and a line a minute and for the last epoch elsewhere.

    Args:
        progress: whether to show anything.
    """

    def __init__(self, progress: bool = True) -> None:
        self.progress = progress
        self.terminal = shows_bar()
        self._bar: tqdm | None = None
        self._bound = ""
        self._validation = ""
        self._epochs = self._epoch_steps = self._first = self._done = 0
        self._started = self._last_line = time.monotonic()

    @contextlib.contextmanager
    def training(self, epochs: int, epoch_steps: int, done: int) -> Iterator[None]:
        """Show the progress of a training of so many epochs and steps in an epoch, of which ``done`` steps are done."""
        self._epochs, self._epoch_steps, self._first, self._done = epochs, epoch_steps, done, done
        self._started = self._last_line = time.monotonic()
        if not (self.progress and self.terminal):
            yield
            return
        steps = epochs * epoch_steps
        with tqdm(total=steps, initial=done, unit="step", desc="train", dynamic_ncols=True) as self._bar:
            yield

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Move the bar to ``step``."""
        shown = {"train/bound": "bound", "train/bound_estimate": "estimate, no bound,"}
        self._done = step
        self._bound = "".join(f"{words} {values[key]:.2f}" for key, words in shown.items() if key in values)
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(filter(None, (self._bound, self._validation))), refresh=False)
            self._bar.update(step - self._bar.n)
        if step < self._epochs * self._epoch_steps:  # the last epoch ends with a validation
            self._print_line()

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        if self.progress:
            tqdm.write(line)
            sys.stdout.flush()

    def validated(self, epoch: int, epochs: int, value: float, best_epoch: int) -> None:
        """Show a validation log-likelihood, in nats: a lower bound, because its encoder keeps the contract."""
        self._done = epoch * self._epoch_steps
        self._validation = f"validation {with_sign(Direction.LOWER_BOUND, f'{value:.2f}')} (best: epoch {best_epoch})"
        self._print_line(last=epoch == epochs)

    def _print_line(self, *, last: bool = False) -> None:
        """Print a line with the speed and the time left, unless a bar shows them or the last line is of this minute."""
        now = time.monotonic()
        if not self.progress or self._bar is not None or not (last or now - self._last_line >= LINE_SECONDS):
            return
        self._last_line = now
        epoch = self._done / self._epoch_steps
        number = f"{epoch:.0f}" if epoch.is_integer() else f"{epoch:.1f}"
        words = [f"epoch {number}/{self._epochs}", self._bound, self._validation]
        speed = (self._done - self._first) / max(1e-9, now - self._started)  # steps a second, with the validations
        if speed > 0:
            left = (self._epochs * self._epoch_steps - self._done) / speed
            words += [f"{speed:.3g} steps/s", "" if last else f"{clock(left)} left"]
        print("  ".join(filter(None, words)), flush=True)
