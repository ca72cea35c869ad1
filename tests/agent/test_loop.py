"""The loop: what it asks, does, keeps and stops at, with a model that says what it is told."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import (
    PROFILES,
    Agent,
    Budget,
    Notebook,
    PlainMemory,
    Result,
    Trajectory,
    TranscriptMemory,
)
from fulmen.chat import (
    ChatRequest,
    Event,
    Message,
    ModelError,
    Tokenizer,
    Tool,
    ToolCall,
    Transcript,
    get_format,
    read_messages,
)
from fulmen.llm import LLM, ForcedModel, LocalModel, ScriptedModel
from fulmen.sampling import SamplingParams
from fulmen.sandbox import SandboxError
from tests.examples import examples
from tests.tiny import write_checkpoint

TASK = [Message("user", "Do it.")]
M2 = get_format("minimax_m2")


def calls(*commands: str, thought: str = "Hm.", name: str = "bash") -> str:
    """Return an answer of M2 that makes calls."""
    inner = "".join(
        f'<invoke name="{name}">\n<parameter name="command">{command}</parameter>\n</invoke>\n'
        for command in commands
    )
    return f"{thought}\n</think>\n\n<minimax:tool_call>\n{inner}</minimax:tool_call>"


def m1_call(command: str) -> str:
    """Return an answer of M1 that makes a call."""
    call = json.dumps({"name": "bash", "arguments": {"command": command}})
    return f"<think>\nHm.\n</think>\n\n<tool_calls>\n{call}\n</tool_calls>"


def says(text: str) -> str:
    """Return an answer of M2 without calls."""
    return f"Hm.\n</think>\n\n{text}"


class FakeHands:
    """Tools that note what they are asked and answer by a rule."""

    tools: Sequence[Tool] = PROFILES["coding"]

    def __init__(self, *, seconds: float = 0.0, answer: str = "out {}") -> None:
        self.seconds = seconds
        self.answer = answer
        self.made: list[str] = []
        self.num_running = self.most_running = self.num_forgotten = 0

    def is_independent(self, call: ToolCall) -> bool:
        """Return whether the command says so."""
        return str(call.arguments["command"]).startswith("look")

    async def run(self, number: int, call: ToolCall) -> Result:
        """Take the time, and answer."""
        command = str(call.arguments["command"])
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await asyncio.sleep(30.0 if command == "wait" else self.seconds)
        finally:
            self.num_running -= 1
        self.made.append(command)
        return Result(number, self.answer.format(command), snapshot=f"after {command}")

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        """Say so."""
        return Result(number, f"(ended by {by})", True)

    def forget(self) -> None:
        """Note it."""
        self.num_forgotten += 1


class Log:
    """A watcher that notes what it sees."""

    def __init__(self, agent: Agent | None = None, stop_at: int | None = None) -> None:
        self.seen: list[str] = []
        self.agent = agent
        self.stop_at = stop_at

    def _see(self, what: str) -> None:
        self.seen.append(what)
        if self.agent is not None and len(self.seen) == self.stop_at:
            self.agent.interrupt()

    def event(self, event: Event) -> None:
        """Note that a piece came."""
        self._see("event")

    def record(self, record: Mapping[str, Any]) -> None:
        """Note its type."""
        self._see(str(record["type"]))

    def calling(self, call: ToolCall) -> None:
        """Note the command."""
        self._see(f"call {call.arguments['command']}")


def agent_of(script: Sequence[Any], hands: FakeHands | None = None, **fields: Any) -> Agent:
    """Return an agent whose model says a script."""
    model = fields.pop("model", None) or ScriptedModel(M2, script)
    memory = fields.pop("memory", None) or PlainMemory()
    return Agent(model, hands or FakeHands(), memory, Notebook(), **fields)


def run(agent: Agent, messages: Sequence[Message] = TASK) -> str:
    """Run an agent to its end."""
    return asyncio.run(asyncio.wait_for(agent.run(messages), 20))


SCRIPT = [calls("a"), calls("look b", "look c", "d", "look e"), says("Done.")]


def test_it_asks_and_acts_until_there_is_nothing_to_do() -> None:
    hands = FakeHands()
    agent = agent_of(SCRIPT, hands)
    agent.watcher = Log()
    assert run(agent) == "done"
    assert hands.made == ["a", "look b", "look c", "d", "look e"]
    requests = agent.model.requests  # type: ignore[attr-defined]
    assert [len(one.messages) for one in requests] == [1, 3, 8]
    roles = [message.role for message in requests[-1].messages]
    assert roles == ["user", "assistant", "tool", "assistant", *["tool"] * 4]
    thoughts = [message.thinking for message in requests[-1].messages]
    assert [thought for thought in thoughts if thought] == ["Hm."] * 2
    for earlier, later in pairwise(requests):  # append only
        assert later.messages[: len(earlier.messages)] == earlier.messages
    assert agent.trajectory.reply == Message("assistant", "Done.", thinking="Hm.")
    assert agent.trajectory.snapshot(1) == "after a"
    assert agent.trajectory.snapshot(3) == "after look e"
    assert [what for what in agent.watcher.seen if what != "event"] == [
        *("said", "answer", "call a", "result", "answer", "call look b", "call look c"),
        *("result", "result", "call d", "result", "call look e", "result", "answer", "ended"),
    ]


def test_only_calls_that_change_nothing_run_beside_others() -> None:
    hands = FakeHands(seconds=0.02)
    run(agent_of([calls("look a", "look b", "look c"), says("x")], hands))
    assert hands.most_running == 3
    hands = FakeHands(seconds=0.02)
    run(agent_of([calls("a", "b", "c"), says("x")], hands))
    assert (hands.most_running, hands.made) == (1, ["a", "b", "c"])


def test_no_call_goes_on_once_one_beside_it_has_failed() -> None:
    class Failing(FakeHands):
        async def run(self, number: int, call: ToolCall) -> Result:
            if call.arguments["command"] == "look b":
                raise SandboxError("there is no sandbox")
            return await super().run(number, call)

    hands = Failing(seconds=30)
    agent = agent_of([calls("look a", "look b"), says("x")], hands)

    async def failed() -> None:
        with pytest.raises(SandboxError):
            await agent.run(TASK)
        assert hands.num_running == 0

    asyncio.run(failed())
    assert not agent.trajectory.steps[0].results


@given(st.integers(1, 60))
@settings(max_examples=examples(60), deadline=None)
def test_interrupted_anywhere_it_goes_on_to_the_same_end(stop_at: int) -> None:
    whole = agent_of(SCRIPT)
    assert run(whole) == "done"
    hands = FakeHands()

    def next_line(request: ChatRequest) -> str:
        messages = read_messages(request.messages)
        return SCRIPT[sum(message.role == "assistant" for message in messages)]

    agent = agent_of([next_line] * 20, hands)
    agent.watcher = Log(agent, stop_at)
    reason = run(agent)
    if reason == "interrupted":
        steps = [step for step in agent.trajectory.steps if step.answer.finish_reason == "abort"]
        assert all(not step.answer.message.tool_calls for step in steps)
        agent.watcher = None
        if steps:  # a cut answer stands as a turn; here it is taken back
            agent.journal.append({"type": "rewound", "num_steps": len(agent.trajectory.steps) - 1})
        assert run(agent, []) == "done"
    texts = [
        result.text
        for step in agent.trajectory.steps
        for result in sorted(step.results, key=lambda one: one.call)
    ]
    expected = [result.text for step in whole.trajectory.steps for result in step.results]
    assert [text for text in texts if text.startswith("out")] == [
        one for one, text in zip(expected, texts, strict=True) if text.startswith("out")
    ]
    assert hands.made == [text.removeprefix("out ") for text in texts if text.startswith("out")]
    assert agent.trajectory.reply == whole.trajectory.reply


def test_a_command_that_is_interrupted_is_ended_and_has_a_result() -> None:
    hands = FakeHands()
    agent = agent_of([calls("wait"), says("Then not.")], hands)

    async def both() -> None:
        task = asyncio.create_task(agent.run(TASK))
        while not hands.num_running:
            await asyncio.sleep(0.001)
        agent.interrupt()
        assert await task == "interrupted"
        assert hands.num_running == 0
        (step,) = agent.trajectory.steps
        assert step.results == (Result(0, "(ended by the user)", True),)
        assert await agent.run([Message("user", "Stop that.")]) == "done"

    asyncio.run(asyncio.wait_for(both(), 20))
    said = agent.model.requests[-1].messages  # type: ignore[attr-defined]
    assert [message.role for message in said] == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize(
    ("budget", "reason", "num_steps"),
    [
        (Budget(turns=2), "turns", 2),
        (Budget(turns=0), "turns", 0),
        (Budget(seconds=0.0), "seconds", 0),
    ],
)
def test_a_budget_ends_it_and_a_larger_one_goes_on(
    budget: Budget, reason: str, num_steps: int
) -> None:
    agent = agent_of(SCRIPT, budget=budget)
    assert run(agent) == reason
    assert len(agent.trajectory.steps) == num_steps
    assert agent.trajectory.end == reason
    agent.budget = Budget()
    assert run(agent, []) == "done"


def test_tokens_and_thoughts_are_counted_over_the_whole_run(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m2", "m2")
    tokenizer = Tokenizer.from_folder(folder)
    model = ScriptedModel(M2, [calls("a"), calls("b"), says("x")], tokenizer=tokenizer)
    agent = agent_of([], model=model, budget=Budget(tokens=150, thinking_tokens=10))
    assert run(agent) == "tokens"
    limits = [request.params.max_tokens for request in model.requests if request.params]
    used = [step.answer.num_new_tokens for step in agent.trajectory.steps]
    assert limits == [150 - sum(used[:i]) for i in range(len(limits))]
    assert sum(used) <= 150
    left = [request.budget.num_left for request in model.requests if request.budget]
    thought = [step.answer.num_thinking_tokens for step in agent.trajectory.steps]
    assert thought[0] > 0
    assert left == [max(10 - sum(thought[:i]), 0) for i in range(len(left))]


def test_the_same_call_again_and_again_is_told_and_then_ended() -> None:
    hands = FakeHands()
    agent = agent_of([calls("a")] * 20, hands)
    assert run(agent) == "loop"
    assert len(hands.made) == 6
    texts = [step.results[0].text for step in agent.trajectory.steps]
    assert texts[:2] == ["out a"] * 2
    assert all("in a row with this same result" in text for text in texts[2:])
    other = agent_of([calls("a"), calls("b"), calls("c"), calls("d")] * 6 + [says("x")])
    assert run(other) == "done"


def test_calls_that_are_made_in_turn_again_and_again_are_a_loop_too() -> None:
    hands = FakeHands()
    agent = agent_of([calls("a"), calls("b")] * 20, hands)
    assert run(agent) == "loop"
    assert len(hands.made) == 12
    told = [
        "in a row with this same result" in step.results[0].text for step in agent.trajectory.steps
    ]
    assert told == [*[False] * 5, *[True] * 7]


@pytest.mark.parametrize("words", [[], [Message("user", "Do something else.")]])
def test_after_a_loop_it_goes_on_with_words_or_without(words: list[Message]) -> None:
    agent = agent_of([*[calls("a")] * 7, says("x")])
    assert run(agent) == "loop"
    assert run(agent, words) == "done"
    last = agent.trajectory.steps[-2].results[0].text
    assert last == "out a"  # repeats are counted anew


@pytest.mark.parametrize("how", ["interrupted", "seconds"])
def test_calls_that_are_left_when_the_work_ends_are_not_begun(how: str) -> None:
    hands = FakeHands()
    log = Log()
    budget = Budget(seconds=0.3 if how == "seconds" else None)
    agent = agent_of([calls("wait", "b", "look c"), says("x")], hands, budget=budget, watcher=log)

    async def both() -> None:
        task = asyncio.create_task(agent.run(TASK))
        while not hands.num_running:
            await asyncio.sleep(0.001)
        if how == "interrupted":
            agent.interrupt()
        assert await task == how

    asyncio.run(asyncio.wait_for(both(), 20))
    who = "the user" if how == "interrupted" else "the time limit"
    (step,) = agent.trajectory.steps
    assert [one.text for one in step.results] == [
        f"(ended by {who})",
        *[f"(this call was not made: {who} ended the work before it)"] * 2,
    ]
    assert [one for one in log.seen if one.startswith("call")] == ["call wait"]
    assert hands.made == []


def test_open_calls_are_not_made_once_somebody_says_something_else() -> None:
    hands = FakeHands()
    agent = agent_of([calls("a", "b"), says("x")], hands)

    class Stop(Log):
        def record(self, record: Mapping[str, Any]) -> None:
            if record["type"] == "answer":
                agent.interrupt()

    agent.watcher = Stop()
    assert run(agent) == "interrupted"
    assert not agent.trajectory.steps[0].results
    agent.watcher = None
    assert run(agent, [Message("user", "Not that.")]) == "done"
    assert hands.made == []
    assert all("said something else" in one.text for one in agent.trajectory.steps[0].results)


def test_the_time_limit_ends_an_answer_too() -> None:
    model = ScriptedModel(M2, [says("word " * 500)], delay_seconds=0.05)
    agent = agent_of([], model=model, budget=Budget(seconds=0.3))
    begin = time.monotonic()
    assert run(agent) == "seconds"
    assert time.monotonic() - begin < 5
    (step,) = agent.trajectory.steps
    assert step.answer.finish_reason == "abort"


def test_a_model_that_fails_ends_it_and_nothing_is_lost() -> None:
    agent = agent_of([calls("a"), ModelError("the line is dead"), says("x")])
    with pytest.raises(ModelError, match="the line is dead"):
        run(agent)
    assert agent.trajectory.end == "error"
    assert len(agent.trajectory.steps) == 1
    assert run(agent, []) == "done"


@pytest.mark.parametrize("kind", ["m1", "m2"])
def test_each_prompt_begins_with_all_that_was_read_and_said(tmp_path: Path, kind: str) -> None:
    llm = LLM.load(str(write_checkpoint(tmp_path / kind, kind, max_position_embeddings=8192)))
    format = llm.format

    async def go() -> Trajectory:
        async with LocalModel(llm) as local:
            texts = [calls(f"c{i}") if kind == "m2" else m1_call(f"c{i}") for i in range(3)]
            model = ForcedModel(local, [*texts, "Done."])
            memory = TranscriptMemory(Transcript(format, llm.tokenizer, keep_thoughts=True))
            params = replace(SamplingParams(), temperature=0.0, max_tokens=500)
            agent = agent_of([], model=model, memory=memory, params=params)
            await agent.run(TASK)
            return agent.trajectory

    trajectory = asyncio.run(asyncio.wait_for(go(), 60))
    assert len(trajectory.steps) >= 2
    for before, after in pairwise(trajectory.steps):
        first, second = before.answer.sampled, after.answer.sampled
        assert first is not None
        assert second is not None
        known = (*first.prompt_ids, *first.answer_ids)
        assert second.prompt_ids[: len(known)] == known
        assert after.answer.num_cached_tokens >= len(known) - 64
    assert trajectory.steps[0].answer.sampled is not None
    assert all(step.answer.sampled.forced for step in trajectory.steps if step.answer.sampled)
