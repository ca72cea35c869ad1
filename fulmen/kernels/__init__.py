"""How the heavy operations run: each with its contract and its plain-torch reference."""

from fulmen.kernels.attention import PAGE, softmax_attention, write_pages
from fulmen.kernels.experts import (
    ExpertWeights,
    mixture_of_experts,
    route_sigmoid,
    route_softmax,
)
from fulmen.kernels.lightning import CHUNK, LightningCarry, kv_state_at, lightning_attention

__all__ = [
    "CHUNK",
    "PAGE",
    "ExpertWeights",
    "LightningCarry",
    "kv_state_at",
    "lightning_attention",
    "mixture_of_experts",
    "route_sigmoid",
    "route_softmax",
    "softmax_attention",
    "write_pages",
]
