"""Rounding of matrices: errors no larger than a plain grid gives, whole and in parts."""

from collections.abc import Callable

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import PackedMatrix, WeightFormat
from fulmen.quantize.rounding import (
    round_codebook4,
    round_fp8,
    round_int4,
    round_int8,
    round_rows,
)
from tests.examples import examples

ROWS = [WeightFormat.INT8, WeightFormat.INT4, WeightFormat.CODEBOOK4, WeightFormat.FP8]


def by_group(x: Tensor, group: int) -> list[Tensor]:
    """(N, K) -> the groups of inputs, a ragged last one too."""
    return list(torch.split(x, group, 1))


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("k", [256, 100])
def test_8_bits_err_no_more_than_the_whole_range_in_255_steps_would(group: int, k: int) -> None:
    weight = torch.randn(20, k, generator=torch.Generator().manual_seed(k))
    restored = round_int8(weight, group).unpack()
    for x, y in zip(by_group(weight, group), by_group(restored, group), strict=True):
        step = x.abs().amax(1) / 127
        assert ((y - x).square().mean(1) <= (step / 2).square()).all()
        assert ((y - x).square().mean(1).mean() <= (step / 12**0.5).square().mean() * 1.05).all()


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("k", [256, 100])
def test_4_bits_err_less_than_the_whole_range_in_15_steps(group: int, k: int) -> None:
    weight = torch.randn(20, k, generator=torch.Generator().manual_seed(k))
    restored = round_int4(weight, group).unpack()
    for x, y in zip(by_group(weight, group), by_group(restored, group), strict=True):
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        scale, offset = ((high - low) / 15).half().float(), low.half().float()
        plain = ((x - offset) / scale).round().clamp(0, 15) * scale + offset
        assert (y - x).square().sum() <= (plain - x).square().sum()


@settings(deadline=None, max_examples=examples(30))
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 300),
    group=st.sampled_from([32, 64, 128]),
    seed=st.integers(0, 2**16),
)
def test_a_matrix_of_any_shape_is_held_by_the_codebook(
    n: int, k: int, group: int, seed: int
) -> None:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    restored = round_codebook4(weight, group).unpack()
    assert restored.shape == (n, k)
    assert (restored - weight).square().sum() <= 0.012 * weight.square().sum()
    alone = round_codebook4(weight[-1:], group).unpack()
    assert torch.equal(restored[-1:], alone)


def rounded_as_q4_0(weight: Tensor) -> Tensor:
    """Round groups of 32 as llama.cpp's Q4_0 does."""
    kind = gguf.GGMLQuantizationType.Q4_0
    blocks = gguf.quants.quantize(weight.numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(blocks, kind))


@pytest.mark.parametrize(("spread", "most"), [(0.0, 0.0049), (0.5, 0.0070)])
def test_the_codebook_errs_less_than_even_levels_of_more_bits(spread: float, most: float) -> None:
    """Try weights of a normal distribution, whose inputs differ in size by factors exp(spread)."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 3072, generator=draw)
    weight *= (spread * torch.randn(3072, generator=draw)).exp()
    found, even, peer = (
        float((values - weight).square().sum() / weight.square().sum())
        for values in (
            round_codebook4(weight, 32).unpack(),
            round_int4(weight, 32).unpack(),
            rounded_as_q4_0(weight),
        )
    )
    assert found <= most
    assert found < 0.95 * even
    assert found < 0.7 * peer


def test_what_was_rounded_to_such_groups_before_comes_back_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (48, 3, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15
    scale = (torch.rand(48, 3, 1, generator=generator) * 0.01 + 1e-3).half().float()
    offset = (-8 * scale).half().float()
    weight = (codes * scale + offset).flatten(1)
    assert torch.equal(round_int4(weight, 32).unpack(), weight)
    codes = torch.randint(-127, 128, (48, 3, 32), generator=generator)
    codes[..., 0] = 127
    weight = (codes * scale).flatten(1)
    torch.testing.assert_close(round_int8(weight, 32).unpack(), weight, atol=0, rtol=1e-6)


def test_fp8_has_the_error_of_three_bits_of_mantissa() -> None:
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    restored = round_fp8(weight, 128).unpack()
    # Below the normal numbers of e4m3 steps are even: 2^-9 of a scale that maps 448 to the largest.
    smallest = weight.abs().max() / 448 * 2**-10
    assert ((restored - weight).abs() <= weight.abs() * 2**-4 + smallest).all()


@pytest.mark.parametrize("rounding", [round_int8, round_int4, round_fp8])
@pytest.mark.parametrize("value", [0.0, 0.5, -1e-7])
def test_equal_weights_stay_equal_and_finite(
    rounding: Callable[[Tensor, int], PackedMatrix], value: float
) -> None:
    restored = rounding(torch.full((16, 128), value), 128).unpack()
    torch.testing.assert_close(restored, torch.full((16, 128), value), atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("format", ROWS)
def test_parts_make_the_packed_whole_whatever_the_number_of_threads(
    format: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(400, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    (whole,) = round_rows(weight, format, 128)
    monkeypatch.setattr("fulmen.quantize.rounding.CHUNK_ELEMENTS", 200 * 128)
    num_threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            parts = list(round_rows(weight, format, 128))
            assert len(parts) > 1
            assert torch.equal(torch.cat([part.data for part in parts]), whole.data)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(num_threads)
    restored = PackedMatrix(whole.data, format, 400, 200, 128).unpack()
    error = (restored - weight.float()).norm()
    assert whole.squared_error**0.5 == pytest.approx(float(error), rel=1e-4)
