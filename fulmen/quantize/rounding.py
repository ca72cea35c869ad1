"""Weights rounded to 8 or 4 bits, or to e4m3, with the scales that lose least.

A group of inputs shares a scale (8 bits, and 4 bits with the levels of a codebook), or a scale and
an offset (4 bits with even levels). The scales are searched: several ranges are tried, and the one
with the smallest squared error is taken. Even levels are fitted to their codes by least squares,
and the full range is always among the candidates, so weights that were rounded to such groups
before (a Q8_0 or Q4_1 GGUF) come back unchanged. The search for the codebook is in
`fulmen/kernels/codebook.py`.

Groups lie side by side, (group, M), so that every step of the search works on whole rows of memory.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.kernels import (
    PackedMatrix,
    WeightFormat,
    codebook_values,
    nearest_codes,
    output_scales,
    pack_codebook4,
    pack_fp8,
    pack_int4,
    pack_int8,
    search_codebook,
)

CHUNK_ELEMENTS: Final = 2**18
"""Number of weights that are rounded, packed and compared at a time."""
_SEARCHED_ELEMENTS: Final = 2**15
"""Number of weights whose scales are searched at a time: few enough to stay in a core's own cache
with all intermediate values, and enough that the work outweighs the calls."""
_RANGES_AT_ONCE: Final = 4
"""Number of ranges that are tried in one operation."""

_INT8_RANGES: Final = tuple(0.99 + step / 100 for step in range(16))
"""Candidate ranges for 8 bits, as shares of the range of the weights. 8 bits have codes to spare: a
slightly larger range shifts all codes, and the shift with the smallest error is taken."""
_MORE_INT8_RANGES: Final = tuple(1.15 + step / 100 for step in range(16))
"""Further ranges for groups of 32, for weights that lay on 16 levels before (a Q4 GGUF)."""
_INT4_RANGES: Final = (1.0, 0.94, 0.88, 0.82)
"""Candidate ranges for 4 bits: a few outliers are clipped so that all other weights are finer."""
_FITS: Final = 3
"""Number of times a 4-bit range is judged: as it is, then fitted to the codes it gave."""

FP8_BLOCK: Final = (128, 128)
"""Rows and columns of weights that share a scale in FP8."""
_FP8_MAX: Final = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True, slots=True)
class Rounded:
    """Packed matrix, or some rows of one, and the error of its rounding."""

    data: Tensor
    """(bytes,) uint8: whole blocks of 16 rows"""
    squared_error: float
    squared_norm: float


@dataclass(frozen=True, slots=True)
class Grid:
    """Values that the weights of M groups may take: scale * code + offset."""

    scale: Tensor
    """(M,) float32, as it will be stored"""
    offset: Tensor
    """(M,) float32, as it will be stored; zeros for 8 bits"""
    lowest: int
    highest: int

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes nearest to x, (..., M) -> (..., M) float32."""
        # Where the scale is 0 all codes are equal.
        inverse = torch.where(self.scale == 0, 0, 1 / self.scale)
        codes = torch.addcmul(-self.offset * inverse, x, inverse)
        return codes.round_().clamp_(self.lowest, self.highest)

    def values(self, codes: Tensor) -> Tensor:
        """Return the values of codes, (..., M) -> (..., M) float32."""
        return torch.addcmul(self.offset, codes, self.scale)


@dataclass(frozen=True, slots=True)
class CodebookGrid:
    """Values that the weights of M groups may take: column * scale * (level - zero)."""

    columns: Tensor
    """(M,) float32"""
    scales: Tensor
    """(M,) int8"""
    zeros: Tensor
    """(M,) uint8, numbers of zero points"""

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes nearest to x, (..., M) -> (..., M) uint8."""
        return nearest_codes(x, self.columns, self.scales, self.zeros)

    def values(self, codes: Tensor) -> Tensor:
        """Return the values of codes, (..., M) -> (..., M) float32."""
        return codebook_values(codes, self.columns, self.scales, self.zeros)


def find_codebook_grid(x: Tensor, columns: Tensor) -> CodebookGrid:
    """Find scales and zero points with the smallest error on x (group, M) float32, where the scales
    of the outputs, columns (M,), are fixed."""
    _, scales, zeros = search_codebook(x.t(), columns, len(x))
    return CodebookGrid(columns, scales[:, 0], zeros[:, 0])


def find_grid(x: Tensor, format: WeightFormat) -> Grid:
    """Find the scales, for INT4 also offsets, with the smallest error on x (group, M) float32."""
    search = int8_grid if format == WeightFormat.INT8 else int4_grid
    parts = torch.split(x, max(_SEARCHED_ELEMENTS // len(x), 1), 1)
    grids = [search(part.contiguous()) for part in parts]
    return replace(
        grids[0],
        scale=torch.cat([grid.scale for grid in grids]),
        offset=torch.cat([grid.offset for grid in grids]),
    )


def int8_grid(x: Tensor) -> Grid:
    """Find scales for x (group, M) float32 as scale * code, code from -128 to 127."""
    full = x.abs().amax(0) / 127
    zero = torch.zeros_like(full)
    codes = x.new_empty(_RANGES_AT_ONCE, *x.shape)
    products = torch.empty_like(codes)

    def fit(scale: Tensor) -> tuple[Tensor, Tensor]:
        """Fit scales (R, 1, M) to the codes that they give; return new scales and their errors.

        With codes q the best scale is (x . q) / (q . q). Its error is x . x - (x . q)^2 / (q . q),
        here without the constant x . x.
        """
        inverse = torch.where(scale == 0, 0, 1 / scale)
        found = torch.mul(x, inverse, out=codes[: len(scale)]).round_().clamp_(-128, 127)
        dot = torch.mul(x, found, out=products[: len(scale)]).sum(1, keepdim=True)
        norm = found.square_().sum(1, keepdim=True).clamp_(min=1)
        return dot / norm, -dot.square() / norm

    best, least = full[None, None], torch.full_like(full, torch.inf)[None, None]
    ranges = torch.tensor(_INT8_RANGES + _MORE_INT8_RANGES * (len(x) == 32))
    for shares in torch.split(ranges[:, None, None], _RANGES_AT_ONCE):
        scales, errors = fit(full * shares)
        error, range = errors.min(0, keepdim=True)
        best = torch.where(error < least, scales.gather(0, range), best)
        least = torch.minimum(error, least)
    return Grid(fit(best)[0].flatten(), zero, -128, 127)


def int4_grid(x: Tensor) -> Grid:
    """Find float16 scales and offsets for x (group, M) float32; codes are from 0 to 15."""
    group = len(x)
    low, high, total = x.amin(0), x.amax(0), x.sum(0)
    shares = torch.tensor(_INT4_RANGES)[:, None, None]  # (R, 1, 1)
    width = (high - low) * shares
    factors = torch.stack((width / 15, (low + high - width) / 2))  # (2, R, 1, M)
    factors[1, 0] = low
    best, least = factors, torch.full_like(width, torch.inf)
    codes, work = x.new_empty(2, len(shares), *x.shape)
    for fits_left in reversed(range(_FITS)):
        factors = factors.half().float()
        scale, offset = factors
        inverse = torch.where(scale == 0, 0, 1 / scale)
        torch.addcmul(-offset * inverse, x, inverse, out=codes).round_().clamp_(0, 15)
        error = torch.addcmul(offset, codes, scale, out=work).sub_(x).square_().sum(1, keepdim=True)
        is_better = error < least
        least = torch.where(is_better, error, least)
        best = torch.where(is_better, factors, best)
        if fits_left:  # least squares of x on the codes
            ones, dot = (y.sum(1, keepdim=True) for y in (codes, torch.mul(x, codes, out=work)))
            determinant = group * codes.square_().sum(1, keepdim=True) - ones.square()
            fitted = (group * dot - ones * total) / determinant
            scale = torch.where(determinant > 0, fitted, scale)
            factors = torch.stack((scale, (total - scale * ones) / group))
    range_ = least.argmin(0, keepdim=True).expand(2, 1, 1, -1)
    scale, offset = best.gather(1, range_).flatten(1)
    return Grid(scale, offset, 0, 15)


def round_rows(weight: Tensor, format: WeightFormat, group: int) -> Iterator[Rounded]:
    """Round a matrix (N, K) of any float dtype, some rows at a time; the parts in order are the
    packed whole."""
    # A part is a whole number of packed blocks, and for FP8 of scale blocks.
    whole = FP8_BLOCK[0] if format == WeightFormat.FP8 else 16
    step = max(CHUNK_ELEMENTS // weight.shape[1] // whole, 1) * whole
    with single_threads() as pool:
        yield from pool.map(
            lambda rows: round_matrix(rows, format, group), torch.split(weight, step)
        )


@contextmanager
def single_threads(most: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of as many threads as torch has, at most `most`; each does its torch work alone.

    torch's own threads would wait for each other after every small operation. And with one thread
    to an operation, no bit depends on the number of threads.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(num_threads, most or num_threads)) as pool:
            yield pool
    finally:
        torch.set_num_threads(num_threads)


def round_matrix(weight: Tensor, format: WeightFormat, group: int) -> Rounded:
    """Round a matrix (N, K) of any float dtype."""
    weight = weight.float()
    return compared(_ROUND[format](weight, group), weight)


def compared(matrix: PackedMatrix, weight: Tensor) -> Rounded:
    """Return a packed matrix with its error against `weight` (N, K) float32."""
    error = matrix.unpack().sub_(weight)
    return Rounded(matrix.data, _squared_norm(error), _squared_norm(weight))


def check_rounded(name: str, squared_error: float, squared_norm: float) -> None:
    """Raise a ValueError for a tensor whose values the rounding could not hold."""
    if not math.isfinite(squared_norm):
        raise ValueError(
            f"{name} holds values that are not finite, or too large to be squared, it cannot be "
            "rounded"
        )
    if not math.isfinite(squared_error):
        raise ValueError(
            f"{name} holds values too large for 4 bits with even levels, whose scales and offsets "
            "are float16; 8 bits and the levels of the codebook can hold them"
        )


def _squared_norm(x: Tensor) -> float:
    return float(torch.dot(x.flatten(), x.flatten()))


def round_int8(weight: Tensor, group: int) -> PackedMatrix:
    """Round weight (N, K) float32 to scale * code, code from -128 to 127."""
    return _round_groups(weight, WeightFormat.INT8, group)


def round_int4(weight: Tensor, group: int) -> PackedMatrix:
    """Round weight (N, K) float32 to scale * code + offset in float16, code from 0 to 15."""
    return _round_groups(weight, WeightFormat.INT4, group)


def round_codebook4(weight: Tensor, group: int) -> PackedMatrix:
    """Round weight (N, K) float32 to column * scale * (level - zero), the level of 16."""
    columns = output_scales(weight)
    return pack_codebook4(*search_codebook(weight, columns, group), columns, group)


def _round_groups(weight: Tensor, format: WeightFormat, group: int) -> PackedMatrix:
    n, k = weight.shape
    # A ragged last group repeats its last input, which does not change its range.
    last = weight[:, -1:].expand(n, -k % group)
    groups = torch.cat((weight, last), 1).view(n, -1, group)
    x = groups.permute(2, 0, 1).reshape(group, -1)  # (group, N * groups)
    grid = find_grid(x, format)
    codes = grid.codes(x).view(group, n, -1).permute(1, 2, 0).flatten(1)[:, :k]
    return pack_grid(codes, grid.scale.view(n, -1), grid.offset.view(n, -1), format, group)


def pack_grid(
    codes: Tensor, scales: Tensor, offsets: Tensor, format: WeightFormat, group: int
) -> PackedMatrix:
    """Pack codes (N, K) float32 with scales and offsets (N, ceil(K / group)) of grids."""
    if format == WeightFormat.INT8:
        return pack_int8(codes.to(torch.int8), scales, group)
    return pack_int4(codes.to(torch.uint8), scales.half(), offsets.half(), group)


def round_fp8(weight: Tensor, group: int) -> PackedMatrix:
    """Round weight (N, K) float32 to e4m3 with a float32 scale for each block of 128 x 128."""
    n, k = weight.shape
    rows, columns = FP8_BLOCK
    padded = F.pad(weight, (0, -k % columns, 0, -n % rows))
    blocks = padded.view(-1, rows, padded.shape[1] // columns, columns)
    scales = blocks.abs().amax((1, 3)) / _FP8_MAX  # (ceil(N / 128), ceil(K / 128))
    inverse = torch.where(scales == 0, 0, 1 / scales)
    codes = (blocks * inverse[:, None, :, None]).to(torch.float8_e4m3fn)
    whole = codes.view(padded.shape)[:n, :k]
    return pack_fp8(whole.contiguous(), scales, FP8_BLOCK)


_ROUND: Final[dict[WeightFormat, Callable[[Tensor, int], PackedMatrix]]] = {
    WeightFormat.FP8: round_fp8,
    WeightFormat.INT8: round_int8,
    WeightFormat.INT4: round_int4,
    WeightFormat.CODEBOOK4: round_codebook4,
}
