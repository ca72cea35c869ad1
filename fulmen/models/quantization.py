"""The `quantization_config` of a checkpoint: FP8 blocks, or matrices packed for the kernels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fulmen.kernels import WeightFormat, packed_bytes

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Config:
    """`quantization_config` of the FP8 releases: e4m3 weights with one float32 scale a block."""

    weight_block_size: tuple[int, int]
    modules_to_not_convert: tuple[str, ...]
    """Module names, matched by whole components: `gate` is the router, never `gate_proj`."""

    def applies_to(self, name: str) -> bool:
        """Whether the matrix `name` (without `.weight`) is stored as FP8 blocks."""
        parts = _components(name)
        for module in self.modules_to_not_convert:
            unconverted = _components(module)
            for start in range(len(parts) - len(unconverted) + 1):
                if parts[start : start + len(unconverted)] == unconverted:
                    return False
        return True

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """The grid of scales of a matrix; a ragged last block counts as a block."""
        rows, columns = self.weight_block_size
        return math.ceil(shape[0] / rows), math.ceil(shape[1] / columns)


Bits = int | str
"""How finely weights are held: 8 or 4 bits in groups of inputs, or "fp8": e4m3 in blocks."""


FORMATS: Final[Mapping[Bits, WeightFormat]] = {
    8: WeightFormat.INT8,
    4: WeightFormat.INT4,
    "fp8": WeightFormat.FP8,
}


GROUP_SIZES: Final = (32, 64, 128)
"""Inputs that may share a scale: what the kernels take."""


PACKED_MODULES: Final = frozenset(
    {
        # softmax attention, then lightning attention
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("qkv_proj", "output_gate", "out_proj"),
        # experts, then the shared expert
        *("w1", "w2", "w3"),
        *("gate_proj", "up_proj", "down_proj"),
    }
)
"""The matrices that `fulmen quantize` rounds. Routers and norms decide much with few bytes, and the
embedding is looked up, not multiplied; these stay as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedConfig:
    """`quantization_config` of what `fulmen quantize` writes: matrices as the CPU's kernels read
    them, each a uint8 tensor (blocks of 16 columns, bytes of a block)."""

    bits: Bits
    """8, 4 or "fp8"."""
    group_size: int
    """Inputs that share a scale; 128 for fp8, whose scales are for 128 x 128 weights."""
    input_bits: int = 16
    """How finely inputs are rounded, group by group, before they meet 8- or 4-bit weights."""
    head_bits: int | None = None
    """8 if lm_head is rounded too; None leaves it as it is."""

    def __post_init__(self) -> None:
        for name, known in (
            ("bits", tuple(FORMATS)),
            ("group_size", GROUP_SIZES[-1:] if self.bits == "fp8" else GROUP_SIZES),
            ("input_bits", (8, 16)),
            ("head_bits", (None, 8)),
        ):
            value = getattr(self, name)
            if value not in known or isinstance(value, bool):
                options = " or ".join("absent" if x is None else str(x) for x in known)
                raise ValueError(f"{name} is {value!r}, it must be {options}")
        if self.bits == "fp8" and self.head_bits is None and self.input_bits != 16:
            raise ValueError(
                f"input_bits is {self.input_bits}, it must be 16: fp8 weights meet inputs as they "
                "are"
            )

    def format_of(self, module: str) -> WeightFormat | None:
        """How the matrix of a module is packed; None if it is stored as it is."""
        if module == "lm_head":
            return None if self.head_bits is None else WeightFormat.INT8
        return FORMATS[self.bits] if module.rpartition(".")[2] in PACKED_MODULES else None

    def packed_shape(self, format: WeightFormat, shape: tuple[int, int]) -> tuple[int, int]:
        """(N, K) -> (blocks of 16 columns, bytes of a block)"""
        blocks = math.ceil(shape[0] / 16)
        return blocks, packed_bytes(format, *shape, self.group_size) // blocks


QuantizationConfig = Fp8Config | PackedConfig


PACKED_METHOD: Final = "fulmen"
"""`quant_method` of a PackedConfig."""


def _components(module: str) -> list[str]:
    # transformers 5 calls the same module `mlp`, also in the lists it writes.
    return ["mlp" if part == "block_sparse_moe" else part for part in module.split(".")]
