"""Convert plain containers to the dataclasses of `schema.py`, and check every key, type and declared range."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from vaebench.config.schema import MOST, Choice
from vaebench.errors import UserError, did_you_mean
from vaebench.typed import KINDS, Checker, clipped, printable, scalar, shown

__all__ = ["build", "convert", "same_type", "unknown_key"]

T = TypeVar("T")


class _SettingsChecker(Checker):
    """An unknown key is an error, except in an open group, where it becomes one of ``arguments``."""

    keeps_exact = False  # a dictionary is sorted

    def fields(self, schema: type) -> list[dataclasses.Field[Any]]:
        return [field for field in super().fields(schema) if field.name != "arguments"]

    def missing(self, key: str) -> UserError:
        return UserError(f"{key} is missing: set {key}=...")

    def further(self, schema: type, extra: dict[str, Any], known: Iterable[str], prefix: str) -> dict[str, Any]:
        if issubclass(schema, Choice):
            for key, value in extra.items():
                printable_text(key, f"a key of {prefix.removesuffix('.')}")
                printable_text(value, prefix + key)
            return {"arguments": extra}
        if extra:
            raise unknown_key(prefix, str(next(iter(extra))), known)
        return {}

    def convert(self, value: Any, hint: Any, key: str) -> Any:
        """Convert as `Checker` does; a word for "no value" that has another type leads to null.

        A group of settings that is checked already is returned as it is.
        """
        if type(value) is hint and dataclasses.is_dataclass(hint):
            return value
        try:
            return super().convert(value, hint, key)
        except UserError as error:
            if isinstance(value, str) and value.lower() in _NOTHING and type(None) in typing.get_args(hint):
                raise UserError(f"{error}: write {key}=null") from error
            raise

    def text(self, value: str, key: str) -> str:
        return printable_text(value, key)

    def dictionary(self, value: Any, items: tuple[Any, ...], key: str) -> dict[Any, Any]:
        return dict(sorted(super().dictionary(value, items, key).items()))


_NOTHING = ("none", "no", "off", "nil", "never")
_CHECKER = _SettingsChecker()


def build(schema: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return the dataclass ``schema`` with the fields in ``values``.

    Args:
        schema: the class. In an open group, keys that are not its fields become ``arguments``.
        values: key -> value.
        prefix: precedes the keys in messages, for example "trainer.".

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    return _CHECKER.build(schema, values, prefix)


def convert(value: Any, hint: Any, key: str) -> Any:
    """Return ``value`` converted to the type ``hint``: a type, Annotated[type, Rule], a Literal, X | None, ..."""
    return _CHECKER.convert(value, hint, key)


def printable_text(value: T, key: str) -> T:
    """Return ``value``. UserError if it is, or contains, a string that a terminal or a file cannot show."""
    if isinstance(value, str) and (printable(value) != value or "\n" in value):
        raise UserError(f"{key} must be UTF-8 text without control characters, got {shown(value)}")
    items = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        printable_text(item, key)
    return value


def unknown_key(prefix: str, key: str, known: typing.Iterable[str]) -> UserError:
    """Return the error for a key that does not exist."""
    from vaebench.config.usual_words import key_for  # only a mistake needs the table

    key = clipped(key)
    if usual := key_for(prefix + key):
        return UserError(f"unknown key {prefix}{key}: write {usual}")
    full = [prefix + word for word in sorted(known)]
    hint = did_you_mean(prefix + key, full)
    return UserError(f"unknown key {prefix}{key}{hint}; `vaebench train --cfg job` shows every key")


def same_type(value: Any, default: Any, key: str, *, optional: bool = False) -> Any:
    """Return ``value`` if it has the type of ``default``; an int is converted to float.

    A list must be a list, and its items have the type of the default's items. If the default is null or a map, any type
    is accepted: the class that uses the setting checks it.

    Args:
        value: as the user set it.
        default: from the yaml file.
        key: for the message.
        optional: accept null as well.

    Raises:
        UserError: the type differs.
    """
    if value is None and optional:
        return None
    if isinstance(default, list):
        if not isinstance(value, list):
            raise UserError(f"{key} must be a list such as {shown(default)}, got {shown(value)}")
        alike = len({type(item) for item in default}) == 1
        return [same_type(item, default[0], f"{key}[{i}]") for i, item in enumerate(value)] if alike else value
    if type(value) is int and abs(value) > MOST:
        raise UserError(f"{key} must be from {-MOST} to {MOST}, got {shown(value)}")
    return printable_text(scalar(value, type(default), key) if type(default) in KINDS else value, key)
