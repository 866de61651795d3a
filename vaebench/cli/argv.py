"""Replace ``sys.argv``, from which hydra takes its input and a run the command that it records."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vaebench import plugins

__all__ = ["command_line", "lasting_flags"]

LASTING = ("--config-dir", "--config-name")
"""Flags of hydra on which the settings of a run depend."""


def lasting_flags() -> list[str]:
    """Return the flags of the present command that a recorded command needs too, so that it can be typed again."""
    return plugins.flags() + [word for word in sys.argv if word.partition("=")[0] in LASTING]


@contextmanager
def command_line(words: Sequence[str]) -> Iterator[None]:
    """Set ``sys.argv`` to ``words`` within the context."""
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before
