"""Scores of a finished model: tasks that no training has seen, asked greedily, and counts on them.

    model, environments -> play_all -> results on disk -> ScoreRecord of each environment, and of
    closed thoughts, refusals and answers without a call

Passes are on disk as they end, so what was played is not played again.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from fulmen.agent import Memory, Trajectory, TranscriptMemory
from fulmen.catalog import ScoreRecord
from fulmen.chat import Transcript
from fulmen.engine import EngineConfig
from fulmen.envs import load_environment
from fulmen.evaluate import EvalConfig, Pass, Results, estimate, open_results, play_all
from fulmen.llm import LLM, LocalModel
from fulmen.train.speedrun.recipe import ScoreRecipe

_PARALLEL: Final = 32
CLOSED: Final = "thoughts that end"
REFUSED: Final = "unknown requests refused"
NO_CALL: Final = "no call where none is needed"


class ScoresStopped(Exception):
    """The scores were stopped before their end."""


def play_scores(
    model: Path,
    recipe: ScoreRecipe,
    folder: Path,
    *,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> tuple[ScoreRecord, ...]:
    """Play the tasks that are not played yet, and return the scores of all.

    model   checkpoint
    folder  of the results

    Raises ScoresStopped as soon as should_stop says so, and ValueError where pass after pass ends
    by an error.
    """
    config = EvalConfig(num_tasks=recipe.tasks, num_parallel=_PARALLEL, seed=recipe.seed)
    environments = {name: load_environment(name, seed=recipe.seed) for name in recipe.environments}
    llm = LLM.load(
        str(model),
        engine_config=EngineConfig(max_num_seqs=_PARALLEL, max_token_gap_seconds=None),
    )

    def new_memory() -> Memory:
        return TranscriptMemory(Transcript(llm.format, llm.tokenizer))

    def progress(done: int, total: int) -> None:
        on_progress(done, total)
        if should_stop():
            raise ScoresStopped

    async def play(results: Results) -> str | None:
        async with LocalModel(llm) as local:
            return await play_all(
                *(local, environments, results, config),
                params=replace(llm.defaults, temperature=0.0),
                new_memory=new_memory,
                context=local.max_model_len,
                on_progress=progress,
            )

    settings = {"weights": llm.origin.model, "seed": recipe.seed, "temperature": 0.0}
    with open_results(folder, settings, {"model": str(model)}) as results:
        stopped = asyncio.run(play(results))
        if stopped is not None:
            raise ValueError(f"{stopped}; the same command plays them again")
        return tuple(_scores(results, recipe))


def _scores(results: Results, recipe: ScoreRecipe) -> Iterator[ScoreRecord]:
    played: dict[str, list[Pass]] = {name: [] for name in recipe.environments}
    for one in results.passes:
        if one.environment in played and one.score is not None and one.index < recipe.tasks:
            played[one.environment].append(one)
    for name, passes in played.items():
        if not passes:
            raise ValueError(
                f"all tasks of {name} ended by an error, see {results.path}; the same command "
                "plays them again"
            )
        yield score_of(name, [one.failure is None for one in passes])
    trajectories = {
        name: [results.trajectory(one) for one in passes] for name, passes in played.items()
    }
    everything = [one for own in trajectories.values() for one in own]
    yield score_of(CLOSED, [closed for one in everything for closed in _closed(one)])
    if recipe.unknown is not None:
        answers = [one.answer or "" for one in played[recipe.unknown]]
        yield score_of(REFUSED, [answer.split(" ")[0] == "unknown" for answer in answers])
    if recipe.no_call is not None:
        own = trajectories[recipe.no_call]
        yield score_of(NO_CALL, [not any(_calls(one)) for one in own])


def score_of(name: str, rights: Sequence[bool]) -> ScoreRecord:
    """Return how many of some answers are right, with the interval of their share."""
    found = estimate([float(one) for one in rights])
    return ScoreRecord(
        name=name,
        tasks=len(rights),
        right=sum(rights),
        low=round(found.low, 4),
        high=round(found.high, 4),
    )


def _closed(trajectory: Trajectory) -> Iterator[bool]:
    """Yield for each answer whether something comes after its thought."""
    for step in trajectory.steps:
        message = step.answer.message
        yield bool(message.content.strip() or message.tool_calls)


def _calls(trajectory: Trajectory) -> Iterator[bool]:
    for step in trajectory.steps:
        yield bool(step.answer.message.tool_calls)
