"""Accuracy against thinking tokens: the runs behind the curve, and the file that keeps them.

    a group of tasks -> fork: think to a budget, answer there, think on to the next ...
                     -> separate runs: for votes, and at every budget where the forks are checked
                     -> or requests alone, to a model at a URL (requests.py)
                     -> kept in the file, so that a study that was stopped goes on

Forked or separate, a run at a budget is drawn from the same distribution, so both estimate the same
accuracy without bias; they differ in what they cost. Every draw follows from the study's seed, so
the runs are the same however often it was stopped.
"""

import asyncio
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from fulmen.agent import Answer
from fulmen.chat import ChatModel, Completion
from fulmen.engine import Engine
from fulmen.envs import Environment, Task, answered
from fulmen.evaluate.requests import counts, draw_all, mean_logprob
from fulmen.evaluate.subject import Said, Subject, Thought, derive_seed
from fulmen.files import write_text
from fulmen.llm import LLM
from fulmen.sampling import SamplingParams

DEFAULT_CLOSING: Final = "\nThe answer is"
"""Closing of a thought where the format has none. A space belongs to the next token."""

_COUNTED: Final = ("num_prompt_tokens", "num_hit_tokens", "num_new_tokens")

OnProgress = Callable[[int, int], None]
"""Callback that receives the number of tasks done, and of all"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """Runs of each task."""

    budgets: tuple[int, ...]
    """Tokens of thought, ascending"""
    num_thoughts: int = 2
    """Thoughts of each task, each answered at every budget"""
    answer_tokens: int = 64
    """Most tokens of an answer"""
    num_votes: int | None = None
    """Separate runs at each of vote_budgets; None: as many as fit into the tokens of the largest
    budget"""
    vote_budgets: tuple[int, ...] | None = None
    """Tokens of thought of a vote, ascending; None: the smallest budget above 0"""
    closing: str | None = None
    """Leads to the answer of a model whose format has no thought; None for one that has"""
    is_checked: bool = False
    """True to add num_thoughts separate runs at every budget"""
    seed: int = 0

    def __post_init__(self) -> None:
        if not _is_ascending(self.budgets) or self.budgets[0] < 0:
            given = ",".join(map(str, self.budgets))
            raise ValueError(f"budgets are {given!r}, they must be 0 or more and ascending")
        votes = self.vote_budgets
        if votes is not None and not (_is_ascending(votes) and set(votes) <= set(self.budgets)):
            given = ",".join(map(str, votes))
            raise ValueError(
                f"vote_budgets are {given!r}, they must be some of the budgets, ascending"
            )
        for name, least, most in (
            ("num_thoughts", 1, 10_000),
            ("answer_tokens", 1, 10**9),
            ("num_votes", 0, 10_000),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, it must be {least} or more")
            if value is not None and value > most:
                raise ValueError(f"{name} is {value}, it must be at most {most}")

    def resolved_votes(self) -> dict[int, int]:
        """Return the largest number of votes, by the thinking budget of a vote."""
        budgets = self.vote_budgets
        if budgets is None:
            budgets = (next((budget for budget in self.budgets if budget > 0), 0),)
        whole = self.budgets[-1] + self.answer_tokens
        return {
            budget: whole // (budget + self.answer_tokens)
            if self.num_votes is None
            else self.num_votes
            for budget in budgets
        }

    def separate_runs(self) -> list[tuple[int, int]]:
        """Return (budget, number) of each separate run of a task."""
        counts = dict.fromkeys(self.budgets, self.num_thoughts if self.is_checked else 0)
        for budget, num_votes in self.resolved_votes().items():
            counts[budget] = max(counts[budget], num_votes)
        return [(budget, number) for budget, count in counts.items() for number in range(count)]


def _is_ascending(budgets: tuple[int, ...]) -> bool:
    """Return True for at least one budget, each larger than the one before."""
    return bool(budgets) and all(a < b for a, b in itertools.pairwise(budgets))


@dataclass(frozen=True, slots=True)
class Run:
    """One answer at one budget."""

    score: float
    answer: str | None
    num_thinking_tokens: int
    """Tokens of its thought; forked runs share them between budgets"""
    num_answer_tokens: int
    logprob: float | None
    """Mean over all its tokens; None where a server does not tell it"""
    is_cut: bool
    """True where the budget ended the thought"""


@dataclass(frozen=True, slots=True)
class TaskRuns:
    """All runs of one task."""

    prompt: str
    """A digest of the prompt's ids"""
    fork: dict[int, list[Run]]
    """By budget, one for each thought; empty for a model whose thoughts cannot be cut"""
    separate: dict[int, list[Run]]
    """By budget, each with a thought of its own"""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Self:
        def read(runs: dict[str, list[dict[str, Any]]]) -> dict[int, list[Run]]:
            return {int(budget): [Run(**run) for run in some] for budget, some in runs.items()}

        return cls(given["prompt"], read(given["fork"]), read(given["separate"]))


class Study:
    """The runs of some tasks, made by `run`, kept in a file if there is one."""

    def __init__(self, config: StudyConfig, about: dict[str, Any], path: Path | None) -> None:
        """about: what else the runs depend on, as the model's name; a file of others is refused"""
        self.config = config
        self.about = json.loads(json.dumps(about | asdict(config)))
        self.tasks: dict[int, TaskRuns] = {}
        self.engine: dict[str, dict[str, int]] = {}
        """Work of the engine for forks and for separate runs, without that of interrupted groups"""
        self._path = path
        if path is not None and path.exists():
            self._load(path)

    def run(
        self,
        llm: LLM,
        environment: Environment,
        *,
        num_tasks: int,
        params: SamplingParams,
        on_progress: OnProgress = lambda done, total: None,
    ) -> None:
        """Make the missing runs; an interrupt keeps whole groups of tasks."""
        config = self.config
        tasks = self._tasks(environment, num_tasks, params)
        subject = Subject(llm, params, answer_tokens=config.answer_tokens, closing=config.closing)
        prompts = {}
        for index, task in tasks.items():
            thought = subject.thought(task, 0)
            subject.check_room(thought, config.budgets[-1])
            prompts[index] = self._digest(index, list(thought.prompt_ids))
        missing = [index for index in tasks if index not in self.tasks]
        size = max(1, llm.engine.config.max_num_seqs // config.num_thoughts)
        for start in range(0, len(missing), size):
            on_progress(num_tasks - len(missing) + start, num_tasks)
            group = {index: tasks[index] for index in missing[start : start + size]}
            with self._counting(llm.engine, "fork"):
                forks = fork(subject, group, config)
            with self._counting(llm.engine, "separate"):
                separates = run_separately(subject, group, config)
            for index in group:
                self.tasks[index] = TaskRuns(prompts[index], forks[index], separates[index])
            self._save()
        on_progress(num_tasks, num_tasks)

    async def run_by_requests(
        self,
        model: ChatModel,
        environment: Environment,
        *,
        num_tasks: int,
        params: SamplingParams,
        max_running: int,
        on_progress: OnProgress = lambda done, total: None,
    ) -> None:
        """Make the missing runs as requests, so many of them at once, each with a thought of its
        own; the study's config must be checked. An interrupt keeps whole groups of tasks."""
        config = self.config
        assert config.is_checked, "only separate runs can be requests"
        tasks = self._tasks(environment, num_tasks, params)
        prompts = {index: self._digest(index, task.messages) for index, task in tasks.items()}
        missing = [index for index in tasks if index not in self.tasks]
        size = max(1, 2 * max_running // len(config.separate_runs()))
        for start in range(0, len(missing), size):
            on_progress(num_tasks - len(missing) + start, num_tasks)
            group = {index: tasks[index] for index in missing[start : start + size]}
            keys = [(index, *run) for index in group for run in config.separate_runs()]
            asked = [
                {
                    "task": tasks[index],
                    "params": params,
                    "budget": budget,
                    "answer_tokens": config.answer_tokens,
                    "seed": derive_seed(config.seed, "request", index, budget, number),
                }
                for index, budget, number in keys
            ]
            completions = await draw_all(model, asked, max_running=max_running)
            runs: dict[int, dict[int, list[Run]]] = {index: {} for index in group}
            for (index, budget, _), completion in zip(keys, completions, strict=True):
                run = await _score_request(tasks[index], completion, budget)
                runs[index].setdefault(budget, []).append(run)
            counted = self.engine.setdefault("separate", dict.fromkeys(_COUNTED, 0))
            for name, count in counts([each.usage for each in completions]).items():
                counted[name] += count
            for index in group:
                self.tasks[index] = TaskRuns(prompts[index], {}, runs[index])
            self._save()
        on_progress(num_tasks, num_tasks)

    @property
    def has_forks(self) -> bool:
        """True if thoughts were cut and gone on with."""
        return any(task.fork for task in self.tasks.values())

    def _tasks(
        self, environment: Environment, num_tasks: int, params: SamplingParams
    ) -> dict[int, Task]:
        """Return the tasks. Raises ValueError if there cannot be a study of them."""
        config = self.config
        if (
            params.temperature == 0
            and max(config.num_thoughts, *config.resolved_votes().values()) > 1
        ):
            raise ValueError(
                "temperature is 0, at temperature 0 all runs of a task are equal, they must be "
                "random"
            )
        if environment.num_tasks is not None and num_tasks > environment.num_tasks:
            raise ValueError(
                f"{num_tasks} tasks were asked for, there are {environment.num_tasks} of them"
            )
        tasks = {index: environment.task(index) for index in range(num_tasks)}
        if not all(task.is_question for task in tasks.values()):
            raise ValueError(
                "these tasks are done with tools, a curve needs questions that are answered at once"
            )
        return tasks

    def _digest(self, index: int, prompt: object) -> str:
        """Return the digest of a task's prompt. Raises ValueError if runs are of another one."""
        digest = hashlib.sha256(repr(prompt).encode()).hexdigest()[:16]
        if index in self.tasks and self.tasks[index].prompt != digest:
            raise ValueError(f"{self._path} has other runs: its task {index} was another one")
        return digest

    @contextmanager
    def _counting(self, engine: Engine, kind: str) -> Iterator[None]:
        """Adds what the engine does meanwhile; nothing if it is stopped."""
        before = engine.stats
        yield
        counts = self.engine.setdefault(kind, dict.fromkeys(_COUNTED, 0))
        for name in _COUNTED:
            counts[name] += getattr(engine.stats, name) - getattr(before, name)

    def _save(self) -> None:
        if self._path is None:
            return
        tasks = {str(index): runs.to_dict() for index, runs in sorted(self.tasks.items())}
        kept = {"about": self.about, "engine": self.engine, "tasks": tasks}
        write_text(self._path, json.dumps(kept) + "\n")

    def _load(self, path: Path) -> None:
        try:
            kept = json.loads(path.read_text("utf-8"))
            about, self.engine = kept["about"], kept["engine"]
            self.tasks = {int(i): TaskRuns.from_dict(runs) for i, runs in kept["tasks"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} does not hold runs that fulmen scale made") from None
        for name in {**about, **self.about}:
            was, now = about.get(name), self.about.get(name)
            if was != now:
                raise ValueError(
                    f"{path} has runs with {name} {json.dumps(was)}, not {json.dumps(now)}; "
                    "another file is needed"
                )


def fork(
    subject: Subject, tasks: Mapping[int, Task], config: StudyConfig
) -> dict[int, dict[int, list[Run]]]:
    """Runs by task and budget, all those of a thought cut from one.

    A thought that ended by itself keeps its answer at all larger budgets: none of them would have
    changed it.
    """
    thoughts = {
        (index, number): subject.thought(task, derive_seed(config.seed, "fork", index, number))
        for index, task in tasks.items()
        for number in range(config.num_thoughts)
    }
    latest: dict[tuple[int, int], Run] = {}
    runs: dict[int, dict[int, list[Run]]] = {index: {} for index in tasks}
    for budget in config.budgets:
        due = [key for key in thoughts if key not in latest or latest[key].is_cut]
        subject.think((thoughts[key], budget) for key in due)
        answers = subject.answer(
            [(thoughts[key], derive_seed(config.seed, "fork answer", *key, budget)) for key in due]
        )
        runs_due = ((tasks[key[0]], thoughts[key]) for key in due)
        latest |= dict(zip(due, _scored(runs_due, answers), strict=True))
        for index in tasks:
            numbers = range(config.num_thoughts)
            runs[index][budget] = [latest[index, number] for number in numbers]
    return runs


def run_separately(
    subject: Subject, tasks: Mapping[int, Task], config: StudyConfig
) -> dict[int, dict[int, list[Run]]]:
    """Runs by task and budget, each with a thought of its own."""
    thoughts = {
        (index, budget, number): subject.thought(
            task, derive_seed(config.seed, "separate", index, budget, number)
        )
        for index, task in tasks.items()
        for budget, number in config.separate_runs()
    }
    subject.think((thought, budget) for (_, budget, _), thought in thoughts.items())
    answers = subject.answer(
        [
            (thought, derive_seed(config.seed, "separate answer", *key))
            for key, thought in thoughts.items()
        ]
    )
    runs: dict[int, dict[int, list[Run]]] = {index: {} for index in tasks}
    drawn = ((tasks[key[0]], thought) for key, thought in thoughts.items())
    for (index, budget, _), run in zip(thoughts, _scored(drawn, answers), strict=True):
        runs[index].setdefault(budget, []).append(run)
    return runs


async def _score_request(task: Task, completion: Completion, budget: int) -> Run:
    usage = completion.usage
    trajectory = answered(task.messages, Answer.of(completion, seconds=0.0))
    return Run(
        score=(await task.score(trajectory)).value,
        answer=task.answer_of(trajectory),
        num_thinking_tokens=usage.num_thinking_tokens,
        num_answer_tokens=usage.num_new_tokens - usage.num_thinking_tokens,
        logprob=mean_logprob(completion),
        is_cut=usage.num_thinking_tokens >= budget,
    )


def _scored(thoughts: Iterable[tuple[Task, Thought]], answers: Iterable[Said]) -> list[Run]:
    """Return the runs that thoughts and their answers are."""

    async def score_all() -> list[Run]:
        pairs = zip(thoughts, answers, strict=True)
        return [await _score(task, thought, said) for (task, thought), said in pairs]

    with ThreadPoolExecutor(1) as pool:  # this thread may have an event loop already
        return pool.submit(asyncio.run, score_all()).result()


async def _score(task: Task, thought: Thought, said: Said) -> Run:
    num_tokens = len(thought.ids) + said.num_tokens
    trajectory = answered(task.messages, said.answer(thought))
    return Run(
        score=(await task.score(trajectory)).value,
        answer=task.answer_of(trajectory),
        num_thinking_tokens=len(thought.ids),
        num_answer_tokens=said.num_tokens,
        logprob=(thought.logprob + said.logprob) / num_tokens,
        is_cut=not (thought.is_closed or thought.is_over),
    )
