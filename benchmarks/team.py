"""A team of agents on one engine, against as many agents in processes of their own.

    python benchmarks/team.py
    python benchmarks/team.py --checkpoint mini-m2 --tools minimal --rounds 2 --lines 4

Each agent reads files of one folder, which all of them share, and says what it saw. The model is
made to say it, so both sides do the same; all behind that is real: prompts, engine, cache, sandbox.
The check: each agent read the same results and gave the same report on both sides. Without a
checkpoint it is a random M2 of released proportions, with 1,024 channels, 4 layers and a byte
tokenizer.

The sides take turns. Prompt tokens computed are those that the model read and no cache knew.
Seconds are those of the command, with imports and the reading of weights, and those of the work.
Memory is the largest sum over the side's processes, in which a page that several have is counted
once (PSS of Linux).
"""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer
from checkpoints import Kind, make_config
from measure import console, print_json, print_wide, run
from rich.progress import track
from rich.table import Table

from fulmen.agent import Archive, Means, Permissions, Rules, Team, fan_out, parse_team
from fulmen.chat import ChatRequest, Message, read_messages
from fulmen.engine import EngineConfig
from fulmen.llm import LLM, ForcedModel, LocalModel
from fulmen.sessions import SessionStore

TEAM: Final = '[[agents]]\nname = "explorer"\nrole = "explorer"\ncount = {count}\n'
_SAMPLE_SECONDS: Final = 0.1
_SHAPE: Final = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_local_experts"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "rotary_dim"),
    "num_experts_per_tok",
)
"""Fields of the configuration that a random model takes over"""


@dataclass(frozen=True)
class Job:
    """Work of one process."""

    checkpoint: str
    folder: str
    tasks: list[str]
    num_rounds: int
    tools: str


@dataclass(frozen=True)
class Side:
    """One way to have the agents work, measured."""

    reports: dict[str, list[str]]
    """Results that each agent read, and its report, by task"""
    prompt_tokens: int
    computed_tokens: int
    work_seconds: float
    seconds: float = 0.0
    bytes: int = 0


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


async def work(llm: LLM, root: Path, job: Job) -> Side:
    """Let a team do tasks on one engine."""
    archive = Archive(root / "runs", SessionStore(root / "sessions"))
    folder, system = Path(job.folder), (Message("system", "x"),)
    archive.begin(folder, model="m", tools=job.tools, system=system, name="lead")
    means = Means(permissions=Permissions("auto", Rules(), workspace=folder))
    before, begin = llm.engine.stats, time.perf_counter()
    async with LocalModel(llm) as model:
        script = [said(llm, job.num_rounds)] * len(job.tasks) * (job.num_rounds + 1)
        forced = ForcedModel(model, script)
        config = parse_team(TEAM.format(count=len(job.tasks)), "team")
        team = Team(config, archive, "lead", forced, means, worktrees=root / "worktrees")
        async with team:
            reports = await fan_out(team, job.tasks, agent="explorer")
    seconds, stats = time.perf_counter() - begin, llm.engine.stats
    found = {}
    for report in reports:
        if report.reason != "done":
            raise ValueError(f"{report.agent} ended by {report.reason}: {report.text}")
        crew = archive.team("lead").runs
        steps = crew.open(f"lead.{report.agent}").trajectory.steps
        task = steps[0].said[0].content.split()[-1]
        found[task] = [one.text for step in steps for one in step.results] + [report.text]
    queried = stats.num_queried_tokens - before.num_queried_tokens
    hit = stats.num_hit_tokens - before.num_hit_tokens
    return Side(found, queried, queried - hit, seconds)


def here(job: Job) -> Side:
    """Load the model in this process and let a team do tasks."""
    llm = LLM.load(job.checkpoint, engine_config=EngineConfig(kv_cache_bytes=2**28))
    with TemporaryDirectory() as root:
        return asyncio.run(work(llm, Path(root), job))


def resident(process: int) -> int:
    """Return a process's share of memory in bytes; 0 once it is gone."""
    try:
        rows = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def measured(jobs: list[Job]) -> Side:
    """Do jobs at once, each in a process of its own; return all of them together."""
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--part"]
    processes = [
        subprocess.Popen([*command, json.dumps(asdict(job))], stdout=subprocess.PIPE)
        for job in jobs
    ]
    size, is_over = 0, threading.Event()

    def sample() -> None:
        nonlocal size
        while not is_over.wait(_SAMPLE_SECONDS):
            size = max(size, sum(resident(one.pid) for one in processes))

    sampling = threading.Thread(target=sample)
    sampling.start()
    try:
        outs = [process.communicate()[0] for process in processes]
    finally:
        is_over.set()
        sampling.join()
    if any(process.returncode != 0 for process in processes):
        raise ValueError("an agent failed, see above")
    parts = [Side(**json.loads(out.splitlines()[-1])) for out in outs]
    return Side(
        {task: one for part in parts for task, one in part.reports.items()},
        sum(part.prompt_tokens for part in parts),
        sum(part.computed_tokens for part in parts),
        max(part.work_seconds for part in parts),
        time.perf_counter() - begin,
        size,
    )


def both(job: Job, num_lines: int) -> dict[str, Side]:
    """Measure both sides, and check that they did the same."""
    folder = Path(job.folder)
    for number in range(job.num_rounds):
        text = "".join(f"line {at} of file {number}\n" for at in range(num_lines))
        (folder / f"file{number}.txt").write_text(text)
    team = measured([job])
    alone = measured([replace(job, tasks=[one]) for one in job.tasks])
    if alone.reports != team.reports or len(team.reports) != len(job.tasks):
        raise ValueError("the team and the agents alone did not do the same")
    return {"a team, one engine": team, f"{len(job.tasks)} processes": alone}


def random_checkpoint(folder: Path) -> str:
    """Write a model to measure; return its folder."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.tiny import write_checkpoint

    config = asdict(make_config(Kind.M2, num_layers=4))
    shape = {key: one for key, one in config.items() if key in _SHAPE}
    return str(write_checkpoint(folder, "m2", max_position_embeddings=32_768, **shape))


def main(
    checkpoint: Annotated[str | None, typer.Option(help="Model; a random one if omitted.")] = None,
    agents: Annotated[int, typer.Option(help="Agents of the team.", min=1)] = 4,
    rounds: Annotated[int, typer.Option(help="Files that each agent reads.", min=1)] = 4,
    lines: Annotated[int, typer.Option(help="Lines of each file.", min=1)] = 20,
    trials: Annotated[int, typer.Option(help="Times that each side works.", min=1)] = 3,
    tools: Annotated[str, typer.Option(help="Tools of the agents: coding, minimal.")] = "coding",
    part: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure a team on one engine against agents in processes of their own."""
    if part is not None:
        print(json.dumps(asdict(here(Job(**json.loads(part))))))
        return
    tasks = [f"Read the files, as agent {number}" for number in range(agents)]
    found: list[dict[str, Side]] = []
    with TemporaryDirectory() as root:
        named = checkpoint or "a random M2"
        model = checkpoint or random_checkpoint(Path(root) / "model")
        folder = Path(root) / "folder"
        folder.mkdir()
        job = Job(model, str(folder), tasks, rounds, tools)
        for _ in track(range(trials), console=console, transient=True):
            found.append(both(job, lines))
    columns = ("", "prompt tokens", "computed", "seconds", "of work", "memory, MiB")
    table = Table(*columns, title=f"{named}, {agents} agents, median of {trials} (least to most)")
    values: dict[str, object] = {"model": named, "agents": agents, "rounds": rounds}
    for name in found[0]:
        sides = [one[name] for one in found]
        table.add_row(
            name,
            f"{sides[0].prompt_tokens:,}",
            spread([one.computed_tokens for one in sides], ",.0f"),
            spread([one.seconds for one in sides], ".1f"),
            spread([one.work_seconds for one in sides], ".1f"),
            spread([one.bytes / 2**20 for one in sides], ",.0f"),
        )
        rows = [asdict(one) for one in sides]
        values[name] = [{key: row[key] for key in row if key != "reports"} for row in rows]
    print_wide(table)
    print_json("team", values)


def spread(numbers: Sequence[float], form: str) -> str:
    """Write a median, and the least and the most if they differ from it as written."""
    middle, least, most = (f"{one:{form}}" for one in (median(numbers), min(numbers), max(numbers)))
    return middle if least == most else f"{middle} ({least} to {most})"


if __name__ == "__main__":
    run(main)
