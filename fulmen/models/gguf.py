"""A Llama-shaped GGUF read into the M2 container.

A Llama block is an M2 block with one expert: without QK norm, with rotary embedding over the whole
head, and with a router of zeros over that single expert, whose weight is then exactly 1. So a GGUF
of architecture `llama` needs no model of its own: `read_config` says it in the words of M2's
config.json, `tensor_readers` gives M2's tensors, and `unpack` makes a checkpoint folder around the
file. What M2 cannot compute (scaled rotary embedding, biases, several experts) is refused here;
`gguf_tokenizer.py` reads the vocabulary.

The header is parsed in this file: the `gguf` package's own reader takes seconds for a vocabulary
and its errors are numpy's. The package's tables and dequantisation do the rest.
"""

import json
import math
import os
import reprlib
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from fulmen.files import replacing
from fulmen.models.gguf_tokenizer import (
    build_tokenizer,
    read_generation_config,
    read_tokenizer_config,
    read_tokens,
)

T = TypeVar("T")

WEIGHTS_NAME = "model.gguf"
"""What the weights are called in a folder that `unpack` made."""


def read_config(path: Path) -> dict[str, object]:
    """The model's config.json in the official spelling of M2."""
    return _to_config(_read_llama(_read_header(path)))


def tensor_readers(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """For every tensor, by its name in an official M2 checkpoint, what reads it as float32.

    The whole header is checked before this returns. A reader takes about twice its tensor.
    """
    file = _read_header(path)
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
    """Every tensor with its name, one at a time; as `tensor_readers`."""
    return ((name, read()) for name, read in tensor_readers(path).items())


def read_tokenizer(path: Path) -> str:
    """The text of the tokenizer.json that the GGUF's vocabulary and merges stand for."""
    return build_tokenizer(_read_header(path))


def unpack(path: Path, folder: Path) -> None:
    """Makes `folder` a checkpoint folder: the GGUF as model.gguf, and the small files read from it.

    The weights are hard-linked where the file system can, else copied. config.json is written
    last, so a folder that has one is complete.
    """
    file = _read_header(path)
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


# The header: magic, version, counts, metadata, then one entry a tensor.

_SCALAR_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]
    """As torch counts it: the last dimension is contiguous."""
    quantization: GGMLQuantizationType
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class File:
    """A GGUF whose header is read."""

    path: Path
    mapped: npt.NDArray[np.uint8]
    """(file size,), a read-only map."""
    metadata: dict[str, object]
    entries: dict[str, _Entry]

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The metadata value of `key`, which must be of `kind`; without a default it must exist."""
        value = self.metadata.get(key, default)
        if value is None:
            raise ValueError(f"{self.path} has no {key} in its metadata, which is needed")
        if not isinstance(value, kind):
            raise ValueError(
                f"{self.path} has {key} = {reprlib.repr(value)}, it must be {kind.__name__}"
            )
        return value

    def get_strings(self, key: str) -> list[str]:
        """The metadata value of `key`, which must be a list of texts."""
        values = self.get(key, list)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{self.path} has {key} that are not texts")
        return values


class _Cursor:
    """Reads little-endian values one after another; what lies past the end is a ValueError."""

    def __init__(self, path: Path, mapped: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self.memory = mapped.data
        self.position = 0

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if end > len(self.memory):
            raise ValueError(
                f"{self.path} is cut short or damaged: its header goes on past byte "
                f"{len(self.memory)}, the last it has"
            )
        taken = self.memory[self.position : end]
        self.position = end
        return taken

    def numbers(self, layout: str, count: int = 1) -> list[Any]:
        """`count` values of one `struct` letter."""
        taken = self.take(struct.calcsize(f"<{layout}") * count)
        return list(struct.unpack(f"<{count}{layout}", taken))

    def number(self, layout: str) -> Any:
        return self.numbers(layout)[0]

    def string(self) -> str:
        return str(self.take(self.number("Q")), "utf-8")

    def strings(self, count: int) -> list[str]:
        """`count` texts. A vocabulary has a hundred thousand, hence one loop without calls."""
        memory, size_at = self.memory, struct.Struct("<Q").unpack_from
        position, limit = self.position, len(self.memory)
        texts = []
        for _ in range(count):
            start = position + 8
            position = start + size_at(memory, position)[0] if start <= limit else limit + 1
            if position > limit:
                self.take(limit)  # says that the file is cut short
            texts.append(str(memory[start:position], "utf-8"))
        self.position = position
        return texts

    def value_type(self) -> GGUFValueType:
        number = self.number("I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise ValueError(
                f"{self.path} is damaged: its metadata holds a value of type {number}, which no "
                "GGUF has"
            ) from None

    def value(self) -> object:
        kind = self.value_type()
        if kind != GGUFValueType.ARRAY:
            return self.string() if kind == GGUFValueType.STRING else self._scalar(kind)
        kind, count = self.value_type(), self.number("Q")
        if kind == GGUFValueType.ARRAY:
            raise ValueError(f"{self.path} holds an array of arrays, which is not supported")
        if kind == GGUFValueType.STRING:
            return self.strings(count)
        return self.numbers(_SCALAR_FORMATS[kind], count)

    def _scalar(self, kind: GGUFValueType) -> object:
        value = self.number(_SCALAR_FORMATS[kind])
        # 1e-05 is stored as 9.999999747378752e-06; the shortest decimal is what its author wrote.
        return float(str(np.float32(value))) if kind == GGUFValueType.FLOAT32 else value


def _read_header(path: Path) -> File:
    # Mapping an empty file is an error of its own.
    mapped = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    cursor = _Cursor(path, mapped)
    if mapped[:4].tobytes() != b"GGUF":
        raise ValueError(f"{path} is not a GGUF: it does not begin with the letters GGUF")
    cursor.take(4)
    version = cursor.number("I")
    if version not in (2, 3):
        found = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise ValueError(f"{path} is a {found} GGUF, needed is a little-endian one, version 2 or 3")
    num_tensors, num_values = cursor.numbers("Q", 2)
    try:
        metadata = {cursor.string(): cursor.value() for _ in range(num_values)}
        tensors = [_read_tensor_header(cursor) for _ in range(num_tensors)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: a text in its header is not UTF-8") from error
    file = File(path, mapped, metadata, {})
    alignment = file.get("general.alignment", int, 32)
    if alignment < 1:
        raise ValueError(f"{path} has general.alignment = {alignment}, it must be 1 or more")
    data_start = -(-cursor.position // alignment) * alignment
    for name, shape, quantization, offset in tensors:
        file.entries[name] = _place(file, name, shape, quantization, data_start + offset)
    return file


def _read_tensor_header(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, quantisation id, and offset from the start of the data."""
    name = cursor.string()
    dimensions = cursor.numbers("Q", cursor.number("I"))
    return name, tuple(reversed(dimensions)), cursor.number("I"), cursor.number("Q")


def _place(file: File, name: str, shape: tuple[int, ...], type_id: int, start: int) -> _Entry:
    try:
        quantization = GGMLQuantizationType(type_id)
        block_size, block_bytes = GGML_QUANT_SIZES[quantization]
    except (ValueError, KeyError):
        raise ValueError(
            f"{file.path} stores {name} in quantisation {type_id}, which the installed gguf "
            "package does not know"
        ) from None
    if not shape or shape[-1] % block_size != 0:
        raise ValueError(
            f"{file.path} stores {name} of shape {shape} in {quantization.name}, which needs rows "
            f"of a multiple of {block_size} values"
        )
    num_bytes = math.prod(shape) // block_size * block_bytes
    if start + num_bytes > len(file.mapped):
        raise ValueError(
            f"{file.path} is cut short: it has {len(file.mapped)} bytes and {name} ends at byte "
            f"{start + num_bytes}"
        )
    return _Entry(shape, quantization, start, num_bytes)


# The model: sizes from the metadata, checked against the tensors.


@dataclass(frozen=True, slots=True)
class _Llama:
    """What a Llama's metadata says, in config.json's words."""

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


def _read_llama(file: File) -> _Llama:
    """The sizes, after making sure that they are all there is to the model."""
    architecture = file.get("general.architecture", str)
    if architecture != "llama":
        raise ValueError(f"{file.path} holds a model of architecture {architecture}, needed: llama")
    if (num_parts := file.get("split.count", int, 1)) > 1:
        raise ValueError(f"{file.path} is one of {num_parts} parts, needed is a GGUF in one file")
    for key, value in file.metadata.items():
        prefix, _, name = key.partition(".")
        if prefix != "llama" or name in _SIZE_KEYS:
            continue
        if name not in _NEUTRAL_VALUES or value != _NEUTRAL_VALUES[name]:
            supported = _NEUTRAL_VALUES.get(name, "a model without it")
            raise ValueError(
                f"{file.path} has {key} = {reprlib.repr(value)}, needed is {supported}"
            )
    llama = _read_sizes(file)
    _check_tensors(file, llama)
    return llama


def _read_sizes(file: File) -> _Llama:
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
    """What a checkpoint tensor is made from."""

    name: str
    """In the GGUF."""
    shape: tuple[int, ...]
    num_interleaved_heads: int | None = None
    """How many heads have their rows in the GGUF's rotary order; None where order is no matter."""


def _map_tensors(llama: _Llama) -> Iterator[tuple[str, _Source]]:
    """(name in the checkpoint, source) of every tensor that the file must hold."""
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


def _check_tensors(file: File, llama: _Llama) -> None:
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
            f"{file.path} has a tensor {name}, which is not supported: needed is a Llama without "
            "biases, with one expert and unscaled rotary embedding"
        )


def _load_tensor(file: File, source: _Source) -> torch.Tensor:
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


# The small files.


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
