"""A team of agents on one engine, against as many agents in processes of their own.

    python benchmarks/team.py
    python benchmarks/team.py --checkpoint mini-m2 --agents 4 --rounds 6

Each agent reads files of one folder, which all of them share, and says what it saw. The model is
made to say it, so both sides do the same; all behind that is real: prompts, engine, cache, sandbox.
The check: each agent read the same results and gave the same report on both sides. Without a
checkpoint it is a tiny random model, which shows the tokens, not the times of a real one.

Prompt tokens computed are those that the model read and no cache knew. Memory is the largest that a
process had resident, added up over processes.
"""

import asyncio
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer
from measure import print_json, print_wide, run
from rich.table import Table

from fulmen.agent import Archive, Means, Permissions, Rules, Team, fan_out, parse_team
from fulmen.chat import ChatRequest, Message, read_messages
from fulmen.engine import EngineConfig
from fulmen.llm import LLM, ForcedModel, LocalModel
from fulmen.sessions import SessionStore

TEAM: Final = '[[agents]]\nname = "explorer"\nrole = "explorer"\ncount = {count}\n'
_LINES: Final = 60
"""Lines of each file that is read"""


@dataclass(frozen=True)
class Side:
    """One way to have the agents work, measured."""

    reports: dict[str, list[str]]
    """Results that each agent read, and its report, by task"""
    prompt_tokens: int
    computed_tokens: int
    seconds: float
    bytes: int


def said(llm: LLM, num_rounds: int) -> Any:
    """Return what the model is made to say: calls that read the task's files, then a report."""
    is_m2 = llm.format.name == "minimax_m2"

    def line(request: ChatRequest) -> str:
        messages = read_messages(request.messages)
        task = next(one.content for one in messages if one.role == "user").split()[-1]
        number = sum(one.role == "assistant" for one in messages)
        text = f"Agent {task} saw {number} files."
        if number < num_rounds:
            path = f"file{number}.txt"
            text = f'<invoke name="read">\n<parameter name="path">{path}</parameter>\n</invoke>'
            text = f"<minimax:tool_call>\n{text}\n</minimax:tool_call>"
            if not is_m2:
                call = json.dumps({"name": "read", "arguments": {"path": path}})
                text = f"<tool_calls>\n{call}\n</tool_calls>"
        return f"I look.\n</think>\n\n{text}" if is_m2 else f"<think>\nI look.\n</think>\n\n{text}"

    return line


async def work(llm: LLM, root: Path, folder: Path, tasks: list[str], num_rounds: int) -> Side:
    """Let a team do tasks on one engine."""
    archive = Archive(root / "runs", SessionStore(root / "sessions"))
    archive.begin(folder, model="m", tools="coding", system=(Message("system", "x"),), name="lead")
    means = Means(permissions=Permissions("auto", Rules(), workspace=folder))
    before, begin = llm.engine.stats, time.perf_counter()
    async with LocalModel(llm) as model:
        forced = ForcedModel(model, [said(llm, num_rounds)] * len(tasks) * (num_rounds + 1))
        config = parse_team(TEAM.format(count=len(tasks)), "team")
        team = Team(config, archive, "lead", forced, means, worktrees=root / "worktrees")
        async with team:
            reports = await fan_out(team, tasks, agent="explorer")
    seconds, stats = time.perf_counter() - begin, llm.engine.stats
    found = {}
    for report in reports:
        crew = archive.team("lead").runs
        steps = crew.open(f"lead.{report.agent}").trajectory.steps
        task = steps[0].said[0].content.split()[-1]
        found[task] = [one.text for step in steps for one in step.results] + [report.text]
    queried = stats.num_queried_tokens - before.num_queried_tokens
    hit = stats.num_hit_tokens - before.num_hit_tokens
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Side(found, queried, queried - hit, seconds, size)


def here(checkpoint: str, folder: Path, tasks: list[str], num_rounds: int) -> Side:
    """Load the model in this process and let a team do tasks."""
    begin = time.perf_counter()
    llm = LLM.load(checkpoint, engine_config=EngineConfig(kv_cache_bytes=2**28))
    with TemporaryDirectory() as root:
        side = asyncio.run(work(llm, Path(root), folder, tasks, num_rounds))
    return Side(**{**asdict(side), "seconds": time.perf_counter() - begin})


def in_process(checkpoint: str, folder: Path, tasks: list[str], num_rounds: int) -> Any:
    """Start `here` in a process of its own."""
    words = ["--part", json.dumps([checkpoint, str(folder), tasks, num_rounds])]
    return subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE)


def ended(processes: list[Any]) -> list[Side]:
    """Wait for processes; return what each measured."""
    sides = []
    for process in processes:
        out, _ = process.communicate()
        if process.returncode != 0:
            raise ValueError("an agent failed, see above")
        sides.append(Side(**json.loads(out.splitlines()[-1])))
    return sides


def measured(checkpoint: str, num_agents: int, num_rounds: int) -> dict[str, Side]:
    """Measure both sides, and check that they did the same."""
    tasks = [f"Read the files, as agent {number}" for number in range(num_agents)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(num_rounds):
            text = "".join(f"line {at} of file {number}\n" for at in range(_LINES))
            (folder / f"file{number}.txt").write_text(text)
        team = ended([in_process(checkpoint, folder, tasks, num_rounds)])[0]
        begin = time.perf_counter()
        alone = ended([in_process(checkpoint, folder, [one], num_rounds) for one in tasks])
        seconds = time.perf_counter() - begin
    reports = {task: one for side in alone for task, one in side.reports.items()}
    if reports != team.reports or len(reports) != num_agents:
        raise ValueError("the team and the agents alone did not do the same")
    together = Side(
        reports,
        sum(one.prompt_tokens for one in alone),
        sum(one.computed_tokens for one in alone),
        seconds,
        sum(one.bytes for one in alone),
    )
    return {"a team, one engine": team, f"{num_agents} processes": together}


def main(
    checkpoint: Annotated[str | None, typer.Option(help="Model; a tiny one if omitted.")] = None,
    agents: Annotated[int, typer.Option(help="Agents of the team.", min=1)] = 4,
    rounds: Annotated[int, typer.Option(help="Files that each agent reads.", min=1)] = 4,
    part: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure a team on one engine against agents in processes of their own."""
    if part is not None:
        model, folder, tasks, num_rounds = json.loads(part)
        print(json.dumps(asdict(here(model, Path(folder), tasks, num_rounds))))
        return
    with TemporaryDirectory() as root:
        if checkpoint is None:
            sys.path.insert(0, str(Path(__file__).parents[1]))
            from tests.tiny import write_checkpoint

            path = write_checkpoint(Path(root) / "tiny", "m2", max_position_embeddings=32768)
            checkpoint = str(path)
            named = "a tiny random M2"
        else:
            named = checkpoint
        sides = measured(checkpoint, agents, rounds)
    table = Table("", "prompt tokens", "computed", "seconds", "resident MiB", title=named)
    for name, side in sides.items():
        table.add_row(
            name,
            f"{side.prompt_tokens:,}",
            f"{side.computed_tokens:,}",
            f"{side.seconds:.1f}",
            f"{side.bytes / 2**20:,.0f}",
        )
    print_wide(table)
    values: dict[str, object] = {"model": named, "agents": agents, "rounds": rounds}
    for name, side in sides.items():
        values[name] = {key: one for key, one in asdict(side).items() if key != "reports"}
    print_json("team", values)


if __name__ == "__main__":
    run(main)
