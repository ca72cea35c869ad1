"""Lightning attention against the float64 recurrence that defines it: packed, continued, and fed
bfloat16."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import CHUNK, LightningCarry, kv_state_at, lightning_attention
from tests.tolerances import BFLOAT16_ONCE, FLOAT32_OP, FLOAT64_OP, OPS, assert_close

H, D = 3, 4


def recurrence(q: Tensor, k: Tensor, v: Tensor, slope_rate: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = exp(-slope) S_{t-1} + k_t v_t^T; o_t = q_t S_t, token by token, (T, H, D)."""
    state = torch.zeros(H, D, D, dtype=q.dtype)
    decay = torch.exp(-slope_rate)[:, None, None]
    outs = []
    for t in range(len(q)):
        state = decay * state + torch.einsum("hd,he->hde", k[t], v[t])
        outs.append(torch.einsum("hd,hde->he", q[t], state))
    return torch.stack(outs), state


def random_qkv(length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, length, H, D, generator=generator, dtype=torch.float64)
    return q, k, v


SLOPES = torch.tensor([0.9, 0.1, 0.004], dtype=torch.float64)


def lens(*lengths: int) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0).int()


def in_pieces(
    q: Tensor, k: Tensor, v: Tensor, slope_rate: Tensor, pieces: list[int]
) -> tuple[Tensor, LightningCarry]:
    """One sequence (T, H, D) through as many calls as there are pieces."""
    outs: list[Tensor] = []
    carry: LightningCarry | None = None
    start = 0
    for piece in pieces:
        own = slice(start, start + piece)
        out, carry = lightning_attention(
            q[own],
            k[own],
            v[own],
            slope_rate,
            cu_seqlens=lens(piece),
            context_lens=torch.tensor([start]),
            carry=carry,
        )
        outs.append(out)
        start += piece
    assert carry is not None
    return torch.cat(outs), carry


@given(
    st.lists(st.integers(1, 2 * CHUNK + 3), min_size=1, max_size=4),
    st.integers(0, 10**6),
)
@settings(max_examples=30, deadline=None)
def test_packed_sequences_equal_their_recurrences(lengths: list[int], seed: int) -> None:
    q, k, v = random_qkv(sum(lengths), seed)
    out, carry = lightning_attention(q, k, v, SLOPES, cu_seqlens=lens(*lengths))
    states = kv_state_at(carry, SLOPES, torch.tensor(lengths))
    start = 0
    for n, length in enumerate(lengths):
        own = slice(start, start + length)
        expected, state = recurrence(q[own], k[own], v[own], SLOPES)
        assert_close(out[own], expected, FLOAT64_OP)
        assert_close(states[n], state, FLOAT64_OP)
        start += length


@given(
    st.lists(st.integers(1, CHUNK + 5), min_size=1, max_size=8),
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=40, deadline=None)
def test_any_cutting_gives_the_same_output_and_state(
    pieces: list[int], seed: int, dtype: torch.dtype
) -> None:
    q, k, v = (x.to(dtype) for x in random_qkv(sum(pieces), seed))
    whole, last = lightning_attention(q, k, v, SLOPES, cu_seqlens=lens(sum(pieces)))
    out, carry = in_pieces(q, k, v, SLOPES, pieces)
    # The operands and their order are the same; torch's products may round differently by address.
    assert_close(out, whole, OPS[dtype])
    assert_close(carry.kv_state, last.kv_state, OPS[dtype])


@pytest.mark.parametrize("pieces", [[400], [100, 28, 272], [1] * 400], ids=len)
def test_bfloat16_tokens_meet_float32_sums_and_a_float32_state(pieces: list[int]) -> None:
    q, k, v = (x.bfloat16() for x in random_qkv(400, 11))
    out, carry = in_pieces(q, k, v, SLOPES.float(), pieces)
    state = kv_state_at(carry, SLOPES.float(), torch.tensor([400]))[0]
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    expected, expected_state = recurrence(q.double(), k.double(), v.double(), SLOPES)
    assert_close(out.double(), expected, BFLOAT16_ONCE)
    assert_close(state.double(), expected_state, FLOAT32_OP)


def test_output_does_not_depend_on_company() -> None:
    lengths = (70, 1, 130)
    q, k, v = (x.float() for x in random_qkv(sum(lengths), 3))
    packed, _ = lightning_attention(q, k, v, SLOPES, cu_seqlens=lens(*lengths))
    alone, _ = lightning_attention(q[70:71], k[70:71], v[70:71], SLOPES, cu_seqlens=lens(1))
    assert_close(packed[70:71], alone, OPS[torch.float32])


def test_gradients_equal_those_of_the_recurrence() -> None:
    q, k, v = inputs = tuple(x.requires_grad_() for x in random_qkv(2 * CHUNK + 7, 5))
    weights = torch.randn(2 * CHUNK + 7, H, D, dtype=torch.float64)
    out, _ = lightning_attention(q, k, v, SLOPES, cu_seqlens=lens(2 * CHUNK + 7))
    expected, _ = recurrence(q, k, v, SLOPES)
    found = torch.autograd.grad((out * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, FLOAT64_OP)


def test_rows_of_a_carried_tail_beyond_its_length_are_ignored() -> None:
    q, k, v = (x.float() for x in random_qkv(10, 7))
    _, carry = lightning_attention(q[:5], k[:5], v[:5], SLOPES, cu_seqlens=lens(5))
    poisoned = carry._replace(k_tail=carry.k_tail.clone(), v_tail=carry.v_tail.clone())
    poisoned.k_tail[:, 5:] = torch.nan
    poisoned.v_tail[:, 5:] = torch.nan
    outs = [
        lightning_attention(
            q[5:],
            k[5:],
            v[5:],
            SLOPES,
            cu_seqlens=lens(5),
            context_lens=torch.tensor([5]),
            carry=tail,
        )[0]
        for tail in (carry, poisoned)
    ]
    assert torch.equal(*outs)
