"""Softmax attention against the plain formula, packed, from pages, with grouped queries."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import PAGE, softmax_attention, write_pages
from tests.tolerances import BFLOAT16_SOFTMAX, FLOAT64_OP, assert_close

H, HKV, D = 4, 2, 6


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for the last len(q) positions of one sequence."""
    group = H // HKV
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / D**0.5
    reach = torch.arange(len(k))[None] <= torch.arange(len(k) - len(q), len(k))[:, None]
    return torch.einsum("hqk,khd->qhd", scores.where(reach, -torch.inf).softmax(-1), v)


@given(
    st.lists(st.tuples(st.integers(0, 150), st.integers(1, 90)), min_size=1, max_size=4),
    st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_continued_sequences_in_scattered_pages_equal_the_formula(
    sequences: list[tuple[int, int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_pages = 4 * len(sequences)
    k_pages = torch.full((num_pages, PAGE, HKV, D), torch.nan, dtype=torch.float64)
    v_pages = k_pages.clone()
    free = torch.randperm(num_pages, generator=generator).tolist()
    parts, tables = [], []
    for context, length in sequences:
        q, *kv = torch.randn(3, context + length, H, D, generator=generator, dtype=torch.float64)
        k, v = (x[:, :HKV] for x in kv)
        table = [free.pop() for _ in range(4)]
        rows = torch.arange(context)
        slots = torch.tensor(table)[rows // PAGE] * PAGE + rows % PAGE
        write_pages(k[:context], v[:context], k_pages, v_pages, slots)
        parts.append((q, k, v, context))
        tables.append(table)
    out = softmax_attention(
        torch.cat([q[context:] for q, _, _, context in parts]),
        torch.cat([k[context:] for _, k, _, context in parts]),
        torch.cat([v[context:] for _, _, v, context in parts]),
        cu_seqlens=torch.tensor([0, *(length for _, length in sequences)]).cumsum(0).int(),
        context_lens=torch.tensor([context for context, _ in sequences]),
        k_pages=k_pages,
        v_pages=v_pages,
        block_table=torch.tensor(tables),
    )
    expected = torch.cat([formula(q[context:], k, v) for q, k, v, context in parts])
    assert_close(out, expected, FLOAT64_OP)


def test_bfloat16_tokens_meet_float32_scores() -> None:
    """The scores reach tens, where bfloat16 has steps of an eighth."""
    q, *kv = torch.randn(3, 400, H, D, generator=torch.Generator().manual_seed(13)).bfloat16()
    q, (k, v) = 8 * q, (x[:, :HKV] for x in kv)
    found = softmax_attention(q, k, v, cu_seqlens=torch.tensor([0, 400]))
    assert found.dtype == torch.bfloat16
    assert_close(found.double(), formula(q.double(), k.double(), v.double()), BFLOAT16_SOFTMAX)
