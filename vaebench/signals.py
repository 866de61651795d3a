"""The signals that stop work, and how work notes them."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

__all__ = ["Interruption", "note_for_next_job", "stopping_signals"]

# A worker gets a terminal's Ctrl-C twice: from the terminal, and from the process that started it.
_SAME_PRESS = 1.0  # seconds
_STDERR = 2
_STOPPING = b"\nstopping after the step or the images in progress; press Ctrl-C again to stop at once\n"


def stopping_signals() -> list[signal.Signals]:
    """Return the signals that stop work: SIGINT, SIGTERM, and SIGHUP, which a closed terminal sends.

    SIGHUP is left out if it is ignored, as after ``nohup``. Shells start background jobs with SIGINT ignored, but
    `kill -INT` must stop these too.
    """
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    further = [] if hangup is None or signal.getsignal(hangup) in (signal.SIG_IGN, None) else [hangup]
    return [signal.SIGINT, signal.SIGTERM, *further]


class Interruption:
    """Notes the stopping signals, so that work stops at the next safe point; a second signal stops it at once.

    The next safe point may be minutes away, so Ctrl-C at a terminal gets an answer; for workers, the sweep gives it.

    SIGUSR1 and SIGUSR2 count too if they have a handler: batch systems send one of them before they stop a job, and a
    launcher's handler would end the work at any point.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._noted_at = 0.0

    @property
    def exit_code(self) -> int:
        """The exit code of shells: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.signal or 0)

    @contextlib.contextmanager
    def watching(self) -> Iterator["Interruption"]:
        """Handle the signals within the block, and restore the old handlers after it.

        A signal that `note_for_next_job` has noted counts as one of the block.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may set handlers
            return
        users = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]  # not on Windows
        numbers = [*stopping_signals(), *(number for number in users if callable(signal.getsignal(number)))]
        kept = {number: signal.signal(number, self._note) for number in numbers}
        if self.signal is None and _NOTED.signal is not None:
            self.signal, self._noted_at = _NOTED.signal, _NOTED._noted_at
        try:
            yield self
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._noted_at = number, time.monotonic()
            if number == signal.SIGINT and not _WORKER.is_set() and os.isatty(_STDERR):
                with contextlib.suppress(OSError):
                    os.write(_STDERR, _STOPPING)  # the handler may have interrupted a print to sys.stderr
        elif time.monotonic() - self._noted_at > _SAME_PRESS:
            raise KeyboardInterrupt


_NOTED = Interruption()
"""What `note_for_next_job` has noted."""
_WORKER = threading.Event()
"""Set if this process is a worker."""


def note_for_next_job() -> None:
    """Let no stopping signal end this process, a worker that gets one job after another; note it for the next job.

    Without this, a signal to a whole process group (Ctrl-C, a closed terminal) ends the workers that have no job, and a
    pool that loses a worker kills the others before they have saved their state.
    """

    def note(number: int, frame: FrameType | None) -> None:
        if _NOTED.signal is None:
            _NOTED.signal, _NOTED._noted_at = number, time.monotonic()

    _WORKER.set()
    for number in stopping_signals():
        signal.signal(number, note)
