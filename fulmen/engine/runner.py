"""One forward pass over a Packed batch: a decode step from its recorded program, the rest directly.

A program is recorded for each shape of decode step (how many tokens of each sequence, how wide
their table of pages) when the shape comes a second time, and filled and replayed from then on: the
same kernels, the same bits, without Python between them. It ends before the head, which is one
call, or a sort in torch where many candidates are wanted; so a shape is the same whatever a step's
sampling needs.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fulmen.kernels import HeadOutput, Program
from fulmen.models import Cache, Model, Packed

MAX_PROGRAMS: Final = 64
"""Shapes that keep their program; the one unused for longest goes."""


MAX_STEP_TOKENS: Final = 16
"""Tokens of one sequence that are still a decode step: one, and guesses after it."""


class _Shape(NamedTuple):
    lens: tuple[int, ...]
    """Tokens of each sequence"""
    table_width: int


class _Step:
    """A decode step at fixed tensors, and its program."""

    def __init__(self, model: Model, cache: Cache, shape: _Shape, packed: Packed) -> None:
        lens, width = shape
        count = len(lens)
        self.packed = Packed(
            input_ids=packed.input_ids.clone(),
            positions=packed.positions.clone(),
            cu_seqlens=packed.cu_seqlens.clone(),
            context_lens=packed.context_lens.clone(),
            block_table=torch.zeros(count, width, dtype=torch.int32),
            slots=torch.arange(count),
            slot_mapping=torch.zeros(sum(lens), dtype=torch.int64),
        )
        self.fill(packed)
        self.program = Program(lambda: model.hidden_states(self.packed, cache))

    def fill(self, packed: Packed) -> None:
        """Makes the fixed tensors those of a batch."""
        own = self.packed
        assert own.block_table is not None
        assert packed.block_table is not None
        own.block_table[:, : packed.block_table.shape[1]] = packed.block_table
        for fixed, given in (
            (own.input_ids, packed.input_ids),
            (own.positions, packed.positions),
            (own.context_lens, packed.context_lens),
            (own.slots, packed.slots),
            (own.slot_mapping, packed.slot_mapping),
        ):
            assert fixed is not None
            assert given is not None
            fixed.copy_(given)


class Runner:
    """Runs batches on one model and one cache."""

    def __init__(self, model: Model, cache: Cache) -> None:
        self.model = model
        self.cache = cache
        self._steps: OrderedDict[_Shape, _Step | None] = OrderedDict()
        """None for a shape that was seen once."""
        # A plain matrix is packed anew for every call, at an address of that call.
        self._can_record = model.is_packed

    def next_tokens(
        self,
        packed: Packed,
        *,
        targets: Tensor,
        top_k: int,
        is_enough: Callable[[HeadOutput], bool] | None = None,
    ) -> HeadOutput:
        """What is known of the next token after each sequence's last one; see
        `CausalLM.next_tokens`. The batch's ids and positions are the caller's to check.

        is_enough  may look at the top_k best and ask for all of the vocabulary instead
        """
        with torch.inference_mode():
            hidden_states = self._hidden_states(packed)
            found = self.model.next_tokens_of(hidden_states, targets=targets, top_k=top_k)
            if is_enough is None or is_enough(found):
                return found
            every = self.model.config.vocab_size
            return self.model.next_tokens_of(hidden_states, targets=targets, top_k=every)

    def _hidden_states(self, packed: Packed) -> Tensor:
        """The last norm's output (L, C) where logits are wanted."""
        shape = self._shape(packed)
        if shape is None or shape not in self._steps:
            if shape is not None:
                self._remember(shape, None)
            hidden_states = self.model.hidden_states(packed, self.cache)
            if packed.logits_indices is not None:
                hidden_states = hidden_states[packed.logits_indices]
            return hidden_states
        step = self._steps[shape]
        if step is None:  # recording runs the step
            step = _Step(self.model, self.cache, shape, packed)
        else:
            step.fill(packed)
            step.program.replay()
        if step.program.missing is None:
            self._remember(shape, step)
        else:
            self._can_record = False  # the model works in torch between its kernels
            self._steps.clear()
        return step.program.outputs  # all of whose logits are wanted

    def _shape(self, packed: Packed) -> _Shape | None:
        """What a decode step's program depends on; None for other batches, and for those that
        cannot be recorded."""
        if not self._can_record or packed.block_table is None:
            return None
        count = len(packed.input_ids)
        if packed.logits_indices is not None and len(packed.logits_indices) != count:
            return None  # a piece of a prompt
        if count > MAX_STEP_TOKENS * packed.num_sequences:
            return None
        lens = tuple(packed.cu_seqlens.diff().tolist())
        if max(lens) > MAX_STEP_TOKENS:
            return None
        # Powers of two, so that a growing sequence seldom changes its shape.
        return _Shape(lens, 1 << (packed.block_table.shape[1] - 1).bit_length())

    def _remember(self, shape: _Shape, step: _Step | None) -> None:
        self._steps[shape] = step
        self._steps.move_to_end(shape)
        if len(self._steps) > MAX_PROGRAMS:
            self._steps.popitem(last=False)
