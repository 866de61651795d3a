"""Errors for the user: each has one message that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable

__all__ = ["Busy", "GivenUp", "Interrupted", "RunFailed", "TakenOver", "UserError", "did_you_mean"]


class UserError(Exception):
    """The user has to change something: a wrong key, file or folder, a full disk. Exit code 2."""


class Busy(UserError):
    """Another process is working on the same run or search."""


class TakenOver(Busy):
    """Another process has started to train in the folder of this run; this process changes nothing further there."""


class RunFailed(Exception):
    """The request was valid but the work failed, for example with a non-finite loss. Exit code 1."""


class Interrupted(Exception):
    """A signal stopped the work; the state is saved."""


class GivenUp(Exception):
    """The caller's callback stopped a training; the state is saved."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'gaussian'?)"`` for the closest of ``choices``, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
