"""Softmax attention of packed sequences over their cached pages and their new tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

PAGE = 64
"""Tokens in a page of the key-value cache."""


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor,
    context_lens: Tensor | None = None,
    k_pages: Tensor | None = None,
    v_pages: Tensor | None = None,
    block_table: Tensor | None = None,
) -> Tensor:
    """Causal attention with grouped queries; scores are scaled by 1 / sqrt(D), softmax in float32.

    q             (T, H, D)             packed new tokens
    k, v          (T, Hkv, D)           of the same tokens, keys after rotation
    cu_seqlens    (N + 1,)              int32
    context_lens  (N,)                  int32: tokens of each sequence in the pages; none if omitted
    k_pages, v_pages  (P, 64, Hkv, D)   the cache of this layer
    block_table   (N, B)                int32: the pages of each sequence, in order

    Returns (T, H, D). Query head i reads key-value head i // (H / Hkv).
    """
    bounds = cu_seqlens.tolist()
    past = [0] * (len(bounds) - 1) if context_lens is None else context_lens.tolist()
    outs = []
    for n, context in enumerate(past):
        start, end = bounds[n], bounds[n + 1]
        keys, values = k[start:end], v[start:end]
        if context:
            if k_pages is None or v_pages is None or block_table is None:
                raise ValueError("context_lens is not zero, so pages and block_table are needed")
            pages = block_table[n, : -(-context // PAGE)].long()
            keys = torch.cat((k_pages[pages].flatten(0, 1)[:context], keys))
            values = torch.cat((v_pages[pages].flatten(0, 1)[:context], values))
        outs.append(_one_sequence(q[start:end], keys, values, context))
    return torch.cat(outs)


def _one_sequence(q: Tensor, k: Tensor, v: Tensor, context: int) -> Tensor:
    """q (t, H, D), k and v (context + t, Hkv, D) -> (t, H, D)"""
    length = q.shape[0]
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


def write_pages(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slot_mapping: Tensor
) -> None:
    """Stores k and v (T, Hkv, D) in the pages (P, 64, Hkv, D), token t at row slot_mapping[t] of
    the flattened pages."""
    k_pages.flatten(0, 1).index_copy_(0, slot_mapping, k.detach().to(k_pages.dtype))
    v_pages.flatten(0, 1).index_copy_(0, slot_mapping, v.detach().to(v_pages.dtype))
