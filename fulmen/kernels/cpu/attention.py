"""`softmax_attention` and `attend` in C++."""

import functools
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.cpu.extension import DTYPES, address, dense_rows, loaded
from fulmen.kernels.cpu.pages import InterleavedPages, write_pages, zeros_for_now
from fulmen.kernels.gradients import needs_gradient
from fulmen.kernels.lengths import Lengths

_PAGE: Final = 64
"""Tokens in a page, kPage of csrc/attention_args.h."""


def softmax_attention(
    q: Tensor, pages: InterleavedPages, *, lengths: Lengths, block_table: Tensor
) -> Tensor:
    """Attend over pages: (T, H, D) -> (T, H, D), no gradient. The extension checks block_table."""
    return _run(q, pages, lengths, block_table)


def _run(
    q: Tensor,
    pages: InterleavedPages,
    lengths: Lengths,
    block_table: Tensor,
    row_sums: Tensor | None = None,
) -> Tensor:
    """One call of the kernel; row_sums (T, H, 2) float32 receives each row's largest score and the
    sum of its weights, for the gradient."""
    q = dense_rows(q)
    out = q.new_empty(q.shape)
    table = block_table.to(
        "cpu", torch.int32
    ).contiguous()  # a name: lives until the kernel has run
    loaded().softmax_attention(
        q=q.data_ptr(),
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        out=out.data_ptr(),
        dtype=DTYPES[q.dtype],
        **pages.addresses(),
        block_table=table.data_ptr(),
        block_table_width=table.shape[1],
        cu_seqlens=lengths.cu_seqlens.data_ptr(),
        context_lens=lengths.context_lens.data_ptr(),
        num_sequences=lengths.num_sequences,
        num_heads=q.shape[1],
        num_kv_heads=pages.k_pages.shape[1],
        head_dim=pages.head_dim,
        row_sums=address(row_sums),
    )
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, *, lengths: Lengths) -> Tensor:
    """Attend within whole sequences: (T, H, D), (T, Hkv, D) -> (T, H, D); differentiable."""
    if needs_gradient(q, k, v):
        out: Tensor = _Attend.apply(q, k, v, lengths)  # type: ignore[no-untyped-call]
        return out
    return _through_pages(q, k, v, lengths)


class _Attend(torch.autograd.Function):
    """Forward through pages, backward by a kernel of its own."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
        row_sums = torch.empty(*q.shape[:2], 2)
        out = _through_pages(q, k, v, lengths, row_sums)
        ctx.save_for_backward(q, k, v, out, row_sums)
        ctx.lengths = lengths
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, row_sums = (x.contiguous() for x in ctx.saved_tensors)
        dout = dout.contiguous()
        dq, dk, dv = (
            torch.empty_like(x) if wanted else None
            for x, wanted in zip((q, k, v), ctx.needs_input_grad[:3], strict=True)
        )
        loaded().softmax_attention_backward(
            q=q.data_ptr(),
            k=k.data_ptr(),
            v=v.data_ptr(),
            out=out.data_ptr(),
            dout=dout.data_ptr(),
            row_sums=row_sums.data_ptr(),
            dq=address(dq),
            dk=address(dk),
            dv=address(dv),
            dtype=DTYPES[q.dtype],
            cu_seqlens=ctx.lengths.cu_seqlens.data_ptr(),
            num_sequences=ctx.lengths.num_sequences,
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=q.shape[2],
        )
        return dq, dk, dv, None


def _through_pages(
    q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, row_sums: Tensor | None = None
) -> Tensor:
    """Write whole sequences to pages of their own and read those, as inference does."""
    slot_mapping, block_table, num_pages = _own_slots(tuple(lengths.host_seqlens))
    pages = InterleavedPages(
        num_pages, *k.shape[1:], dtype=k.dtype, stored=k.dtype, room=zeros_for_now
    )
    write_pages(k, v, pages, slot_mapping)
    return _run(q, pages, lengths, block_table, row_sums)


@functools.lru_cache(maxsize=4)
def _own_slots(seqlens: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    """Return slot_mapping (T,) and block_table (N, B) of sequences with pages of their own, and the
    number of these pages; every layer of a batch asks."""
    # A row of block_table may end in pages that its sequence is too short to read.
    slots, tables, num_pages = [], [], 0
    width = max(-(-length // _PAGE) for length in seqlens)
    for length in seqlens:
        slots.append(torch.arange(length) + num_pages * _PAGE)
        tables.append(torch.arange(num_pages, num_pages + width))
        num_pages += -(-length // _PAGE)
    return torch.cat(slots), torch.stack(tables).to(torch.int32), num_pages
