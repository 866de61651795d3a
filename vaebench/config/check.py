"""Convert plain containers to the dataclasses of `schema.py`, and check every key, type and declared range."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

from vaebench.config.schema import Choice, Rule
from vaebench.errors import UserError, did_you_mean

__all__ = ["build", "same_type"]

T = TypeVar("T")


def build(schema: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return the dataclass ``schema`` with the fields in ``values``.

    Args:
        schema: the class. In an open group, keys that are not its fields become ``arguments``.
        values: key -> value.
        prefix: precedes the keys in messages, for example "trainer.".

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    hints = typing.get_type_hints(schema, include_extras=True)
    fields = [f for f in dataclasses.fields(schema) if f.name != "arguments"]  # pyright: ignore[reportArgumentType]
    known = {f.name for f in fields}
    extra = {key: value for key, value in values.items() if key not in known}
    if extra and not issubclass(schema, Choice):
        raise unknown_key(prefix, str(next(iter(extra))), known)
    for f in fields:
        if f.name not in values and f.default is dataclasses.MISSING:
            raise UserError(f"{prefix}{f.name} is missing: set {prefix}{f.name}=...")
    given = [f.name for f in fields if f.name in values]
    items: dict[str, Any] = {key: convert(values[key], hints[key], prefix + key) for key in given}
    if issubclass(schema, Choice):
        items["arguments"] = extra
    return schema(**items)


def unknown_key(prefix: str, key: str, known: typing.Iterable[str]) -> UserError:
    """Return the error for a key that does not exist."""
    full = [prefix + word for word in sorted(known)]
    hint = did_you_mean(prefix + key, full)
    return UserError(f"unknown key {prefix}{key}{hint}; `vaebench train --cfg job` shows every key")


def convert(value: Any, hint: Any, key: str) -> Any:
    """Return ``value`` converted to the type ``hint``: a type, Annotated[type, Rule], a Literal, X | None, ..."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        converted = convert(value, typing.get_args(hint)[0], key)
        for rule in typing.get_args(hint)[1:]:
            require(rule, converted, key)
        return converted
    if origin in (Union, types.UnionType):
        inner = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return None if value is None else convert(value, inner, key)
    if origin is Literal:
        return one_of(value, typing.get_args(hint), key)
    if origin is not None:
        return CONTAINERS[origin](value, typing.get_args(hint), key)
    if dataclasses.is_dataclass(hint):
        return build(hint, mapping(value, key), key + ".")  # pyright: ignore[reportArgumentType]
    return scalar(value, hint, key)


def require(rule: Rule, value: Any, key: str) -> None:
    """Raise UserError unless ``rule`` holds."""
    if not rule.holds(value):
        raise UserError(f"{key} must be {rule.words}, got {shown(value)}")


def one_of(value: Any, choices: tuple[Any, ...], key: str) -> Any:
    """Return ``value`` if it is one of ``choices``, which are strings or booleans."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        words = [choice if isinstance(choice, str) else shown(choice) for choice in choices]
        raise UserError(f"{key} must be one of {', '.join(words)}, got {shown(value)}{did_you_mean(str(value), words)}")
    return value


def scalar(value: Any, kind: type, key: str) -> Any:
    """Return ``value`` as ``kind``; an int is converted to float, nothing else changes type."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{key} must be {KINDS[kind]}, got {shown(value)}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{key} must be a finite number, got {shown(value)}")
    return value


def mapping(value: Any, key: str) -> dict[Any, Any]:
    """Return ``value`` if it is a dict."""
    if not isinstance(value, dict):
        raise UserError(f"{key} must be a map of keys to values, got {shown(value)}")
    return value


def as_tuple(value: Any, items: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    """Return a list as a tuple whose items have the types ``items``; ``(X, ...)`` accepts any length."""
    if not isinstance(value, list | tuple):
        raise UserError(f"{key} must be a list such as [300,300], got {shown(value)}")
    kinds = (items[0],) * len(value) if items[-1] is Ellipsis else items
    if len(kinds) != len(value):
        raise UserError(f"{key} must be a list of {len(kinds)} values, got {shown(value)}")
    return tuple(convert(item, kind, f"{key}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))


def as_dict(value: Any, items: tuple[Any, ...], key: str) -> dict[Any, Any]:
    """Return a dict with checked keys and values, sorted by key."""
    pairs = mapping(value, key).items()
    checked = {convert(k, items[0], f"a key of {key}"): convert(v, items[1], f"{key}[{k}]") for k, v in pairs}
    return dict(sorted(checked.items()))


CONTAINERS: dict[Any, Callable[[Any, tuple[Any, ...], str], Any]] = {tuple: as_tuple, dict: as_dict}
KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


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
    return scalar(value, type(default), key) if type(default) in KINDS else value


def shown(value: Any) -> str:
    """Return ``value`` as a user types it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    return repr(value) if isinstance(value, str) else str(value)
