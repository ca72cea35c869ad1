"""The canonical form of messages: equal for all spellings in which a client sends one back.

A client sends text as a string or as parts, arguments as its JSON library writes them, a thought
apart, inside the content or not at all. What is left here is the role, the text without white space
at its ends, and calls in their own canonical form (`canonical_calls.py`). System messages do not
count. Equal forms have equal digests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple

from fulmen.chat.canonical_calls import CallForms
from fulmen.chat.mending import whole_text
from fulmen.chat.messages import Message

MAX_PIECES: Final = 8
"""Messages into which a client may have split an answer"""
_THINK: Final = "<think>"
_END_THINK: Final = "</think>"
_START: Final = b""
_PLAIN: Final = CallForms()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, which may have come in several assistant messages."""

    digest: bytes
    content: str
    """Text without white space at its ends"""
    num_chars: int
    """Characters of its content and its calls"""
    thinking: str
    """Thought that came with it; it does not count for the digest"""


@dataclass(frozen=True, slots=True)
class Context:
    """The conversation before an answer."""

    chain: bytes | None
    """Digest of all of it; None where it is not known"""
    question: bytes | None
    """Digest of the messages since the answer before; None where there are none"""
    num_chars: int
    """Characters of the question"""
    has_user: bool
    """True if a user asked it, not only tools"""


class _Part(NamedTuple):
    """Assistant message, read once; several are an answer."""

    thoughts: Sequence[str]
    text: str
    calls: Sequence[str]


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive assistant messages of a history, and the conversation before them."""

    start: int
    messages: Sequence[Message]
    context: Context
    parts: Sequence[_Part]

    def answer(self, start: int, stop: int) -> Answer:
        """Return the canonical answer that some of the messages are together."""
        return _join(self.parts[start:stop])

    def context_at(self, offset: int) -> Context:
        """Return the conversation before one of the messages; of a long run not all are known."""
        if not offset:
            return self.context
        chain = self.context.chain
        if chain is not None:
            chain = _digest(chain, self.answer(0, offset).digest) if offset < MAX_PIECES else None
        return Context(chain, None, 0, has_user=False)

    def ranges(self, is_open: Sequence[bool]) -> Iterator[tuple[int, int]]:
        """Yield the ranges of open messages that may be one answer, the longest first at each
        start; is_open may change meanwhile."""
        for start in range(len(self.messages)):
            stop = start
            while stop < len(self.messages) and stop - start < MAX_PIECES and is_open[stop]:
                stop += 1
            for end in range(stop, start, -1):
                if not is_open[start]:
                    break
                yield start, end


def read_answer(messages: Sequence[Message], forms: CallForms = _PLAIN) -> Answer:
    """Return the canonical answer of one or more assistant messages."""
    return _join([_read_part(message, forms) for message in messages])


def _read_part(message: Message, forms: CallForms) -> _Part:
    inner, text = _split_thought(message.content)
    thoughts = [message.thinking] if message.thinking else [one for one in inner if one]
    return _Part(thoughts, text, [forms.of(call) for call in message.tool_calls])


def _join(parts: Sequence[_Part]) -> Answer:
    content = whole_text("".join(part.text for part in parts).strip())
    written = ",".join(call for part in parts for call in part.calls)
    thoughts = [thought for part in parts for thought in part.thoughts]
    digest = _digest("assistant", content, written)
    return Answer(digest, content, len(content) + len(written), "\n".join(thoughts))


def read_contexts(
    history: Sequence[Message], forms: CallForms = _PLAIN
) -> tuple[list[Run], Context]:
    """Return the runs of assistant messages in a history, and the context of an answer to all."""
    runs: list[Run] = []
    chain = _START
    question: list[bytes] = []
    num_chars, has_user = 0, False
    index = 0
    while index < len(history):
        message = history[index]
        if message.role == "assistant":
            end = index
            while end < len(history) and history[end].role == "assistant":
                end += 1
            asked = _digest(*question) if question else None
            messages = history[index:end]
            context = Context(chain, asked, num_chars, has_user)
            run = Run(index, messages, context, [_read_part(one, forms) for one in messages])
            runs.append(run)
            chain = _digest(chain, run.answer(0, len(messages)).digest)
            question, num_chars, has_user = [], 0, False
            index = end
            continue
        index += 1
        if message.role == "system":
            continue
        text = whole_text(message.content.strip())
        digest = _digest(message.role, text)
        chain = _digest(chain, digest)
        question.append(digest)
        num_chars += len(text)
        has_user = has_user or message.role == "user"
    return runs, Context(chain, _digest(*question) if question else None, num_chars, has_user)


def _split_thought(content: str) -> tuple[list[str], str]:
    """Return the thoughts in tags that a content begins with, and the rest of it."""
    thoughts: list[str] = []
    start = _skip_space(content, 0)
    while content.startswith(_THINK, start):
        end = content.find(_END_THINK, start)
        if end < 0:
            break
        thoughts.append(content[start + len(_THINK) : end].strip())
        start = _skip_space(content, end + len(_END_THINK))
    return thoughts, content[start:] if thoughts else content


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _digest(*items: str | bytes) -> bytes:
    digest = blake2b(digest_size=16)
    for item in items:
        part = item.encode() if isinstance(item, str) else item
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
