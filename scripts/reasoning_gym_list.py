"""Make the list of reasoning-gym's data sets that may be used: those that pass the self-check.

    python scripts/reasoning_gym_list.py            # all data sets; those known are kept
    python scripts/reasoning_gym_list.py chain_sum  # these anew

A data set is listed if for 200 tasks of ten seeds: the known answer scores 1; junk, an empty
answer, the question, flattery and a list of many answers score 0, with and without `Answer:`
before it; Python code as an answer is not run; another process with another hash seed makes the
same tasks in another order; and the median task takes at most 50 ms of the processor. The others
stand in the file with the reason.
"""

import asyncio
import json
import statistics
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fulmen.agent import Answer
from fulmen.chat import Message
from fulmen.envs import Task, answered
from fulmen.envs.reasoning import Listed, ReasoningGym, ReasoningGymTask
from fulmen.envs.reasoning.environment import is_whole
from fulmen.envs.workers import WorkerError, Workers
from fulmen.evaluate import self_check
from fulmen.evaluate.self_check import JUNK, MAKING_SECONDS
from fulmen.sampling import SamplingParams

PATH = Path(__file__).parent.parent / "fulmen/envs/reasoning/reasoning_gym.json"
NUM_SEEDS, NUM_TASKS = 10, 20
MAX_CHARS = 20_000
CODE = '[__import__("os")._exit(7)]'
"""Answer that ends the process of a verifier which evaluates it"""


def checked(name: str, workers: Workers, others: Workers) -> dict[str, Any]:
    """Return the entry of a data set. Raises ValueError or WorkerError with what is wrong."""
    answers: list[str] = []
    seconds: list[float] = []
    for seed in range(NUM_SEEDS):
        for has_lines in (False, True):
            listed = {name: Listed(has_lines, 0.0)}
            one = ReasoningGym(seed, name=name, listed=listed, workers=workers)
            other = ReasoningGym(seed, name=name, listed=listed, workers=others)
            tasks, took = [], []
            for index in range(NUM_TASKS):
                tasks.append(one.task(index))
                took.append(workers.seconds)
            if has_lines or not any("\n" in task.answer for task in tasks):
                break
        seconds += took
        if (median := statistics.median(seconds)) > MAKING_SECONDS:
            raise ValueError(f"a task takes {median * 1000:.0f} ms to make")
        if [other.task(index) for index in reversed(range(NUM_TASKS))] != tasks[::-1]:
            raise ValueError("another process makes other tasks")
        if max(len(task.messages[0].content) for task in tasks) > MAX_CHARS:
            raise ValueError(f"a question has more than {MAX_CHARS:,} characters")
        check_answers(tasks, workers)
        found = asyncio.run(self_check(one, range(NUM_TASKS), making_seconds=float("inf")))
        if found:
            raise ValueError(f"a task {found[0].sentence}")
        answers += [task.answer for task in tasks]
    return {
        "has_lines": any("\n" in answer for answer in answers),
        "chance": round(max(Counter(answers).values()) / len(answers), 3),
    }


def check_answers(tasks: list[ReasoningGymTask], workers: Workers) -> None:
    """Raise ValueError unless the known answers are right and everything else is wrong."""
    many = " ".join(dict.fromkeys(task.answer for task in tasks))
    lines = "\n".join(dict.fromkeys(task.answer for task in tasks))
    for task in tasks:
        if not (known := said(task, task.known_answers[0].content)):
            raise ValueError("the known answer is not right")
        junk = [CODE, *JUNK, task.question, task.messages[0].content]
        junk += [text for text in (many, lines) if text.strip() != task.answer.strip()]
        marked = [text for one in junk if (text := said(task, f"Answer: {one}")) is not None]
        place = (task.name, task.seed, task.index)
        scores = workers.call("scores", *place, [known, "", *marked], module="reasoning_gym")
        if not is_whole(scores[0]):
            raise ValueError(f"the known answer scores {scores[0]:g}")
        for text, score in zip(["", *marked], scores[1:], strict=True):
            if is_whole(score) and text != known:
                raise ValueError(f"{text[:60]!r} scores {score:g}")


def played(task: Task, text: str) -> Any:
    answer = Answer(
        message=Message("assistant", text), finish_reason="stop", params=SamplingParams()
    )
    return answered(task.messages, answer)


def said(task: ReasoningGymTask, text: str) -> str | None:
    """Return the answer that the task reads in a reply."""
    return task.answer_of(played(task, text))


def main() -> None:
    """Write the list."""
    listing: dict[str, Any] = {"version": version("reasoning-gym"), "listed": {}, "refused": {}}
    if PATH.exists() and (known := json.loads(PATH.read_text()))["version"] == listing["version"]:
        listing |= known
    workers, others = (Workers(size=1, hash_seed=one, patience=600) for one in (0, 4242))
    names = workers.call("names", seconds=60, module="reasoning_gym")
    wanted = sys.argv[1:]
    for name in wanted or [n for n in names if not {n} & {*listing["listed"], *listing["refused"]}]:
        listing["listed"].pop(name, None)
        listing["refused"].pop(name, None)
        try:
            listing["listed"][name] = checked(name, workers, others)
        except (ValueError, WorkerError) as error:
            listing["refused"][name] = str(error).splitlines()[0][:120]
        print(name, listing["listed"].get(name) or listing["refused"][name], flush=True)
        for key in ("listed", "refused"):
            listing[key] = dict(sorted(listing[key].items()))
        PATH.write_text(json.dumps(listing, indent=1) + "\n")


if __name__ == "__main__":
    main()
