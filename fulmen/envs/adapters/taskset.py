"""Our environments as a taskset and an environment of the library `verifiers` (its v1).

    FulmenTaskset(FulmenConfig(environment="reasoning_gym:chain_sum"))

A question is scored by the task itself; what has tools, users or a folder is played by the
environment, which speaks to the model as its user, see `TextEpisodes`. The library is imported
when one of the names is asked for. Its own commands take a taskset by the name of a module at the
top; two lines make one:

    from fulmen.envs.adapters.taskset import FulmenEnv, FulmenTaskset
    __all__ = ["FulmenEnv", "FulmenTaskset"]
"""

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from fulmen.envs.adapters.episodes import TextEpisodes
from fulmen.envs.adapters.rewards import environment_of, score
from fulmen.envs.task import Task

_NAMES: Final = ("FulmenTaskset", "FulmenEnv", "FulmenTask", "FulmenConfig", "FulmenEnvConfig")

if TYPE_CHECKING:
    FulmenTaskset: Any
    FulmenEnv: Any
    FulmenTask: Any
    FulmenConfig: Any
    FulmenEnvConfig: Any


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _classes()[name]


@cache
def _classes() -> dict[str, Any]:
    from verifiers import v1 as vf

    class FulmenData(vf.TaskData):  # type: ignore[misc]
        """Place of a task."""

        environment: str
        seed: int
        index: int

    class FulmenTask(vf.Task[FulmenData]):  # type: ignore[misc]
        """Task of ours; a question is scored here."""

        def ours(self) -> Task:
            """Return the task."""
            return environment_of(self.data.environment, self.data.seed).task(self.data.index)

        @vf.reward  # type: ignore[untyped-decorator]
        async def fulmen(self, trace: Any) -> float:
            """Return the score of a question; of an episode, the one that the environment told."""
            if "fulmen_score" in trace.info:
                return float(trace.info["fulmen_score"])
            task = self.ours()
            if not task.is_question:
                raise ValueError(f"{self.data.environment} has tasks that only FulmenEnv plays")
            return (await score(task, trace.last_reply)).value

    class FulmenConfig(vf.TasksetConfig):  # type: ignore[misc]
        """Environment by its name, and which of its tasks."""

        environment: str = "arithmetic"
        seed: int = 0
        num_tasks: int = 1000

    class FulmenTaskset(vf.Taskset[FulmenTask, FulmenConfig]):  # type: ignore[misc]
        """The first tasks of an environment."""

        def load(self) -> Any:
            """Yield the tasks."""
            name, seed = self.config.environment, self.config.seed
            source = environment_of(name, seed)
            for index in range(min(self.config.num_tasks, source.num_tasks or 2**31)):
                task = source.task(index)
                system = [one.content for one in task.messages if one.role == "system"]
                prompt = [one.content for one in task.messages if one.role != "system"]
                yield FulmenTask(
                    FulmenData(
                        environment=name,
                        seed=seed,
                        index=index,
                        name=f"{name}:{index}",
                        system_prompt="\n\n".join(system) if task.is_question and system else None,
                        # The environment says what an episode begins with.
                        prompt="\n\n".join(prompt) if task.is_question else None,
                    ),
                    self.config.task,
                )

    class FulmenEnvConfig(vf.EnvConfig):  # type: ignore[misc]
        """The one seat, and how long it may play."""

        agent: vf.AgentConfig = vf.AgentConfig()
        num_turns: int = 50

    class FulmenEnv(vf.Env[FulmenEnvConfig]):  # type: ignore[misc]
        """Questions as they are; episodes as a conversation with the model's user."""

        async def run(self, task: Any, agents: Any) -> None:
            """Play one task."""
            if task.data.prompt is not None:
                await agents.agent.run(task)
                return
            data = task.data
            source = environment_of(data.environment, data.seed)
            episodes = TextEpisodes(source, num_turns=self.config.num_turns)
            try:
                async with agents.agent.interaction(task) as talk:
                    talk.trace.info["fulmen_score"] = 0.0
                    place = {"index": data.index}
                    words, _ = await asyncio.to_thread(episodes.reset, options=place)
                    is_over = False
                    while not is_over:
                        segment = await talk.turn(words)
                        if segment.terminated:
                            return
                        words, value, *ends, _ = await asyncio.to_thread(
                            episodes.step, segment.last_reply
                        )
                        is_over = any(ends)
                    talk.trace.info["fulmen_score"] = value
            finally:
                await asyncio.to_thread(episodes.close)

    found = (FulmenTaskset, FulmenEnv, FulmenTask, FulmenConfig, FulmenEnvConfig)
    return {one.__name__: one for one in found}


__all__ = ["FulmenEnv", "FulmenTaskset"]
