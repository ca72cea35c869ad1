"""Formats: how a model's prompts are written, and its completions read.

A format is the only part of chat that differs between models: `segments` writes a conversation,
`parser` reads a completion, `call_grammar` constrains its calls. Its tags are told once, in
`ThinkingTags` and `CallTags`, and read by all who must know where a thought or a call is: the
parser itself, the grammar of an answer, thinking budgets and transcripts.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from fulmen.chat.events import Reply
from fulmen.chat.messages import CallIds, Message, Messages, Tool, Tools, random_call_id
from fulmen.chat.parsing import Parser
from fulmen.chat.reading import check_not_empty
from fulmen.chat.tokenizer import Ids, Segment, Tokenizer, join_segments


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinkingTags:
    """The texts that open and close a thought."""

    start: str | None = None
    """Tag by which a completion opens a thought; None where only the prompt does"""
    end: str
    """Tag that closes a thought"""
    is_open_in_prompt: bool
    """True when the generation prompt ends inside the thought"""
    forced_start: str
    """Text that opens a thought as the model would, after the generation prompt; may be empty"""
    forced_end: str
    """Text that ends a thought as the model would, written when its budget is used up"""
    again: str
    """Tag by which a completion opens another thought, anywhere in its content but in code"""
    last_phrase: str = "I have thought enough, it is time to answer.\n"
    """Text before `forced_end`, where the budget has room for it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallTags:
    """The texts that tell tool calls from content."""

    block: str
    """Tag that opens a block of calls"""
    ends_thought: bool
    """True when a block of calls inside the thought ends it, False when it is part of it"""
    reserved: tuple[str, ...] = ()
    """Texts that the JSON of an argument cannot hold: a parser takes them for the call's own"""


class ThoughtPlace(NamedTuple):
    """Place of the thought in the text of a completion, in characters."""

    start: int
    stop: int
    answer: int
    """Start of the answer: after the closing tag and the layout behind it"""
    is_closed: bool = True
    opening: int = 0
    """Start of its opening tag, or of the text where the prompt has opened it"""


class EncodedHistory(NamedTuple):
    """Prompt as ids, some of them as they were sampled."""

    ids: list[int]
    num_history_ids: int
    """Number of ids up to the end of the last sampled answer"""
    num_dropped: int
    """Number of answers whose thought the format leaves out"""
    num_straddling: int
    """Number of them where one id held the end of the thought and the start of the answer"""


class ChatFormat(ABC):
    """Prompts and completions of one model; `get_format` and `load_format` return one."""

    name: str
    """Name that `get_format` finds it by"""
    end_of_turn: str
    """Text of the token that ends a turn"""
    thinking: ThinkingTags | None = None
    """Tags of a thought; None where completions have no thought"""
    calls: CallTags | None = None
    """Tags of tool calls; None where completions have no calls, only text"""
    tags: tuple[str, ...] = ()
    """Texts that content cannot hold: a parser takes them for structure"""
    template: str | None = None
    """The checkpoint's own jinja template, for programs that render prompts themselves"""

    @property
    def thinking_open_in_prompt(self) -> bool:
        """True when the generation prompt ends inside the thought."""
        return self.thinking is not None and self.thinking.is_open_in_prompt

    @property
    def thinking_end(self) -> str | None:
        """Tag that closes a thought, if completions have one."""
        return self.thinking.end if self.thinking else None

    @property
    def thinking_forced_start(self) -> str | None:
        """Text that opens a thought as the model would, if completions have one."""
        return self.thinking.forced_start if self.thinking else None

    @property
    def thinking_forced_end(self) -> str | None:
        """Text that ends a thought as the model would, if completions have one."""
        return self.thinking.forced_end if self.thinking else None

    @property
    def thinking_last_phrase(self) -> str:
        """Text before `thinking_forced_end`, where a budget has room for it."""
        return self.thinking.last_phrase if self.thinking else ""

    @abstractmethod
    def segments(
        self,
        messages: Messages,
        tools: Tools = None,
        add_generation_prompt: bool = True,
        *,
        keep_thoughts: bool = False,
    ) -> list[Segment]:
        """Return the prompt as plain texts, control tokens and, for messages with `sampled`, ids.

        keep_thoughts  show every earlier thought, also those that the template drops
        """

    def shows_thoughts(
        self, messages: Sequence[Message], *, keep_thoughts: bool = False
    ) -> list[bool]:
        """Return for each message whether a prompt shows its thought apart from its content; a
        format that has no tags of a thought shows none."""
        return [False] * len(messages)

    def find_thought(self, text: str) -> ThoughtPlace:
        """Find the thought in the text of a completion; a format without one finds none."""
        return ThoughtPlace(0, 0, 0)

    def find_thoughts(self, text: str) -> list[ThoughtPlace]:
        """Find all thoughts in the text of a completion: the first, and those it opens again."""
        places = [self.find_thought(text)]
        if self.thinking is None or self.thinking.again not in text[places[0].answer :]:
            return places
        parser = self.parser()
        parser.feed(text)
        parser.finish_events()
        openings = [*parser.later_thoughts, len(text)]
        for opening, end in pairwise(openings):
            start = opening
            if self.thinking.is_open_in_prompt:  # `find_thought` reads from behind the tag
                start += len(self.thinking.again)
                start += len(text[start:end]) - len(text[start:end].lstrip("\n"))
            place = self.find_thought(text[start:end])
            bounds = (start + place.start, start + place.stop, start + place.answer)
            places.append(ThoughtPlace(*bounds, place.is_closed, opening))
        return places

    @abstractmethod
    def parser(
        self,
        tools: Tools = None,
        thinking_open: bool = True,
        *,
        new_call_id: CallIds = random_call_id,
    ) -> Parser:
        """Return a parser for one completion that comes in pieces.

        thinking_open  the text begins where a thought is still to come: inside it if the prompt
                       opened it, else at its opening tag; False: the thought is over
        """

    def call_grammar(
        self, tools: tuple[Tool, ...], tokenizer: Tokenizer, *, max_calls: int | None = None
    ) -> str:
        """Return the grammar of a block of calls after its `CallTags.block`, in llguidance's Lark:
        calls of these tools, at most max_calls, with arguments of their types."""
        raise ValueError(
            f"strict_tools is on, the format {self.name} does not tell tool calls from text"
        )

    def render(
        self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt as text."""
        messages = without_ids(messages)
        return join_segments(self.segments(messages, tools, add_generation_prompt))

    def encode(
        self,
        messages: Messages,
        tools: Tools = None,
        add_generation_prompt: bool = True,
        *,
        tokenizer: Tokenizer,
    ) -> list[int]:
        """Return the prompt as ids; in native formats no message text becomes a special token.

        Raises ValueError for a conversation without messages.
        """
        messages = list(messages)
        check_not_empty(messages)
        return tokenizer.encode_segments(self.segments(messages, tools, add_generation_prompt))

    def encode_history(
        self,
        messages: Messages,
        tools: Tools = None,
        add_generation_prompt: bool = True,
        *,
        tokenizer: Tokenizer,
        keep_thoughts: bool = False,
    ) -> EncodedHistory:
        """Return the prompt as ids, and how much of it are sampled ids of `messages`."""
        messages = list(messages)
        check_not_empty(messages)
        segments = self.segments(
            messages, tools, add_generation_prompt, keep_thoughts=keep_thoughts
        )
        sampled = [(i, one) for i, one in enumerate(segments) if isinstance(one, Ids)]
        end = sampled[-1][0] + 1 if sampled else 0
        # Text is encoded apart on both sides of ids, so the halves join to the whole.
        ids = tokenizer.encode_segments(segments[:end])
        num_history_ids = len(ids)
        ids += tokenizer.encode_segments(segments[end:])
        num_dropped = sum(one.num_dropped for _, one in sampled)
        return EncodedHistory(
            ids, num_history_ids, num_dropped, sum(one.num_straddling for _, one in sampled)
        )

    def parse(
        self,
        text: str,
        tools: Tools = None,
        thinking_open: bool = True,
        *,
        new_call_id: CallIds = random_call_id,
    ) -> Reply:
        """Read a whole completion."""
        parser = self.parser(tools, thinking_open, new_call_id=new_call_id)
        parser.feed(text)
        return parser.finish()


def without_ids(
    messages: Iterable[Message | Mapping[str, Any]],
) -> list[Message | Mapping[str, Any]]:
    """Return the messages without the ids they were sampled as."""
    return [
        replace(message, sampled=None) if isinstance(message, Message) else message
        for message in messages
    ]


def sampled_segments(message: Message, *, with_thought: bool) -> list[Segment]:
    """Return an assistant's message as its sampled ids, whole or from after its thought."""
    sampled = message.sampled
    assert sampled is not None
    tail = [sampled.tail] if sampled.tail else []
    if with_thought and not sampled.is_answer_only:
        return [Ids(sampled.ids), *tail]
    is_dropped = bool(sampled.answer_start or sampled.answer_lead)
    lead = [sampled.answer_lead] if sampled.answer_lead else []
    rest = Ids(sampled.ids[sampled.answer_start :], int(is_dropped), len(lead))
    return [*lead, rest, *tail]
