"""Cost of HTTP: tokens a second of a server's clients, beside the same load in its process.

    python benchmarks/over_http.py --model smollm2 --clients 1 --clients 8 --clients 32

Each client sends requests one after the other and reads every event of the streamed answer. The
load comes from the process of the engine, which reads `LocalModel`'s streams, or from a process of
its own, which reads Chat Completions over a loopback socket. Rounds alternate. First the answers:
both ways must say the same. A ratio is HTTP's tokens a second over the others', by round.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

import torch
import typer
from measure import console, label, print_json, print_setup, run
from rich.table import Table

from fulmen.catalog import resolve
from fulmen.checkpoints import read_config

WORDS = ("river", "clock", "paper", "stone", "cloud", "light", "bread", "glass")
Answer = Callable[[list[dict[str, str]]], Awaitable[str]]


def messages_of(client: int, number: int) -> list[dict[str, str]]:
    """Return a question that no other request begins like."""
    word = WORDS[(client + number) % len(WORDS)]
    text = f"{client}.{number}: write a long story about a {word} and how it came to be there."
    return [{"role": "user", "content": text}]


async def load(answer: Answer, num_clients: int, num_requests: int) -> tuple[float, list[str]]:
    """Return the seconds that all requests took together, and their answers."""

    async def client(number: int) -> list[str]:
        return [await answer(messages_of(number, place)) for place in range(num_requests)]

    started = time.perf_counter()
    texts = await asyncio.gather(*map(client, range(num_clients)))
    return time.perf_counter() - started, [text for answers in texts for text in answers]


# ---- over HTTP


def over_http(url: str, num_tokens: int) -> Answer:
    """Return what asks a server, on a connection of its own."""
    parts = urlsplit(url)

    async def answer(messages: list[dict[str, str]]) -> str:
        body = json.dumps(
            {
                "messages": messages,
                "max_tokens": num_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        text: list[str] = []
        async for line in reader:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:]).get("choices", ()):
                    text.append(choice["delta"].get("content") or "")
        writer.close()
        await writer.wait_closed()
        return "".join(text)

    return answer


# ---- in the engine's process


async def work(model_name: str, num_tokens: int, num_seqs: int) -> None:
    """Serve a model, and run the load here when told to on stdin."""
    from fulmen.chat import ChatRequest, ContentDelta
    from fulmen.engine import EngineConfig
    from fulmen.llm import LocalModel
    from fulmen.sampling import SamplingParams
    from fulmen.server import ServerConfig, create_app, serve

    async with await LocalModel.load(
        model_name, engine_config=EngineConfig(max_num_seqs=num_seqs)
    ) as model:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)

        async def answer(messages: list[dict[str, str]]) -> str:
            request = ChatRequest(messages=messages, params=params)
            text: list[str] = []
            async with model.stream(request) as stream:
                async for event in stream:
                    if isinstance(event, ContentDelta):
                        text.append(event.text)
            return "".join(text)

        config = ServerConfig(port=0, max_queued=1000)
        app = create_app(model, config)
        serving = asyncio.ensure_future(serve(app, config, on_ready=say))
        while line := await asyncio.to_thread(sys.stdin.readline):
            num_clients, num_requests = map(int, line.split())
            say(json.dumps(await load(answer, num_clients, num_requests)))
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def say(line: str) -> None:
    print(line, flush=True)


async def compare(
    command: Sequence[str], clients: Sequence[int], num_tokens: int, num_requests: int, rounds: int
) -> list[dict[str, Any]]:
    """Return the measurements of each number of clients."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24
    )
    assert process.stdin is not None
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    if not url:
        raise ValueError("the server ended before it took requests, see above")
    rows: list[dict[str, Any]] = []

    async def inside(num_clients: int) -> tuple[float, list[str]]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{num_clients} {num_requests}\n".encode())
        seconds, texts = json.loads(await process.stdout.readline())
        return seconds, texts

    try:
        for num_clients in clients:
            http = over_http(url, num_tokens)
            # Both have everything warm, and say the same.
            _, expected = await inside(num_clients)
            _, found = await load(http, num_clients, num_requests)
            if expected != found:
                raise RuntimeError("HTTP gave other answers than the stream in the process")
            count = num_clients * num_requests * num_tokens
            speeds: list[tuple[float, float]] = []
            for place in range(rounds):
                ways = [inside(num_clients), load(http, num_clients, num_requests)]
                if place % 2:
                    second, first = (await ways[1])[0], (await ways[0])[0]
                else:
                    first, second = (await ways[0])[0], (await ways[1])[0]
                speeds.append((count / first, count / second))
            ratios = sorted(there / here for here, there in speeds)
            rows.append(
                {
                    "clients": num_clients,
                    "in_process_tokens_per_s": statistics.median(here for here, _ in speeds),
                    "http_tokens_per_s": statistics.median(there for _, there in speeds),
                    "ratio": statistics.median(ratios),
                    "ratio_low": ratios[0],
                    "ratio_high": ratios[-1],
                }
            )
    finally:
        process.stdin.close()
        await process.wait()
    return rows


def main(
    model: Annotated[str, typer.Option(help="Model to serve.")] = "smollm2",
    clients: Annotated[list[int] | None, typer.Option(help="Clients at once.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 64,
    requests: Annotated[int, typer.Option(help="Requests of each client.")] = 2,
    rounds: Annotated[int, typer.Option(help="Alternating rounds.")] = 5,
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    counts = clients or [1, 8, 32]
    if worker:
        asyncio.run(work(model, tokens, max(counts)))
        return
    command = [sys.executable, __file__, "--worker", "--model", model, "--tokens", str(tokens)]
    command += [part for count in counts for part in ("--clients", str(count))]
    config = read_config(resolve(model))
    setup = print_setup(torch.get_num_threads(), {model: config})
    rows = asyncio.run(compare(command, counts, tokens, requests, rounds))
    columns = ("clients", "in process, tokens/s", "HTTP, tokens/s", "ratio", "from", "to")
    table = Table(*columns, title=label(model, config))
    for row in rows:
        speeds = (row["in_process_tokens_per_s"], row["http_tokens_per_s"])
        ratios = (row["ratio"], row["ratio_low"], row["ratio_high"])
        table.add_row(
            str(row["clients"]),
            *(f"{speed:.1f}" for speed in speeds),
            *(f"{ratio:.3f}" for ratio in ratios),
        )
    console.print(table)
    values = {"model": model, **setup, "tokens": tokens, "rounds": rounds, "rows": rows}
    print_json("over_http", values)


if __name__ == "__main__":
    run(main)
