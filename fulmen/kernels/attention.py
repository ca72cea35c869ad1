"""Softmax attention of packed sequences over paged keys and values, and the rotation before it.

The one idea: keys and values are written to pages first, those of new tokens too, and a token then
reads the pages from position 0 to its own, a page of 64 after the other. So its result is the same
whether it came in a whole prompt, in a part of one or alone. Where the C++ extension runs (CPU,
bfloat16 and float32) this holds to the bit; the plain-torch definitions below keep it to rounding.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.backends import DTYPES, native_alike, needs_gradient
from fulmen.kernels.lengths import Lengths, lengths_of
from fulmen.kernels.pages import PAGE, KVPages, rows_of, same_kind, write_pages


def softmax_attention(
    q: Tensor,
    pages: KVPages,
    *,
    block_table: Tensor,
    lengths: Lengths | None = None,
    cu_seqlens: Tensor | None = None,
    context_lens: Tensor | None = None,
) -> Tensor:
    """Causal attention with grouped queries; scores are scaled by 1 / sqrt(D), softmax in float32.

    q             (T, H, D)    packed new tokens
    pages         keys and values of all tokens, those before and the new ones
    block_table   (N, B)       int32: the pages of each sequence, in order
    lengths       new and past tokens of each sequence, or instead of it:
    cu_seqlens    (N + 1,)     int32: sequence n owns tokens cu_seqlens[n] to cu_seqlens[n + 1]
    context_lens  (N,)         int32: tokens of each sequence before the new ones; zeros if omitted

    Returns (T, H, D). Query head i reads key-value head i // (H / Hkv). Not differentiable:
    training uses `attend`.
    """
    lengths = lengths_of(lengths, cu_seqlens, context_lens)
    _check_heads(q, pages.num_kv_heads, pages.head_dim)
    lengths.check_tokens(len(q))
    if len(block_table) != lengths.num_sequences:
        raise ValueError(
            f"block_table has {len(block_table)} rows for {lengths.num_sequences} sequences, each "
            "needs one"
        )
    if needs_gradient(q):
        raise ValueError(
            "q needs a gradient, which keys and values in pages do not give: training reads whole "
            "sequences without a cache; wrap inference in torch.no_grad()"
        )
    extension = native_alike(q) if same_kind(q, pages) else None
    if extension is not None:
        return _native_attention(extension, q, pages, lengths, block_table)
    outs = []
    news = q.split_with_sizes(lengths.host_seqlens)
    for new, context, row in zip(news, lengths.host_context_lens, block_table, strict=True):
        length = context + len(new)
        k, v = pages.read(row[: -(-length // PAGE)], length)
        outs.append(_one_sequence(new.to(k.dtype), k, v))
    return torch.cat(outs).to(q.dtype)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Lengths | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """`softmax_attention` of whole sequences that have no pages, as in training; differentiable.

    q           (T, H, D)     packed tokens
    k, v        (T, Hkv, D)   keys after rotation
    lengths     tokens of each sequence, none before them, or instead of it:
    cu_seqlens  (N + 1,)      int32

    Returns (T, H, D), equal to the bit to what pages would give.
    """
    lengths = lengths_of(lengths, cu_seqlens)
    _check_heads(q, k.shape[1], k.shape[2])
    lengths.check_tokens(len(q))
    if any(lengths.host_context_lens):
        raise ValueError("context_lens is not zero, so pages are needed: use softmax_attention")

    extension = native_alike(q, k, v)
    if extension is None:
        parts = zip(*(x.split_with_sizes(lengths.host_seqlens) for x in (q, k, v)), strict=True)
        return torch.cat([_one_sequence(*part) for part in parts])
    if needs_gradient(q, k, v):
        out: Tensor = _Attend.apply(q, k, v, extension, lengths)  # type: ignore[no-untyped-call]
        return out
    return _through_pages(extension, q, k, v, lengths)


class _Attend(torch.autograd.Function):
    """Whole sequences, forward through pages, backward by a kernel of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extension: ModuleType,
        lengths: Lengths,
    ) -> Tensor:
        out = _through_pages(extension, q, k, v, lengths)
        ctx.save_for_backward(q, k, v, out)
        ctx.others = extension, lengths
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        extension, lengths = ctx.others
        q, k, v, out = (x.contiguous() for x in ctx.saved_tensors)
        dout = dout.contiguous()
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        extension.softmax_attention_backward(
            q=q.data_ptr(),
            k=k.data_ptr(),
            v=v.data_ptr(),
            out=out.data_ptr(),
            dout=dout.data_ptr(),
            dq=dq.data_ptr(),
            dk=dk.data_ptr(),
            dv=dv.data_ptr(),
            dtype=DTYPES[q.dtype],
            cu_seqlens=lengths.cu_seqlens.data_ptr(),
            num_sequences=lengths.num_sequences,
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=q.shape[2],
        )
        return dq, dk, dv, None, None


def _through_pages(
    extension: ModuleType, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths
) -> Tensor:
    pages, slots, block_table = _own_pages(k, lengths.host_seqlens)
    write_pages(k, v, pages, slots)
    return _native_attention(extension, q, pages, lengths, block_table)


def _check_heads(q: Tensor, num_kv_heads: int, head_dim: int) -> None:
    if q.ndim != 3 or q.shape[2] != head_dim or q.shape[1] % num_kv_heads:
        raise ValueError(
            f"q has shape {tuple(q.shape)}, needed is (T, H, {head_dim}) with H a multiple of "
            f"{num_kv_heads} key-value heads"
        )


def _native_attention(
    extension: ModuleType, q: Tensor, pages: KVPages, lengths: Lengths, block_table: Tensor
) -> Tensor:
    q = rows_of(q)
    out = q.new_empty(q.shape)
    table = block_table.to(torch.int32).contiguous()  # a name: lives until the kernel has run
    extension.softmax_attention(
        q=q.data_ptr(),
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        out=out.data_ptr(),
        dtype=DTYPES[q.dtype],
        **pages._addresses(),
        block_table=table.data_ptr(),
        block_table_width=table.shape[1],
        cu_seqlens=lengths.cu_seqlens.data_ptr(),
        context_lens=lengths.context_lens.data_ptr(),
        num_sequences=lengths.num_sequences,
        num_heads=q.shape[1],
        num_kv_heads=pages.num_kv_heads,
        head_dim=pages.head_dim,
    )
    return out


def _own_pages(like: Tensor, seqlens: Sequence[int]) -> tuple[KVPages, Tensor, Tensor]:
    """Pages for tokens like (T, Hkv, D), their slot_mapping (T,) and block_table (N, B)."""
    # Where a sequence has fewer pages than the widest, its row ends in some that it never reads.
    slots, tables, num_pages = [], [], 0
    width = max(-(-length // PAGE) for length in seqlens)
    for length in seqlens:
        slots.append(torch.arange(length) + num_pages * PAGE)
        tables.append(torch.arange(num_pages, num_pages + width))
        num_pages += -(-length // PAGE)
    pages = KVPages(num_pages, like.shape[1], like.shape[2], dtype=like.dtype)
    return pages, torch.cat(slots), torch.stack(tables).to(torch.int32)


def _one_sequence(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (t, H, D) of the last t positions, k and v (context + t, Hkv, D) -> (t, H, D)"""
    length, context = len(q), len(k) - len(q)
    mask = None
    if context and length > 1:
        reach = torch.arange(context + length, device=q.device)
        mask = reach[None, :] <= context + torch.arange(length, device=q.device)[:, None]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=not context and length > 1,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)
