"""Lightning attention against the float64 recurrence that defines it, and against itself: a token's
bits depend on its own sequence and on nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import CHUNK, LightningCarry, lightning_attention, native
from tests.examples import examples
from tests.kernels.helpers import kv_state_at, needs_native
from tests.tolerances import BFLOAT16_ONCE, FLOAT32_OP, FLOAT64_OP, OPS, assert_close

SLOPES = torch.tensor([0.99, 0.1, 1e-5], dtype=torch.float64)
H = len(SLOPES)
HEAD_DIMS = [8, 16, 24, 64, 128]
DTYPES = [torch.float32, torch.bfloat16]
seeds = st.integers(0, 10**6)


def recurrence(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = exp(-slope) S_{t-1} + k_t v_t^T; o_t = q_t S_t, token by token, (T, H, D)."""
    state = torch.zeros(H, q.shape[2], q.shape[2], dtype=q.dtype)
    decay = torch.exp(-SLOPES)[:, None, None]
    outs = []
    for t in range(len(q)):
        state = decay * state + torch.einsum("hd,he->hde", k[t], v[t])
        outs.append(torch.einsum("hd,hde->he", q[t], state))
    return torch.stack(outs), state


def random_qkv(length: int, head_dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(T, H, D) views of one fused tensor, as the model makes them."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(length, H, 3 * head_dim, generator=generator, dtype=torch.float64)
    qkv[..., :head_dim] *= head_dim**-0.5
    q, k, v = qkv.chunk(3, -1)
    return q, k, v


def lens(*lengths: int) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0).int()


def stale_states(num_slots: int, head_dim: int, dtype: torch.dtype) -> LightningCarry:
    """Slots that hold what no sequence may see."""
    state_dtype = torch.promote_types(dtype, torch.float32)
    return LightningCarry(
        torch.full((num_slots, H, head_dim, head_dim), torch.nan, dtype=state_dtype),
        torch.full((num_slots, H, CHUNK, head_dim), torch.nan, dtype=dtype),
        torch.full((num_slots, H, CHUNK, head_dim), torch.nan, dtype=dtype),
    )


def in_pieces(
    q: Tensor, k: Tensor, v: Tensor, pieces: list[int], slopes: Tensor = SLOPES
) -> tuple[Tensor, LightningCarry]:
    """One sequence (T, H, D) through as many calls as there are pieces."""
    states = stale_states(1, q.shape[2], q.dtype)
    outs: list[Tensor] = []
    start = 0
    for piece in pieces:
        own = slice(start, start + piece)
        outs.append(
            lightning_attention(
                q[own],
                k[own],
                v[own],
                slopes,
                cu_seqlens=lens(piece),
                context_lens=torch.tensor([start]),
                states=states,
                slots=torch.tensor([0]),
            )
        )
        start += piece
    return torch.cat(outs), states


@contextmanager
def threads(count: int) -> Iterator[None]:
    module = native()
    assert module is not None
    before = module.num_threads()
    module.set_num_threads(count)
    try:
        yield
    finally:
        module.set_num_threads(before)


def assert_same_bits(one: Tensor, other: Tensor) -> None:
    bits = {2: torch.int16, 4: torch.int32}[one.element_size()]
    differing = int((one.contiguous().view(bits) != other.contiguous().view(bits)).sum())
    assert differing == 0, f"{differing} of {one.numel()} values differ"


# Values


@given(
    st.lists(st.integers(1, 2 * CHUNK + 3), min_size=1, max_size=4),
    st.sampled_from([4, 24]),
    seeds,
)
@settings(max_examples=examples(25), deadline=None)
def test_packed_sequences_equal_their_recurrences(
    lengths: list[int], head_dim: int, seed: int
) -> None:
    q, k, v = random_qkv(sum(lengths), head_dim, seed)
    states = stale_states(len(lengths) + 1, head_dim, q.dtype)
    slots = torch.arange(len(lengths), 0, -1)
    out = lightning_attention(
        q, k, v, SLOPES, cu_seqlens=lens(*lengths), states=states, slots=slots
    )
    carry = LightningCarry(*(x[slots] for x in states))
    last = kv_state_at(carry, SLOPES, torch.tensor(lengths))
    start = 0
    for n, length in enumerate(lengths):
        own = slice(start, start + length)
        expected, state = recurrence(q[own], k[own], v[own])
        assert_close(out[own], expected, FLOAT64_OP)
        assert_close(last[n], state, FLOAT64_OP)
        start += length
    assert states.kv_state[0].isnan().all()  # nobody's slot


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pieces", [[300], [100, 28, 172], [1] * 300], ids=len)
def test_tokens_meet_float32_sums_and_a_float32_state(
    pieces: list[int], dtype: torch.dtype, head_dim: int
) -> None:
    q, k, v = (x.to(dtype) for x in random_qkv(300, head_dim, 11))
    out, carry = in_pieces(q, k, v, pieces, SLOPES.float())
    state = kv_state_at(carry, SLOPES.float(), torch.tensor([300]))[0]
    assert (out.dtype, state.dtype) == (dtype, torch.float32)
    expected, expected_state = recurrence(q.double(), k.double(), v.double())
    assert_close(out.double(), expected, FLOAT32_OP if dtype == torch.float32 else BFLOAT16_ONCE)
    assert_close(state.double(), expected_state, FLOAT32_OP)


@given(
    st.lists(st.integers(1, CHUNK + 5), min_size=1, max_size=8),
    seeds,
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=examples(25), deadline=None)
def test_any_cutting_gives_the_same_output_and_state(
    pieces: list[int], seed: int, dtype: torch.dtype
) -> None:
    q, k, v = (x.to(dtype) for x in random_qkv(sum(pieces), 4, seed))
    whole, last = in_pieces(q, k, v, [sum(pieces)])
    out, carry = in_pieces(q, k, v, pieces)
    # Without the extension torch's products may round differently by address.
    assert_close(out, whole, OPS[dtype])
    assert_close(carry.kv_state, last.kv_state, OPS[dtype])


# Bits


@needs_native
@given(st.data())
@settings(max_examples=examples(60), deadline=None)
def test_bits_depend_on_the_sequence_alone(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 3 * CHUNK), min_size=1, max_size=4))
    random_schedule(
        lengths,
        data.draw(st.sampled_from(HEAD_DIMS)),
        data.draw(st.sampled_from(DTYPES)),
        data.draw(st.integers(1, 3 * CHUNK)),
        data.draw(seeds),
    )


def random_schedule(
    lengths: list[int], head_dim: int, dtype: torch.dtype, max_piece: int, seed: int
) -> None:
    """Sequences run alone at once, and cut at random in random company: the same bits."""
    chance = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=chance))

    sequences = [
        tuple(x.to(dtype) for x in random_qkv(length, head_dim, seed + n))
        for n, length in enumerate(lengths)
    ]
    whole = [in_pieces(q, k, v, [len(q)]) for q, k, v in sequences]

    slots = torch.randperm(len(lengths) + 1, generator=chance)[: len(lengths)]
    states = stale_states(len(lengths) + 1, head_dim, dtype)
    done = [0] * len(lengths)
    while any(d < length for d, length in zip(done, lengths, strict=True)):
        waiting = [n for n, length in enumerate(lengths) if done[n] < length]
        order = torch.randperm(len(waiting), generator=chance)[: 1 + below(len(waiting))]
        chosen = [waiting[i] for i in order.tolist()]
        pieces = [1 + below(min(max_piece, lengths[n] - done[n])) for n in chosen]
        rows = [slice(done[n], done[n] + piece) for n, piece in zip(chosen, pieces, strict=True)]
        q, k, v = (
            torch.cat([sequences[n][i][own] for n, own in zip(chosen, rows, strict=True)])
            for i in range(3)
        )
        if below(2):  # strides of every kind
            q, k, v = torch.stack((q, k, v), 2).unbind(2)
        with threads(1 + below(2)):
            out = lightning_attention(
                q,
                k,
                v,
                SLOPES,
                cu_seqlens=lens(*pieces),
                context_lens=torch.tensor([done[n] for n in chosen]),
                states=states,
                slots=slots[chosen],
            )
        for n, own, part in zip(chosen, rows, torch.split(out, pieces), strict=True):
            assert_same_bits(part, whole[n][0][own])
            done[n] = own.stop
    for n, length in enumerate(lengths):
        alone = whole[n][1]
        assert_same_bits(states.kv_state[slots[n]], alone.kv_state[0])
        for tail, expected in ((states.k_tail, alone.k_tail), (states.v_tail, alone.v_tail)):
            used = length % CHUNK
            assert_same_bits(tail[slots[n], :, :used], expected[0, :, :used])


@needs_native
@pytest.mark.parametrize("later", [torch.nan, torch.inf])
def test_later_tokens_are_not_even_multiplied_by_zero(later: float) -> None:
    q, k, v = (x.float() for x in random_qkv(100, 16, 3))
    clean = lightning_attention(q, k, v, SLOPES, cu_seqlens=lens(100))
    k[71:], v[71:] = later, later
    assert_same_bits(lightning_attention(q, k, v, SLOPES, cu_seqlens=lens(100))[:71], clean[:71])


def test_rows_of_a_tail_beyond_its_length_are_ignored() -> None:
    q, k, v = (x.float() for x in random_qkv(10, 4, 7))
    _, carry = in_pieces(q[:5], k[:5], v[:5], [5])
    outs = []
    for stale in (0, torch.nan):
        states = LightningCarry(*(x.clone() for x in carry))
        states.k_tail[:, :, 5:] = stale
        states.v_tail[:, :, 5:] = stale
        outs.append(
            lightning_attention(
                q[5:],
                k[5:],
                v[5:],
                SLOPES,
                cu_seqlens=lens(5),
                context_lens=torch.tensor([5]),
                states=states,
                slots=torch.tensor([0]),
            )
        )
    assert torch.equal(*outs)


# Gradients


def gradients(
    qkv: tuple[Tensor, ...], weights: Tensor, cu_seqlens: Tensor, slopes: Tensor = SLOPES
) -> tuple[Tensor, ...]:
    inputs = tuple(x.detach().requires_grad_() for x in qkv)
    q, k, v = inputs
    out = lightning_attention(q, k, v, slopes, cu_seqlens=cu_seqlens)
    return torch.autograd.grad((out * weights).sum(), inputs)


def test_gradients_equal_those_of_the_recurrence() -> None:
    length = 2 * CHUNK + 7
    qkv = random_qkv(length, 4, 5)
    q, k, v = inputs = tuple(x.detach().requires_grad_() for x in qkv)
    weights = torch.randn(length, H, 4, dtype=torch.float64)
    expected, _ = recurrence(q, k, v)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(gradients(qkv, weights, lens(length)), wanted, strict=True):
        assert_close(one, other, FLOAT64_OP)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_a_packed_batch(dtype: torch.dtype, head_dim: int) -> None:
    lengths = (70, 1, 130)
    qkv = tuple(x.to(dtype) for x in random_qkv(sum(lengths), head_dim, 9))
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(sum(lengths), H, head_dim, generator=generator) * head_dim**-0.5
    weights = weights.to(dtype)
    found = gradients(qkv, weights, lens(*lengths))
    wanted = gradients(tuple(x.double() for x in qkv), weights.double(), lens(*lengths))
    tolerance = FLOAT32_OP if dtype == torch.float32 else BFLOAT16_ONCE
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert_close(one.double(), other, tolerance)


@needs_native
def test_bits_of_a_gradient_do_not_depend_on_company_or_threads() -> None:
    lengths = (70, 1, 130)
    qkv = tuple(x.float() for x in random_qkv(sum(lengths), 24, 9))
    weights = torch.ones(sum(lengths), H, 24)
    with threads(2):
        packed = gradients(qkv, weights, lens(*lengths))
    own = slice(71, 201)
    with threads(1):
        alone = gradients(tuple(x[own] for x in qkv), weights[own], lens(130))
    for one, other in zip(packed, alone, strict=True):
        assert_same_bits(one[own], other)


def test_a_model_that_generated_can_be_trained() -> None:
    q, k, v = (x.float() for x in random_qkv(70, 4, 2))
    weights = torch.ones(70, H, 4)
    with torch.inference_mode():  # whatever is remembered between calls is made here
        lightning_attention(q, k, v, SLOPES / 7, cu_seqlens=lens(70))
    gradients((q, k, v), weights, lens(70), SLOPES / 7)


# The door


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cu_seqlens": lens(4)}, "cu_seqlens is .* must rise from 0 to the 5 tokens"),
        ({"context_lens": torch.tensor([3])}, "so states are needed"),
        ({"slots": torch.tensor([0])}, "needed together"),
        ({"states": stale_states(2, 4, torch.float32), "slots": torch.tensor([2])}, "slots is"),
        ({"states": stale_states(2, 8, torch.float32), "slots": torch.tensor([1])}, "kv_state is"),
        ({"states": stale_states(2, 4, torch.bfloat16), "slots": torch.tensor([1])}, "k_tail is"),
        ({"slope_rate": SLOPES[:2]}, "slope_rate has shape"),
        ({"v": torch.zeros(5, H, 8)}, "q, k and v are"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    q, k, v = (x.float() for x in random_qkv(5, 4, 1))
    arguments = {"q": q, "k": k, "v": v, "slope_rate": SLOPES, "cu_seqlens": lens(5), **changes}
    with pytest.raises(ValueError, match=message):
        lightning_attention(**arguments)  # type: ignore[arg-type]


def test_a_gradient_through_states_is_refused() -> None:
    q, k, v = (x.float().requires_grad_() for x in random_qkv(5, 4, 1))
    with pytest.raises(ValueError, match="states carry no gradient"):
        in_pieces(q, k, v, [5])
