"""HTML and SVG made of escaped text: whatever is not `Markup` already is text."""

from collections.abc import Iterable
from html import escape

__all__ = ["Markup", "element", "joined"]

_EMPTY = {"br", "circle", "hr", "img", "input", "line", "meta", "path", "rect"}


class Markup(str):
    """A string that is HTML."""

    __slots__ = ()


Child = str | Iterable[str] | None


def joined(children: "Iterable[Child]") -> Markup:
    """Return text, markup and nested lists of them as one markup; None is nothing."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escape(child))
        elif child is not None:
            parts.append(joined(child))
    return Markup("".join(parts))


def element(tag: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Return ``<tag ...>children</tag>``.

    A trailing underscore of an attribute's name is dropped and others become hyphens (``class_``, ``aria_label``);
    True stands for an attribute without a value, None and False for none at all.
    """
    words = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.removesuffix("_").replace("_", "-")
        attribute = {"viewbox": "viewBox"}.get(attribute, attribute)
        words.append(attribute if value is True else f'{attribute}="{escape(_text(value))}"')
    if tag in _EMPTY and not children:
        return Markup(f"<{' '.join(words)}/>")
    return Markup(f"<{' '.join(words)}>{joined(children)}</{tag}>")


def _text(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
