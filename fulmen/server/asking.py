"""One request and what comes of it, in no dialect's words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fulmen.chat import Completion, Event, FoundTurn, Message, Token
from fulmen.sampling import SamplingParams

MissReason = Literal["system_changed", "tools_changed", "messages_changed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One request for answers."""

    messages: Sequence[Mapping[str, Any]]
    """The conversation as the client sent it"""
    messages_name: str = "messages"
    """Field that they came in"""
    places: Sequence[int] | None = None
    """Index of each message in that field, where it has others; below 0 for what came earlier"""
    system: object = None
    """System prompt that the client sent apart from the messages: text or text parts"""
    tools: Sequence[Mapping[str, Any]] = ()
    deferred_tools: Sequence[Mapping[str, Any]] = ()
    """Tools that may be called and that the prompt does not show: the history tells of them"""
    params: SamplingParams
    prompt_ids: tuple[int, ...] | None = None
    """The prompt as ids, in place of messages"""
    prefix_ids: tuple[int, ...] = ()
    """Ids that the answer begins with"""
    texts: tuple[str | tuple[int, ...], ...] = ()
    """Texts, or their ids, in place of messages: each is continued as it stands"""
    adds_special_tokens: bool = True
    """A text gets the tokens that the tokenizer puts around any, such as a BOS token"""
    num_answers: int = 1
    """Answers to the messages, or to each text"""
    keep_thoughts: bool | None = None
    """Show earlier thoughts that the template drops; None: as the server is set"""
    continues: bool = False
    """A last message of the assistant is the beginning of the answer"""
    must_continue: bool = False
    """The last message must be the beginning of the answer"""
    adds_generation_prompt: bool = True
    """The prompt ends where an answer begins; otherwise it can only be looked at"""
    has_thinking_budget: bool = False
    """The request gave its thought a number of tokens, or no limit by number"""
    model: str
    """Name that the client asked for"""
    session: str | None = None
    """Session that the answer is kept in"""
    session_turn: str | None = None
    """Id of its last turn as the client knows it, empty for none; None: the client does not say"""
    previous_id: str | None = None
    """Answer that the client compares this prompt's cache hits with"""
    ignored: tuple[str, ...] = ()
    """Fields of the request that had no effect"""

    @property
    def num_all_answers(self) -> int:
        """Answers to the messages, or to all texts."""
        return self.num_answers * max(len(self.texts), 1)

    def place_of(self, index: int) -> int:
        """Return where a message stands in the field that the client sent."""
        return index if self.places is None or index < 0 else self.places[index]

    def in_places(self, sentence: str) -> str:
        """Return a sentence of `read_history` about the field that the client sent."""

        def named(found: re.Match[str]) -> str:
            place = self.place_of(int(found[1]))
            return f"{self.messages_name}[{place}]" if place >= 0 else "an earlier response"

        return re.sub(r"^messages\[(\d+)\]", named, sentence)


@dataclass(frozen=True, slots=True)
class Update:
    """News of one answer."""

    index: int
    events: Sequence[Event]
    tokens: Sequence[Token] = ()
    """Tokens that came since the last update; their text may come a little later"""


@dataclass(frozen=True, slots=True)
class Progress:
    """Nothing new for a while; the prompt is read so far."""

    num_read_tokens: int
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class End:
    """End of one answer, and everything it came to."""

    index: int
    completion: Completion
    shown: Message
    """The answer as the client was sent it"""
    is_call_cut: bool
    """True if a call was begun and not ended: it must not be carried out"""
    spoken: Sequence[Event] = ()
    """All of its events, in order; pieces of one text are one event"""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, with the beginning of the answer that the client gave."""
        return self.completion.usage.num_prompt_tokens + len(self.completion.prefix_ids)

    @property
    def num_thinking_tokens(self) -> int:
        """Tokens of the thought; a thought that was closed at once is none."""
        reply = self.completion.reply
        return self.completion.usage.num_thinking_tokens if reply.thinking else 0


@dataclass(frozen=True, slots=True)
class Report:
    """Account of a history: which turns are ours, and what of the prompt was new."""

    turns: Sequence[FoundTurn]
    repairs: Sequence[str] = ()
    ignored: Sequence[str] = ()
    num_dropped_images: int = 0
    previous_id: str | None = None
    """Answer that the prompt was compared with; None if none is known"""
    miss_reason: MissReason | None = None
    num_common_tokens: int = 0
    """Tokens of it that this prompt begins with"""
    num_missed_tokens: int = 0
    """Tokens of the compared prompt and its answer that this prompt does not begin with"""

    def is_evicted(self, num_cached_tokens: int) -> bool:
        """Return whether the prompt went on from an earlier one that the cache did not hold any
        more."""
        return num_cached_tokens < self.num_common_tokens // 2

    def to_dict(self) -> dict[str, Any]:
        """Return the report as the extension `fulmen` of a reply."""
        report: dict[str, Any] = {
            "turns": [
                {key: value for key, value in _turn_fields(turn) if value is not None}
                for turn in self.turns
            ]
        }
        if self.previous_id is not None:
            report["compared_with"] = self.previous_id
            report["missed_tokens"] = self.num_missed_tokens
            report["miss_reason"] = self.miss_reason
        for name in ("repairs", "ignored"):
            if values := getattr(self, name):
                report[name] = list(values)
        if self.num_dropped_images:
            report["dropped_images"] = self.num_dropped_images
        return report


def _turn_fields(turn: FoundTurn) -> Sequence[tuple[str, Any]]:
    return (("message", turn.index), ("state", turn.state), ("by", turn.by), ("id", turn.turn_id))
