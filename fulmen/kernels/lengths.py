"""Lengths: how many tokens each packed sequence brings, on the device and on the host.

A batch is checked once, where it is made, and not in every layer. Kernels read the tensors; the
host values choose shapes and are compared with other host values, so no layer waits for a GPU.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lengths:
    """New and past tokens of N packed sequences; made by `of` or `from_tensors`.

    A recorded program reads the tensors again at every replay. Their values may change between
    replays, but not cu_seqlens; the host values stay those of the batch that was recorded.
    """

    cu_seqlens: Tensor
    """(N + 1,) int32: sequence n owns tokens cu_seqlens[n] to cu_seqlens[n + 1]"""
    context_lens: Tensor
    """(N,) int32: tokens of each sequence before the new ones"""
    slots: Tensor | None
    """(N,) int64: the row of each sequence in the lightning states; None without states"""
    host_seqlens: tuple[int, ...]
    """Number of new tokens of each sequence."""
    host_context_lens: tuple[int, ...]
    """`context_lens` as integers."""
    host_slots: tuple[int, ...] | None
    """`slots` as integers."""

    def __post_init__(self) -> None:
        seqlens, context_lens = self.host_seqlens, self.host_context_lens
        if not seqlens or min(seqlens) < 0:
            raise ValueError(
                f"sequences bring {list(seqlens)} new tokens, at least one sequence is needed and "
                "none may be negative"
            )
        if len(context_lens) != len(seqlens):
            raise ValueError(
                f"context_lens is {list(context_lens)}, each of {len(seqlens)} sequences needs one"
            )
        for sequence, context in enumerate(context_lens):
            if context < 0:
                raise ValueError(
                    f"sequence {sequence} has {seqlens[sequence]} tokens after {context}, neither "
                    "may be negative"
                )
        rows = self.host_slots
        if rows is None:
            return
        if len(rows) != len(seqlens) or len(set(rows)) != len(rows) or min(rows) < 0:
            raise ValueError(
                f"slots is {list(rows)}, each of {len(seqlens)} sequences needs one of its own, 0 "
                "or more"
            )

    @classmethod
    def of(
        cls,
        seqlens: Sequence[int],
        context_lens: Sequence[int] | None = None,
        slots: Sequence[int] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> "Lengths":
        """Describe a batch whose lengths are known on the host; without context if omitted."""
        past = [0] * len(seqlens) if context_lens is None else context_lens
        starts = list(itertools.accumulate(seqlens, initial=0))
        return cls(
            cu_seqlens=torch.tensor(starts, dtype=torch.int32, device=device),
            context_lens=torch.tensor(past, dtype=torch.int32, device=device),
            slots=None if slots is None else torch.tensor(slots, dtype=torch.int64, device=device),
            host_seqlens=tuple(seqlens),
            host_context_lens=tuple(past),
            host_slots=None if slots is None else tuple(slots),
        )

    @classmethod
    def from_tensors(
        cls,
        cu_seqlens: Tensor,
        context_lens: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> "Lengths":
        """Describe a batch by its tensors, read once; they are kept where their dtype fits.

        cu_seqlens    (N + 1,)   integers that rise from 0
        context_lens  (N,)       integers; zeros if omitted
        slots         (N,)       integers, each once
        """
        given = [x for x in (cu_seqlens, context_lens, slots) if x is not None]
        if len({x.device for x in given}) > 1:
            raise ValueError("cu_seqlens, context_lens and slots are on different devices")
        starts: list[int] = cu_seqlens.tolist()
        seqlens = [end - start for start, end in itertools.pairwise(starts)]
        if not seqlens or starts[0] != 0 or min(seqlens) < 0:
            raise ValueError(f"cu_seqlens is {starts}, it must rise from 0, one entry a sequence")
        if context_lens is None:
            context_lens = torch.zeros(len(seqlens), dtype=torch.int32, device=cu_seqlens.device)
        return cls(
            cu_seqlens=cu_seqlens.to(torch.int32).contiguous(),
            context_lens=context_lens.to(torch.int32).contiguous(),
            slots=None if slots is None else slots.to(torch.int64).contiguous(),
            host_seqlens=tuple(seqlens),
            host_context_lens=tuple(context_lens.tolist()),
            host_slots=None if slots is None else tuple(slots.tolist()),
        )

    @property
    def num_sequences(self) -> int:
        """N, the number of sequences."""
        return len(self.host_seqlens)

    @property
    def num_tokens(self) -> int:
        """T, the new tokens of all sequences."""
        return sum(self.host_seqlens)

    def clone(self) -> "Lengths":
        """Return a copy with tensors of its own, for a program to be recorded on."""
        return Lengths(
            cu_seqlens=self.cu_seqlens.clone(),
            context_lens=self.context_lens.clone(),
            slots=None if self.slots is None else self.slots.clone(),
            host_seqlens=self.host_seqlens,
            host_context_lens=self.host_context_lens,
            host_slots=self.host_slots,
        )

    def fill(self, other: "Lengths") -> None:
        """Copy another batch's context_lens and slots into these tensors, before a replay.

        The host values stay those of the batch that was recorded.
        """
        assert other.host_seqlens == self.host_seqlens
        self.context_lens.copy_(other.context_lens)
        if self.slots is not None:
            assert other.slots is not None
            self.slots.copy_(other.slots)

    def check_fits(self, x: Tensor) -> None:
        """Raise ValueError unless the sequences own all tokens of x (T, ...), on its device."""
        if self.num_tokens != len(x):
            starts = list(itertools.accumulate(self.host_seqlens, initial=0))
            raise ValueError(f"cu_seqlens is {starts}, it must rise from 0 to the {len(x)} tokens")
        if self.cu_seqlens.device != x.device:
            raise ValueError(
                f"cu_seqlens is on {self.cu_seqlens.device}, tokens are on {x.device}, they need "
                "one device"
            )


def lengths_of(
    lengths: Lengths | None,
    cu_seqlens: Tensor | None,
    context_lens: Tensor | None = None,
    slots: Tensor | None = None,
) -> Lengths:
    """Return the lengths a caller gave, described already or as tensors, never both."""
    if lengths is None:
        if cu_seqlens is None:
            raise ValueError("neither lengths nor cu_seqlens is given, one is needed")
        return Lengths.from_tensors(cu_seqlens, context_lens, slots)
    if any(x is not None for x in (cu_seqlens, context_lens, slots)):
        raise ValueError(
            "lengths and tensors of lengths are given, only one is needed: Lengths holds "
            "cu_seqlens, context_lens and slots"
        )
    return lengths
