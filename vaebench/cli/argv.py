"""Replace ``sys.argv``, from which hydra takes its input and a run the command that it records."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["command_line"]


@contextmanager
def command_line(words: Sequence[str]) -> Iterator[None]:
    """Set ``sys.argv`` to ``words`` within the context."""
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before
