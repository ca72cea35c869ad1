"""A small model alone and in a team, at equal tokens: who repairs more micro-repositories?

    python benchmarks/team_repairs.py --tasks 400 --state runs/out/team_repairs.jsonl

Each task is a module with one wrong line and its tests, of the part that mini-m2 was not trained
on. Four ways to spend the same number of new tokens on it, all with the sandbox, tools and prompts
of `fulmen agent --tools minimal --mode auto`:

    once    one agent, one try, the first one of the other ways
    goes on one agent, told in the same conversation that the tests fail, until they pass
    anew    one agent, and after a failure another one on the repository as it was, and so on
    team    workers side by side, each with its own copy; the first whose tests pass ends the others

The tests are run in each folder after the work, whatever the model says. What counts is another
thing: the environment's own score by probes, which are no part of the repository. The first try is
greedy, each later one has another seed. With --state a run that was ended goes on.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer
from measure import console, print_json, print_wide, run
from rich.progress import track
from rich.table import Table

from fulmen.agent import (
    Archive,
    Budget,
    Means,
    Permissions,
    Report,
    Rules,
    Team,
    Trajectory,
    Work,
    fan_out,
    parse_team,
)
from fulmen.agent.tools import system_prompt
from fulmen.chat import ChatModel, Message
from fulmen.engine import EngineConfig
from fulmen.envs import load_environment
from fulmen.envs.calls.micro import MicroRepair
from fulmen.evaluate.statistics import difference, estimate, exact_p
from fulmen.llm import LLM, LocalModel
from fulmen.sampling import SamplingParams
from fulmen.sandbox import Access, Sandbox
from fulmen.sessions import SessionStore

ENVIRONMENT: Final = "calls:repair:test"
_A_TRY: Final = 300
"""Tokens for each worker of a team: a repair takes about 200"""
_MOST_ANSWER: Final = 160
"""Tokens of one answer"""
_FAILS: Final = "The test still fails."
_TEAM: Final = """
[[agents]]
name = "worker"
role = "worker"
count = {count}

[budget]
max-tokens = {tokens}
answer = {answer}
"""


@dataclass(frozen=True)
class Played:
    """One task, played in one way."""

    way: str
    budget: int
    task: int
    score: float
    num_new: int
    """New tokens of all agents"""
    num_prompt: int
    num_cached: int
    seconds: float


@dataclass
class Desk:
    """A task in a folder, and what works on it."""

    task: MicroRepair
    model: ChatModel
    archive: Archive
    root: Path
    budget: int
    runs: list[Trajectory]
    """Runs of all agents, as far as they came"""

    @property
    def question(self) -> str:
        """The person's words."""
        return self.task.messages[-1].content

    @property
    def num_new(self) -> int:
        """Tokens that were made."""
        return sum(one.num_new_tokens for one in self.runs)

    async def folder(self, name: str) -> Path:
        """Return a new folder with the faulty repository."""
        folder = self.root / name
        folder.mkdir()
        await self.task.prepare(folder)
        return folder

    def begin(self, folder: Path, name: str) -> None:
        """Begin a run with the prompt that a small model was trained on."""
        system = (Message("system", system_prompt("minimal", "")),)
        self.archive.begin(folder, model="mini", tools="minimal", system=system, name=name)

    def means(self, folder: Path, tokens: int | None, params: SamplingParams) -> Means:
        """Return the means of `--mode auto`."""
        permissions = Permissions("auto", Rules(), workspace=folder)
        return Means(permissions=permissions, budget=Budget(tokens=tokens), params=params)


Way = Callable[[Desk], Awaitable[Path]]
"""Works on a task; returns the folder that counts"""


def sampling(number: int) -> SamplingParams:
    """Return the sampling of a try: the first one is greedy, the others differ by their seeds."""
    temperature = 0.0 if number == 0 else 0.7
    return SamplingParams(temperature=temperature, seed=number, max_tokens=_MOST_ANSWER)


async def tests_pass(folder: Path) -> bool:
    """Return whether a repository's own tests pass."""
    async with Sandbox(Access(folder=folder)) as sandbox:
        outcome = await sandbox.run("python3 -B -m unittest", seconds=20)
    return outcome.exit_code == 0


async def said(work: Work, words: str) -> bool:
    """Let an agent work on words; return whether it came to an end of its own. It does not where
    its tokens are spent or its context is full."""
    try:
        return await work.say(words) == "done"
    except ValueError as error:
        if "the context holds" not in str(error):
            raise
        return False


async def once(desk: Desk) -> Path:
    """One try."""
    return await one_try(desk, 0)


async def one_try(desk: Desk, number: int) -> Path:
    """Let a new agent try what tokens are left for."""
    folder = await desk.folder(f"try{number}")
    desk.begin(folder, folder.name)
    means = desk.means(folder, desk.budget - desk.num_new, sampling(number))
    async with Work(desk.archive, folder.name, desk.model, means) as work:
        await said(work, desk.question)
    desk.runs.append(work.trajectory)
    return folder


async def anew(desk: Desk) -> Path:
    """Try again from the beginning until the tests pass."""
    number = 0
    while True:
        folder = await one_try(desk, number)
        number += 1
        if desk.num_new >= desk.budget or await tests_pass(folder):
            return folder


async def goes_on(desk: Desk) -> Path:
    """Say that the tests fail, in the same conversation, until they pass."""
    folder = await desk.folder("work")
    desk.begin(folder, "run")
    means = desk.means(folder, desk.budget, sampling(0))
    async with Work(desk.archive, "run", desk.model, means) as work:
        words = desk.question
        while await said(work, words) and work.trajectory.num_new_tokens < desk.budget:
            if await tests_pass(folder):
                break
            words = _FAILS
    desk.runs.append(work.trajectory)
    return folder


async def team(desk: Desk) -> Path:
    """Let workers try side by side until the tests of one pass."""
    folder, count = await desk.folder("work"), max(1, desk.budget // _A_TRY)
    desk.begin(folder, "run")
    text = _TEAM.format(count=count, tokens=desk.budget, answer=_MOST_ANSWER)
    means = desk.means(folder, None, sampling(0))
    of_team = Team(
        *(parse_team(text, "team"), desk.archive, "run", desk.model, means),
        worktrees=desk.root / "worktrees",
    )
    found = folder

    async def is_enough(reports: Sequence[Report]) -> bool:
        nonlocal found
        member = of_team.member(reports[-1].agent)
        passes = await tests_pass(member.folder)
        found = member.folder if passes or found is folder else found
        return passes

    async with of_team:
        tries = list(map(sampling, range(count)))
        asked = [desk.question] * count
        await fan_out(of_team, asked, agent="worker", is_enough=is_enough, params=tries)
        if found != folder:
            member = next(one for one in of_team.members if one.folder == found)
            await of_team.apply(await of_team.merge(member))
        runs = of_team.crew.runs.runs
        desk.runs += [runs.open(one.run).trajectory for one in of_team.members]
    return folder


WAYS: Final[dict[str, Way]] = {"once": once, "goes on": goes_on, "anew": anew, "team": team}


async def play(name: str, budget: int, index: int, task: MicroRepair, model: ChatModel) -> Played:
    """Let one way work on a task; return what came of it."""
    with TemporaryDirectory(prefix="fulmen-repairs-") as folder:
        root = Path(folder)
        archive = Archive(root / "runs", SessionStore(root / "sessions"))
        desk = Desk(task, model, archive, root, budget, [])
        begin = time.perf_counter()
        place = await WAYS[name](desk)
        seconds = time.perf_counter() - begin
        if desk.num_new > budget:
            raise ValueError(f"{name} made {desk.num_new} tokens, {budget} are all that it has")
        score = await task.score(Trajectory(), place)
        answers = [step.answer for one in desk.runs for step in one.steps]
        prompt = sum(one.num_prompt_tokens for one in answers)
        cached = sum(one.num_cached_tokens for one in answers)
        return Played(name, budget, index, score.value, desk.num_new, prompt, cached, seconds)


async def play_all(
    checkpoint: str, num_tasks: int, budgets: Sequence[int], state: Path | None
) -> list[Played]:
    """Play each task in all ways with all budgets, but for those that a file has."""
    found: list[Played] = []
    if state is not None and state.exists():
        found = [Played(**json.loads(line)) for line in state.read_text().splitlines()]
    known = {(one.way, one.budget, one.task) for one in found}
    environment = load_environment(ENVIRONMENT, seed=0)
    llm = LLM.load(checkpoint, engine_config=EngineConfig(kv_cache_bytes=2**28))
    async with LocalModel(llm) as model:
        for index in track(range(num_tasks), "Tasks", console=console):
            task = environment.task(index)
            assert isinstance(task, MicroRepair)
            for budget in budgets:
                for name in WAYS:
                    if (name, budget, index) in known:
                        continue
                    found.append(await play(name, budget, index, task, model))
                    if state is not None:
                        with state.open("a") as file:
                            file.write(json.dumps(asdict(found[-1])) + "\n")
    return [one for one in found if one.task < num_tasks and one.budget in budgets]


def main(
    checkpoint: Annotated[str, typer.Option(help="Model.")] = "mini-m2",
    tasks: Annotated[int, typer.Option(help="Repositories.", min=2)] = 400,
    budget: Annotated[list[int], typer.Option(help="New tokens for a task.")] = [600, 1200, 2400],  # noqa: B006
    state: Annotated[Path | None, typer.Option(help="File that keeps what was played.")] = None,
) -> None:
    """Let a small model repair alone and in a team, at equal tokens."""
    if state is not None:
        state.parent.mkdir(parents=True, exist_ok=True)
    played = asyncio.run(play_all(checkpoint, tasks, budget, state))
    table = Table(
        "budget", "way", "repaired, %", "team - way", "p", "tokens", "prompt", "read", "s"
    )
    values: dict[str, object] = {"model": checkpoint, "tasks": tasks}
    for one in budget:
        rows = {
            name: sorted(
                (it for it in played if (it.way, it.budget) == (name, one)), key=lambda it: it.task
            )
            for name in WAYS
        }
        of_team = [it.score for it in rows["team"]]
        for name, row in rows.items():
            scores = [it.score for it in row]
            rate, gain = estimate(scores), difference(of_team, scores)
            pairs = list(zip(of_team, scores, strict=True))
            p = exact_p(sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))
            new, prompt, cached, seconds = (
                sum(getattr(it, key) for it in row) / len(row)
                for key in ("num_new", "num_prompt", "num_cached", "seconds")
            )
            is_team = name == "team"
            table.add_row(
                str(one),
                name,
                f"{100 * rate.mean:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})",
                ""
                if is_team
                else f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})",
                "" if is_team else f"{p:.2g}",
                f"{new:.0f}",
                f"{prompt:.0f}",
                f"{prompt - cached:.0f}",
                f"{seconds:.2f}",
            )
            values[f"{one} {name}"] = {
                **{"repaired": rate.mean, "low": rate.low, "high": rate.high, "p": p},
                **{"tokens": new, "prompt": prompt, "read": prompt - cached, "seconds": seconds},
            }
    print_wide(table)
    print_json("team_repairs", values)


if __name__ == "__main__":
    run(main)
