"""Documents: what is learnt, found in rows of JSON.

    row -> text, or prompt and answer, or messages -> Document: a key, and how it is encoded

A document is known by its key: its text, or its prompt where it has one. The key decides, by a hash
and so for ever, whether a document is held out for probes, and the n-gram check reads it.
"""

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal, cast

from fulmen.chat import Message
from fulmen.files import shorten
from fulmen.train.lm.examples import Coder, Example
from fulmen.train.lm.procedural import Problem

LONGEST_LINE: Final = 64 * 2**20
"""Most bytes of one line of JSONL"""
_NAMES: Final = ("role", "type", "id", "tool_call_id", "tool_use_id", "signature")
"""Keys of messages whose values nobody reads as text"""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a source: a text, a problem, a prompt with its answer, or a conversation."""

    key: str
    """Text by which it is held out: what is asked, or all of a text"""
    encode: Callable[[Coder], list[Example]]
    problem: Problem | None = None
    """The problem, where its answer can be checked"""
    said: str = ""
    """The answers, which are compared with evaluation sets too"""
    thoughts: str = ""
    """Thoughts and tool calls, which are learnt with the answers and so compared as well"""


def is_held_out(key: str, share: float) -> bool:
    """Return whether a document is kept for probes: its key's hash decides, whatever the run."""
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def encoder(problem: Problem, style: Literal["chat", "plain"]) -> Callable[[Coder], list[Example]]:
    """Return what encodes a problem: as a conversation whose thought is the trace, or as text."""
    if style == "plain":
        answer = f"{problem.trace}\n{problem.answer}" if problem.trace else problem.answer
        return lambda coder: coder.pair(f"{problem.prompt}\n", answer)
    messages = (
        Message("user", problem.prompt),
        Message("assistant", problem.answer, thinking=problem.trace or None),
    )
    return lambda coder: coder.conversation(messages)


def parsed_line(line: bytes, where: str) -> Any:
    """Return the value of a line of JSONL; ValueError for one that is no JSON or too long."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"{where} has more than {LONGEST_LINE:,} bytes")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None


def document_of(row: object, where: str, style: Literal["chat", "plain"]) -> Document:
    """Return the document that an object holds: `text`, `prompt` and `completion`, both texts or
    both lists of messages, or `messages`.

    where  names the object in a ValueError, which is raised for any other object
    """
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{where} is no object, it must have text, prompt and completion, or messages"
        )
    text, prompt = row.get("text"), row.get("prompt")
    answer = row.get("completion", row.get("answer"))
    if isinstance(text, str):
        return Document(text, located(lambda coder: coder.text(text), where))
    if isinstance(prompt, str) and isinstance(answer, str):
        problem = Problem(prompt, "", answer)
        encode = encoder(problem, style)
        if style == "plain":  # as it stands, without a line between

            def encode(coder: Coder) -> list[Example]:
                return coder.pair(prompt, answer)

        return Document(prompt, located(encode, where), problem, answer)
    messages, tools = _messages_of(row.get("messages")), row.get("tools") or ()
    before, after = _messages_of(prompt), _messages_of(answer)
    if before is not None and after is not None:
        messages = [{**one, "weight": 0} if _is_answer(one) else one for one in before] + after
    if messages is None:
        raise ValueError(
            f"{where} must have text, or prompt and completion, or messages, found "
            f"{shorten(', '.join(map(str, row)) or 'nothing', 80)}"
        )
    asked: list[str] = []
    said: list[str] = []
    thoughts: list[str] = []
    for one in messages:
        if _is_answer(one):
            said += strings(_spoken(one), _NAMES)
            thoughts += strings(_unspoken(one), _NAMES)
        else:
            asked += strings(one.get("content"), _NAMES)
    return Document(
        "\n".join(asked),
        located(lambda coder: coder.conversation(messages, tools), where),
        said="\n".join(said),
        thoughts="\n".join(thoughts),
    )


def strings(value: object, without: Container[str] = ()) -> Iterator[str]:
    """Yield every string of a JSON value in its order, those of the JSON text of a call's arguments
    too.

    without  keys whose values are left out
    """
    left = [value]  # no recursion: a stranger's rows may be nested deeply
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            found = [
                _arguments(each) if key == "arguments" else each
                for key, each in one.items()
                if key not in without
            ]
            left += reversed(found)
        elif isinstance(one, list | tuple):
            left += reversed(one)


def _arguments(value: object) -> object:
    """Return the arguments of a call, read where they are JSON text."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return cast(object, json.loads(value))
    return value


def _messages_of(value: object) -> list[Mapping[str, Any]] | None:
    is_list = isinstance(value, list) and all(isinstance(one, Mapping) for one in value)
    return cast(list[Mapping[str, Any]], value) if is_list else None


def _is_answer(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "assistant"


def _spoken(message: Mapping[str, Any]) -> list[object]:
    """Return the parts of an answer that are its text."""
    return [part for part in _parts(message) if not _is_block(part)]


def _unspoken(message: Mapping[str, Any]) -> list[object]:
    """Return all else of an answer: its thoughts and its calls, blocks of them too."""
    fields = [value for key, value in message.items() if key not in ("content", *_NAMES)]
    return [*filter(_is_block, _parts(message)), *fields]


def _parts(message: Mapping[str, Any]) -> Sequence[object]:
    content = message.get("content")
    return content if isinstance(content, list | tuple) else [content]


def _is_block(part: object) -> bool:
    return isinstance(part, Mapping) and "text" not in part


def located(
    encode: Callable[[Coder], list[Example]], where: str
) -> Callable[[Coder], list[Example]]:
    """Return an encoder whose errors name the document."""

    def encoded(coder: Coder) -> list[Example]:
        try:
            return encode(coder)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    return encoded


def numbered_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, counted from 1; ValueError for one that is too long to be held."""
    with file.open("rb") as opened:
        number = 0
        while line := opened.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{file}, line {number} has more than {LONGEST_LINE:,} bytes")
            yield number, line
