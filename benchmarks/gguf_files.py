"""GGUF files of a checkpoint for llama.cpp, with the same weights.

    python benchmarks/gguf_files.py CHECKPOINT OUT --llama-cpp BUILD --types bf16,q8_0,q4_0

BUILD is a build folder of llama.cpp (see peers.py); types other than bf16 need its llama-quantize.
Its own converter wants a tokenizer, which a random checkpoint has not: here the same names and
fields are written with a vocabulary of numbers, without which llama-server ends.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import gguf
import numpy as np
import torch
import typer
from measure import run
from peers import Unmeasured, find_tool, output_of

from fulmen.checkpoints import Checkpoint, read_config
from fulmen.models import M1Config
from fulmen.models.tensors import TensorSpec


def make_ggufs(checkpoint: Path, out: Path, build: Path, types: Sequence[str]) -> list[Path]:
    """The GGUF files OUT/NAME-TYPE.gguf, those that are not there yet made from the checkpoint."""
    name = checkpoint.resolve().name
    source = out / f"{name}-bf16.gguf"
    files = {kind: out / f"{name}-{kind}.gguf" for kind in types}
    missing = {kind: file for kind, file in files.items() if not file.exists()}
    rounded = {kind: file for kind, file in missing.items() if file != source}
    quantize = str(find_tool(build, "llama-quantize")) if rounded else ""
    out.mkdir(parents=True, exist_ok=True)
    if missing and not source.exists():
        with _whole(source) as part:
            write_gguf(checkpoint, part)
    for kind, file in rounded.items():
        with _whole(file) as part:
            try:
                output_of([quantize, str(source), str(part), kind.upper()], 3600)
            except Unmeasured as reason:
                raise ValueError(f"{file} cannot be made: {reason}") from None
    return list(files.values())


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes the file if all goes well and is removed if not."""
    part = file.with_name(f"{file.name}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


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
