"""Objects with `reset` and `step`, as Gymnasium has them, as our environments.

    make() -> reset(seed) -> the first message -> reply -> action -> step -> the next message ...

The episode is the conversation: what the model sees is the user's message, what it answers is the
action. The object runs in this process, so it is code that is trusted.
"""

import asyncio
import random
import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.marked import ASKED, marked_answer
from fulmen.envs.task import Task
from fulmen.envs.workers import WorkerError
from fulmen.files import shorten

_STEP_SECONDS: Final = 60.0
_LONGEST: Final = 20_000
"""Characters of an observation that are shown"""


class Steps(Protocol):
    """Object that is stepped through, such as a `gymnasium.Env`."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, Mapping[str, Any]]:
        """Begin an episode and return the first observation, and more."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Mapping[str, Any]]:
        """Return observation, reward, whether it is over, whether it was cut off, and more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GymConfig:
    """Way to make a conversation of an object that is stepped through."""

    prompt: str
    """Rules, before the first observation"""
    actions: Mapping[str, Any] | Callable[[str], Any]
    """Actions by their words; or a function from the answer after `Answer:` to an action, with a
    ValueError, a sentence for the model, for words that are none"""
    show: Callable[[Any, Any], str] = lambda _, observation: str(observation)
    """Words of an observation, from the object and what it returned"""
    reward: Literal["sum", "last"] = "sum"
    """Reward that counts: of all steps together, or of the last one"""
    best: float = 1.0
    """Reward that is worth a score of 1; a score is never less than 0"""
    num_turns: int = 50
    """Most answers of an episode"""
    known: Callable[[Any], Sequence[str]] | None = None
    """Actions that win, from an object that was just reset, for the self-check"""

    def __post_init__(self) -> None:
        if self.num_turns < 1 or not 0 < self.best < float("inf"):
            raise ValueError(
                f"num_turns is {self.num_turns} and best {self.best:g}, they must be more than 0"
            )


@dataclass
class GymTask(Task):
    """One episode."""

    steps: Steps = field(repr=False)
    config: GymConfig
    opening: str
    """First observation, in words"""
    winning: tuple[str, ...] = ()
    rewards: list[float] = field(default_factory=list)
    num_turns: int = 0
    is_over: bool = False
    closing: "weakref.finalize[..., GymTask] | None" = field(default=None, repr=False)
    """Closes the object once; at the latest when nobody has the task any more, played or not"""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The rules and the first observation."""
        return (Message("user", f"{self.config.prompt}\n\n{ASKED}\n\n{self.opening}"),)

    @property
    def is_question(self) -> bool:
        """False: an answer is an action."""
        return False

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """Actions that win, one in an answer."""
        return tuple(Message("assistant", f"Answer: {one}") for one in self.winning)

    async def next_words(self, trajectory: Trajectory) -> str | None:
        """Do the action of the last answer, and return the observation; None at the end."""
        self.num_turns += 1
        if self.is_over or trajectory.reply is None:
            return None
        try:
            action = _action(self.config.actions, trajectory.reply.content)
        except ValueError as error:  # no action: the model is told, and has lost a turn
            words = f"{error}\n\n{ASKED}"
        else:
            words = await self._act(action)
        return None if self.is_over or self.num_turns >= self.config.num_turns else words

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return the reward as a share of the best one. Parts: `reward` as it was, `over` (the
        episode came to its end), `actions` (answers that were actions)."""
        if self.closing is not None and (found := self.closing.detach()) is not None:
            await _bounded(found[1])
        rewards = self.rewards if self.config.reward == "sum" else self.rewards[-1:]
        # Three thirds are less than 1 in floats.
        value = min(max(round(sum(rewards) / self.config.best, 9), 0.0), 1.0)
        parts = {
            "reward": sum(rewards),
            "over": float(self.is_over),
            "actions": len(self.rewards) / max(self.num_turns, 1),
        }
        return Score(value, parts)

    async def _act(self, action: Any) -> str:
        found = await _bounded(self.steps.step, action)
        if not isinstance(found, tuple) or len(found) != 5:
            raise WorkerError(
                f"a step returned {shorten(repr(found))}, it must be observation, reward, whether "
                "it is over, whether it was cut off, and more"
            )
        observation, reward, terminated, truncated, _ = found
        try:
            value = float(reward)
        except (TypeError, ValueError):
            value = float("nan")
        if not abs(value) < float("inf"):
            raise WorkerError(f"a step gave the reward {reward}, it must be a finite number")
        self.rewards.append(value)
        self.is_over = bool(terminated or truncated)
        return _shown(self.config, self.steps, observation)


class GymEnvironment:
    """Episodes of an object that is stepped through, one for each index."""

    def __init__(
        self,
        make: Callable[[], Steps],
        config: GymConfig,
        *,
        seed: int = 0,
        num_tasks: int | None = None,
    ) -> None:
        """make: returns a new object, such as `lambda: gymnasium.make("FrozenLake-v1")`"""
        self._make, self._config, self._seed = make, config, seed
        self._num_tasks = num_tasks

    @property
    def num_tasks(self) -> int | None:
        """Number of episodes; None: no end."""
        return self._num_tasks

    def task(self, index: int) -> GymTask:
        """Return the episode at an index; its seed follows from ours and the index."""
        if index < 0 or (self._num_tasks is not None and index >= self._num_tasks):
            raise ValueError(f"task {index} was asked for, there are {self._num_tasks}")
        steps, config = self._make(), self._config
        seed = random.Random(f"{self._seed} gym {index}").getrandbits(31)
        observation, _ = steps.reset(seed=seed)
        winning = () if config.known is None else tuple(config.known(steps))
        task = GymTask(steps, config, _shown(config, steps, observation), winning)
        if (close := getattr(steps, "close", None)) is not None:
            task.closing = weakref.finalize(task, close)
        return task


def _shown(config: GymConfig, steps: Steps, observation: Any) -> str:
    words = config.show(steps, observation)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."


def _action(actions: Mapping[str, Any] | Callable[[str], Any], text: str) -> Any:
    said = marked_answer(text)
    if said is None:
        raise ValueError("There is no action in your answer.")
    if not isinstance(actions, Mapping):
        return actions(said)
    plain = re.sub(r"[\s.]+\Z", "", said).casefold()
    for name, action in actions.items():
        if name.casefold() == plain:
            return action
    raise ValueError(f"There is no such action. There are: {', '.join(actions)}.")


async def _bounded(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a step returns. It runs in a thread that nothing waits for, not even the end of
    the loop: one that hangs ends only its episode."""
    found: Future[Any] = Future()
    found.set_running_or_notify_cancel()

    def act() -> None:
        try:
            found.set_result(work(*arguments))
        except BaseException as error:  # an episode of others, whose failure is no word for us
            failure = WorkerError(f"a step raised {type(error).__name__}: {error}")
            failure.__cause__ = error
            found.set_exception(failure)

    threading.Thread(target=act, daemon=True).start()
    try:
        async with asyncio.timeout(_STEP_SECONDS):
            return await asyncio.wrap_future(found)
    except TimeoutError:
        raise WorkerError(f"a step took more than {_STEP_SECONDS:g} seconds") from None
