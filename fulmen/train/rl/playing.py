"""Tasks with tools, played by the agent loop on any model that tells its ids.

    task -> run_task (agent, tools, sandbox) -> Trajectory -> one row of ids -> Sample

A trajectory is one sequence: every prompt begins with the prompt before it and the answer to that,
id by id, because answers stand in later prompts as the ids they were drawn as. What lies between
them (results of tools, the next turn's opening) was given, and so were forced and biased ids; none
of these is in the loss. Where a prompt does not go on from the last answer, the rollout is counted
as broken instead of being trained on.
"""

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fulmen.agent import Budget, Trajectory, TranscriptMemory
from fulmen.chat import AnswerStream, ChatRequest, Transcript
from fulmen.envs import Environment, run_task
from fulmen.llm import ServedModel
from fulmen.sampling import SamplingParams, check_whole
from fulmen.train.rl.rollout import Failure, Outcome, derive_seed
from fulmen.train.rl.samples import Sample

_CANCEL_SECONDS = 30.0
"""Time in which a rollout that is given up ends its processes"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """Longest waits of rollouts."""

    batch_seconds: float = 3600.0
    """Longest round of rollouts: what has not ended is given up, and counted"""
    trajectory_seconds: float = 600.0
    """Longest work of an agent at one task, which is then scored as it is"""
    max_turns: int = 32
    """Most answers of an agent at one task"""
    max_parallel: int = 32
    """Most agents, or scores, at once"""

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that is none."""
        for name in ("batch_seconds", "trajectory_seconds"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}, it must be more than 0 and finite")
        check_whole("max_turns", self.max_turns, 1, 10**6)
        check_whole("max_parallel", self.max_parallel, 1, 10**4)


@dataclass(frozen=True, slots=True)
class Play:
    """One rollout that is to be played."""

    environment: str
    task_index: int
    params: SamplingParams
    """Its seed makes the seeds of all answers"""


async def gather_outcomes(
    works: Sequence[Callable[[], Awaitable[Outcome]]],
    limits: LimitsConfig,
    *,
    seconds: float,
    on_end: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Return what works come to, in order: max_parallel at once, and failures for those that raise
    or have not ended after these seconds."""
    places = asyncio.Semaphore(limits.max_parallel)

    async def one(work: Callable[[], Awaitable[Outcome]]) -> Outcome:
        async with places:
            try:
                return await work()
            except Exception as error:  # one rollout, which never takes its group down
                return Failure(type(error).__name__, str(error))
            finally:
                on_end()

    tasks = [asyncio.ensure_future(one(work)) for work in works]
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)
    late = {task for task in tasks if not task.done()}
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=_CANCEL_SECONDS)
    given_up = Failure(
        "out of time", f"it had not ended after {seconds:g} seconds, see limits.batch_seconds"
    )
    cancelled = Failure("cancelled", "the task cancelled its own rollout")
    return [
        given_up if task in late else cancelled if task.cancelled() else task.result()
        for task in tasks
    ]


def close_loop(runner: asyncio.Runner) -> None:
    """Close the event loop of a runner. What does not end when it is cancelled is left where it
    stands after a while: `Runner.close` would wait for it without a limit."""
    loop = runner.get_loop()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=_CANCEL_SECONDS))
    if any(not task.done() for task in left):
        loop.close()
    else:
        runner.close()


class Player:
    """Plays tasks on one model, many at once; for one event loop."""

    def __init__(
        self,
        model: ServedModel,
        environments: Mapping[str, Environment],
        limits: LimitsConfig,
        *,
        name: str = "the engine",
    ) -> None:
        """name: of the model's place, for sentences about one that does not answer"""
        self._model = model
        self._environments = environments
        self._limits = limits
        self._name = name

    async def play(
        self,
        plays: Sequence[Play],
        *,
        seconds: float,
        policy_version: int,
        version_before: int = 0,
        on_end: Callable[[], None] = lambda: None,
    ) -> list[Outcome]:
        """Return what each rollout came to, in order.

        seconds         longest wait for all of them
        policy_version  of the weights that draw, where the model does not tell it
        version_before  added to the versions that it tells
        on_end          called as each ends
        """
        works = [partial(self._play, play, policy_version, version_before) for play in plays]
        return await gather_outcomes(works, self._limits, seconds=seconds, on_end=on_end)

    async def _play(self, play: Play, policy_version: int, version_before: int) -> Outcome:
        limits, model = self._limits, self._model
        transcript = Transcript(model.format, model.tokenizer, keep_thoughts=True)
        begin = time.monotonic()
        task = self._environments[play.environment].task(play.task_index)
        if task.is_question:
            task = copy.copy(task)  # an environment may hold one for all who ask
        work = run_task(
            _Seeded(model, play.params.seed or 0),
            task,
            memory=TranscriptMemory(transcript),
            params=play.params,
            budget=Budget(turns=limits.max_turns, seconds=limits.trajectory_seconds),
        )
        try:
            # The budget ends the agent; what comes before and after it has as long again.
            trajectory = await asyncio.wait_for(work, 2 * limits.trajectory_seconds)
        except TimeoutError:
            seconds = time.monotonic() - begin
            return Failure(
                "out of time",
                f"there was no score after {seconds:.0f} seconds, see limits.trajectory_seconds",
            )
        outcome = sample_of(
            trajectory,
            environment=play.environment,
            task_index=play.task_index,
            policy_version=policy_version,
            version_before=version_before,
        )
        is_late = time.monotonic() - begin >= limits.trajectory_seconds
        if isinstance(outcome, Failure) and is_late and outcome.reason in ("no ids", "no answer"):
            return Failure(
                "no answer",
                f"{self._name} gave no answer within {limits.trajectory_seconds:g} seconds "
                "(limits.trajectory_seconds)",
            )
        return outcome


class _Seeded:
    """A model whose answers draw from seeds of their own, all made from one.

    Draws depend on seed and place, so with one seed every answer of a trajectory would be drawn
    with the numbers of the first.
    """

    def __init__(self, model: ServedModel, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._num_answers = 0

    def stream(self, request: ChatRequest) -> AnswerStream:
        """Return the next answer."""
        params = request.params or self._model.defaults
        params = replace(params, seed=derive_seed(self._seed, self._num_answers))
        self._num_answers += 1
        return self._model.stream(replace(request, params=params))


def sample_of(
    trajectory: Trajectory,
    *,
    environment: str,
    task_index: int,
    policy_version: int,
    version_before: int = 0,
) -> Outcome:
    """Return a scored trajectory as one sample, or why it is none.

    policy_version, version_before  see `Player.play`
    """
    ids: list[int] = []
    logprobs: list[float | None] = []
    versions: list[int] = []
    for number, step in enumerate(trajectory.steps):
        sampled = step.answer.sampled
        if sampled is None or not sampled.prompt_ids:
            return Failure("no ids", "the model tells no ids of its answers")
        if list(sampled.prompt_ids[: len(ids)]) != ids:
            return Failure(
                "broken history",
                f"the prompt of answer {number + 1} does not go on from the answer before it",
            )
        given = sampled.prompt_ids[len(ids) :]
        forced = set(sampled.forced)
        ids += [*given, *sampled.answer_ids]
        logprobs += [None] * len(given)
        logprobs += [
            None if place in forced else value for place, value in enumerate(sampled.logprobs)
        ]
        told = sampled.policy_versions or [None] * len(sampled.answer_ids)
        versions += [policy_version] * len(given)
        versions += [policy_version if one is None else version_before + one for one in told]
    if not ids:
        return Failure("no answer", f"it ended before the first answer: {trajectory.end}")
    if (reason := trajectory.steps[-1].answer.finish_reason) in ("abort", "error"):
        return Failure("no answer", f"its last answer did not end: {trajectory.end}")
    assert trajectory.score is not None
    return Sample.of(
        ids,
        logprobs,
        policy_versions=versions,
        reward=trajectory.score.value,
        reward_parts=trajectory.score.parts,
        finish_reason=reason,
        environment=environment,
        task_index=task_index,
        num_turns=len(trajectory.steps),
    )
