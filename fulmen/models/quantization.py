"""The `quantization_config` of a checkpoint: FP8 blocks, or matrices packed for the kernels."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Final, NoReturn, cast

from fulmen.files import shorten
from fulmen.kernels import WeightFormat, packed_bytes
from fulmen.models.config import Fields

MAX_BLOCK: Final = 2**20
"""Most rows or columns that share an FP8 scale: any matrix within `LIMITS` as one block. Published
blocks are 128 x 128."""


@dataclass(frozen=True, kw_only=True)
class Fp8Config:
    """`quantization_config` of the FP8 releases: e4m3 weights with one float32 scale a block."""

    weight_block_size: tuple[int, int]
    modules_to_not_convert: tuple[str, ...]
    """Module names, matched by whole components: `gate` is the router, never `gate_proj`."""

    def __post_init__(self) -> None:
        block = self.weight_block_size
        if len(block) != 2 or not all(type(n) is int and 0 < n <= MAX_BLOCK for n in block):
            raise ValueError(
                f"weight_block_size is {reprlib.repr(list(block))}, it must be two positive "
                f"integers of at most {MAX_BLOCK}"
            )

    @cached_property
    def _unconverted(self) -> frozenset[tuple[str, ...]]:
        return frozenset(_components(module) for module in self.modules_to_not_convert)

    def applies_to(self, name: str) -> bool:
        """Return whether the matrix `name` (without `.weight`) is stored as FP8 blocks."""
        parts = _components(name)
        return not any(
            parts[start:end] in self._unconverted
            for start in range(len(parts))
            for end in range(start + 1, len(parts) + 1)
        )

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the grid of scales of a matrix; a ragged last block counts as a block."""
        rows, columns = self.weight_block_size
        return math.ceil(shape[0] / rows), math.ceil(shape[1] / columns)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as config.json holds them."""
        return {
            "quant_method": "fp8",
            "fmt": "float8_e4m3fn",
            "activation_scheme": "dynamic",
            "weight_block_size": list(self.weight_block_size),
            "modules_to_not_convert": list(self.modules_to_not_convert),
        }


Bits = int | str
"""Width of packed weights: 8 or 4 bits in groups of inputs, or "fp8": e4m3 in blocks."""

FORMATS: Final[Mapping[tuple[Bits, str], WeightFormat]] = {
    (8, "even"): WeightFormat.INT8,
    (4, "even"): WeightFormat.INT4,
    (4, "codebook"): WeightFormat.CODEBOOK4,
    ("fp8", "even"): WeightFormat.FP8,
}
"""Formats of matrices by `bits` and `levels`."""

GROUP_SIZES: Final = (32, 64, 128)
"""Numbers of inputs that may share a scale, as the kernels take them."""
HEAD_GROUP_SIZE: Final = 32
"""Inputs of a rounded head that share a scale, as `fulmen quantize` writes it. In groups of 64 the
greedy choice of SmolLM2 in 8 bits moves away from float32's by 0.2 to 0.5 points; finer groups cost
half a bit of this one matrix (docs/measured.md)."""
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
"""Matrices that `fulmen quantize` rounds. Routers and norms decide much with few bytes, and the
embedding is looked up, not multiplied; these stay as they are."""

PACKED_METHOD: Final = "fulmen"
"""`quant_method` of a PackedConfig."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedConfig:
    """`quantization_config` that `fulmen quantize` writes: matrices as the CPU's kernels read them,
    each a uint8 tensor (blocks of 16 columns, bytes of a block)."""

    bits: Bits
    """8, 4 or "fp8"."""
    levels: str = "even"
    """"even", or for 4 bits "codebook": 16 levels that are denser where more weights are."""
    group_size: int
    """Inputs that share a scale; 128 for fp8, whose scales are for 128 x 128 weights."""
    input_bits: int = 16
    """Bits to which inputs are rounded, group by group, before they meet 8- or 4-bit weights."""
    head_bits: int | None = None
    """8 if lm_head is rounded too; None leaves it as it is."""
    head_group_size: int | None = None
    """Inputs of a rounded lm_head that share a scale; None means group_size, and so does that
    number itself."""

    def __post_init__(self) -> None:
        for name, known in (
            ("bits", tuple(dict.fromkeys(bits for bits, _ in FORMATS))),
            ("levels", ("even", "codebook")),
            ("group_size", GROUP_SIZES[-1:] if self.bits == "fp8" else GROUP_SIZES),
            ("input_bits", (8, 16)),
            ("head_bits", (None, 8)),
            ("head_group_size", (None, *GROUP_SIZES)),
        ):
            value = getattr(self, name)
            if value not in known or isinstance(value, bool):
                options = " or ".join("absent" if x is None else str(x) for x in known)
                raise ValueError(f"{name} is {reprlib.repr(value)}, it must be {options}")
        if (self.bits, self.levels) not in FORMATS:
            raise ValueError(
                f"levels is {self.levels}, it must be even: only weights of 4 bits have a codebook"
            )
        if self.head_group_size is not None and self.head_bits is None:
            raise ValueError(
                f"head_group_size is {self.head_group_size}, it must be absent: the head is not "
                "rounded"
            )
        if self.head_group_size == self.group_size:
            object.__setattr__(self, "head_group_size", None)  # one way to say it: == compares
        if self.bits == "fp8" and self.head_bits is None and self.input_bits != 16:
            raise ValueError(
                f"input_bits is {self.input_bits}, it must be 16: fp8 weights meet inputs as they "
                "are"
            )

    def format_of(self, module: str) -> WeightFormat | None:
        """Return the format that a module's matrix is packed in; None if it is stored as it is."""
        if module == "lm_head":
            return None if self.head_bits is None else WeightFormat.INT8
        is_packed = module.rpartition(".")[2] in PACKED_MODULES
        return FORMATS[self.bits, self.levels] if is_packed else None

    def group_of(self, module: str) -> int:
        """Return how many inputs share a scale in a module's matrix, if it is packed."""
        if module == "lm_head" and self.head_group_size is not None:
            return self.head_group_size
        return self.group_size

    def packed_shape(self, module: str, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the stored shape of a packed module's matrix (N, K): (blocks of 16 columns, bytes
        of a block)."""
        format = self.format_of(module)
        assert format is not None, module
        blocks = math.ceil(shape[0] / 16)
        return blocks, packed_bytes(format, *shape, self.group_of(module)) // blocks

    def to_dict(self) -> dict[str, object]:
        """Return the fields as config.json holds them; without levels where they are even, as
        files had it before there were others."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if self.levels == "even":
            del given["levels"]
        return {"quant_method": PACKED_METHOD, **given}


QuantizationConfig = Fp8Config | PackedConfig

ROUNDED_AS: Final[Mapping[Bits, PackedConfig]] = {
    8: PackedConfig(bits=8, group_size=64, head_bits=8, head_group_size=HEAD_GROUP_SIZE),
    4: PackedConfig(bits=4, levels="codebook", group_size=32, input_bits=8, head_bits=8),
    "fp8": PackedConfig(bits="fp8", group_size=128),
}
"""Formats that `fulmen quantize` writes unless it is told more than the bits."""


_FOREIGN: Final[Mapping[str, str]] = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "autoround": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
    "fbgemm_fp8": "FBGEMM",
    "gptq": "GPTQ",
    "gptqmodel": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "mlx": "MLX",
    "modelopt": "NVIDIA ModelOpt",
    "modelopt_fp4": "NVIDIA ModelOpt",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "quanto": "Quanto",
    "quark": "AMD Quark",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
"""Programs and formats of quantised weights that are not read, by their `quant_method`."""

_FOREIGN_FIELDS: Final[Mapping[str, str]] = {
    "quant_algo": "modelopt",
    "producer": "modelopt",
    "config_groups": "compressed-tensors",
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "_load_in_4bit": "bitsandbytes",
    "_load_in_8bit": "bitsandbytes",
    "bnb_4bit_quant_type": "bitsandbytes",
    "quant_type": "torchao",
    "zero_point": "awq",
    "w_bit": "awq",
    "q_group_size": "awq",
    "desc_act": "gptq",
    "damp_percent": "gptq",
    "checkpoint_format": "gptq",
    "sym": "gptq",
}
"""Fields by which a quantisation is known that names no quant_method, the surest first."""

_E4M3: Final = ("e4m3", "e4m3fn", "float8_e4m3")
"""Other names of float8_e4m3fn, the values of `fmt` in some configs"""

FOREIGN_QUANTIZATION: Final = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Files in which ModelOpt, GPTQ and AWQ may keep what others write into config.json."""


def take_quantization(given: Fields) -> QuantizationConfig | None:
    """Take `quantization_config`; None when the weights are stored as they are.

    Raises ValueError for weights that another program has quantised, under any name of theirs.
    """
    # MLX writes the same twice; compressed-tensors' old name is the last.
    for name in ("quantization", "quantization_config", "compression_config"):
        found = given.peek(name)
        if isinstance(found, str):
            raise_foreign({"quant_method": found}, f"{name} in {given.where}")
        if found and isinstance(found, Mapping) and _is_foreign(found, name):
            is_mlx = name == "quantization" and "quant_method" not in found
            raise_foreign(found, f"{name} in {given.where}", "MLX" if is_mlx else None)
        if name != "quantization_config":
            given.require(name, {})
    values = given.take_optional("quantization_config", dict)
    if not values:  # absent, or an object that names no quantisation
        return None
    inner = given.inner("quantization_config", cast(Mapping[str, object], values))
    method = inner.take("quant_method", str, "fp8")
    if method not in ("fp8", PACKED_METHOD):
        raise_foreign(values, inner.where)
    try:
        config = _take_packed(inner) if method == PACKED_METHOD else _take_fp8(inner)
    except ValueError as error:
        raise ValueError(_located(str(error), inner.where)) from None
    inner.finish()
    return config


def _is_foreign(values: Mapping[str, object], name: str) -> bool:
    method = values.get("quant_method")
    if name == "quantization_config" and method in ("fp8", PACKED_METHOD):
        return False
    if name == "quantization_config" and method is None:
        return "weight_block_size" not in values and _kind_of(values) is not None
    return name != "quantization_config" or isinstance(method, str)


def _kind_of(values: Mapping[str, object]) -> str | None:
    """Return the name of another program's quantisation; None where nothing tells it."""
    method = values.get("quant_method")
    if isinstance(method, str):
        return _FOREIGN.get(method.lower(), shorten(method, 60))
    for field, found in _FOREIGN_FIELDS.items():
        if field in values:
            return _FOREIGN[found]
    if "group_size" in values and "bits" in values:
        return "MLX" if len(values) > 2 else "another program"
    return None


def raise_foreign(values: Mapping[str, object], where: str, program: str | None = None) -> NoReturn:
    """Raise the sentence that refuses weights which another program has quantised; program is its
    name where something else than values tells it."""
    details = [
        shorten(value, 40)
        for field in ("quant_algo", "format", "quant_type", "mode")
        if isinstance(value := values.get(field), str)
    ]
    bits = values.get("bits", values.get("w_bit"))
    details += [f"{bits} bits"] if type(bits) is int and 0 < bits < 100 else []
    of = f" ({', '.join(details)})" if details else ""
    program = program or _kind_of(values) or "another program"
    raise ValueError(
        f"the weights were quantised by {program}{of}, which Fulmen does not read; take the "
        "published FP8 model or a bfloat16 one, fulmen quantize rounds it to 8 or 4 bits, see "
        f"{where}"
    )


def _located(sentence: str, where: str) -> str:
    return sentence if sentence.endswith(f"see {where}") else f"{sentence}, see {where}"


def _take_packed(given: Fields) -> PackedConfig:
    is_fp8 = given.peek("bits") == "fp8"
    return PackedConfig(
        bits=given.take("bits", str) if is_fp8 else given.take("bits", int),
        levels=given.take("levels", str, "even"),
        group_size=given.take("group_size", int),
        input_bits=given.take("input_bits", int),
        head_bits=given.take_optional("head_bits", int),
        head_group_size=given.take_optional("head_group_size", int),
    )


def _take_fp8(given: Fields) -> Fp8Config:
    if given.peek("fmt") in _E4M3:
        given.take("fmt", str)
    given.require("fmt", "float8_e4m3fn")
    given.require("activation_scheme", "dynamic")
    given.require("scale_fmt", "float")
    given.require("expert_dtype", "fp8")
    given.require("modules_to_convert", None)
    given.require("dequantize", False)
    if given.peek("weight_block_size") is None:
        raise ValueError(
            "weight_block_size is missing: only FP8 with a scale for each block is read, as the "
            "published models have it, 128 x 128"
        )
    block = given.take("weight_block_size", list)
    # Without a list, transformers leaves the head as it is; its router is never converted.
    modules = given.take(
        "modules_to_not_convert", list, ["gate", "lm_head"], also=("ignored_layers",)
    )
    if not all(isinstance(module, str) for module in modules):
        raise ValueError(
            f"modules_to_not_convert is {reprlib.repr(modules)}, it must be a list of names, "
            f"see {given.where}"
        )
    return Fp8Config(weight_block_size=tuple(block), modules_to_not_convert=tuple(modules))


def _components(module: str) -> tuple[str, ...]:
    # transformers 5 calls the same module `mlp`, also in the lists it writes.
    return tuple("mlp" if part == "block_sparse_moe" else part for part in module.split("."))
