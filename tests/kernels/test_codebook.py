"""The search for the codes of CODEBOOK4: as good as trying everything, and the same everywhere."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import (
    codebook_values,
    native,
    nearest_codes,
    output_scales,
    pack_codebook4,
    search_codebook,
    set_num_threads,
)
from fulmen.kernels.codebook import search_codebook_reference
from fulmen.kernels.weights import LEVELS, MAX_SCALE, ZEROS
from tests.examples import examples
from tests.kernels.helpers import needs_native


def normal(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def restored(weight: Tensor, group: int = 32) -> Tensor:
    columns = output_scales(weight)
    return pack_codebook4(*search_codebook(weight, columns, group), columns, group).unpack()


def squared_errors(x: Tensor, column: float) -> Iterator[Tensor]:
    """Squared errors of groups (M, group), for zeros, then for every scale and zero point, each
    weight at the best of all levels."""
    yield x.square().sum(1)
    for scale, zero in itertools.product(range(-MAX_SCALE, MAX_SCALE + 1), ZEROS):
        values = column * scale * (torch.tensor(LEVELS) - zero)
        yield (x[..., None] - values).square().amin(-1).sum(1)


@pytest.mark.parametrize(("group", "excess"), [(5, 1.35), (32, 1.005), (64, 1.005)])
def test_the_search_comes_near_to_trying_everything(group: int, excess: float) -> None:
    weight = normal(1, 300 * group, seed=group)
    columns = output_scales(weight)
    codes, scales, zeros = search_codebook(weight, columns, group)
    values = torch.tensor(LEVELS)[codes.long()].view(-1, group)
    values = (values - torch.tensor(ZEROS)[zeros.long()].view(-1, 1)) * scales.view(-1, 1)
    x = weight.view(-1, group)
    found = (values * columns - x).square().sum(1)
    least = torch.stack(list(squared_errors(x, float(columns)))).amin(0)
    assert (found >= least * (1 - 1e-4) - 1e-9).all()
    # A few weights can lie on levels by chance, at a range that is not tried.
    assert found.sum() <= least.sum() * excess


def test_codes_are_the_nearest_of_all_levels() -> None:
    x = torch.linspace(-100, 100, 4001)[:, None].expand(-1, 8)
    scales, columns = torch.tensor([1, -1, 2, -3, 1, -1, 31, -31]), torch.ones(8)
    zeros = torch.arange(8) // 2
    codes = nearest_codes(x, columns, scales, zeros)
    found = (codebook_values(codes, columns, scales, zeros) - x).abs()
    every = torch.stack(
        [codebook_values(torch.full_like(codes, i), columns, scales, zeros) for i in range(16)]
    )
    torch.testing.assert_close(found, (every - x).abs().amin(0), atol=1e-4, rtol=0)


@needs_native
@settings(deadline=None, max_examples=examples(25))
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 150),
    group=st.sampled_from([31, 32, 64, 128]),
    power=st.sampled_from([-38, -30, 0, 30]),
    seed=st.integers(0, 2**16),
)
def test_the_kernel_and_the_definition_give_the_same_bits(
    n: int, k: int, group: int, power: int, seed: int
) -> None:
    weight = normal(n, k, seed) * 10.0**power
    weight[0] = 0  # an output of zeros alone
    weight[n // 2, k // 2 + 1 :] = 0
    columns = output_scales(weight)
    found = search_codebook(weight, columns, group)
    expected = search_codebook_reference(weight, columns, group)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


@needs_native
def test_bits_depend_on_no_thread_and_on_no_row_beside() -> None:
    weight = normal(50, 96).t().contiguous().t()  # strides of a transpose
    columns = output_scales(weight)
    whole = search_codebook(weight, columns, 32)
    extension = native()
    assert extension is not None
    count = extension.num_threads()
    try:
        for threads, step in ((1, 50), (3, 7), (2, 16)):
            set_num_threads(threads)
            parts = [
                search_codebook(x, c, 32)
                for x, c in zip(torch.split(weight, step), torch.split(columns, step), strict=True)
            ]
            for x, y in zip(whole, zip(*parts, strict=True), strict=True):
                assert torch.equal(x, torch.cat(y))
    finally:
        set_num_threads(count)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e15, 1e30])
def test_the_error_is_the_same_share_at_any_size(scale: float) -> None:
    weight = normal(64, 256)
    error = restored(weight * scale) / scale - weight
    assert error.square().sum() < 0.005 * weight.square().sum()


def test_zeros_come_back_as_zeros() -> None:
    weight = normal(20, 96)
    weight[3] = 0
    weight[5, 32:64] = 0
    found = restored(weight)
    assert torch.equal(found[3], torch.zeros(96))
    assert torch.equal(found[5, 32:64], torch.zeros(32))


def test_values_at_the_end_of_float32_are_held_or_taken_for_zeros() -> None:
    for value in (3e38, -3e38, 1e-36, 1e-37, 1e-45):
        found = restored(torch.full((16, 32), value))
        assert found.isfinite().all()
        if abs(value) > 1e-34:
            torch.testing.assert_close(found / value, torch.ones(16, 32), atol=0.02, rtol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_leaves_other_rows_alone(value: float) -> None:
    weight = normal(40, 64)
    clean = restored(weight)
    weight[7, 40] = value
    found = restored(weight)
    others = torch.arange(40) != 7
    assert torch.equal(found[others], clean[others])
    assert not found[7].isfinite().all()


def test_shapes_and_dtypes_that_do_not_fit_are_one_sentence() -> None:
    weight = normal(4, 64)
    columns = output_scales(weight)
    with pytest.raises(ValueError, match=r"weights are torch\.float64 and scales torch\.float32"):
        search_codebook(weight.double(), columns, 32)
    with pytest.raises(ValueError, match=r"there are \(3,\) scales for weights of \(4, 64\)"):
        search_codebook(weight, columns[:3], 32)
    with pytest.raises(ValueError, match="the group is 0, it must be 1 to 128"):
        search_codebook(weight, columns, 0)
    with pytest.raises(ValueError, match="the group is 256, it must be 1 to 128"):
        search_codebook(weight, columns, 256)
