"""The two models: their mathematics and their configs."""

from typing import TYPE_CHECKING

from fulmen.models.architectures import Config, Model, config_from_dict, new_model
from fulmen.models.bookkeeping import is_harmless
from fulmen.models.cache import Cache, StateSnapshot
from fulmen.models.causal_lm import CausalLM
from fulmen.models.config import DTYPES
from fulmen.models.experts import Experts, SparseMoE
from fulmen.models.flops import (
    GenerationCost,
    checkpoint_bytes,
    count_parameters,
    count_tensors,
    decode_bytes,
    generation_cost,
    kind_of,
    multiplied_weights,
    num_elements,
    prefill_flops,
)
from fulmen.models.layers import Context, Linear, Trace
from fulmen.models.m1 import M1, M1Config, router_aux_loss
from fulmen.models.m2 import M2, M2Config
from fulmen.models.packed import Packed
from fulmen.models.quantization import (
    FOREIGN_QUANTIZATION,
    GROUP_SIZES,
    HEAD_GROUP_SIZE,
    ROUNDED_AS,
    Bits,
    Fp8Config,
    PackedConfig,
    raise_foreign,
)
from fulmen.models.tensors import HEAD, TensorSpec, dtype_in_memory

if not TYPE_CHECKING:  # to a type checker, any name would be there
    from fulmen.models.moved import __getattr__  # noqa: F401

__all__ = [
    "DTYPES",
    "FOREIGN_QUANTIZATION",
    "GROUP_SIZES",
    "HEAD",
    "HEAD_GROUP_SIZE",
    "M1",
    "M2",
    "ROUNDED_AS",
    "Bits",
    "Cache",
    "CausalLM",
    "Config",
    "Context",
    "Experts",
    "Fp8Config",
    "GenerationCost",
    "Linear",
    "M1Config",
    "M2Config",
    "Model",
    "Packed",
    "PackedConfig",
    "SparseMoE",
    "StateSnapshot",
    "TensorSpec",
    "Trace",
    "checkpoint_bytes",
    "config_from_dict",
    "count_parameters",
    "count_tensors",
    "decode_bytes",
    "dtype_in_memory",
    "generation_cost",
    "is_harmless",
    "kind_of",
    "multiplied_weights",
    "new_model",
    "num_elements",
    "prefill_flops",
    "raise_foreign",
    "router_aux_loss",
]
