"""Rounding with feedback, for inputs that are known: GPTQ (arXiv:2210.17323).

The error that matters is not that of the weights but that of W x. With H = 2 X X^T over the inputs
x of a text, columns are rounded one after another, and the columns still to come are changed so
that they compensate the error as well as the inputs allow. Columns keep their order (no act-order),
so that groups lie as in every packed matrix; the scales of a group are found when its turn comes,
from the weights of that moment.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from fulmen.kernels import PackedMatrix, WeightFormat
from fulmen.quantize.rounding import find_grid, pack_grid

DAMPING: Final = 0.3
"""Share of the mean of H's diagonal that is added to the diagonal, so that directions which the
text lacks count too. The paper's 0.01 suits hundreds of thousands of tokens; with some 10,000 it
made other texts worse."""


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
    format    INT8 or INT4
    """
    left = torch.cat(list(weights)).t().contiguous()  # (K, N): weights, with errors compensated
    k = len(left)
    codes, grids = torch.empty_like(left), []
    for begin in range(0, k, group):
        end = min(begin + group, k)
        columns = left[begin:end]
        # A ragged last group repeats its last column, which does not change its range.
        padding = columns[-1:].expand(group - len(columns), -1)
        grid = find_grid(torch.cat((columns, padding)), format)
        within = feedback[begin:end, begin:end]
        for j, column in enumerate(columns):
            codes[begin + j] = grid.codes(column)
            column -= grid.values(codes[begin + j])  # from here on `column` is its own error
            columns[j + 1 :].addr_(within[j, j + 1 :], column, alpha=-1)
        left[end:].addmm_(feedback[begin:end, end:].t(), columns, alpha=-1)
        grids.append(grid)
    scales = torch.stack([grid.scale for grid in grids], 1)  # (N, groups)
    offsets = torch.stack([grid.offset for grid in grids], 1)
    sizes = [len(weight) for weight in weights]
    parts = zip(*(torch.split(x, sizes) for x in (codes.t(), scales, offsets)), strict=True)
    return [pack_grid(q, scale, offset, format, group) for q, scale, offset in parts]
