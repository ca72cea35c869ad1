"""One request, from what a client sent to what it is answered, in no dialect.

    Ask -> history read and checked -> turns found in the log -> ids -> model -> updates -> log

A dialect turns its request into an `Ask`, and the updates into its own events. Everything between
is here, once: which answers of the history are ours, why a prompt had to be read again, how many
answers may run, and that an answer is in the log before the client can send it back.
"""

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from fulmen.chat import (
    ChatRequest,
    Found,
    FoundTurn,
    History,
    Message,
    Prompt,
    Token,
    Tool,
    Transcript,
    TurnLog,
    complete,
    fingerprint_of_vocabulary,
    read_history,
    read_tools,
)
from fulmen.sampling import SamplingParams, shown
from fulmen.server.answers import Answers, Prepared
from fulmen.server.asking import Ask, End, Report
from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal, refusal_of
from fulmen.server.known_prompts import Digests, KnownPrompts
from fulmen.server.metrics import ModelMetrics
from fulmen.server.places import Places
from fulmen.server.sessions import Held, RunningAnswer, Sessions
from fulmen.server.usage import Usages

_logger = logging.getLogger(__name__)

_KNOWN_PROMPT_BYTES: Final = 64 * 2**20
"""Memory for the ids of recent prompts, which tell why a later one missed the cache"""


class Service:
    """One served model and all that is its own, for all dialects: its places, the log of its
    answers, the prompts that it knows.

    The settings are those of the server, with this model's name and aliases.
    """

    def __init__(
        self,
        model: Any,
        config: ServerConfig,
        metrics: ModelMetrics,
        places: Places,
        usages: Usages,
        sessions: Sessions,
    ) -> None:
        self.model = model
        self.config = config
        self.metrics = metrics
        self.places = places
        self.usages = usages
        self._sessions = sessions
        self._volatile_lines = [re.compile(pattern) for pattern in config.volatile_lines]
        self._known_prompts = KnownPrompts(_KNOWN_PROMPT_BYTES)
        self._running: dict[str, Answers] = {}
        tokenizer = self.tokenizer
        self._log = None
        if tokenizer is not None:
            self._log = TurnLog(
                config.transcripts,
                vocabulary=fingerprint_of_vocabulary(tokenizer, model.format),
                max_bytes=config.transcript_bytes,
                max_age_seconds=config.transcript_days * 86400,
            )

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.config.model_name

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the model; None for one that has none."""
        try:
            return getattr(self.model, "tokenizer", None)
        except ValueError:  # a scripted model that was given none
            return None

    def needed_tokenizer(self) -> Any:
        """Return the model's tokenizer. Raises a Refusal (501) for a model that has none."""
        if self.tokenizer is None:
            raise Refusal(501, "this model does not tell its tokens")
        return self.tokenizer

    @property
    def defaults(self) -> SamplingParams:
        """Recommended sampling of the model."""
        return getattr(self.model, "defaults", None) or SamplingParams()

    @property
    def max_model_len(self) -> int | None:
        """Tokens that prompt and answer may have together, if the model says."""
        length: int | None = getattr(self.model, "max_model_len", None)
        return length

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    async def count(self, ask: Ask, scope: str) -> int:
        """Return how many tokens the prompt of a request has."""
        return len(await self.prompt_ids(ask, scope))

    async def prompt_ids(self, ask: Ask, scope: str) -> tuple[int, ...]:
        """Return the prompt of a request as ids, with the beginning of the answer if it has one."""
        if self.tokenizer is None:
            raise Refusal(501, "this model does not tell its tokens, they cannot be counted")
        prepared = await asyncio.to_thread(self._prepare, ask, scope, is_counted=True)
        assert prepared.request.prompt is not None
        return (*prepared.request.prompt.ids, *prepared.request.prefix_ids)

    async def answer(self, ask: Ask, scope: str, answer_id: str) -> Answers:
        """Start the answers to a request. Whatever is wrong with it is a Refusal."""
        if ask.num_answers > self.config.max_answers:
            raise Refusal(
                400, f"n is {ask.num_answers}, it must be at most {self.config.max_answers}"
            )
        started = time.perf_counter()
        usage = self.usages.of(scope, self.name)
        usage.check(ask.num_all_answers)
        lease = self.places.acquire(ask.num_all_answers)
        lease.and_then(usage.begin(ask.num_all_answers))
        held: Held | None = None
        try:
            held = await self._hold(ask, scope)
            if held is not None and ask.session_turn is not None:
                held.check_turn(ask.session_turn)
            transcript = None if held is None else held.transcript
            prepared = await asyncio.to_thread(self._prepare, ask, scope, transcript)
            if held is not None and prepared.request.prompt is not None:
                await held.restore(prepared.request.prompt.ids)
            answers = Answers(
                self.model,
                prepared,
                ask=ask,
                model_name=self.name,
                scope=scope,
                id=answer_id,
                metrics=self.metrics,
                usage=usage,
                lease=lease,
                started=started,
                note=self._note,
                leave=self._leave,
                held=held,
            )
            await answers.start()
            if held is not None:
                held.running = RunningAnswer.of(answer_id, prepared.found.messages)
        except BaseException as error:
            lease.release()
            if held is not None:
                held.release()
            if isinstance(error, Exception):
                raise refusal_of(error) from error
            raise
        self.metrics.turns([turn.state for turn in prepared.report.turns])
        self._running[answer_id] = answers
        return answers

    async def score(
        self, prompt_ids: tuple[int, ...], ids: tuple[int, ...], top: int, scope: str
    ) -> tuple[Token, ...]:
        """Return ids after a prompt with their log-probabilities, and the likeliest others at each
        place. They are read as a prompt is, all but the last, which leaves room for no other.

        Raises a Refusal where no place is free.
        """
        usage = self.usages.of(scope, self.name)
        usage.check()
        *before, last = ids
        request = ChatRequest(
            text=(*prompt_ids, *before),
            params=SamplingParams(
                max_tokens=1, temperature=0, logprobs=top, prompt_logprobs=top, ignore_eos=True
            ),
            first_scored=len(prompt_ids),
            forced_ids=(last,),
        )
        with self.places.acquire(1) as lease:
            lease.and_then(usage.begin())
            try:
                completion = await complete(self.model, request)
            except ValueError as error:
                raise refusal_of(error) from error
        usage.add_prompt(completion.usage.num_prompt_tokens + 1, completion.usage.num_cached_tokens)
        return (*completion.prompt_tokens, *completion.tokens)

    async def _hold(self, ask: Ask, scope: str) -> Held | None:
        """Return the session that a request names."""
        if ask.session is None:
            return None
        if ask.num_answers != 1:
            raise Refusal(400, f"n is {ask.num_answers}, a session goes on with one answer")
        if ask.texts or ask.prompt_ids is not None:
            raise Refusal(
                400,
                f"session is {shown(ask.session)}, a session needs messages: texts and ids have "
                "none",
                param="session",
            )
        return await self._sessions.hold(ask.session, scope, self.name)

    def running(self, answer_id: str, scope: str) -> Answers | None:
        """Return the answers that run under an id; None for those that this caller does not
        have."""
        answers = self._running.get(answer_id)
        return answers if answers is not None and answers.scope == scope else None

    def _prepare(
        self,
        ask: Ask,
        scope: str,
        transcript: Transcript | None = None,
        *,
        is_counted: bool = False,
    ) -> Prepared:
        """Read a history, find its turns and encode it, in a thread of its own.

        transcript  of the session that it belongs to
        is_counted  the prompt is only counted, so it may be too long
        """
        if ask.texts:
            first, *others = [self._text_request(ask, place) for place in range(len(ask.texts))]
            report = Report((), ignored=ask.ignored)
            return Prepared(first, Found((), ()), report, Digests("", ""), others=others)
        history, is_prefix = self._read(ask)
        messages = history.messages
        begun = None
        if is_prefix:
            *before, begun = messages
            messages = tuple(before)
        tools = read_tools(ask.tools)
        digests = Digests.of(messages, tools)
        keep = self.config.keep_thoughts if ask.keep_thoughts is None else ask.keep_thoughts
        report = Report((), history.repairs, ask.ignored, history.num_dropped_images)
        all_tools = (*tools, *read_tools(ask.deferred_tools))
        request = ChatRequest(messages=messages, tools=all_tools, params=ask.params)
        if self._log is None:
            if ask.prefix_ids:
                raise Refusal(
                    501,
                    "this model does not tell its tokens, an answer cannot begin with some",
                    param="prefix_token_ids",
                )
            params = self._with_room(ask, None)
            return Prepared(replace(request, params=params), Found(messages, ()), report, digests)
        if ask.prompt_ids is not None:
            found, ids = Found((), ()), self._checked_prompt(ask.prompt_ids, "prompt_token_ids")
        else:
            found = self._find(messages, scope, tools=all_tools, keep_thoughts=keep)
            if transcript is not None:
                found = _recognized(found, transcript)
            ids = self.model.format.encode_history(
                found.messages,
                tools,
                ask.adds_generation_prompt,
                tokenizer=self.tokenizer,
                keep_thoughts=keep,
            ).ids
        prefix_ids = self._beginning_ids(ask, begun)
        length, limit = len(ids) + len(prefix_ids), self.max_model_len
        if not is_counted:
            self._check_length(length, ask.messages_name)
        turns = [
            replace(turn, index=ask.place_of(history.places[turn.index])) for turn in found.turns
        ]
        report = replace(report, turns=turns)
        known_ids = [ask.previous_id, *(turn.turn_id for turn in reversed(found.turns))]
        report = self._known_prompts.compare(
            next((known for known in known_ids if known), None), ids, digests, scope, report
        )
        request = replace(
            request,
            messages=found.messages,
            params=self._with_room(ask, None if limit is None else limit - length, len(prefix_ids)),
            prompt=Prompt(tuple(ids), report.num_missed_tokens, report.miss_reason),
            prefix_ids=tuple(prefix_ids),
        )
        return Prepared(request, found, report, digests, begun)

    def _text_request(self, ask: Ask, place: int) -> ChatRequest:
        """Return the request to continue one of the texts as it stands."""
        text, name = ask.texts[place], "prompt" if len(ask.texts) == 1 else f"prompt[{place}]"
        request = ChatRequest(text=text, params=ask.params)
        if self.tokenizer is None:
            return request
        if isinstance(text, str):
            ids = self.tokenizer.encode(text, add_special_tokens=ask.adds_special_tokens)
        else:
            ids = text
        ids = self._checked_prompt(ids, name)
        self._check_length(len(ids), name)
        return replace(request, prompt=Prompt(tuple(ids)))

    def _find(
        self, messages: Sequence[Message], scope: str, *, tools: Sequence[Tool], keep_thoughts: bool
    ) -> Found:
        """Find the turns of a history; a log that fails makes them turns that are not ours."""
        assert self._log is not None
        try:
            return self._log.find(
                messages,
                scope=scope,
                format=self.model.format,
                tools=tools,
                keep_thoughts=keep_thoughts,
            )
        except (OSError, ValueError) as error:
            _logger.warning("the log of answers cannot be read: %s", error)
            turns = [
                FoundTurn(index, "rendered")
                for index, message in enumerate(messages)
                if message.role == "assistant"
            ]
            return Found(tuple(messages), tuple(turns))

    def checked_ids(self, ids: Sequence[int], name: str) -> list[int]:
        """Return ids that came from a client, in the field `name`. Raises a Refusal for others."""
        size = self.tokenizer.vocab_size
        wrong = next((id for id in ids if not 0 <= id < size), None)
        if wrong is not None:
            raise Refusal(
                400,
                f"{name} has {wrong} in it, it must hold ids from 0 to {size - 1}",
                param=name.partition("[")[0],
            )
        return list(ids)

    def _checked_prompt(self, ids: Sequence[int], name: str) -> list[int]:
        if not ids:
            raise Refusal(
                400, f"{name} has no token, it must have one or more", param=name.partition("[")[0]
            )
        return self.checked_ids(ids, name)

    def _check_length(self, length: int, param: str) -> None:
        """Refuse a prompt that leaves no room for one new token."""
        limit = self.max_model_len
        if limit is not None and length >= limit:
            raise Refusal(
                400,
                f"prompt is too long: {length} tokens > {limit - 1} maximum",
                code="context_length_exceeded",
                param=param.partition("[")[0],
            )

    def read_history(self, given: Sequence[Mapping[str, Any]], *, first_index: int = 0) -> History:
        """Read messages that a client sent, as `fulmen.chat.read_history` does with the server's
        settings."""
        return read_history(
            given,
            lenient=self.config.lenient_history,
            volatile_lines=self._volatile_lines,
            drop_images=self.config.drop_images,
            first_index=first_index,
        )

    def _read(self, ask: Ask) -> tuple[History, bool]:
        if ask.prompt_ids is not None:
            return History((), (), (), 0), False
        given: list[Mapping[str, Any]] = list(ask.messages)
        if not given:
            name = ask.messages_name
            raise Refusal(400, f"{name} is empty, at least one message is needed", param=name)
        has_system = ask.system is not None
        if has_system:
            given.insert(0, {"role": "system", "content": ask.system})
        try:
            history = self.read_history(given, first_index=1 if has_system else 0)
        except ValueError as error:
            raise Refusal(400, ask.in_places(str(error)), param=ask.messages_name) from None
        last = history.messages[-1]
        is_prefix = ask.continues and last.role == "assistant" and not last.tool_calls
        if ask.must_continue and not is_prefix:
            raise Refusal(
                400,
                "continue_final_message is true, the last message must be an assistant's text",
                param="continue_final_message",
            )
        return history, is_prefix

    def _with_room(
        self, ask: Ask, context_room: int | None, num_prefix_ids: int = 0
    ) -> SamplingParams:
        """Return the sampling of a request: the thought leaves the answer its share of the tokens
        that may come, unless the request gave it a number of its own.

        context_room    tokens that the context has room for, if that is known
        num_prefix_ids  ids that the client began the answer with: they do not count, and a thought
                        among them takes nothing from what may come
        """
        params = ask.params
        rooms = [room for room in (params.max_tokens, context_room) if room is not None]
        if params.max_tokens is not None and num_prefix_ids:
            params = replace(params, max_tokens=params.max_tokens + num_prefix_ids)
        if not rooms or ask.has_thinking_budget or not self.config.answer_share:
            return params
        room = num_prefix_ids + int(max(0, min(rooms)) * (1 - self.config.answer_share))
        budget = params.thinking_budget
        return replace(params, thinking_budget=room if budget is None else min(room, budget))

    def _beginning_ids(self, ask: Ask, begun: Message | None) -> list[int]:
        """Return the ids that an answer begins with, if a client gave its beginning.

        begun  the last message, if that is the beginning
        """
        if begun is None:
            return self.checked_ids(ask.prefix_ids, "prefix_token_ids")
        if ask.params.tool_choice == "required":
            raise Refusal(
                400,
                "the last message begins the answer with text, tool_choice asks for a call alone",
                param="tool_choice",
            )
        if ask.prefix_ids:
            raise Refusal(
                400,
                "prefix_token_ids and a beginning of the answer as the last message are given, "
                "only one of them can be",
                param="prefix_token_ids",
            )
        return self._prefix_ids(begun)

    def _prefix_ids(self, begun: Message) -> list[int]:
        """Return the ids of an answer that a client began; a thought before it is closed."""
        thinking = self.model.format.thinking
        ids: list[int] = []
        if thinking is not None and (thinking.is_open_in_prompt or begun.thinking):
            ids += self.tokenizer.encode(thinking.forced_start)
            ids += self.tokenizer.encode_plain(begun.thinking or "")
            ids += self.tokenizer.encode(thinking.forced_end)
        ids += self.tokenizer.encode_plain(begun.content.rstrip())
        return ids

    def _note(self, answers: Answers, end: End, logged: Message) -> None:
        """Write an answer into the log, as the client's history will have it; in a thread of its
        own."""
        completion = end.completion
        turn_id = answers.turn_id(end.index)
        if self._log is None or answers.ask.texts:
            return
        if completion.finish_reason == "error":  # what was sent before may come back
            completion = replace(completion, finish_reason="abort")
        ids = [*completion.prompt_ids, *completion.answer_ids]
        self._known_prompts.add(turn_id, ids, answers.prepared.digests, answers.scope)
        if answers.ask.prompt_ids is None:
            self._log.add(
                answers.prepared.found.messages,
                completion,
                scope=answers.scope,
                turn_id=turn_id,
                shown=logged,
                signatures=[answers.signatures[end.index]],
                tools=read_tools(answers.prepared.request.tools),
            )

    def _leave(self, answers: Answers) -> None:
        """Forget a request that is over."""
        self._running.pop(answers.id, None)


def _recognized(found: Found, transcript: Transcript) -> Found:
    """Return a history in which the turns of a session are known too."""
    messages = transcript.recognize(found.messages)
    turns = list(found.turns)
    if [turn.index for turn in turns] == [
        index for index, message in enumerate(messages) if message.role == "assistant"
    ]:
        turns = [
            replace(turn, state="matched")
            if turn.state == "rendered" and messages[turn.index].sampled is not None
            else turn
            for turn in turns
        ]
    return Found(tuple(messages), tuple(turns))
