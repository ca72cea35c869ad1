"""Norms, residuals and gates against float64, with their gradients, and the bits of a row."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import add_residual, gated_norm, native, residual_norm, rms_norm
from tests.examples import examples
from tests.kernels.helpers import needs_native, normal, same_bits
from tests.tolerances import BFLOAT16_TWICE, FLOAT32_OP, assert_close

EPS = 1e-5


def residual_and_norm(residual: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
    stream, normed = residual_norm(residual, branch, weight, EPS, alpha=1.5, beta=0.75)
    return torch.cat((stream, normed), -1)


OPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rms_norm": lambda x, _, weight: rms_norm(x, weight, EPS),
    "residual_norm": residual_and_norm,
    "gated_norm": lambda x, gate, weight: gated_norm(x, weight, gate, EPS),
    "add_residual": lambda x, branch, _: add_residual(x, branch, alpha=1.5, beta=0.75),
}


def inputs(rows: int, width: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    x, other = normal(2, rows, width, seed=seed, dtype=dtype)
    return [x, other, 1 + normal(width, seed=seed + 1, dtype=dtype) / 4]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 24, 64, 1000])
def test_values_are_those_of_float64(name: str, dtype: torch.dtype, width: int) -> None:
    values = inputs(9, width, 1, dtype)
    expected = OPS[name](*(value.double() for value in values))
    tolerance = FLOAT32_OP if dtype == torch.float32 else BFLOAT16_TWICE
    assert_close(OPS[name](*values).double(), expected, tolerance)


@needs_native
@pytest.mark.parametrize("name", OPS)
@given(st.integers(1, 40), st.integers(1, 90), st.booleans(), st.data())
@settings(max_examples=examples(25), deadline=None)
def test_a_row_has_the_same_bits_in_any_company(
    name: str, rows: int, width: int, is_bfloat16: bool, data: st.DataObject
) -> None:
    x, other, weight = inputs(rows, width, 2, torch.bfloat16 if is_bfloat16 else torch.float32)
    whole = OPS[name](x, other, weight)
    start = data.draw(st.integers(0, rows - 1))
    some = slice(start, data.draw(st.integers(start + 1, rows)))
    assert same_bits(OPS[name](x[some].clone(), other[some].clone(), weight), whole[some])
    trained = OPS[name](x.requires_grad_(), other, weight).detach()
    assert same_bits(trained, whole)


@pytest.mark.parametrize("name", OPS)
def test_gradients_are_those_of_float64(name: str) -> None:
    values = inputs(7, 24, 3, torch.float32)

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [value.to(dtype).detach().clone().requires_grad_() for value in values]
        out = OPS[name](*leaves)
        upstream = normal(*out.shape, seed=4).to(dtype)
        return torch.autograd.grad(out, leaves, upstream, allow_unused=True, materialize_grads=True)

    for found, expected in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert_close(found.double(), expected, FLOAT32_OP)


def test_rows_may_be_strided() -> None:
    x, weight = normal(5, 3, 16, seed=5), 1 + normal(16, seed=6) / 4
    expected = rms_norm(x[:, 1].contiguous(), weight, EPS)
    assert torch.equal(rms_norm(x[:, 1], weight, EPS), expected)


def test_operands_that_do_not_fit_are_refused_or_read_as_they_are() -> None:
    x, weight = normal(4, 16, seed=7), 1 + normal(32, seed=8)[::2] / 4
    assert torch.equal(rms_norm(x, weight, EPS), rms_norm(x, weight.contiguous(), EPS))
    wide = gated_norm(x.bfloat16(), weight.bfloat16(), x, EPS)  # of two dtypes: the definition
    assert_close(
        wide, gated_norm(x.bfloat16(), weight.bfloat16(), x.bfloat16(), EPS), BFLOAT16_TWICE
    )
    if native() is not None:
        with pytest.raises(ValueError, match=r"the norm has \(8,\) weights for rows of 16"):
            rms_norm(x, torch.ones(8), EPS)
        with pytest.raises(ValueError, match="branch or gate has shape"):
            add_residual(x, x[:2])


def test_a_nan_gate_stays_one() -> None:
    x, gate = normal(2, 16, seed=9), normal(2, 16, seed=10)
    gate[1, 3] = torch.nan
    out = gated_norm(x, torch.ones(16), gate, EPS)
    assert out.isnan().nonzero().tolist() == [[1, 3]]
