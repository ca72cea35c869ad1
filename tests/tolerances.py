"""Tolerances of two answers: one table, and the comparison that uses it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """Largest allowed absolute difference, plus a share of the expected value."""

    atol: float
    rtol: float


FLOAT32_OP = Tolerance(1e-4, 1e-5)
FLOAT32_ORDER = Tolerance(1e-6, 1e-5)  # the same small terms, added up in another order
FLOAT64_OP = Tolerance(1e-11, 1e-11)
BFLOAT16_MODEL = Tolerance(0.2, 0.0)  # three layers round some hundred times; logits up to 5
FLOAT32_MODEL = Tolerance(2e-4, 1e-3)
FORMULA = Tolerance(1e-5, 1e-5)  # float64, but for the float32 of slopes, cos and sin
BFLOAT16_ONCE = Tolerance(1e-4, 2**-8)  # float32 throughout, then one rounding to bfloat16
BFLOAT16_SOFTMAX = Tolerance(2**-6, 2**-8)  # torch rounds the weights too: 2^-8 of values up to 4
BFLOAT16_TWICE = Tolerance(1e-2, 2**-7)  # float32 throughout, rounded before and after the weight
BFLOAT16_ROTATED = Tolerance(2**-5, 2**-7)  # scale, weight and rotation round values up to 5
BFLOAT16_GRADIENT = Tolerance(2**-4, 2**-5)  # torch's backward rounds its operands on the way
BFLOAT16_PRODUCTS = Tolerance(2e-2, 0.0)  # of gradients over their largest: three rounded factors
INT16_INPUTS = Tolerance(2e-4, 1e-5)  # inputs in steps of 1/32512 of a group's largest
INT8_INPUTS = Tolerance(4e-2, 0.0)  # inputs in steps of 1/127 of a group's largest
M1_GOLDEN = Tolerance(5e-4, 1e-3)  # tests/golden/README-m1.md
M2_GOLDEN = Tolerance(1e-4, 0.0)  # tests/golden/README-m2.md

OPS = {torch.float32: FLOAT32_OP, torch.float64: FLOAT64_OP}


def assert_close(found: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    """Fails with the largest difference unless all values are within the tolerance."""
    torch.testing.assert_close(found, expected, atol=tolerance.atol, rtol=tolerance.rtol)
