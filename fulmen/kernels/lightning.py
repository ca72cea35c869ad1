"""Lightning attention: causal linear attention whose state fades by exp(-slope_rate) at each token.

The one idea is the canonical chunk. Time is cut into chunks of 64 tokens counted from position 0 of
each sequence, and a chunk is always evaluated whole: its keys and values since the last boundary
stand in a 64-row grid, whether they came in this call or before. So a token meets the same operands
in the same order in prefill, in chunked prefill and in decode, and what is carried between calls is
the state at the last boundary plus the keys and values since.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64
"""Tokens in a chunk; boundaries are multiples of it, counted from position 0 of a sequence."""


class LightningCarry(NamedTuple):
    """What N sequences carry from one call to the next."""

    kv_state: Tensor
    """(N, H, D, D) float32: sum over keys before the last chunk boundary, faded to that boundary;
    indices are head, key dimension, value dimension."""
    k_tail: Tensor
    """(N, 64, H, D): the keys since the boundary in the first rows; later rows are ignored."""
    v_tail: Tensor
    """(N, 64, H, D): the values since the boundary."""


def lightning_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope_rate: Tensor,
    *,
    cu_seqlens: Tensor,
    context_lens: Tensor | None = None,
    carry: LightningCarry | None = None,
) -> tuple[Tensor, LightningCarry]:
    """o_t = q_t S_t with S_t = exp(-slope_rate) S_{t-1} + k_t v_t^T (arXiv:2501.08313).

    q, k, v        (T, H, D)    packed tokens, any float dtype
    slope_rate     (H,)         float32, positive
    cu_seqlens     (N + 1,)     int32: sequence n owns tokens cu_seqlens[n] to cu_seqlens[n + 1]
    context_lens   (N,)         int32: tokens of each sequence before this call; none if omitted
    carry          what the call before returned; needed where context_lens is not 0

    Returns the output (T, H, D) in q's dtype and the new carry. Sums are in float32 (float64 for
    float64 inputs).
    """
    lens = cu_seqlens.diff().tolist()
    past = [0] * len(lens) if context_lens is None else context_lens.tolist()
    if carry is None and any(past):
        raise ValueError("context_lens is not zero, so carry is needed")
    dtype = torch.promote_types(q.dtype, torch.float32)
    grid = _Grid(lens, past, q.device)
    q_grid, k_grid, v_grid = (grid.place(x) for x in (q, k, v))  # (chunks, 64, H, D)
    if carry is not None:
        k_grid = grid.place_tails(k_grid, carry.k_tail)
        v_grid = grid.place_tails(v_grid, carry.v_tail)
    q_heads, k_heads, v_heads = (
        x.to(dtype).transpose(1, 2) for x in (q_grid, k_grid, v_grid)
    )  # (chunks, H, 64, D)

    slopes = slope_rate.to(dtype)[:, None, None]  # (H, 1, 1)
    i = torch.arange(1, CHUNK + 1, device=q.device, dtype=dtype)
    # Every exponent is at most 0. Factoring exp(+slope j) out of the mask would overflow for fast
    # heads.
    causal = (i[:, None] - i[None, :]).clamp(min=0)
    mask = torch.exp(-slopes * causal).tril()  # (H, 64, 64)
    from_start = torch.exp(-slopes * i[:, None])  # (H, 64, 1)
    to_end = torch.exp(-slopes * (CHUNK - i)[:, None])  # (H, 64, 1)
    chunk_decay = torch.exp(-slopes * CHUNK)  # (H, 1, 1)

    intra = ((q_heads @ k_heads.transpose(-1, -2)) * mask) @ v_heads
    added = (k_heads * to_end).transpose(
        -1, -2
    ) @ v_heads  # (chunks, H, D, D), right for full chunks
    before, kv_state = grid.scan(added, chunk_decay, None if carry is None else carry.kv_state)
    inter = (q_heads * from_start) @ before
    out = grid.take((intra + inter).transpose(1, 2)).to(q.dtype)
    return out, LightningCarry(kv_state, grid.tails(k_grid), grid.tails(v_grid))


def kv_state_at(carry: LightningCarry, slope_rate: Tensor, context_lens: Tensor) -> Tensor:
    """The recurrent state (N, H, D, D) float32 after all context_lens (N,) tokens of each sequence.

    Between chunk boundaries no kernel needs it; it is what the recurrence of the paper calls S_t.
    """
    dtype = carry.kv_state.dtype
    tails = (context_lens % CHUNK).tolist()
    states = []
    for n, length in enumerate(tails):
        k, v = (tail[n, :length].to(dtype) for tail in (carry.k_tail, carry.v_tail))  # (t, H, D)
        age = torch.arange(length - 1, -1, -1, device=k.device)  # (t,)
        fade = torch.exp(-slope_rate[None, :] * age[:, None])  # (t, H)
        decay = torch.exp(-slope_rate * length)[:, None, None]
        added = torch.einsum("thd,the->hde", k * fade[..., None], v)
        states.append(decay * carry.kv_state[n] + added)
    return torch.stack(states)


class _Grid:
    """Where each packed token stands in the 64-row chunks of its sequence."""

    def __init__(self, lens: list[int], past: list[int], device: torch.device) -> None:
        self.num_tokens = sum(lens)
        self.tail_lens = [p % CHUNK for p in past]
        self.first_chunks: list[int] = []  # each sequence's first chunk in the grid
        self.full_chunks: list[int] = []  # how many of its chunks end at a boundary
        self.num_chunks = 0
        self.new_tail_lens: list[int] = []
        rows: list[Tensor] = []
        for tail, length in zip(self.tail_lens, lens, strict=True):
            self.first_chunks.append(self.num_chunks)
            self.full_chunks.append((tail + length) // CHUNK)
            self.new_tail_lens.append((tail + length) % CHUNK)
            rows.append(torch.arange(length) + (self.num_chunks * CHUNK + tail))
            # A sequence that ends on a boundary keeps no open chunk, an empty one keeps its tail.
            self.num_chunks += max(1, -(-(tail + length) // CHUNK))
        self.rows = torch.cat(rows).to(device)  # (T,) row of each token in the flattened grid

    def place(self, x: Tensor) -> Tensor:
        """(T, H, D) -> (chunks, 64, H, D), zero where no token stands."""
        flat = x.new_zeros(self.num_chunks * CHUNK, *x.shape[1:])
        return flat.index_copy(0, self.rows, x).view(-1, CHUNK, *x.shape[1:])

    def take(self, grid: Tensor) -> Tensor:
        """(chunks, 64, H, D) -> (T, H, D)"""
        return grid.flatten(0, 1)[self.rows]

    def place_tails(self, grid: Tensor, tails: Tensor) -> Tensor:
        """Puts the carried rows (N, 64, H, D) before the new ones of each first chunk."""
        rows, values = [], []
        for n, (chunk, length) in enumerate(zip(self.first_chunks, self.tail_lens, strict=True)):
            rows.append(torch.arange(length, device=grid.device) + chunk * CHUNK)
            values.append(tails[n, :length])
        flat = grid.flatten(0, 1).index_copy(0, torch.cat(rows), torch.cat(values).to(grid.dtype))
        return flat.view_as(grid)

    def tails(self, grid: Tensor) -> Tensor:
        """The open chunk of each sequence, (N, 64, H, D); zeros where it ended on a boundary."""
        tails = []
        for first, full, length in zip(
            self.first_chunks, self.full_chunks, self.new_tail_lens, strict=True
        ):
            tails.append(grid[first + full] if length else torch.zeros_like(grid[first]))
        return torch.stack(tails)

    def scan(
        self, added: Tensor, chunk_decay: Tensor, kv_state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The state before every chunk (chunks, H, D, D) and after each sequence's last full one
        (N, H, D, D)."""
        before: list[Tensor] = []
        last: list[Tensor] = []
        ends = [*self.first_chunks[1:], self.num_chunks]
        for n, (first, end) in enumerate(zip(self.first_chunks, ends, strict=True)):
            has_past = kv_state is not None
            state = kv_state[n] if has_past and kv_state is not None else torch.zeros_like(added[0])
            for chunk in range(first, end):
                before.append(state)
                if chunk - first < self.full_chunks[n]:
                    state = chunk_decay * state + added[chunk]
            last.append(state)
        return torch.stack(before), torch.stack(last)
