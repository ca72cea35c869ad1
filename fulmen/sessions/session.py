"""A conversation that outlives the process: its transcript, and the model's states after it.

    open:  store -> turns -> Transcript; pages and states -> the engine's cache
    ask:   request(messages) -> any door of the model -> Completion
    save:  Completion -> Transcript -> turns, pages and states in the store

`save` writes, of each new turn: its messages, the reply, sampling and log-probabilities
(`Turn.record`), its ids (`records.py`), the pages of keys and values and the lightning states after
it (`chunks.py`), and last the session's own small file, which names the turn. `store.py` has the
layout of the folder.

Only what reads and changes the engine's cache must run where the engine is, by `between`; reading
and writing files may be done by any other thread. Requests may be answered by any door.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fulmen.chat import ChatRequest, Completion, Message, Prompt, Tool, Transcript, Turn, read_turn
from fulmen.engine import Between, at_once
from fulmen.files import user_folder
from fulmen.llm import LLM
from fulmen.sampling import SamplingParams
from fulmen.sessions.names import quoted
from fulmen.sessions.records import SessionState, StoredTurn
from fulmen.sessions.store import SessionStore


class Session:
    """One conversation of a store and the model it is held with."""

    def __init__(
        self,
        llm: LLM,
        store: SessionStore,
        name: str,
        *,
        model: str,
        keep_thoughts: bool = False,
        between: Between = at_once,
    ) -> None:
        """Open a session, or create it; model is the name that the LLM was loaded by.

        keep_thoughts  see `Transcript`
        between        runs what reads or changes the engine's cache

        Raises ValueError if it belongs to another model.
        """
        self.llm = llm
        self.store = store
        self._between = between
        if store.has(name):
            self.state = store.state(name)
        else:
            self.state = store.create(name, model=model, fingerprint=llm.origin.model)
        self.transcript = Transcript(llm.format, llm.tokenizer, keep_thoughts=keep_thoughts)
        self._stored: list[tuple[Turn, StoredTurn]] = []
        """Turns of the transcript that are in the store, and what they are there"""
        vocab_size = llm.engine.model.config.vocab_size
        for number, turn in enumerate(store.turns(self.state), 1):
            strange = [token_id for token_id in turn.new_ids if token_id >= vocab_size]
            if strange and self.state.fingerprint == llm.origin.model:
                raise ValueError(
                    f"session {quoted(self.state.name)} holds the token id {strange[0]} in turn "
                    f"{number}, the model has ids from 0 to {vocab_size - 1}; fulmen sessions "
                    f"rewind {self.state.name} --turn {number - 1} goes back to before it"
                )
            read = read_stored(turn, llm)
            self.transcript.turns.append(read)
            self._stored.append((read, turn))
        self.transcript.num_kept = self.state.num_kept
        self.num_restored = self.restore()
        """Tokens that need not be read again"""

    @property
    def messages(self) -> list[Message]:
        """All messages; of an answer that is rewound into, only those before it."""
        return self.transcript.messages

    def restore(self, ids: Sequence[int] | None = None) -> int:
        """Make the engine's cache know again what it has lost of the session; return how many of
        its tokens need not be read.

        ids  prompt that is to be answered: only what it begins with; None: all of it
        """
        return self.store.restore(
            self.state,
            self.llm.origin,
            self.llm.engine.prefixes,
            ids=ids,
            between=self._between,
        )

    def request(self, messages: Sequence[Message], **fields: Any) -> ChatRequest:
        """Return a request for the answer to messages, the whole conversation; fields are those of
        `ChatRequest`."""
        prompt = self.transcript.prompt(messages, fields.get("tools", ()))
        return ChatRequest(messages=tuple(messages), prompt=prompt, **fields)

    def resume(self, params: SamplingParams | None = None) -> ChatRequest:
        """Return a request for the rest of the answer that the session was rewound into: as it was,
        if params are the same or omitted.

        Raises ValueError if the last answer is whole.
        """
        num_kept = self.transcript.num_kept
        if num_kept is None or not self.transcript.turns:
            raise ValueError(f"session {quoted(self.state.name)} has no unfinished answer")
        turn = self.transcript.turns[-1]
        ids = self.transcript.ids()
        return ChatRequest(
            messages=tuple(self.messages),
            tools=turn.tools,
            params=params or turn.params,
            prompt=Prompt(tuple(ids[: len(ids) - turn.num_answer_ids])),
            prefix_ids=turn.answer_ids[:num_kept],
            prefix_logprobs=[
                -math.inf if value is None else value for value in turn.logprobs[:num_kept]
            ],
        )

    def save(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        completion: Completion,
        tools: Sequence[Tool | Mapping[str, Any]] = (),
    ) -> None:
        """Keep the answer to messages, the whole conversation before it. It becomes the turn after
        the last one that messages continue.

        If the store cannot be written, the answer stays in the transcript and the next save writes
        it too.
        """
        self.transcript.add(messages, completion, tools)
        self.write()

    def add_history(self, messages: Sequence[Message]) -> None:
        """Add a conversation that was held elsewhere and ends with an answer, see
        `Transcript.add_history`."""
        self.write()
        count = len(self.transcript.turns)
        self.transcript.add_history(messages)
        turns = self.transcript.turns[count:]
        records = [turn.record() for turn in turns]
        self.state, stored = self.store.save_history(self.state, records, origin=self.llm.origin)
        self._stored += zip(turns, stored, strict=True)

    @property
    def is_written(self) -> bool:
        """True if all turns are in the store."""
        return self._num_written() == len(self.transcript.turns)

    def _num_written(self) -> int:
        """Return how many first turns are in the store."""
        turns = self.transcript.turns
        pairs = zip(turns, self._stored, strict=False)
        return next(
            (place for place, (turn, (stored, _)) in enumerate(pairs) if turn is not stored),
            min(len(turns), len(self._stored)),
        )

    def write(self) -> None:
        """Write the turns that are not in the store."""
        turns = self.transcript.turns
        for place in range(self._num_written(), len(turns)):
            turn = turns[place]
            parent = self._stored[place - 1][1].hash if place else None
            ids = self.transcript.ids(place + 1)
            try:
                state = self.store.save(
                    self.state,
                    parent=parent,
                    ids=ids,
                    num_answer=turn.num_answer_ids,
                    record=turn.record(),
                    origin=self.llm.origin,
                    prefixes=self.llm.engine.prefixes,
                    between=self._between,
                )
            except BaseException:
                # An interrupt may come after the turn was written: then it is saved.
                with suppress(ValueError, OSError):
                    state = self.store.state(self.state.name)
                    if state.turn is not None:
                        found = self.store.turn(state.turn)
                        wanted = (parent, ids, turn.record())
                        if (found.parent, self.store.ids(found), found.record) == wanted:
                            self._keep(place, turn, state)
                raise
            self._keep(place, turn, state)

    def note(self, metadata: Mapping[str, str]) -> None:
        """Give the session other metadata."""
        self.state = self.store.note(self.state.name, metadata)

    def rewind(self, num_turns: int) -> None:
        """Go back to the end of the first num_turns of the transcript.

        Raises ValueError if it does not have so many.
        """
        count = len(self.transcript.turns)
        if not 0 <= num_turns <= count:
            raise ValueError(f"turn {num_turns} was asked for, the transcript has {count} turns")
        if num_turns < len(self._stored):
            self.state = self.store.rewind(self.state.name, num_turns=num_turns)
            del self._stored[num_turns:]
        if num_turns < count:
            self.transcript.rewind(num_turns)

    def _keep(self, place: int, turn: Turn, state: SessionState) -> None:
        """Note that the turn at a place is stored, and where the session stands since."""
        assert state.turn is not None
        self.state = state
        del self._stored[place:]
        self._stored.append((turn, self.store.turn(state.turn)))


def read_stored(turn: StoredTurn, llm: LLM | None = None) -> Turn:
    """Read a stored turn; its answer has ids only with the model it was held with.

    Raises ValueError for one that is no turn of a conversation.
    """
    try:
        return read_turn(
            turn.record,
            num_shared=turn.num_shared,
            new_ids=turn.new_ids,
            num_answer_ids=turn.num_answer,
            format=None if llm is None else llm.format,
            tokenizer=None if llm is None else llm.tokenizer,
        )
    except ValueError as error:
        raise ValueError(f"turn {turn.hash} cannot be read, {error}") from None


def last_question(turns: Sequence[StoredTurn]) -> str:
    """Return the last question, for a list."""
    for turn in reversed(turns):
        for message in reversed(read_stored(turn).messages):
            if message.role == "user":
                return " ".join(message.content.split())
    return ""


def export(store: SessionStore, name: str, *, tokens: bool = False) -> list[dict[str, Any]]:
    """Return a session's messages, or its turns with everything known of them, as JSON objects."""
    state = store.state(name)
    turns = store.turns(state)
    if tokens:
        return [
            {
                **turn.record,
                "prompt_ids": store.ids(turn)[: -turn.num_answer or None],
                "answer_ids": list(turn.answer_ids),
                "kept_answer_tokens": state.num_kept if turn is turns[-1] else None,
                "model": state.model,
            }
            for turn in turns
        ]
    read = [read_stored(turn) for turn in turns]
    messages = [message for turn in read for message in (*turn.messages, turn.reply)]
    if state.num_kept is not None:
        messages.pop()
    return [message.to_dict() for message in messages]


def default_store() -> Path:
    """Return where sessions live: $XDG_DATA_HOME/fulmen/sessions, else ~/.local/share."""
    return user_folder("XDG_DATA_HOME", ".local/share") / "fulmen" / "sessions"
