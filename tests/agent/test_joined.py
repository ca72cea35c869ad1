"""Tools of several kinds in one run: who makes a call, who is asked, and what a run began with."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import Archive, Consent, JoinedHands, Permissions, Result, Rules, Verdict
from fulmen.agent.tools import ToolError
from fulmen.chat import Tool, ToolCall
from tests.agent.test_work import run
from tests.agent.working import Noting, begun, m2_calls, says, scripted, work_of
from tests.sandbox.helpers import skip_without_sandbox


class Echo:
    """Tools that give back what they are called with, if a person lets them."""

    def __init__(self, consent: Consent | None, *names: str) -> None:
        self.consent = consent
        self.made: list[str] = []
        self.is_open = False
        self.num_forgotten = 0
        schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": []}
        self._tools = tuple(Tool(name, f"Say it, {name}.", schema) for name in names)

    async def __aenter__(self) -> "Echo":
        self.is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_open = False

    @property
    def tools(self) -> Sequence[Tool]:
        return self._tools

    def is_independent(self, call: ToolCall) -> bool:
        return False

    async def run(self, number: int, call: ToolCall) -> Result:
        async def preview() -> str:
            return "shown"

        try:
            if self.consent is not None:
                await self.consent.obtain(call, preview)
        except ToolError as error:
            return Result(number, str(error), True)
        self.made.append(call.name)
        return Result(number, f"{call.name}: {call.arguments.get('text')}")

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        return Result(number, f"ended by {by}", True)

    def forget(self) -> None:
        self.num_forgotten += 1


def test_a_call_goes_to_the_hands_that_own_its_name() -> None:
    first, second = Echo(None, "a", "b"), Echo(None, "c")
    joined = JoinedHands([first, second])
    assert [tool.name for tool in joined.tools] == ["a", "b", "c"]
    results = [asyncio.run(joined.run(3, ToolCall(name, {"text": "x"}))) for name in "cax"]
    assert [one.text for one in results[:2]] == ["c: x", "a: x"]
    assert (first.made, second.made) == (["a"], ["c"])
    assert results[2] == Result(3, "there is no tool x; there are: a, b, c", True)
    joined.forget()
    assert (first.num_forgotten, second.num_forgotten) == (1, 1)
    with pytest.raises(ValueError, match="two tools have the name b, rename one of them"):
        JoinedHands([first, Echo(None, "b")])


def test_tools_of_a_run_stay_and_those_that_went_say_so() -> None:
    known = JoinedHands([Echo(None, "a", "b")]).tools
    later = JoinedHands([Echo(None, "b", "new")], known=known)
    assert later.tools == known
    assert later.missing == ["a"]
    gone, new = (asyncio.run(later.run(0, ToolCall(name, {}))) for name in ("a", "new"))
    assert gone.text == "a is not here any more; there are: b"
    assert new.text == "there is no tool new; there are: b"
    assert gone.is_error
    assert new.is_error


@pytest.mark.parametrize("mode", ["plan", "ask", "accept-edits", "auto"])
def test_what_leaves_the_sandbox_asks_in_every_mode(mode: Any) -> None:
    call = ToolCall("mcp__files__read-it", {"text": "x"})

    def judged(**lists: Any) -> Verdict:
        permissions = Permissions(mode, Rules.parse(**lists), workspace=Path("/w"))
        return permissions.judge(call)

    expected = "deny" if mode == "plan" else "ask"
    assert judged().decision == expected
    assert judged(deny=["mcp__files"], allow=["mcp__files__read-it"]).decision == "deny"
    assert judged(allow=["mcp__other"]).decision == expected
    if mode != "plan":
        assert judged(allow=["mcp__files"]).decision == "allow"
        assert judged(allow=["mcp__files__read-it"]).decision == "allow"
        assert judged(allow=["mcp__files"], ask=["mcp__files__read-it"]).decision == "ask"
        assert [str(rule) for rule in judged().rules] == ["mcp__files__read-it"]


def test_rules_name_hosts_and_agents() -> None:
    def judged(tool: str, arguments: dict[str, Any], **lists: Any) -> Verdict:
        permissions = Permissions("ask", Rules.parse(**lists), workspace=Path("/w"))
        return permissions.judge(ToolCall(tool, arguments))

    page = {"url": "https://docs.Example.com/a?b=c"}
    assert judged("web_fetch", page).decision == "ask"
    assert [str(one) for one in judged("web_fetch", page).rules] == ["web_fetch(docs.example.com)"]
    for rule in ("web_fetch", "web_fetch(docs.example.com)", "web_fetch(*.example.com)"):
        assert judged("web_fetch", page, allow=[rule]).decision == "allow", rule
        assert judged("web_fetch", page, allow=["web_fetch"], deny=[rule]).decision == "deny"
    for rule in ("web_fetch(example.com)", "web_fetch(docs.example.com.evil)"):
        assert judged("web_fetch", page, allow=[rule]).decision == "ask", rule
    assert judged("task", {"agent": "reader"}, allow=["task(reader)"]).decision == "allow"
    for url in ("file:///etc/passwd", "https://a@b.c", "http://", "gopher://x", "https://x\n.com"):
        with pytest.raises(ValueError, match=r"URL"):
            judged("web_fetch", {"url": url})


def test_one_answer_holds_for_the_tools_of_all_hands() -> None:
    asked: list[str] = []
    most = 0

    async def approve(call: ToolCall, verdict: Verdict, preview: str) -> None:
        nonlocal most
        asked.append(f"{call.name} {preview}")
        most = max(most, len(asked) - done)
        await asyncio.sleep(0.01)
        permissions.remember(verdict)

    done = 0
    permissions = Permissions("auto", Rules(), workspace=Path("/w"))

    async def use() -> list[Result]:
        consent = Consent(permissions, approve)
        hands = [Echo(consent, "mcp__s__a"), Echo(consent, "mcp__s__b")]
        joined = JoinedHands(hands)
        calls = [ToolCall(f"mcp__s__{one}", {"text": "x"}) for one in "abab"]
        return list(await asyncio.gather(*(joined.run(n, one) for n, one in enumerate(calls))))

    results = asyncio.run(use())
    assert not any(one.is_error for one in results)
    assert asked == ["mcp__s__a shown", "mcp__s__b shown"]


def test_a_resumed_and_a_forked_run_are_told_of_the_same_tools(tmp_path: Path) -> None:
    skip_without_sandbox()
    folder = tmp_path / "folder"
    folder.mkdir()
    archive = Archive(tmp_path / "runs")
    begun(archive, folder, name="one")
    called = m2_calls(("mcp__s__a", {"text": "x"}))
    rules = Rules.parse(["mcp__s"])
    opened: list[Echo] = []

    def more(*names: str) -> Any:
        def make(consent: Consent) -> Echo:
            opened.append(Echo(consent, *names))
            return opened[-1]

        return (make,)

    async def work(name: str, model: Any, words: str | None, hands: Any) -> list[str]:
        async with work_of(archive, name, model, rules=rules, more_hands=hands) as one:
            assert opened[-1].is_open == bool(hands)
            assert await one.say(words) == "done"
            return [result.text for step in one.trajectory.steps for result in step.results]

    first = Noting(scripted([called, says("m2", "A.")]))
    assert run(work("one", first, "go", more("mcp__s__a", "mcp__s__b"))) == ["mcp__s__a: x"]
    assert not opened[-1].is_open
    fork = archive.fork("one", 1, tmp_path / "other", new="two")
    assert fork.trajectory.tools == archive.runs.open("one").trajectory.tools
    for name, hands in (("one", more("mcp__s__b", "mcp__new__c")), ("two", ())):
        again = Noting(scripted([called, says("m2", "B.")]))
        texts = run(work(name, again, "more", hands))
        assert texts[-1].startswith("mcp__s__a is not here any more; there are: bash,")
        assert again.requests[0].tools == first.requests[0].tools


def test_a_run_without_other_tools_keeps_the_list_of_its_profile(tmp_path: Path) -> None:
    skip_without_sandbox()
    folder = tmp_path / "folder"
    folder.mkdir()
    archive = Archive(tmp_path / "runs")
    begun(archive, folder, name="one")

    async def work(model: Any, words: str, **fields: Any) -> None:
        async with work_of(archive, "one", model, **fields) as one:
            assert await one.say(words) == "done"

    first, second = (Noting(scripted([says("m2", "A.")])) for _ in range(2))
    run(work(first, "go"))
    assert archive.runs.open("one").trajectory.tools is None
    run(work(second, "more", more_hands=(lambda consent: Echo(consent, "mcp__s__a"),)))
    assert second.requests[0].tools == first.requests[0].tools
