"""The heavy operations in C++, for a CPU: every function that `kernels.backends.Backend` names."""

from fulmen.kernels.cpu.attention import attend, softmax_attention
from fulmen.kernels.cpu.call_times import CallTimes, StageTimes, time_calls
from fulmen.kernels.cpu.codebook import search_codebook
from fulmen.kernels.cpu.embedding import embed
from fulmen.kernels.cpu.experts import mixture_of_experts, route, train_experts
from fulmen.kernels.cpu.extension import (
    DTYPES,
    built_sets,
    native,
    populate,
    set_num_threads,
    shadowed_install,
    takes,
)
from fulmen.kernels.cpu.head import head, target_logprobs, target_scores
from fulmen.kernels.cpu.lightning import lightning_attention
from fulmen.kernels.cpu.linear import linear, linear_each
from fulmen.kernels.cpu.norms import add_residual, gated_norm, residual_norm, rms_norm
from fulmen.kernels.cpu.pages import InterleavedPages, write_pages
from fulmen.kernels.cpu.program import Program
from fulmen.kernels.cpu.rotary import rotary_angles, rotate
from fulmen.kernels.cpu.weights import pack, pack_into, stack_experts

__all__ = [
    "DTYPES",
    "CallTimes",
    "InterleavedPages",
    "Program",
    "StageTimes",
    "add_residual",
    "attend",
    "built_sets",
    "embed",
    "gated_norm",
    "head",
    "lightning_attention",
    "linear",
    "linear_each",
    "mixture_of_experts",
    "native",
    "pack",
    "pack_into",
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
    "stack_experts",
    "takes",
    "target_logprobs",
    "target_scores",
    "time_calls",
    "train_experts",
    "write_pages",
]
