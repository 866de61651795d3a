"""A digest of the source that defines the classes of a model, so that edited code is noticed. Imports nothing new.

The rule: the files of the classes and of their base classes count, and all files that these import from the same
package; for a file outside packages, from the files beside it. The standard library and torch do not count: a record
holds the version of torch. Of a file its syntax tree without docstrings counts, so that comments, docstrings and layout
do not change the digest.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

__all__ = ["source_digest"]

_OTHERS = {*sys.stdlib_module_names, "torch"} - {"__main__"}


def source_digest(classes: Iterable[type], modules: Iterable[str] = (), files: Iterable[Path] = ()) -> str:
    """Return 16 hex digits of the source of ``classes``, of the loaded ``modules``, and of ``files``.

    A class without a source file, typed into an interpreter, counts by its name alone.
    """
    bases = {base for each in classes for base in each.__mro__}
    homes = {base.__module__ for base in bases} | set(modules)
    files = _with_imports({path for home in homes if (path := _file(home)) is not None} | set(files))
    names = {base.__qualname__ for base in bases if not _is_other(base.__module__) and _file(base.__module__) is None}
    parts = sorted({*(_digest(path, path.stat().st_mtime_ns) for path in files), *names})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _is_other(module: str) -> bool:
    return module.partition(".")[0] in _OTHERS


def _file(module: str) -> Path | None:
    """Return the file of a loaded module that is part of the rule, or None."""
    file = None if _is_other(module) else getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file and file.endswith(".py") and Path(file).is_file() else None


def _with_imports(files: set[Path]) -> set[Path]:
    """Return ``files`` and all files of their packages that they import, directly or not."""
    found: set[Path] = set()
    left = set(files)
    while left:
        path = left.pop()
        found.add(path)
        left |= set(_imported(path, path.stat().st_mtime_ns)) - found
    return found


@cache
def _tree(path: Path, changed: int) -> ast.Module:
    del changed
    return ast.parse(path.read_bytes())


@cache
def _digest(path: Path, changed: int) -> str:
    words: list[str] = []
    _write(_tree(path, changed), words)
    return hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).hexdigest()


def _write(node: object, words: list[str]) -> None:
    """Append a syntax tree to ``words``, without empty fields, which differ between versions of Python."""
    if isinstance(node, ast.AST):
        words.append(type(node).__name__)
        for name in node._fields:
            value = getattr(node, name, None)
            if value is not None and value != []:
                words.append(name)
                _write(value, words)
    elif isinstance(node, list):
        words.append("[")
        for each in node:
            if not _is_docstring(each):
                _write(each, words)
        words.append("]")
    else:
        words.append(repr(node))


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def _imported(path: Path, changed: int) -> tuple[Path, ...]:
    """Return the files of the same package that a file imports, at any depth of its code."""
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    package = path.relative_to(root).parts[:-1]
    found: list[Path] = []
    for node in ast.walk(_tree(path, changed)):
        if isinstance(node, ast.Import):
            found += [file for alias in node.names if (file := _file_of(root, package, alias.name))]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            # A name may be a module of a package, or a name in the file of the module.
            places = [(f"{module}.{alias.name}", module) for alias in node.names]
            found += [file for pair in places if (file := _file_of(root, package, *pair))]
    return tuple(found)


def _file_of(root: Path, package: Sequence[str], *names: str) -> Path | None:
    """Return the file of the first of ``names`` that is a module of the package below ``root``, or None."""
    for name in names:
        parts = name.split(".")
        place = root.joinpath(*parts)
        for file in (place.with_name(place.name + ".py"), place / "__init__.py"):
            inside = parts[0] == package[0] if package else not _is_other(name) and file.parent == root
            if inside and file.is_file():
                return file
    return None
