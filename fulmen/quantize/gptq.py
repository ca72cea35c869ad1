"""Rounding with feedback, for inputs that are known: GPTQ (arXiv:2210.17323).

The error that matters is not that of the weights but that of W x. With H = 2 X X^T over the inputs
x of a text, columns are rounded one after another, and the columns still to come are changed so
that they compensate the error as well as the inputs allow. Columns keep their order (no act-order),
so that groups lie as in every packed matrix; the scales of a group are found when its turn comes,
from the weights of that moment. The scale of an output, which all groups of a codebook share, is
fixed before, from the weights as they were.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor

from fulmen.kernels import PackedMatrix, WeightFormat, output_scales, pack_codebook4
from fulmen.quantize.rounding import (
    CodebookGrid,
    Grid,
    find_codebook_grid,
    find_grid,
    pack_grid,
)

DAMPING: Final = 0.3
"""Share of the mean of H's diagonal that is added to the diagonal, so that directions which the
text lacks count too. The paper's 0.01 suits hundreds of thousands of tokens; with some 10,000 it
made other texts worse."""
_AnyGrid = TypeVar("_AnyGrid", Grid, CodebookGrid)


def feedback_of(inputs: Tensor) -> Tensor:
    """Return the feedback of inputs (T, K) float32: (K, K) float32, upper triangular, ones on its
    diagonal.

    Entry [j, k] is the share of column j's error that column k compensates: the Cholesky factor U
    of H^-1 = U^T U, each row divided by its diagonal. The 2 in H cancels. Inputs that are all zero
    give the unit matrix, which means no feedback. Raises ValueError for inputs that are not finite.
    """
    hessian = (inputs.t() @ inputs).double()
    mean = hessian.diagonal().mean()
    if not mean.isfinite():
        raise ValueError("the calibration text gives inputs that are not finite, or far too large")
    if mean == 0:
        return torch.eye(len(hessian))
    hessian.diagonal().add_(DAMPING * mean)
    # H = R R^T with R = U^-1: the Cholesky factor of H read backwards.
    hessian = hessian.flip(0, 1)
    root = torch.linalg.cholesky(hessian).flip(0, 1)
    unit = torch.eye(len(root), dtype=torch.float64)
    factor: Tensor = torch.linalg.solve_triangular(root, unit, upper=True)
    return factor.div_(factor.diagonal().clone()[:, None]).float()


def round_with_feedback(
    weights: Sequence[Tensor], feedback: Tensor, format: WeightFormat, group: int
) -> list[PackedMatrix]:
    """Round matrices that share their inputs.

    weights   (N, K) float32 each; N may differ
    feedback  (K, K) float32, of `feedback_of`
    format    INT8, INT4 or CODEBOOK4
    """
    joined = torch.cat(list(weights))
    sizes = [len(weight) for weight in weights]
    if format == WeightFormat.CODEBOOK4:
        outputs = output_scales(joined)
        codes, found = _round_columns(
            joined, feedback, group, lambda x: find_codebook_grid(x, outputs)
        )
        scales = torch.stack([grid.scales for grid in found], 1)  # (N, groups)
        zeros = torch.stack([grid.zeros for grid in found], 1)
        parts = zip(*(torch.split(x, sizes) for x in (codes, scales, zeros, outputs)), strict=True)
        return [pack_codebook4(q.to(torch.uint8), s, z, out, group) for q, s, z, out in parts]

    def find(x: Tensor) -> Grid:
        # A ragged last group repeats its last column, which does not change its range.
        return find_grid(torch.cat((x, x[-1:].expand(group - len(x), -1))), format)

    codes, grids = _round_columns(joined, feedback, group, find)
    scales = torch.stack([grid.scale for grid in grids], 1)  # (N, groups)
    offsets = torch.stack([grid.offset for grid in grids], 1)
    parts = zip(*(torch.split(x, sizes) for x in (codes, scales, offsets)), strict=True)
    return [pack_grid(q, scale, offset, format, group) for q, scale, offset in parts]


def _round_columns(
    weight: Tensor, feedback: Tensor, group: int, find: Callable[[Tensor], _AnyGrid]
) -> tuple[Tensor, list[_AnyGrid]]:
    """Round the columns of (N, K) in their order; `find` is asked for the grid of each group, from
    its columns (up to group, N) of that moment.

    Returns codes (N, K) float32 and the grids.
    """
    left = weight.t().contiguous()  # (K, N): weights, with errors compensated
    k = len(left)
    codes, grids = torch.empty_like(left), []
    for begin in range(0, k, group):
        end = min(begin + group, k)
        columns = left[begin:end]
        grid = find(columns)
        within = feedback[begin:end, begin:end]
        for j, column in enumerate(columns):
            codes[begin + j] = grid.codes(column)
            column -= grid.values(codes[begin + j])  # from here on `column` is its own error
            columns[j + 1 :].addr_(within[j, j + 1 :], column, alpha=-1)
        left[end:].addmm_(feedback[begin:end, end:].t(), columns, alpha=-1)
        grids.append(grid)
    return codes.t(), grids
