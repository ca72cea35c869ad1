"""A history as a client sent it: checked, in the order to render, each refusal with its place.

    client's list -> messages -> results matched with their calls -> History

`read_messages` reads what a program of ours writes. A client's history has been in other hands:
here every call must have its one result, and every sentence says which message it is about.
The lenient way repairs a history where its meaning is clear, and says what it did.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

from fulmen.chat.arguments import dump_json
from fulmen.chat.mending import mend_arguments, whole_characters
from fulmen.chat.messages import Message, ToolCall
from fulmen.chat.reading import (
    check_not_empty,
    is_media,
    no_such_call,
    read_arguments,
    read_message,
    read_message_object,
)
from fulmen.files import shorten

VOLATILE_LINES: Final = ("x-anthropic-billing-header:.*",)
"""Patterns of lines at the head of a system prompt that differ between sessions of one client"""
NOT_ANSWERED: Final = "This call was not answered."
"""Result of a call that has none, in a history that is read leniently"""
_UNKNOWN_CALL: Final = "Result of a tool call that is not in this conversation:\n"
_MEDIA_KIND: Final = re.compile("image|audio|video|file|document|pdf")

_Item = tuple[int, Message]
"""Index of what was read, and a message in it"""


@dataclass(frozen=True, slots=True)
class History:
    """Messages that a client sent, in the order to render."""

    messages: tuple[Message, ...]
    places: tuple[int, ...]
    """Index of each message in the client's list; below 0 for what the server put before it"""
    repairs: tuple[str, ...] = ()
    """Sentences that say what was repaired, each with its place"""
    num_dropped_images: int = 0
    """Number of images, sounds and files that were left out"""


def read_history(
    messages: Iterable[Message | Mapping[str, Any]],
    *,
    lenient: bool = False,
    volatile_lines: Sequence[str | re.Pattern[str]] = (),
    drop_images: bool = False,
    first_index: int = 0,
) -> History:
    """Read the messages that a client sent, in OpenAI's or Anthropic's shape or ours.

    lenient         repair the history where its meaning is clear: a call without a result gets one
                    that says so; a result that comes late moves to its call; one without an id is
                    matched by order; one that no call asked for becomes a user message; arguments
                    that are a Python literal, or JSON but for commas and closing brackets, are
                    read, and others become {"arguments": text}; an object as a result becomes JSON
    volatile_lines  patterns of whole lines to leave out at the head of the system prompt
    drop_images     put "[image left out]" in the place of an image, a sound or a file
    first_index     number of messages that the server put before the client's own

    Half of a surrogate pair becomes U+FFFD in any case, and `repairs` says so. Raises ValueError: a
    sentence that begins with the place of what is wrong, such as `messages[3]: `.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise ValueError(f"messages: it is of type {type(messages).__name__}, it must be a list")
    given = list(messages)
    try:
        check_not_empty(given[first_index:])
    except ValueError as error:
        raise ValueError(f"messages: {error}") from None
    reader = _Reader(lenient, drop_images, first_index)
    items = [item for index, one in enumerate(given) for item in reader.read(index, one)]
    items = list(_Results(reader, items).in_order())
    items = _without_volatile_lines(items, [re.compile(line) for line in volatile_lines])
    return History(
        messages=tuple(message for _, message in items),
        places=tuple(index - first_index for index, _ in items),
        repairs=tuple(reader.repairs),
        num_dropped_images=reader.num_dropped,
    )


class _Reader:
    """Reader of single messages, which notes repairs with their place."""

    def __init__(self, is_lenient: bool, is_dropping: bool, first_index: int) -> None:
        self.is_lenient = is_lenient
        self._is_dropping = is_dropping
        self._first_index = first_index
        self.repairs: list[str] = []
        self.num_dropped = 0

    def read(self, index: int, given: Message | Mapping[str, Any]) -> list[_Item]:
        """Read one message of the list; tool results in it come before its text."""
        try:
            read = [given] if isinstance(given, Message) else self._read(index, given)
            whole = [whole_characters(message) for message in read]
        except ValueError as error:
            self.refuse(index, str(error))
        if any(one is not other for one, other in zip(read, whole, strict=True)):
            self.repair(index, "half of a surrogate pair is read as U+FFFD")
        return [(index, message) for message in whole]

    def repair(self, index: int, text: str) -> None:
        """Note what was repaired in one message of the list."""
        self.repairs.append(f"{self._place(index)}: {text}")

    def refuse(self, index: int, text: str) -> NoReturn:
        """Raise ValueError for one message of the list."""
        raise ValueError(f"{self._place(index)}: {text}") from None

    def _place(self, index: int) -> str:
        own = index - self._first_index
        return f"messages[{own}]" if own >= 0 else "system"

    def _read(self, index: int, given: object) -> list[Message]:
        message = dict(read_message_object(given))
        content = message.get("content")
        if self._is_dropping:
            message["content"] = content = self._without_media(content)
        results = [content] if message.get("role") == "tool" else []
        results += [block.get("content") for block in _blocks(content, "tool_result")]
        if any(isinstance(result, Mapping) for result in results):
            if not self.is_lenient:
                raise ValueError(
                    "the content of a tool result is an object, it must be text or a list of parts"
                )
            self.repair(index, "the content of a tool result is an object, it is shown as JSON")
        if self.is_lenient:
            self._mend_calls(index, message)
        return read_message(message)

    def _without_media(self, content: object) -> object:
        if not isinstance(content, list | tuple):
            return content
        kept: list[object] = []
        for item in content:
            if isinstance(item, Mapping) and is_media(item):
                self.num_dropped += 1
                kind = _MEDIA_KIND.search(item["type"])
                item = {"type": "text", "text": f"[{kind[0] if kind else 'part'} left out]"}
            elif isinstance(item, Mapping) and item.get("type") == "tool_result":
                item = {**item, "content": self._without_media(item.get("content"))}
            kept.append(item)
        return kept

    def _mend_calls(self, index: int, message: dict[str, Any]) -> None:
        """Replace the arguments of calls, in place, where they are no JSON object."""
        calls = message.get("tool_calls")
        if isinstance(calls, list | tuple):
            message["tool_calls"] = [self._mended(index, call, "arguments") for call in calls]
        content = message.get("content")
        if isinstance(content, list | tuple):
            message["content"] = [
                self._mended(index, block, "input") if _is_block(block, "tool_use") else block
                for block in content
            ]

    def _mended(self, index: int, call: object, key: str) -> object:
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": self._mended(index, call["function"], key)}
        given = call.get(key)
        try:
            read_arguments({} if given is None else given, "")
        except ValueError:
            text = given if isinstance(given, str) else dump_json(given)
            mended = mend_arguments(text)
            how = "are kept as text" if mended is None else "are read as an object"
            name = shorten(call.get("name"), 80)
            self.repair(
                index, f"the arguments of the call of {name} are no JSON object, they {how}"
            )
            return {**call, key: {"arguments": text} if mended is None else mended}
        return call


def _blocks(content: object, kind: str) -> Iterator[Mapping[str, Any]]:
    for block in content if isinstance(content, list | tuple) else ():
        if _is_block(block, kind):
            yield block


def _is_block(block: object, kind: str) -> bool:
    return isinstance(block, Mapping) and block.get("type") == kind


@dataclass(slots=True)
class _Asked:
    """Assistant's message with calls, and the results found for them."""

    index: int
    calls: tuple[ToolCall, ...]
    answers: dict[int, _Item] = field(default_factory=dict)
    """Results by the number of their call"""
    waiting: dict[str | None, list[int]] = field(default_factory=dict)
    """Numbers of the calls without a result by id, the last one first"""
    num_seen: int = 0
    """Calls before this number have results"""
    has_ids: bool = field(init=False)
    """A result can be matched by its id"""

    def __post_init__(self) -> None:
        self.has_ids = any(call.id is not None for call in self.calls)
        for number in reversed(range(len(self.calls))):
            self.waiting.setdefault(self.calls[number].id, []).append(number)

    def first_waiting(self) -> int | None:
        """Return the number of the first call without a result."""
        while self.num_seen in self.answers:
            self.num_seen += 1
        return self.num_seen if self.num_seen < len(self.calls) else None

    def answer(self, number: int, item: _Item) -> None:
        """Note the result of a call."""
        id = self.calls[number].id
        numbers = self.waiting[id]
        if numbers[-1] == number:
            numbers.pop()
        else:
            numbers.remove(number)
        if not numbers:
            del self.waiting[id]
        self.answers[number] = item[0], replace(item[1], tool_call_id=id)


class _Results:
    """Tool results of a history, matched with the calls that they answer."""

    def __init__(self, reader: _Reader, items: Sequence[_Item]) -> None:
        self._reader = reader
        self._items = items
        self._asked: dict[int, _Asked] = {}
        """Messages with calls by their number among the items"""
        self._unknown: set[int] = set()
        """Numbers of results that no call asked for"""
        if reader.is_lenient:
            self._match_leniently()
        else:
            self._match()

    def in_order(self) -> Iterator[_Item]:
        """Yield the messages, each result where it belongs, in the order of the calls."""
        items = self._items
        number = 0
        while number < len(items):
            index, message = items[number]
            asked = self._asked.get(number)
            number += 1
            if asked is None:
                if message.role != "tool":
                    yield index, message
                elif number - 1 in self._unknown:
                    yield self._as_user(items[number - 1])
                continue
            yield index, message
            end = number
            while end < len(items) and items[end][1].role in ("tool", "system"):
                end += 1
            yield from self._run(asked, range(number, end))
            number = end

    def _run(self, asked: _Asked, run: range) -> Iterator[_Item]:
        """Yield the results of one message's calls; system messages among them keep their place."""
        results = [asked.answers[number] for number in range(len(asked.calls))]
        slots = [number for number in run if self._items[number][1].role == "tool"]
        if not slots:
            yield from results
        done = 0
        for number in run:
            if self._items[number][1].role == "system":
                yield self._items[number]
                continue
            end = len(results) if number == slots[-1] else done + 1
            yield from results[done:end]
            done = end
        for number in slots:
            if number in self._unknown:
                yield self._as_user(self._items[number])

    def _as_user(self, item: _Item) -> _Item:
        index, message = item
        id = f" ({shorten(message.tool_call_id, 80)})" if message.tool_call_id else ""
        self._reader.repair(index, f"no call waits for the result{id}, it becomes a user message")
        return index, Message("user", _UNKNOWN_CALL + message.content)

    def _match(self) -> None:
        """Match results as a client must send them: one for each call, right after the calls."""
        asked: _Asked | None = None
        for number, (index, message) in enumerate(self._items):
            if message.role == "tool":
                self._match_one(asked, index, message)
            elif message.role != "system":
                self._check_answered(asked)
                asked = None
                if message.tool_calls:
                    asked = self._asked[number] = _Asked(index, message.tool_calls)
        self._check_answered(asked)

    def _match_one(self, asked: _Asked | None, index: int, message: Message) -> None:
        id = message.tool_call_id
        if asked is None and id is None:
            self._reader.refuse(
                index,
                "a tool message comes after no tool call, "
                "the assistant message before it must have tool_calls",
            )
        if asked is not None and id in asked.waiting:
            asked.answer(asked.waiting[id][-1], (index, message))
            return
        ids = [call.id for call in asked.calls if call.id is not None] if asked else []
        if id is not None and id not in ids:
            self._reader.refuse(index, no_such_call(id, ids))
        if id is None and ids:
            self._reader.refuse(
                index,
                "a tool message has no tool_call_id, it must be that of a call of the last "
                "assistant message",
            )
        which = f"the call {shorten(id, 80)} has" if id is not None else "all calls have"
        self._reader.refuse(index, f"{which} a result already, each call can have one")

    def _check_answered(self, asked: _Asked | None) -> None:
        number = asked.first_waiting() if asked else None
        if asked is None or number is None:
            return
        self._reader.refuse(
            asked.index,
            f"{_named(asked.calls[number])} has no result, each call needs one before the next "
            "message that is not a tool's",
        )

    def _match_leniently(self) -> None:
        """Match results by their ids, wherever they are, then those without one by order."""
        by_id: dict[str, list[_Asked]] = {}
        by_order: list[tuple[int, _Asked | None, bool]] = []
        asked: _Asked | None = None
        is_near = False
        for number, (index, message) in enumerate(self._items):
            if message.role != "tool":
                is_near = is_near and message.role == "system"
                if message.tool_calls:
                    asked, is_near = _Asked(index, message.tool_calls), True
                    self._asked[number] = asked
                    for id in asked.waiting:
                        by_id.setdefault(id or "", []).append(asked)
                continue
            id = message.tool_call_id
            found = by_id.get(id or "", [])
            while found and id not in found[-1].waiting:
                found.pop()
            if id is None or (not found and asked and not asked.has_ids):
                by_order.append((number, asked, is_near))
            elif found:
                if found[-1] is not asked or not is_near:
                    self._reader.repair(index, "the result comes late, it is put after its call")
                found[-1].answer(found[-1].waiting[id][-1], (index, message))
            else:
                self._unknown.add(number)
        for number, last, was_near in by_order:
            self._match_by_order(number, last, is_near=was_near)
        for one in self._asked.values():
            self._fill(one)

    def _match_by_order(self, number: int, asked: _Asked | None, *, is_near: bool) -> None:
        place = asked.first_waiting() if asked else None
        if asked is None or place is None:
            self._unknown.add(number)
            return
        index, message = self._items[number]
        if asked.has_ids or message.tool_call_id is not None or not is_near:
            call = _named(asked.calls[place])
            self._reader.repair(index, f"the result does not say of which call, it is for {call}")
        asked.answer(place, (index, message))

    def _fill(self, asked: _Asked) -> None:
        while (number := asked.first_waiting()) is not None:
            call = asked.calls[number]
            self._reader.repair(asked.index, f"{_named(call)} has no result, it gets one")
            asked.answer(number, (asked.index, Message("tool", NOT_ANSWERED)))


def _named(call: ToolCall) -> str:
    id = f" {shorten(call.id, 80)}" if call.id is not None else ""
    return f"the call{id} of {shorten(call.name, 80)}"


def _without_volatile_lines(
    items: Sequence[_Item], lines: Sequence[re.Pattern[str]]
) -> list[_Item]:
    """Leave out matching lines at the head of the leading system messages, and what they empty."""
    for number, (index, message) in enumerate(items):
        if message.role != "system":
            break
        texts = [message.content] if message.parts is None else [p.text for p in message.parts]
        done = 0
        while done < len(texts):
            rest = _without_head(texts[done], lines)
            if rest or not texts[done]:
                texts[done] = rest
                break
            done += 1
        if done < len(texts):
            return [(index, _with_texts(message, texts, done)), *items[number + 1 :]]
        if not texts or number + 1 == len(items):
            return [(index, _with_texts(message, texts, done)), *items[number + 1 :]]
    else:
        return list(items)
    return list(items[number:])


def _without_head(text: str, lines: Sequence[re.Pattern[str]]) -> str:
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end].removesuffix("\r")
        if not any(pattern.fullmatch(line) for pattern in lines):
            break
        start = end + 1
    return text[start:]


def _with_texts(message: Message, texts: Sequence[str], start: int) -> Message:
    """Return a message with other texts, from one of its parts on."""
    if message.parts is None:
        return replace(message, content="".join(texts[start:]))
    parts = tuple(
        replace(part, text=text)
        for part, text in zip(message.parts[start:], texts[start:], strict=True)
    )
    return replace(message, content="".join(texts[start:]), parts=parts)
