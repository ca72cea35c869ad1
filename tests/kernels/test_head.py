"""The head against all logits: sums, targets, candidates, drawn ids, entropies, gradients, and the
bits of a row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import Draws, head, linear, pack, target_logprobs, target_scores
from fulmen.kernels.head import head_of, target_scores_reference
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


def draws_of(rows: list[int], temperature: float, uniforms: Tensor) -> Draws:
    """Return draws of these rows, all at one temperature."""
    temperatures = torch.full((len(rows),), temperature, dtype=torch.float64)
    return Draws(torch.tensor(rows, dtype=torch.int64), temperatures, uniforms)


@given(st.data())
@settings(max_examples=examples(60), deadline=None)
def test_an_id_is_drawn_as_from_all_logits(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 61, 64, 1024, 1025, 2500]))
    count = data.draw(st.integers(1, 30))
    rows = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count))
    name = data.draw(st.sampled_from(["float32", "bfloat16", "int8"]))
    temperature = data.draw(st.sampled_from([0.05, 0.7, 1.0, 3.0]))
    matrix = packed(normal(size, 32, seed=1) / 2, name)
    seed = data.draw(st.integers(0, 99))
    x = normal(count, 32, seed=seed, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(rows), dtype=torch.float64, generator=generator)
    edges = data.draw(st.sampled_from([None, 0.0, 1 - 2**-53]))
    if edges is not None:
        uniforms[:] = edges
    draws = draws_of(rows, temperature, uniforms)
    found = head(x, matrix, top_k=1, draws=draws)
    logits = linear(x, matrix, out_dtype=torch.float32)
    expected = head_of(logits, draws=draws)
    assert found.drawn_ids is not None
    assert found.drawn_logits is not None
    assert expected.drawn_ids is not None
    ids = found.drawn_ids[:, None]
    assert torch.equal(found.drawn_logits, logits[draws.rows].gather(-1, ids)[:, 0])
    chances = (logits[draws.rows].double() / temperature).softmax(-1)
    after = chances.cumsum(-1).gather(-1, ids)[:, 0]
    before = after - chances.gather(-1, ids)[:, 0]
    margin = 1e-5  # what the sums' rounding may move the limits of an id by
    assert ((before - margin <= uniforms) & (uniforms <= after + margin)).all()
    is_inside = (before + margin < uniforms) & (uniforms < after - margin)
    assert torch.equal(found.drawn_ids[is_inside], expected.drawn_ids[is_inside])


def test_draws_follow_the_distribution_across_panels() -> None:
    weight = torch.full((2100, 16), -40.0)
    for id, chance in ((7, 0.1), (1030, 0.2), (2050, 0.7)):
        weight[id] = math.log(chance)
    x = torch.zeros(4000, 16)
    x[:, 0] = 1.0
    for temperature in (1.0, 2.0):
        uniforms = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        draws = draws_of(list(range(4000)), temperature, uniforms)
        drawn = head(x, pack(weight), draws=draws).drawn_ids
        assert drawn is not None
        chances = (torch.tensor([0.1, 0.2, 0.7]).log() / temperature).softmax(-1)
        shares = torch.stack([(drawn == id).double().mean() for id in (7, 1030, 2050)])
        torch.testing.assert_close(shares, chances.double(), atol=0.03, rtol=0)


@given(st.data())
@settings(max_examples=examples(40), deadline=None)
def test_draws_know_impossible_ids_and_extreme_temperatures(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([70, 700]))
    logits = normal(size, seed=data.draw(st.integers(0, 99)))
    alive = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5, unique=True))
    weight = torch.full((size, 16), -torch.inf)
    weight[alive] = 0.0
    weight[alive, 0] = logits[alive]
    x = torch.zeros(3, 16)
    x[:, 0] = 1.0
    weight[:, 1:] = 0.0
    uniforms = torch.tensor([0.0, 0.4, 1 - 2**-53], dtype=torch.float64)
    hot = head(x, weight, draws=draws_of([0, 1, 2], 1e300, uniforms)).drawn_ids
    cold = head(x, weight, draws=draws_of([0, 1, 2], 1e-300, uniforms)).drawn_ids
    assert hot is not None
    assert cold is not None
    alive.sort()
    assert hot.tolist() == [alive[min(int(u * len(alive)), len(alive) - 1)] for u in uniforms]
    best = alive[int(logits[alive].argmax())]
    assert cold.tolist() == [best] * 3


def test_a_row_without_finite_logits_gets_some_id() -> None:
    for wrong in (torch.nan, -torch.inf, torch.inf):
        weight = torch.full((130, 16), wrong)
        uniforms = torch.tensor([0.5], dtype=torch.float64)
        found = head(torch.ones(1, 16), weight, draws=draws_of([0], 1.0, uniforms))
        assert not found.logsumexp.isfinite().any()
        assert found.drawn_ids is not None
        assert 0 <= int(found.drawn_ids) < 130


@needs_native
@given(st.integers(1, 220), st.data())
@settings(max_examples=examples(20), deadline=None)
def test_a_row_has_the_same_bits_in_any_company(rows: int, data: st.DataObject) -> None:
    matrix = packed(
        normal(1500, 40, seed=2), data.draw(st.sampled_from(["bfloat16", "int4", "codebook4"]))
    )
    x = normal(rows, 40, seed=3, dtype=torch.bfloat16)
    targets = torch.arange(rows) * 5
    temperature = data.draw(st.sampled_from([0.6, 1.0]))
    uniforms = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    everyone = draws_of(list(range(rows)), temperature, uniforms)
    whole = head(x, matrix, top_k=5, draws=everyone)
    scores = target_scores(x, matrix, targets)
    row = data.draw(st.integers(0, rows - 1))
    with_threads(1)
    mine = slice(row, row + 1)
    draws = draws_of([0], temperature, uniforms[mine])
    alone = head(x[mine], matrix, top_k=5, draws=draws)
    own = target_scores(x[mine], matrix, targets[mine])
    with_threads(2)
    assert same_bits(alone.logsumexp[0], whole.logsumexp[row])
    assert same_bits(alone.top_logits[0], whole.top_logits[row])
    assert alone.drawn_ids is not None
    assert whole.drawn_ids is not None
    assert int(alone.drawn_ids) == int(whole.drawn_ids[row])
    assert same_bits(own.logprobs[0], scores.logprobs[row])
    assert same_bits(own.entropy[0], scores.entropy[row])
    some = draws_of([row], temperature, uniforms[mine])  # the others draw nothing
    found = head(x, matrix, draws=some).drawn_ids
    assert found is not None
    assert found.tolist() == [int(whole.drawn_ids[row])]


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


@given(st.data())
@settings(max_examples=examples(40), deadline=None)
def test_the_entropy_is_that_of_all_logits(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 61, 1024, 1025, 2500]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    spread = data.draw(st.sampled_from([0.01, 1.0, 30.0]))
    x = normal(20, 32, seed=data.draw(st.integers(0, 99)), dtype=dtype)
    weight = (spread * normal(size, 32, seed=1)).to(dtype)
    x[3] = 0.0
    targets = torch.arange(20) % size
    found = target_scores(x, weight, targets)
    expected = target_scores_reference(x.double(), weight.double(), targets)
    assert_close(found.entropy.double(), expected.entropy, FLOAT32_OP)
    assert (found.entropy >= 0).all()
    assert float(found.entropy[3]) == pytest.approx(math.log(size), abs=1e-5)
    assert torch.equal(found.logprobs, target_logprobs(x, weight, targets))


def test_the_entropy_leaves_out_impossible_ids_and_has_no_gradient() -> None:
    weight = normal(300, 16, seed=16)
    weight[5:, 0] = -torch.inf
    x = torch.eye(16)[:1].clone().requires_grad_()
    weight[:, 1:] = 0.0
    scores = target_scores(x, weight.requires_grad_(), torch.tensor([2]))
    chances = weight[:5, 0].detach().double().softmax(-1)
    assert float(scores.entropy) == pytest.approx(float(torch.special.entr(chances).sum()))
    assert not scores.entropy.requires_grad
    assert scores.logprobs.requires_grad


def test_gradients_beside_the_entropy_are_the_same() -> None:
    targets = torch.arange(11) * 7
    found = []
    for ask in (target_logprobs, lambda *given: target_scores(*given).logprobs):
        x = normal(11, 24, seed=4).requires_grad_()
        weight = normal(90, 24, seed=5).requires_grad_()
        found.append(torch.autograd.grad(ask(x, weight, targets).square().sum(), (x, weight)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@needs_native
def test_training_and_inference_have_the_same_bits() -> None:
    weight, x = normal(300, 48, seed=7), normal(9, 48, seed=8)
    targets = torch.arange(9)
    trained = target_logprobs(x.requires_grad_(), weight, targets).detach()
    assert same_bits(trained, target_logprobs(x.detach(), weight, targets))
    served = head(x.detach(), pack(weight), targets=targets)
    assert served.target_logits is not None
    assert same_bits(trained, served.target_logits - served.logsumexp)
    scores = target_scores(x, weight, targets)
    assert same_bits(trained, scores.logprobs.detach())
    assert same_bits(scores.entropy, target_scores(x.detach(), pack(weight), targets).entropy)


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
    with pytest.raises(ValueError, match="the head is packed, which has no gradient"):
        target_scores(x, pack(weight), torch.zeros(2, dtype=torch.int64))
