"""Real coding clients finish a session with tools, and nothing the model said is lost or read anew.

Whatever a client does to a history, the prompt begins with the ids of the one before and of its
answer. Clients that drop thoughts get them put back.
"""

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from fulmen.chat import ChatRequest, read_messages
from fulmen.llm import LLM
from tests.chat.helpers import real_tokenizer
from tests.server.clients.engine import Served, Step, call, load_llm, serving
from tests.server.clients.programs import Place, claude_code, codex, opencode
from tests.server.clients.tasks import (
    CLIENTS,
    EDITED,
    FINAL,
    QUESTION,
    again,
    codex_patch_steps,
    write_steps,
)

pytestmark = pytest.mark.slow

M2_FOR_CODEX = {
    "slug": "m2",
    "display_name": "MiniMax-M2",
    "apply_patch_tool_type": "freeform",
    "base_instructions": "You are a coding agent.",
    "context_window": 196608,
    "experimental_supported_tools": [],
    "priority": 1,
    "shell_type": "shell_command",
    "support_verbosity": False,
    "supported_in_api": True,
    "supported_reasoning_levels": [],
    "supports_parallel_tool_calls": True,
    "supports_reasoning_summaries": True,
    "truncation_policy": {"mode": "tokens", "limit": 10000},
    "visibility": "list",
}
"""Entry of codex's list of models"""


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    real_tokenizer()
    llm = load_llm(tmp_path_factory.mktemp("m2"))
    yield llm
    assert not llm.engine.has_unfinished


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.new(tmp_path)


@pytest.mark.parametrize(
    ("name", "hides"),
    [
        pytest.param(name, hides, id=f"{name}-thoughts-{'hidden' if hides else 'shown'}")
        for name, client in CLIENTS.items()
        for hides in (False, True)
        if client.can_hide or not hides
    ],
)
def test_a_session_with_tools_completes_and_its_prompts_go_on_from_each_other(
    llm: LLM, place: Place, name: str, hides: bool
) -> None:
    client = CLIENTS[name]
    steps = client.steps(place.work)
    with serving(llm, write_steps(steps)) as served:
        finished = client.start(place, served.url, QUESTION, hides=hides).wait()
        assert finished.returncode == 0, finished.story
        states = turn_states(served)
    assert (place.work / "a.txt").read_text() == EDITED
    assert_session(served, steps)
    num_turns = sum(range(len(steps)))
    shown, hidden = (0, num_turns) if hides else (num_turns, 0)
    assert states == {"matched": shown, "restored": hidden, "rendered": 0}
    if name == "mini-swe-agent":
        trajectory = json.loads((place.home / "trajectory.json").read_text())
        assert trajectory["info"]["exit_status"] == "Submitted"
    else:
        assert FINAL in finished.stdout


def test_codex_patches_files_with_a_tool_that_takes_text(llm: LLM, place: Place) -> None:
    """The tool is a custom one; codex has it for models that it was told about."""
    catalog = place.home / "models.json"
    catalog.write_text(json.dumps({"models": [M2_FOR_CODEX]}))
    steps = codex_patch_steps(place.work)
    with serving(llm, write_steps(steps)) as served:
        finished = codex(place, served.url, QUESTION, catalog=catalog).wait()
        assert finished.returncode == 0, finished.story
        states = turn_states(served)
    assert (place.work / "a.txt").read_text() == EDITED, finished.story
    assert_session(served, steps)
    assert states == {"matched": 1 + 2 + 3 + 4, "restored": 0, "rendered": 0}


@pytest.mark.parametrize("name", [name for name in CLIENTS if CLIENTS[name].can_go_on])
def test_a_second_question_goes_on_from_the_first_where_all_thoughts_are_kept(
    llm: LLM, place: Place, name: str
) -> None:
    """Claude Code asks for it; for the others the server is set so."""
    client = CLIENTS[name]
    first = client.steps(place.work)
    steps = [*first, *again(first)]
    with serving(llm, write_steps(steps), keep_thoughts=name != "claude-code") as served:
        for goes_on in (False, True):
            finished = client.start(place, served.url, QUESTION, goes_on=goes_on).wait()
            assert finished.returncode == 0, finished.story
            assert FINAL in finished.stdout
    assert_session(served, steps)


def test_answers_are_found_after_a_question_that_qwen_code_changes_when_it_goes_on(
    llm: LLM, place: Place
) -> None:
    """A new process leaves the date out of the first question, so the prompt is another one."""
    client = CLIENTS["qwen-code"]
    first = client.steps(place.work)
    steps = [*first, *again(first)]
    with serving(llm, write_steps(steps), keep_thoughts=True) as served:
        for goes_on in (False, True):
            finished = client.start(place, served.url, QUESTION, goes_on=goes_on).wait()
            assert finished.returncode == 0, finished.story
        states = turn_states(served)
    assert states == {"matched": sum(range(len(steps))), "restored": 0, "rendered": 0}
    prompt = served.engine.tokenizer.decode(served.conversation[-1].done.prompt_ids)
    assert all(f"<think>\n{step.thought}\n</think>" in prompt for step in steps[:-1])


def test_a_second_question_drops_the_thoughts_of_the_first_as_the_template_does(
    llm: LLM, place: Place
) -> None:
    steps = [*CLIENTS["opencode"].steps(place.work), Step("Short.", "Again, briefly.")]
    with serving(llm, write_steps(steps)) as served:
        for goes_on in (False, True):
            finished = opencode(place, served.url, QUESTION, goes_on=goes_on).wait()
            assert finished.returncode == 0, finished.story
        states = turn_states(served)
    assert states == {"matched": 1 + 2 + 3 + 4 + 5, "restored": 0, "rendered": 0}
    *_, before, after = served.conversation
    prompt = served.engine.tokenizer.decode(after.done.prompt_ids)
    assert steps[0].thought in served.engine.tokenizer.decode(before.done.prompt_ids)
    assert not any(f"<think>\n{step.thought}" in prompt for step in steps)
    # Up to the tag of the first thought nothing is read anew.
    first = served.conversation[0].done
    tag = served.engine.tokenizer.encode("<think>\n")
    assert after.done.usage.num_cached_tokens >= len(first.prompt_ids) - len(tag)


def test_claude_code_sums_up_a_conversation_that_is_too_long_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, place: Place
) -> None:
    real_tokenizer()
    many = Step("I print.", "", [call("Bash", command="seq 1 1500", description="Print")])

    def write(request: ChatRequest) -> str:
        text = "\n".join(m.content for m in read_messages(request.messages) if m.role == "user")
        if "Respond with plain text only" in text:
            return Step("A summary.", "<summary>Numbers were printed.</summary>").text
        return (Step("It is enough.", FINAL) if "Numbers were printed." in text else many).text

    small = load_llm(tmp_path_factory.mktemp("small"), max_model_len=20_000)
    with serving(small, write) as served:
        finished = claude_code(place, served.url, QUESTION).wait()
    assert finished.returncode == 0, finished.story
    assert '"subtype":"compact_boundary"' in finished.stdout, finished.story
    assert FINAL in finished.stdout
    assert len(served.conversation) > 3


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_with_a_wrong_key_says_so_and_reaches_no_model(
    llm: LLM, place: Place, name: str
) -> None:
    with serving(llm, write_steps([]), api_keys=("the-right-key",)) as served:
        finished = CLIENTS[name].start(place, served.url, QUESTION, key="a-wrong-key").wait()
    assert not served.engine.exchanges
    assert re.search("api key|401|authenticat", finished.stdout + finished.stderr, re.I), (
        finished.story
    )
    assert "the-right-key" not in finished.stdout + finished.stderr


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_is_killed_leaves_the_engine_idle(llm: LLM, place: Place, name: str) -> None:
    steps = [Step("A long one. " + "All work and no play. " * 1500, "The end.")]
    begin = tokens_now(llm)
    with serving(llm, write_steps(steps)) as served:
        running = CLIENTS[name].start(place, served.url, QUESTION)
        try:
            wait_until(lambda: bool(served.conversation) and tokens_now(llm) - begin > 100, 60)
        finally:
            running.kill()
        seen = tokens_now(llm)
        wait_until(lambda: not llm.engine.has_unfinished, 30)
        late = tokens_now(llm) - seen
        assert late < 100, late  # one or two, unless the machine is busy
    (exchange,) = served.conversation
    assert exchange.completion is None or exchange.completion.finish_reason == "abort"


def turn_states(served: Served) -> dict[str, int]:
    """Return how often the server found a turn of its own in each state."""
    with urllib.request.urlopen(f"{served.url}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    found = re.findall(r'^fulmen:history_turns_total\{.*state="(\w+)"\} (\S+)$', text, re.M)
    return {state: int(float(count)) for state, count in found}


def assert_session(served: Served, steps: Sequence[Step]) -> None:
    """Check the prompts of one conversation."""
    exchanges = served.conversation
    tokenizer = served.engine.tokenizer
    assert len(exchanges) == len(steps)
    for step, exchange in zip(steps, exchanges, strict=True):
        ids = exchange.done.answer_ids
        assert tokenizer.decode(ids[:-1]) == step.text
        assert tokenizer.encode(step.text) != list(ids[:-1])
    last = read_messages(exchanges[-1].request.messages)
    results = [m.content for m in last if m.role == "tool"]
    assert len(results) == sum(len(step.calls) for step in steps[:-1])
    assert "null}" in results[1], results
    assert "3" in results[3], results
    assert "amp;" in results[4], results
    for number, (before, after) in enumerate(pairwise(exchanges), 1):
        known = [*before.done.prompt_ids, *before.done.answer_ids]
        assert list(after.done.prompt_ids[: len(known)]) == known, number
        # A cache of whole pages may lack the end of what it knows.
        assert after.done.usage.num_cached_tokens >= 0.99 * len(known), number
        prompt = tokenizer.decode(after.done.prompt_ids)
        thoughts = [f"<think>\n{step.thought}\n</think>" for step in steps[:number]]
        places = [prompt.find(thought) for thought in thoughts]
        assert places == sorted(places), number
        assert -1 not in places, number


def wait_until(is_true: Callable[[], bool], seconds: float) -> None:
    """Wait until something holds, for a while."""
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until, f"it took longer than {seconds} s"
        time.sleep(0.01)


def tokens_now(llm: LLM) -> int:
    """Return how many tokens an engine has made since it was."""
    return llm.engine.stats.num_new_tokens
