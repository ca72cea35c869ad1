"""A Llama-shaped GGUF read as an M2.

A Llama block is an M2 block with one expert: without QK norm, with rotary embedding over the whole
head, and with a router of zeros over that single expert, whose weight is then exactly 1. So a GGUF
of architecture `llama` needs no model of its own: `read_config` gives M2's config.json,
`tensor_readers` M2's tensors, and `unpack` makes a checkpoint folder around the file. Scaled rotary
embedding, biases and several experts, which M2 cannot compute, are refused here. `gguf_file.py`
reads the container, `gguf_tokenizer.py` the vocabulary; the `gguf` package dequantises.
"""

import json
import math
import os
import reprlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from gguf.quants import dequantize

from fulmen.checkpoints.gguf_file import GgufFile, read_gguf_file
from fulmen.checkpoints.gguf_tokenizer import (
    build_tokenizer,
    read_generation_config,
    read_tokenizer_config,
    read_tokens,
)
from fulmen.families import refusal_of
from fulmen.files import replacing, shorten

WEIGHTS_NAME = "model.gguf"
"""Name of the weights in a folder that `unpack` made."""


def read_config(path: Path) -> dict[str, object]:
    """Return the model's config.json in the official spelling of M2."""
    return _to_config(_read_llama(read_gguf_file(path)))


def tensor_readers(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Return a function for every tensor, by its official M2 name, that reads it as float32.

    The whole header is checked before this returns. A function takes about twice its tensor.
    """
    file = read_gguf_file(path)
    llama = _read_llama(file)
    readers: dict[str, Callable[[], torch.Tensor]] = {
        name: partial(_load_tensor, file, source) for name, source in _map_tensors(llama)
    }
    for i in range(llama.num_hidden_layers):
        # Over one expert, any router gives the weight 1.
        router = partial(torch.zeros, 1, llama.hidden_size)
        readers[f"model.layers.{i}.block_sparse_moe.gate.weight"] = router
    return readers


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Read every tensor with its name, one at a time; as `tensor_readers`."""
    return ((name, read()) for name, read in tensor_readers(path).items())


def read_tokenizer(path: Path) -> str:
    """Return the text of the tokenizer.json that the GGUF's vocabulary and merges stand for."""
    return build_tokenizer(read_gguf_file(path))


def unpack(path: Path, folder: Path) -> None:
    """Make `folder` a checkpoint folder: the GGUF as model.gguf, and the small files read from it.

    The weights are hard-linked where the file system can, else copied. config.json is written
    last, so a folder that has one is complete.
    """
    file = read_gguf_file(path)
    llama = _read_llama(file)
    if (num_tokens := len(read_tokens(file))) > llama.vocab_size:
        raise ValueError(
            f"{path} has {num_tokens} tokens, and embeddings for only {llama.vocab_size}"
        )
    texts = {
        "tokenizer.json": build_tokenizer(file),
        "tokenizer_config.json": _to_json(read_tokenizer_config(file)),
        "generation_config.json": _to_json(read_generation_config(file)),
        "config.json": _to_json(_to_config(llama)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _link_or_copy(path, folder / WEIGHTS_NAME)
    for name, text in texts.items():
        with replacing(folder / name) as output:
            output.write(text.encode())


@dataclass(frozen=True, slots=True)
class _Llama:
    """Sizes in a Llama's metadata, in config.json's words."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool


_SIZE_KEYS = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
}

# Keys that change the mathematics, and the value at which they do not.
_NEUTRAL_VALUES: dict[str, object] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "attention.causal": True,
    "attention.sliding_window": 0,
    "attention.clamp_kqv": 0.0,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,
    # How the tensors lay in the file this one was converted from; in a GGUF they lie one way.
    "tensor_data_layout": "Meta AI original pth",
}


def _to_config(llama: _Llama) -> dict[str, object]:
    return {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "model_type": "minimax_m2",
        **asdict(llama),
        "attn_type_list": [1] * llama.num_hidden_layers,
        "num_local_experts": 1,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 0,
        "scoring_func": "sigmoid",
        "use_routing_bias": False,
        "use_qk_norm": False,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }


def _read_llama(file: GgufFile) -> _Llama:
    """Return the sizes, after making sure that they are all there is to the model."""
    architecture = file.get("general.architecture", str)
    if architecture.startswith("minimax"):
        refusal = refusal_of(architecture) or "Fulmen reads M1 and M2 from safetensors only"
        raise ValueError(
            f"{file.path} holds a model of architecture {shorten(architecture, 80)}: {refusal}"
        )
    if architecture != "llama":
        raise ValueError(
            f"{file.path} holds a model of architecture {shorten(architecture, 80)}, needed: llama"
        )
    if (num_parts := file.get("split.count", int, 1)) > 1:
        raise ValueError(f"{file.path} is one of {num_parts} parts, needed is a GGUF in one file")
    for key, value in file.metadata.items():
        prefix, _, name = key.partition(".")
        if prefix != "llama" or name in _SIZE_KEYS:
            continue
        if name not in _NEUTRAL_VALUES or value != _NEUTRAL_VALUES[name]:
            supported = _NEUTRAL_VALUES.get(name, "a model without it")
            raise ValueError(
                f"{file.path} has {key[:80]} = {reprlib.repr(value)}, needed is {supported}"
            )
    llama = _read_sizes(file)
    _check_tensors(file, llama)
    return llama


def _read_sizes(file: GgufFile) -> _Llama:
    def size(name: str, default: int | None = None) -> int:
        value = file.get(f"llama.{name}", int, default)
        if value < 1:
            raise ValueError(f"{file.path} has llama.{name} = {value}, it must be 1 or more")
        return value

    hidden_size = size("embedding_length")
    num_attention_heads = size("attention.head_count")
    num_key_value_heads = size("attention.head_count_kv", num_attention_heads)
    head_dim = size("attention.key_length", hidden_size // num_attention_heads)
    value_dim = size("attention.value_length", head_dim)
    rotary_dim = size("rope.dimension_count", head_dim)
    if num_attention_heads % num_key_value_heads != 0:
        raise ValueError(
            f"{file.path} has {num_attention_heads} query heads, which must be a multiple of its "
            f"{num_key_value_heads} key/value heads"
        )
    if not rotary_dim == value_dim == head_dim or head_dim % 2 != 0:
        raise ValueError(
            f"{file.path} has key heads of {head_dim}, value heads of {value_dim} and "
            f"rope.dimension_count {rotary_dim}, the three must be one even number"
        )
    embedding = file.entries.get("token_embd.weight")
    vocab_size = embedding.shape[0] if embedding else 1  # its absence is _check_tensors' to report
    return _Llama(
        vocab_size=size("vocab_size", vocab_size),
        hidden_size=hidden_size,
        num_hidden_layers=size("block_count"),
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        intermediate_size=size("feed_forward_length"),
        max_position_embeddings=size("context_length"),
        rope_theta=file.get("llama.rope.freq_base", float, 10000.0),
        rms_norm_eps=file.get("llama.attention.layer_norm_rms_epsilon", float),
        tie_word_embeddings="output.weight" not in file.entries,
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """Tensor of a GGUF that a checkpoint tensor is made from."""

    name: str
    shape: tuple[int, ...]
    num_interleaved_heads: int | None = None
    """Heads whose rows lie in the GGUF's rotary order; None for a tensor without heads."""


def _map_tensors(llama: _Llama) -> Iterator[tuple[str, _Source]]:
    """Return (name in the checkpoint, source) of every tensor that the file must hold."""
    hidden_size, intermediate_size = llama.hidden_size, llama.intermediate_size
    q_heads, kv_heads = llama.num_attention_heads, llama.num_key_value_heads
    q_size, kv_size = q_heads * llama.head_dim, kv_heads * llama.head_dim
    yield "model.embed_tokens.weight", _Source("token_embd.weight", (llama.vocab_size, hidden_size))
    for i in range(llama.num_hidden_layers):
        for name, source in {
            "input_layernorm": _Source("attn_norm", (hidden_size,)),
            "self_attn.q_proj": _Source("attn_q", (q_size, hidden_size), q_heads),
            "self_attn.k_proj": _Source("attn_k", (kv_size, hidden_size), kv_heads),
            "self_attn.v_proj": _Source("attn_v", (kv_size, hidden_size)),
            "self_attn.o_proj": _Source("attn_output", (hidden_size, q_size)),
            "post_attention_layernorm": _Source("ffn_norm", (hidden_size,)),
            "block_sparse_moe.experts.0.w1": _Source("ffn_gate", (intermediate_size, hidden_size)),
            "block_sparse_moe.experts.0.w2": _Source("ffn_down", (hidden_size, intermediate_size)),
            "block_sparse_moe.experts.0.w3": _Source("ffn_up", (intermediate_size, hidden_size)),
        }.items():
            whole_name = f"blk.{i}.{source.name}.weight"
            yield f"model.layers.{i}.{name}.weight", replace(source, name=whole_name)
    yield "model.norm.weight", _Source("output_norm.weight", (hidden_size,))
    if not llama.tie_word_embeddings:
        yield "lm_head.weight", _Source("output.weight", (llama.vocab_size, hidden_size))


def _check_tensors(file: GgufFile, llama: _Llama) -> None:
    needed = set()
    for _, source in _map_tensors(llama):
        if source.name not in file.entries:
            raise ValueError(f"{file.path} has no tensor {source.name}, which is needed")
        if (found := file.entries[source.name].shape) != source.shape:
            raise ValueError(
                f"{file.path} has {source.name} of shape {found}, needed is {source.shape}"
            )
        needed.add(source.name)
    for name in file.entries.keys() - needed:
        raise ValueError(
            f"{file.path} has a tensor {name[:80]}, which is not supported: needed is a Llama "
            "without biases, with one expert and unscaled rotary embedding"
        )


def _load_tensor(file: GgufFile, source: _Source) -> torch.Tensor:
    entry = file.entries[source.name]
    num_rows = math.prod(entry.shape[:-1])
    # Read, not mapped: pages of a map would count as memory in use.
    stored = np.fromfile(file.path, np.uint8, entry.num_bytes, offset=entry.start)
    packed = stored.reshape(num_rows, -1)
    try:
        values = dequantize(packed, entry.quantization)
    except NotImplementedError:
        raise ValueError(
            f"{file.path} stores {source.name} in {entry.quantization.name}, which the "
            "installed gguf package cannot turn into floats"
        ) from None
    if source.num_interleaved_heads is not None:
        # Row 2j + s of a GGUF head is row j + s * head_dim / 2 of a half-split (NeoX) head.
        head_rows = num_rows // source.num_interleaved_heads
        by_pair = values.reshape(source.num_interleaved_heads, head_rows // 2, 2, -1)
        values = by_pair.swapaxes(1, 2)
    # float32 is stored as it is, so its values are still the file: torch wants memory of its own.
    owned = np.require(values, np.float32, ["C", "W", "O"])
    return torch.from_numpy(owned.reshape(entry.shape))


def _to_json(values: dict[str, object]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _link_or_copy(path: Path, target: Path) -> None:
    if target.exists() and path.samefile(target):
        return
    link = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        os.link(path.resolve(), link)
    except OSError:  # another file system, or one without hard links
        with path.open("rb") as weights, replacing(target) as copy:
            shutil.copyfileobj(weights, copy, 1 << 20)
    else:
        link.replace(target)
