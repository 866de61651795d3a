"""How a command ends when it does not succeed: one short message and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence

from vaebench.errors import RunFailed, UserError

__all__ = ["describe", "exit_code", "expected", "message", "report_failure"]

INTERRUPTED = 130


def expected(error: BaseException) -> bool:
    """Whether ``error`` is one that a message explains; any other is a defect and shows its traceback."""
    return isinstance(error, UserError | RunFailed) or _from_the_system(error)


def _from_the_system(error: BaseException) -> bool:
    # An OSError about no file (a broken socket, say) needs its traceback to be understood.
    return isinstance(error, OSError) and error.filename is not None


def describe(error: BaseException) -> str:
    """Return the message of an expected error."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}; choose another place with output_dir=... or data_dir=..."
    return str(error)


def message(error: Exception) -> str:
    """Return the one line that says why one of several jobs failed."""
    return describe(error) if expected(error) else f"{type(error).__name__}: {error}"


def report_failure(error: Exception, words: Sequence[str]) -> None:
    """Print why one of several jobs failed, and with a traceback where that is a defect; ``words`` name the job."""
    if not expected(error):
        traceback.print_exception(error)
    print(f"vaebench: failed: {' '.join(words)}: {message(error)}", file=sys.stderr, flush=True)


def exit_code(error: BaseException, *, with_traceback: bool) -> int:
    """Print what ends the command and return its exit code."""
    if isinstance(error, SystemExit):
        return _of_exit(error)
    if isinstance(error, KeyboardInterrupt):
        print("vaebench: interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # `vaebench list | head`: nobody reads any more, and Python must not complain about it at exit.
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
    print(f"vaebench: {error.code}", file=sys.stderr)
    return 1
