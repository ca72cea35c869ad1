"""How near two answers must be: one table, and the comparison that uses it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """Largest allowed absolute difference, plus a share of the expected value."""

    atol: float
    rtol: float


FLOAT32_OP = Tolerance(1e-4, 1e-5)
FLOAT64_OP = Tolerance(1e-11, 1e-11)
FLOAT32_MODEL = Tolerance(2e-4, 1e-3)
M1_GOLDEN = Tolerance(5e-4, 1e-3)  # tests/golden/README-m1.md
M2_GOLDEN = Tolerance(1e-4, 0.0)  # tests/golden/README-m2.md

OPS = {torch.float32: FLOAT32_OP, torch.float64: FLOAT64_OP}


def assert_close(found: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    """Fails with the largest difference unless all values are within the tolerance."""
    torch.testing.assert_close(found, expected, atol=tolerance.atol, rtol=tolerance.rtol)
