"""How the heavy operations run: each with its contract, its reference and its kernel."""

from fulmen.kernels.attention import (
    PAGE,
    KVPages,
    attend,
    rotary_angles,
    rotate,
    softmax_attention,
    write_pages,
)
from fulmen.kernels.embedding import embed
from fulmen.kernels.experts import (
    ExpertWeights,
    PackedExperts,
    Scoring,
    mixture_of_experts,
    route,
)
from fulmen.kernels.head import HeadOutput, head, target_logprobs
from fulmen.kernels.lightning import CHUNK, LightningCarry, kv_state_at, lightning_attention
from fulmen.kernels.linear import (
    Activation,
    Format,
    PackedMatrix,
    concatenate,
    linear,
    pack,
    pack_fp8,
    pack_int4,
    pack_int8,
    packed_bytes,
)
from fulmen.kernels.native import native, native_for, numerics, populate, set_num_threads
from fulmen.kernels.norms import add_residual, gated_norm, residual_norm, rms_norm
from fulmen.kernels.program import Program

__all__ = [
    "CHUNK",
    "PAGE",
    "Activation",
    "ExpertWeights",
    "Format",
    "HeadOutput",
    "KVPages",
    "LightningCarry",
    "PackedExperts",
    "PackedMatrix",
    "Program",
    "Scoring",
    "add_residual",
    "attend",
    "concatenate",
    "embed",
    "gated_norm",
    "head",
    "kv_state_at",
    "lightning_attention",
    "linear",
    "mixture_of_experts",
    "native",
    "native_for",
    "numerics",
    "pack",
    "pack_fp8",
    "pack_int4",
    "pack_int8",
    "packed_bytes",
    "populate",
    "residual_norm",
    "rms_norm",
    "rotary_angles",
    "rotate",
    "route",
    "set_num_threads",
    "softmax_attention",
    "target_logprobs",
    "write_pages",
]
