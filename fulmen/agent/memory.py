"""The conversation as the model's side holds it: what an answer is asked with, and kept as.

A model with a tokenizer within reach gets the ids that its earlier answers were sampled as,
thoughts included (`TranscriptMemory`), one with an engine can have its states on disk
(`SessionMemory`); any other model gets the messages (`PlainMemory`).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fulmen.chat import ChatRequest, Completion, Message, Tool, Transcript

if TYPE_CHECKING:  # it brings the engine along, which a model at a URL does not need
    from fulmen.sessions import Session


class Memory(Protocol):
    """One conversation, append only but for `rewind`."""

    def request(
        self, messages: Sequence[Message], tools: Sequence[Tool], **fields: Any
    ) -> ChatRequest:
        """Return the request for the answer to messages, the whole conversation; fields are those
        of `ChatRequest`."""

    async def keep(
        self, messages: Sequence[Message], completion: Completion, tools: Sequence[Tool]
    ) -> None:
        """Keep the answer to messages."""

    async def begin_again(self) -> "Memory":
        """Return the memory of a conversation that has nothing in common with this one; this one
        stays as it is."""


class PlainMemory:
    """Messages alone: the model's side renders them anew each time."""

    def request(
        self, messages: Sequence[Message], tools: Sequence[Tool], **fields: Any
    ) -> ChatRequest:
        """Return the request for the answer to messages."""
        return ChatRequest(messages=tuple(messages), tools=tuple(tools), **fields)

    async def keep(
        self, messages: Sequence[Message], completion: Completion, tools: Sequence[Tool]
    ) -> None:
        """Keep nothing: the next request has all messages."""

    async def begin_again(self) -> "PlainMemory":
        """Return this memory: it holds nothing."""
        return self


class TranscriptMemory:
    """A transcript: each answer stands in the next prompt as the ids it was sampled as."""

    def __init__(self, transcript: Transcript) -> None:
        self.transcript = transcript

    def request(
        self, messages: Sequence[Message], tools: Sequence[Tool], **fields: Any
    ) -> ChatRequest:
        """Return the request for the answer to messages."""
        prompt = self.transcript.prompt(messages, tools)
        return ChatRequest(messages=tuple(messages), tools=tuple(tools), prompt=prompt, **fields)

    async def keep(
        self, messages: Sequence[Message], completion: Completion, tools: Sequence[Tool]
    ) -> None:
        """Add the answer as a turn."""
        self.transcript.add(messages, completion, tools)

    async def begin_again(self) -> "TranscriptMemory":
        """Return an empty transcript."""
        old = self.transcript
        return TranscriptMemory(
            Transcript(old.format, old.tokenizer, keep_thoughts=old.keep_thoughts)
        )


class SessionMemory(TranscriptMemory):
    """A session on disk: with the states after each turn, so that a run goes on, or forks, without
    reading anything again.

    A session ends where a summary takes the place of its beginning; the next one is another, so
    that going back to before the summary is going back to this one.
    """

    def __init__(self, session: "Session", open_next: Callable[[], "Session"]) -> None:
        """open_next: begins the session after this one"""
        super().__init__(session.transcript)
        self.session = session
        self._open_next = open_next

    async def keep(
        self, messages: Sequence[Message], completion: Completion, tools: Sequence[Tool]
    ) -> None:
        """Add the answer as a turn, and write it."""
        await asyncio.to_thread(self.session.save, messages, completion, tools)

    async def begin_again(self) -> "SessionMemory":
        """Begin the next session."""
        return SessionMemory(await asyncio.to_thread(self._open_next), self._open_next)
