"""Linear layers: every format against float64, and the same bits whatever stands beside a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import (
    Activation,
    PackedMatrix,
    concatenate,
    linear,
    native,
    pack,
    pack_codebook4,
    pack_fp8,
    pack_int4,
    pack_int8,
)
from fulmen.kernels.linear import linear_reference
from fulmen.kernels.weights import LEVELS, pack_reference
from tests.examples import examples
from tests.kernels.helpers import (
    FORMATS,
    needs_native,
    normal,
    packed,
    quantised_to_int8,
    rounds_inputs,
    same_bits,
    with_threads,
)
from tests.tolerances import (
    BFLOAT16_ONCE,
    FLOAT32_OP,
    INT8_INPUTS,
    INT16_INPUTS,
    Tolerance,
    assert_close,
)

SHAPES = [(1, 1), (61, 24), (100, 1000), (256, 384), (64, 200)]
"""(N, K): odd, smaller than a block, larger than a panel, no whole group."""


def bits_of(name: str) -> tuple[int, ...]:
    return (8, 16) if rounds_inputs(name) else (16,)


def tolerance(name: str, input_bits: int) -> Tolerance:
    if not rounds_inputs(name):
        return FLOAT32_OP
    return INT8_INPUTS if input_bits == 8 else INT16_INPUTS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpacking_gives_back_what_was_packed(name: str, shape: tuple[int, int]) -> None:
    weight = normal(*shape, seed=1) / shape[1] ** 0.5
    found = packed(weight, name).unpack()
    step = {"f": 0.0, "b": 2**-8, "i": 1 / 15, "c": 1 / 5}[name[0]] if name != "fp8" else 1.0
    largest = float(weight.abs().max())
    assert found.shape == weight.shape
    if name != "fp8":  # whose helper scales the weights
        assert float((found - weight).abs().max()) <= step * largest


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_are_those_of_float64(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    n, k = shape
    matrix = packed(normal(n, k, seed=2) / k**0.5, name)
    x = normal(37, k, seed=3, dtype=dtype)
    expected = x.double() @ matrix.unpack().double().T
    for input_bits in bits_of(name):
        found = linear(x, matrix, out_dtype=torch.float32, input_bits=input_bits)
        assert_close(found.double(), expected, tolerance(name, input_bits))


@needs_native
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_codes_and_inputs_do_not_overflow(group: int, sign: int) -> None:
    """Sums of 16 bits take four products of the largest code and input, and no more."""
    assert max(LEVELS) < 64
    n, k = 20, 256
    codes, ones = torch.full((n, k), 15, dtype=torch.uint8), torch.ones(n, k // group)
    matrices = (
        pack_int4(codes, ones.half(), -ones.half(), group),
        pack_codebook4(codes, ones.int(), 0 * ones.int(), torch.ones(n), group),
    )
    for matrix in matrices:
        expected = sign * matrix.unpack().sum(1).double()
        for rows in (1, 2, 12, 40):
            x = torch.full((rows, k), float(sign))
            for input_bits in (8, 16):
                found = linear(x, matrix, input_bits=input_bits).double()
                assert torch.allclose(found, expected.expand(rows, -1), rtol=1e-5)


@needs_native
@given(st.data())
@settings(max_examples=examples(60), deadline=None)
def test_a_row_has_the_same_bits_in_any_company(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FORMATS))
    n, k = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 300))
    rows = data.draw(st.integers(1, 70))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    input_bits = data.draw(st.sampled_from(bits_of(name)))
    matrix = packed(normal(n, k, seed=4), name)
    x = normal(rows, k, seed=data.draw(st.integers(0, 99)), dtype=dtype)

    def run(x: Tensor) -> Tensor:
        return linear(x, matrix, out_dtype=torch.float32, input_bits=input_bits)

    whole = run(x)
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    assert same_bits(run(x[start:stop].clone()), whole[start:stop])
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(n))
    assert same_bits(run(x[order]), whole[order])
    with_threads(1)
    alone = run(x)
    with_threads(2)
    assert same_bits(alone, whole)


@needs_native
def test_more_rows_than_a_panel_keeps_have_the_bits_of_one() -> None:
    """Larger than every block of rows, columns and inputs that the kernel cuts."""
    for name in ("bfloat16", "int8", "int4/128", "codebook4", "fp8", "float32"):
        matrix = packed(normal(200, 900, seed=5), name)
        x = normal(450, 900, seed=6, dtype=torch.bfloat16)
        whole = linear(x, matrix)
        for row in (0, 191, 192, 300, 449):
            assert same_bits(linear(x[row : row + 1], matrix), whole[row : row + 1])


@needs_native
@pytest.mark.parametrize("name", ["int8", "int4", "codebook4"])
def test_an_infinity_is_not_lost_in_rounding(name: str) -> None:
    x = normal(3, 64, seed=7)
    x[1, 5] = torch.inf
    found = linear(x, packed(normal(20, 64, seed=8), name))
    assert found[1].isnan().all()
    assert found[0].isfinite().all()
    assert found[2].isfinite().all()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packing_equals_its_reference_and_reads_strides(dtype: torch.dtype) -> None:
    weight = normal(37, 45, seed=9, dtype=dtype)
    expected = pack_reference(weight).data
    assert torch.equal(pack(weight).data, expected)
    assert torch.equal(pack(weight.T.contiguous().T).data, expected)


def test_rows_with_strides_and_leading_dimensions() -> None:
    weight, x = normal(20, 16, seed=10), normal(3, 5, 48, seed=11)
    expected = linear_reference(x[..., 16:32].contiguous(), weight)
    assert_close(linear(x[..., 16:32], weight), expected, FLOAT32_OP)
    assert linear(x[:, 0, 16:32], weight).shape == (3, 20)
    assert linear(x[:0, 0, 16:32], weight).shape == (0, 20)


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_the_activation_is_applied_before_the_one_rounding(activation: Activation) -> None:
    weight = normal(40, 32, seed=12, dtype=torch.bfloat16)
    x = normal(9, 32, seed=13, dtype=torch.bfloat16)
    expected = linear_reference(x.double(), weight.double(), activation=activation)
    found = linear(x, weight, activation=activation)
    assert found.dtype == torch.bfloat16
    assert_close(found.double(), expected, BFLOAT16_ONCE)


@needs_native
def test_every_code_of_float8_is_read_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    finite = codes.float().isfinite()
    codes = torch.where(finite, codes.float(), torch.zeros(256)).to(torch.float8_e4m3fn)
    for dtype in (torch.float32, torch.bfloat16):
        matrix = pack_fp8(codes.view(256, 1).clone(), torch.ones(2, 1), (128, 128))
        assert torch.equal(linear(torch.ones(1, 1, dtype=dtype), matrix), codes.to(dtype)[None])


@pytest.mark.parametrize("activation", ["none", "silu", "sigmoid"])
def test_gradients_are_those_of_float64(activation: Activation) -> None:
    weight = normal(24, 40, seed=14).requires_grad_()
    x = normal(2, 7, 40, seed=15).requires_grad_()
    upstream = normal(2, 7, 24, seed=16)
    out = linear(x, weight, activation=activation)
    found = torch.autograd.grad(out, (x, weight), upstream)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    reference = linear_reference(*wide, activation=activation)
    expected = torch.autograd.grad(reference, wide, upstream.double())
    for one, other in zip(found, expected, strict=True):
        assert_close(one.double(), other, FLOAT32_OP)


def test_a_float32_matrix_of_a_bfloat16_model_has_gradients() -> None:
    """Routers are such matrices."""
    weight = normal(24, 40, seed=14).requires_grad_()
    x = normal(7, 40, seed=15, dtype=torch.bfloat16).requires_grad_()
    upstream = normal(7, 24, seed=16)
    found = torch.autograd.grad(linear(x, weight, out_dtype=torch.float32), (x, weight), upstream)
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, torch.float32]
    assert_close(found[0].double(), upstream.double() @ weight.detach().double(), BFLOAT16_ONCE)
    assert_close(found[1].double(), upstream.double().T @ x.detach().double(), FLOAT32_OP)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_and_inference_have_the_same_bits(dtype: torch.dtype) -> None:
    weight = normal(50, 70, seed=17, dtype=dtype)
    x = normal(11, 70, seed=18, dtype=dtype)
    activations: tuple[Activation, ...] = ("none", "silu", "sigmoid")
    for activation in activations:
        trained = linear(x.requires_grad_(), weight, activation=activation)
        served = linear(x.detach(), pack(weight), activation=activation)
        assert same_bits(trained.detach(), served)


def test_matrices_side_by_side_are_one_matrix() -> None:
    parts = [packed(normal(n, 96, seed=n), "int8/32") for n in (32, 16, 64)]
    whole = concatenate(parts)
    assert whole is not None
    assert torch.equal(whole.unpack(), torch.cat([part.unpack() for part in parts]))
    assert concatenate([parts[0], packed(normal(16, 96, seed=1), "int4")]) is None
    odd = packed(normal(20, 96, seed=1), "int8/32")
    assert concatenate([odd, parts[0]]) is None


def test_wrong_sizes_are_named() -> None:
    matrix = packed(normal(20, 16, seed=19), "float32")
    with pytest.raises(ValueError, match="x has 12 inputs, the matrix takes 16"):
        linear(normal(3, 12, seed=20), matrix)
    with pytest.raises(ValueError, match="input_bits is 4, it must be 8 or 16"):
        linear(normal(3, 16, seed=20), matrix, input_bits=4)
    with pytest.raises(ValueError, match="the weight is packed, which has no gradient"):
        linear(normal(3, 16, seed=20).requires_grad_(), matrix)
    with pytest.raises(ValueError, match=r"a matrix of torch.float16 cannot be packed"):
        pack(torch.ones(16, 16, dtype=torch.float16))
    with pytest.raises(ValueError, match="the group is 24, it must be a multiple of 32"):
        pack_int8(torch.zeros(16, 24, dtype=torch.int8), torch.ones(16, 1), 24)
    with pytest.raises(ValueError, match="bytes are needed"):
        PackedMatrix(matrix.data[:-1], matrix.format, 20, 16)
    with pytest.raises(ValueError, match="cannot be packed"):
        pack_fp8(normal(8, 8, seed=1).to(torch.float8_e4m3fn), torch.ones(1, 1), (8, 8))
    assert native() is None or pack_int8(
        torch.zeros(3, 5, dtype=torch.int8), torch.ones(3, 1), 32
    ).unpack().shape == (3, 5)


@pytest.mark.parametrize("activation", ["none", "silu", "sigmoid"])
def test_a_nan_stays_one(activation: Activation) -> None:
    x = normal(2, 16, seed=21)
    x[1, 3] = torch.nan
    out = linear(x, pack(normal(20, 16, seed=22)), activation=activation)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_an_empty_batch_has_gradients() -> None:
    x = torch.zeros(0, 16, requires_grad=True)
    weight = normal(20, 16, seed=23).requires_grad_()
    out = linear(x, weight, activation="silu")
    found = torch.autograd.grad(out.sum(), (x, weight))
    assert [gradient.shape for gradient in found] == [x.shape, weight.shape]
    assert not found[1].any()


@needs_native
def test_tiny_inputs_become_zeros_and_nothing_else() -> None:
    matrix = quantised_to_int8(torch.ones(16, 64), 64)
    x = torch.zeros(1, 64)
    x[0, 0] = 1e-36
    assert linear(x, matrix).abs().max() <= 1e-35
