"""Passes: each task of some environments is played some times, and what came of it is kept.

    environments -> (environment, task, sample), in order -> run_task, so many at once -> Pass
                 -> results.py, a line on disk each -> scoreboard.py, page.py

Questions are agents without tools, so all tasks are played in one way, and a local engine answers
those that run together as one batch. Every seed follows from the evaluation's, the environment, the
task and the sample: a pass is the same wherever a run was killed, and whatever ran beside it.

An error of the model, the sandbox or the grader is kept with its sentence. It is no score, and the
next run plays the pass again, after all that was not played yet. Where error follows error the run
stops: a server may be down. An error that came before, word for word, stops nothing.
"""

import asyncio
import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from fulmen.agent import Budget, Memory, Notebook, PlainMemory, Score, Trajectory
from fulmen.chat import AnswerStream, ChatModel, ChatRequest, Event, ToolCall
from fulmen.envs import Environment, Task, run_task
from fulmen.evaluate.results import Failure, Pass, Results, is_score
from fulmen.evaluate.subject import derive_seed
from fulmen.sampling import SamplingParams, check_whole

DEFAULT_TASKS: Final = 100
"""Tasks of an environment without end"""
_NEARLY_ALL: Final = 1 - 1e-9
"""Value of a score that is 1 but for rounding"""
_ERRORS_IN_A_ROW: Final = 10
_GRACE_SECONDS: Final = 120.0
"""Longest time of a pass beside its agent's: its files, its grader"""
_LIMITS: Final = ("turns", "tokens", "seconds", "context", "interrupted")
"""Ends of a trajectory that a limit makes"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Passes of each environment."""

    num_tasks: int | None = None
    """Tasks of each environment; None: all of them, or 100 where there is no last one"""
    num_samples: int = 1
    """Plays of each task"""
    num_parallel: int = 16
    """Plays that run at once"""
    num_turns: int = 50
    """Most answers of an agent at one task"""
    seconds: float | None = None
    """Longest work of an agent at one task, which is then scored as it is; None: no limit"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_tasks is not None:
            check_whole("num_tasks", self.num_tasks, 1, 10**6)
        check_whole("num_samples", self.num_samples, 1, 10**4)
        check_whole("num_parallel", self.num_parallel, 1, 10**4)
        check_whole("num_turns", self.num_turns, 1, 10**6)
        check_whole("seed", self.seed, -(2**63), 2**64 - 1)

    def indices(self, environment: Environment) -> range:
        """Return the tasks of an environment that are played."""
        wanted, there = self.num_tasks, environment.num_tasks
        if there is None:
            return range(wanted or DEFAULT_TASKS)
        return range(there if wanted is None else min(wanted, there))


async def play_all(
    model: ChatModel,
    environments: Mapping[str, Environment],
    results: Results,
    config: EvalConfig,
    *,
    params: SamplingParams,
    new_memory: Callable[[], Memory] = PlainMemory,
    context: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> str | None:
    """Play what is missing in results; return None, or why the run stopped before the end.

    params      sampling of all answers, but for the seed
    new_memory  makes the conversation of a pass, see `run_task`
    context     tokens that the model's context holds, if that is known

    Raises ValueError if tasks of results are other ones now, or if samples could not differ.
    """
    if params.temperature == 0 and config.num_samples > 1:
        raise ValueError(
            f"num_samples is {config.num_samples} and the temperature 0: all samples of a task "
            "would be equal"
        )
    _check_same(environments, results)
    wanted = [
        (name, index, sample)
        for name, environment in environments.items()
        for index in config.indices(environment)
        for sample in range(config.num_samples)
    ]
    unplayed = [key for key in wanted if results.get(*key) is None]
    failed = {key: played.error for key in wanted if (played := results.get(*key)) and played.error}
    missing = [*unplayed, *failed]  # what fails every time keeps nothing else from being played
    num_done, num_errors, last = len(wanted) - len(missing), 0, ""
    on_progress(num_done, len(wanted))
    waiting = iter(missing)

    async def work() -> None:
        nonlocal num_done, num_errors, last
        for name, index, sample in waiting:
            if num_errors >= _ERRORS_IN_A_ROW:
                return
            played, trajectory = await _play(
                *(model, environments[name], name, index, sample, config),
                params=params,
                memory=new_memory(),
                context=context,
            )
            results.append(played, trajectory)
            num_done += 1
            if played.error is None:
                num_errors = 0
            elif played.error != failed.get(played.key):
                num_errors, last = num_errors + 1, played.error
            on_progress(num_done, len(wanted))

    await _all_of(work() for _ in range(min(config.num_parallel, len(missing))))
    if num_errors >= _ERRORS_IN_A_ROW:
        return f"{num_errors} passes in a row ended by an error, the last one by {last}"
    return None


async def _all_of(works: Iterable[Any]) -> None:
    """Do works together; the first failure ends all."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_same(environments: Mapping[str, Environment], results: Results) -> None:
    """Raise ValueError if a task that was played is another one now."""
    known: dict[tuple[str, int], str] = {}
    for played in results.passes:
        if played.environment in environments and played.failure != "error":
            known[played.environment, played.index] = played.prompt
    for (name, index), prompt in known.items():
        if task_digest(environments[name].task(index)) != prompt:
            raise ValueError(
                f"{results.path} has passes of other tasks: task {index} of {name} was another one"
            )


def task_digest(task: Task) -> str:
    """Return a digest of all that makes a task: its messages, its key and its known answers."""
    messages = [message.to_dict() for message in (*task.messages, *task.known_answers)]
    parts = json.dumps([task.key, len(task.messages), messages], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


async def _play(
    model: ChatModel,
    environment: Environment,
    name: str,
    index: int,
    sample: int,
    config: EvalConfig,
    *,
    params: SamplingParams,
    memory: Memory,
    context: int | None,
) -> tuple[Pass, Trajectory]:
    """Play a task once. It raises nothing: whatever fails is an error of the pass."""
    seed = derive_seed("eval", config.seed, name, index, sample) % 2**31  # servers take no more
    watcher, begin = _Watcher(), time.monotonic()
    prompt, answer, error, score, failure = "", None, None, None, None
    longest = None if config.seconds is None else config.seconds + _GRACE_SECONDS
    try:
        task = environment.task(index)
        prompt = task_digest(task)
        if task.is_question:
            task = copy.copy(task)  # an environment may hold one for all who ask
        async with asyncio.timeout(longest):
            trajectory = await run_task(
                _Seeded(model, seed),
                task,
                memory=memory,
                params=params,
                budget=Budget(turns=config.num_turns, seconds=config.seconds),
                watcher=watcher,
                context=context,
            )
        score = _checked(trajectory.score)
        answer = task.answer_of(trajectory)
        failure = failure_of(task, trajectory, score)
    except Exception as caught:  # one pass, which never takes the others down
        trajectory, score, failure = watcher.trajectory, None, "error"
        trajectory.score = None
        error = f"{type(caught).__name__}: {caught}"
        if isinstance(caught, TimeoutError) and not str(caught):
            error = f"TimeoutError: there was no score after {longest} seconds"
    usage = trajectory.usage
    played = Pass(
        environment=name,
        index=index,
        sample=sample,
        prompt=prompt,
        seed=seed,
        score=None if score is None else float(score.value),
        parts={} if score is None else {name: float(one) for name, one in score.parts.items()},
        failure=failure,
        error=error,
        answer=answer,
        num_turns=len(trajectory.steps),
        num_prompt_tokens=usage["prompt_tokens"],
        num_new_tokens=usage["new_tokens"],
        num_thinking_tokens=usage["thinking_tokens"],
        seconds=round(time.monotonic() - begin, 3),
    )
    return played, trajectory


def _checked(score: Score | None) -> Score:
    """Return a score that is one; a grader that gives anything else is broken."""
    if score is None or not is_score(score.value):
        found = None if score is None else score.value
        raise ValueError(f"the grader gave {found}, a score lies between 0 and 1")
    json.dumps(dict(score.parts), allow_nan=False)
    return score


def failure_of(task: Task, trajectory: Trajectory, score: Score) -> Failure | None:
    """Return the reason why a trajectory did not succeed; None if it did.

    An answer has the asked form where the score's part `format` says so, or the task can spell it;
    a task that does neither asks for no form.
    """
    if score.value >= _NEARLY_ALL:
        return None
    last = trajectory.steps[-1].answer if trajectory.steps else None
    if trajectory.end == "loop" or (last is not None and last.finish_reason == "repetition"):
        return "loop"
    if trajectory.end in _LIMITS:
        return "limit"
    spells = type(task).answer_of is not Task.answer_of
    is_silent = last is None or not last.message.content.strip()
    if (
        score.parts.get("format", 1.0) == 0
        or (spells and task.answer_of(trajectory) is None)
        or (task.is_question and is_silent)
    ):
        return "no answer"
    return "wrong"


class _Seeded:
    """A model whose answers in a pass draw from seeds of their own, all made from one: draws depend
    on seed and place alone."""

    def __init__(self, model: ChatModel, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._num_answers = 0

    def stream(self, request: ChatRequest) -> AnswerStream:
        """Return the next answer."""
        seed = self._seed
        if self._num_answers:
            seed = derive_seed(seed, self._num_answers) % 2**31
        self._num_answers += 1
        params = replace(request.params or SamplingParams(), seed=seed)
        return self._model.stream(replace(request, params=params))


class _Watcher:
    """A trajectory as it grows, so that an error leaves what there was."""

    def __init__(self) -> None:
        self._notebook = Notebook()

    @property
    def trajectory(self) -> Trajectory:
        """Everything so far."""
        return self._notebook.trajectory

    def event(self, event: Event) -> None:
        """See a piece of an answer."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Take note of what happened."""
        self._notebook.append(record)

    def calling(self, call: ToolCall) -> None:
        """See a call that begins."""
