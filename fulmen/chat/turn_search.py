"""The search for the logged turns of one history, by the surest signs first.

    tool_call_id, signature   we issued it
    conversation              this answer after this conversation
    question                  this answer to this question
    content                   this answer

Signs only find candidates: all that is found has the canonical answer (`canonical.py`) that the
client shows. A turn stands for one answer only, and among several the one of a conversation that
other answers of the history are from is taken, in their order. Time is linear in the history.
"""

from bisect import bisect, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import inf
from typing import Final, Literal

from fulmen.chat.canonical import Answer, Context, Run
from fulmen.chat.mending import whole_text
from fulmen.chat.turn_rows import Row, TurnRows

Sign = Literal["tool_call_id", "signature", "conversation", "question", "content"]

_MAX_SIGNS: Final = 256
"""Call ids, or signatures, of one answer that are kept or looked up"""
_MAX_CONVERSATIONS: Final = 8
_SURE_CHARS: Final = 64
"""Characters by which an answer, without its conversation, is not another's by chance"""


class Keys:
    """Digests of signs in one scope and one vocabulary."""

    def __init__(self, scope: str, vocabulary: str) -> None:
        digest = blake2b(digest_size=32)
        for text in (scope, vocabulary):
            digest.update(blake2b(text.encode("utf-8", "surrogatepass")).digest())
        self._secret = digest.digest()
        self.owner = self._key("owner")

    def of_text(self, sign: Sign, text: str) -> bytes:
        """Return the key of a text that we issued."""
        return self._key(sign, whole_text(text).encode())

    def of_conversation(self, chain: bytes, answer: Answer) -> bytes:
        """Return the key of an answer after a conversation."""
        return self._key("conversation", chain, answer.digest)

    def of_question(self, question: bytes, answer: Answer) -> bytes:
        """Return the key of an answer to a question."""
        return self._key("question", question, answer.digest)

    def of_content(self, answer: Answer) -> bytes:
        """Return the key of an answer; every logged turn has it."""
        return self._key("content", answer.digest)

    def of_turn(
        self,
        answer: Answer,
        context: Context,
        call_ids: Iterable[str | None],
        signatures: Iterable[str],
    ) -> Iterator[bytes]:
        """Yield the keys under which an answer is logged."""
        for id in list(call_ids)[:_MAX_SIGNS]:
            if id is not None:
                yield self.of_text("tool_call_id", id)
        for text in list(signatures)[:_MAX_SIGNS]:
            yield self.of_text("signature", text)
        if context.chain is not None:
            yield self.of_conversation(context.chain, answer)
        if context.question is not None:
            yield self.of_question(context.question, answer)
        yield self.of_content(answer)

    def _key(self, kind: str, *items: bytes) -> bytes:
        digest = blake2b(kind.encode(), digest_size=16, key=self._secret)
        for item in items:
            digest.update(blake2b(item, digest_size=16).digest())
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Match:
    """Logged turn found for some messages of a run."""

    row: Row
    by: Sign
    length: int
    """Number of messages that are its answer"""
    answer: Answer
    """Answer that the client shows"""
    is_weak: bool = False
    """True if only the answer is known to be the same, not the thought before it"""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Messages of a run that may be one answer."""

    run: Run
    start: int
    stop: int
    answer: Answer

    @property
    def context(self) -> Context:
        return self.run.context_at(self.start)

    def call_ids(self) -> list[str]:
        messages = self.run.messages[self.start : self.stop]
        return [call.id for one in messages for call in one.tool_calls if call.id is not None]

    def signatures(self) -> list[str]:
        return [
            text for one in self.run.messages[self.start : self.stop] for text in one.signatures
        ]


class TurnSearch:
    """Search of one history."""

    def __init__(self, rows: TurnRows, keys: Keys, runs: Sequence[Run]) -> None:
        self._rows = rows
        self._keys = keys
        self._runs = runs
        self._matches: dict[int, Match] = {}
        self._is_open = [[True] * len(run.messages) for run in runs]
        self._used: set[int] = set()
        self._found: list[tuple[int, int]] = []
        """Index and row of each turn found, in the order of the history"""
        self._conversations: dict[bytes, int] = {}
        """Conversations of the turns found, with their number of turns"""
        self._top: list[bytes] = []
        """Those with most turns"""
        self._known: dict[bytes, list[Row]] = {}
        self._pieces: dict[tuple[int, int], _Piece | None] = {}

    def matches(self) -> dict[int, Match]:
        """Return the turns found by the index of their first message."""
        self._try(self._by_issued)
        for search in (self._by_question, self._by_any_question, self._by_content, self._by_text):
            if not any(map(any, self._is_open)):
                break
            self._try(self._in_conversation)
            # The last of several equal answers is the newest: the beginning may be left out.
            self._try(search, is_backward=search == self._by_any_question)
        return self._matches

    def conversation(self) -> bytes | None:
        """Return the conversation of the last turn found."""
        matches = self.matches()
        sure = [index for index, match in matches.items() if not match.is_weak]
        return matches[max(sure)].row.conversation if sure else None

    def _try(self, search: Callable[[_Piece], Match | None], *, is_backward: bool = False) -> None:
        runs = list(zip(self._runs, self._is_open, strict=True))
        for run, is_open in reversed(runs) if is_backward else runs:
            for start, stop in run.ranges(is_open):
                piece = self._piece(run, start, stop)
                match = search(piece) if piece is not None else None
                if match is None:
                    continue
                is_open[start:stop] = [False] * (stop - start)
                self._matches[run.start + start] = match
                self._used.add(match.row.id)
                insort(self._found, (run.start + start, match.row.id))
                if not match.is_weak:
                    self._count(match.row.conversation)

    def _count(self, conversation: bytes) -> None:
        self._conversations[conversation] = self._conversations.get(conversation, 0) + 1
        if conversation not in self._top:
            self._top.append(conversation)
        self._top.sort(key=lambda one: -self._conversations[one])
        del self._top[_MAX_CONVERSATIONS:]

    def _piece(self, run: Run, start: int, stop: int) -> _Piece | None:
        """Return messages as a piece; None if no logged turn has this answer."""
        place = run.start + start, stop - start
        if place not in self._pieces:
            piece = _Piece(run, start, stop, run.answer(start, stop))
            is_known = self._all_rows_of(self._keys.of_content(piece.answer), piece)
            self._pieces[place] = piece if is_known else None
        return self._pieces[place]

    def _by_issued(self, piece: _Piece) -> Match | None:
        """Find a turn by an id or a signature that we issued, or by the whole conversation."""
        issued: tuple[tuple[Sign, list[str]], ...] = (
            ("tool_call_id", piece.call_ids()),
            ("signature", piece.signatures()),
        )
        for sign, texts in issued:
            for text in texts[:_MAX_SIGNS]:
                rows = self._rows_of(self._keys.of_text(sign, text), piece)
                if rows:
                    return self._match(piece, rows, sign)
        chain = piece.context.chain
        if chain is None:
            return None
        key = self._keys.of_conversation(chain, piece.answer)
        return self._match(piece, self._rows_of(key, piece), "conversation")

    def _in_conversation(self, piece: _Piece) -> Match | None:
        """Find a turn of a conversation that others of this history are from."""
        asked = {row.id for row in self._of_question(piece)}
        for conversation in self._top:
            key = conversation + piece.answer.digest
            if key not in self._known:
                self._known[key] = self._rows.by_conversation(
                    conversation, self._keys.owner, piece.answer.digest
                )
            rows = [row for row in self._known[key] if row.id not in self._used]
            same = [row for row in rows if row.id in asked]
            if rows:
                return self._match(piece, same or rows, "question" if same else "content")
        return None

    def _by_question(self, piece: _Piece) -> Match | None:
        rows = self._of_question(piece)
        is_one = len({row.body for row in rows}) == 1
        return self._match(piece, rows, "question") if is_one else None

    def _by_any_question(self, piece: _Piece) -> Match | None:
        return self._match(piece, self._of_question(piece), "question")

    def _by_content(self, piece: _Piece) -> Match | None:
        """Find the one turn that gave this answer, if it is too long to be given by chance."""
        rows = self._of_content(piece)
        is_sure = piece.answer.num_chars >= _SURE_CHARS
        if is_sure and len({row.body for row in rows}) == 1:
            return self._match(piece, rows, "content")
        return None

    def _by_text(self, piece: _Piece) -> Match | None:
        """Find a turn whose answer reads the same; its thought may be about something else."""
        match = self._match(piece, self._of_content(piece), "content")
        return replace(match, is_weak=True) if match else None

    def _of_question(self, piece: _Piece) -> list[Row]:
        context, answer = piece.context, piece.answer
        if context.question is None:
            return []
        if not context.has_user and context.num_chars + answer.num_chars < _SURE_CHARS:
            return []  # a tool that says ok asks nothing
        return self._rows_of(self._keys.of_question(context.question, answer), piece)

    def _of_content(self, piece: _Piece) -> list[Row]:
        if not piece.answer.num_chars:
            return []
        return self._rows_of(self._keys.of_content(piece.answer), piece)

    def _rows_of(self, key: bytes, piece: _Piece) -> list[Row]:
        return [row for row in self._all_rows_of(key, piece) if row.id not in self._used]

    def _all_rows_of(self, key: bytes, piece: _Piece) -> list[Row]:
        if key not in self._known:
            self._known[key] = self._rows.by_key(key, self._keys.owner, piece.answer.digest)
        return self._known[key]

    def _match(self, piece: _Piece, rows: Sequence[Row], by: Sign) -> Match | None:
        """Return the likeliest of several turns: of a known conversation, and in its order."""
        if not rows:
            return None
        place = bisect(self._found, (piece.run.start + piece.start,))
        before = self._found[place - 1][1] if place else 0
        after = self._found[place][1] if place < len(self._found) else inf
        row = min(
            rows,
            key=lambda one: (
                -self._conversations.get(one.conversation, 0),
                not before < one.id < after,
                one.id if before else -one.id,
            ),
        )
        return Match(row, by, piece.stop - piece.start, piece.answer)
