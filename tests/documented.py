"""The commands of the documentation: of README.md, of the pages, and of every ``--help``."""

import re
import shlex
import string
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PAGES", "ROOT", "blocks", "commands", "examples_of_help"]

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / ".github").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> list[str]:
    """Return the fenced and the indented blocks of a page, in its order."""
    found = re.finditer(r"^```\w*\n(.*?)^```|(?:^ {4}[^\n]*\n)+", text, re.MULTILINE | re.DOTALL)
    return [match[1] if match[1] is not None else match[0] for match in found]


def commands(text: str) -> list[list[str]]:
    """Return the words after ``vaebench`` of every command in the blocks of a page.

    Comments are left out, lines that end in a backslash are joined, and ``$NAME`` is replaced by the page's value.
    """
    return [words for block in blocks(text) for words in _commands_of(block)]


def examples_of_help(text: str) -> list[list[str]]:
    """Return the words after ``vaebench`` of the examples at the end of a ``--help``."""
    return list(_commands_of(text.partition("examples:")[2]))


def _commands_of(block: str) -> Iterator[list[str]]:
    values: dict[str, str] = {}
    for line in re.sub(r" *\\\n *", " ", block).splitlines():
        line = line.strip().removeprefix("$ ")
        if found := re.fullmatch(r'(\w+)="(.*)"', line):
            values[found[1]] = string.Template(found[2]).safe_substitute(values)
        if re.match(r"vaebench (?!\d)", line):  # not the version, with which the self-test begins
            yield shlex.split(string.Template(line).safe_substitute(values), comments=True)[1:]
