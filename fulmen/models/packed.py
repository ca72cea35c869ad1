"""Packed: many sequences as one flat batch, without padding.

The one batch format, for engine and trainer. A training batch has no cache; an engine's batch says
for each sequence how many tokens came before, which pages hold its keys and values and which slot
holds its lightning state. Lengths are checked here once, and known on the host from then on, so no
layer waits for a device to learn them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from fulmen.kernels import PAGE, Lengths


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A batch: T tokens of N sequences, one sequence after the other."""

    input_ids: Tensor
    """(T,) int64"""
    positions: Tensor
    """(T,) int64: each token's index in its own sequence"""
    lengths: Lengths
    """New tokens of each sequence, tokens in the cache already, rows in the lightning states"""
    block_table: Tensor | None = None
    """(N, B) int32: the pages of each sequence, in order; None without a cache"""
    slot_mapping: Tensor | None = None
    """(T,) int64: the row of each token in the flattened pages of a layer; None without a cache"""
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
        num_logits: Sequence[int] | None = None,
        wanted: Sequence[Sequence[int]] | None = None,
        device: torch.device | str = "cpu",
    ) -> "Packed":
        """Pack the new tokens of each sequence; context_lens says how many came before.

        For a cache, block_tables holds pages for all tokens of each sequence, past and new, and
        slots its row in the lightning states. Logits are wanted of all tokens, or of the last of
        each sequence, or of its last num_logits, or of those whose indices among its new tokens
        stand in wanted.
        """
        if not sequences or any(len(sequence) == 0 for sequence in sequences):
            raise ValueError("a sequence has no tokens, each needs at least one")
        # Lists, not tensors: for a decoded token each operation of torch costs as much as a small
        # kernel.
        lens = [len(ids) for ids in sequences]
        past = list(context_lens) if context_lens is not None else [0] * len(lens)
        _check_batch(lens, past, block_tables, slots)
        spans = [range(context, context + count) for context, count in zip(past, lens, strict=True)]
        table = slot_mapping = None
        if block_tables is not None:
            width = max(len(pages) for pages in block_tables)
            # A short row repeats its last page: no row may name a page of another sequence.
            rows = [[*pages, *[pages[-1]] * (width - len(pages))] for pages in block_tables]
            table = torch.tensor(rows, dtype=torch.int32, device=device)
            mapping = [
                pages[position // PAGE] * PAGE + position % PAGE
                for pages, span in zip(block_tables, spans, strict=True)
                for position in span
            ]
            slot_mapping = torch.tensor(mapping, device=device)
        if only_last_logits:
            num_logits = [1] * len(lens)
        if num_logits is not None:
            wanted = [
                range(length - count, length)
                for length, count in zip(lens, num_logits, strict=True)
            ]
        elif wanted is not None:
            _check_wanted(wanted, lens)
        return cls(
            input_ids=_flat_ids(sequences, device),
            positions=torch.tensor(list(chain(*spans)), dtype=torch.int64, device=device),
            lengths=Lengths.of(lens, past, slots, device=device),
            block_table=table,
            slot_mapping=slot_mapping,
            logits_indices=None
            if wanted is None
            else torch.tensor(
                [
                    end - length + index
                    for end, length, indices in zip(accumulate(lens), lens, wanted, strict=True)
                    for index in indices
                ],
                dtype=torch.int64,
                device=device,
            ),
        )

    @property
    def num_sequences(self) -> int:
        """N, the number of sequences."""
        return self.lengths.num_sequences

    @property
    def cu_seqlens(self) -> Tensor:
        """(N + 1,) int32: sequence n owns tokens cu_seqlens[n] to cu_seqlens[n + 1]"""
        return self.lengths.cu_seqlens


def _flat_ids(sequences: Sequence[Sequence[int] | Tensor], device: torch.device | str) -> Tensor:
    if any(isinstance(ids, Tensor) for ids in sequences):
        parts = [torch.as_tensor(ids, dtype=torch.int64, device=device) for ids in sequences]
        return torch.cat(parts)
    flat = list(chain.from_iterable(sequences))
    return torch.tensor(flat, dtype=torch.int64, device=device)


def _check_wanted(wanted: Sequence[Sequence[int]], lens: Sequence[int]) -> None:
    """Raise unless every sequence has its list of indices, and a token at each of them."""
    if len(wanted) != len(lens):
        raise ValueError(
            f"wanted has {len(wanted)} entries for {len(lens)} sequences, each needs one"
        )
    for sequence, (indices, length) in enumerate(zip(wanted, lens, strict=True)):
        if len(indices) and not 0 <= min(indices) <= max(indices) < length:
            raise ValueError(
                f"wanted of sequence {sequence} goes from {min(indices)} to {max(indices)}, it has "
                f"the tokens 0 to {length - 1}"
            )


def _check_batch(
    lens: Sequence[int],
    context_lens: Sequence[int],
    block_tables: Sequence[Sequence[int]] | None,
    slots: Sequence[int] | None,
) -> None:
    """Raise unless every sequence has its past, and pages and a slot of its own if any has."""
    if (block_tables is None) != (slots is None):
        given, absent = ("block_tables", "slots") if slots is None else ("slots", "block_tables")
        raise ValueError(f"{given} are given without {absent}, a cache needs both")
    for name, values in (
        ("context_lens", context_lens),
        ("block_tables", block_tables),
        ("slots", slots),
    ):
        if values is not None and len(values) != len(lens):
            raise ValueError(
                f"{name} has {len(values)} entries for {len(lens)} sequences, each needs one"
            )
    for sequence, context in enumerate(context_lens):
        if context < 0:
            raise ValueError(
                f"context_lens of sequence {sequence} is {context}, it must not be negative"
            )
    if block_tables is None or slots is None:
        return
    for sequence, pages in enumerate(block_tables):
        num_tokens = context_lens[sequence] + lens[sequence]
        if len(pages) * PAGE < num_tokens:
            raise ValueError(
                f"sequence {sequence} has {num_tokens} tokens, past and new, and {len(pages)} "
                f"pages, it needs {-(-num_tokens // PAGE)}"
            )
        if min(pages) < 0 or slots[sequence] < 0:
            raise ValueError(
                f"sequence {sequence} has pages {list(pages)} and slot {slots[sequence]}, none "
                "may be negative"
            )
