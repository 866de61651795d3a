"""Progress of long work: a bar on a terminal and in a notebook, a line a minute in a log file."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

__all__ = ["LINE_SECONDS", "ItemProgress", "clock", "shows_bar"]

LINE_SECONDS = 60.0
"""Time between two lines in a log file."""


def shows_bar() -> bool:
    """Whether a bar can be seen: on a terminal, and in a notebook."""
    return sys.stderr.isatty() or _in_a_notebook()


def _in_a_notebook() -> bool:
    """Whether this process is the kernel of a notebook.

    An imported ipykernel is not enough: libraries import it in processes that write to a log file.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def clock(seconds: float | None) -> str:
    """Return seconds as ``1:02:03``; "" for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class ItemProgress:
    """Shows how many items are finished, and the time left. Work of less than a minute adds no line to a log file.

    Args:
        title: the work, for example ``test iwae``; None shows nothing.
        total: the number of items.
        unit: the noun of one item.
        leave: whether the bar stays when the work is finished.
    """

    def __init__(self, title: str | None, total: int, unit: str, *, leave: bool = False) -> None:
        self._title, self._total, self._unit, self._done = title, total, unit, 0
        bar = title is not None and shows_bar()
        self._bar = tqdm(total=total, unit=unit, desc=title, leave=leave, dynamic_ncols=True) if bar else None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "ItemProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int) -> None:
        """Tell that ``count`` more items are finished."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if self._title is None or now - self._last_line < LINE_SECONDS or self._done >= self._total:
            return
        self._last_line = now
        rate = self._done / (now - self._started)
        left = "" if rate == 0 else f"  {clock((self._total - self._done) / rate)} left"
        of = f"{self._done:,} of {self._total:,} {self._unit}s"
        print(f"{self._title}: {of}  {rate:.3g} {self._unit}s/s{left}", flush=True)
