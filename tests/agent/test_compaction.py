"""Histories made shorter: what stays, that it fits, and that no length ends a run for good."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import (
    PROFILES,
    Agent,
    Answer,
    Budget,
    Compaction,
    Compactor,
    Notebook,
    Result,
    Step,
    Trajectory,
    TranscriptMemory,
)
from fulmen.agent.compaction import REQUEST
from fulmen.agent.cutting import cut_said, cut_text
from fulmen.agent.trajectory import apply
from fulmen.chat import ChatRequest, Message, Tokenizer, ToolCall, Transcript, read_messages
from fulmen.llm import ScriptedModel
from fulmen.sampling import SamplingParams
from tests.agent.test_loop import M2, TASK, FakeHands, agent_of, calls, run, says
from tests.examples import examples
from tests.tiny import write_checkpoint


def is_summary(request: ChatRequest) -> bool:
    """Return whether a request asks for a summary."""
    return read_messages(request.messages)[-1] == Message("user", REQUEST)


def test_a_full_context_gives_way_to_a_summary_and_the_task_stays_word_for_word() -> None:
    numbers = iter(range(8))

    def next_line(request: ChatRequest) -> str:
        if request.messages[-1] == Message("user", REQUEST):
            assert request.params is not None
            assert request.params.tool_choice == "none"
            return says("The summary.")
        number = next(numbers, None)
        return says("Done.") if number is None else calls(f"a{number}")

    script = [next_line] * 20
    hands = FakeHands(answer="{} " + "x" * 2000)
    compactor = Compactor(max_tokens=4000, share=0.8, num_kept=2)
    agent = agent_of(script, hands, compactor=compactor)
    assert run(agent) == "done"
    (compaction,) = agent.trajectory.compactions
    assert compaction.text.endswith("The summary.")
    assert compaction.num_tokens_after < 0.7 * compaction.num_tokens_before
    asked = agent.model.requests[-1].messages  # type: ignore[attr-defined]
    assert asked[0] == TASK[0]
    assert asked[1] == Message("user", compaction.text)
    whole = agent.trajectory.copy()
    whole.compactions.clear()
    assert whole.messages[: len(TASK)] == TASK
    assert asked[2:] == tuple(
        message for step in agent.trajectory.steps[compaction.num_steps : -1]
        for message in step.messages
    )  # fmt: skip
    agent.journal.append({"type": "expanded"})  # and back
    assert agent.trajectory.messages == whole.messages


def test_a_summary_that_makes_no_room_ends_it() -> None:
    script = [*[calls(f"a{i}") for i in range(4)], says("y" * 20_000), says("Done.")]
    hands = FakeHands(answer="{} " + "x" * 4000)
    compactor = Compactor(max_tokens=3000, share=0.8, num_kept=1)
    agent = agent_of(script, hands, compactor=compactor)
    assert run(agent) == "context"
    assert not agent.trajectory.compactions
    assert hands.num_forgotten == 0


def step(number: int, *said: str, result: str = "") -> Step:
    """Return a step in which one command came to a result."""
    call = ToolCall("bash", {"command": f"c{number}"})
    message = Message("assistant", f"answer {number}", tool_calls=(call,))
    answer = Answer(
        message=message,
        finish_reason="stop",
        params=SamplingParams(),
        num_prompt_tokens=1000,
        num_new_tokens=100,
    )
    results = (Result(0, result or f"result {number} " * 50),)
    return Step(tuple(Message("user", one) for one in said), answer, results)


def summarised(text: str = "It went well.") -> Any:
    """Return the answer to a request for a summary."""
    model = ScriptedModel(M2, [says(text)])
    return run_one(model)


def run_one(model: ScriptedModel) -> Any:
    """Return an answer of a model."""
    import asyncio

    from fulmen.chat import complete

    return asyncio.run(complete(model, ChatRequest(messages=tuple(TASK))))


def no_count(messages: Sequence[Message]) -> None:
    """Count nothing."""


def test_what_was_said_since_the_task_stays_too_in_its_order() -> None:
    trajectory = Trajectory(system=(Message("system", "sys"),))
    trajectory.steps = [
        step(0, "The first task."),
        *(step(i) for i in range(1, 5)),
        step(5, "The second task: never touch db.py.", "And be quick."),
        *(step(i) for i in range(6, 14)),
    ]
    compactor = Compactor(max_tokens=4000)
    made = compactor.compacted(trajectory, summarised(), 3500, no_count)
    assert made is not None
    trajectory.compactions.append(made)
    messages = trajectory.messages
    assert [one.content for one in messages[:5]] == [
        *("sys", "The first task.", "The second task: never touch db.py.", "And be quick."),
        made.text,
    ]
    assert messages[5:] == [one for later in trajectory.steps[10:] for one in later.messages]


@given(st.lists(st.text(max_size=900), max_size=12), st.integers(0, 3000))
@settings(max_examples=examples(200), deadline=None)
def test_words_are_cut_to_a_bound_the_longest_first(texts: list[str], limit: int) -> None:
    said = [Message("user", text) for text in texts]
    assert cut_said(said, None) == said
    cut = cut_said(said, limit)
    assert len(cut) == len(said)
    notes = len("\n( characters left out)\n") + 3
    assert sum(len(one.content) for one in cut) <= max(limit, 200 * len(cut)) + notes * len(cut)
    longest_whole = max(
        (len(a.content) for a, b in zip(said, cut, strict=True) if a == b), default=0
    )
    for before, after in zip(said, cut, strict=True):
        if before != after:
            assert len(before.content) >= longest_whole
            head, _, rest = after.content.partition("\n(")
            assert before.content.startswith(head)
            assert before.content.endswith(rest.partition(" characters left out)\n")[2])


def test_a_text_that_is_cut_says_how_much_is_left_out() -> None:
    assert cut_text("x" * 10, 10) == "x" * 10
    assert cut_text("ab" * 500, 100) == "ab" * 25 + "\n(900 characters left out)\n" + "ab" * 25


def test_a_summary_keeps_fewer_steps_and_cuts_their_results_where_they_are_too_long() -> None:
    trajectory = Trajectory(steps=[step(i, result="x" * 3000) for i in range(6)])
    whole = trajectory.messages
    made = Compactor(max_tokens=4000).compacted(trajectory, summarised(), 6000, no_count)
    assert made is not None
    assert made.num_cut == 6
    trajectory.compactions.append(made)
    kept = trajectory.messages[-2 * (6 - made.num_steps) :]
    assert all(len(one.content) < 1100 for one in kept)
    assert made.num_tokens_after < 0.7 * 6000
    apply(trajectory, {"type": "expanded"})
    assert trajectory.messages == whole


@pytest.mark.parametrize(
    "changes",
    [{"num_cut": 3}, {"num_steps": -1}, {"max_result": "x"}, {"num_new_tokens": 0.5}, {"text": 1}],
)
def test_a_summary_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    trajectory = Trajectory(steps=[step(0), step(1)])
    good = {"num_steps": 1, "num_seen": 2, "text": "x", "num_tokens_before": 2}
    good["num_tokens_after"] = 1
    with pytest.raises(ValueError, match="cannot follow"):
        apply(trajectory, {"type": "compacted", **good, **changes})
    assert not trajectory.compactions
    apply(trajectory, {"type": "compacted", **good})
    assert trajectory.compactions == [Compaction(1, 2, "x", 2, 1)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_checkpoint(tmp_path_factory.mktemp("m2"), "m2"))


class SomeHands(FakeHands):
    """Three tools, and results of given lengths."""

    tools = PROFILES["minimal"]

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.lengths = list(lengths)

    async def run(self, number: int, call: ToolCall) -> Result:
        """Answer with the next length."""
        result = await super().run(number, call)
        length = self.lengths.pop() if self.lengths else 10
        return replace(result, text=f"{len(self.lengths)} " + "some words " * (length // 11))


def counted_agent(
    tokenizer: Tokenizer,
    line: Callable[[ChatRequest], str],
    hands: FakeHands,
    context: int,
    **fields: Any,
) -> Agent:
    """Return an agent whose model knows tokens and takes no more than fit."""
    model = ScriptedModel(M2, [line] * 200, tokenizer=tokenizer, max_model_len=context)
    memory = TranscriptMemory(Transcript(M2, tokenizer, keep_thoughts=True))
    compactor = Compactor(max_tokens=context)
    return Agent(model, hands, memory, Notebook(), compactor=compactor, **fields)


@given(data=st.data())
@settings(max_examples=examples(60), deadline=None)
def test_no_result_is_too_long_to_go_on(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """The model refuses a prompt that its context does not hold, so each prompt did fit."""
    lengths = data.draw(
        st.lists(st.sampled_from([10, 700, 9_000, 40_000]), min_size=1, max_size=14)
    )
    sizes = iter(data.draw(st.lists(st.integers(1, 4), min_size=14, max_size=14)))
    hands = SomeHands(lengths)

    def line(request: ChatRequest) -> str:
        if is_summary(request):
            return says("What was done is done.")
        if not hands.lengths:
            return says("Done.")
        return calls(*(f"c{i}" for i in range(next(sizes))), name="run")

    agent = counted_agent(tokenizer, line, hands, 4000)
    assert run(agent) == "done"
    last = agent.trajectory.steps[-1].answer
    assert last.num_prompt_tokens <= 4000
    assert hands.num_forgotten == len(agent.trajectory.compactions)


def working(hands: SomeHands, summary: str) -> Callable[[ChatRequest], str]:
    """Return a line that makes calls as long as there are results."""

    def line(request: ChatRequest) -> str:
        if is_summary(request):
            return says(summary)
        return calls("c", name="run") if hands.lengths else says("Done.")

    return line


def test_a_summary_is_paid_from_what_is_left(tokenizer: Tokenizer) -> None:
    hands = SomeHands([1500] * 8)
    line = working(hands, "word " * 60)
    agent = counted_agent(
        tokenizer, line, hands, 4000, budget=Budget(tokens=5000, thinking_tokens=500)
    )
    assert run(agent) == "done"
    trajectory, model = agent.trajectory, agent.model
    assert isinstance(model, ScriptedModel)
    made = trajectory.compactions[0]
    assert made.num_prompt_tokens > 1000
    answers = [one.answer.num_new_tokens for one in trajectory.steps]
    paid = sum(answers) + sum(one.num_new_tokens for one in trajectory.compactions)
    assert trajectory.num_new_tokens == trajectory.usage["new_tokens"] == paid > sum(answers)
    asked = [request for request in model.requests if is_summary(request)]
    for request, one in zip(asked, trajectory.compactions, strict=True):
        assert request.budget is not None
        assert request.params is not None
        assert request.params.tool_choice == "none"
        assert request.params.max_tokens is not None
        assert one.num_prompt_tokens + request.params.max_tokens <= 4000
    hands = SomeHands([1500] * 8)
    line = working(hands, "word " * 60)
    few = counted_agent(tokenizer, line, hands, 4000, budget=Budget(tokens=250))
    assert run(few) == "tokens"
    assert few.trajectory.num_new_tokens <= 250


def test_one_long_first_step_is_cut_and_not_summed_up(tokenizer: Tokenizer) -> None:
    hands = SomeHands([30_000] * 4)
    agent = counted_agent(
        tokenizer,
        lambda request: says("Done.") if not hands.lengths else calls(*"abcd", name="run"),
        hands,
        6000,
    )
    agent.compactor = Compactor(max_tokens=6000, share=0.4)
    assert run(agent) == "done"
    assert [one.text for one in agent.trajectory.compactions] == [""]
    assert len(agent.model.requests) == 2  # type: ignore[attr-defined]


def test_a_long_answer_before_the_end_is_kept_and_the_rest_summed_up(tokenizer: Tokenizer) -> None:
    """A file that was just written may leave no room to ask for a summary of all."""
    count = iter(range(100))

    def line(request: ChatRequest) -> str:
        if is_summary(request):
            assert "x" * 1000 not in str(read_messages(request.messages))
            return says("What was done is done.")
        number = next(count)
        if number == 6:
            return calls("x" * 1700, name="run")
        return calls(f"c{number}{'y' * 500}", name="run") if number < 6 else says("Done.")

    agent = counted_agent(tokenizer, line, SomeHands([200] * 7), 8000)
    assert run(agent) == "done"
    (made,) = agent.trajectory.compactions
    assert 0 < made.num_steps < made.num_seen == 7
    assert "x" * 1700 in str(agent.trajectory.messages)
