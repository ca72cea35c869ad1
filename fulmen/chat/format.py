"""What a format is: how one model's prompts are written and its completions read."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fulmen.chat.events import Reply
from fulmen.chat.messages import CallIds, Message, Messages, Tool, Tools, random_call_id
from fulmen.chat.parsing import Parser
from fulmen.chat.tokenizer import Ids, Segment, Tokenizer, join_segments


class ThoughtPlace(NamedTuple):
    """Where in the text of a completion its thought stands, in characters."""

    start: int
    stop: int
    answer: int
    """Start of the answer: after the closing tag and the layout behind it"""
    is_closed: bool = True


class EncodedHistory(NamedTuple):
    """A prompt as ids, some of them as they were sampled."""

    ids: list[int]
    num_history_ids: int
    """Ids up to the end of the last sampled answer"""
    num_dropped: int
    """Answers whose thought the format leaves out"""
    num_straddling: int
    """Those among them where one id held the end of the thought and the start of the answer"""


class ChatFormat(ABC):
    """Messages to a prompt, a completion to a Reply; `get_format` and `load_format` give one."""

    name: str
    """The name that `get_format` knows it by."""
    thinking_open_in_prompt: bool
    """Whether the generation prompt ends inside the thought."""
    end_of_turn: str
    """The text of the token that ends a turn."""
    thinking_end: str | None
    """The tag that closes a thought; None when the format has no thought."""
    thinking_forced_start: str | None
    """What opens a thought as the model would, where the prompt did not: may be empty; None when
    the format has no thought."""
    thinking_forced_end: str | None
    """What a thinking budget writes to end the thought as the model would."""
    thinking_last_phrase: str = "I have thought enough, it is time to answer.\n"
    """What it writes before, where there is room for it."""
    thinking_start: str | None = None
    """The tag by which a completion opens a thought; None where only the prompt can."""
    tool_block: str | None = None
    """The tag that opens a block of calls; None where calls are not told from text."""
    may_call_while_thinking: bool = False
    """Whether a block of calls inside the thought ends it, or is part of it."""
    tags: tuple[str, ...] = ()
    """Texts that content cannot hold: a parser takes them for structure."""
    call_tags: tuple[str, ...] = ()
    """Texts that the JSON of an argument cannot hold: a parser takes them for the call's own."""

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

    def find_thought(self, text: str) -> ThoughtPlace:
        """Find the thought in the text of a completion; a format without one finds none."""
        return ThoughtPlace(0, 0, 0)

    @abstractmethod
    def parser(
        self,
        tools: Tools = None,
        thinking_open: bool = True,
        *,
        new_call_id: CallIds = random_call_id,
    ) -> Parser:
        """A parser for one completion that comes in pieces.

        thinking_open says that the completion may begin inside the thought: see each format.
        """

    def call_grammar(self, tools: tuple[Tool, ...], tokenizer: Tokenizer) -> str:
        """What may follow `tool_block`, to the end of the block, as a grammar in llguidance's Lark:
        calls of these tools, with arguments of their types."""
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
        """Return the prompt as ids; in native formats no message text becomes a special token."""
        return tokenizer.encode_segments(self.segments(messages, tools, add_generation_prompt))

    def encode_history(
        self,
        messages: Messages,
        tools: Tools = None,
        *,
        tokenizer: Tokenizer,
        keep_thoughts: bool = False,
    ) -> EncodedHistory:
        """Return the prompt as ids, and what of it are sampled ids of `messages`."""
        segments = self.segments(messages, tools, keep_thoughts=keep_thoughts)
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
        """The reply in a whole completion."""
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
    if with_thought:
        return [Ids(sampled.ids), *tail]
    is_dropped = bool(sampled.answer_start or sampled.answer_lead)
    lead = [sampled.answer_lead] if sampled.answer_lead else []
    rest = Ids(sampled.ids[sampled.answer_start :], int(is_dropped), len(lead))
    return [*lead, rest, *tail]
