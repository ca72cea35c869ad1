"""Heavy operations, each with its contract, its plain-torch reference and its kernels."""

from fulmen.kernels.attention import attend, softmax_attention
from fulmen.kernels.backends import backend_for
from fulmen.kernels.codebook import (
    Codebook,
    codebook_values,
    nearest_codes,
    output_scales,
    search_codebook,
)
from fulmen.kernels.cpu import (
    CallTimes,
    Program,
    StageTimes,
    built_sets,
    native,
    populate,
    set_num_threads,
    shadowed_install,
    time_calls,
)
from fulmen.kernels.embedding import embed
from fulmen.kernels.experts import ExpertWeights, PackedExperts, Scoring, mixture_of_experts, route
from fulmen.kernels.head import (
    Draws,
    HeadOutput,
    TargetScores,
    drawn_from,
    head,
    target_logprobs,
    target_scores,
)
from fulmen.kernels.lengths import Lengths
from fulmen.kernels.lightning import CHUNK, LightningCarry, lightning_attention, split_qkv
from fulmen.kernels.linear import Activation, copy_matrix, linear, linear_each, pack
from fulmen.kernels.norms import add_residual, gated_norm, residual_norm, rms_norm
from fulmen.kernels.numerics import REVISION, numerics
from fulmen.kernels.pages import PAGE, KVPages, write_pages
from fulmen.kernels.rotary import rotary_angles, rotate
from fulmen.kernels.weights import (
    PackedMatrix,
    WeightFormat,
    concatenate,
    pack_codebook4,
    pack_fp8,
    pack_int4,
    pack_int8,
    packed_bytes,
    plain_dtype,
)

__all__ = [
    "CHUNK",
    "PAGE",
    "REVISION",
    "Activation",
    "CallTimes",
    "Codebook",
    "Draws",
    "ExpertWeights",
    "HeadOutput",
    "KVPages",
    "Lengths",
    "LightningCarry",
    "PackedExperts",
    "PackedMatrix",
    "Program",
    "Scoring",
    "StageTimes",
    "TargetScores",
    "WeightFormat",
    "add_residual",
    "attend",
    "backend_for",
    "built_sets",
    "codebook_values",
    "concatenate",
    "copy_matrix",
    "drawn_from",
    "embed",
    "gated_norm",
    "head",
    "lightning_attention",
    "linear",
    "linear_each",
    "mixture_of_experts",
    "native",
    "nearest_codes",
    "numerics",
    "output_scales",
    "pack",
    "pack_codebook4",
    "pack_fp8",
    "pack_int4",
    "pack_int8",
    "packed_bytes",
    "plain_dtype",
    "populate",
    "residual_norm",
    "rms_norm",
    "rotary_angles",
    "rotate",
    "route",
    "search_codebook",
    "set_num_threads",
    "shadowed_install",
    "softmax_attention",
    "split_qkv",
    "target_logprobs",
    "target_scores",
    "time_calls",
    "write_pages",
]
