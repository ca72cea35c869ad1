"""Lengths: checked once, equal to the tensors they describe, and no reason to wait for a device."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import (
    KVPages,
    Lengths,
    LightningCarry,
    attend,
    lightning_attention,
    softmax_attention,
    write_pages,
)
from tests.kernels.helpers import needs_native, normal, same_bits

SLOPES = torch.tensor([0.5, 0.01])
H, D = 2, 16


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """New tokens, tokens before them and slot of each sequence."""
    count = draw(st.integers(1, 4))
    seqlens = draw(st.lists(st.integers(1, 70), min_size=count, max_size=count))
    past = draw(st.lists(st.integers(0, 130), min_size=count, max_size=count))
    slots = draw(st.permutations(range(5)))
    return seqlens, past, slots[:count]


def tensors_of(lengths: Lengths) -> tuple[Tensor, Tensor, Tensor]:
    assert lengths.slots is not None
    return lengths.cu_seqlens, lengths.context_lens, lengths.slots


def states(device: str = "cpu") -> LightningCarry:
    return LightningCarry(
        *(normal(5, H, rows, D, seed=rows).to(device) for rows in (D, 64, 64)),
    )


@given(batches())
def test_tensors_and_lists_describe_the_same_batch(
    batch: tuple[list[int], list[int], list[int]],
) -> None:
    lengths = Lengths.of(*batch)
    again = Lengths.from_tensors(*tensors_of(lengths))
    assert list(lengths.host_seqlens) == lengths.cu_seqlens.diff().tolist() == batch[0]
    assert lengths.num_tokens == sum(batch[0])
    for name in Lengths.__slots__:
        one, other = getattr(lengths, name), getattr(again, name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@needs_native  # plain torch may round apart from one call to the next
@given(batches())
def test_a_kernel_takes_lengths_or_their_tensors(
    batch: tuple[list[int], list[int], list[int]],
) -> None:
    lengths = Lengths.of(*batch)
    cu_seqlens, context_lens, slots = tensors_of(lengths)
    q, k, v = (normal(lengths.num_tokens, H, D, seed=i) for i in range(3))
    described, raw = states(), states()
    found = lightning_attention(q, k, v, SLOPES, lengths=lengths, states=described)
    wanted = lightning_attention(
        q,
        k,
        v,
        SLOPES,
        states=raw,
        cu_seqlens=cu_seqlens,
        context_lens=context_lens,
        slots=slots,
    )
    assert all(map(same_bits, (found, *described), (wanted, *raw)))

    whole = Lengths.of(batch[0])
    found = attend(q, k, v, lengths=whole)
    assert same_bits(found, attend(q, k, v, cu_seqlens=cu_seqlens))


@pytest.mark.parametrize(
    ("seqlens", "context_lens", "slots", "message"),
    [
        ([], None, None, "at least one sequence"),
        ([3, -1], None, None, "none may be negative"),
        ([3, 1], [4], None, "context_lens is .* each of 2 sequences needs one"),
        ([3, 1], [4, -2], None, "sequence 1 has 1 tokens after -2"),
        ([3, 1], None, [0], "each of 2 sequences needs one of its own"),
        ([3, 1], None, [1, 1], "each of 2 sequences needs one of its own"),
        ([3, 1], None, [1, -1], "each of 2 sequences needs one of its own"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(
    seqlens: list[int], context_lens: list[int] | None, slots: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Lengths.of(seqlens, context_lens, slots)


@pytest.mark.parametrize("starts", [[], [0], [1, 3], [0, 4, 2]])
def test_tensors_that_do_not_rise_from_zero_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise from 0"):
        Lengths.from_tensors(torch.tensor(starts, dtype=torch.int32))


def test_lengths_that_do_not_fit_the_call_are_refused() -> None:
    x = normal(5, H, D, seed=0)
    pages = KVPages(1, H, D, dtype=torch.float32)
    table = torch.zeros(1, 1, dtype=torch.int32)
    some = Lengths.of([5])
    with pytest.raises(ValueError, match=r"rise from 0 to the 5 tokens"):
        attend(x, x, x, lengths=Lengths.of([4]))
    with pytest.raises(ValueError, match="cu_seqlens is on meta, tokens are on cpu"):
        attend(x, x, x, lengths=Lengths.of([5], device="meta"))
    with pytest.raises(ValueError, match="are on different devices"):
        Lengths.from_tensors(some.cu_seqlens, some.context_lens.to("meta"))
    with pytest.raises(ValueError, match="so pages are needed"):
        attend(x, x, x, lengths=Lengths.of([5], [1]))
    with pytest.raises(ValueError, match="only one is needed"):
        attend(x, x, x, lengths=some, cu_seqlens=some.cu_seqlens)
    with pytest.raises(ValueError, match="one is needed"):
        attend(x, x, x)
    with pytest.raises(ValueError, match="block_table has 1 rows for 2 sequences"):
        softmax_attention(x, pages, block_table=table, lengths=Lengths.of([4, 1]))
    with pytest.raises(ValueError, match="states are given without slots"):
        lightning_attention(x, x, x, SLOPES, lengths=some, states=states())
    with pytest.raises(ValueError, match=r"slots is .* the states have 5"):
        lightning_attention(x, x, x, SLOPES, lengths=Lengths.of([5], [0], [5]), states=states())


def test_no_layer_waits_for_its_device() -> None:
    # Tensors on torch's meta device have shapes and no values: reading one on the host raises.
    def tokens() -> Tensor:
        return torch.empty(73, H, D, device="meta")

    lengths = Lengths.of([3, 70], [64, 7], [1, 0], device="meta")
    slope_rate = SLOPES.to("meta")
    carry = states("meta")
    out = lightning_attention(
        tokens(), tokens(), tokens(), slope_rate, lengths=lengths, states=carry
    )
    assert out.shape == (73, H, D)
    pages = KVPages(4, H, D, dtype=torch.float32, device="meta")
    slot_mapping = torch.empty(73, dtype=torch.int64, device="meta")
    table = torch.empty(2, 2, dtype=torch.int32, device="meta")
    write_pages(tokens(), tokens(), pages, slot_mapping)
    assert softmax_attention(tokens(), pages, block_table=table, lengths=lengths).shape == out.shape
    whole = Lengths.of([3, 70], device="meta")
    assert attend(tokens(), tokens(), tokens(), lengths=whole).shape == out.shape


def test_a_recorded_batch_is_refilled_where_it_lies() -> None:
    recorded = Lengths.of([1, 2], [5, 6], [0, 1]).clone()
    addresses = [x.data_ptr() for x in tensors_of(recorded)]
    recorded.fill(Lengths.of([1, 2], [70, 8], [3, 2]))
    assert [x.data_ptr() for x in tensors_of(recorded)] == addresses
    assert recorded.context_lens.tolist() == [70, 8]
    assert recorded.slots is not None
    assert recorded.slots.tolist() == [3, 2]
