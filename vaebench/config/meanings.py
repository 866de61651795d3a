"""The meaning, type, range and default of every key: from the yaml files' comments and the annotations of `schema.py`.

The comment of a key in a yaml file is the only source of its meaning. A range in parentheses in the comment, such as
``(>= 1)``, completes the type where no annotation does. Imports neither torch nor hydra.
"""

import ast
import dataclasses
import inspect
import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

import yaml

from vaebench.config.catalog import config_dir, default_choices, described, yaml_file
from vaebench.config.schema import MOST, Choice, Config, EstimatorSettings, TrainerSettings
from vaebench.errors import UserError
from vaebench.typed import KINDS, shown

__all__ = ["COMMANDS", "Setting", "of_choice", "of_class", "of_command", "of_group", "type_words"]

COMMANDS = ("train", "evaluate")
"""The commands whose own keys, outside the groups, are in a yaml file."""

_RANGE = re.compile(r" ?\(((?:an? (?:integer|number|list|map|string)|[<>]=? |between |from -?\d)[^()]*)\)")
_CHOICES = re.compile(r"(?:^|: )([\w:]+(?: \| [\w:]+)+)(?=$|;)")
_ANY = "any value"
_NO_MEANING = ("defaults", "hydra", "_target_")
"""Entries of a yaml file that are no settings."""


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Setting(NamedTuple):
    """What a user has to know of one key."""

    key: str
    """In full, for example ``encoder.inner_k``."""
    meaning: str
    """The comment in the yaml file, without its range; "" if there is none."""
    values: str
    """The type and the range, for example ``an integer >= 1``."""
    defaults: dict[str, list[str]]
    """Default, as in the yaml file -> the choices with this default; none for a key outside the groups."""


class _Entry(NamedTuple):
    """One line of a yaml file."""

    text: str
    """The value, as written."""
    comment: str


def of_choice(
    group: str, choice: str, folders: Sequence[Path], declared: Mapping[str, Any] | None = None
) -> list[Setting]:
    """Return the settings of a choice, in the order of its yaml file. ``name`` is none: the choice fixes it.

    The meaning of a key without a comment is that of the file in the defaults list, or else of the group's default
    choice.

    Args:
        group: the group, for example ``encoder`` or ``hydra/launcher``.
        choice: its choice.
        folders: where to look for the yaml file.
        declared: key -> type of keys that `schema.py` does not declare.

    Raises:
        UserError: there is no such choice, or its file is not yaml.
    """
    if group == "experiment":
        return []
    prefix, default = group.replace("/", "."), default_choices().get(group)
    shared = _entries(group, default, [config_dir()]) if default and default != "null" else {}
    found = []
    for name, entry in _entries(group, choice, folders).items():
        if name != "name" or group.startswith("hydra/"):
            comment = entry.comment or (shared[name].comment if name in shared else "")
            found.append(_setting(f"{prefix}.{name}", entry._replace(comment=comment), declared or {}, [choice]))
    return found


def of_group(group: str, folders: Sequence[Path], declared: Mapping[str, Any] | None = None) -> list[Setting]:
    """Return the settings of all choices of a group, one for each key, meaning and range."""
    found: dict[tuple[str, str, str], Setting] = {}
    for listed in described(group, folders):
        for setting in of_choice(group, listed.choice, folders, declared):
            same = found.setdefault(setting[:3], setting._replace(defaults={}))
            for default in setting.defaults:
                same.defaults.setdefault(default, []).append(listed.choice)
    return sorted(found.values(), key=lambda setting: setting.key)  # stable: blocks of one key are together


def of_command(command: str) -> list[Setting]:
    """Return the keys of ``vaebench train`` or ``vaebench evaluate`` that are in no group."""
    entries = _of_file(config_dir() / f"{command}.yaml")[0]
    return [_setting(name, entry, {}, [command]) for name, entry in entries.items()]


def of_class(schema: type, shared: Mapping[str, Setting]) -> list[Setting]:
    """Return the settings of a command whose keys are the fields of a dataclass, with the texts below the fields.

    Args:
        schema: the dataclass.
        shared: last part of a key -> setting, for fields without a text, or with a text on None alone.
    """
    texts: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(base)).body[0]).body
        for node, after in itertools.pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                texts[ast.unparse(node.target)] = " ".join(str(after.value.value).split()).rstrip(".")
    found = []
    for field in dataclasses.fields(schema):
        text = texts.get(field.name, "None").replace("None", "null").replace("``", "`")
        same = shared.get(field.name) if text.startswith("null") else None
        meaning = "" if text.startswith("null") else text[0].lower() + text[1:]
        default = field.default if isinstance(field.default, str) else shown(field.default)
        hint = _hints(schema)[field.name]
        values = same.values if same and hint == hint_of(field.name) else type_words(hint)
        found.append(Setting(field.name, same.meaning if same else meaning, values, {default: []}))
    return found


def _setting(key: str, entry: _Entry, declared: Mapping[str, Any], choices: Sequence[str] = ()) -> Setting:
    meaning, hint = entry.comment, declared.get(key) or hint_of(key)
    kind = _kind(entry.text) if hint is None else type_words(hint)
    if match := _RANGE.search(meaning):
        meaning = meaning[: match.start()] + meaning[match.end() :]
        if hint is None:
            kind = match[1] if match[1][0] == "a" else f"{_base(entry.text)} {match[1]}"
    elif (match := _CHOICES.search(meaning)) and match.start() and _within(match[1], kind):
        kind, meaning = match[1], meaning[: match.start()] + meaning[match.end() :]
    if entry.text == "null" and "null" not in kind and kind != _ANY:
        kind += ", or null"
    return Setting(key, meaning.strip(), kind, {entry.text: list(choices)})


def _within(choices: str, kind: str) -> bool:
    """Whether a comment's list of values may stand for a type in words."""
    return " | " not in kind or set(choices.split(" | ")) <= set(kind.removesuffix(", or null").split(" | "))


# Types -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def hint_of(key: str) -> Any:
    """Return the annotation of a key in `schema.py`; None if no class declares it."""
    *path, name = key.split(".")
    schema: type = Config
    for group in path:
        hint = _hints(schema).get(group)
        if not isinstance(hint, type):
            return None
        schema = hint
    known = _hints(schema)
    if name in known and not (name == "arguments" and issubclass(schema, Choice)):
        return known[name]
    if path:
        return None
    # Keys of ``vaebench evaluate`` belong to the estimator and the trainer of a run.
    declared = (_hints(schema).get(name) for schema in (EstimatorSettings, TrainerSettings))
    return next((hint for hint in declared if hint is not None), None)


def type_words(hint: Any) -> str:
    """Return an annotation in words, for example ``an integer >= 1, or null``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _ranged(type_words(arguments[0]), [rule.words for rule in arguments[1:]])
    if origin in (Union, types.UnionType):
        words = type_words(next(each for each in arguments if each is not type(None)))
        return words if "null" in words else f"{words}, or null"
    if origin is Literal:
        return " | ".join(str(word).lower() if isinstance(word, bool) else word for word in arguments)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a list{count}: each {type_words(arguments[0])}"
    if origin is list:
        return f"a list: each {type_words(arguments[0])}"
    if origin is not None or dataclasses.is_dataclass(hint):
        return "a map"
    return "true | false" if hint is bool else KINDS.get(hint, _ANY)


def _ranged(kind: str, rules: Sequence[str]) -> str:
    """Add the words of rules to a type. The largest integer is the same for all keys, and is left out."""
    bounds = [words for words in rules if words.startswith((">", "<", "from ")) and words != f"<= {MOST}"]
    others = [words for words in rules if not words.startswith((">", "<", "from "))]
    return " ".join(filter(None, [others[0] if others else kind, " and ".join(bounds)]))


def _base(text: str) -> str:
    """Return the type of a default without its range."""
    return re.split(" (?=[<>]|from )", _kind(text))[0]


def _kind(text: str) -> str:
    """Return the type of the default of a setting that no class declares; a reference has the type of its key."""
    if match := re.fullmatch(r"\$\{([\w.]+)\}", text):
        hint = hint_of(match[1])
        return _ANY if hint is None else type_words(hint)
    if text.startswith(("[", "{")):
        return "a list" if text[0] == "[" else "a map"
    if text in ("true", "false"):
        return "true | false"
    if text == "null":
        return _ANY
    for kind in (int, float):
        try:
            kind(text)
        except ValueError:
            continue
        return KINDS[kind]
    return KINDS[str]


# Yaml files --------------------------------------------------------------------------------------------------


def _entries(group: str, choice: str, folders: Sequence[Path]) -> dict[str, _Entry]:
    """Return the settings of a choice by name, those of the files in its defaults list included."""
    own, parents, is_global = _of_file(yaml_file(group, choice, folders))
    if is_global:
        own = {name.removeprefix(f"{group}."): entry for name, entry in own.items() if name.startswith(f"{group}.")}
    found: dict[str, _Entry] = {}
    for parent in parents:
        found |= _entries(group, parent, folders)
    for name, entry in own.items():
        inherited = found[name].comment if name in found else ""
        found[name] = entry._replace(comment=entry.comment or inherited)
    return found


def _of_file(path: Path) -> tuple[dict[str, _Entry], list[str], bool]:
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1024)
def _parsed(path: Path, changed: int, size: int) -> tuple[dict[str, _Entry], list[str], bool]:
    """Return (settings, files in the defaults list, whether it sets values in all groups) of a yaml file."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=_LOADER)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not yaml: {str(error).splitlines()[0]}") from error
    if not isinstance(root, yaml.MappingNode):
        return {}, [], False
    lines = text.splitlines()
    defaults = next((value for name, value in root.value if name.value == "defaults"), None)
    items = defaults.value if isinstance(defaults, yaml.SequenceNode) else []
    parents = [item.value for item in items if isinstance(item, yaml.ScalarNode) and item.value != "_self_"]
    is_global = re.search(r"^# *@package +_global_", text, re.MULTILINE) is not None
    return dict(_leaves(root, lines, "")), parents, is_global


def _leaves(node: yaml.MappingNode, lines: Sequence[str], prefix: str) -> Iterator[tuple[str, _Entry]]:
    """Yield (key, entry) of each setting; a map in braces is one setting."""
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        if key in _NO_MEANING:
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _leaves(value, lines, f"{key}.")
        else:
            yield key, _Entry(_text(value, lines), _comment(value, lines))


def _text(value: yaml.Node, lines: Sequence[str]) -> str:
    if isinstance(value, yaml.ScalarNode):
        return value.value or "null"
    start, end = value.start_mark, value.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column]
    return " ".join(line.strip() for line in lines[start.line : end.line])


def _comment(value: yaml.Node, lines: Sequence[str]) -> str:
    """Return the comment after a value and its continuation: lines of comment alone, further to the right."""
    mark = value.end_mark
    after = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
    if not (match := re.match(r"\s+#\s*(.*)", after)):
        return ""
    words, column = [match[1].strip()], lines[mark.line].index("#", mark.column)
    for line in lines[mark.line + 1 :]:
        if not line.lstrip().startswith("#") or line.index("#") != column:
            break
        words.append(line.strip("# "))
    return " ".join(words)
