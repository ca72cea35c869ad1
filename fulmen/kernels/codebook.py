"""Search for the codes of a CODEBOOK4 matrix: of every group of inputs a scale and a zero point.

A column's scale is fixed first, from its largest weight. A group's scale is a whole number of it,
of either sign, and its zero point one of four, so that its best values can be found by trial: all
eight ways to lie on the levels, each with several shares of the range that it needs. The smallest
squared error wins, and among equals the first tried.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fulmen.kernels.backends import backend_for
from fulmen.kernels.weights import LEVELS, MAX_GROUP, MAX_SCALE, ZEROS

RANGES: Final = tuple(share / 32 for share in range(24, 35))
"""Shares of the range that a group needs: a few outliers may be clipped so that all other weights
are finer."""
SLACK: Final = 1.05
"""Largest scale of a column's groups, times what its largest weight needs: ranges may grow, also
after errors of other inputs were compensated (GPTQ)."""
_HALF_RANGE: Final = (ZEROS[0] + ZEROS[-1]) / 2
"""Largest distance of a weight from zero, in units of its scale, on average of the zero points."""
_SMALLEST: Final = torch.finfo(torch.float32).tiny
"""Smallest scale of a column: one that is no normal number has no inverse. Below it, which takes
weights below some 1e-35, all are zeros."""


class Codebook(NamedTuple):
    """Codes of a matrix (N, K), and what they stand for: see `pack_codebook4`."""

    codes: Tensor
    """(N, K) uint8, 0 to 15"""
    scales: Tensor
    """(N, ceil(K / group)) int8, -MAX_SCALE to MAX_SCALE"""
    zeros: Tensor
    """(N, ceil(K / group)) uint8, 0 to 3"""


def output_scales(weight: Tensor) -> Tensor:
    """Return the scales of the outputs of a matrix (N, K) float32: (N,) float32."""
    return weight.abs().amax(1) * (SLACK / _HALF_RANGE / MAX_SCALE)


def search_codebook(weight: Tensor, columns: Tensor, group: int) -> Codebook:
    """Find the codes nearest to a matrix, with the scales and zero points that err least.

    weight   (N, K) float32, any strides
    columns  (N,) float32, the scale of each output

    Weights that are not finite give some codes, no error.
    """
    if weight.dtype != torch.float32 or columns.dtype != torch.float32:
        raise ValueError(f"weights are {weight.dtype} and scales {columns.dtype}, not float32")
    if weight.dim() != 2 or columns.shape != weight.shape[:1]:
        raise ValueError(
            f"there are {tuple(columns.shape)} scales for weights of {tuple(weight.shape)}, each "
            "row needs one"
        )
    if not 0 < group <= MAX_GROUP:
        raise ValueError(f"the group is {group}, it must be 1 to {MAX_GROUP}")
    backend = backend_for(weight, columns)
    if backend is None:
        return search_codebook_reference(weight, columns, group)
    return Codebook(*backend.search_codebook(weight, columns, group))


def search_codebook_reference(weight: Tensor, columns: Tensor, group: int) -> Codebook:
    """Return what `search_codebook` does, in plain torch."""
    parts = [_search_group(part, columns) for part in torch.split(weight.detach(), group, dim=1)]
    codes, scales, zeros = zip(*parts, strict=True)
    return Codebook(torch.cat(codes, 1), torch.stack(scales, 1), torch.stack(zeros, 1))


def nearest_codes(weight: Tensor, columns: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Return the codes nearest to weights with given scales and zero points.

    weight          (..., N) float32, of one group
    columns         (N,) float32, the scale of each output
    scales, zeros   (N,), of the outputs' group

    Returns (..., N) uint8. Where a scale is 0, codes are any.
    """
    inverse = torch.where(columns >= _SMALLEST, 1 / columns, 0)
    scale = torch.where(scales == 0, 1, scales).float()
    x = weight * inverse * (1 / scale) + _table(ZEROS, weight)[zeros.long()]
    return _nearest(x).to(torch.uint8)


def codebook_values(codes: Tensor, columns: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Return the weights (..., N) float32 of codes (..., N); the others as in `nearest_codes`."""
    points = _table(ZEROS, columns)[zeros.long()]
    return (_table(LEVELS, columns)[codes.long()] - points) * scales.float() * columns


def _table(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)


def _nearest(x: Tensor) -> Tensor:
    """Return the number of the level nearest to x, of two as near the higher; int64."""
    levels = _table(LEVELS, x)
    limits = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(x.contiguous(), limits, right=True)


def _search_group(weight: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Search one group of inputs, weight (N, up to group)."""
    levels = _table(LEVELS, weight)
    inverse = torch.where(columns >= _SMALLEST, 1 / columns, 0)
    y = weight.t() * inverse  # (inputs, N), in units of the column's scale
    high, low = y.amax(0).clamp(min=0), (-y).amax(0).clamp(min=0)
    least = _sum(y * y)
    scales, zeros = torch.zeros_like(least), torch.zeros_like(least, dtype=torch.uint8)
    for sign in (1, -1):
        for number, zero in enumerate(ZEROS):
            up, down = (LEVELS[-1] - zero, zero)[::sign]
            needed = torch.maximum(high / up, low / down)
            for share in RANGES:
                scale = (needed * share).round().clamp(1, MAX_SCALE) * sign
                x = y * (1 / scale) + zero
                off = levels[_nearest(x)] - x
                error = scale * scale * _sum(off * off)
                is_better = error < least
                least = torch.where(is_better, error, least)
                scales = torch.where(is_better, scale, scales)
                zeros = zeros.masked_fill(is_better, number)
    codes = nearest_codes(weight.t(), columns, scales, zeros).t()
    return codes, scales.to(torch.int8), zeros


def _sum(x: Tensor) -> Tensor:
    """Sum (inputs, N) over inputs, in the order of the kernels: every fourth, then the four."""
    parts = [torch.zeros_like(x[0]) for _ in range(4)]
    for i, row in enumerate(x):
        parts[i % 4] = parts[i % 4] + row
    return (parts[0] + parts[1]) + (parts[2] + parts[3])
