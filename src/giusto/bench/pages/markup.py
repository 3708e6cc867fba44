"""The little HTML that a report needs. Plain text is escaped here and nowhere else.

A string that is markup already is a `Markup`; whatever else is put into an element is text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that needs no escaping."""

    __slots__ = ()


Content = str | Iterable[str]


def element(name: str, content: Content = "", **attributes: str) -> Markup:
    """An element around text, markup, or several of both; `class_` is the attribute `class`."""
    parts = [content] if isinstance(content, str) else content
    inner = "".join(p if isinstance(p, Markup) else escape(p) for p in parts)
    said = "".join(f' {k.rstrip("_")}="{escape(v)}"' for k, v in attributes.items())
    return Markup(f"<{name}{said}>{inner}</{name}>")


def note(text: str) -> Markup:
    """A remark that must not be overlooked."""
    return element("p", text, class_="note")


def table(headings: Sequence[str], rows: Iterable[Sequence[Content]]) -> Markup:
    """A table whose first column names the row; it scrolls where it is too large."""
    head = element("tr", [element("th", heading, scope="col") for heading in headings])
    body = [
        element("tr", [element("th", first, scope="row"), *(element("td", c) for c in others)])
        for first, *others in rows
    ]
    content = element("table", [element("thead", head), element("tbody", body)])
    return element("div", content, class_="scroll")


def folded(summary: str, content: Content, *, is_open: bool) -> Markup:
    """Content under a line that shows and hides it."""
    made = element("details", [element("summary", summary), *content])
    return Markup(made.replace("<details>", "<details open>", 1)) if is_open else made


def picture(image: str, alt: str, caption: str) -> Markup:
    """A picture inside the page; `image` is a PNG in base64."""
    source = f"data:image/png;base64,{image}"
    shown = Markup(f'<img src="{source}" alt="{escape(alt)}">')
    return element("figure", [shown, element("figcaption", caption)])
