"""Tensors that a config predicts: name, shape and stored dtype of each."""

from collections.abc import Iterator
from typing import Final, NamedTuple

import torch

from fulmen.models.model_config import ModelConfig
from fulmen.models.quantization import Fp8Config, PackedConfig, QuantizationConfig

HEAD: Final = "lm_head.weight"


class TensorSpec(NamedTuple):
    """One tensor as a checkpoint stores it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def dtype_in_memory(name: str, dtype: torch.dtype, *, trainable: bool) -> torch.dtype:
    """Return the dtype that a tensor has in a model whose weights are of `dtype`.

    Router and choice bias work in float32 whatever the rest does. The kernels sum in float32
    whatever the head is stored in, so only one that learns needs to be float32.
    """
    is_wide = name.endswith((".gate.weight", "e_score_correction_bias"))
    if is_wide or (trainable and name == HEAD):
        return torch.promote_types(dtype, torch.float32)
    return dtype


def outer_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """Yield embedding, last norm and head: the same names in both models."""
    table = (config.vocab_size, config.hidden_size)
    yield TensorSpec("model.embed_tokens.weight", table, config.torch_dtype)
    yield TensorSpec("model.norm.weight", (config.hidden_size,), config.torch_dtype)
    if not config.tie_word_embeddings:
        yield TensorSpec(HEAD, table, config.torch_dtype)


def layer_tensors(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    """Yield block norms, router (float32 in both releases) and experts of one layer."""
    hidden, width, dtype = config.hidden_size, config.intermediate_size, config.torch_dtype
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield TensorSpec(f"{prefix}.{norm}.weight", (hidden,), dtype)
    moe = f"{prefix}.block_sparse_moe"
    yield TensorSpec(f"{moe}.gate.weight", (config.num_local_experts, hidden), torch.float32)
    for expert in range(config.num_local_experts):
        for name, shape in (
            ("w1", (width, hidden)),
            ("w2", (hidden, width)),
            ("w3", (width, hidden)),
        ):
            yield TensorSpec(f"{moe}.experts.{expert}.{name}.weight", shape, dtype)


def softmax_attention_tensors(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    """Yield the four projections of a softmax attention layer."""
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    for name, shape in (
        ("q_proj", (query, config.hidden_size)),
        ("k_proj", (key_value, config.hidden_size)),
        ("v_proj", (key_value, config.hidden_size)),
        ("o_proj", (config.hidden_size, query)),
    ):
        yield TensorSpec(f"{prefix}.self_attn.{name}.weight", shape, config.torch_dtype)


def stored(
    specs: Iterator[TensorSpec], quantization: QuantizationConfig | None
) -> Iterator[TensorSpec]:
    """Yield the tensors of an unquantised model as a checkpoint stores them.

    A quantised matrix is packed bytes, or e4m3 blocks and their scales.
    """
    for spec in specs:
        module = spec.name.removesuffix(".weight")
        is_matrix = len(spec.shape) == 2 and not module.endswith("embed_tokens")
        match quantization:
            case Fp8Config() if is_matrix and quantization.applies_to(module):
                yield TensorSpec(spec.name, spec.shape, torch.float8_e4m3fn)
                scales = quantization.scale_shape(spec.shape)
                yield TensorSpec(f"{module}.weight_scale_inv", scales, torch.float32)
            case PackedConfig() if quantization.format_of(module) is not None:
                rows, columns = spec.shape
                shape = quantization.packed_shape(module, (rows, columns))
                yield TensorSpec(spec.name, shape, torch.uint8)
            case _:
                yield spec
