"""Time to the first token of a session resumed from disk, against reading its tokens again.

    python benchmarks/checkpoints.py m1 /tmp/mid/m1 --layers 8
    python benchmarks/resume.py --checkpoint /tmp/mid/m1

For each length: a prompt is read and its first token made, by an engine that knows nothing; the
session is saved. Then, several times, a new engine restores it and makes the same token: with the
files in the system's cache, as minutes later, and without, as after a reboot (where the system lets
a program drop them). The answer is checked first: ids and log-probabilities of all must be equal to
the bit, and so must those of answers forked at a token inside the prompt.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from measure import console, print_json, print_wide, run, step
from rich.table import Table

from fulmen.checkpoints import fingerprint, load_model
from fulmen.engine import Engine, EngineConfig, Origin, TokenOutput
from fulmen.models import Model, count_parameters
from fulmen.sampling import SamplingParams
from fulmen.sessions import SessionStore

NEW_TOKENS = 4


def new_engine(model: Model, length: int) -> Engine:
    """Return an engine that knows nothing, with room for two such prompts."""
    pages = 2 * (length // 64 + 2)
    config = EngineConfig(max_num_seqs=1, kv_cache_bytes=pages * model.page_bytes())
    return Engine(model, config)


def answer(engine: Engine, ids: list[int]) -> tuple[list[TokenOutput], float]:
    """A few tokens after a prompt, and the seconds to the first."""
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=NEW_TOKENS, ignore_eos=True)
    engine.add_request(ids, params)
    start = time.perf_counter()
    outputs: list[TokenOutput] = []
    first = 0.0
    while engine.has_unfinished:
        outputs += step(engine)
        first = first or (time.perf_counter() - start if outputs else 0.0)
    return outputs, first


def check_same(expected: list[TokenOutput], found: list[TokenOutput], what: str) -> None:
    """Raises unless ids and log-probabilities are the same bits."""
    pairs = zip(expected, found, strict=True)
    if any((a.token_id, a.logprob) != (b.token_id, b.logprob) for a, b in pairs):
        raise ValueError(f"{what} answered otherwise than the engine that read the prompt")


def drop_from_system_cache(root: Path) -> None:
    """Lets the next reads of all files come from the disk."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def measure(
    model: Model, origin: str, length: int, rounds: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Seconds of reading, saving and restoring one prompt, and what it takes on disk."""
    ids = random.Random(length).choices(range(model.config.vocab_size), k=length)
    found: dict[str, float] = {}
    with TemporaryDirectory(prefix="fulmen-resume-", dir="/var/tmp") as folder:
        store = SessionStore(Path(folder))
        say(f"{length:,} tokens: reading")
        engine = new_engine(model, length)
        whole = Origin(model=origin, numerics=engine.numerics)
        expected, found["read"] = answer(engine, ids)
        head = store.create("a", model="benchmark", fingerprint=origin)
        said = [*ids, *(output.token_id for output in expected)]
        start = time.perf_counter()
        head = store.save(
            head,
            parent=None,
            ids=said,
            num_answer=NEW_TOKENS,
            record={},
            origin=whole,
            prefixes=engine.prefixes,
        )
        found["save"] = time.perf_counter() - start
        forked = random.Random(1).randrange(length // 2, length)
        fork_expected, found["fork in memory"] = answer(engine, ids[:forked])
        del engine
        found["bytes"] = store.chunk_bytes(head)
        start = time.perf_counter()
        store.fork("a", "b")
        found["fork"] = time.perf_counter() - start
        for kind in ("warm", "cold"):
            times = []
            for number in range(rounds):
                say(f"{length:,} tokens: going on, {kind} {number + 1} of {rounds}")
                if kind == "cold":
                    drop_from_system_cache(Path(folder))
                engine = new_engine(model, length)
                start = time.perf_counter()
                SessionStore(Path(folder)).restore(head, whole, engine.prefixes)
                restored = time.perf_counter() - start
                outputs, first = answer(engine, ids)
                check_same(expected, outputs, "the restored session")
                times.append((restored + first, restored))
            found[kind], found[f"{kind} restore"] = (
                statistics.median(values) for values in zip(*times, strict=True)
            )
            found[f"{kind} worst"] = max(total for total, _ in times)
        outputs, found["fork from disk"] = answer(engine, ids[:forked])
        check_same(fork_expected, outputs, "the restored session, forked inside its prompt,")
    return found


def main(
    checkpoint: Annotated[Path, typer.Option(help="An M1 or M2 checkpoint.")],
    lengths: Annotated[str, typer.Option(help="Tokens of the prompts.")] = "16384,65536,131072",
    rounds: Annotated[int, typer.Option(help="How often each session is restored.")] = 5,
) -> None:
    """Measures resuming against reading."""
    wanted = [int(length) for length in lengths.split(",")]
    with console.status("loading") as status:
        origin = fingerprint(checkpoint)
        model = load_model(checkpoint)
        parameters = count_parameters(model.config)
        rows = {length: measure(model, origin, length, rounds, status.update) for length in wanted}
    table = Table(
        title=f"{checkpoint.name}: {parameters.total / 1e6:.0f} M parameters, "
        f"{parameters.active / 1e6:.0f} M active; seconds to the first token"
    )
    columns = (
        "tokens", "read again", "resumed", "worst", "ratio", "after a reboot", "ratio", "save",
        "MB on disk", "fork",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right")
    for length, row in rows.items():
        table.add_row(
            f"{length:,}",
            f"{row['read']:.2f}",
            f"{row['warm']:.3f}",
            f"{row['warm worst']:.3f}",
            f"{row['read'] / row['warm']:.0f}x",
            f"{row['cold']:.3f}",
            f"{row['read'] / row['cold']:.0f}x",
            f"{row['save']:.2f}",
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['fork'] * 1e3:.1f} ms",
        )
    print_wide(table)
    threads = torch.get_num_threads()
    print_json("resume", {"checkpoint": checkpoint.name, "threads": threads, "rows": rows})


if __name__ == "__main__":
    run(main)
