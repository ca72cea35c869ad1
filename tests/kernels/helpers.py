"""Random matrices in every packed format, lightning states, and comparing bits."""

import pytest
import torch
from torch import Tensor

from fulmen.kernels import (
    CHUNK,
    LightningCarry,
    PackedMatrix,
    native,
    pack,
    pack_codebook4,
    pack_fp8,
    pack_int4,
    pack_int8,
)
from fulmen.kernels.weights import LEVELS, MAX_SCALE, ZEROS

needs_native = pytest.mark.skipif(native() is None, reason="the C++ kernels are not installed")

FORMATS = (
    "float32", "bfloat16", "fp8", "int8", "int8/32", "int4", "int4/128", "codebook4",
    "codebook4/64",
)  # fmt: skip
"""Each may name its group; see `packed`."""


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(weight: Tensor, name: str) -> PackedMatrix:
    """Round a float32 matrix (N, K) to a format in the plainest way and pack it."""
    format, _, group = name.partition("/")
    match format:
        case "float32":
            return pack(weight)
        case "bfloat16":
            return pack(weight.bfloat16())
        case "fp8":
            blocks = [-(-size // 128) for size in weight.shape]
            scales = 0.5 + torch.arange(blocks[0] * blocks[1]).view(*blocks) / 7
            return pack_fp8((3 * weight).to(torch.float8_e4m3fn), scales, (128, 128))
        case "int8":
            return quantised_to_int8(weight, int(group or 64))
        case "codebook4":
            return quantised_to_codebook4(weight, int(group or 32))
        case _:
            return quantised_to_int4(weight, int(group or 32))


def rounds_inputs(name: str) -> bool:
    """Return whether inputs are rounded to integers before they meet a format."""
    return name.startswith(("int", "codebook"))


def in_groups(weight: Tensor, group: int) -> Tensor:
    """(N, K) -> (N, groups, group), padded with zeros"""
    n, k = weight.shape
    padded = weight.new_zeros(n, -(-k // group) * group)
    padded[:, :k] = weight
    return padded.view(n, -1, group)


def quantised_to_int8(weight: Tensor, group: int) -> PackedMatrix:
    """Symmetric, the largest value of a group at 127."""
    groups = in_groups(weight, group)
    scales = groups.abs().amax(-1).clamp(min=1e-9) / 127
    codes = (groups / scales[..., None]).round().to(torch.int8).flatten(1)
    return pack_int8(codes[:, : weight.shape[1]].contiguous(), scales, group)


def quantised_to_int4(weight: Tensor, group: int) -> PackedMatrix:
    """Affine, from the smallest value of a group to the largest."""
    groups = in_groups(weight, group)
    offsets = groups.amin(-1).half()
    scales = ((groups.amax(-1) - offsets) / 15).clamp(min=1e-4).half()
    codes = ((groups - offsets[..., None].float()) / scales[..., None].float()).round()
    codes = codes.clamp(0, 15).to(torch.uint8).flatten(1)[:, : weight.shape[1]]
    return pack_int4(codes.contiguous(), scales, offsets, group)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal to the bit, NaN and signed zero included."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def with_threads(count: int) -> None:
    """Set the threads of the kernels."""
    extension = native()
    assert extension is not None
    extension.set_num_threads(count)


def kv_state_at(carry: LightningCarry, slope_rate: Tensor, context_lens: Tensor) -> Tensor:
    """Return S_t of the paper's recurrence, (N, H, D, D) float32, after context_lens (N,) tokens.

    Sequence n is in row n of the carry.
    """
    dtype = carry.kv_state.dtype
    tails = (context_lens % CHUNK).tolist()
    states = []
    for n, length in enumerate(tails):
        k, v = (tail[n, :, :length].to(dtype) for tail in (carry.k_tail, carry.v_tail))  # (H, t, D)
        age = torch.arange(length - 1, -1, -1, device=k.device)  # (t,)
        fade = torch.exp(-slope_rate[:, None] * age)  # (H, t)
        decay = torch.exp(-slope_rate * length)[:, None, None]
        states.append(decay * carry.kv_state[n] + (k * fade[..., None]).mT @ v)
    return torch.stack(states)


def quantised_to_codebook4(weight: Tensor, group: int) -> PackedMatrix:
    """The largest value of a group at an end of the levels; zero points in turn."""
    groups = in_groups(weight, group)  # (N, groups, group)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))[..., 0]
    columns = largest.abs().amax(1).clamp(min=1e-9) / ZEROS[0] / MAX_SCALE
    scales = (-largest / ZEROS[0] / columns[:, None]).round()
    zeros = torch.arange(scales.numel()).view(scales.shape) % 4
    levels = torch.tensor(LEVELS) - torch.tensor(ZEROS)[zeros][..., None]  # (N, groups, 16)
    values = (levels * scales[..., None] * columns[:, None, None])[:, :, None]
    codes = (groups[..., None] - values).abs().argmin(-1).to(torch.uint8).flatten(1)
    return pack_codebook4(codes[:, : weight.shape[1]].contiguous(), scales, zeros, columns, group)
