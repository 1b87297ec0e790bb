"""HTML and SVG from nested calls, where text is escaped unless it is markup already."""

import html
import re
from typing import Any

VOID = frozenset({"meta", "br", "img", "col"})
# What HTML has no character for, or UTF-8 no bytes: control characters but tab and line breaks, and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """A string that is HTML already and is inserted as it is."""

    __slots__ = ()


def escape(text: Any) -> Markup:
    """`text` as HTML that shows it; what no page can hold is shown as U+FFFD. Markup stays as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", str(text)), quote=True))


def join(*parts: Any) -> Markup:
    """The parts one after the other, each escaped unless it is markup; None is left out."""
    return Markup("".join(escape(part) for part in parts if part is not None))


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """One element. Attributes: `class_` is `class`, `aria_label` is `aria-label`; those that are None are left out."""
    opening = "".join(f' {_name(name)}="{_value(value)}"' for name, value in attributes.items() if value is not None)
    if tag in VOID:
        return Markup(f"<{tag}{opening}>")
    return Markup(f"<{tag}{opening}>{join(*children)}</{tag}>")


def _name(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else escape(value)
