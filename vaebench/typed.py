"""Convert plain containers, read from a file or typed by a user, to dataclasses whose types are exactly as declared.

`Checker` is the policy of stored records. `vaebench.config.check` has the policy of settings.
"""

import dataclasses
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

from vaebench.errors import UserError, did_you_mean

__all__ = ["KINDS", "LONGEST", "Checker", "Rule", "clipped", "printable", "shown"]

T = TypeVar("T")
LONGEST = 100
"""Characters that a message repeats of one key or value; no message repeats more than two of them."""
KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


@dataclass(frozen=True)
class Rule:
    """A condition on one value: ``words`` completes the sentence "k must be ..."."""

    words: str
    holds: Callable[[Any], object]
    """Returns a true or a false value."""


class Checker:
    """Converts values to declared types. A subclass decides about missing and unknown keys.

    Here unknown keys are ignored. A newer version may add a key, and an older version can still read the others: a
    version that changes the meaning of an existing key has to give it another name.

    Every method raises UserError, with the key, for a value of another type or out of range.
    """

    keeps_exact = True
    """Whether a value that has the declared type is returned as it is: thousands of files are read."""

    def fields(self, schema: type) -> list[dataclasses.Field[Any]]:
        """Return the fields of the dataclass ``schema`` that are read by name."""
        return _fields(schema)

    def missing(self, key: str) -> UserError:
        """Return the error for a missing key."""
        return UserError(f"{key} is missing")

    def further(self, schema: type, extra: dict[str, Any], known: Iterable[str], prefix: str) -> dict[str, Any]:
        """Return the arguments of ``schema`` that hold the keys in ``extra``, which are not its fields."""
        return {}

    def dictionary(self, value: Any, items: tuple[Any, ...], key: str) -> dict[Any, Any]:
        """Return a dict with checked keys and values, in the order of ``value``."""
        return {
            self.convert(k, items[0], f"a key of {key}"): self.convert(v, items[1], f"{key}[{_name(k)}]")
            for k, v in mapping(value, key).items()
        }

    def text(self, value: str, key: str) -> str:
        """Return a string from a file; characters that would control a terminal are escaped."""
        return printable(value)

    def build(self, schema: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
        """Return the dataclass ``schema`` with the fields in ``values``; ``prefix`` precedes the keys in messages."""
        hints, fields = _hints(schema), self.fields(schema)
        known = {field.name: field for field in fields}
        extra = {key: value for key, value in values.items() if key not in known}
        further = self.further(schema, extra, known, prefix)
        for name, field in known.items():
            if name not in values and field.default is field.default_factory is dataclasses.MISSING:
                raise self.missing(prefix + name)
        given = [name for name in known if name in values]
        items: dict[str, Any] = {key: values[key] for key in given}
        items |= {key: self.convert(items[key], hints[key], prefix + key) for key in self._inexact(schema, items)}
        try:
            return schema(**items, **further)
        except ValueError as error:  # a dataclass may check its fields
            raise UserError(f"{prefix.removesuffix('.')}: {error}" if prefix else str(error)) from error

    def convert(self, value: Any, hint: Any, key: str) -> Any:
        """Return ``value`` converted to the type ``hint``: a type, Annotated[type, Rule], a Literal, X | None, ..."""
        return value if self.keeps_exact and _exact(hint)(value) else _conversion(hint)(self, value, key)

    def _typed_dict(self, schema: Any, values: dict[str, Any], prefix: str) -> dict[str, Any]:
        """Return ``values`` with the keys of ``schema`` checked, and the others as they are."""
        if missing := schema.__required_keys__ - values.keys():
            raise self.missing(prefix + min(missing))
        hints = _hints(schema)
        return values | {k: self.convert(values[k], hints[k], prefix + k) for k in self._inexact(schema, values)}

    def _inexact(self, schema: type, values: Mapping[str, Any]) -> list[str]:
        """Return the keys of ``schema`` whose values have to be converted."""
        exact = _exact_items(schema)
        return [k for k, v in values.items() if k in exact and not (self.keeps_exact and exact[k](v))]

    def _tuple(self, value: Any, items: tuple[Any, ...], key: str) -> tuple[Any, ...]:
        """Return a list as a tuple whose items have the types ``items``; ``(X, ...)`` accepts any length."""
        value = _list(value, key)
        kinds = (items[0],) * len(value) if items[-1] is Ellipsis else items
        if len(kinds) != len(value):
            raise UserError(f"{key} must be a list of {len(kinds)} values, got {shown(value)}")
        pairs = enumerate(zip(value, kinds, strict=True))
        return tuple(self.convert(item, kind, f"{key}[{i}]") for i, (item, kind) in pairs)


_Conversion = Callable[[Checker, Any, str], Any]


@functools.cache
def _fields(schema: type) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(schema) if field.init]


@functools.cache
def _conversion(hint: Any) -> _Conversion:
    """Return what converts a value to the type ``hint``; cached, because thousands of files have the same types."""
    if hint is Any:
        return lambda checker, value, key: value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return lambda checker, value, key: _ruled(arguments[1:], checker.convert(value, arguments[0], key), key)
    if origin in (Union, types.UnionType):
        inner = next(each for each in arguments if each is not type(None))
        return lambda checker, value, key: None if value is None else checker.convert(value, inner, key)
    if origin is Literal:
        return lambda checker, value, key: one_of(value, arguments, key)
    if origin is tuple:
        return lambda checker, value, key: checker._tuple(value, arguments, key)
    if origin is list:
        return lambda checker, value, key: [
            checker.convert(item, arguments[0], f"{key}[{i}]") for i, item in enumerate(_list(value, key))
        ]
    if origin is not None:  # dict or Mapping
        return lambda checker, value, key: checker.dictionary(value, arguments, key)
    if typing.is_typeddict(hint):
        return lambda checker, value, key: checker._typed_dict(hint, mapping(value, key), f"{key}." if key else "")
    if dataclasses.is_dataclass(hint):
        schema = typing.cast(type, hint)
        return lambda checker, value, key: checker.build(schema, mapping(value, key), f"{key}." if key else "")
    if issubclass(hint, enum.Enum):
        values = tuple(member.value for member in hint)
        return lambda checker, value, key: hint(one_of(value, values, key))
    if hint is str:
        return lambda checker, value, key: checker.text(scalar(value, str, key), key)
    return lambda checker, value, key: scalar(value, hint, key)


@functools.cache
def _exact(hint: Any) -> Callable[[Any], bool]:
    """Return whether a value is already of the type ``hint``: `Checker` would return it, or a copy, without an error.

    False for a value that it converts or refuses.
    """
    if hint is Any:
        return lambda value: True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        inner, tests = _exact(arguments[0]), [rule.holds for rule in arguments[1:]]
        return lambda value: inner(value) and all(test(value) for test in tests)
    if origin in (Union, types.UnionType):
        inner = _exact(next(each for each in arguments if each is not type(None)))
        return lambda value: value is None or inner(value)
    if origin is Literal:
        return lambda value: type(value) is str and value in arguments
    if origin is list:
        inner = _exact(arguments[0])
        return lambda value: type(value) is list and all(map(inner, value))
    if origin in (dict, Mapping):
        keys, items = map(_exact, arguments)
        return lambda value: type(value) is dict and all(map(keys, value)) and all(map(items, value.values()))
    if typing.is_typeddict(hint):
        required, known = hint.__required_keys__, _exact_items(hint)
        return lambda value: (
            type(value) is dict
            and required <= value.keys()
            and all(key not in known or known[key](item) for key, item in value.items())
        )
    if hint is str:
        return lambda value: type(value) is str and value.isprintable()
    if hint is float:
        return lambda value: type(value) is float and math.isfinite(value)
    if hint in (int, bool):
        return lambda value: type(value) is hint
    return lambda value: False


@functools.cache
def _exact_items(schema: type) -> dict[str, Callable[[Any], bool]]:
    """Return `_exact` of each key of a dataclass or TypedDict."""
    return {key: _exact(hint) for key, hint in _hints(schema).items()}


def _ruled(rules: Sequence[Rule], value: T, key: str) -> T:
    """Return ``value`` if every rule holds."""
    for rule in rules:
        require(rule, value, key)
    return value


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def require(rule: Rule, value: Any, key: str) -> None:
    """Raise UserError unless ``rule`` holds."""
    if not rule.holds(value):
        raise UserError(f"{key} must be {rule.words}, got {shown(value)}")


def one_of(value: Any, choices: tuple[Any, ...], key: str) -> Any:
    """Return ``value`` if it is one of ``choices``, which are strings or booleans."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        words = [choice if isinstance(choice, str) else shown(choice) for choice in choices]
        hint = did_you_mean(clipped(str(value)), words)
        raise UserError(f"{key} must be one of {', '.join(words)}, got {shown(value)}{hint}")
    return value


def scalar(value: Any, kind: type, key: str) -> Any:
    """Return ``value`` as ``kind``; an int is converted to float, nothing else changes type."""
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
    if type(value) is not kind:
        raise UserError(f"{key or 'the content'} must be {KINDS[kind]}, got {shown(value)}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{key} must be a finite number, got {shown(value)}")
    return value


def mapping(value: Any, key: str) -> dict[Any, Any]:
    """Return ``value`` if it is a dict."""
    if not isinstance(value, dict):
        raise UserError(f"{key or 'the content'} must be a map of keys to values, got {shown(value)}")
    return value


def _list(value: Any, key: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        example = f"{key} must be a list such as [300,300]" if key else "the content must be a list"
        raise UserError(f"{example}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """Return ``value`` as a user types it, at most `LONGEST` characters of it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return clipped(f"[{','.join(map(shown, value[:LONGEST]))}]")
    if isinstance(value, dict):
        return clipped(f"{{{', '.join(f'{shown(k)}: {shown(v)}' for k, v in list(value.items())[:LONGEST])}}}")
    if isinstance(value, str):
        return clipped(repr(value[: LONGEST + 1]))
    if isinstance(value, int) and value.bit_length() > 4 * LONGEST:
        return f"a number of {value.bit_length()} bits"  # Python refuses to print more than 4300 digits
    return clipped(str(value))


def clipped(text: str) -> str:
    """Return at most `LONGEST` characters of ``text``, with ``...`` if some are left out."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


# Controls of terminals (but for the end of a line), marks that reverse the direction of writing, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return ``text`` with characters that control a terminal or cannot be encoded as escapes such as ``\\x1b``."""
    if text.isprintable():  # no character of the pattern is
        return text
    # Python reads a byte of a path that is not UTF-8 as a surrogate from U+DC80 on.
    return _UNPRINTABLE.sub(
        lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}" if "\udc80" <= found[0] <= "\udcff" else ascii(found[0])[1:-1],
        text,
    )


def _name(key: Any) -> str:
    """Return a key of a map for a message, without control characters."""
    return clipped(key if isinstance(key, str) and key.isprintable() else shown(key))
