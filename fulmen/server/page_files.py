"""The chat page: its files, under a policy that lets nothing else run or load.

They are read once, when the server starts, so a path can reach nothing but them.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "page"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Media types of the files that are served; others stay where they are"""
PAGE_HEADERS: Final = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # asked for each time, and not sent again if it is the same
}
"""Headers of every file: only the page's own scripts run, and they reach nobody but this server"""


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page."""

    content: bytes
    media_type: str
    etag: str
    """Changes with the content"""

    def is_in(self, if_none_match: str) -> bool:
        """Return whether a client has this content, by the header that it sent."""
        tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
        return self.etag in tags or "*" in tags


@cache
def page_files() -> dict[str, PageFile]:
    """Read the page's files, by their paths in its folder."""
    return read_files(FOLDER)


def read_files(folder: Path) -> dict[str, PageFile]:
    """Read the files of a page, by their paths in its folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        media_type = _TYPES.get(path.suffix)
        if media_type is not None and path.is_file():
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.relative_to(folder).as_posix()] = PageFile(content, media_type, etag)
    return found


def is_for_browser(path: str, accept: str) -> bool:
    """Return whether a request is for the page itself: `/` greets a program in another way."""
    return path == "/" and "text/html" in accept


def is_of_page(path: str, accept: str) -> bool:
    """Return whether a request is for a file of the page: they are shown before a key is known."""
    return path.startswith("/page/") or is_for_browser(path, accept)
