"""The one protocol of every model that answers: a request in, events as they come, a completion.

    ChatRequest -> ChatModel.stream -> events -> Completion

A local engine, a server at a URL and a scripted model all speak it, so agents, environments and the
trainer need not know which of them they hold.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Literal, Protocol, Self

from fulmen.chat.events import Event, Reply
from fulmen.chat.messages import EXAMPLE_MESSAGE, Message, SampledIds, Tool
from fulmen.sampling import FinishReason, SamplingParams, check_whole, shown

Overflow = Literal["prompt", "prompt and answer"]
"""Tokens that a context is too short for; the answer's are the most that were asked for"""


class ModelError(Exception):
    """A model that failed to answer, through no fault of the request: one sentence says why."""

    def __init__(
        self, message: str, *, status: int = 502, retry_after: float | None = None
    ) -> None:
        """status: what a server in front of the model answers with, an HTTP status; retry_after:
        seconds until another try may help, if that is known"""
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.overflow: Overflow | None = None
        """Part of the request that the context has no room for, if that is why it failed"""
        self.public: str | None = None
        """Sentence for callers of a server in front, where the error's own is for its log alone"""


class TokenBudget:
    """Tokens of thought that several requests share, such as those of one trajectory."""

    def __init__(self, num_tokens: int) -> None:
        check_whole("the budget of tokens", num_tokens, 0, 2**62)
        self.num_left = num_tokens
        self._lock = Lock()

    def reserve(self, num_tokens: int) -> int:
        """Take tokens out, at most all that are left; return how many."""
        with self._lock:
            taken = min(num_tokens, self.num_left)
            self.num_left -= taken
            return taken

    def give_back(self, num_tokens: int) -> None:
        """Return tokens that were reserved and not used."""
        with self._lock:
            self.num_left += num_tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as token ids, and what of the conversation before it has to be read again."""

    ids: tuple[int, ...]
    num_reread_tokens: int = 0
    """Tokens of earlier turns that were known and stand after a change, so they are read again"""
    reread_reason: str | None = None
    num_straddling_tokens: int = 0
    """Sampled tokens that held the end of a dropped thought and the start of its answer; the
    answer's text in them is encoded anew"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """Everything that one answer depends on."""

    messages: Sequence[Message | Mapping[str, Any]] = ()
    """The conversation so far, in any shape that `read_messages` takes"""
    tools: Sequence[Tool | Mapping[str, Any]] = ()
    params: SamplingParams | None = None
    """None: the model's own recommendation"""
    text: str | Sequence[int] | None = None
    """Text, or ids, that the answer goes on from as it stands, in place of messages: no chat format
    is read or written, so there is no thought and no call, and all of the answer is content"""
    prompt: Prompt | None = None
    """The conversation, or the text, as ids where they are known; used instead of encoding it"""
    prefix_ids: Sequence[int] = ()
    """Ids that the answer begins with: the rest is drawn as if it had never stopped, if it had a
    seed. The events of the prefix are not given again; the reply holds all."""
    prefix_logprobs: Sequence[float] = ()
    """Log-probabilities of prefix_ids; only a repetition_window needs them"""
    forced_ids: Sequence[int] = ()
    """Ids that come first whatever the model says; their log-probabilities are the model's own"""
    first_scored: int = 1
    """Index of the prompt's first token whose log-probability is reported, if `prompt_logprobs`
    asks for any: the cache may know those before it"""
    budget: TokenBudget | None = None
    """Tokens of thought that this answer shares with others"""
    priority: int = 0
    """Lower ones go first."""

    def __post_init__(self) -> None:
        for name, kinds in (
            ("params", SamplingParams | None),
            ("text", str | Sequence | None),
            ("prompt", Prompt | None),
            ("budget", TokenBudget | None),
            ("messages", Sequence),
            ("tools", Sequence),
            ("prefix_ids", Sequence),
            ("prefix_logprobs", Sequence),
            ("forced_ids", Sequence),
        ):
            value = getattr(self, name)
            is_text = isinstance(value, bytes) or (isinstance(value, str) and name != "text")
            if not isinstance(value, kinds) or is_text:
                kind = type(value).__name__
                raise ValueError(f"{name} of a request is of type {kind}, see ChatRequest")
        if self.text is not None and (self.messages or self.tools):
            name = "messages" if self.messages else "tools"
            raise ValueError(f"a request has a text and {name}, a text goes on as it stands alone")
        check_whole("first_scored", self.first_scored, 1, 2**62)
        if len(self.prefix_logprobs) > len(self.prefix_ids):
            raise ValueError(
                f"prefix_logprobs has {len(self.prefix_logprobs)} entries, prefix_ids has "
                f"{len(self.prefix_ids)}"
            )
        for value in self.prefix_logprobs:
            if not isinstance(value, float | int) or isinstance(value, bool):
                raise ValueError(f"prefix_logprobs holds {shown(value)}, it must hold numbers")


def as_request(
    messages: "ChatRequest | Iterable[Message | Mapping[str, Any]]", **fields: Any
) -> ChatRequest:
    """Return a request made of messages and fields of `ChatRequest`, or one with fields changed."""
    if isinstance(messages, ChatRequest):
        return replace(messages, **fields)
    tools = fields.pop("tools", None)
    for name, given in (("messages", messages), ("tools", () if tools is None else tools)):
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
            example = f", such as [{EXAMPLE_MESSAGE}]" if name == "messages" else ""
            raise ValueError(
                f"{name} is of type {type(given).__name__}, it must be a list{example}"
            )
    return ChatRequest(messages=tuple(messages), tools=tuple(tools or ()), **fields)


def text_request(prompt: str | Sequence[int], **fields: Any) -> ChatRequest:
    """Return a request to go on from a text, or ids, as they stand; fields are those of
    `ChatRequest`."""
    if not isinstance(prompt, str | Sequence) or isinstance(prompt, bytes):
        kind = type(prompt).__name__
        raise ValueError(f"the prompt is of type {kind}, it must be text or a list of token ids")
    return ChatRequest(text=prompt, **fields)


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token."""

    token_id: int
    logprob: float
    """Natural logarithm, in the model's own distribution, before masks and temperature"""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the likeliest tokens, best first"""
    is_forced: bool = False
    """True if it was given, not drawn"""
    policy_version: int | None = None
    """Number of times that the model's weights had changed when it came, see
    `LocalModel.load_weights`; None where that is not known"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens that one answer took."""

    num_prompt_tokens: int
    num_cached_tokens: int = 0
    """Prompt tokens that were found in the cache"""
    num_new_tokens: int
    num_thinking_tokens: int = 0
    num_reread_tokens: int = 0
    """See `Prompt`"""
    reread_reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds that one answer took."""

    queue_seconds: float
    """From the request's arrival to its first step"""
    prompt_seconds: float
    """From there to the answer's first new token: the prompt is read"""
    decode_seconds: float
    """From there to the last token so far"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """An answer and everything known about how it came to be."""

    reply: Reply
    finish_reason: FinishReason
    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...] = ()
    """Ids that the answer was told to begin with, between prompt and tokens"""
    prefix_logprobs: tuple[float, ...] = ()
    """Log-probabilities of prefix_ids, as far as the request knew them"""
    tokens: tuple[Token, ...]
    """Every new token, the one that ended the turn included"""
    prompt_tokens: tuple[Token, ...] = ()
    """Tokens of the prompt from `first_scored` on, if `prompt_logprobs` was asked for"""
    params: SamplingParams
    """Sampling that was used; the seed is the one that was drawn if none was given."""
    usage: Usage
    sampled: SampledIds | None = None
    """The answer as ids and spans, for a model that knows ids"""
    stop_text: str | None = None
    """Stop text that ended the answer"""
    is_context_full: bool = False
    """True if the answer ended because the context was full, not at max_tokens"""
    timing: Timing | None = field(default=None, compare=False)
    """None for a model that has no clock, or an answer without a new token"""

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """All ids of the answer."""
        return (*self.prefix_ids, *(token.token_id for token in self.tokens))

    @property
    def message(self) -> Message:
        """The answer as the assistant's message in the history, with its ids."""
        return replace(self.reply.message(), sampled=self.sampled)


class AnswerStream(Protocol):
    """A running answer: iterate for its events; close one that is not read to its end."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...
    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def close(self) -> None:
        """End the answer, if it still runs."""

    async def finish(self) -> Completion:
        """End the answer if it still runs, and return everything it came to."""


class ChatModel(Protocol):
    """A model that answers requests."""

    def stream(self, request: ChatRequest) -> AnswerStream:
        """Return the answer to a request; it starts when it is entered or first awaited. Whatever
        is wrong with the request is a ValueError then."""


async def complete(model: ChatModel, request: ChatRequest) -> Completion:
    """Return the whole answer of a model to a request."""
    async with model.stream(request) as stream:
        async for _ in stream:
            pass
        return await stream.finish()
