"""Two revisions side by side: prompt and decode rates of the engine, in alternating pairs.

    python benchmarks/revisions.py /tmp/mid/m2 --base /tmp/base-venv/bin/python --pairs 9

Each revision runs in a Python environment of its own, where its package is installed, and keeps the
model loaded; the two take turns, so that a machine's mood falls on both. Both must say the same
tokens first. The ratio of a pair is new over base, above 1 is faster; the interval is the
distribution-free one of the median.
"""

import json
import os
import statistics
import subprocess
import sys
from math import comb
from pathlib import Path
from typing import Annotated, Any

import typer
from measure import console, print_json, print_wide, run
from rich.table import Table

WORKER = """
import json, sys, time
try:
    from fulmen.checkpoints import load_model
except ImportError:  # 0.1.0
    from fulmen.models import load_model
from fulmen.engine import Engine, EngineConfig
from fulmen.kernels import set_num_threads
from fulmen.sampling import SamplingParams

folder, threads = sys.argv[1], int(sys.argv[2])
set_num_threads(threads)
engine = Engine(load_model(folder), EngineConfig(kv_cache_bytes=2**30))
vocab = engine.model.config.vocab_size


def generate(prompts, count):
    engine.prefixes.clear()
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    for prompt in prompts:
        engine.add_request(prompt, params)
    said, times = [], []
    while engine.has_unfinished:
        outputs = engine.step()
        times.append(time.perf_counter())
        said += [(output.request_id, output.token_id) for output in outputs]
    return said, times


for line in sys.stdin:
    job = json.loads(line)
    seed, batch, prompt, count = (job[name] for name in ("seed", "batch", "prompt", "count"))
    prompts = [[(seed + 7919 * (i + n * n)) % vocab for i in range(prompt)] for n in range(batch)]
    start = time.perf_counter()
    said, times = generate(prompts, count)
    first = said[0][0]
    ids = [token_id for _, token_id in sorted(said, key=lambda pair: pair[0])]
    done = {"ids": ids, "prompt_seconds": times[-count] - start}
    done["decode_seconds"] = times[-1] - times[-count]
    print(json.dumps(done), flush=True)
"""


class Worker:
    """One revision with the model in memory."""

    def __init__(self, python: str, folder: Path, threads: int) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        if python == sys.executable and "PYTHONPATH" in os.environ:
            environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        self._process = subprocess.Popen(
            [python, "-c", WORKER, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env=environment,
        )

    def run(self, **job: int) -> dict[str, Any]:
        """Run a job and return what it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ValueError("a revision's process ended, see its words above")
        done: dict[str, Any] = json.loads(line)
        return done

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the narrowest interval of order statistics that holds the median so surely."""
    ordered, count = sorted(values), len(values)
    best = (ordered[0], ordered[-1])
    for cut in range(count // 2):
        outside = 2 * sum(comb(count, k) for k in range(cut + 1)) / 2**count
        if 1 - outside >= confidence:
            best = (ordered[cut], ordered[-1 - cut])
    return best


def main(
    model: Annotated[Path, typer.Argument(help="A checkpoint folder, see checkpoints.py.")],
    base: Annotated[str, typer.Option(help="Python of the base revision's environment.")],
    new: Annotated[str, typer.Option(help="Python of the new revision's environment.")] = (
        sys.executable
    ),
    pairs: Annotated[int, typer.Option(help="Alternating pairs of each workload.")] = 9,
    threads: Annotated[int, typer.Option(help="Threads of the kernels.")] = 2,
) -> None:
    """Compare two revisions on one model."""
    workloads = {
        "512 tokens read, then 64 decoded": {"batch": 1, "prompt": 512, "count": 64},
        "8 x 64 read, then 8 x 32 decoded": {"batch": 8, "prompt": 64, "count": 32},
    }
    workers = {"base": Worker(base, model, threads), "new": Worker(new, model, threads)}
    table = Table("workload", "rate", "base", "new", "ratio", "95 % of the median")
    values: dict[str, object] = {"model": model.name, "pairs": pairs, "threads": threads}
    for name, job in workloads.items():
        for worker in workers.values():  # once to warm up
            worker.run(seed=0, **job)
        seconds: dict[tuple[str, str], list[float]] = {}
        for pair in range(pairs):
            order = list(workers.items()) if pair % 2 else list(workers.items())[::-1]
            found = {}
            with console.status(f"{name}: pair {pair + 1} of {pairs}"):
                for revision, worker in order:
                    found[revision] = worker.run(seed=pair, **job)
            if found["base"]["ids"] != found["new"]["ids"]:
                raise ValueError(f"the revisions say different tokens in pair {pair} of {name}")
            for revision, done in found.items():
                for kind in ("prompt", "decode"):
                    seconds.setdefault((revision, kind), []).append(done[f"{kind}_seconds"])
        for kind in ("prompt", "decode"):
            pairs_of = zip(seconds["base", kind], seconds["new", kind], strict=True)
            ratios = [before / after for before, after in pairs_of]
            low, high = interval(ratios)
            count = job["batch"] * (job["prompt"] if kind == "prompt" else job["count"] - 1)
            rates = [count / statistics.median(seconds[one, kind]) for one in ("base", "new")]
            ratio = statistics.median(ratios)
            table.add_row(
                name, kind, *(f"{rate:.1f} tokens/s" for rate in rates), f"{ratio:.3f}",
                f"{low:.3f} to {high:.3f}",
            )  # fmt: skip
            values[f"{kind}, {name}"] = {"ratio": ratio, "low": low, "high": high, "rates": rates}
    for worker in workers.values():
        worker.close()
    print_wide(table)
    print_json("revisions", values)


if __name__ == "__main__":
    run(main)
