"""llama.cpp's llama-server with continuous batching, asked over HTTP as its users do.

It needs the target llama-server in the build folder, and a GGUF with a vocabulary, as
`gguf_files.py` makes it. Prompts are sent as token ids, every token comes back as an event. A
server is started for each measurement: it has as many slots as there are requests, each with room
for the longest.
"""

import http.client
import json
import random
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from arrivals import Trace
from peers import LOAD_SECONDS, Unmeasured, gguf_bits
from worker import WARMUP_NEW, WARMUP_PROMPT

from fulmen.bench import until_steady
from fulmen.bench.workload import TOUCH_TOKENS

HOST = "127.0.0.1"


class LlamaServer:
    """llama.cpp's server on one GGUF file.

    ubatch  tokens of one pass; its default of 512 reads experts more often, which is slower
    """

    def __init__(self, tool: Path, file: Path, *, threads: int, ubatch: int = 2048) -> None:
        gguf_bits(file)  # so that a file it cannot read is told before anything is measured
        self.name = f"llama-server {file.stem.rpartition('-')[2]}"
        self._command = [
            *(str(tool), "-m", str(file), "--host", HOST, "--offline", "--no-ui"),
            *("-t", str(threads), "-tb", str(threads)),
            *("-b", str(ubatch), "-ub", str(ubatch), "--cache-ram", "0", "-fit", "off"),
        ]

    def serve(self, trace: Trace, timeout_seconds: float) -> dict[str, Any]:
        """`times` of every token, in seconds after the first arrival."""
        count = len(trace.prompts)
        room = -(-max(trace.max_model_len, TOUCH_TOKENS + 1) // 256) * 256  # whole cells of its own
        options = ["-np", str(count), "-c", str(count * room)]
        with self._running(options) as port:
            _ask_all(port, _at_once(1, TOUCH_TOKENS, num_tokens=1), LOAD_SECONDS)

            def stretch() -> float:
                short = _at_once(count, WARMUP_PROMPT, num_tokens=WARMUP_NEW)
                return max(map(max, _ask_all(port, short, LOAD_SECONDS)))

            until_steady(stretch)
            return {"times": _ask_all(port, trace, timeout_seconds)}

    def close(self) -> None:
        """Nothing stays open."""

    @contextmanager
    def _running(self, options: Sequence[str]) -> Iterator[int]:
        """A server that is ready, and its port; ended afterwards."""
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        with tempfile.TemporaryFile("w+") as log:
            command = [*self._command, *options, "--port", str(port)]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                _wait_until_ready(process, port)
                yield port
            except (OSError, http.client.HTTPException, Unmeasured) as error:
                raise Unmeasured(f"{error}: {_last_words(log)}") from None
            finally:
                process.kill()
                process.wait()


def _at_once(count: int, length: int, *, num_tokens: int) -> Trace:
    """Random requests that come together."""
    prompts = [random.choices(range(1000), k=length) for _ in range(count)]
    return Trace(prompts=prompts, arrivals=[0.0] * count, num_tokens=num_tokens)


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + LOAD_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass  # it does not listen yet
        finally:
            connection.close()
        time.sleep(0.2)
    raise Unmeasured(f"llama-server is not ready, its status is {process.poll()}")


def _last_words(log: IO[str]) -> str:
    log.seek(0)
    lines = log.read().strip().splitlines() or [""]
    telling = [line for line in lines if "GGML_ASSERT" in line or "error" in line.lower()]
    return (telling or lines)[-1]


def _ask_all(port: int, trace: Trace, timeout_seconds: float) -> list[list[float]]:
    """Return when each token was there; a thread sends each request when it comes."""
    times: list[list[float]] = [[] for _ in trace.prompts]
    failures: list[str] = []
    start = time.perf_counter()

    def ask(index: int) -> None:
        time.sleep(max(0.0, trace.arrivals[index] - (time.perf_counter() - start)))
        try:
            for _ in _tokens(port, trace.prompts[index], trace.num_tokens, timeout_seconds):
                times[index].append(time.perf_counter() - start)
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(f"{type(error).__name__}: {error}")

    threads = [
        threading.Thread(target=ask, args=(index,), daemon=True)
        for index in range(len(trace.prompts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, timeout_seconds - (time.perf_counter() - start)))
    if any(thread.is_alive() for thread in threads):
        raise Unmeasured(f"more than {timeout_seconds:.0f} s")
    if failures:
        raise Unmeasured(failures[0])
    return times


def _tokens(
    port: int, prompt_ids: Sequence[int], num_tokens: int, timeout_seconds: float
) -> Iterator[int]:
    """The tokens of one request as they come."""
    question = {
        "prompt": list(prompt_ids),
        "n_predict": num_tokens,
        "stream": True,
        "return_tokens": True,
        "ignore_eos": True,
        "cache_prompt": False,
        "temperature": 0,
        "samplers": ["top_k"],
        "top_k": 1,
    }
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_seconds)
    try:
        connection.request(
            "POST", "/completion", json.dumps(question), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(300)!r}")
        for line in response:
            if line.startswith(b"data: "):
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise ValueError(str(event["error"]))
                if not event.get("stop"):
                    yield from event["tokens"]
    finally:
        connection.close()
