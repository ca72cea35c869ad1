"""Markdown with YAML before it, as skills, commands and sub-agents are written.

    ---
    name: review
    description: Look over a change before it is merged.
    ---
    Read the diff ...

Strangers write such files: what stands before is bounded, has no aliases (a few lines could stand
for a billion), and all its values are texts and lists of texts.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

MAX_FRONT: Final = 8192
"""Characters before the text"""
_FRONT: Final = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.S)
_LINE: Final = re.compile(r"([A-Za-z][\w-]{0,40}):[ \t]*(.*)")
_MAX_OPEN: Final = 16
"""Nesting of brackets and of indentation"""


def read_front_matter(text: str) -> tuple[Mapping[str, str | tuple[str, ...]], str]:
    """Return what stands before a text, by key, and the text; nothing and all of it if nothing
    does. A value that is neither a text nor a list of texts is left out."""
    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    found = _FRONT.match(text[: MAX_FRONT + 8])
    if found is None:
        return {}, text
    read = _as_yaml(found.group(1))
    fields = _as_lines(found.group(1)) if read is None else read
    return fields, text[found.end() :].lstrip("\n")


def _as_yaml(text: str) -> dict[str, str | tuple[str, ...]] | None:
    """Return the fields of YAML; None for what is none."""
    import yaml

    if max(map(text.count, "[{"), default=0) > _MAX_OPEN or re.search(r"\n {40}|[&*!]\w", text):
        return None
    try:
        loaded: Any = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(loaded, dict):
        return None
    fields: dict[str, str | tuple[str, ...]] = {}
    for name, value in loaded.items():
        if isinstance(value, list):
            fields[str(name)] = tuple(one for one in value if isinstance(one, str))
        elif isinstance(value, str):
            fields[str(name)] = value.strip()
    return fields


def _as_lines(text: str) -> dict[str, str | tuple[str, ...]]:
    """Return the fields of lines `name: text`: many write a colon where YAML has none."""
    matches = map(_LINE.fullmatch, text.split("\n"))
    return {one.group(1): one.group(2).strip().strip("\"'") for one in matches if one is not None}


def text_field(fields: Mapping[str, str | tuple[str, ...]], name: str) -> str:
    """Return a field on one line; empty if it is not there or no text."""
    value = fields.get(name, "")
    return " ".join(value.split()) if isinstance(value, str) else ""


def list_field(fields: Mapping[str, str | tuple[str, ...]], name: str) -> tuple[str, ...] | None:
    """Return a field that is a list, or a text with commas; None if it is not there."""
    value = fields.get(name)
    if isinstance(value, str):
        value = tuple(part.strip() for part in value.split(","))
    return None if value is None else tuple(part for part in value if part)
