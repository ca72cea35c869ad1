"""The head against all logits: sums, targets, candidates, gradients, and the bits of a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.kernels import head, linear, pack, target_logprobs
from fulmen.kernels.head import head_of
from tests.examples import examples
from tests.kernels.helpers import needs_native, normal, packed, same_bits, with_threads
from tests.tolerances import BFLOAT16_PRODUCTS, FLOAT32_OP, assert_close


@given(st.data())
@settings(max_examples=examples(40), deadline=None)
def test_it_says_what_all_logits_say(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 61, 1024, 1025, 2500]))
    rows, top_k = data.draw(st.integers(1, 30)), data.draw(st.integers(0, min(size, 40)))
    name = data.draw(st.sampled_from(["float32", "bfloat16", "int8"]))
    matrix = packed(normal(size, 32, seed=1), name)
    x = normal(rows, 32, seed=data.draw(st.integers(0, 99)), dtype=torch.bfloat16)
    targets = torch.randint(size, (rows,), generator=torch.Generator().manual_seed(rows))
    found = head(x, matrix, targets=targets, top_k=top_k)
    logits = linear(x, matrix, out_dtype=torch.float32)
    expected = head_of(logits, targets=targets, top_k=top_k)
    assert torch.equal(found.top_ids, expected.top_ids)
    assert torch.equal(found.top_logits, expected.top_logits)
    assert found.target_logits is not None
    assert expected.target_logits is not None
    assert torch.equal(found.target_logits, expected.target_logits)
    assert_close(found.logsumexp.double(), logits.double().logsumexp(-1), FLOAT32_OP)


@needs_native
@given(st.integers(1, 220), st.data())
@settings(max_examples=examples(20), deadline=None)
def test_a_row_has_the_same_bits_in_any_company(rows: int, data: st.DataObject) -> None:
    matrix = packed(
        normal(1500, 40, seed=2), data.draw(st.sampled_from(["bfloat16", "int4", "codebook4"]))
    )
    x = normal(rows, 40, seed=3, dtype=torch.bfloat16)
    whole = head(x, matrix, top_k=5)
    row = data.draw(st.integers(0, rows - 1))
    with_threads(1)
    alone = head(x[row : row + 1], matrix, top_k=5)
    with_threads(2)
    assert same_bits(alone.logsumexp[0], whole.logsumexp[row])
    assert same_bits(alone.top_logits[0], whole.top_logits[row])


def test_equal_logits_come_in_the_order_of_their_ids() -> None:
    weight = torch.zeros(2100, 16)
    weight[[7, 1030, 2050]] = 1.0
    found = head(torch.ones(1, 16), weight, top_k=5)
    assert found.top_ids.tolist() == [[7, 1030, 2050, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_target_logprobs_are_those_of_float64(dtype: torch.dtype) -> None:
    x = normal(11, 24, seed=4).to(dtype).requires_grad_()
    weight = normal(90, 24, seed=5).to(dtype).requires_grad_()
    targets = torch.arange(11) * 7
    upstream = normal(11, seed=6)
    logprobs = target_logprobs(x, weight, targets)
    found = torch.autograd.grad(logprobs, (x, weight), upstream.to(dtype))
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    reference = (wide[0] @ wide[1].T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    expected = torch.autograd.grad(reference, wide, upstream.double())
    assert_close(logprobs.detach().double(), reference.detach(), FLOAT32_OP)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.double(), other, FLOAT32_OP)


@needs_native
def test_training_and_inference_have_the_same_bits() -> None:
    weight, x = normal(300, 48, seed=7), normal(9, 48, seed=8)
    targets = torch.arange(9)
    trained = target_logprobs(x.requires_grad_(), weight, targets).detach()
    assert same_bits(trained, target_logprobs(x.detach(), weight, targets))
    served = head(x.detach(), pack(weight), targets=targets)
    assert served.target_logits is not None
    assert same_bits(trained, served.target_logits - served.logsumexp)


def test_too_many_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k is 9, it must be 0 to 8"):
        head(torch.ones(1, 4), torch.ones(8, 4), top_k=9)


@needs_native
def test_a_nan_shows_in_the_sum_and_wins_nothing() -> None:
    x, weight = normal(2, 16, seed=9), normal(70, 16, seed=10)
    for column in (0, 3, 69):
        broken = weight.clone()
        broken[column] = torch.nan
        found = head(x, broken, top_k=2)
        assert found.logsumexp.isnan().all()
        assert not (found.top_ids == column).any()
    masked = weight.clone()
    masked[:, 0] = -torch.inf  # a panel of logits that are all -inf
    found = head(torch.eye(16)[:1], masked)
    assert found.logsumexp.tolist() == [-torch.inf]


def test_gradients_in_bfloat16_with_a_float32_head() -> None:
    x = normal(700, 32, seed=11, dtype=torch.bfloat16).requires_grad_()
    weight = normal(40_000, 32, seed=12).requires_grad_()  # more than one chunk of rows
    targets = torch.arange(700)
    found = torch.autograd.grad(target_logprobs(x, weight, targets).sum(), (x, weight))
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    reference = (wide[0] @ wide[1].T).log_softmax(-1).gather(-1, targets[:, None])
    expected = torch.autograd.grad(reference.sum(), wide)
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max()
        assert_close(one.double() / scale, other / scale, BFLOAT16_PRODUCTS)


def test_an_empty_batch_has_gradients() -> None:
    x, weight = torch.zeros(0, 16, requires_grad=True), normal(8, 16, seed=13).requires_grad_()
    loss = target_logprobs(x, weight, torch.zeros(0, dtype=torch.int64)).sum()
    assert not any(g.any() for g in torch.autograd.grad(loss, (x, weight)))


@needs_native
def test_targets_that_are_not_there_are_refused() -> None:
    x, weight = normal(2, 16, seed=14), normal(8, 16, seed=15)
    for wrong in (-100, 8):
        with pytest.raises(ValueError, match=f"target id {wrong} is outside the 8 ids known"):
            target_logprobs(x, weight, torch.tensor([0, wrong]))
    with pytest.raises(ValueError, match="for 2 positions, each needs one"):
        head(x, weight, targets=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="the head is packed, which has no gradient"):
        target_logprobs(x.requires_grad_(), pack(weight), torch.zeros(2, dtype=torch.int64))
