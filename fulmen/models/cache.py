"""Memory of a batch of sequences: pages of keys and values, lightning states, snapshots."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fulmen.kernels import CHUNK, KVPages, LightningCarry


class LightningStates:
    """State of every sequence in one lightning layer, each in a slot of its own."""

    def __init__(self, num_slots: int, num_heads: int, head_dim: int, like: Tensor) -> None:
        state = (num_slots, num_heads, head_dim, head_dim)
        rows = (num_slots, num_heads, CHUNK, head_dim)
        state_dtype = torch.promote_types(like.dtype, torch.float32)
        self.carry = LightningCarry(
            like.new_zeros(state, dtype=state_dtype), like.new_zeros(rows), like.new_zeros(rows)
        )
        """Carry of all slots; `lightning_attention` updates it in place."""

    def read(self, slot: int, tail: int = CHUNK) -> LightningCarry:
        """Return a copy (1, ...) of one slot, with the first `tail` rows of its tails: the tokens
        since the last chunk boundary, all that later ones will read."""
        kv_state, k_tail, v_tail = (stored[slot : slot + 1] for stored in self.carry)
        return LightningCarry(
            kv_state.clone(), k_tail[:, :, :tail].clone(), v_tail[:, :, :tail].clone()
        )

    def write(self, slot: int, carry: LightningCarry) -> None:
        """Put back a copy that `read` returned."""
        kv_state, k_tail, v_tail = (stored[slot : slot + 1] for stored in self.carry)
        kv_state.copy_(carry.kv_state)
        tail = carry.k_tail.shape[2]
        k_tail[:, :, :tail] = carry.k_tail
        v_tail[:, :, :tail] = carry.v_tail


@dataclass(frozen=True, slots=True)
class StateSnapshot:
    """State of one sequence in all lightning layers after some token of its own."""

    layers: tuple[LightningCarry, ...]

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        return sum(part.nbytes for carry in self.layers for part in carry)

    def tensors(self) -> dict[str, Tensor]:
        """Return its parts by name, to be stored."""
        return {
            f"{index}.{name}": part.contiguous()
            for index, carry in enumerate(self.layers)
            for name, part in carry._asdict().items()
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "StateSnapshot":
        """Return the snapshot whose `tensors` these are."""
        count = len(tensors) // len(LightningCarry._fields)
        return cls(
            tuple(
                LightningCarry(*(tensors[f"{index}.{name}"] for name in LightningCarry._fields))
                for index in range(count)
            )
        )


@dataclass(frozen=True, slots=True)
class Cache:
    """Memory of all sequences, layer by layer: pages for softmax, states for lightning layers."""

    layers: tuple[KVPages | LightningStates, ...]
    num_pages: int
    num_slots: int

    @property
    def states(self) -> list[LightningStates]:
        """States of the lightning layers, in their order."""
        return [layer for layer in self.layers if isinstance(layer, LightningStates)]

    @property
    def page_bytes(self) -> int:
        """Memory of one page in all softmax layers."""
        return sum(layer.page_bytes for layer in self.layers if isinstance(layer, KVPages))

    def snapshot(self, slot: int, tail: int) -> StateSnapshot:
        """Return a copy of a slot whose last `tail` tokens lie behind a chunk boundary."""
        return StateSnapshot(tuple(states.read(slot, tail) for states in self.states))

    def snapshot_bytes(self, tail: int) -> int:
        """Return the memory that a snapshot takes, in bytes."""
        return sum(
            (
                carry.kv_state[0].nbytes
                + (carry.k_tail[0].nbytes + carry.v_tail[0].nbytes) * tail // CHUNK
            )
            for carry in (states.carry for states in self.states)
        )

    def restore(self, slot: int, snapshot: StateSnapshot) -> None:
        """Set a slot to a snapshot of it or of another."""
        for states, carry in zip(self.states, snapshot.layers, strict=True):
            states.write(slot, carry)

    def read_pages(self, pages: Sequence[int]) -> dict[str, Tensor]:
        """Return copies of pages in all softmax layers, by name; pages are the first dimension."""
        index = torch.tensor(pages, dtype=torch.int64)
        return {name: part[index] for name, part in self._stored()}

    def write_pages(
        self, pages: Sequence[int], tensors: Mapping[str, Tensor], rows: Sequence[int]
    ) -> None:
        """Set pages to those rows of what `read_pages` returned."""
        index = torch.tensor(pages, dtype=torch.int64)
        source = torch.tensor(rows, dtype=torch.int64)
        for name, part in self._stored():
            part[index] = tensors[name][source].to(part.device)

    def _stored(self) -> Iterator[tuple[str, Tensor]]:
        for index, layer in enumerate(self.layers):
            if isinstance(layer, KVPages):
                yield from ((f"{index}.{name}", part) for name, part in layer.stored.items())

    def copy_page(self, source: int, target: int) -> None:
        """Copy page `source` to page `target` in all softmax layers."""
        for layer in self.layers:
            if isinstance(layer, KVPages):
                layer.copy_page(source, target)
