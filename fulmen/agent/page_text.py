"""HTML as text that a model reads: headings, links, lists and code in Markdown, nothing hidden.

It takes time in proportion to the page, whatever the page is: no search begins twice at one place.
"""

import re
from html import unescape
from typing import Final

_BLOCKS: Final = frozenset(
    (
        *("p", "div", "section", "article", "main", "header", "footer", "nav", "aside", "form"),
        *("table", "ul", "ol", "dl", "dt", "dd", "blockquote", "figure", "hr", "address"),
    )
)
_LINES: Final = frozenset(("br", "tr", "option", "summary", "caption", "figcaption"))
_RAW: Final = (
    *("script", "style", "noscript", "template", "svg", "textarea", "iframe", "math", "title"),
)
_ENDS: Final = {name: re.compile(f"</{name}", re.I) for name in _RAW}
"""Ends of elements whose content is left out"""
_VOID: Final = frozenset(("br", "hr", "img", "input", "meta", "link", "wbr", "source", "area"))
_NAME: Final = re.compile(r"/?([a-zA-Z][a-zA-Z0-9]*)")
_HREF: Final = re.compile(r"""\shref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.I)
_HIDDEN: Final = re.compile(
    r"\shidden(?=[\s=>/]|$)|\saria-hidden\s*=\s*[\"']?true|display\s*:\s*none|visibility\s*:\s*hid",
    re.I,
)
_MAX_TAG: Final = 1024
_MAX_LINK: Final = 500


class _Page:
    """Text of a page while it is read."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.title = ""
        self.hidden: list[str] = []
        """Open elements, from one on that is not shown"""
        self.num_pre = 0
        self.link: str | None = None
        self.lists: list[int | None] = []
        """Open lists: the number of the last entry, None where they have none"""

    def add(self, text: str) -> None:
        """Add text between tags."""
        if self.hidden:
            return
        text = unescape(text)
        self.parts.append(text if self.num_pre else re.sub(r"\s+", " ", text))

    def open(self, name: str, tag: str) -> None:
        """Take a tag that opens an element."""
        if self.hidden or _HIDDEN.search(tag):
            if name not in _VOID:
                self.hidden.append(name)
            return
        if name in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.parts.append(f"\n\n{'#' * int(name[1])} ")
        elif name == "li":
            number = self.lists[-1] if self.lists else None
            if number is not None:
                self.lists[-1] = number = number + 1
            mark = "- " if number is None else f"{number}. "
            self.parts.append("\n" + "  " * max(min(len(self.lists), 8) - 1, 0) + mark)
        elif name == "pre":
            self.num_pre += 1
            self.parts.append("\n\n```\n")
        elif name == "code" and not self.num_pre:
            self.parts.append("`")
        elif name in ("td", "th"):
            self.parts.append(" | ")
        elif name == "a":
            found = _HREF.search(tag)
            href = "" if found is None else next(one or "" for one in found.groups() if one)
            self.link = unescape(href).strip() if found is not None else None
            self.parts.append("[" if self.link else "")
        if name in ("ul", "ol"):
            self.lists.append(0 if name == "ol" else None)
        self._space(name)

    def close(self, name: str) -> None:
        """Take a tag that closes an element."""
        if self.hidden:
            if name in self.hidden[-64:]:
                while self.hidden.pop() != name:
                    pass
            return
        if name == "pre" and self.num_pre:
            self.num_pre -= 1
            self.parts.append("\n```\n\n")
        elif name == "code" and not self.num_pre:
            self.parts.append("`")
        elif name == "a" and self.link:
            self.parts.append(f"]({self.link[:_MAX_LINK]})")
            self.link = None
        elif name in ("ul", "ol") and self.lists:
            self.lists.pop()
        elif name[0] == "h" and name[1:].isdigit():
            self.parts.append("\n\n")
        self._space(name)

    def _space(self, name: str) -> None:
        if name in _BLOCKS:
            self.parts.append("\n\n")
        elif name in _LINES:
            self.parts.append("\n")


def page_text(html: str) -> str:
    """Return what a page says."""
    page, place, end, has_comments = _Page(), 0, -1, True
    while place < len(html):
        if html[place] != "<":
            start = html.find("<", place)
            start = len(html) if start < 0 else start
            page.add(html[place:start])
            place = start
            continue
        if has_comments and html.startswith("<!--", place):
            close = html.find("-->", place + 4)
            has_comments = close >= 0
            if has_comments:
                place = close + 3
                continue
        if end < place:
            end = html.find(">", place)
            end = len(html) if end < 0 else end
        found = _NAME.match(html, place + 1)
        if found is not None:
            place = _take_tag(page, html, found, end)
        elif html[place + 1 : place + 2] in ("!", "?", "/"):
            place = end + 1
        else:
            page.add("<")
            place += 1
    text = re.sub(r"\n{3,}", "\n\n", _outside_code("".join(page.parts)))
    title = f"# {page.title}\n\n" if page.title else ""
    return title + text.strip()


def _take_tag(page: _Page, html: str, found: re.Match[str], end: int) -> int:
    """Take a tag; return where the page goes on."""
    name = found.group(1).lower()[:20]
    if found.group().startswith("/"):
        page.close(name)
        return end + 1
    if name in _ENDS:
        close = _ENDS[name].search(html, end)
        if close is None:
            return len(html)
        if name == "title" and not page.title:
            page.title = " ".join(unescape(html[end + 1 : close.start()][:1000]).split())[:300]
        after = html.find(">", close.end())
        return len(html) if after < 0 else after + 1
    page.open(name, html[found.end() : min(end, found.end() + _MAX_TAG)])
    return end + 1


def _outside_code(text: str) -> str:
    """Return text whose lines have no blanks at their ends, and none at their beginning but for
    lists and code."""
    lines, in_code = [], False
    for line in text.split("\n"):
        if line.strip() == "```":
            in_code = not in_code
        is_list = re.match(r" *(- |\d+\. )", line)
        lines.append(line.rstrip() if in_code or is_list else line.strip())
    return "\n".join(lines)
