"""The grammar of one answer: which ids may come next, so that the answer follows what it must.

A `Grammar` reads every id of one completion. Thoughts are free; after the thought, or without one,
llguidance says which ids the grammar of the answer allows. Tags may be made of several ids, and an
id may hold the end of a tag and the start of other text, so a `Grammar` reads bytes, not ids. An id
that completes a tag and continues with text that may not follow, or that ends the turn inside a
thought although an answer is owed, is masked with `redraw_only`: the token is drawn without the
mask, and drawn again only if it is that id. No token that came is ever changed.

    thought -> beginning -> answer          with json_schema, regex or choice
    thought -> text -> calls -> text ...    with strict_tools, or other limits of calls
    thought -> beginning -> answer | calls  with both
    thought -> beginning -> calls           where a call is required

Constrained content must survive the parser, so it holds no tag of the format, unless the grammar
allows nothing else. Masks are arrays over the model's vocabulary.
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import numpy as np
from llguidance import LLMatcher

from fulmen.chat.format import ChatFormat
from fulmen.chat.vocabulary import Allowed, Vocabulary, grammar_failed
from fulmen.sampling import Mask

_logger = logging.getLogger(__name__)

_NUM_NEWLINES: Final = 2
"""Most newlines between a thought and the answer"""


class _Phase(Enum):
    """State of a completion."""

    THOUGHT = auto()
    BEGINNING = auto()
    """Nothing yet, or text that may be the beginning of the answer and of a tag"""
    ANSWER = auto()
    TEXT = auto()
    """Text that no grammar constrains"""
    CALLS = auto()
    FREE = auto()
    """Text after a forced token that broke the grammar"""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldCalls:
    """Limits of the tool calls of one completion."""

    matcher: LLMatcher | None
    """Grammar of a block of calls after its opening tag; None where no block may begin"""
    is_required: bool = False
    """True if the answer is a block of calls and nothing else"""
    is_one_block: bool = False
    """True if no block may follow the first"""
    has_plain_values: bool = False
    """True if no argument holds a tag of the format"""


class Grammar:
    """Grammar of one completion, and its state after the ids so far."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        format: ChatFormat | None,
        answer: LLMatcher | None,
        calls: HeldCalls | None,
    ) -> None:
        """Without an answer its text is free, without calls too; an answer alone has no calls."""
        self._vocabulary = vocabulary
        self._answer = answer
        self._calls = calls.matcher if calls else None
        self._is_call_required = calls is not None and calls.is_required
        self._is_one_block = calls is not None and calls.is_one_block
        self._has_plain_values = calls is not None and calls.has_plain_values
        self._may_open_calls = self._calls is not None
        thinking, call_tags = (format.thinking, format.calls) if format else (None, None)
        start = thinking.start if thinking else None
        self._thinking_start = start.encode() if start else None
        self._thinking_end = thinking.end.encode() if thinking else None
        self._tool_block = call_tags.block.encode() if call_tags else None
        self._may_call_while_thinking = call_tags is not None and call_tags.ends_thought
        self._tags = [tag.encode() for tag in format.tags] if format else []
        self._call_tags = [tag.encode() for tag in call_tags.reserved] if call_tags else []
        self._longest = max(map(len, (*self._tags, *self._call_tags)), default=0)
        self._phase = _Phase.THOUGHT
        self._is_sure_thought = True  # False where a parser may see code that quotes the tag
        self._num_thoughts = 1
        self._matcher: LLMatcher | None = None  # of the phase; None once its text left the grammar
        self._tail = b""  # the last bytes of the phase, as many as a tag may have
        self._num_newlines = 0  # newlines that may still come before the answer
        self._openers: list[bytes] = []  # tags that may come instead of the answer
        self._must_close = False
        self._is_call_in_thought = False
        if format is None or not format.thinking_open_in_prompt:
            self._num_thoughts = 0
            self._begin(num_newlines=0, may_think=True)

    @property
    def has_plain_values(self) -> bool:
        """True if no argument of a call holds a tag of the format."""
        return self._has_plain_values and self._phase is not _Phase.FREE

    def masks(self, draft_ids: Sequence[int]) -> list[Mask | None]:
        """Return the mask of the next id, then of the id after each draft id, up to the first draft
        that is not allowed. None allows all ids."""
        ahead = self
        if draft_ids:
            ahead = copy.copy(self)
            ahead._matcher = None if self._matcher is None else self._matcher.deep_copy()
        masks = [ahead._mask()]
        for token_id in draft_ids:
            if masks[-1] is not None and not masks[-1].allowed[token_id]:
                break
            ahead.accept(token_id)
            masks.append(ahead._mask())
        return masks

    # Masks of the next id.

    def _mask(self) -> Mask | None:
        match self._phase:
            case _Phase.THOUGHT:
                return self._mask_thought()
            case _Phase.TEXT:
                return self._all_but(self._bad_calls())
            case _Phase.BEGINNING:
                return Mask(self._mask_beginning())
            case _Phase.ANSWER:
                return Mask(self._without(self._matcher_mask(), self._tags))
            case _Phase.CALLS:
                mask = self._matcher_mask()
                tags = [tag for tag in self._call_tags if not self._may_end(tag, mask)]
                return Mask(self._without(mask, tags))
        return None

    def _mask_thought(self) -> Mask | None:
        end = self._thinking_end
        assert end is not None
        if self._must_close:
            known = next(n for n in range(len(end) - 1, -1, -1) if self._tail.endswith(end[:n]))
            return Mask(self._vocabulary.only(self._vocabulary.beginning(end[known:])))
        bad = [
            token_id
            for token_id, leftover in self._vocabulary.completing(self._tail, end)
            if leftover.strip(b"\n")
        ]
        if self._may_call_while_thinking:
            bad += self._bad_calls()
        elif not self._is_sure_thought:
            bad += [token_id for token_id, _ in self._opening_calls()]
        if self._is_answer_owed:  # the turn may not end before it
            bad += self._vocabulary.eos_token_ids
        return self._all_but(bad)

    def _bad_calls(self) -> list[int]:
        """Return the ids that open a block of calls where none may begin, or continue with text
        that is not a call."""
        if self._calls is None and self._is_answer_owed:  # the thought is led to its end
            return []
        return [
            token_id
            for token_id, leftover in self._opening_calls()
            if not self._may_open_calls or leftover not in (b"", b"\n")
        ]

    def _opening_calls(self) -> Iterator[tuple[int, bytes]]:
        """Yield the ids that open a block of calls, and their text past the tag."""
        if self._tool_block is not None:
            yield from self._vocabulary.completing(self._tail, self._tool_block)

    @property
    def _is_answer_owed(self) -> bool:
        """True if more than a thought has to come."""
        return self._answer is not None or self._is_call_required

    def _mask_beginning(self) -> Allowed:
        vocabulary = self._vocabulary
        if self._matcher is None:
            mask = vocabulary.only(())
        else:
            mask = self._without(self._matcher_mask(), self._tags)
            if self._thinking_end is not None and not self._tail:
                mask[vocabulary.starting_with(b"\n")] = False  # newlines here are layout
        for opener in self._openers:
            if opener.startswith(self._tail):
                rest = opener[len(self._tail) :]
                mask[vocabulary.beginning(rest)] = True
                if opener == self._thinking_start:
                    mask[vocabulary.starting_with(rest)] = True
                elif (last := vocabulary.id_of(rest + b"\n")) is not None:
                    mask[last] = True  # the newline that calls begin with is in the tag's last id
        if not self._tail and self._num_newlines:
            mask[vocabulary.beginning(b"\n" * self._num_newlines)] = True
        return mask

    def _matcher_mask(self) -> Allowed:
        assert self._matcher is not None
        return self._vocabulary.mask(self._matcher)

    def _without(self, mask: Allowed, tags: Iterable[bytes]) -> Allowed:
        """Return a mask without the ids that complete a tag, if others are left."""
        ids = [
            token_id
            for tag in tags
            for token_id, _ in self._vocabulary.completing(self._tail, tag)
            if token_id < len(mask)
        ]
        kept = mask.copy()
        kept[ids] = False
        return kept if kept.any() else mask

    def _all_but(self, token_ids: list[int]) -> Mask | None:
        """Return a mask of all other ids, rows without a token included: only these are redrawn."""
        if not token_ids:
            return None
        mask = np.ones(self._vocabulary.vocab_size, dtype=np.bool_)
        mask[token_ids] = False
        return Mask(mask, redraw_only=True)

    def _may_end(self, tag: bytes, mask: Allowed) -> bool:
        """Return True if a tag that may come is the call's own, not text of a JSON string.

        After the call's own tag only layout and the next tag may come, so the next text is known.
        """
        assert self._matcher is not None
        for token_id, _ in self._vocabulary.completing(self._tail, tag):
            if token_id < len(mask) and mask[token_id]:
                ahead = self._matcher.deep_copy()
                ahead.consume_token(token_id)
                return ahead.is_stopped() or bool(ahead.compute_ff_bytes())
        return True

    # Ids that came.

    def accept(self, token_id: int) -> None:
        """Take the id that came next. An id that the grammar does not allow, which only a caller
        can force, ends the constraint."""
        text = self._vocabulary.texts[token_id]
        match self._phase:
            case _Phase.THOUGHT:
                self._read_thought(text)
            case _Phase.TEXT:
                self._read_text(text)
            case _Phase.BEGINNING:
                self._read_beginning(token_id, text)
            case _Phase.ANSWER:
                self._keep_tail(text)
                self._consume(token_id)
            case _Phase.CALLS:
                self._read_call(token_id, text)

    def _begin(self, *, num_newlines: int, may_think: bool) -> None:
        """Start the answer: the thought is over, or there may be none."""
        self._tail = b""
        if not self._is_answer_owed:
            self._phase = _Phase.TEXT
            return
        self._phase = _Phase.BEGINNING
        self._matcher = None if self._answer is None else self._answer.deep_copy()
        self._num_newlines = num_newlines
        openers = (
            self._thinking_start if may_think else None,
            self._tool_block if self._calls is not None else None,
        )
        self._openers = [opener for opener in openers if opener is not None]

    def _read_thought(self, text: bytes) -> None:
        may_call = self._may_call_while_thinking
        tag, rest = self._find(text, self._thinking_end, self._tool_block if may_call else None)
        if tag is None:
            return
        if tag == self._thinking_end:
            self._must_close = False
            num_newlines = _NUM_NEWLINES + self._is_call_required  # a tag has one before it
            self._begin(num_newlines=num_newlines, may_think=False)
            if self._phase is _Phase.TEXT:
                self._read_text(rest)
                return
            answer = rest.lstrip(b"\n")
            self._num_newlines = max(self._num_newlines - (len(rest) - len(answer)), 0)
            self._accept_text(answer)
        elif self._calls is not None:
            self._open_calls(rest, is_in_thought=True)
        elif not self._is_answer_owed:
            self._give_up()
        else:  # a parser would read a call here, and only the answer may follow
            self._must_close = True
            self._read_thought(rest)

    def _read_text(self, text: bytes) -> None:
        tag, rest = self._find(text, self._thinking_start, self._tool_block)
        if tag is not None:
            self._open(tag, rest)

    def _read_beginning(self, token_id: int, text: bytes) -> None:
        if not self._tail and not text.strip(b"\n") and len(text) <= self._num_newlines:
            self._num_newlines -= len(text)
            return
        self._tail += text
        if self._matcher is not None and not self._try(token_id):
            self._matcher = None
        for opener in self._openers:
            if self._tail.startswith(opener):
                self._open(opener, self._tail[len(opener) :])
                return
        if not any(opener.startswith(self._tail) for opener in self._openers):
            self._phase = _Phase.ANSWER
            if self._matcher is None:
                self._give_up()

    def _open(self, tag: bytes, rest: bytes) -> None:
        """Start a thought or a block of calls; rest is the text after its tag."""
        if tag == self._thinking_start:
            self._phase, self._tail = _Phase.THOUGHT, b""
            self._is_sure_thought = not self._num_thoughts
            self._num_thoughts += 1
            self._read_thought(rest)
        else:
            self._open_calls(rest, is_in_thought=False)

    def _open_calls(self, rest: bytes, *, is_in_thought: bool) -> None:
        if self._calls is None or not self._may_open_calls:
            self._give_up()
            return
        self._phase, self._tail = _Phase.CALLS, b""
        self._is_call_in_thought = is_in_thought
        self._matcher = self._calls.deep_copy()
        self._accept_text(rest)

    def _read_call(self, token_id: int, text: bytes) -> None:
        if self._is_call_in_thought and not self._try(token_id, consume=False):
            # A closing tag was forced before a call began: this was still the thought.
            self._phase = _Phase.THOUGHT
            self._read_thought(text)
            return
        self._keep_tail(text)
        self._consume(token_id)
        if self._phase is _Phase.CALLS and not self._is_answer_owed and self._is_stopped():
            self._may_open_calls = not self._is_one_block
            self._begin(num_newlines=0, may_think=False)

    def _is_stopped(self) -> bool:
        assert self._matcher is not None
        return self._matcher.is_stopped()

    def _accept_text(self, text: bytes) -> None:
        """Take the text that an id brought after a tag."""
        for token_id in self._vocabulary.ll_tokenizer.tokenize_bytes(text):
            self.accept(token_id)

    def _find(self, text: bytes, *tags: bytes | None) -> tuple[bytes | None, bytes]:
        """Return the tag that the new text completes first, and the text after it."""
        whole = self._tail + text
        found = [(at, tag) for tag in tags if tag is not None and (at := whole.find(tag)) >= 0]
        if not found:
            self._keep_tail(text)
            return None, b""
        at, tag = min(found)
        self._tail = b""
        return tag, whole[at + len(tag) :]

    def _keep_tail(self, text: bytes) -> None:
        self._tail = (self._tail + text)[-max(self._longest - 1, 1) :]

    def _consume(self, token_id: int) -> None:
        if not self._try(token_id):
            self._give_up()

    def _try(self, token_id: int, *, consume: bool = True) -> bool:
        """Return whether the matcher takes an id; it takes every id that ends the turn."""
        if token_id in self._vocabulary.eos_token_ids:
            return True
        assert self._matcher is not None
        if self._matcher.validate_tokens([token_id]) != 1:
            return False
        if consume and not self._matcher.consume_token(token_id):
            raise grammar_failed(self._matcher)
        return True

    def _give_up(self) -> None:
        _logger.warning("a forced token breaks the grammar of an answer, which is free from here")
        self._phase = _Phase.FREE
