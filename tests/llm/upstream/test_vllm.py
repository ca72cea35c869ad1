"""The real vLLM, on the CPU, with a tiny model: an answer through it is the model's own.

FULMEN_VLLM_PYTHON=.../bin/python pytest -m slow tests/llm/upstream/test_vllm.py
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fulmen.chat import ChatRequest, complete
from fulmen.llm import LLM, UpstreamModel
from tests.llm.upstream.test_upstream import CASES, MESSAGES, WEATHER, assert_same
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.slow
PYTHON = os.environ.get("FULMEN_VLLM_PYTHON")
OPTIONS = [
    *("--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"),
    *("--max-num-seqs", "4", "--enable-prompt-tokens-details"),
]
LOADING_SECONDS = 600


ONE_EXPERT = {
    **{"hidden_size": 64, "head_dim": 32, "rotary_dim": 32, "intermediate_size": 64},
    **{"num_local_experts": 1, "num_experts_per_tok": 1},
    **{"use_qk_norm": False, "use_routing_bias": False},
}
EXPERT = "block_sparse_moe.experts.0"
OF_LLAMA = {"w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny-m2", "m2", **ONE_EXPERT)


@pytest.fixture(scope="module")
def llama(folder: Path) -> Path:
    """Copy of the weights in the shape of a Llama."""
    llama = folder.with_name("llama")
    shutil.copytree(folder, llama)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    (llama / "config.json").write_text(json.dumps(config))
    weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if "block_sparse_moe.gate" in name:
            continue  # the one expert has all of the weight
        for of_m2, of_llama in OF_LLAMA.items():
            name = name.replace(f"{EXPERT}.{of_m2}", of_llama)
        weights[name] = weight
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    return llama


@pytest.fixture(scope="module")
def url(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if PYTHON is None:
        pytest.skip("FULMEN_VLLM_PYTHON names no Python with vLLM in it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.cli.main", "serve", str(llama)]
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
            assert model.max_model_len == 1024
            found = await complete(model, request)
            assert_same(found, alone.chat(request), within=1e-2)
            assert found.usage.num_cached_tokens <= len(found.prompt_ids)

    asyncio.run(main())
