"""Replies about sessions."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from fulmen.server.replies.shared import JsonObject, closed


@closed
class SessionObject(TypedDict):
    """A conversation that is kept under a name."""

    id: Annotated[str, Field(description="Its name")]
    object: Literal["session"]
    status: Literal["idle", "answering", "saving", "unreadable"]
    model: Annotated[str | None, Field(description="Model that it was begun with")]
    served_as: Annotated[
        str | None, Field(description="Name of that model here; null where it is not served")
    ]
    created_at: Annotated[int | None, Field(description="Seconds since 1970")]
    last_used_at: Annotated[int | None, Field(description="Seconds since 1970")]
    metadata: Annotated[dict[str, str], Field(description="Notes of whoever talks")]


@closed
class SessionTurn(TypedDict):
    """Messages and the answer to them."""

    id: Annotated[str, Field(description="The same in all sessions that share the turn")]
    parent: Annotated[str | None, Field(description="Turn before it")]
    number: Annotated[int, Field(description="1 for the first; fork and rewind take it")]
    num_messages: Annotated[int, Field(description="Messages of it, with the answer")]
    tokens: Annotated[int, Field(description="Tokens up to its end")]
    answer_tokens: Annotated[int, Field(description="0 for one that was said elsewhere")]
    thinking_tokens: Annotated[int, Field(description="Those of them that are thought")]
    stored_tokens: Annotated[int, Field(description="Tokens whose states are on disk")]
    finish_reason: str


@closed
class SessionDetail(SessionObject):
    """A conversation with all that was said."""

    response_id: Annotated[str | None, Field(description="Answer that runs in it now")]
    asked: Annotated[list[JsonObject], Field(description="Messages that this answers")]
    tokens: int
    state_bytes: Annotated[int, Field(description="Disk for its states, shared ones included")]
    turns: list[SessionTurn]
    messages: list[JsonObject]


@closed
class SessionList(TypedDict):
    """A page of sessions, the last used first."""

    object: Literal["list"]
    data: list[SessionObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@closed
class LikelyToken(TypedDict):
    id: int
    text: str
    logprob: Annotated[float, Field(description="Natural logarithm")]


@closed
class SessionToken(LikelyToken):
    """A token of an answer."""

    kind: Annotated[
        Literal["thinking", "content", "tool_calls", "other"],
        Field(description="Text that it is part of; other for tags and the end of the turn"),
    ]
    is_forced: Annotated[bool, Field(description="It was given, not drawn")]
    top: Annotated[list[LikelyToken], Field(description="Likeliest tokens here, best first")]


@closed
class SessionTokens(TypedDict):
    object: Literal["list"]
    data: list[SessionToken]


@closed
class DeletedSession(TypedDict):
    id: str
    object: Literal["session"]
    deleted: Literal[True]
