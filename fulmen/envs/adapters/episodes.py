"""Our environments as objects with `reset` and `step` over text, for other trainers.

    step(text) -> the answer of `run_task`'s model -> tools, users, sandbox -> the next request
        -> observation, or the score

The task is played by `run_task`, in a thread with an event loop of its own, by a model that asks
whoever calls `step`. So tools, folders and users are those of every other run. Calls of tools are
text: a JSON object with `name` and `arguments`.
"""

import asyncio
import json
import queue
import random
import re
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

from fulmen.agent import Budget, Trajectory
from fulmen.chat import (
    ChatRequest,
    Completion,
    Event,
    Message,
    Reply,
    Tool,
    ToolCall,
    Usage,
    random_call_id,
    read_messages,
    read_tools,
)
from fulmen.envs.run import run_task
from fulmen.envs.task import Environment, Task
from fulmen.sampling import SamplingParams

T = TypeVar("T")

_WAIT_SECONDS: Final = 600.0
"""Longest time between an action and what comes of it"""
_NUM_DRAWN: Final = 2**20
"""Tasks of an environment without an end that are drawn from"""
_LONGEST: Final = 2**20
_FENCE: Final = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)
_TOOLS: Final = (
    "You have tools. To call one, answer with nothing but a JSON object that has its name and its "
    'arguments, such as {"name": "look", "arguments": {"number": 3}}; for several calls, with a '
    "list of them. An answer without a call ends the task, or is said to the user. The tools:"
)


class TextEpisodes:
    """Tasks of an environment, played by whoever calls `step`; one at a time."""

    def __init__(self, environment: Environment, *, seed: int = 0, num_turns: int = 50) -> None:
        """seed: of the tasks that are drawn; num_turns: most actions of an episode"""
        self._environment, self._num_turns = environment, num_turns
        self._random = random.Random(f"{seed} episodes")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._model: _Asked | None = None
        self._played: asyncio.Task[Trajectory] | None = None
        self._is_over = True

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin a task and return what the model is shown, and its index and messages.

        seed     draws the task, and those after it; they go on to be drawn without one
        options  `index`: of the task
        """
        self._end()
        if seed is not None:
            self._random = random.Random(f"{seed} episodes")
        index = (options or {}).get("index")
        if index is None:
            index = self._random.randrange(self._environment.num_tasks or _NUM_DRAWN)
        task = self._environment.task(index)
        self._model = _Asked()
        self._played = self._in_loop(self._begin(task))
        self._is_over = False
        words, _, _, _, more = self._next()
        return words, {"index": index, **more}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answer with a text; return what comes of it, the reward (0 until the end), whether the
        task is over, whether a limit ended it, and more: new messages, or the parts of the score.

        Whatever fails, such as a sandbox, is raised: it is no reward.
        """
        if self._is_over or self._model is None or self._loop is None:
            raise ValueError("there is no episode, reset begins one")
        self._loop.call_soon_threadsafe(self._model.answer, action[-_LONGEST:])
        return self._next()

    def close(self) -> None:
        """End the episode and the thread."""
        self._end()
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def _next(self) -> tuple[str, float, bool, bool, dict[str, Any]]:
        assert self._model is not None
        try:
            found = self._model.asked.get(timeout=_WAIT_SECONDS)
        except queue.Empty:
            self._end()
            raise TimeoutError(f"a task did not go on within {_WAIT_SECONDS:g} seconds") from None
        if isinstance(found, ChatRequest):
            new = self._model.take_new(found)
            more = {"messages": [message.to_dict() for message in new]}
            return _shown(new, self._model.tools_to_tell(found)), 0.0, False, False, more
        self._is_over = True
        trajectory = found.result()
        assert trajectory.score is not None
        is_cut = trajectory.end != "done"
        parts = dict(trajectory.score.parts)
        return "", trajectory.score.value, not is_cut, is_cut, {"parts": parts}

    async def _begin(self, task: Task) -> "asyncio.Task[Trajectory]":
        assert self._model is not None
        work = run_task(self._model, task, budget=Budget(turns=self._num_turns))
        played = asyncio.create_task(work)
        played.add_done_callback(self._model.asked.put)
        return played

    def _end(self) -> None:
        """End what is played; its sandbox is closed when this returns."""
        played, self._played, self._is_over = self._played, None, True
        if played is not None:
            self._in_loop(_ended(played))

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_WAIT_SECONDS)


def as_gymnasium(environment: Environment, *, seed: int = 0, num_turns: int = 50) -> Any:
    """Return an environment as a `gymnasium.Env` whose observations and actions are texts."""
    try:
        import gymnasium
    except ImportError:
        raise ValueError("gymnasium is missing, install it with: pip install gymnasium") from None
    from gymnasium.spaces import Space

    class Text(Space[str]):  # type: ignore[misc]
        """All texts; Gymnasium's own space wants to know each letter."""

        def __init__(self) -> None:
            super().__init__((), None)

        def sample(self, mask: Any = None, probability: Any = None) -> str:
            letters = "abcdefghijklmnopqrstuvwxyz "
            return "".join(letters[i] for i in self.np_random.integers(len(letters), size=20))

        def contains(self, x: Any) -> bool:
            return isinstance(x, str)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Text)

        __hash__ = Space.__hash__

    class TextEnv(gymnasium.Env[str, str]):  # type: ignore[misc]
        """Episodes of tasks."""

        def __init__(self) -> None:
            self.observation_space = Text()
            self.action_space = Text()
            self.render_mode = None
            self._episodes = TextEpisodes(environment, seed=seed, num_turns=num_turns)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[str, dict[str, Any]]:
            super().reset(seed=seed)
            return self._episodes.reset(seed=seed, options=options)

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return self._episodes.step(action)

        def close(self) -> None:
            self._episodes.close()

    return TextEnv()


async def _ended(played: "asyncio.Task[Trajectory]") -> None:
    played.cancel()
    await asyncio.gather(played, return_exceptions=True)


class _Asked:
    """A `ChatModel` that hands each request out and waits for the text to answer with."""

    def __init__(self) -> None:
        self.asked: queue.Queue[ChatRequest | asyncio.Task[Trajectory]] = queue.Queue()
        self._answer: asyncio.Future[str] | None = None
        self._num_seen = 0
        self._has_told = False

    def stream(self, request: ChatRequest) -> "_AskedStream":
        """Return the answer to a request, which somebody else gives."""
        return _AskedStream(self, request)

    async def ask(self, request: ChatRequest) -> Reply:
        """Hand a request out, and return the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self.asked.put(request)
        return read_action(await self._answer, has_tools=bool(request.tools))

    def answer(self, text: str) -> None:
        """Give the answer that is waited for."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(text)

    def take_new(self, request: ChatRequest) -> Sequence[Message]:
        """Return the messages that the request before did not have, but for its answer."""
        messages = read_messages(request.messages)
        new = [one for one in messages[self._num_seen :] if one.role != "assistant"]
        self._num_seen = len(messages)
        return new

    def tools_to_tell(self, request: ChatRequest) -> Sequence[Tool]:
        """Return the tools, the first time."""
        tools = () if self._has_told else read_tools(request.tools)
        self._has_told = True
        return tools


class _AskedStream:
    """One answer of somebody else."""

    def __init__(self, model: _Asked, request: ChatRequest) -> None:
        self._model, self._request = model, request
        self._reply: Reply | None = None

    async def __aenter__(self) -> Self:
        self._reply = await self._model.ask(self._request)
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def __aiter__(self) -> AsyncIterator[Event]:
        events: tuple[Event, ...] = ()
        for event in events:
            yield event

    async def close(self) -> None:
        """There is nothing to end."""

    async def finish(self) -> Completion:
        """Return the answer."""
        assert self._reply is not None
        return Completion(
            reply=self._reply,
            finish_reason="stop",
            prompt_ids=(),
            tokens=(),
            params=self._request.params or SamplingParams(),
            usage=Usage(num_prompt_tokens=0, num_new_tokens=0),
        )


def read_action(text: str, *, has_tools: bool) -> Reply:
    """Return a text as a model's answer: the thought up to `</think>`, then calls or words."""
    thought, mark, content = text.rpartition("</think>")
    thinking = thought.replace("<think>", "", 1).strip() if mark else ""
    content = content.strip()
    if "<think>" in content:  # a thought without an end
        before, _, rest = content.partition("<think>")
        return Reply(thinking=rest.strip(), content=before.strip())
    calls = _calls(content) if has_tools else ()
    return Reply(thinking=thinking, content="" if calls else content, tool_calls=calls)


def _calls(content: str) -> tuple[ToolCall, ...]:
    """Return the calls that a text is; none if it is something else."""
    if (found := _FENCE.match(content)) is not None:
        content = found[1].strip()
    if not content.startswith(("{", "[")):
        return ()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return ()
    calls = value if isinstance(value, list) else [value]
    for one in calls:
        is_call = isinstance(one, dict) and set(one) == {"name", "arguments"}
        if (
            not is_call
            or not isinstance(one["name"], str)
            or not isinstance(one["arguments"], dict)
        ):
            return ()
    return tuple(ToolCall(one["name"], one["arguments"], random_call_id()) for one in calls)


def _shown(messages: Sequence[Message], tools: Sequence[Tool]) -> str:
    blocks = [
        f"Result of {one.name}:\n{one.content}" if one.role == "tool" else one.content
        for one in messages
    ]
    if tools:
        lines = [json.dumps(dict(one.function), ensure_ascii=False) for one in tools]
        blocks.insert(0, "\n".join([_TOOLS, *lines]))
    return "\n\n".join(blocks)
