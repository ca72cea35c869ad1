"""Our environments as objects of Gymnasium and rows of TRL: the same scores as by our own loop."""

import asyncio
import json
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from fulmen.agent import Score
from fulmen.envs import Task, load_environment
from fulmen.envs.adapters import TextEpisodes, as_gymnasium, reward, rows
from fulmen.envs.adapters.episodes import read_action

needs_gymnasium = pytest.mark.skipif(find_spec("gymnasium") is None, reason="gymnasium")


@pytest.fixture
def episodes(request: pytest.FixtureRequest) -> Iterator[TextEpisodes]:
    found = TextEpisodes(load_environment(request.param, seed=0), num_turns=12)
    yield found
    found.close()


@pytest.mark.parametrize("episodes", ["arithmetic"], indirect=True)
def test_a_question_is_an_episode_of_one_step(episodes: TextEpisodes) -> None:
    words, more = episodes.reset(options={"index": 3})
    task = load_environment("arithmetic", seed=0).task(3)
    assert words == task.messages[0].content
    assert more["index"] == 3
    known = task.known_answers[0].content
    assert episodes.step(f"<think>hm</think>\n{known}")[1:4] == (1.0, True, False)
    with pytest.raises(ValueError, match="there is no episode, reset begins one"):
        episodes.step("again")
    episodes.reset(options={"index": 3})
    assert episodes.step(f"<think>{known}")[1:4] == (0.0, True, False)


@pytest.mark.parametrize("episodes", ["tools:2:library"], indirect=True)
def test_tools_are_called_in_text_and_users_answer(episodes: TextEpisodes) -> None:
    for index in range(3):
        task = load_environment("tools:2:library", seed=0).task(index)
        words, _ = episodes.reset(options={"index": index})
        assert '"name": "' in words
        seen = [words]
        value, ends = 0.0, [False, False]
        for known in task.known_answers:
            assert not any(ends)
            calls = [{"name": one.name, "arguments": one.arguments} for one in known.tool_calls]
            words, value, *ends, more = episodes.step(json.dumps(calls) if calls else known.content)
            seen.append(words)
        assert any("Result of " in one for one in seen)
        assert value == 1
        assert list(ends) == [True, False]
        assert set(more["parts"]) == {"database", "told", "policy"}


@pytest.mark.parametrize("episodes", ["tools:1:library"], indirect=True)
def test_a_limit_of_turns_cuts_an_episode(episodes: TextEpisodes) -> None:
    episodes.reset(options={"index": 0})
    for number in range(12):
        call = json.dumps({"name": "find_loans", "arguments": {"number": number}})
        _, value, terminated, truncated, _ = episodes.step(call)
        if terminated or truncated:
            break
    assert (value, terminated, truncated) == (0.0, False, True)


@pytest.mark.parametrize("episodes", ["arithmetic"], indirect=True)
def test_a_seed_draws_the_same_tasks(episodes: TextEpisodes) -> None:
    first = [episodes.reset(seed=5)[1]["index"], episodes.reset()[1]["index"]]
    assert first == [episodes.reset(seed=5)[1]["index"], episodes.reset()[1]["index"]]
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("text", "names", "content", "thinking"),
    [
        ("four", [], "four", ""),
        ("<think>a {b}</think> four", [], "four", "a {b}"),
        ("<think>four", [], "", "four"),
        ('{"name": "a", "arguments": {}}', ["a"], "", ""),
        ('```json\n[{"name": "a", "arguments": {"x": 1}}]\n```', ["a"], "", ""),
        ('{"name": "a"}', [], '{"name": "a"}', ""),
        ('{"name": "a", "arguments": []}', [], '{"name": "a", "arguments": []}', ""),
        ("[" * 5000, [], "[" * 5000, ""),
        ("[]", [], "[]", ""),
    ],
)
def test_a_text_is_words_or_calls(text: str, names: list[str], content: str, thinking: str) -> None:
    reply = read_action(text, has_tools=True)
    assert [one.name for one in reply.tool_calls] == names
    assert (reply.content, reply.thinking) == (content, thinking)
    assert read_action(text, has_tools=False).tool_calls == ()


@needs_gymnasium
@pytest.mark.parametrize("name", ["arithmetic", "tools:1:library"])
def test_the_checker_of_gymnasium_is_content(name: str) -> None:
    from gymnasium.utils.env_checker import check_env

    environment: Any = as_gymnasium(load_environment(name, seed=0), num_turns=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own about spaces that are not its own
        check_env(environment, skip_render_check=True)
    words, _ = environment.reset(seed=3)
    assert environment.observation_space.contains(words)
    environment.close()


@pytest.mark.skipif(find_spec("gymnasium") is not None, reason="gymnasium is installed")
def test_without_gymnasium_a_sentence_says_how_to_have_it() -> None:
    with pytest.raises(ValueError, match="pip install gymnasium"):
        as_gymnasium(load_environment("arithmetic", seed=0))


def test_rows_and_rewards_for_a_trainer() -> None:
    found = rows("arithmetic", range(3), seed=2)
    environment = load_environment("arithmetic", seed=2)
    known = [environment.task(index).known_answers[0].content for index in range(3)]
    assert found[1]["prompt"] == [
        {"role": "user", "content": environment.task(1).messages[0].content}
    ]
    columns = {key: [row[key] for row in found] for key in ("environment", "seed", "index")}
    assert reward([known[0], "no", f"<think>{known[2]}</think>"], **columns) == [1.0, 0.0, 0.0]
    thought = {"role": "assistant", "reasoning_content": known[0]}
    assert reward([[thought], [{**thought, "content": None}], "no"], **columns) == [0.0, 0.0, 0.0]
    said = [[{"role": "assistant", "content": one}] for one in known]
    assert reward(said, prompts=[row["prompt"] for row in found], **columns) == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="tasks with tools or users"):
        rows("tools", range(1))


def test_few_completions_are_graded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0

    async def slow(task: Task, text: str) -> Score:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return Score(float(text))

    monkeypatch.setattr("fulmen.envs.adapters.rewards.score", slow)
    found = reward(list(map(str, range(100))), ["arithmetic"] * 100, [0] * 100, [0] * 100)
    assert found == list(range(100))
    assert most == 16


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("episodes", ["injection:1:minimal"], indirect=True)
def test_a_folder_and_its_sandbox_are_those_of_our_loop(episodes: TextEpisodes) -> None:
    task = load_environment("injection:1:minimal", seed=0).task(0)
    words, _ = episodes.reset(options={"index": 0})
    assert '"name": "run"' in words
    value = 0.0
    for known in task.known_answers:
        calls = [{"name": one.name, "arguments": one.arguments} for one in known.tool_calls]
        words, value, *_ = episodes.step(json.dumps(calls) if calls else known.content)
    assert value == 1
    episodes.reset(options={"index": 1})  # and one that is left in the middle
