"""Packed: many sequences as one flat batch, no padding; Cache: where each sequence's past lives.

The one batch format, for engine and trainer. A training batch has no cache; an engine's batch says
for each sequence how many tokens came before, which pages hold its keys and values and which slot
holds its lightning state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fulmen.kernels import CHUNK, PAGE, LightningCarry


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """T tokens of N sequences, one sequence after the other."""

    input_ids: Tensor
    """(T,) int64"""
    positions: Tensor
    """(T,) int64: each token's index in its own sequence"""
    cu_seqlens: Tensor
    """(N + 1,) int32: sequence n owns tokens cu_seqlens[n] to cu_seqlens[n + 1]"""
    context_lens: Tensor
    """(N,) int32: tokens of each sequence that are in the cache already"""
    block_table: Tensor | None = None
    """(N, B) int32: the pages of each sequence, in order; None without a cache"""
    slots: Tensor | None = None
    """(N,) int64: the row of each sequence in the lightning states; None without a cache"""
    logits_indices: Tensor | None = None
    """(L,) int64: the tokens whose logits are wanted; None means all"""

    @classmethod
    def of(
        cls,
        sequences: Sequence[Sequence[int] | Tensor],
        *,
        context_lens: Sequence[int] | None = None,
        block_tables: Sequence[Sequence[int]] | None = None,
        slots: Sequence[int] | None = None,
        only_last_logits: bool = False,
        device: torch.device | str = "cpu",
    ) -> "Packed":
        """Packs the new tokens of each sequence; context_lens says how many came before."""
        if not sequences or any(len(sequence) == 0 for sequence in sequences):
            raise ValueError("a sequence has no tokens, each needs at least one")
        tensors = [torch.as_tensor(ids, dtype=torch.int64, device=device) for ids in sequences]
        past = list(context_lens) if context_lens is not None else [0] * len(tensors)
        lens = torch.tensor([len(ids) for ids in tensors])
        cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), lens.cumsum(0)))
        table = None
        if block_tables is not None:
            width = max(len(pages) for pages in block_tables)
            rows = [list(pages) + [0] * (width - len(pages)) for pages in block_tables]
            table = torch.tensor(rows, dtype=torch.int32, device=device)
        return cls(
            input_ids=torch.cat(tensors),
            positions=torch.cat(
                [
                    torch.arange(context, context + len(ids), device=device)
                    for context, ids in zip(past, tensors, strict=True)
                ]
            ),
            cu_seqlens=cu_seqlens.to(device, torch.int32),
            context_lens=torch.tensor(past, dtype=torch.int32, device=device),
            block_table=table,
            slots=None if slots is None else torch.tensor(slots, device=device),
            logits_indices=(cu_seqlens[1:] - 1).to(device) if only_last_logits else None,
        )

    @property
    def num_sequences(self) -> int:
        """N"""
        return len(self.context_lens)

    def slot_mapping(self) -> Tensor:
        """(T,) int64: the row of each token in the flattened pages of a layer."""
        if self.block_table is None:
            raise ValueError("this batch has no block_table, a cache needs one")
        sequence = torch.repeat_interleave(
            torch.arange(self.num_sequences, device=self.positions.device),
            self.cu_seqlens.diff().long(),
        )
        page = self.block_table[sequence, self.positions // PAGE].long()
        return page * PAGE + self.positions % PAGE


class PagedKV:
    """The key-value pages of one softmax layer."""

    def __init__(self, num_pages: int, num_heads: int, head_dim: int, like: Tensor) -> None:
        shape = (num_pages, PAGE, num_heads, head_dim)
        self.k_pages = like.new_empty(shape)
        """(P, 64, Hkv, D), keys after rotation"""
        self.v_pages = like.new_empty(shape)
        """(P, 64, Hkv, D)"""


class LightningStates:
    """What every sequence of the cache carries through one lightning layer."""

    def __init__(self, num_slots: int, num_heads: int, head_dim: int, like: Tensor) -> None:
        state = (num_slots, num_heads, head_dim, head_dim)
        rows = (num_slots, CHUNK, num_heads, head_dim)
        state_dtype = torch.promote_types(like.dtype, torch.float32)
        self._carry = LightningCarry(
            like.new_zeros(state, dtype=state_dtype), like.new_zeros(rows), like.new_zeros(rows)
        )

    def read(self, slots: Tensor, context_lens: Tensor) -> LightningCarry:
        """The carry of the sequences in `slots` (N,); one without context starts from zero."""
        kv_state, k_tail, v_tail = (x[slots] for x in self._carry)
        kv_state[context_lens == 0] = 0
        return LightningCarry(kv_state, k_tail, v_tail)

    def write(self, slots: Tensor, carry: LightningCarry) -> None:
        """Stores what the sequences in `slots` (N,) carry on."""
        for stored, new in zip(self._carry, carry, strict=True):
            stored[slots] = new.detach().to(stored.dtype)


@dataclass(frozen=True, slots=True)
class Cache:
    """The past of every sequence, layer by layer: pages for softmax, states for lightning
    attention."""

    layers: tuple[PagedKV | LightningStates, ...]
    num_pages: int
    num_slots: int
