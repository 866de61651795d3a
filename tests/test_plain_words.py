"""Messages use the field's standard words: no idiom, no inverted clause, no personified code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "vaebench"
UNPLAIN = re.compile(
    r"\b(go|goes|going|gone|went) on\b|makes no sense|\bso (many|few)\b|\bsays? so\b|\bto be had\b|without a word|"
    r"\bwhich run\?|\bstands? (for|in|over|here|there)\b|\bof (its|their) own\b|^what (is|are|a)\b|starts anew|, say\b"
)
"""Phrases that stood in messages, each with a standard word in its place now (resume, invalid, missing, restart)."""


def messages(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string of a module except docstrings, parts of f-strings included."""
    tree = ast.parse(text)
    documentation = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield node.lineno, node.value


def unplain(text: str) -> list[tuple[int, str]]:
    return [(line, message) for line, message in messages(text) if UNPLAIN.search(message)]


def test_no_message_has_an_unplain_phrase():
    found = {path.name: unplain(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_control_an_unplain_message_is_found():
    source = (
        'def f(path):\n    """It goes on."""\n    raise ValueError(f"{path}: the same command goes on from here")\n'
    )
    assert [line for line, _ in unplain(source)] == [3]
