"""Objects with reset and step as our environments: Gymnasium's own, and broken ones."""

import asyncio
import gc
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import pytest

from fulmen.agent import Trajectory
from fulmen.chat import get_format
from fulmen.envs import run_task
from fulmen.envs.adapters import GymConfig, GymEnvironment, GymTask, Steps
from fulmen.envs.adapters import gym as adapter
from fulmen.envs.workers import WorkerError
from fulmen.evaluate import self_check
from fulmen.llm import ScriptedModel

needs_gymnasium = pytest.mark.skipif(find_spec("gymnasium") is None, reason="gymnasium")
MOVES = {"left": 0, "down": 1, "right": 2, "up": 3}


class Count:
    """Count up to a number that the seed gives: 1 for each right step."""

    def __init__(self, *, fail: str = "") -> None:
        self.fail = fail
        self.closed = False

    def reset(self, *, seed: int | None = None) -> tuple[Any, Mapping[str, Any]]:
        assert seed is not None
        self.last = 2 + seed % 5
        self.count = 0
        return f"Count to {self.last}.", {}

    def step(self, action: int) -> Any:
        if self.fail == "raise":
            raise ValueError("a fault")
        if self.fail == "four":
            return "It is 1.", 1.0, True, {}
        if self.fail == "hang":
            threading.Event().wait(20)
        rewards = {"nan": float("nan"), "none": None, "words": "much"}
        reward: Any = rewards.get(self.fail, 1 / self.last)
        self.count += 1
        is_right = action == self.count
        is_over = not is_right or self.count == self.last
        return f"It is {self.count}.", reward if is_right else -1.0, is_over, False, {}

    def close(self) -> None:
        self.closed = True


def to_number(said: str) -> int:
    if not said.isdecimal():
        raise ValueError("That is no number.")
    return int(said)


def counts(**options: Any) -> GymConfig:
    return GymConfig(
        **{
            "prompt": "Say the next number.",
            "actions": to_number,
            "known": lambda steps: [str(i + 1) for i in range(steps.last)],
            **options,
        }
    )


def play(task: GymTask, answers: Sequence[str]) -> Trajectory:
    """Return the trajectory of a model that says these, and then nothing."""
    script = [f"Hm.\n</think>\n\n{one}" for one in [*answers, *["pass"] * 60]]
    model = ScriptedModel(get_format("minimax_m2"), script)
    return asyncio.run(asyncio.wait_for(run_task(model, task), 60))


def test_an_object_with_steps_passes_the_self_check() -> None:
    environment = GymEnvironment(Count, counts(num_turns=9), seed=3)
    assert environment.num_tasks is None
    assert asyncio.run(self_check(environment, range(4), making_seconds=1)) == []
    assert len({environment.task(index).opening for index in range(20)}) > 2


def test_rewards_are_summed_or_the_last_one_counts() -> None:
    for reward, right, wrong in (("sum", 1.0, 0.0), ("last", 0.5, 0.0)):
        config = counts(reward=reward)
        environment = GymEnvironment(Count, config)
        index = next(i for i in range(50) if environment.task(i).steps.last == 2)  # type: ignore[attr-defined]
        task = environment.task(index)
        found = play(task, ["Answer: 1", "Answer: 2"]).score
        assert found is not None
        assert found.value == right
        assert found.parts["over"] == found.parts["actions"] == 1
        assert task.steps.closed  # type: ignore[attr-defined]
        found = play(environment.task(index), ["Answer: 1", "Answer: 3"]).score
        assert found is not None
        assert found.value == wrong


def test_words_that_are_no_action_take_a_turn_and_turns_end() -> None:
    task = GymEnvironment(Count, counts(num_turns=4)).task(0)
    trajectory = play(task, ["one", "Answer: one", "Answer: 1"])
    said = [step.said[0].content for step in trajectory.steps]
    assert said[1].startswith("There is no action in your answer.")
    assert said[2].startswith("That is no number.")
    assert said[3] == "It is 1."
    assert len(trajectory.steps) == 4
    assert trajectory.score is not None
    assert trajectory.score.parts["actions"] == 1 / 4


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        ("raise", "a step raised ValueError: a fault"),
        ("four", "a step returned .* it must be observation, reward"),
        ("nan", "reward nan"),
        ("none", "reward None"),
        ("words", "reward much"),
    ],
)
def test_a_broken_object_is_an_error_and_no_score(fail: str, sentence: str) -> None:
    task = GymEnvironment(lambda: Count(fail=fail), counts()).task(0)
    with pytest.raises(WorkerError, match=sentence):
        play(task, ["Answer: 1"])


def test_a_step_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_STEP_SECONDS", 0.2)
    task = GymEnvironment(lambda: Count(fail="hang"), counts()).task(0)
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"a step took more than 0\.2 seconds"):
        play(task, ["Answer: 1"])
    assert time.monotonic() - begin < 15  # the end of the event loop does not wait for it


def test_an_object_is_closed_though_nobody_plays_it_to_its_end() -> None:
    task = GymEnvironment(Count, counts()).task(0)
    steps: Any = task.steps
    del task
    gc.collect()
    assert steps.closed


def test_absurd_settings_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="num_turns is 0 and best 1, they must be more than 0"):
        counts(num_turns=0)
    with pytest.raises(ValueError, match="task 3 was asked for, there are 3"):
        GymEnvironment(Count, counts(), num_tasks=3).task(3)


def lake() -> Steps:
    import gymnasium

    made: Steps = gymnasium.make("FrozenLake-v1", render_mode="ansi", is_slippery=False)
    return made


def way(steps: Any) -> list[str]:
    """Return the shortest way over the ice: the map of four by four is always the same one."""
    return ["down", "down", "right", "right", "down", "right"]


@needs_gymnasium
def test_frozen_lake_is_played_in_words() -> None:
    config = GymConfig(
        prompt="Walk from S to G over the ice (F), around holes (H). Say left, down, right or up.",
        actions=MOVES,
        show=lambda steps, _: steps.render(),
        known=way,
        num_turns=12,
    )
    environment = GymEnvironment(lake, config)
    assert asyncio.run(self_check(environment, range(2), making_seconds=5)) == []
    trajectory = play(environment.task(0), [f"Answer: {one}" for one in way(None)])
    assert trajectory.score is not None
    assert trajectory.score.value == 1
    assert "FHFH" in trajectory.steps[0].said[0].content
    assert "(Down)" in trajectory.steps[1].said[0].content
    trajectory = play(environment.task(0), ["Answer: fly", "Answer: down", "Answer: right"])
    assert "There are: left, down, right, up." in trajectory.steps[1].said[0].content
    assert trajectory.score is not None
    assert trajectory.score.value == 0
    assert trajectory.score.parts["over"] == 1


@needs_gymnasium
def test_blackjack_gives_the_same_cards_to_the_same_seed() -> None:
    import gymnasium

    def make() -> Steps:
        made: Steps = gymnasium.make("Blackjack-v1")
        return made

    config = GymConfig(prompt="Hit or stick.", actions={"stick": 0, "hit": 1}, reward="last")
    first, second = (GymEnvironment(make, config, seed=1) for _ in range(2))
    hands = [first.task(index).opening for index in range(8)]
    assert hands == [second.task(index).opening for index in range(8)]
    assert len(set(hands)) > 3
    values = [play(first.task(i), ["Answer: stick"]).score for i in range(8)]
    assert {one.value for one in values if one is not None} <= {0.0, 1.0}
