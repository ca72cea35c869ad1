"""Lists that are read page by page, in OpenAI's words: limit, after, has_more."""

from collections.abc import Mapping, Sequence
from typing import Any

from fulmen.sampling import shown
from fulmen.server.errors import Refusal


def place_after(ids: Sequence[str], after: str | None) -> int:
    """Return where a page of a list begins. Raises a Refusal for an id that is not in it."""
    if after is None:
        return 0
    if after not in ids:
        raise Refusal(400, f"after is {shown(after)}, it must be an id of the list", param="after")
    return ids.index(after) + 1


def page_of(page: Sequence[Mapping[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return a page of a list as OpenAI has it."""
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": has_more,
    }
