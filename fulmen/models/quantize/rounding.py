"""Weights rounded to 8 or 4 bits, or to e4m3: which scales lose least.

A group of inputs shares a scale (8 bits), or a scale and an offset (4 bits). They are searched:
several ranges are tried, each is refitted to its codes by least squares, and the one with the
smallest squared error stays. The full range is always among the candidates, so what was rounded to
such groups before (a Q8_0 or Q4_1 GGUF) comes back as it was.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.kernels import Format, PackedMatrix, pack_fp8, pack_int4, pack_int8

CHUNK_ELEMENTS: Final = 2**19
"""Weights that are rounded at a time: what is made on the way stays in the processor's cache."""

_INT8_RANGES: Final = tuple(0.99 + step / 100 for step in range(16))
"""8 bits leave room: a little more range than needed moves the codes, and of several places the
best is taken."""
_INT4_RANGES: Final = (1.0, 0.94, 0.88, 0.82)
"""4 bits do not: a few outliers are clipped so that all others are finer."""
_FITS: Final = 3
"""How often scale and offset of a 4-bit range are refitted to the codes they give."""

FP8_BLOCK: Final = (128, 128)
_FP8_MAX: Final = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True, slots=True)
class Rounded:
    """Some rows of a matrix, packed, and what the rounding cost."""

    data: Tensor
    """(bytes,) uint8: whole blocks of 16 rows"""
    squared_error: float
    squared_norm: float


def round_rows(weight: Tensor, format: Format, group: int) -> Iterator[Rounded]:
    """A matrix (N, K) of any float dtype, some rows at a time; the parts one after the other are
    the packed whole.

    A part is the work of one thread, because torch's own threads would wait for each other after
    every small operation; so no bit depends on how many there are.
    """
    whole = FP8_BLOCK[0]  # of FP8's blocks, and of the blocks of 16 columns of all formats
    step = max(CHUNK_ELEMENTS // weight.shape[1] // whole, 1) * whole
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            yield from pool.map(
                lambda rows: _rounded(rows, format, group), torch.split(weight, step)
            )
    finally:
        torch.set_num_threads(num_threads)


def _rounded(rows: Tensor, format: Format, group: int) -> Rounded:
    rows = rows.float()
    matrix = _ROUND[format](rows, group)
    error = matrix.unpack().sub_(rows)
    return Rounded(matrix.data, float(_squared_norm(error)), float(_squared_norm(rows)))


def _squared_norm(x: Tensor) -> Tensor:
    return torch.dot(x.flatten(), x.flatten())


def round_int8(weight: Tensor, group: int) -> PackedMatrix:
    """weight (N, K) float32 as scale * code, code from -128 to 127."""
    x = _grouped(weight, group)
    full = x.abs().amax(-1) / 127
    best, least = full, torch.full_like(full, torch.inf)
    for share in _INT8_RANGES:
        scale = full * share
        codes = _int8_codes(x, scale)
        # The best scale for these codes, and the error it leaves: sum x^2 - (x . q)^2 / (q . q).
        dot, norm = _dot(x, codes), _dot(codes, codes).clamp_(min=1)
        error = -dot.square() / norm
        is_better = error < least
        least = torch.where(is_better, error, least)
        best = torch.where(is_better, dot / norm, best)
    codes = _int8_codes(x, best).to(torch.int8)
    return pack_int8(codes.flatten(1)[:, : weight.shape[1]], best, group)


def _int8_codes(x: Tensor, scale: Tensor) -> Tensor:
    return (x * _inverse(scale)[..., None]).round_().clamp_(-128, 127)


def round_int4(weight: Tensor, group: int) -> PackedMatrix:
    """weight (N, K) float32 as scale * code + offset, code from 0 to 15, both factors float16."""
    x = _grouped(weight, group)
    low, high = x.amin(-1), x.amax(-1)
    total = x.sum(-1)
    best = low.half(), low.half()
    least = torch.full_like(low, torch.inf)
    for share in _INT4_RANGES:
        scale = (high - low) * (share / 15)
        offset = low + (high - low) * ((1 - share) / 2)
        for _ in range(_FITS):
            rounded = scale.half(), offset.half()
            codes = _int4_codes(x, *rounded)
            error = _error_of(x, codes, *rounded)
            is_better = error < least
            least = torch.where(is_better, error, least)
            best = (
                torch.where(is_better, rounded[0], best[0]),
                torch.where(is_better, rounded[1], best[1]),
            )
            # Least squares of x on the codes.
            ones, norm, dot = codes.sum(-1), _dot(codes, codes), _dot(x, codes)
            determinant = group * norm - ones.square()
            fitted = (group * dot - ones * total) / determinant
            scale = torch.where(determinant > 0, fitted, scale)
            offset = (total - scale * ones) / group
    codes = _int4_codes(x, *best).to(torch.uint8)
    return pack_int4(codes.flatten(1)[:, : weight.shape[1]], *best, group)


def _int4_codes(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    centred = x - offset.float()[..., None]
    return centred.mul_(_inverse(scale.float())[..., None]).round_().clamp_(0, 15)


def _error_of(x: Tensor, codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    restored = codes * scale.float()[..., None]
    restored.add_(offset.float()[..., None]).sub_(x)
    return _dot(restored, restored)


def round_fp8(weight: Tensor, group: int) -> PackedMatrix:
    """weight (N, K) float32 as e4m3 with a float32 scale for each block of 128 x 128."""
    n, k = weight.shape
    rows, columns = FP8_BLOCK
    padded = F.pad(weight, (0, -k % columns, 0, -n % rows))
    blocks = padded.view(-1, rows, padded.shape[1] // columns, columns)
    scales = blocks.abs().amax((1, 3)) / _FP8_MAX  # (ceil(N / 128), ceil(K / 128))
    codes = (blocks * _inverse(scales)[:, None, :, None]).to(torch.float8_e4m3fn)
    whole = codes.view(padded.shape)[:n, :k]
    return pack_fp8(whole.contiguous(), scales, FP8_BLOCK)


_ROUND: Final[dict[Format, Callable[[Tensor, int], PackedMatrix]]] = {
    Format.FP8: round_fp8,
    Format.INT8: round_int8,
    Format.INT4: round_int4,
}


def _grouped(weight: Tensor, group: int) -> Tensor:
    """(N, K) -> (N, groups, group); a ragged last group repeats the last input, which leaves its
    range as it is."""
    n, k = weight.shape
    if k % group:
        last = weight[:, -1:].expand(n, -k % group)
        weight = torch.cat((weight, last), 1)
    return weight.view(n, -1, group)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ngi,ngi->ng", a, b)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where the scale is 0: all codes are equal there."""
    return torch.where(scale == 0, 0, 1 / scale)
