"""A model that thinks up to a budget and then answers.

    prompt | opening | thought, at most `budget` tokens | closing | answer
             given     drawn by the thought's seed        given     drawn by the answer's seed

A thought may be drawn in pieces, and answered after each: the draw of a token depends on its seed
and its place alone, so a thought that ends at a budget is, to the bit, the thought of a run at that
budget. The pieces end where answers begin, so the engine finds the whole thought in its cache, with
lightning layers too.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from fulmen.agent import Answer
from fulmen.chat import ChatRequest, Completion, Prompt, Reply
from fulmen.envs import Task
from fulmen.llm import LLM
from fulmen.sampling import FinishReason, SamplingParams


def derive_seed(*names: object) -> int:
    """Return a seed that depends on the names alone."""
    return int.from_bytes(hashlib.blake2b(repr(names).encode(), digest_size=8).digest())


@dataclass(slots=True, eq=False)
class Thought:
    """A thought, as far as it is drawn."""

    prompt_ids: Sequence[int]
    seed: int
    ids: list[int] = field(default_factory=list)
    """Drawn ids, with a closing tag of the model's own"""
    logprob: float = 0.0
    """Sum over ids"""
    is_closed: bool = False
    """The model closed the thought; its answer follows."""
    is_over: bool = False
    """The model ended its turn inside the thought, so no answer follows."""


@dataclass(frozen=True, slots=True)
class Said:
    """A thought with the answer after it."""

    reply: Reply
    num_tokens: int
    """Tokens of the answer"""
    logprob: float
    """Sum over the answer's tokens"""
    finish_reason: FinishReason
    params: SamplingParams

    def answer(self, thought: Thought) -> Answer:
        """Return the turn that both are."""
        return Answer(
            message=self.reply.message(),
            finish_reason=self.finish_reason,
            params=self.params,
            num_prompt_tokens=len(thought.prompt_ids),
            num_new_tokens=len(thought.ids) + self.num_tokens,
            num_thinking_tokens=len(thought.ids),
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a thought, or an answer, yet to be drawn."""

    thought: Thought
    prefix_ids: Sequence[int]
    """Ids after the opening that it continues"""
    max_tokens: int
    seed: int


class Subject:
    """One model, one way to sample it.

    A model whose format has no thought thinks in its answer: then the text it wrote so far counts
    as its thought, and `closing` is the text that leads from there to the final answer.
    """

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        *,
        answer_tokens: int,
        closing: str | None = None,
    ) -> None:
        format = llm.format
        if format.thinking_end is not None and closing is not None:
            raise ValueError(f"this model closes its thoughts with {format.thinking_end} alone")
        if format.thinking_end is None and closing is None:
            raise ValueError("this model has no tag that closes a thought, it needs a closing")
        self._llm = llm
        # Limits that count over a whole answer would start anew with every piece.
        self._params = replace(params, thinking_budget=None, repetition_window=None)
        self._stop = () if format.thinking_end is None else (format.thinking_end,)
        self._answer_tokens = answer_tokens
        self._opening_ids = llm.tokenizer.encode(format.thinking_forced_start or "")
        self._closing = closing
        text = format.thinking_forced_end if closing is None else closing
        self._closing_ids = llm.tokenizer.encode(text or "")

    def thought(self, task: Task, seed: int) -> Thought:
        """Return a thought about a task, yet to be drawn."""
        format, tokenizer = self._llm.format, self._llm.tokenizer
        ids = format.encode(task.messages, None, tokenizer=tokenizer)
        return Thought(ids, seed)

    def check_room(self, thought: Thought, budget: int) -> None:
        """Raise ValueError where the context cannot hold such a thought and its answer."""
        given = len(thought.prompt_ids) + len(self._opening_ids) + len(self._closing_ids)
        needed, most = given + budget + self._answer_tokens, self._llm.engine.max_model_len
        if needed > most:
            raise ValueError(
                f"a thought of {budget} tokens needs {needed} with its prompt and answer, the "
                f"context holds {most}"
            )

    def think(self, thoughts: Iterable[tuple[Thought, int]]) -> None:
        """Draw each thought up to its budget or its own end, all of them together."""
        live = [
            (thought, budget)
            for thought, budget in thoughts
            if len(thought.ids) < budget and not (thought.is_closed or thought.is_over)
        ]
        pieces = [
            _Piece(thought, thought.ids, budget - len(thought.ids), thought.seed)
            for thought, budget in live
        ]
        for (thought, _), completion in zip(live, self._draw(pieces, self._stop), strict=True):
            thought.ids += [token.token_id for token in completion.tokens]
            thought.logprob += sum(token.logprob for token in completion.tokens)
            if completion.finish_reason == "stop":
                thought.is_over = thought.ids[-1] in self._llm.engine.eos_token_ids
                thought.is_closed = not thought.is_over

    def answer(self, thoughts: Sequence[tuple[Thought, int]]) -> list[Said]:
        """Draw an answer after each thought, by the seed beside it, all of them together."""
        pieces = [
            _Piece(
                thought,
                thought.ids if thought.is_closed else [*thought.ids, *self._closing_ids],
                self._answer_tokens,
                seed,
            )
            for thought, seed in thoughts
            if not thought.is_over
        ]
        completions = iter(self._draw(pieces, ()))
        return [
            Said(self._own_reply(thought), 0, 0.0, "stop", self._params)
            if thought.is_over
            else self._read(thought, next(completions))
            for thought, _ in thoughts
        ]

    def _own_reply(self, thought: Thought) -> Reply:
        """Return the reply of a turn that the model ended inside its thought."""
        ids = [*self._opening_ids, *thought.ids[:-1]]
        return self._llm.format.parse(self._llm.tokenizer.decode(ids), ())

    def _read(self, thought: Thought, completion: Completion) -> Said:
        logprob = sum(token.logprob for token in completion.tokens)
        reply = completion.reply
        if self._closing is not None:
            tokenizer = self._llm.tokenizer
            ids = [token.token_id for token in completion.tokens]
            if completion.finish_reason == "stop":
                ids.pop()
            content = self._closing.lstrip() + tokenizer.decode(ids)
            reply = Reply(thinking=tokenizer.decode(thought.ids), content=content)
        return Said(reply, len(completion.tokens), logprob, completion.finish_reason, self._params)

    def _draw(self, pieces: Sequence[_Piece], stop: tuple[str, ...]) -> list[Completion]:
        """Draw the next tokens of each, up to a stop text."""
        return self._llm.chat_many(self._request(piece, stop) for piece in pieces)

    def _request(self, piece: _Piece, stop: tuple[str, ...]) -> ChatRequest:
        prefix_ids = (*self._opening_ids, *piece.prefix_ids)
        return ChatRequest(
            prompt=Prompt(tuple(piece.thought.prompt_ids)),
            params=replace(
                self._params,
                seed=piece.seed,
                stop=stop,
                max_tokens=len(prefix_ids) + piece.max_tokens,
            ),
            prefix_ids=prefix_ids,
        )
