"""A conversation that outlives the process: what was said, how, and the model's state after it.

`engine/session.py` keeps tokens and states and does not know what they mean; here a turn is the
messages that were new, the answer, its log-probabilities and how it was sampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fulmen.chat import Message, read_messages
from fulmen.files import user_folder
from fulmen.llm import LLM, ChatStream, Completion
from fulmen.sampling import SamplingParams
from fulmen.sessions.store import SessionStore, Turn


@dataclass(frozen=True, slots=True)
class Exchange:
    """A turn as people see it."""

    messages: tuple[Message, ...]
    """What was new before the answer"""
    reply: Message
    answer_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of answer_ids, in the model's own distribution"""
    finish_reason: str
    params: SamplingParams
    tools: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, turn: Turn) -> "Exchange":
        """Reads a stored turn. Raises ValueError for one that is no conversation's."""
        record = turn.record
        try:
            (reply,) = read_messages([record["reply"]])
            params: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in record["params"].items()
            }
            return cls(
                tuple(read_messages(record["messages"])),
                reply,
                turn.answer_ids,
                tuple(record["logprobs"]),
                record["finish_reason"],
                SamplingParams(**params),
                tuple(record["tools"]),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"turn {turn.hash} is no turn of a conversation that this version can read: {error}"
            ) from None


class Session:
    """One conversation of a store and the model that it is held with."""

    def __init__(self, llm: LLM, store: SessionStore, name: str, *, model: str) -> None:
        """Goes on with a session, or begins one; model is what the LLM was loaded by.

        Raises ValueError if it belongs to another model.
        """
        self.llm = llm
        self.store = store
        if store.has(name):
            self.head = store.head(name)
        else:
            self.head = store.create(name, model=model, fingerprint=llm.origin.model)
        self._turns = store.turns(self.head)
        self._exchanges = [Exchange.of(turn) for turn in self._turns]
        self.num_restored = store.restore(self.head, llm.origin, llm.engine.prefixes)
        """Tokens that need not be read again"""

    @property
    def messages(self) -> list[Message]:
        """All that was said; of an answer that is cut, only what came before it."""
        return said(self._exchanges, is_cut=self.head.cut is not None)

    def resume(self, params: SamplingParams | None = None) -> ChatStream:
        """The rest of an answer that is cut: as it was, if params are the same or omitted.

        Raises ValueError if the last answer is whole.
        """
        if self.head.cut is None or not self._turns:
            raise ValueError(f"session {self.head.name!r} has no unfinished answer")
        turn, last = self._turns[-1], self._exchanges[-1]
        ids = self.store.ids(turn)
        start = len(ids) - turn.num_answer
        return self.llm.answer(
            ids[:start],
            last.tools or None,
            params or last.params,
            begun=ids[start : start + self.head.cut],
            begun_logprobs=last.logprobs[: self.head.cut],
        )

    def save(
        self,
        messages: Sequence[Message],
        completion: Completion,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Keeps an answer to messages, the whole conversation. It becomes the turn after the last
        one whose conversation it continues, so after a step back too."""
        count, start = self._matching(messages)
        parent = self._turns[count - 1].hash if count else None
        begun = completion.begun_ids
        logprobs = [output.logprob for output in completion.outputs]
        if begun:
            logprobs = [*self._exchanges[-1].logprobs[: len(begun)], *logprobs]
        record = {
            "messages": [message.to_dict() for message in messages[start:]],
            "tools": list(tools),
            "reply": completion.reply.message().to_dict(),
            "finish_reason": completion.finish_reason,
            "num_thinking_tokens": completion.num_thinking_tokens,
            "params": asdict(completion.params),
            "logprobs": logprobs,
        }
        answer_ids = completion.answer_ids
        self.head = self.store.save(
            self.head,
            parent=parent,
            ids=[*completion.prompt_ids, *answer_ids],
            num_answer=len(answer_ids),
            record=record,
            origin=self.llm.origin,
            prefixes=self.llm.engine.prefixes,
        )
        assert self.head.turn is not None
        del self._turns[count:], self._exchanges[count:]
        self._turns.append(self.store.turn(self.head.turn))
        self._exchanges.append(Exchange.of(self._turns[-1]))

    def go_back(self, messages: Sequence[Message]) -> None:
        """Takes the session back to the last turn that messages still have."""
        count, _ = self._matching(messages)
        if count < len(self._turns):
            self.head = self.store.rewind(self.head.name, num_turns=count)
            del self._turns[count:], self._exchanges[count:]

    def _matching(self, messages: Sequence[Message]) -> tuple[int, int]:
        """How many turns messages begin with, and how many messages these are."""
        start = count = 0
        for exchange in self._exchanges:
            said = [*exchange.messages, exchange.reply]
            if list(messages[start : start + len(said)]) != said:
                break
            count, start = count + 1, start + len(said)
        return count, start


def said(exchanges: Sequence[Exchange], *, is_cut: bool) -> list[Message]:
    """The messages of exchanges; of an answer that is cut, only what came before it."""
    found = [message for exchange in exchanges for message in (*exchange.messages, exchange.reply)]
    return found[:-1] if is_cut else found


def default_store() -> Path:
    """Where sessions live: $XDG_DATA_HOME/fulmen/sessions, else ~/.local/share."""
    return user_folder("XDG_DATA_HOME", ".local/share") / "fulmen" / "sessions"


def last_question(turns: Sequence[Turn]) -> str:
    """The last question, for a list."""
    for turn in reversed(turns):
        for message in reversed(Exchange.of(turn).messages):
            if message.role == "user":
                return " ".join(message.content.split())
    return ""


def export(store: SessionStore, name: str, *, tokens: bool = False) -> list[dict[str, Any]]:
    """A session's messages, or its turns with all that is known of them, as JSON objects."""
    head = store.head(name)
    turns = store.turns(head)
    if not tokens:
        exchanges = [Exchange.of(turn) for turn in turns]
        return [message.to_dict() for message in said(exchanges, is_cut=head.cut is not None)]
    return [
        {
            **turn.record,
            "prompt_ids": store.ids(turn)[: -turn.num_answer or None],
            "answer_ids": list(turn.answer_ids),
            "kept_answer_tokens": head.cut if turn is turns[-1] else None,
            "model": head.model,
        }
        for turn in turns
    ]
