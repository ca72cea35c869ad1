"""Rows of a table: as torch gives them, for ids of any kind."""

import pytest
import torch
import torch.nn.functional as F

from fulmen.kernels import embed
from tests.kernels.helpers import normal


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(0,), (5,), (2, 3)], ids=str)
def test_rows_are_those_that_torch_gives(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = normal(7, 24, seed=1)
    ids = torch.randint(7, shape, dtype=dtype)
    assert torch.equal(embed(ids, weight), F.embedding(ids, weight))
