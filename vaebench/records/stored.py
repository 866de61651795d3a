"""Read JSON that an earlier process, or a stranger, wrote: one exact checker, and one UserError for every fault."""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from vaebench.errors import UserError
from vaebench.files import regular
from vaebench.typed import Checker, clipped

__all__ = ["LARGEST", "Unreadable", "parse_json", "read_json", "read_whole"]

T = TypeVar("T")
LARGEST = 64 << 20
"""Bytes of the largest JSON file that is read."""
_DIGITS = 30  # of the longest integer: more than any record has, less than Python refuses to print
_CHECKER = Checker()


class Unreadable(Exception):
    """Content that is not as vaebench writes it; the message is the fault alone."""


def read_json(path: Path, schema: type[T], advice: str, *, limit: int = LARGEST) -> T:
    """Return the content of a JSON file as ``schema``.

    Unknown keys are ignored, because a newer version may have added them. NaN and Infinity, numbers beyond float64,
    keys that stand twice and text that is not UTF-8 are faults.

    Args:
        path: the file; not a link.
        schema: a dataclass, or a type such as ``list[Record]`` or ``dict[str, Any]``; see `vaebench.typed.Checker`.
        advice: the end of the message, for example "Delete it.".
        limit: the largest size in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file cannot be read, or its content is not of the type ``schema``. The message names the file and
            the fault, repeats at most 200 characters of the content, and ends in ``advice``.
    """
    try:
        return parse_json(read_whole(path, limit), schema)
    except Unreadable as fault:
        raise UserError(f"cannot read {path}: {fault}. {advice}") from fault


def parse_json(text: bytes, schema: type[T]) -> T:
    """Return JSON ``text`` as ``schema``, as `read_json` does. Unreadable for every fault."""
    try:
        digits = text.translate(_DIGITS_AS_ZERO)
        decoder = _EXACT if any(mark in digits for mark in _UNUSUAL) else _DECODER
        value = decoder.decode(text.decode("utf-8"))
        if rb"\ud" in text or rb"\uD" in text:  # half a surrogate pair cannot be printed
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return _CHECKER.convert(value, schema, "")
    except UnicodeError as error:
        raise Unreadable("it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise Unreadable(f"it is not JSON ({error})") from error
    except RecursionError as error:
        raise Unreadable("it is nested too deeply") from error
    except (ValueError, UserError) as error:
        raise Unreadable(str(error)) from error


def read_whole(path: Path, limit: int = LARGEST) -> bytes:
    """Return the bytes of the regular file ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        Unreadable: it is a link or not a regular file, has more than ``limit`` bytes, or cannot be read.
    """
    try:
        descriptor = regular(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            size = os.fstat(descriptor).st_size
            if size > limit:
                raise Unreadable(f"it has {size} bytes, more than {limit}")
            found = []
            while part := os.read(descriptor, size + 1):  # at most 2 GiB a call; one byte more shows the end
                found.append(part)
            return found[0] if len(found) == 1 else b"".join(found)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(str(error.strerror)) from error


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {clipped(repr(twice))} stands twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"it has an integer of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {clipped(text)} is too large")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"it has {text}, which is not a JSON number")


_DIGITS_AS_ZERO = bytes.maketrans(b"123456789E", b"000000000e")
_UNUSUAL = (b"0" * (_DIGITS + 1), b"e000", b"e+000")
"""An integer that may be too long, or a number that may be beyond float64: only such texts need `_EXACT`."""
_DECODER = json.JSONDecoder(object_pairs_hook=_without_repetitions, parse_constant=_constant)
_EXACT = json.JSONDecoder(
    object_pairs_hook=_without_repetitions, parse_constant=_constant, parse_int=_integer, parse_float=_number
)
