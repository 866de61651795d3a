"""The errors meant for people: each carries one message that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable

__all__ = ["Busy", "GivenUp", "Interrupted", "RunFailed", "UserError", "did_you_mean"]


class UserError(Exception):
    """A person has to change something first: a wrong key, file or folder, a full disk. Exit code 2."""


class Busy(UserError):
    """Another process is at work on what was asked for."""


class RunFailed(Exception):
    """The request was sound but the work failed, as with a non-finite loss. Exit code 1."""


class Interrupted(Exception):
    """A signal stopped the work; everything up to that point is saved."""


class GivenUp(Exception):
    """The caller's callback ended a training early; everything up to that point is saved."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'gaussian'?)"`` for the closest of ``choices``, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
