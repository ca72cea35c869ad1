"""Mixture of experts against one token at a time, its gradients, and what the routers promise."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import ExpertWeights, PackedExperts, mixture_of_experts, native, route
from fulmen.kernels.experts import Scoring, mixture_of_experts_reference, route_reference
from tests.examples import examples
from tests.kernels.helpers import (
    FORMATS,
    needs_native,
    normal,
    packed,
    rounds_inputs,
    same_bits,
    with_threads,
)
from tests.tolerances import (
    BFLOAT16_ONCE,
    BFLOAT16_PRODUCTS,
    FLOAT32_OP,
    Tolerance,
    assert_close,
)

C, FF = 8, 12


def random_experts(
    count: int, hidden: int, width: int, *, seed: int, dtype: torch.dtype = torch.float32
) -> list[ExpertWeights]:
    generator = torch.Generator().manual_seed(seed)
    return [
        ExpertWeights(
            *(
                (torch.randn(shape, generator=generator) / shape[1] ** 0.5).to(dtype)
                for shape in ((width, hidden), (hidden, width), (width, hidden))
            )
        )
        for _ in range(count)
    ]


def packed_experts(experts: list[ExpertWeights], name: str) -> PackedExperts:
    return PackedExperts(
        [
            ExpertWeights(*(packed(w, name) for w in expert if isinstance(w, Tensor)))
            for expert in experts
        ]
    )


@given(st.integers(1, 9), st.integers(1, 6), st.data())
@settings(max_examples=examples(40), deadline=None)
def test_mixture_equals_one_token_at_a_time(
    num_tokens: int, num_experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    seed = data.draw(st.integers(0, 10**6))
    experts = random_experts(num_experts, C, FF, seed=seed)
    x = normal(num_tokens, C, seed=seed + 1)
    weights, ids = route(normal(num_tokens, num_experts, seed=seed + 2), top_k, scoring="softmax")
    found = mixture_of_experts(x, weights, ids, experts)
    for t in range(num_tokens):
        expected = torch.zeros(C)
        for weight, expert in zip(weights[t], ids[t].tolist(), strict=True):
            w1, w2, w3 = (w for w in experts[expert] if isinstance(w, Tensor))
            expected += weight * (w2 @ (F.silu(w1 @ x[t]) * (w3 @ x[t])))
        assert_close(found[t], expected, FLOAT32_OP)


def test_bfloat16_outputs_of_many_experts_are_added_in_float32() -> None:
    """All rounding there is: the hidden values of an expert once, the sum once."""
    num_tokens, num_experts = 16, 48
    x = normal(num_tokens, C, seed=12, dtype=torch.bfloat16)
    experts = random_experts(num_experts, C, FF, seed=13, dtype=torch.bfloat16)
    logits = normal(num_tokens, num_experts, seed=14)
    weights, ids = route(logits, num_experts, scoring="softmax")
    found = mixture_of_experts(x, weights, ids, experts)
    assert found.dtype == torch.bfloat16
    expected = torch.zeros(num_tokens, C, dtype=torch.float64)
    for expert, matrices in enumerate(experts):
        w1, w2, w3 = (w.double() for w in matrices if isinstance(w, Tensor))
        hidden = F.silu(x.double() @ w1.T) * (x.double() @ w3.T)
        weight = (weights * (ids == expert)).sum(-1, keepdim=True)
        expected += weight.double() * (hidden.bfloat16().double() @ w2.T)
    assert_close(found.double(), expected, BFLOAT16_ONCE)


@needs_native
@given(st.data())
@settings(max_examples=examples(40), deadline=None)
def test_a_token_has_the_same_bits_in_any_company(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FORMATS))
    num_experts, rows = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 60))
    top_k = data.draw(st.integers(1, num_experts))
    hidden, width = data.draw(st.sampled_from([(24, 16), (64, 96), (130, 33)]))
    input_bits = data.draw(st.sampled_from([8, 16]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    seed = data.draw(st.integers(0, 99))
    experts = packed_experts(random_experts(num_experts, hidden, width, seed=seed), name)
    x = normal(rows, hidden, seed=seed + 1, dtype=dtype)
    weights, ids = route(normal(rows, num_experts, seed=seed), top_k, scoring="sigmoid")

    def run(some: slice | Tensor) -> Tensor:
        return mixture_of_experts(x[some], weights[some], ids[some], experts, input_bits=input_bits)

    whole = run(slice(None))
    start = data.draw(st.integers(0, rows - 1))
    some = slice(start, data.draw(st.integers(start + 1, rows)))
    assert same_bits(run(some), whole[some])
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert same_bits(run(order), whole[order])
    with_threads(1)
    alone = run(slice(None))
    with_threads(2)
    assert same_bits(alone, whole)


@needs_native
@pytest.mark.parametrize("name", FORMATS)
def test_packed_experts_are_their_unpacked_matrices(name: str) -> None:
    experts = packed_experts(random_experts(5, 96, 70, seed=1), name)
    x = normal(50, 96, seed=2)
    weights, ids = route(normal(50, 5, seed=3), 2, scoring="softmax")
    found = mixture_of_experts(x, weights, ids, experts)
    plain = [
        ExpertWeights(*(w.unpack().double() for w in expert if not isinstance(w, Tensor)))
        for expert in experts.experts
    ]
    expected = mixture_of_experts_reference(x.double(), weights.double(), ids, plain)
    tolerance = Tolerance(2e-3, 0.0) if rounds_inputs(name) else FLOAT32_OP
    assert_close(found.double(), expected, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "hidden", "width", "num_experts", "top_k"),
    [(37, 24, 16, 4, 2), (300, 64, 96, 8, 3), (1, 64, 33, 5, 2)],
)
def test_gradients_are_those_of_float64(
    rows: int, hidden: int, width: int, num_experts: int, top_k: int, dtype: torch.dtype
) -> None:
    experts = random_experts(num_experts, hidden, width, seed=1, dtype=dtype)
    x = normal(rows, hidden, seed=2, dtype=dtype)
    weights, ids = route(normal(rows, num_experts, seed=3), top_k, scoring="softmax")
    upstream = normal(rows, hidden, seed=4, dtype=dtype)

    def gradients(wide: torch.dtype, weights_dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(wide), weights.to(weights_dtype)]
        flat = [w.to(wide) for expert in experts for w in expert if isinstance(w, Tensor)]
        leaves = [t.detach().clone().requires_grad_() for t in (*inputs, *flat)]
        some = [ExpertWeights(*leaves[i : i + 3]) for i in range(2, len(leaves), 3)]
        out = mixture_of_experts(leaves[0], leaves[1], ids, some)
        found = torch.autograd.grad(
            out, leaves, upstream.to(wide), allow_unused=True, materialize_grads=True
        )
        return [gradient.double() for gradient in found]

    tolerance = FLOAT32_OP if dtype == torch.float32 else BFLOAT16_PRODUCTS
    found = gradients(dtype, torch.float32)
    expected = gradients(torch.float64, torch.float64)
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().clamp(min=1e-6)
        assert_close(one / scale, other / scale, tolerance)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_and_inference_have_the_same_bits(dtype: torch.dtype) -> None:
    experts = random_experts(4, 40, 24, seed=5, dtype=dtype)
    x = normal(33, 40, seed=6, dtype=dtype)
    weights, ids = route(normal(33, 4, seed=7), 2, scoring="softmax")
    trained = mixture_of_experts(x.requires_grad_(), weights, ids, experts)
    served = mixture_of_experts(x.detach(), weights, ids, PackedExperts(experts))
    assert same_bits(trained.detach(), served)


@given(st.integers(1, 20), st.integers(1, 70), st.data())
@settings(max_examples=examples(50), deadline=None)
def test_routes_are_those_of_the_reference(
    rows: int, num_experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, min(8, num_experts)))
    scoring: Scoring = data.draw(st.sampled_from(["softmax", "sigmoid"]))
    # Few distinct values, so that there are ties.
    logits = normal(rows, num_experts, seed=data.draw(st.integers(0, 99))).mul(2).round() / 2
    has_bias = scoring == "sigmoid" and data.draw(st.booleans())
    bias = normal(num_experts, seed=3).round() if has_bias else None
    weights, ids = route(logits, top_k, scoring=scoring, choice_bias=bias)
    expected, expected_ids = route_reference(logits, top_k, scoring=scoring, choice_bias=bias)
    assert torch.equal(ids, expected_ids)
    assert_close(weights, expected, FLOAT32_OP)
    for row in range(rows):
        alone, _ = route(logits[row : row + 1], top_k, scoring=scoring, choice_bias=bias)
        assert same_bits(alone[0], weights[row])


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_the_gradient_of_a_route_is_that_of_the_reference(scoring: Scoring) -> None:
    logits = normal(9, 6, seed=8)
    upstream = normal(9, 3, seed=9)
    found = logits.clone().requires_grad_()
    torch.autograd.backward(route(found, 3, scoring=scoring)[0], upstream)
    expected = logits.double().requires_grad_()
    wide = upstream.double()
    torch.autograd.backward(route_reference(expected, 3, scoring=scoring)[0], wide)
    assert found.grad is not None
    assert expected.grad is not None
    assert_close(found.grad.double(), expected.grad, FLOAT32_OP)


def test_softmax_router_renormalises_the_chosen() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    weights, ids = route(logits, 2, scoring="softmax")
    assert ids.tolist() == [[0, 1]]
    expected = torch.tensor([[2.0, 1.0]]).exp()
    assert_close(weights, expected / expected.sum(), FLOAT32_OP)


def test_sigmoid_router_uses_the_bias_for_the_choice_alone() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    bias = torch.tensor([-10.0, 0.0, 0.0, 10.0])
    weights, ids = route(logits, 2, scoring="sigmoid", choice_bias=bias)
    assert sorted(ids[0].tolist()) == [1, 3]
    scores = logits[0, ids[0]].sigmoid()
    assert_close(weights[0], scores / scores.sum(), FLOAT32_OP)
    assert sorted(route(logits, 2, scoring="sigmoid")[1][0].tolist()) == [0, 1]


def test_one_expert_has_weight_exactly_one() -> None:
    weights, _ = route(torch.tensor([[-0.3], [0.0], [5.0]]), 1, scoring="sigmoid")
    assert weights.flatten().tolist() == [1.0, 1.0, 1.0]


@needs_native
def test_experts_of_different_formats_are_refused() -> None:
    experts = random_experts(2, 32, 32, seed=1)
    one, other = (packed_experts(experts, name).experts for name in ("int8", "int4"))
    with pytest.raises(ValueError, match="different formats or shapes"):
        PackedExperts([one[0], other[1]])


@needs_native
def test_experts_of_another_width_are_refused() -> None:
    experts = random_experts(2, 32, 48, seed=1)
    w1, _, w3 = experts[0]
    with pytest.raises(ValueError, match=r"w1 has shape .* and w2 .*, needed is"):
        PackedExperts([ExpertWeights(w1, w3, w3)])
    weights, ids = torch.ones(3, 1), torch.zeros(3, 1).long()
    for kind in (experts, PackedExperts(experts)):
        with pytest.raises(ValueError, match=r"hidden_states have shape \(3, 5\), needed is"):
            mixture_of_experts(normal(3, 5, seed=2), weights, ids, kind)


@needs_native
def test_packed_experts_take_float64_as_the_reference_does() -> None:
    experts = random_experts(2, 32, 48, seed=1)
    x = normal(3, 32, seed=2).double()
    weights, ids = torch.ones(3, 1), torch.tensor([[0], [1], [0]])
    plain = [
        ExpertWeights(*(w.double() for w in expert if isinstance(w, torch.Tensor)))
        for expert in experts
    ]
    found = mixture_of_experts(x, weights, ids, PackedExperts(experts))
    torch.testing.assert_close(found, mixture_of_experts(x, weights, ids, plain))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_a_bias_of_any_dtype_and_stride_is_read_as_it_is(scoring: Scoring) -> None:
    logits = torch.zeros(3, 16)
    bias = torch.zeros(32, dtype=torch.bfloat16)
    bias[10] = 1
    _, ids = route(logits, 1, scoring=scoring, choice_bias=bias[::2])
    assert ids.tolist() == [[5]] * 3


def test_a_nan_is_chosen_last() -> None:
    logits = normal(4, 16, seed=30)
    logits[2, 7] = torch.nan
    weights, ids = route(logits, 15, scoring="sigmoid")
    assert not (ids == 7).any(-1)[2]
    assert weights.isfinite().all()


def test_choices_that_cannot_be_are_refused() -> None:
    x, weights = normal(2, 16, seed=31), torch.ones(2, 1)
    experts = [ExpertWeights(*(normal(16, 16, seed=i) for i in range(3))) for _ in range(2)]
    with pytest.raises(ValueError, match="top_k is 3, it must be 1 to 2"):
        route(torch.zeros(2, 2), 3, scoring="softmax")
    with pytest.raises(ValueError, match=r"choice_bias has shape \(3,\) for 2 experts"):
        route(torch.zeros(2, 2), 1, scoring="softmax", choice_bias=torch.zeros(3))
    with pytest.raises(ValueError, match="input_bits is 32"):
        mixture_of_experts(x, weights, torch.zeros(2, 1).long(), experts, input_bits=32)
    if native() is not None:
        with pytest.raises(ValueError, match="expert id 2 is outside the 2 ids known"):
            mixture_of_experts(x, weights, torch.full((2, 1), 2), experts)
        packed_experts = PackedExperts(experts)
        with pytest.raises(ValueError, match="the experts are packed, which has no gradient"):
            mixture_of_experts(
                x.requires_grad_(), weights, torch.zeros(2, 1).long(), packed_experts
            )
