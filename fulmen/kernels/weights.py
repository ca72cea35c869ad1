"""Packed matrices: the formats in which kernels read weights, packing and unpacking in torch.

The bytes are those of a quantised checkpoint, so a matrix is used where it lies in the file.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

LANES: Final = 16
"""Columns of a packed block."""
MAX_GROUP: Final = 128
"""Inputs of the largest group the kernels take."""
LEVELS: Final = (0, 7, 12, 17, 21, 24, 27, 30, 33, 36, 39, 42, 45, 49, 53, 59)
"""Values of the codes 0 to 15 of CODEBOOK4, before zero point and scale: dense in the middle,
where most weights are, and for most zero points longer below than above, so that the sign of a
scale says on which side of zero a group's largest weight lies."""
ZEROS: Final = (29, 31, 33, 35)
"""Zero points that a group of CODEBOOK4 chooses from."""
MAX_SCALE: Final = 31
"""Largest scale of a CODEBOOK4 group, in units of its column's."""
RUN: Final = 4
"""Groups of CODEBOOK4 whose scales share a line of 64 bytes."""


class WeightFormat(enum.IntEnum):
    """Packing of a matrix; docs/kernels.md gives the bytes."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FP8 = 2
    INT8 = 3
    INT4 = 4
    CODEBOOK4 = 5


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A weight matrix (N, K) in the order the kernels read it."""

    data: Tensor
    """(bytes,) uint8, contiguous: blocks of 16 columns, each as `WeightFormat` says"""
    format: WeightFormat
    n: int
    k: int
    group: int = 0
    """Inputs that share a scale; 0 for float32 and bfloat16, which have none."""
    views: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    """Descriptions of the same memory that backends made, by backend."""

    def __post_init__(self) -> None:
        needed = packed_bytes(self.format, self.n, self.k, self.group)
        is_plain = self.data.dtype == torch.uint8 and self.data.is_contiguous()
        if not is_plain or self.data.numel() != needed:
            raise ValueError(
                f"a packed {self.format.name} matrix ({self.n}, {self.k}) has {self.data.numel()} "
                f"values of {self.data.dtype}, {needed} bytes are needed"
            )

    def unpack(self) -> Tensor:
        """Return the weights these bytes stand for: (N, K) float32."""
        return _unpack(self.data, self.format, self.n, self.k, self.group)


def padded_k(format: WeightFormat, k: int, group: int) -> int:
    """Return K as packed: whole tiles of 32 for bfloat16, whole groups where there are any."""
    step = {WeightFormat.FLOAT32: 1, WeightFormat.BFLOAT16: 32}.get(format, group)
    return -(-k // step) * step


def block_bytes(format: WeightFormat, k: int, group: int) -> int:
    """Return the bytes of one packed block of 16 columns."""
    k = padded_k(format, k, group)
    match format:
        case WeightFormat.FLOAT32:
            return 64 * k
        case WeightFormat.BFLOAT16:
            return 32 * k
        case WeightFormat.FP8 | WeightFormat.INT8:
            return 16 * k + 64 * (k // group)
        case WeightFormat.INT4:
            return 8 * k + 64 * (k // group)
        case WeightFormat.CODEBOOK4:
            return 8 * k + 64 * -(-(k // group) // RUN) + 64


def packed_bytes(format: WeightFormat, n: int, k: int, group: int = 0) -> int:
    """Return the bytes of a packed matrix (n, k)."""
    return -(-n // LANES) * block_bytes(format, k, group)


def format_of(dtype: torch.dtype) -> WeightFormat:
    """Return the format that holds values of dtype as they are."""
    match dtype:
        case torch.float32:
            return WeightFormat.FLOAT32
        case torch.bfloat16:
            return WeightFormat.BFLOAT16
        case _:
            raise ValueError(f"a matrix of {dtype} cannot be packed, only float32 and bfloat16")


def plain_dtype(format: WeightFormat) -> torch.dtype | None:
    """Return the dtype of the values that a format holds as they are; None where it rounds."""
    return {
        WeightFormat.FLOAT32: torch.float32,
        WeightFormat.BFLOAT16: torch.bfloat16,
    }.get(format)


def pack_reference(weight: Tensor) -> PackedMatrix:
    """Pack a float32 or bfloat16 matrix (N, K) as it is, in plain torch."""
    format = format_of(weight.dtype)
    n, k = weight.shape
    per = 1 if format == WeightFormat.FLOAT32 else 2
    columns = _columns(weight.detach(), padded_k(format, k, 0), per)
    return PackedMatrix(_bytes(columns).flatten(), format, n, k)


def concatenate(matrices: Sequence[PackedMatrix]) -> PackedMatrix | None:
    """Return one matrix with the outputs of all, in order; None where formats or inputs differ, or
    where one does not end with a whole block of 16 columns."""
    first = matrices[0]
    kinds = {(m.format, m.group, m.k) for m in matrices}
    if len(kinds) > 1 or any(m.n % LANES for m in matrices):
        return None
    data = torch.cat([m.data for m in matrices])
    return PackedMatrix(data, first.format, sum(m.n for m in matrices), first.k, first.group)


def _columns(values: Tensor, k: int, per: int) -> Tensor:
    """Pad with zeros and cut: (N, K) -> (blocks, k / per, 16, per)."""
    blocks = -(-len(values) // LANES)
    padded = values.new_zeros(blocks * LANES, k)
    padded[: len(values), : values.shape[1]] = values
    return padded.view(blocks, LANES, k // per, per).transpose(1, 2).contiguous()


def _bytes(x: Tensor) -> Tensor:
    """View as bytes: (blocks, ...) -> (blocks, bytes) uint8."""
    return x.contiguous().view(len(x), -1).view(torch.uint8)


def pack_fp8(weight: Tensor, scales: Tensor, block_size: tuple[int, int]) -> PackedMatrix:
    """Pack e4m3 weights (N, K) with scales (ceil(N / rows), ceil(K / columns)) float32 of blocks
    of rows x columns, as the checkpoint stores them."""
    (n, k), (rows, group) = weight.shape, block_size
    if rows % LANES or group % 32 or group > MAX_GROUP:
        raise ValueError(
            f"FP8 blocks of {rows} x {group} cannot be packed: rows must be a multiple of 16, "
            f"columns of 32 and at most {MAX_GROUP}"
        )
    wide = padded_k(WeightFormat.FP8, k, group)
    codes = _columns(weight.view(torch.uint8), wide, 2)
    by_block = scales.repeat_interleave(rows // LANES, 0)[: len(codes)]  # (blocks, groups)
    spread = by_block.float()[:, :, None].expand(-1, -1, LANES)
    data = torch.cat((_bytes(codes), _bytes(spread)), 1).flatten()
    return PackedMatrix(data, WeightFormat.FP8, n, k, group)


def pack_int8(codes: Tensor, scales: Tensor, group: int) -> PackedMatrix:
    """Pack codes (N, K) int8 with scales (N, ceil(K / group)) float32: weight = scale * code."""
    _check_group(group)
    n, k = codes.shape
    wide = padded_k(WeightFormat.INT8, k, group)
    # Padding holds code 0, which is 128 as stored.
    shifted = _columns(codes, wide, 4).view(torch.uint8) ^ 128
    blocks, groups = len(shifted), wide // group
    grouped = _bytes(shifted).view(blocks, groups, group * LANES)
    data = torch.cat((grouped, _spread(scales, blocks)), 2).flatten()
    return PackedMatrix(data, WeightFormat.INT8, n, k, group)


def pack_int4(codes: Tensor, scales: Tensor, offsets: Tensor, group: int) -> PackedMatrix:
    """Pack codes (N, K) uint8 from 0 to 15 with scales and offsets (N, ceil(K / group)) float16:
    weight = scale * code + offset."""
    _check_group(group)
    n, k = codes.shape
    wide = padded_k(WeightFormat.INT4, k, group)
    nibbles = _nibbles(codes, wide)
    blocks, groups = len(nibbles), wide // group
    grouped = nibbles.view(blocks, groups, group * LANES // 2)
    data = torch.cat((grouped, _spread(scales, blocks), _spread(offsets, blocks)), 2).flatten()
    return PackedMatrix(data, WeightFormat.INT4, n, k, group)


def pack_codebook4(
    codes: Tensor, scales: Tensor, zeros: Tensor, columns: Tensor, group: int
) -> PackedMatrix:
    """Pack weights column * scale * (LEVELS[code] - ZEROS[zero]).

    codes    (N, K) uint8, 0 to 15
    scales   (N, ceil(K / group)) integers from -MAX_SCALE to MAX_SCALE
    zeros    (N, ceil(K / group)) integers from 0 to 3
    columns  (N,) float32, the scale of each output

    Raises ValueError for other shapes or numbers.
    """
    _check_group(group)
    n, k = codes.shape
    grid = (n, -(-k // group))
    for name, values, shape, low, high in (
        ("codes", codes, (n, k), 0, 15),
        ("scales", scales, grid, -MAX_SCALE, MAX_SCALE),
        ("zeros", zeros, grid, 0, len(ZEROS) - 1),
        ("columns", columns, (n,), None, None),
    ):
        if values.shape != shape:
            raise ValueError(f"{name} has the shape {(*values.shape,)}, it must be {shape}")
        if low is None or high is None or not values.numel():
            continue
        least, most = int(values.min()), int(values.max())
        if least < low or most > high:
            raise ValueError(f"{name} go from {least} to {most}, they must lie in {low} to {high}")
    wide = padded_k(WeightFormat.CODEBOOK4, k, group)
    nibbles = _nibbles(codes, wide)  # (blocks, bytes)
    blocks, groups = len(nibbles), wide // group
    runs = -(-groups // RUN)
    both = (4 * scales.to(torch.int16) + zeros.to(torch.int16)).to(torch.int8)
    of_runs = F.pad(_spread(both, blocks), (0, 0, 0, RUN * runs - groups)).view(blocks, runs, -1)
    missing = (RUN * runs - groups) * group * LANES // 2
    code_runs = F.pad(nibbles, (0, missing)).view(blocks, runs, -1)
    whole = torch.cat((of_runs, code_runs), 2).flatten(1)
    whole = whole[:, : whole.shape[1] - missing]
    data = torch.cat((whole, _spread(columns[:, None].float(), blocks).flatten(1)), 1).flatten()
    return PackedMatrix(data, WeightFormat.CODEBOOK4, n, k, group)


def _nibbles(codes: Tensor, k: int) -> Tensor:
    """Put codes (N, K) of 4 bits two to a byte: (blocks, bytes) uint8."""
    quads = _columns(codes, k, 4)  # (blocks, K / 4, 16, 4)
    pairs = quads.view(len(quads), k // 8, 2, LANES, 4)
    return _bytes(pairs[:, :, 0] | pairs[:, :, 1] << 4)


def _check_group(group: int) -> None:
    if group % 32 or not 0 < group <= MAX_GROUP:
        raise ValueError(f"the group is {group}, it must be a multiple of 32, at most {MAX_GROUP}")


def _spread(values: Tensor, blocks: int) -> Tensor:
    """Put 16 columns' values side by side: (N, groups) -> (blocks, groups, bytes) uint8."""
    padded = values.new_zeros(blocks * LANES, values.shape[1])
    padded[: len(values)] = values
    columns = padded.view(blocks, LANES, -1).transpose(1, 2).contiguous()
    return columns.view(torch.uint8)


def _unpack(data: Tensor, format: WeightFormat, n: int, k: int, group: int) -> Tensor:
    """Return the weights (N, K) float32 that packed bytes stand for."""
    wide = padded_k(format, k, group)
    rows = data.view(-1, block_bytes(format, k, group))
    blocks = len(rows)
    match format:
        case WeightFormat.FLOAT32:
            values = rows.view(torch.float32).view(blocks, wide, LANES, 1)
        case WeightFormat.BFLOAT16:
            values = rows.view(torch.bfloat16).view(blocks, wide // 2, LANES, 2).float()
        case WeightFormat.FP8:
            codes = rows[:, : 16 * wide].contiguous().view(torch.float8_e4m3fn)
            scales = rows[:, 16 * wide :].contiguous().view(torch.float32)
            values = codes.float().view(blocks, wide // group, group // 2, LANES, 2)
            values = values * scales.view(blocks, wide // group, 1, LANES, 1)
        case WeightFormat.INT8:
            groups = rows.view(blocks, wide // group, 16 * group + 64)
            scales = groups[..., 16 * group :].contiguous().view(torch.float32)
            centred = groups[..., : 16 * group].float() - 128
            values = centred.view(blocks, wide // group, group // 4, LANES, 4)
            values = values * scales.view(blocks, wide // group, 1, LANES, 1)
        case WeightFormat.INT4:
            groups = rows.view(blocks, wide // group, 8 * group + 64)
            tail = groups[..., 8 * group :].contiguous().view(torch.float16).float()
            scales, offsets = tail.view(blocks, wide // group, 2, 1, LANES, 1).unbind(2)
            codes = _codes(groups[..., : 8 * group], blocks, wide // group)
            values = codes.float() * scales + offsets
        case WeightFormat.CODEBOOK4:
            count = wide // group
            runs, missing = -(-count // RUN), -count % RUN * group * LANES // 2
            of_runs = F.pad(rows[:, :-64], (0, missing)).view(blocks, runs, -1)
            both = of_runs[:, :, : RUN * LANES].reshape(blocks, -1)[:, : count * LANES]
            both = both.contiguous().view(torch.int8)
            nibbles = of_runs[:, :, RUN * LANES :].reshape(blocks, -1)[:, : 8 * wide]
            codes = _codes(nibbles, blocks, count)
            both = both.view(blocks, count, 1, LANES, 1)
            levels = torch.tensor(LEVELS, dtype=torch.float32, device=data.device)[codes.int()]
            zeros = torch.tensor(ZEROS, dtype=torch.float32, device=data.device)[both.int() & 3]
            columns = rows[:, -64:].contiguous().view(torch.float32).view(blocks, 1, 1, LANES, 1)
            values = (levels - zeros) * (both >> 2).float() * columns
    columns = values.reshape(blocks, -1, LANES, values.shape[-1]).transpose(1, 2)
    return columns.reshape(blocks * LANES, wide)[:n, :k].contiguous()


def _codes(nibbles: Tensor, blocks: int, groups: int) -> Tensor:
    """Take codes of 4 bits out of their bytes: -> (blocks, groups, group / 4, 16, 4) uint8."""
    both = nibbles.reshape(blocks, groups, -1, 1, LANES, 4)
    return torch.cat((both & 15, both >> 4), 3).flatten(2, 3)
