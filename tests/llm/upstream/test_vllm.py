"""The real vLLM, on the CPU, with a tiny model: an answer through it is the model's own.

FULMEN_VLLM_PYTHON=.../bin/python pytest -m slow tests/llm/upstream/test_vllm.py
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulmen.chat import ChatRequest, complete
from fulmen.llm import LLM, UpstreamModel
from tests.llm.upstream.test_upstream import CASES, MESSAGES, WEATHER, assert_same
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.slow
PYTHON = os.environ.get("FULMEN_VLLM_PYTHON")
OPTIONS = [
    *("--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", "512"),
    *("--max-num-seqs", "4", "--enable-prompt-tokens-details"),
]
LOADING_SECONDS = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny-m2", "m2")


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if PYTHON is None:
        pytest.skip("FULMEN_VLLM_PYTHON names no Python with vLLM in it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port), *OPTIONS],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"PATH": "/usr/bin:/bin", "HOME": str(log.parent), "VLLM_CPU_KVCACHE_SPACE": "1"},
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


async def connected(folder: Path, url: str) -> UpstreamModel:
    return await UpstreamModel.connect(str(folder), url, wait_seconds=LOADING_SECONDS)


@pytest.mark.parametrize("name", [name for name in CASES if name != "going in circles"])
def test_vllm_answers_as_the_model_by_itself(name: str, folder: Path, url: str) -> None:
    alone = LLM.load(str(folder))
    tools = [WEATHER] if "call" in name else []
    request = ChatRequest(messages=MESSAGES, tools=tools, params=CASES[name])

    async def main() -> None:
        async with await connected(folder, url) as model:
            assert model.name_of_server == "vLLM"
            assert model.max_model_len == 512
            found = await complete(model, request)
            assert_same(found, alone.chat(request), within=1e-2)
            assert found.usage.num_cached_tokens <= len(found.prompt_ids)

    asyncio.run(main())
