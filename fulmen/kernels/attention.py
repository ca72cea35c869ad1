"""Softmax attention of packed sequences over paged keys and values.

The one idea: keys and values are written to pages first, those of new tokens too, and a token then
reads the pages from position 0 to its own, one page of 64 after the other. So its result is the
same whether it came in a whole prompt, in part of one or alone. A CPU's kernels keep this to the
bit, the plain-torch definitions below up to rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.kernels.backends import backend_for_alike
from fulmen.kernels.gradients import needs_gradient
from fulmen.kernels.lengths import Lengths, lengths_of
from fulmen.kernels.pages import PAGE, KVPages


def softmax_attention(
    q: Tensor,
    pages: KVPages,
    *,
    block_table: Tensor,
    lengths: Lengths | None = None,
    cu_seqlens: Tensor | None = None,
    context_lens: Tensor | None = None,
) -> Tensor:
    """Return causal attention with grouped queries: scores scaled by 1 / sqrt(D), the softmax in
    float32.

    q             (T, H, D)    packed new tokens
    pages         keys and values of all tokens, those before and the new ones
    block_table   (N, B)       int32: the pages of each sequence, in order
    lengths       new and past tokens of each sequence; or instead of lengths:
    cu_seqlens    (N + 1,)     int32: sequence n owns tokens cu_seqlens[n] to cu_seqlens[n + 1]
    context_lens  (N,)         int32: tokens of each sequence before the new ones; zeros if omitted

    Returns (T, H, D). Query head i reads key-value head i // (H / Hkv). Not differentiable:
    training uses `attend`.
    """
    lengths = lengths_of(lengths, cu_seqlens, context_lens)
    _check_heads(q, pages.num_kv_heads, pages.head_dim)
    lengths.check_fits(q)
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
    backend = backend_for_alike(q) if pages.holds(q) else None
    if backend is not None:
        return backend.softmax_attention(q, pages.storage, lengths=lengths, block_table=block_table)
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
    """Return `softmax_attention` of whole sequences without pages, as in training.

    q           (T, H, D)     packed tokens
    k, v        (T, Hkv, D)   keys after rotation
    lengths     tokens of each sequence, none before them; or instead of lengths:
    cu_seqlens  (N + 1,)      int32

    Returns (T, H, D), the same bits as through pages; differentiable.
    """
    lengths = lengths_of(lengths, cu_seqlens)
    _check_heads(q, k.shape[1], k.shape[2])
    lengths.check_fits(q)
    if any(lengths.host_context_lens):
        raise ValueError("context_lens is not zero, so pages are needed: use softmax_attention")

    backend = backend_for_alike(q, k, v)
    if backend is not None:
        return backend.attend(q, k, v, lengths=lengths)
    parts = zip(*(x.split_with_sizes(lengths.host_seqlens) for x in (q, k, v)), strict=True)
    return torch.cat([_one_sequence(*part) for part in parts])


def _check_heads(q: Tensor, num_kv_heads: int, head_dim: int) -> None:
    if q.ndim != 3 or q.shape[2] != head_dim or q.shape[1] % num_kv_heads:
        raise ValueError(
            f"q has shape {tuple(q.shape)}, needed is (T, H, {head_dim}) with H a multiple of "
            f"{num_kv_heads} key-value heads"
        )


def _one_sequence(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from q (t, H, D), the last t positions of k and v (context + t, Hkv, D)."""
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
