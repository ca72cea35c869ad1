"""Linear layers: y = x W^T with weights packed once, and how each format is packed.

Lanes run over output columns and K is summed in one fixed order, so a row has the same bits alone
and among a thousand. The packed bytes are what a quantised checkpoint stores, so it is used where
it lies in the file.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.native import (
    DTYPES,
    check_input_bits,
    native,
    native_for,
    needs_gradient,
)

LANES: Final = 16
"""Columns of a packed block."""

NO_GRADIENT: Final = "packed, which has no gradient: load the model with trainable=True"

Activation = Literal["none", "silu", "sigmoid"]
_ACTIVATIONS: Final[dict[Activation, int]] = {"none": 0, "silu": 1, "sigmoid": 2}


class Format(enum.IntEnum):
    """How a matrix is packed; docs/kernels.md gives the bytes."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FP8 = 2
    INT8 = 3
    INT4 = 4


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A weight matrix (N, K) in the order the kernels read it."""

    data: Tensor
    """(bytes,) uint8, contiguous: blocks of 16 columns, each as `Format` says"""
    format: Format
    n: int
    k: int
    group: int = 0
    """Inputs that share a scale; 0 for float32 and bfloat16, which have none."""
    handle: Any = field(init=False, repr=False)
    """The extension's view of the same memory; None without the extension."""

    def __post_init__(self) -> None:
        needed = packed_bytes(self.format, self.n, self.k, self.group)
        is_plain = self.data.dtype == torch.uint8 and self.data.is_contiguous()
        if not is_plain or self.data.numel() != needed:
            raise ValueError(
                f"a packed {self.format.name} matrix ({self.n}, {self.k}) has {self.data.numel()} "
                f"values of {self.data.dtype}, {needed} bytes are needed"
            )
        extension = native() if self.data.is_cpu else None
        address = self.data.data_ptr()
        handle = extension and extension.Matrix(address, self.format, self.group, self.n, self.k)
        object.__setattr__(self, "handle", handle)

    def unpack(self) -> Tensor:
        """(N, K) float32: the weights these bytes stand for."""
        return unpack(self.data, self.format, self.n, self.k, self.group)


def padded_k(format: Format, k: int, group: int) -> int:
    """K as packed: whole tiles of 32 for bfloat16, whole groups where there are any."""
    step = {Format.FLOAT32: 1, Format.BFLOAT16: 32}.get(format, group)
    return -(-k // step) * step


def block_bytes(format: Format, k: int, group: int) -> int:
    """Bytes of one packed block of 16 columns."""
    k = padded_k(format, k, group)
    match format:
        case Format.FLOAT32:
            return 64 * k
        case Format.BFLOAT16:
            return 32 * k
        case Format.FP8 | Format.INT8:
            return 16 * k + 64 * (k // group)
        case Format.INT4:
            return 8 * k + 64 * (k // group)


def packed_bytes(format: Format, n: int, k: int, group: int = 0) -> int:
    """Bytes of a packed matrix (n, k)."""
    return -(-n // LANES) * block_bytes(format, k, group)


def pack(weight: Tensor) -> PackedMatrix:
    """Packs a float32 or bfloat16 matrix (N, K) as it is."""
    if weight.dtype not in DTYPES:
        raise ValueError(f"a matrix of {weight.dtype} cannot be packed, only float32 and bfloat16")
    format = Format.FLOAT32 if weight.dtype == torch.float32 else Format.BFLOAT16
    n, k = weight.shape
    extension = native_for(weight)
    if extension is None:
        return PackedMatrix(_pack_reference(weight, format), format, n, k)
    out = torch.empty(packed_bytes(format, n, k), dtype=torch.uint8)
    matrix = PackedMatrix(out, format, n, k)
    row, column = weight.stride()
    source, dtype = weight.detach().data_ptr(), DTYPES[weight.dtype]
    extension.pack(source, dtype, row, column, matrix.handle, out.data_ptr())
    return matrix


def concatenate(matrices: Sequence[PackedMatrix]) -> PackedMatrix | None:
    """One matrix whose outputs are theirs, one after the other; None where they differ in format
    or one does not end with a whole block of 16 columns."""
    first = matrices[0]
    kinds = {(m.format, m.group, m.k) for m in matrices}
    if len(kinds) > 1 or any(m.n % LANES for m in matrices):
        return None
    data = torch.cat([m.data for m in matrices])
    return PackedMatrix(data, first.format, sum(m.n for m in matrices), first.k, first.group)


def _columns(values: Tensor, k: int, per: int) -> Tensor:
    """(N, K) -> (blocks, k / per, 16, per), padded with zeros."""
    blocks = -(-len(values) // LANES)
    padded = values.new_zeros(blocks * LANES, k)
    padded[: len(values), : values.shape[1]] = values
    return padded.view(blocks, LANES, k // per, per).transpose(1, 2).contiguous()


def _bytes(x: Tensor) -> Tensor:
    """(blocks, ...) -> (blocks, bytes) uint8"""
    return x.contiguous().view(len(x), -1).view(torch.uint8)


def _pack_reference(weight: Tensor, format: Format) -> Tensor:
    k = padded_k(format, weight.shape[1], 0)
    return _bytes(_columns(weight.detach(), k, 1 if format == Format.FLOAT32 else 2)).flatten()


def pack_fp8(weight: Tensor, scales: Tensor, block_size: tuple[int, int]) -> PackedMatrix:
    """Packs e4m3 weights (N, K) with scales (ceil(N / rows), ceil(K / columns)) float32 of blocks
    of rows x columns, as the checkpoint stores them."""
    (n, k), (rows, group) = weight.shape, block_size
    if rows % LANES or group % 32 or group > MAX_GROUP:
        raise ValueError(
            f"FP8 blocks of {rows} x {group} cannot be packed: rows must be a multiple of 16, "
            f"columns of 32 and at most {MAX_GROUP}"
        )
    wide = padded_k(Format.FP8, k, group)
    codes = _columns(weight.view(torch.uint8), wide, 2)
    by_block = scales.repeat_interleave(rows // LANES, 0)[: len(codes)]  # (blocks, groups)
    spread = by_block.float()[:, :, None].expand(-1, -1, LANES)
    data = torch.cat((_bytes(codes), _bytes(spread)), 1).flatten()
    return PackedMatrix(data, Format.FP8, n, k, group)


MAX_GROUP: Final = 128
"""Inputs of the largest group the kernels take."""


def pack_int8(codes: Tensor, scales: Tensor, group: int) -> PackedMatrix:
    """Packs codes (N, K) int8 with scales (N, ceil(K / group)) float32: weight = scale * code."""
    _check_group(group)
    n, k = codes.shape
    wide = padded_k(Format.INT8, k, group)
    # Padding holds code 0, which is 128 as stored.
    shifted = _columns(codes, wide, 4).view(torch.uint8) ^ 128
    blocks, groups = len(shifted), wide // group
    grouped = _bytes(shifted).view(blocks, groups, group * LANES)
    data = torch.cat((grouped, _spread(scales, blocks)), 2).flatten()
    return PackedMatrix(data, Format.INT8, n, k, group)


def pack_int4(codes: Tensor, scales: Tensor, offsets: Tensor, group: int) -> PackedMatrix:
    """Packs codes (N, K) uint8 from 0 to 15 with scales and offsets (N, ceil(K / group)) float16:
    weight = scale * code + offset."""
    _check_group(group)
    n, k = codes.shape
    wide = padded_k(Format.INT4, k, group)
    quads = _columns(codes, wide, 4)  # (blocks, K / 4, 16, 4)
    blocks, groups = len(quads), wide // group
    pairs = quads.view(blocks, wide // 8, 2, LANES, 4)
    nibbles = pairs[:, :, 0] | pairs[:, :, 1] << 4
    grouped = _bytes(nibbles).view(blocks, groups, group * LANES // 2)
    data = torch.cat((grouped, _spread(scales, blocks), _spread(offsets, blocks)), 2).flatten()
    return PackedMatrix(data, Format.INT4, n, k, group)


def _check_group(group: int) -> None:
    if group % 32 or not 0 < group <= MAX_GROUP:
        raise ValueError(f"the group is {group}, it must be a multiple of 32, at most {MAX_GROUP}")


def _spread(values: Tensor, blocks: int) -> Tensor:
    """(N, groups) -> (blocks, groups, bytes) uint8: 16 columns' values side by side."""
    padded = values.new_zeros(blocks * LANES, values.shape[1])
    padded[: len(values)] = values
    columns = padded.view(blocks, LANES, -1).transpose(1, 2).contiguous()
    return columns.view(torch.uint8)


def unpack(data: Tensor, format: Format, n: int, k: int, group: int) -> Tensor:
    """(N, K) float32: the weights that packed bytes stand for."""
    wide = padded_k(format, k, group)
    rows = data.view(-1, block_bytes(format, k, group))
    blocks = len(rows)
    match format:
        case Format.FLOAT32:
            values = rows.view(torch.float32).view(blocks, wide, LANES, 1)
        case Format.BFLOAT16:
            values = rows.view(torch.bfloat16).view(blocks, wide // 2, LANES, 2).float()
        case Format.FP8:
            codes = rows[:, : 16 * wide].contiguous().view(torch.float8_e4m3fn)
            scales = rows[:, 16 * wide :].contiguous().view(torch.float32)
            values = codes.float().view(blocks, wide // group, group // 2, LANES, 2)
            values = values * scales.view(blocks, wide // group, 1, LANES, 1)
        case Format.INT8:
            groups = rows.view(blocks, wide // group, 16 * group + 64)
            scales = groups[..., 16 * group :].contiguous().view(torch.float32)
            centred = groups[..., : 16 * group].float() - 128
            values = centred.view(blocks, wide // group, group // 4, LANES, 4)
            values = values * scales.view(blocks, wide // group, 1, LANES, 1)
        case Format.INT4:
            groups = rows.view(blocks, wide // group, 8 * group + 64)
            tail = groups[..., 8 * group :].contiguous().view(torch.float16).float()
            scales, offsets = tail.view(blocks, wide // group, 2, 1, LANES, 1).unbind(2)
            both = groups[..., : 8 * group].reshape(blocks, wide // group, group // 8, 1, LANES, 4)
            nibbles = torch.cat((both & 15, both >> 4), 3).float()
            values = nibbles.flatten(2, 3) * scales + offsets
    columns = values.reshape(blocks, -1, LANES, values.shape[-1]).transpose(1, 2)
    return columns.reshape(blocks * LANES, wide)[:n, :k].contiguous()


def linear(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    activation: Activation = "none",
    out_dtype: torch.dtype | None = None,
    input_bits: int = 16,
) -> Tensor:
    """activation(x W^T), summed in float32 (float64 for float64), rounded once.

    x           (..., K)     bfloat16, float32 or float64
    weight      (N, K)       packed, or a plain matrix, which is packed for the call; float32 and
                             bfloat16 may meet
    out_dtype   of the result; x's if omitted
    input_bits  8 or 16: how finely x is rounded, group by group, for int8 and int4 weights

    Returns (..., N).
    """
    out_dtype = out_dtype or x.dtype
    check_input_bits(input_bits)
    k = weight.k if isinstance(weight, PackedMatrix) else weight.shape[1]
    if x.shape[-1] != k:
        raise ValueError(f"x has {x.shape[-1]} inputs, the matrix takes {k}")
    if isinstance(weight, PackedMatrix):
        if needs_gradient(x):
            raise ValueError(f"the weight is {NO_GRADIENT}")
        extension = native_for(x)
        if extension is not None and out_dtype in DTYPES:
            return _run(extension, x, weight, activation, out_dtype, input_bits)
        return linear_reference(x, weight, activation=activation, out_dtype=out_dtype)
    extension = native_for(x, weight)
    if extension is None or out_dtype not in DTYPES:
        return linear_reference(x, weight, activation=activation, out_dtype=out_dtype)
    if needs_gradient(x, weight):
        out: Tensor = _Linear.apply(x, weight, activation, out_dtype)  # type: ignore[no-untyped-call]
        return out
    return _run(extension, x, pack(weight), activation, out_dtype, input_bits)


def _run(
    extension: ModuleType,
    x: Tensor,
    matrix: PackedMatrix,
    activation: Activation,
    out_dtype: torch.dtype,
    input_bits: int,
    sums: Tensor | None = None,
) -> Tensor:
    """One call of the kernel; sums (rows, N) receives what goes into the activation."""
    rows = x if x.ndim == 2 else x.reshape(-1, matrix.k)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    out = torch.empty((*x.shape[:-1], matrix.n), dtype=out_dtype)
    extension.linear(
        rows.data_ptr(),
        DTYPES[x.dtype],
        len(rows),
        rows.stride(0),
        matrix.handle,
        input_bits,
        out.data_ptr(),
        DTYPES[out_dtype],
        matrix.n,
        _ACTIVATIONS[activation],
        0 if sums is None else sums.data_ptr(),
    )
    return out


def linear_reference(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    activation: Activation = "none",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The same in plain torch."""
    wide = torch.promote_types(x.dtype, torch.float32)
    matrix = weight.unpack() if isinstance(weight, PackedMatrix) else weight
    out = F.linear(x.to(wide), matrix.to(wide))
    if activation != "none":
        out = F.silu(out) if activation == "silu" else out.sigmoid()
    return out.to(out_dtype or x.dtype)


class _Linear(torch.autograd.Function):
    """The kernel's forward; the backward pass is two products more of the same kernel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, activation: Activation, out_dtype: torch.dtype
    ) -> Tensor:
        extension = native()
        assert extension is not None
        sums = None
        if activation != "none":
            sums = torch.empty(*x.shape[:-1], len(weight), dtype=x.dtype)
        ctx.activation = activation
        ctx.save_for_backward(x, weight, sums)
        return _run(extension, x, pack(weight), activation, out_dtype, 16, sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, sums = ctx.saved_tensors
        extension = native()
        assert extension is not None
        n, k = weight.shape
        flat = x.reshape(-1, k)
        rows = len(flat)
        gradient = gradient.contiguous()
        dtype = gradient.dtype if sums is None else sums.dtype
        dz = gradient if sums is None else torch.empty(gradient.shape, dtype=dtype)
        transposed = transposed_buffer(n, rows, dtype)
        extension.activation_backward(
            gradient.data_ptr(),
            DTYPES[gradient.dtype],
            rows,
            n,
            0 if sums is None else sums.data_ptr(),
            _ACTIVATIONS[ctx.activation],
            DTYPES[dtype],
            0 if sums is None else dz.data_ptr(),
            transposed.data_ptr(),
            transposed.stride(0),
        )
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        return (
            product(dz, weight.t(), x.dtype) if wants_x else None,
            product(transposed, flat.t(), weight.dtype) if wants_weight else None,
            None,
            None,
        )


def product(rows: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """rows (..., K) times the transpose of matrix (N, K), any strides: (..., N) of dtype."""
    extension = native()
    assert extension is not None
    return _run(extension, rows, pack(matrix), "none", dtype, 16)


def transposed_buffer(n: int, rows: int, dtype: torch.dtype) -> Tensor:
    """(n, rows), its rows not a power of two apart: that would crowd a few sets of the cache."""
    return torch.empty(n, rows + 32, dtype=dtype)[:, :rows]
