"""HTML that somebody else wrote, made anew from what is harmless: it came out of a notebook, maybe with rows' texts."""

import html
import re
from html.parser import HTMLParser

from markupsafe import Markup

_TAGS = frozenset(
    (
        *(
            "a",
            "abbr",
            "b",
            "blockquote",
            "br",
            "caption",
            "code",
            "dd",
            "del",
            "div",
            "dl",
            "dt",
            "em",
            "hr",
            "i",
            "li",
        ),
        *("h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre", "small", "span", "strong", "sub", "sup", "u", "ul"),
        *("table", "tbody", "td", "tfoot", "th", "thead", "tr"),
    )
)
_EMPTY = frozenset(("br", "hr"))
_SILENT = frozenset(  # go with what is in them
    (
        *("script", "style", "svg", "math", "iframe", "object", "template", "noscript"),
        *("textarea", "title", "select", "button"),
    )
)
_LINK = re.compile(r"(https?://|mailto:|#)[^\s\\]*", re.IGNORECASE)
_PROPERTIES = frozenset(
    (
        *("background", "background-color", "color", "font", "font-family", "font-size", "font-style", "font-weight"),
        *("text-align", "text-decoration", "white-space", "padding", "border", "border-radius", "border-bottom"),
        *("line-height", "width", "vertical-align"),
    )
)
_VALUE = re.compile(r"(?:[#\w .,%/'+-]|rgba?\([\d., %]+\))+")  # neither url() nor escapes


def harmless(text: str) -> Markup:
    """``text`` with the tags, attributes and styles that format; all else is dropped, or shown as text.

    Scripts, styles and frames go with what is in them. Links may lead to the web or within the page; nothing is loaded.
    What is open at the end is closed, and what was never opened is not closed.
    """
    parser = _Writer()
    parser.feed(text)
    parser.close()
    return Markup(parser.end())


class _Writer(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.open: list[str] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self.silent.append(tag)
        if self.silent or tag not in _TAGS:
            return
        kept = [(name, value) for name, said in attrs if (value := _attribute(tag, name, said or ""))]
        said = "".join(f' {name}="{html.escape(value)}"' for name, value in kept)
        self.out.append(f"<{tag}{said}>")
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _SILENT:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self.silent:
            if tag in self.silent:
                del self.silent[self.silent.index(tag) :]
        elif tag in self.open:
            while (last := self.open.pop()) != tag:
                self.out.append(f"</{last}>")
            self.out.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.out.append(html.escape(data))

    def end(self) -> str:
        return "".join(self.out) + "".join(f"</{tag}>" for tag in reversed(self.open))


def _attribute(tag: str, name: str, value: str) -> str:
    """The value that an attribute keeps; empty for none."""
    if name == "style":
        return _style(value)
    if name in ("title", "lang", "dir"):
        return value
    if name in ("colspan", "rowspan") and tag in ("td", "th"):
        return value if re.fullmatch(r"\d{1,3}", value) else ""
    if name == "href" and tag == "a":
        return value if _LINK.fullmatch(value.strip()) else ""
    return ""


def _style(value: str) -> str:
    pairs = (each.partition(":")[::2] for each in value.split(";"))
    return ";".join(
        f"{name}:{said}"
        for name, said in ((name.strip().lower(), said.strip()) for name, said in pairs)
        if name in _PROPERTIES and _VALUE.fullmatch(said)
    )
