"""Plain containers -> the dataclasses of `schema.py`: every key, type and range is checked."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

from vaebench.config.schema import Choice, Rule
from vaebench.errors import UserError, did_you_mean

__all__ = ["build", "like_default"]

T = TypeVar("T")


def build(schema: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return ``schema`` filled from ``values``; ``prefix`` ("trainer.") completes the keys in messages.

    In an open group, keys that the schema does not have become ``arguments``.
    """
    hints = typing.get_type_hints(schema, include_extras=True)
    fields = [f for f in dataclasses.fields(schema) if f.name != "arguments"]  # pyright: ignore[reportArgumentType]
    known = {f.name for f in fields}
    extra = {key: value for key, value in values.items() if key not in known}
    if extra and not issubclass(schema, Choice):
        raise unknown_key(prefix, str(next(iter(extra))), known)
    for f in fields:
        if f.name not in values and f.default is dataclasses.MISSING:
            raise UserError(f"{prefix}{f.name} is missing: give it a value, {prefix}{f.name}=...")
    given = [f.name for f in fields if f.name in values]
    items: dict[str, Any] = {key: convert(values[key], hints[key], prefix + key) for key in given}
    if issubclass(schema, Choice):
        items["arguments"] = extra
    return schema(**items)


def unknown_key(prefix: str, key: str, known: typing.Iterable[str]) -> UserError:
    """Return the error for a key that nothing reads."""
    full = [prefix + word for word in sorted(known)]
    hint = did_you_mean(prefix + key, full)
    return UserError(f"unknown key {prefix}{key}{hint}; `vaebench train --cfg job` shows every key")


def convert(value: Any, hint: Any, key: str) -> Any:
    """Return ``value`` as ``hint`` asks for: a type, Annotated[type, Rule], a Literal, X | None, ..."""
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
        raise UserError(f"{key} must be {rule.words}, not {shown(value)}")


def one_of(value: Any, choices: tuple[Any, ...], key: str) -> Any:
    """Return ``value`` if it is one of ``choices``: words, true or false."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        words = [choice if isinstance(choice, str) else shown(choice) for choice in choices]
        raise UserError(f"{key} must be one of {', '.join(words)}, not {shown(value)}{did_you_mean(str(value), words)}")
    return value


def scalar(value: Any, kind: type, key: str) -> Any:
    """Return ``value`` as ``kind``; a whole number serves as a float, nothing else changes type."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{key} must be {KINDS[kind]}, not {shown(value)}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{key} must be a finite number, not {shown(value)}")
    return value


def mapping(value: Any, key: str) -> dict[Any, Any]:
    """Return ``value`` if it is a dict."""
    if not isinstance(value, dict):
        raise UserError(f"{key} must be a map of keys to values, not {shown(value)}")
    return value


def as_tuple(value: Any, items: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    """Return a list as a tuple of ``items`` types; ``(X, ...)`` takes any length."""
    if not isinstance(value, list | tuple):
        raise UserError(f"{key} must be a list such as [300,300], not {shown(value)}")
    kinds = (items[0],) * len(value) if items[-1] is Ellipsis else items
    if len(kinds) != len(value):
        raise UserError(f"{key} must be a list of {len(kinds)} values, not {shown(value)}")
    return tuple(convert(item, kind, f"{key}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))


def as_dict(value: Any, items: tuple[Any, ...], key: str) -> dict[Any, Any]:
    """Return a dict with checked keys and values, in the order of the keys."""
    pairs = mapping(value, key).items()
    checked = {convert(k, items[0], f"a key of {key}"): convert(v, items[1], f"{key}[{k}]") for k, v in pairs}
    return dict(sorted(checked.items()))


CONTAINERS: dict[Any, Callable[[Any, tuple[Any, ...], str], Any]] = {tuple: as_tuple, dict: as_dict}
# A family without its steps is a family, too: the flow without steps is the Gaussian encoder.
MAY_BE_ZERO = {"encoder.steps"}
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def like_default(value: Any, default: Any, key: str) -> Any:
    """Return a choice's own argument, checked against the default in its yaml: same type, same kind of sign.

    A number that is positive by default must stay positive (but for ``MAY_BE_ZERO``), one that is 0 by default must
    not be negative.
    Where the default is null or a container, the encoder (or estimator, ...) that reads it checks it.
    """
    if default is None or value is None or type(default) not in KINDS:
        return value
    checked = scalar(value, type(default), key)
    if type(default) in (int, float) and default >= 0:
        zero = default == 0 or key in MAY_BE_ZERO
        lowest = Rule("0 or more", lambda v: v >= 0) if zero else Rule("more than 0", lambda v: v > 0)
        require(lowest, checked, key)
    return checked


def shown(value: Any) -> str:
    """Return ``value`` as a user would type it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value) if isinstance(value, str) else str(value)
