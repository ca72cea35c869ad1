"""Messages under any schedule: none is lost, late, read twice, or read by another agent."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import Agent, Notebook, PlainMemory, Post, Result, Trajectory
from fulmen.agent.team.mailbox import MAX_WAITING, Letter
from fulmen.agent.tools import ToolError
from fulmen.chat import Message, Tool, ToolCall, get_format, read_messages
from fulmen.llm import ScriptedModel
from tests.agent.working import bash, says
from tests.examples import examples

NAMES = ("lead", "a-1", "a-2", "b-1")


@dataclass
class Reference:
    """All that may become of messages, said as plainly as can be."""

    is_open: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(NAMES, True))
    waiting: dict[str, list[tuple[str, str]]] = field(
        default_factory=lambda: {name: [] for name in NAMES}
    )
    read: list[tuple[str, str]] = field(default_factory=list)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
        st.tuples(st.just("read"), st.sampled_from(NAMES), st.integers(0, 3)),
        st.tuples(st.just("rest"), st.sampled_from(NAMES[1:]), st.none()),
        st.tuples(st.just("close"), st.sampled_from(NAMES[1:]), st.none()),
        st.tuples(st.just("open"), st.sampled_from(NAMES[1:]), st.none()),
    ),
    max_size=60,
)


@given(ACTIONS)
@settings(max_examples=examples(300), deadline=None)
def test_mailboxes_do_as_a_plain_list_of_messages_would(actions: Any) -> None:
    notes: list[Mapping[str, Any]] = []
    post, plain, sent = Post(notes.append), Reference(), 0
    boxes = {name: post.new_box(name, stays=name == "lead") for name in NAMES}
    for name in NAMES[1:]:
        boxes[name].open()
    read: list[tuple[str, str]] = []
    for action, name, more in actions:
        if action == "send":
            text = f"message {sent}"
            may = plain.is_open[more] and more != name
            may = may and sum(one[0] == "sent" for one in plain.waiting[more]) < MAX_WAITING
            if may:
                post.send(name, more, text)
                plain.waiting[more].append(("sent", f"{name}:{text}"))
                sent += 1
            else:
                with pytest.raises(ToolError):
                    post.send(name, more, text)
        elif action == "read":
            for record in boxes[name].take()[:more]:
                read.append((name, record["messages"][0]["content"]))
                boxes[name].taken(record)
            plain.read += [(name, one[1]) for one in plain.waiting[name][:more]]
            del plain.waiting[name][:more]
        elif action == "rest":
            assert boxes[name].rest() == (not plain.waiting[name])
            plain.is_open[name] = plain.is_open[name] and bool(plain.waiting[name])
        elif action == "open":
            boxes[name].open()
            plain.is_open[name] = True
        else:
            boxes[name].close()
            plain.is_open[name] = False
            unread, plain.waiting[name] = plain.waiting[name], []
            for kind, text in unread:
                sender = text.partition(":")[0]
                if kind == "sent" and plain.is_open.get(sender):
                    start = text.partition(":")[2]
                    told = f"{name} ended before it read your message: {start}"
                    plain.waiting[sender].append(("returned", f"post:{told}"))
    expected = []
    for name, text in plain.read:
        sender, _, words = text.partition(":")
        expected.append((name, f"(Message of the agent {sender}, not of the user)\n{words}"))
    assert read == expected
    for name in NAMES:
        assert [one.text for one in boxes[name].waiting] == [
            text.partition(":")[2] for _, text in plain.waiting[name]
        ]
    check_journal(notes, {one.id for box in boxes.values() for one in box.waiting})


def check_journal(notes: list[Mapping[str, Any]], waiting: set[str]) -> None:
    """Check that what is on disk says of each message the one thing that became of it."""
    noted = [one["letter"]["id"] for one in notes if "letter" in one]
    gone = [one["message"] for one in notes if one["type"] in ("taken", "returned")]
    assert len(set(noted)) == len(noted)
    assert len(set(gone)) == len(gone)
    assert set(noted) - set(gone) == waiting


def test_a_box_has_room_for_reports_when_it_is_full_of_messages() -> None:
    post = Post()
    box = post.new_box("lead", stays=True)
    for number in range(MAX_WAITING):
        post.send("a-1", "lead", str(number))
    with pytest.raises(ToolError, match=f"lead has {MAX_WAITING} messages that it has not read"):
        post.send("a-1", "lead", "more")
    post.deliver(Letter("a-2/1", "a-2", "lead", "done", is_report=True))
    assert box.waiting[-1].text == "done"
    with pytest.raises(ToolError, match="there is no agent a-9; there are: lead"):
        post.send("a-1", "a-9", "who?")


class Sending:
    """Tools that have others send messages while they run."""

    tools = (Tool("bash", "Run.", {"type": "object", "properties": {}, "required": []}),)

    def __init__(self, post: Post, plan: list[int]) -> None:
        self.post, self.plan, self.num_calls = post, plan, 0
        self.sent_in: dict[str, int] = {}

    def is_independent(self, call: ToolCall) -> bool:
        return False

    async def run(self, number: int, call: ToolCall) -> Result:
        self.num_calls += 1
        for _ in range(self.plan.pop(0) if self.plan else 0):
            self.sent_in[self.post.send("a-1", "lead", "psst").id] = self.num_calls
        return Result(number, f"call {self.num_calls}")

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        return Result(number, by, True)

    def forget(self) -> None:
        """Forget nothing."""


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.lists(st.integers(0, 2), max_size=9))
@settings(max_examples=examples(60), deadline=None)
def test_a_message_is_late_by_no_more_than_the_call_that_is_under_way(
    num_calls: list[int], plan: list[int]
) -> None:
    post = Post()
    box = post.new_box("lead", stays=True)
    hands = Sending(post, list(plan))
    script = [bash("m2", *("x",) * count) for count in num_calls] + [says("m2", "Done.")] * 2
    journal = Recorded()
    model = ScriptedModel(get_format("minimax_m2"), script)
    agent = Agent(model, hands, PlainMemory(), journal, inbox=box)
    assert asyncio.run(agent.run([Message("user", "Do it.")])) == "done"
    calls_before: dict[str, int] = {}
    count = 0
    for record in journal.records:
        if record["type"] == "result":
            count += 1
        elif "sender" in record:
            id = record["sender"]["message"]
            assert id not in calls_before, "it came twice"
            calls_before[id] = count
    assert calls_before == hands.sent_in  # right behind the call in which it was sent
    again = Trajectory()
    book = Notebook(again)
    for record in journal.records:
        book.append(record)
    assert again.heard == set(hands.sent_in)
    read = [one.content for one in read_messages(model.requests[-1].messages)]
    assert sum("Message of the agent a-1, not of the user" in one for one in read) == len(
        hands.sent_in
    )


class Recorded(Notebook):
    """A journal that can be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Mapping[str, Any]] = []

    def append(self, record: Mapping[str, Any]) -> None:
        super().append(record)
        self.records.append(record)


def test_a_message_that_comes_with_the_last_answer_is_answered() -> None:
    post = Post()
    box = post.new_box("a-1")
    box.open()
    requests = []

    def first(request: Any) -> str:
        requests.append(request)
        post.send("lead", "a-1", "one more thing")
        return says("m2", "Done.")

    model = ScriptedModel(get_format("minimax_m2"), [first, says("m2", "Done, with that.")])
    agent = Agent(model, Sending(post, []), PlainMemory(), Notebook(), inbox=box)
    assert asyncio.run(agent.run([Message("user", "Do it.")])) == "done"
    assert agent.trajectory.reply is not None
    assert agent.trajectory.reply.content == "Done, with that."
    with pytest.raises(ToolError, match="a-1 has ended its work and reads no messages"):
        post.send("lead", "a-1", "too late")  # the sender is told, and nothing is lost


def test_words_after_going_back_keep_messages_of_agents() -> None:
    book = Notebook()
    post = Post()
    post.new_box("lead", stays=True)
    book.append({"type": "said", "messages": [{"role": "user", "content": "first"}]})
    book.append({"type": "rewound", "num_steps": 0})
    book.append(post.send("a-1", "lead", "news").record)
    assert book.trajectory.said[0].content == "first"
    assert len(book.trajectory.said) == 2
