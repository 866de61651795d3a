"""The command line that hydra and a run's manifest read."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["command_line"]


@contextmanager
def command_line(words: Sequence[str]) -> Iterator[None]:
    """Make ``sys.argv`` read ``words``: hydra takes its input, and a run its recorded command, from there."""
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before
