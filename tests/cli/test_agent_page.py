"""The page of an agent: what those who watch are told, who may, and who answers first."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.agent import Permissions, Rules, Verdict
from fulmen.chat import ContentDelta, ThinkingDelta, ToolCall
from fulmen.cli.agent_asking import Asker, Interrupts
from fulmen.cli.agent_view import JsonView
from fulmen.cli.watching import AgentPage, Feed, PageAsker
from fulmen.cli.watching import feed as feed_module
from fulmen.cli.watching.feed import Reply
from tests.agent.working import bash, m2_calls, says
from tests.cli.test_agent import _own_folders, folder, repair, served_script  # noqa: F401
from tests.cli.test_agent_team import TEAM
from tests.cli.test_agent_team import line as team_line
from tests.server.page.conftest import chrome, tab  # noqa: F401
from tests.server.page.tab import Tab

T = TypeVar("T")
CALL = ToolCall("bash", {"command": "touch a"})


def waited(look: Callable[[], T], seconds: float = 60) -> T:
    """Return the first true answer of a look."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


# ---- the feed ----------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=30), max_size=40), st.integers(0, 45), st.integers(1, 20))
def test_whoever_comes_back_misses_and_gets_twice_nothing_that_is_kept(
    texts: list[str], after: int, most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_module, "_MAX_EVENTS", most)
        feed = Feed()
        for text in texts:
            feed.add("lead", {"type": "note", "text": text})
    found = [json.loads(line) for line in feed.since(after)[0]]
    numbers = [one["number"] for one in found if one["type"] == "note"]
    assert numbers == list(range(max(after, len(texts) - most) + 1, len(texts) + 1))
    is_cut = len(texts) - most > after
    assert [one["type"] for one in found].count("cut") == is_cut
    assert [one["text"] for one in found if "text" in one] == [texts[at - 1] for at in numbers]


def test_what_grows_is_its_end_and_goes_with_the_event_of_it() -> None:
    feed = Feed()
    for _ in range(1000):
        feed.grow("lead", ThinkingDelta("0123456789"))
    live = json.loads(feed.live())["live"]["lead"]
    assert (live["kind"], len(live["text"])) == ("thinking", 4000)
    feed.grow("lead", ContentDelta("So"))
    assert json.loads(feed.live())["live"]["lead"] == {"kind": "content", "text": "So"}
    feed.add("lead", {"type": "answer", "content": "x" * 300_000})
    assert json.loads(feed.live())["live"] == {}
    (line,) = feed.since(0)[0]
    assert "200,000 characters are left out" in json.loads(line)["content"]


# ---- questions ---------------------------------------------------------------------------------


class Terminal(Asker):
    """A person at a terminal, who answers when told to."""

    def __init__(self, asks: bool = True) -> None:
        super().__init__(JsonView(lambda event: None), Interrupts(), asks=asks)
        self.answer: Future[str | None] = Future()
        self.was_left = False

    async def __call__(self, call: ToolCall, verdict: Verdict, preview: str) -> str | None:
        if not self.asks:
            return await super().__call__(call, verdict, preview)
        try:
            return await asyncio.wrap_future(self.answer)
        except asyncio.CancelledError:
            self.was_left = True
            raise


def asked(
    terminal: Terminal, feed: Feed, then: Callable[[int], None], rules: bool = True
) -> tuple[str | None, list[dict[str, Any]]]:
    """Ask about a call; return the answer, and what those who watch saw of it.

    then  is given the number of the question once it waits
    """

    async def use() -> str | None:
        asker = PageAsker(terminal, feed, JsonView(lambda event: None))
        verdict = Permissions("ask", Rules(), workspace=Path("/w")).judge(CALL)
        assert verdict.rules
        if not rules:
            verdict = replace(verdict, parts=tuple(replace(p, rules=()) for p in verdict.parts))
        answer = asyncio.ensure_future(asker(CALL, verdict, "touch a"))
        await asyncio.sleep(0.05)
        if lines := feed.since(0)[0]:
            then(json.loads(lines[0])["number"])
        return await asyncio.wait_for(answer, 20)

    said = asyncio.run(use())
    return said, [json.loads(line) for line in feed.since(0)[0]]


def test_the_first_answer_counts_and_ends_the_other_question() -> None:
    terminal, feed = Terminal(), Feed()
    said, seen = asked(terminal, feed, lambda number: terminal.answer.set_result(None))
    assert said is None
    assert [one["type"] for one in seen] == ["question", "answered"]
    assert not feed.answer(seen[0]["number"], Reply("no"))

    terminal, feed = Terminal(), Feed()
    said, seen = asked(terminal, feed, lambda number: assert_(feed.answer(number, Reply("once"))))
    assert said is None
    assert terminal.was_left
    assert (seen[1]["question"], seen[1]["how"]) == (seen[0]["number"], "once on the page")


def assert_(value: object) -> None:
    """Check that something is true, where no statement can be."""
    assert value


def test_a_refusal_has_words_and_a_rule_is_remembered_where_there_is_one() -> None:
    terminal = Terminal()
    kept: list[Verdict] = []
    terminal.remember = kept.append
    feed = Feed()
    said, _ = asked(terminal, feed, lambda number: assert_(feed.answer(number, Reply("no", "rm"))))
    assert said == "the user did not allow this, and says: rm"
    assert kept == []
    terminal, feed = Terminal(), Feed()
    terminal.remember = kept.append
    said, _ = asked(terminal, feed, lambda number: assert_(feed.answer(number, Reply("always"))))
    assert (said, len(kept)) == (None, 1)
    terminal, feed = Terminal(), Feed()

    def none(number: int) -> None:
        with pytest.raises(ValueError, match="no rule"):
            feed.answer(number, Reply("always"))
        feed.answer(number, Reply("no"))

    assert asked(terminal, feed, none, rules=False)[0] == "the user did not allow this"


def test_where_nobody_watches_and_there_is_no_terminal_a_call_is_refused() -> None:
    now = [0.0]
    feed = Feed(clock=lambda: now[0])
    now[0] = 1000.0
    terminal = Terminal(asks=False)
    said, seen = asked(terminal, feed, lambda number: None)
    assert said is not None
    assert said.startswith("not allowed, and nobody can be asked")
    assert (seen, terminal.num_refused) == ([], 1)
    feed.watching(1)

    def leave(number: int) -> None:
        feed.watching(-1)
        now[0] += 1000.0  # nobody comes back

    said, seen = asked(terminal, feed, leave)
    assert said is not None
    assert terminal.num_refused == 2
    assert [one["type"] for one in seen] == ["question", "answered"]


# ---- the server --------------------------------------------------------------------------------


@pytest.fixture
def page() -> Iterator[AgentPage]:
    page = AgentPage(Feed())
    page.open()
    try:
        yield page
    finally:
        page.close()


def test_only_those_with_the_token_see_and_answer(page: AgentPage) -> None:
    own = {"authorization": f"Bearer {page.token}"}
    base = f"http://127.0.0.1:{page.port}"
    question = page.feed.ask("lead", {"name": "bash", "reason": "", "preview": "", "rules": []})
    with httpx2.Client(base_url=base, timeout=20) as client:
        for path in ("/", "/agent.js", "/agent.css", "/page/markdown.js"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            assert page.token not in answer.text
            again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert again.status_code == 304
        for path in ("/page/index.html", "/../views.py", "/page/../../run.py"):
            assert client.get(path).status_code in (401, 404)
        wrong: list[Any] = [{}, {"authorization": "Bearer x"}, {"authorization": b"Bearer \xff"}]
        for headers in wrong:
            assert client.get("/events", headers=headers).status_code == 401
            sent = client.post(f"/answers/{question.id}", json={"answer": "once"}, headers=headers)
            assert sent.status_code == 401
        foreign = [{"host": "evil.example"}, {"origin": "https://evil.example"}]
        for headers in foreign:
            sent = client.post(
                f"/answers/{question.id}", json={"answer": "once"}, headers=own | headers
            )
            assert sent.status_code in (403, 421)
        bad: list[Any] = [[], {"answer": "yes"}, {"answer": "no", "words": 3}, {"answer": "always"}]
        for body in bad:
            sent = client.post(f"/answers/{question.id}", json=body, headers=own)
            assert sent.status_code == 400
            assert sent.json()["error"]["message"]
        text = client.post(f"/answers/{question.id}", content="{}", headers=own)
        assert text.status_code == 400
        long = client.post(f"/answers/{question.id}", json={"words": "x" * 70_000}, headers=own)
        assert long.status_code == 400
        assert not question.reply.done()
        assert client.post("/answers/x", json={"answer": "no"}, headers=own).status_code == 400
        ok = client.post(f"/answers/{question.id}", json={"answer": "no"}, headers=own)
        assert ok.status_code == 200
        late = client.post(f"/answers/{question.id}", json={"answer": "once"}, headers=own)
        assert late.status_code == 409
        assert question.reply.result().kind == "no"


def test_a_port_that_is_taken_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="is taken by another program"):
            AgentPage(Feed(), taken.getsockname()[1])


# ---- an agent that is watched ------------------------------------------------------------------


class Watching:
    """Somebody who watches, and gives one answer to all questions."""

    def __init__(self, url: str, answer: str = "once") -> None:
        self._base, _, token = url.partition("#")
        self._headers = {"authorization": f"Bearer {token}"}
        self._answer = answer
        self.events: list[dict[str, Any]] = []

    def watch(self, *, most: int = 10**9) -> None:
        """Take events after those that were seen, until the agent ends, or so many came."""
        after = self.events[-1]["number"] if self.events else 0
        num = 0
        with (
            suppress(httpx2.TransportError),
            httpx2.Client(base_url=self._base, headers=self._headers, timeout=20) as client,
            client.stream("GET", f"events?after={after}") as answer,
        ):
            for line in answer.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if "number" not in event:
                    continue
                self.events.append(event)
                num += 1
                if event["type"] == "question":
                    path = f"answers/{event['number']}"
                    client.post(path, json={"answer": self._answer})
                if num == most:
                    return


@contextmanager
def watched(folder: Path, url: str, *flags: str) -> Iterator[tuple[str, Any]]:  # noqa: F811
    """Start an agent with a page; give its address, and the process."""
    command = (sys.executable, "-m", "fulmen", "agent", "--folder", folder, "--url", url, "--page")
    process = subprocess.Popen(
        [*map(str, command), *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        line = process.stderr.readline()  # type: ignore[union-attr]
        assert line.startswith("watch at http://127.0.0.1:"), line
        yield line.removeprefix("watch at ").strip(), process
    finally:
        process.kill()
        process.communicate()


def told(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event as scripts have it."""
    return {key: one for key, one in event.items() if key not in ("number", "of")}


def test_those_who_watch_see_what_scripts_see_and_answer(folder: Path) -> None:  # noqa: F811
    first = [bash("m2", "sleep 1; echo begun")]  # so that nobody comes too late
    with (
        served_script([*first, *repair("m2")]) as url,
        watched(folder, url, "-p", "Repair it.", "--json", "--allow", "bash(sleep *)",
                "--allow", "bash(echo *)") as (page, process),
    ):  # fmt: skip
        one = Watching(page)
        for _ in range(60):
            one.watch(most=3)  # comes back each time
            if one.events[-1]["type"] == "run.ended":
                break
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "a + b" in (folder / "add.py").read_text()
    seen = [told(event) for event in one.events]
    asked = [event for event in seen if event["type"] in ("question", "answered")]
    assert len(asked) == 6
    rest = [event for event in seen if event not in asked]
    scripts = [json.loads(line) for line in out.splitlines()]
    assert rest == [one for one in scripts if one.get("text") != "allowed on the page"]


def test_all_agents_of_a_team_are_seen(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "team.toml"
    file.write_text(TEAM)

    def line(request: Any) -> str:
        time.sleep(0.2)
        return team_line(request)

    flags = ("-p", "Repair it.", "--mode", "ask", "--team", str(file))
    with served_script([line] * 20) as url, watched(folder, url, *flags) as (page, process):
        one = Watching(page)
        one.watch()
        process.communicate(timeout=60)
    assert process.returncode == 0
    by_agent = {name: [event["type"] for event in one.events if event["of"] == name]
                for name in ("lead", "explorer-1", "worker-1")}  # fmt: skip
    assert by_agent["explorer-1"] == ["message", "answer", "task.ended"]
    assert by_agent["worker-1"] == ["message", "answer", "call", "result", "answer", "task.ended"]
    assert by_agent["lead"][-1] == "run.ended"
    (question,) = [event for event in one.events if event["type"] == "question"]
    assert question["name"] == "merge"
    assert "+    return a + b" in question["preview"]
    assert "a + b" in (folder / "add.py").read_text()


def test_a_browser_shows_the_work_and_answers(folder: Path, tab: Tab) -> None:  # noqa: F811
    """Markup of a stranger's stays text; the token leaves the address."""
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    script = [
        m2_calls(("write", {"path": "new.html", "content": evil}), thought=evil),
        bash("m2", f"touch a; echo '{evil}'"),
        says("m2", f"It is **written**. {evil}"),
    ]
    with served_script(script) as url, watched(folder, url, "-p", "Go.") as (page, process):
        tab.open(page, is_ready=".question")
        assert page.partition("#")[2] not in tab.chrome.current_url
        assert evil in tab.text(".question pre")
        tab.one(".question button.danger").click()
        tab.wait(lambda: "touch" in " ".join(tab.texts(".question h2")))
        tab.one(".question button").click()
        tab.wait(lambda: "written" in " ".join(tab.texts("#log strong")))
        process.communicate(timeout=60)
        assert tab.texts("#log .call.failed summary") == ["write  new.html"]
        assert any(evil in text for text in tab.texts("#log pre"))
        assert tab.all("#log img, #log script") == []
        tab.wait(lambda: "has ended" in tab.text("#state"))
        tab.expected += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE"]
    assert not (folder / "new.html").exists()
