"""Mixture of experts against one token at a time, and what the routers promise."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.kernels import ExpertWeights, mixture_of_experts, route_sigmoid, route_softmax
from tests.tolerances import BFLOAT16_ONCE, FLOAT32_OP, assert_close

C, FF = 8, 12


@given(st.integers(1, 9), st.integers(1, 6), st.data())
@settings(max_examples=40, deadline=None)
def test_mixture_equals_one_token_at_a_time(
    num_tokens: int, num_experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    experts = [
        ExpertWeights(
            *(torch.randn(shape, generator=generator) for shape in ((FF, C), (C, FF), (FF, C)))
        )
        for _ in range(num_experts)
    ]
    x = torch.randn(num_tokens, C, generator=generator)
    logits = torch.randn(num_tokens, num_experts, generator=generator)
    weights, ids = route_softmax(logits, top_k)
    found = mixture_of_experts(x, weights, ids, experts)
    for t in range(num_tokens):
        expected = torch.zeros(C)
        for weight, expert in zip(weights[t], ids[t].tolist(), strict=True):
            w1, w2, w3 = experts[expert]
            expected += weight * (w2 @ (F.silu(w1 @ x[t]) * (w3 @ x[t])))
        assert_close(found[t], expected, FLOAT32_OP)


def test_bfloat16_outputs_of_many_experts_are_added_in_float32() -> None:
    """Each token takes all experts, so each expert sees the same batch here and in the kernel."""
    generator = torch.Generator().manual_seed(12)
    num_tokens, num_experts = 16, 48
    x = torch.randn(num_tokens, C, generator=generator).bfloat16()
    experts = [
        ExpertWeights(
            *(
                torch.randn(shape, generator=generator).bfloat16()
                for shape in ((FF, C), (C, FF), (FF, C))
            )
        )
        for _ in range(num_experts)
    ]
    weights, ids = route_softmax(torch.randn(num_tokens, num_experts, generator=generator), 48)
    found = mixture_of_experts(x, weights, ids, experts)
    assert found.dtype == torch.bfloat16
    outputs = torch.stack(
        [F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2) for w1, w2, w3 in experts]
    )  # (E, T, C)
    expected = torch.zeros(num_tokens, C, dtype=torch.float64)
    for weight, expert in zip(weights.T.double(), ids.T, strict=True):  # (T,) each
        expected += weight[:, None] * outputs[expert, torch.arange(num_tokens)].double()
    assert_close(found.double(), expected, BFLOAT16_ONCE)


def test_softmax_router_renormalises_the_chosen() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    weights, ids = route_softmax(logits, 2)
    assert ids.tolist() == [[0, 1]]
    expected = torch.tensor([[2.0, 1.0]]).exp()
    assert_close(weights, expected / expected.sum(), FLOAT32_OP)


def test_sigmoid_router_uses_the_bias_for_the_choice_alone() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    bias = torch.tensor([-10.0, 0.0, 0.0, 10.0])
    weights, ids = route_sigmoid(logits, bias, 2)
    assert sorted(ids[0].tolist()) == [1, 3]
    scores = logits[0, ids[0]].sigmoid()
    assert_close(weights[0], scores / scores.sum(), FLOAT32_OP)
    assert sorted(route_sigmoid(logits, None, 2)[1][0].tolist()) == [0, 1]


def test_one_expert_has_weight_exactly_one() -> None:
    weights, _ = route_sigmoid(torch.tensor([[-0.3], [0.0], [5.0]]), None, 1)
    assert weights.flatten().tolist() == [1.0, 1.0, 1.0]
