"""Settings, calibration texts and contents of folders, for all tests of quantisation."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fulmen.kernels import native
from fulmen.quantize import (
    QuantizeConfig,
    parse_packed,
)
from tests.models.helpers import tiny_m1, tiny_m2

GOLDEN = Path(__file__).parent.parent / "golden"
needs_kernels = pytest.mark.skipif(native() is None, reason="the C++ kernels are not built")
every_bits = pytest.mark.parametrize("bits", ["8", "4", "fp8"])
every_config = pytest.mark.parametrize(
    "config",
    [tiny_m1(), tiny_m1(shared_intermediate_size=8), tiny_m2(), tiny_m2(tie_word_embeddings=True)],
    ids=["m1", "m1-shared", "m2", "m2-tied"],
)


def settings(
    bits: str, *, levels: str | None = None, max_shard_bytes: int = 10**9, **changes: int
) -> QuantizeConfig:
    packed = parse_packed(bits=bits, levels=levels, **changes)
    return QuantizeConfig(packed=packed, max_shard_bytes=max_shard_bytes)


def calibration_ids(count: int) -> list[int]:
    return torch.randint(61, (count,), generator=torch.Generator().manual_seed(1)).tolist()


def written(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder, as the safetensors library reads them."""
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    return tensors


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
