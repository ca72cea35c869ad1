"""Our agent beside mini-swe-agent on the same small repositories; or a model with our agent alone.

    scripts/install_clients --only mini-swe-agent .clients
    python benchmarks/agent_peers.py --mini .clients/mini/bin/mini --tokenizer FOLDER
    python benchmarks/agent_peers.py --model smollm2

The repositories are those of `repairs`, all levels in turn. Side by side, both agents ask one
server whose engine, cache and wire are real and whose tiny random M2 is made to say a script: the
same thoughts and the same commands of the shell for both. So what differs is what each agent tells
the model, and how long it takes. First the answers: both must have repaired every repository. Each
begins every second one.

With --model our agent works with a real model on this machine and its minimal tools. The rate is
whatever it is.
"""

import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from checkpoints import Kind, make_config, write_checkpoint
from measure import console, print_json, print_wide, run, why_not_started
from rich.table import Table

from fulmen.agent import Score, Trajectory
from fulmen.chat import ChatRequest, Tokenizer, read_messages
from fulmen.engine import EngineConfig
from fulmen.envs import RepairTask, load_environment
from fulmen.llm import LLM, ForcedModel, LocalModel
from fulmen.models import M2Config
from fulmen.server import ServerConfig, create_app, serve

TIMEOUT_SECONDS = 600.0
MAX_MODEL_LEN = 60_000
MAX_TURNS = 8
MAX_TOKENS = 400
"""Tokens of a real model in one repository"""
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""Command by which mini-swe-agent's model says that it is done"""


# The script


def commands_of(task: RepairTask) -> list[tuple[str, str]]:
    """Return thoughts and commands that repair a repository: see it fail, read, edit, see it
    pass."""
    ((path, right),) = task.solution.items()
    return [
        ("I run the tests first.", "python3 -m unittest"),
        (f"The fault should be in {path}.", f"cat {path}"),
        ("I see it.", _edit(path, task.files[path], right)),
        ("Now they should pass.", "python3 -m unittest"),
    ]


def _edit(path: str, before: str, after: str) -> str:
    """Return a command that puts other lines into a file."""
    old, new = before.splitlines(True), after.splitlines(True)
    changes = [
        f"lines[{start}:{end}] = {new[first:last]!r}"
        for kind, start, end, first, last in SequenceMatcher(None, old, new, False).get_opcodes()
        if kind != "equal"
    ]
    program = [
        "from pathlib import Path",
        f"path = Path({path!r})",
        "lines = path.read_text().splitlines(True)",
        *reversed(changes),  # so that places before a change stay
        "path.write_text(''.join(lines))",
    ]
    return "python3 - <<'END'\n" + "\n".join(program) + "\nEND"


def answers_of(task: RepairTask, *, ends_by_call: bool) -> list[str]:
    """Return the script of a repository as M2 writes it, behind the `<think>` of the prompt."""
    texts = [_answer(thought, "", command) for thought, command in commands_of(task)]
    end = SUBMIT if ends_by_call else None
    return [*texts, _answer("All tests pass.", "The fault is repaired.", end)]


def _answer(thought: str, content: str, command: str | None) -> str:
    text = f"{thought}\n</think>\n\n{content}"
    if command is None:
        return text
    call = f'<invoke name="bash">\n<parameter name="command">{command}</parameter>\n</invoke>'
    return f"{text}\n<minimax:tool_call>\n{call}\n</minimax:tool_call>"


# The server


class Scripted:
    """A server whose model says a script, one answer for each place in a conversation."""

    def __init__(self, llm: LLM) -> None:
        self.url = ""
        self.answers: Sequence[str] = ()
        self.times: list[float] = []
        """When requests came"""
        self._model = LocalModel(llm)

    def counts(self) -> dict[str, int]:
        """Return what the engine has counted so far."""
        stats = self._model.stats
        return {
            "requests": sum(stats.num_finished.values()),
            "prompt_tokens": stats.num_prompt_tokens,
            "cached_tokens": stats.num_hit_tokens,
            "new_tokens": stats.num_new_tokens,
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve in a thread, on a free port of this machine."""
        config = ServerConfig(port=0, drain_seconds=1)
        app = create_app(ForcedModel(self._model, itertools.repeat(self._next)), config)
        ready, loop = threading.Event(), asyncio.new_event_loop()

        def on_ready(url: str) -> None:
            self.url = url
            ready.set()

        async def work() -> None:
            try:
                await serve(app, config, on_ready=on_ready)
            finally:
                await self._model.close()

        task = loop.create_task(work())
        task.add_done_callback(lambda _: ready.set())
        thread = threading.Thread(target=loop.run_until_complete, args=(_ended(task),))
        thread.start()
        try:
            ready.wait()
            if not self.url:
                raise RuntimeError("the server ended before it took requests")
            yield
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
            loop.close()

    def _next(self, request: ChatRequest) -> str:
        self.times.append(time.perf_counter())
        messages = read_messages(list(request.messages))
        return self.answers[sum(message.role == "assistant" for message in messages)]


async def _ended(task: "asyncio.Task[None]") -> None:
    await asyncio.wait([task])


def load_tiny(folder: Path, tokenizer: Path) -> LLM:
    """Return a tiny random M2 with another model's tokenizer."""
    file = tokenizer / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{tokenizer} holds no tokenizer.json, give a folder with MiniMax's")
    config = make_config(Kind.M2, 2)
    assert isinstance(config, M2Config)
    tiny = replace(
        config,
        vocab_size=Tokenizer.from_folder(tokenizer).vocab_size,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rotary_dim=4,
        intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=MAX_MODEL_LEN,
    )
    write_checkpoint(tiny, folder)
    (folder / "tokenizer.json").symlink_to(file.resolve())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[e~["}))
    return LLM.load(str(folder), engine_config=EngineConfig(max_num_seqs=4, kv_cache_bytes=2**28))


# The agents


@dataclass(frozen=True, slots=True)
class Played:
    """One repository, played by one agent."""

    level: int
    solved: bool
    requests: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    seconds: float
    """Time of the whole command"""
    loop_seconds: float
    """From the first request to the last, without the start of the program"""


def ours(question: str, work: Path, *flags: str) -> list[str]:
    """Return the command of our agent."""
    command = [sys.executable, "-P", "-m", "fulmen", "agent", "--json", question]
    return [*command, "--folder", str(work), "--mode", "auto", *flags]


def minis(program: Path, question: str, home: Path) -> list[str]:
    """Return the command of mini-swe-agent."""
    told = ["-o", str(home / "trajectory.json"), "-t", question, "-c", "mini.yaml"]
    return [str(program), "-y", "--exit-immediately", *told]


def execute(
    command: Sequence[str], home: Path, work: Path, variables: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run an agent in a folder, with an empty home."""
    kept = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(home)}
    return subprocess.run(
        command,
        cwd=work,
        env=kept | dict(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT_SECONDS,
    )


def our_variables() -> dict[str, str]:
    """Return what our command needs to find this checkout."""
    return {
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def mini_variables(url: str) -> dict[str, str]:
    """Return mini-swe-agent's settings for a server, those of docs/serving.md."""
    return {
        "OPENAI_API_BASE": f"{url}/v1",
        "OPENAI_API_KEY": "any",
        "MSWEA_MODEL_NAME": "openai/m2",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "MSWEA_CONFIGURED": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


@contextmanager
def place(task: RepairTask) -> Iterator[tuple[Path, Path]]:
    """Make an empty home, and a folder with a repository."""
    with TemporaryDirectory(prefix="fulmen-peers-") as root:
        home, work = Path(root) / "home", Path(root) / "work"
        home.mkdir()
        work.mkdir()
        asyncio.run(task.prepare(work))
        yield home, work


def score_of(task: RepairTask, work: Path) -> Score:
    """Return the score of a repository as an agent left it."""
    return asyncio.run(task.score(Trajectory(), work))


def play(server: Scripted, task: RepairTask, mini: Path | None) -> Played:
    """Let one agent repair a repository. Raises ValueError if it does not follow the script.

    mini  program of mini-swe-agent; ours if omitted
    """
    server.answers = answers_of(task, ends_by_call=mini is not None)
    server.times = []
    before = server.counts()
    with place(task) as (home, work):
        if mini is None:
            flags = ("--url", server.url, "--url-dialect", "openai")
            command, variables = ours(task.question, work, *flags), our_variables()
        else:
            command, variables = minis(mini, task.question, home), mini_variables(server.url)
        begin = time.perf_counter()
        done = execute(command, home, work, variables)
        seconds = time.perf_counter() - begin
        score = score_of(task, work)
    counts = {name: count - before[name] for name, count in server.counts().items()}
    if done.returncode or score.value != 1 or counts["requests"] != len(server.answers):
        name = "our agent" if mini is None else "mini-swe-agent"
        raise ValueError(
            f"{name} did not repair a repository of level {task.level}, after "
            f"{counts['requests']} of {len(server.answers)} answers and with exit status "
            f"{done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        )
    loop_seconds = server.times[-1] - server.times[0]
    return Played(task.level, True, **counts, seconds=seconds, loop_seconds=loop_seconds)


def repairs(seed: int, count: int) -> list[RepairTask]:
    """Return repositories of all levels in turn."""
    environment = load_environment("repairs", seed=seed)
    tasks = [environment.task(index) for index in range(count)]
    return [task for task in tasks if isinstance(task, RepairTask)]


def side_by_side(mini: Path, tokenizer: Path, tasks: Sequence[RepairTask]) -> dict[str, Any]:
    """Return what both agents took for each repository."""
    played: dict[str, list[Played]] = {"fulmen agent": [], "mini-swe-agent": []}
    with TemporaryDirectory(prefix="fulmen-peers-") as folder:
        server = Scripted(load_tiny(Path(folder) / "m2", tokenizer))
        with server.running():
            for number, task in enumerate(tasks):
                pairs = list(zip(played.values(), (None, mini), strict=True))
                for found, program in reversed(pairs) if number % 2 else pairs:
                    found.append(play(server, task, program))
                console.print(f"{number + 1} of {len(tasks)}", highlight=False)
    return {name: [asdict(one) for one in found] for name, found in played.items()}


def print_side_by_side(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print medians and totals."""
    table = Table("", *(f"{name}, {kind}" for name in rows for kind in ("median", "total")))
    for field in Played.__slots__:
        if field == "level":
            continue
        cells = []
        for found in rows.values():
            values = [row[field] for row in found]
            form = ".2f" if field.endswith("seconds") else ",.0f"
            median = "" if field == "solved" else format(statistics.median(values), form)
            cells += [median, format(sum(values), form)]
        table.add_row(field.replace("_", " "), *cells)
    print_wide(table)


# A model alone


def alone(model: str, tasks: Sequence[RepairTask], seed: int) -> list[dict[str, Any]]:
    """Return how a model on this machine does with our agent and its minimal tools."""
    limits = ("--max-turns", str(MAX_TURNS), "--max-tokens", str(MAX_TOKENS))
    flags = ("--model", model, "--tools", "minimal", "--seed", str(seed), *limits)
    # Its home is empty, models are not in it.
    data = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")}
    rows = []
    for task in tasks:
        with place(task) as (home, work):
            begin = time.perf_counter()
            done = execute(ours(task.question, work, *flags), home, work, our_variables() | data)
            seconds = time.perf_counter() - begin
            events = [json.loads(line) for line in done.stdout.splitlines()]
            if not events or events[-1]["type"] != "run.ended":
                raise ValueError(f"the agent did not end as it should: {done.stderr[-2000:]}")
            results = [one for one in events if one["type"] == "result"]
            rows.append(
                {
                    "level": task.level,
                    "solved": score_of(task, work).value == 1,
                    "end": events[-1]["reason"],
                    "answers": sum(one["type"] == "answer" for one in events),
                    "calls": len(results),
                    "failed_calls": sum(one["is_error"] for one in results),
                    "new_tokens": events[-1]["usage"]["new_tokens"],
                    "seconds": seconds,
                }
            )
        console.print(rows[-1], highlight=False)
    return rows


def print_alone(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print sums by level."""
    columns = ("solved", "answers", "calls", "failed_calls", "new_tokens", "seconds")
    table = Table("level", "repositories", *(name.replace("_", " ") for name in columns), "ends")
    levels = sorted({row["level"] for row in rows})
    for level in [*levels, None]:
        some = [row for row in rows if level in (None, row["level"])]
        sums = [f"{sum(row[name] for row in some):,.0f}" for name in columns]
        ends = ", ".join(sorted({row["end"] for row in some}))
        table.add_row("all" if level is None else str(level), str(len(some)), *sums, ends)
    print_wide(table)


def main(
    mini: Annotated[
        Path | None, typer.Option(help="Program of mini-swe-agent, to be set beside ours.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with MiniMax's tokenizer.json, for --mini.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model to let our agent work with.")] = None,
    tasks: Annotated[int, typer.Option(min=1, max=10_000, help="Repositories.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the repositories, and of sampling.")] = 0,
) -> None:
    """Compare agents, or see how far a model gets."""
    if (mini is None) == (model is None):
        raise ValueError("give --mini PROGRAM, or --model NAME")
    chosen = repairs(seed, tasks)
    if mini is None:
        assert model is not None
        rows = alone(model, chosen, seed)
        print_alone(rows)
        print_json("agent_peers", {"model": model, "seed": seed, "rows": rows})
        return
    if tokenizer is None:
        raise ValueError("--mini needs --tokenizer, the folder with MiniMax's tokenizer.json")
    reason = why_not_started([str(mini), "--help"])
    if reason is not None:
        raise ValueError(f"{mini} cannot be started: {reason}; scripts/install_clients brings it")
    both = side_by_side(mini, tokenizer, chosen)
    print_side_by_side(both)
    print_json("agent_peers", {"seed": seed, "rows": both})


if __name__ == "__main__":
    run(main)
