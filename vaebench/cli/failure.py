"""Turn an error into one short message and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence

from vaebench.errors import RunFailed, UserError
from vaebench.typed import clipped, printable

__all__ = ["describe", "exit_code", "expected", "message", "report_failure"]

INTERRUPTED = 130
_LONGEST = 1000  # characters of a message


def expected(error: BaseException) -> bool:
    """Whether the message of ``error`` explains it to a user; other errors are defects and show a traceback."""
    return isinstance(error, UserError | RunFailed) or _names_a_file(error)


def _names_a_file(error: BaseException) -> bool:
    # An OSError without a file name, for example of a socket, needs its traceback.
    return isinstance(error, OSError) and error.filename is not None


def describe(error: BaseException) -> str:
    """Return the message of an expected error; a terminal can show it, and it is of at most `_LONGEST` characters."""
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}; use another folder (output_dir=..., data_dir=...)"
    else:
        text = str(error)
    text = printable(text)
    # A message begins with the problem and ends with the advice.
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 3 :]}"


def message(error: Exception) -> str:
    """Return one line about the error of one of several jobs."""
    return describe(error) if expected(error) else printable(f"{type(error).__name__}: {error}")


def report_failure(error: Exception, words: Sequence[str]) -> None:
    """Print the error of one of several jobs, with a traceback if it is a defect; ``words`` name the job."""
    if not expected(error):
        traceback.print_exception(error)
    print(f"vaebench: failed: {clipped(printable(' '.join(words)))}: {message(error)}", file=sys.stderr, flush=True)


def exit_code(error: BaseException, *, with_traceback: bool) -> int:
    """Print the error that ends a command, and return the exit code."""
    if isinstance(error, SystemExit):
        return _of_exit(error)
    if isinstance(error, KeyboardInterrupt):
        print("vaebench: interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # For example `vaebench list | head`: the reader has gone, and Python must not report an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if with_traceback or not expected(error):
        traceback.print_exception(error)
    if expected(error):
        print(f"vaebench: {describe(error)}", file=sys.stderr)
    return 1 if isinstance(error, RunFailed) or not expected(error) else 2


def _of_exit(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(f"vaebench: {printable(str(error.code))}", file=sys.stderr)
    return 1
