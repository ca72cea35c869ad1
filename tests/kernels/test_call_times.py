"""Timing single calls changes no result and misses no call."""

import pytest
import torch

from fulmen.kernels import (
    ExpertWeights,
    PackedExperts,
    Program,
    embed,
    linear,
    mixture_of_experts,
    time_calls,
)
from tests.kernels.helpers import FORMATS, needs_native, normal, packed

pytestmark = needs_native


@pytest.mark.parametrize("name", FORMATS)
def test_timed_calls_give_the_same_bits_and_their_weights(name: str) -> None:
    matrix = packed(normal(48, 128, seed=1), name)
    x = normal(3, 128, seed=2).bfloat16()
    plain = linear(x, matrix)
    with time_calls() as clock:
        timed = linear(x, matrix)
    assert torch.equal(plain, timed)
    (call,) = clock.calls()
    assert (call.kernel, call.weights) == ("linear", matrix.data.data_ptr())
    (stage,) = call.stages
    assert stage.seconds > 0
    assert (stage.preparing > 0) == (name.partition("/")[0] not in ("bfloat16", "fp8"))


def test_experts_have_a_stage_for_each_product() -> None:
    matrices = [
        ExpertWeights(*(packed(normal(64, 64, seed=3 * e + i), "int8") for i in range(3)))
        for e in range(4)
    ]
    ids = torch.tensor([[0, 2], [2, 0]])
    with time_calls() as clock:
        mixture_of_experts(
            normal(2, 64, seed=50), torch.full((2, 2), 0.5), ids, PackedExperts(matrices)
        )
    (call,) = clock.calls()
    assert len(call.stages) == 2
    assert call.num_matrices == 2
    for stage in call.stages:
        assert 0 < stage.preparing < stage.seconds


def test_replayed_calls_are_timed_in_their_order() -> None:
    first, second = (packed(normal(64, 64, seed=seed), "float32") for seed in (1, 2))
    x = normal(1, 64, seed=3)
    program = Program(lambda: linear(linear(x, first), second))
    expected = program.outputs.clone()
    with time_calls() as clock:
        program.outputs.zero_()
        program.replay()
    assert torch.equal(program.outputs, expected)
    assert [call.weights for call in clock.calls()] == [
        first.data.data_ptr(),
        second.data.data_ptr(),
    ]
    with time_calls() as empty:
        pass
    assert empty.calls() == []


def test_a_call_that_is_refused_leaves_the_kernels_in_order() -> None:
    table = normal(8, 16, seed=1)
    with time_calls() as clock, pytest.raises(ValueError, match="token id 9 is outside"):
        embed(torch.tensor([9]), table)
    assert clock.calls() == []
    assert torch.equal(embed(torch.tensor([3]), table)[0], table[3])
