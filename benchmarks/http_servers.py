"""Servers asked over HTTP as their users do: ours, llama.cpp's llama-server, vLLM's.

All get prompts as token ids and stream their tokens back. A server is started for each measurement,
with as many places as there are requests and room for the longest. Each request is a thread of this
process that reads events as they come: the same work for every server, on the same cores.

llama-server is a target of llama.cpp's build folder and needs a GGUF with a vocabulary, as
`gguf_files.py` makes it. Ours and vLLM's need a tokenizer beside the weights, which a random
checkpoint has not: they get a folder of links to its files with a vocabulary of made-up words.
"""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, product
from pathlib import Path
from typing import IO, Any

from arrivals import Trace
from peers import LOAD_SECONDS, Unmeasured, gguf_bits, vllm_environment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from worker import WARMUP_NEW, WARMUP_PROMPT

from fulmen.bench import until_steady
from fulmen.bench.workload import TOUCH_TOKENS
from fulmen.files import read_json

HOST = "127.0.0.1"
END_SECONDS = 20.0
"""Time in which a server may end by itself"""


class HttpServer(ABC):
    """A server that is started, asked over HTTP and ended for each measurement."""

    name: str
    path: str
    """Path that takes prompts"""
    environment: Mapping[str, str] = {}

    @abstractmethod
    def command(self, port: int, num_places: int, room: int) -> list[str]:
        """Return what starts it; room: tokens that each of its places must hold."""

    @abstractmethod
    def question(self, prompt_ids: Sequence[int], num_tokens: int) -> dict[str, Any]:
        """Return the body that asks for a greedy answer of so many tokens."""

    @abstractmethod
    def token_ids(self, event: dict[str, Any]) -> list[int]:
        """Return the new tokens of an event."""

    def serve(
        self, trace: Trace, timeout_seconds: float, *, warms_up: bool = True
    ) -> dict[str, Any]:
        """`times` of every token, in seconds after the first arrival, and `token_ids`."""
        count = len(trace.prompts)
        with self._running(count, max(trace.max_model_len, TOUCH_TOKENS + 1)) as port:
            if warms_up:
                self._ask_all(port, _at_once(1, TOUCH_TOKENS, num_tokens=1), LOAD_SECONDS)

                def stretch() -> float:
                    short = _at_once(count, WARMUP_PROMPT, num_tokens=WARMUP_NEW)
                    times = self._ask_all(port, short, LOAD_SECONDS)["times"]
                    return float(max(map(max, times)))

                until_steady(stretch)
            return self._ask_all(port, trace, timeout_seconds)

    def close(self) -> None:  # noqa: B027 - it is whole: nothing stays open between measurements
        """Nothing stays open."""

    @contextmanager
    def _running(self, num_places: int, room: int) -> Iterator[int]:
        """A server that is ready, and its port; ended afterwards."""
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                self.command(port, num_places, room),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
            try:
                self._wait_until_ready(process, port)
                yield port
            except (OSError, http.client.HTTPException, Unmeasured) as error:
                raise Unmeasured(f"{error}: {_last_words(log)}") from None
            finally:
                _end(process)

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]", port: int) -> None:
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
        raise Unmeasured(f"{self.name} is not ready, its status is {process.poll()}")

    def _ask_all(self, port: int, trace: Trace, timeout_seconds: float) -> dict[str, Any]:
        """Return when each token was there, and which it was; a thread sends each request when it
        comes."""
        times: list[list[float]] = [[] for _ in trace.prompts]
        ids: list[list[int]] = [[] for _ in trace.prompts]
        failures: list[str] = []
        start = time.perf_counter()

        def ask(index: int) -> None:
            time.sleep(max(0.0, trace.arrivals[index] - (time.perf_counter() - start)))
            question = self.question(trace.prompts[index], trace.num_tokens)
            try:
                for event in _events(port, self.path, question, timeout_seconds):
                    new = self.token_ids(event)
                    times[index] += [time.perf_counter() - start] * len(new)
                    ids[index] += new
            except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
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
        return {"times": times, "token_ids": ids}


class FulmenServer(HttpServer):
    """`fulmen serve`: places and room as the requests need, pieces of prompts as they are given, no
    log of answers, and its defaults for the rest."""

    path = "/v1/completions"

    def __init__(self, checkpoint: Path, folder: Path, *, threads: int, chunk: int) -> None:
        """folder: takes the links; chunk: tokens of one forward pass of a prompt"""
        self.name = f"fulmen {checkpoint.resolve().name}, HTTP"
        self._folder = with_tokenizer(checkpoint, folder)
        self._chunk = chunk
        self.environment = {"OMP_NUM_THREADS": str(threads)}

    def command(self, port: int, num_places: int, room: int) -> list[str]:
        return [
            *(sys.executable, "-m", "fulmen", "serve", str(self._folder), "--port", str(port)),
            *("--max-num-seqs", str(num_places), "--max-model-len", str(room)),
            *("--max-num-batched-tokens", str(self._chunk), "--no-transcripts"),
        ]

    def question(self, prompt_ids: Sequence[int], num_tokens: int) -> dict[str, Any]:
        return _completion(prompt_ids, num_tokens) | {"model": self._folder.name}

    def token_ids(self, event: dict[str, Any]) -> list[int]:
        return _ids_of_choice(event)


class LlamaServer(HttpServer):
    """llama.cpp's server with continuous batching, on one GGUF file."""

    path = "/completion"

    def __init__(self, tool: Path, file: Path, *, threads: int, ubatch: int = 2048) -> None:
        """ubatch: tokens of one pass; its default of 512 reads experts more often, which is
        slower"""
        gguf_bits(file)  # so that a file it cannot read is told before anything is measured
        self.name = f"llama-server {file.stem.rpartition('-')[2]}"
        self._command = [
            *(str(tool), "-m", str(file), "--host", HOST, "--offline", "--no-ui"),
            *("-t", str(threads), "-tb", str(threads)),
            *("-b", str(ubatch), "-ub", str(ubatch), "--cache-ram", "0", "-fit", "off"),
        ]

    def command(self, port: int, num_places: int, room: int) -> list[str]:
        room = -(-room // 256) * 256  # whole cells of its own
        options = ("-np", str(num_places), "-c", str(num_places * room), "--port", str(port))
        return [*self._command, *options]

    def question(self, prompt_ids: Sequence[int], num_tokens: int) -> dict[str, Any]:
        return {
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

    def token_ids(self, event: dict[str, Any]) -> list[int]:
        return [] if event.get("stop") else event["tokens"]


class VllmServer(HttpServer):
    """vLLM's server of its CPU build, with a Python that has it; see `peers.vllm_cpu`."""

    path = "/v1/completions"

    def __init__(self, python: Path, checkpoint: Path, folder: Path, *, threads: int) -> None:
        """folder: takes the links"""
        self.name = "vllm-cpu, HTTP"
        self._folder = with_tokenizer(checkpoint, folder)
        self._python = python
        self.environment = vllm_environment(python, threads)

    def command(self, port: int, num_places: int, room: int) -> list[str]:
        return [
            *(str(self._python), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(self._folder), "--host", HOST, "--port", str(port)),
            *("--dtype", "bfloat16", "--max-model-len", str(room)),
            *("--max-num-seqs", str(num_places), "--no-enable-prefix-caching"),
            *("--served-model-name", "model", "--enforce-eager"),
        ]

    def question(self, prompt_ids: Sequence[int], num_tokens: int) -> dict[str, Any]:
        return _completion(prompt_ids, num_tokens) | {"model": "model"}

    def token_ids(self, event: dict[str, Any]) -> list[int]:
        return _ids_of_choice(event)


def with_tokenizer(checkpoint: Path, folder: Path) -> Path:
    """Return a folder of links to a checkpoint's files with a tokenizer of made-up words: one id a
    byte, then words of four letters, then the format's control tokens."""
    config = read_json(checkpoint / "config.json")  # a stand-in's is none that we read
    vocab_size = config["vocab_size"]
    assert isinstance(vocab_size, int)
    control = _M1_CONTROL if "attn_type_list" in config else _M2_CONTROL
    folder = folder / checkpoint.resolve().name
    folder.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if not file.name.startswith("tokenizer"):
            (folder / file.name).symlink_to(file.resolve())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ("".join(word) for word in product(letters, repeat=4))
    count = vocab_size - len(control) - len(alphabet)
    vocabulary = {word: place for place, word in enumerate([*alphabet, *islice(words, count)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": control[2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return folder


_M1_CONTROL = ("<begin_of_document>", "<beginning_of_sentence>", "<end_of_sentence>")
_M2_CONTROL = ("]~!b[", "]~b]", "[e~[")


def _completion(prompt_ids: Sequence[int], num_tokens: int) -> dict[str, Any]:
    """Return OpenAI's body of a completion, with vLLM's fields, which ours takes too."""
    return {
        "prompt": list(prompt_ids),
        "max_tokens": num_tokens,
        "stream": True,
        "return_token_ids": True,
        "ignore_eos": True,
        "temperature": 0,
    }


def _ids_of_choice(event: dict[str, Any]) -> list[int]:
    return [token_id for choice in event["choices"] for token_id in choice.get("token_ids") or ()]


def _at_once(count: int, length: int, *, num_tokens: int) -> Trace:
    """Random requests that come together."""
    prompts = [random.choices(range(1000), k=length) for _ in range(count)]
    return Trace(prompts=prompts, arrivals=[0.0] * count, num_tokens=num_tokens)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a server and all that it started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(log: IO[str]) -> str:
    log.seek(0)
    lines = log.read().strip().splitlines() or [""]
    telling = [line for line in lines if "GGML_ASSERT" in line or "error" in line.lower()]
    return (telling or lines)[-1]


def _events(
    port: int, path: str, question: dict[str, Any], timeout_seconds: float
) -> Iterator[dict[str, Any]]:
    """The events of one answer as they come."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_seconds)
    try:
        connection.request("POST", path, json.dumps(question), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(300)!r}")
        for line in response:
            data = line.removeprefix(b"data: ").strip()
            if line.startswith(b"data: ") and data != b"[DONE]":
                event = json.loads(data)
                if "error" in event:
                    raise ValueError(str(event["error"]))
                yield event
    finally:
        connection.close()
