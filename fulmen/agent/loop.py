"""The loop: ask the model, make its calls, until it has none to make or a limit is reached.

    messages -> answer -> calls -> results -> messages ...

Everything that happens is a record, kept before the next thing begins, so the loop can be ended at
any moment, by a person, a limit or a crash, and gone on with: `resume` finishes the calls that were
under way, and asks again where an answer was.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any, Final, Protocol

from fulmen.agent.compaction import Compactor, about_tokens
from fulmen.agent.cutting import cut_text
from fulmen.agent.memory import Memory
from fulmen.agent.repeats import num_repeats
from fulmen.agent.trajectory import (
    Answer,
    EndReason,
    Journal,
    Result,
    Trajectory,
    answer_record,
    result_record,
    said_record,
)
from fulmen.chat import (
    ChatModel,
    Completion,
    Event,
    Message,
    ModelError,
    TokenBudget,
    Tool,
    ToolCall,
    complete,
)
from fulmen.sampling import SamplingParams, check_whole

_SAME_CALLS_TOLD: Final = 3
_SAME_CALLS_ENDED: Final = 6
"""Times that the same calls may come to the same results, one after the other"""
_MAX_SENT_ON: Final = 3
"""Times that a check may refuse the end of the work"""
_ENDED_BY: Final[Mapping[EndReason, str]] = {"interrupted": "the user", "seconds": "the time limit"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Most that one run may take; None: no limit. All count over the whole run, resumed or not."""

    turns: int | None = 200
    """Answers of the model"""
    tokens: int | None = None
    """New tokens of all answers"""
    thinking_tokens: int | None = None
    """Tokens of thought of all answers"""
    seconds: float | None = None
    """Seconds of this process's work on the run"""

    def __post_init__(self) -> None:
        for name in ("turns", "tokens", "thinking_tokens"):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, 0, 2**62)
        if self.seconds is not None and not self.seconds >= 0:
            raise ValueError(f"seconds is {self.seconds}, it must be 0 or more")


class Hands(Protocol):
    """Tools that an agent has, and all that they change."""

    @property
    def tools(self) -> Sequence[Tool]:
        """Tools as the model is told of them; the same for the whole run."""

    def is_independent(self, call: ToolCall) -> bool:
        """Return whether a call may run beside others: it changes nothing."""

    async def run(self, number: int, call: ToolCall) -> Result:
        """Make a call, the number-th of its answer. What a call does wrong is a Result with
        is_error; cancelling ends what it runs."""

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        """Return the result of a call that was ended before its time, with what there is. by: what
        ended it, such as the user"""

    def forget(self) -> None:
        """Take note that the model does not see earlier results any more."""


class Inbox(Protocol):
    """Messages that come to an agent while it works: of other agents, or of the person."""

    def take(self) -> Sequence[Mapping[str, Any]]:
        """Return the records of messages that wait, the first sent first."""

    def taken(self, record: Mapping[str, Any]) -> None:
        """Take note that a message is kept: it waits no more."""

    def rest(self) -> bool:
        """Take note that the agent has nothing left to do; False if a message waits after all."""

    async def ended(self) -> None:
        """Take note that the agent stopped; return once nothing goes on that it began."""


class Inboxes:
    """Several inboxes as one: what waits in the first comes first."""

    def __init__(self, inboxes: Sequence[Inbox]) -> None:
        self._inboxes = inboxes
        self._owners: list[tuple[Mapping[str, Any], Inbox]] = []

    def take(self) -> Sequence[Mapping[str, Any]]:
        """Return the records of messages that wait."""
        self._owners = [(record, one) for one in self._inboxes for record in one.take()]
        return [record for record, _ in self._owners]

    def taken(self, record: Mapping[str, Any]) -> None:
        """Take note that a message is kept."""
        next(inbox for known, inbox in self._owners if known is record).taken(record)

    def rest(self) -> bool:
        """Take note that the agent has nothing left to do; False if a message waits after all."""
        return all(one.rest() for one in self._inboxes)

    async def ended(self) -> None:
        """Take note that the agent stopped."""
        for one in self._inboxes:
            await one.ended()


class TokensSpent(ModelError):
    """A model that may not answer: all tokens are spent that it shares with others."""


class Watcher(Protocol):
    """Somebody who sees what happens, as it happens."""

    def event(self, event: Event) -> None:
        """See a piece of an answer."""

    def record(self, record: Mapping[str, Any]) -> None:
        """See a record that was just kept."""

    def calling(self, call: ToolCall) -> None:
        """See a call that begins."""


@dataclass(slots=True)
class Agent:
    """One run of an agent; for one event loop."""

    model: ChatModel
    hands: Hands
    memory: Memory
    """The conversation as the model side holds it"""
    journal: Journal
    """Log of everything that happens"""
    params: SamplingParams | None = None
    budget: Budget = field(default_factory=Budget)
    compactor: Compactor | None = None
    watcher: Watcher | None = None
    inbox: Inbox | None = None
    before_end: Callable[[str], Awaitable[str | None]] | None = None
    """Is given the last answer where no call is left to make: None to end, else what is said to the
    model, which goes on"""
    _interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    _by: str = _ENDED_BY["interrupted"]
    """Whoever interrupted it"""
    _began: float = field(default_factory=time.monotonic)
    _first: int = 0
    """Steps that there were before somebody last said something: repeats count from there"""
    _num_sent_on: int = 0
    """Ends that `before_end` was against since somebody last said something"""

    @property
    def trajectory(self) -> Trajectory:
        """Everything that has happened."""
        return self.journal.trajectory

    def interrupt(self, by: str = _ENDED_BY["interrupted"]) -> None:
        """End what is under way and keep what there is of it; `run` then returns, at once if it
        is yet to begin. by: whoever does so, as the model is told"""
        self._by = by
        self._interrupted.set()

    def forget_interrupt(self) -> None:
        """Take note that all is done that an interrupt could have ended."""
        self._interrupted.clear()

    async def run(self, messages: Sequence[Message] = ()) -> EndReason:
        """Work until the task is done or a limit is reached, and return which; messages are new
        words of a person. Raises ModelError if the model fails, ValueError for what it cannot be
        asked; what there is stays."""
        if messages:
            self.drop_calls("the user said something else")
            self._happen(said_record(messages))
        self._first = len(self.trajectory.steps)
        self._num_sent_on = 0
        try:
            reason = await self._run()
        except TokensSpent:
            reason = "tokens"
        except (ModelError, ValueError) as error:
            if isinstance(error, ModelError):
                self._happen({"type": "note", "text": str(error)})
            self._happen({"type": "ended", "reason": "error"})
            raise
        finally:  # not at the beginning: an interrupt may come before it
            self.forget_interrupt()
        self._happen({"type": "ended", "reason": reason})
        return reason

    async def _run(self) -> EndReason:
        while True:
            if (stopped := self._stopped()) is not None:
                return stopped
            self._deliver()
            if self.trajectory.steps and not self.trajectory.steps[-1].is_whole:
                await self._act()
            elif (reason := self._limit()) is not None:
                return reason
            elif self._is_full():
                if not await self._compact():
                    return "context"
            else:
                answer = await self._ask()
                if answer is None or answer.finish_reason == "abort":
                    return self._stopped() or "interrupted"
                if not answer.message.tool_calls:
                    if answer.finish_reason != "stop":
                        return "tokens"
                    if (ended := await self._ended(answer)) is not None:
                        return ended

    async def _ended(self, answer: Answer) -> EndReason | None:
        """Return how the work ends with an answer without calls; None if it goes on after all."""
        if self._deliver():
            return None
        check = None if self.before_end is None else self.before_end(answer.message.content)
        if check is not None and await self._is_sent_on(check):
            return None
        if (stopped := self._stopped()) is not None and check is not None:
            return stopped
        return "done" if self.inbox is None or self.inbox.rest() else None

    async def _is_sent_on(self, check: Awaitable[str | None]) -> bool:
        """Return whether the work is to go on after an answer without calls, as a check says; a
        bounded number of times, so that it ends."""
        why = await self._unless_stopped(check)
        if why is None or self._num_sent_on >= _MAX_SENT_ON:
            return False
        self._num_sent_on += 1
        text = f"(This is no message of the user's: a check before the end refused it.)\n{why}"
        self._happen(said_record([Message("user", text)]))
        return True

    async def _ask(self) -> Answer | None:
        """Let the model answer, and keep the answer; None if it ended before it said anything."""
        messages = self.trajectory.messages
        request = self.memory.request(
            messages,
            self.hands.tools,
            params=self._params(),
            budget=self._thinking(),
        )
        begin = time.monotonic()
        stream = self.model.stream(request)
        try:
            if await self._unless_stopped(stream.__aenter__()) is None:
                return None
            events = aiter(stream)
            while (event := await self._unless_stopped(anext(events, None))) is not None:
                if self.watcher is not None:
                    self.watcher.event(event)
            completion = await stream.finish()
        finally:
            await stream.close()
        if completion.finish_reason == "abort":
            completion = _without_open_calls(completion)
            if not (completion.reply.content or completion.reply.thinking):
                return None
        answer = Answer.of(completion, seconds=time.monotonic() - begin)
        await self.memory.keep(messages, completion, self.hands.tools)
        self._happen(answer_record(answer, self.trajectory.steps))
        # A record has no ids on its message; a prompt after a summary needs them there.
        self.trajectory.steps[-1] = replace(self.trajectory.steps[-1], answer=answer)
        return answer

    async def _act(self) -> None:
        """Make the calls of the last answer that have no result yet: those that change nothing
        together, the others one by one."""
        step = self.trajectory.steps[-1]
        known = {result.call for result in step.results}
        open_calls = [
            (number, call)
            for number, call in enumerate(step.answer.message.tool_calls)
            if number not in known
        ]
        for is_independent, group in groupby(
            open_calls, key=lambda one: self.hands.is_independent(one[1])
        ):
            calls = list(group)
            if is_independent:
                await _all_of([self._call(*one) for one in calls])
            else:
                for one in calls:
                    await self._call(*one)

    async def _call(self, number: int, call: ToolCall) -> None:
        if (stopped := self._stopped()) is not None:
            self._not_made(number, f"{self._ended_by(stopped)} ended the work before it")
            return
        if self.watcher is not None:
            self.watcher.calling(call)
        result = await self._unless_stopped(self.hands.run(number, call))
        if result is None:
            by = self._ended_by(self._stopped() or "interrupted")
            result = await self.hands.interrupted(number, call, by)
        self._happen(result_record(self._with_hint(self._cut(result))))
        if self._stopped() is None:  # else nobody would answer them now
            self._deliver()

    def _deliver(self) -> bool:
        """Let messages of other agents happen that wait, between two calls too; return whether
        there were any. Each is acknowledged once it is kept."""
        records = () if self.inbox is None else self.inbox.take()
        for record in records:
            assert self.inbox is not None
            self._happen(record)
            self.inbox.taken(record)
            self._first = len(self.trajectory.steps)
        return bool(records)

    def _not_made(self, number: int, why: str) -> None:
        self._happen(result_record(Result(number, f"(this call was not made: {why})", True)))

    def drop_calls(self, why: str) -> None:
        """Make no call of the last answer that has no result yet."""
        for step in self.trajectory.steps[-1:]:
            known = {result.call for result in step.results}
            for number in range(len(step.answer.message.tool_calls)):
                if number not in known:
                    self._not_made(number, why)

    def _cut(self, result: Result) -> Result:
        """Return a result with its text cut to its part of the context."""
        if self.compactor is None:
            return result
        num_calls = len(self.trajectory.steps[-1].answer.message.tool_calls)
        return replace(result, text=cut_text(result.text, self.compactor.max_result(num_calls)))

    async def _unless_stopped(self, work: Any) -> Any:
        """Return what comes of work; None, and the work cancelled, once somebody interrupts or the
        time is over."""
        task = asyncio.ensure_future(work)
        waiter = asyncio.ensure_future(self._interrupted.wait())
        try:
            await asyncio.wait(
                [task, waiter],
                timeout=self._seconds_left(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            return task.result() if task.done() else None
        finally:
            waiter.cancel()
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def _ended_by(self, reason: EndReason) -> str:
        return self._by if reason == "interrupted" else _ENDED_BY[reason]

    def _stopped(self) -> EndReason | None:
        """Return what ends all work at once: somebody who interrupts, or the end of the time."""
        if self._interrupted.is_set():
            return "interrupted"
        return "seconds" if self._seconds_left() == 0 else None

    def _seconds_left(self) -> float | None:
        if self.budget.seconds is None:
            return None
        return max(self._began + self.budget.seconds - time.monotonic(), 0.0)

    def _happen(self, record: Mapping[str, Any]) -> None:
        """Keep a record, then let it count."""
        self.journal.append(record)
        if self.watcher is not None:
            self.watcher.record(record)

    def _limit(self) -> EndReason | None:
        budget, trajectory = self.budget, self.trajectory
        if budget.turns is not None and len(trajectory.steps) >= budget.turns:
            return "turns"
        if budget.tokens is not None and trajectory.num_new_tokens >= budget.tokens:
            return "tokens"
        steps = trajectory.steps[self._first :]
        return "loop" if num_repeats(steps) >= _SAME_CALLS_ENDED else None

    def _params(self, room: int | None = None) -> SamplingParams | None:
        """Return how the next answer is sampled: at most the tokens that are left, and those that
        there is room for."""
        limits = [] if room is None else [room]
        if self.budget.tokens is not None:
            limits.append(max(self.budget.tokens - self.trajectory.num_new_tokens, 1))
        if not limits:
            return self.params
        params = self.params or SamplingParams()
        limits += [] if params.max_tokens is None else [params.max_tokens]
        return replace(params, max_tokens=min(limits))

    def _thinking(self) -> TokenBudget | None:
        """Return the tokens of thought that are left for all answers to come."""
        most = self.budget.thinking_tokens
        if most is None:
            return None
        return TokenBudget(max(most - self.trajectory.usage["thinking_tokens"], 0))

    def _is_full(self) -> bool:
        return self.compactor is not None and self.compactor.is_due(self._num_tokens())

    def _num_tokens(self) -> int:
        """Return how many tokens the next prompt has."""
        assert self.compactor is not None
        # Counting takes the whole conversation, so it is only done where it can matter.
        about = about_tokens(self.trajectory)
        if not self.compactor.is_due(4 * about):
            return about
        known = self._counted(self.trajectory.messages)
        return about if known is None else known

    def _counted(self, messages: Sequence[Message]) -> int | None:
        """Return the tokens of a prompt; None for a model whose tokenizer is not here."""
        prompt = self.memory.request(messages, self.hands.tools).prompt
        return None if prompt is None else len(prompt.ids)

    async def _compact(self) -> bool:
        """Put a summary in the place of the earlier steps; return False if that makes no room."""
        assert self.compactor is not None
        compactor, trajectory, num_tokens = self.compactor, self.trajectory, self._num_tokens()
        made = None
        if len(trajectory.steps) == 1:  # there is little to sum up
            made = compactor.shortened(trajectory, num_tokens, self._counted)
        if made is None and trajectory.steps:
            request = compactor.request(trajectory, num_tokens, self._counted)
            if request is None:
                return False
            summary = await self._unless_stopped(self._summary(request.messages, request.room))
            if summary is None:
                return True
            made = compactor.compacted(
                *(trajectory, summary, num_tokens, self._counted), num_unseen=request.num_unseen
            )
        if made is None:
            return False
        self._happen({"type": "compacted", **asdict(made)})
        self.memory = await self.memory.begin_again()
        self.hands.forget()
        return True

    async def _summary(self, messages: Sequence[Message], room: int) -> Completion:
        """Let the model write a summary."""
        request = self.memory.request(
            messages,
            self.hands.tools,
            params=replace(self._params(room) or SamplingParams(), tool_choice="none"),
            budget=self._thinking(),
        )
        return await complete(self.model, request)

    def _with_hint(self, result: Result) -> Result:
        """Add to a result that it came before, if the same calls came again and again."""
        repeats = num_repeats(self.trajectory.steps[self._first :], result)
        if repeats < _SAME_CALLS_TOLD:
            return result
        hint = (
            f"(This call was made {repeats} times in a row with this same result. Do something "
            "else, or say what is in the way.)"
        )
        return replace(
            result, text=f"{result.text}\n{hint}", details={**result.details, "hint": hint}
        )


def _without_open_calls(completion: Completion) -> Completion:
    """Return an answer that was ended without its calls: none was made, the last may be cut."""
    if not completion.reply.tool_calls:
        return completion
    return replace(completion, reply=replace(completion.reply, tool_calls=()))


async def _all_of(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for several pieces of work; none of them goes on once one has failed."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
