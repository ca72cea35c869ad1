"""fulmen serve --upstream: both dialects before a server that holds the weights."""

import json
import shutil
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fulmen.llm import LLM
from fulmen.sampling import SamplingParams
from tests.cli.test_cli import called
from tests.cli.test_serve import ask, served
from tests.llm.upstream.fakes import Fake, running
from tests.llm.upstream.test_faults import dies, liar, sse, text_ids
from tests.tiny import write_checkpoint

MESSAGES = [{"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0, "max_tokens": 30, "thinking": {"type": "disabled"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny-m2", "m2")


@pytest.fixture(scope="module")
def bare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder without its weights."""
    bare = tmp_path_factory.mktemp("bare") / "tiny-m2"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors*"))
    return bare


@pytest.fixture(scope="module")
def fake(folder: Path) -> Fake:
    return Fake(LLM.load(str(folder)), "vllm")


@pytest.fixture(scope="module")
def url(fake: Fake) -> Iterator[str]:
    with running(fake.app()) as url:
        yield url


def stream(url: str, body: dict[str, Any]) -> tuple[str, str]:
    """Return the text that a stream of events sends, and all of its last event."""
    data = json.dumps({**body, "stream": True}).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = [line[6:] for line in answer.read().decode().splitlines() if line[:6] == "data: "]
    *events, last = [line for line in lines if line != "[DONE]"]
    text = ""
    for event in map(json.loads, events):
        for choice in event.get("choices", ()):
            text += choice["delta"].get("content") or ""
        text += event.get("delta", {}).get("text", "")
    return text, last


def test_both_dialects_answer_as_the_model_by_itself(
    folder: Path, bare: Path, url: str, tmp_path: Path
) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, thinking_budget=0)
    alone = LLM.load(str(folder)).chat(MESSAGES, params=params)
    body = {"model": "any", "messages": MESSAGES, **GREEDY}
    with served(bare, "--upstream", url, home=tmp_path) as (_, front, printed):
        status, chat = ask(f"{front}/v1/chat/completions", body)
        assert status == 200
        assert chat["choices"][0]["message"]["content"] == alone.reply.content
        assert chat["usage"]["completion_tokens"] == len(alone.tokens)
        status, message = ask(f"{front}/v1/messages", body)
        assert status == 200
        assert "".join(part["text"] for part in message["content"]) == alone.reply.content
        again = {**body, "messages": [*MESSAGES, chat["choices"][0]["message"], *MESSAGES]}
        _, second = ask(f"{front}/v1/chat/completions", again)
        assert second["fulmen"]["turns"][0]["state"] == "matched"
    assert "a vLLM server: " in printed[1]


async def dies_at_first(number: int) -> AsyncIterator[bytes]:
    """Break off in each of the requests that two answers are taken up with."""
    if number > 8:
        yield sse(text_ids("Fine."), finish_reason="stop")
        return
    async for each in dies(number):
        yield each


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_an_upstream_that_dies_is_a_sentence_and_what_was_said_is_in_the_log(
    path: str, bare: Path, tmp_path: Path
) -> None:
    body = {"model": "any", "messages": MESSAGES, **GREEDY, "max_tokens": 100}
    with running(liar(dies_at_first)) as url, served(bare, "--upstream", url, home=tmp_path) as its:
        front = its[1]
        status, refusal = ask(front + path, body)
        assert status == 502
        assert refusal["error"]["message"].startswith("the answer of vLLM broke off")
        said, last = stream(front + path, body)
        assert said == "Half an ans" * 4  # it was taken up three times
        assert json.loads(last)["error"]["message"].startswith("the answer of vLLM broke off")
        history = [*MESSAGES, {"role": "assistant", "content": said}, *MESSAGES]
        status, answer = ask(front + path, {**body, "messages": history})
        assert status == 200
        assert answer["fulmen"]["turns"][0]["state"] == "matched"
    assert f"the answer of {url}/v1/completions broke off" in its[2][1]


def test_what_cannot_be_is_a_sentence(bare: Path, url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    for arguments, sentence in {
        ("--upstream", f"http://127.0.0.1:{port}", "--upstream-wait", "0.2"): "cannot be reached",
        ("--upstream", "gpu:30000"): "it must look like http://",
        ("--upstream", url, "--upstream-kind", "sglang"): "is no SGLang",
        ("--upstream", url, "--kv-cache", "1GiB"): "--kv-cache is given with --upstream",
        ("--upstream", url, "--dtype", "float32"): "--dtype is given with --upstream",
        ("--upstream-kind", "vllm"): "--upstream-kind is given without --upstream",
        ("--upstream-wait", "1"): "--upstream-wait is given without --upstream",
        ("--upstream-timeout", "600"): "--upstream-timeout is given without --upstream",
        ("--upstream", url, "--sessions", "kept"): "--sessions is given with --upstream",
        ("--upstream", "http://me:secret@h:99999"): "http://h:99999 is no URL",
        ("--upstream", url, "--upstream-wait", "soon"): "no finite number",
    }.items():
        run = called("serve", bare, "--port", "0", "--no-transcripts", *arguments)
        assert run.returncode != 0
        assert sentence in " ".join(run.stderr.split()), run.stderr
        assert "Traceback" not in run.stderr
        assert "secret" not in run.stderr


def test_a_key_in_the_address_is_not_printed(bare: Path, url: str, tmp_path: Path) -> None:
    address = url.replace("http://", "http://me:secret@")
    with served(bare, "--upstream", address, home=tmp_path) as (_, _, printed):
        pass
    assert f" is at {url}, " in printed[1]
    assert "secret" not in "".join(printed)
