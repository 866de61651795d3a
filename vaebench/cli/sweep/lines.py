"""A text stream for the output of one job among several that share a stream."""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TextIO, cast

__all__ = ["prefixed_output"]


class _PrefixedLines(io.TextIOBase):
    """Writes whole lines to ``stream``, each after ``prefix``, so that lines of several processes do not mix.

    It is not a terminal, so a progress bar becomes lines.
    """

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix, self._begun = stream, prefix, ""

    def write(self, text: str, /) -> int:
        *lines, self._begun = f"{self._begun}{text}".split("\n")
        for line in filter(None, lines):
            # Each line by itself: the system writes at most 4 KiB to a pipe in one piece.
            self._stream.write(f"{self._prefix}{line}\n")
            self._stream.flush()
        return len(text)

    def end_line(self) -> None:
        if self._begun:
            self.write("\n")


@contextlib.contextmanager
def prefixed_output(prefix: str) -> Iterator[None]:
    """Put ``prefix`` before each line that the block writes to stdout or stderr; empty lines are left out."""
    out, err = (_PrefixedLines(stream, prefix) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(cast(TextIO, out)), contextlib.redirect_stderr(cast(TextIO, err)):
        try:
            yield
        finally:
            out.end_line()
            err.end_line()
