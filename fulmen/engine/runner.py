"""One forward pass: parts of requests in, candidates for their next tokens out.

`Runner.run` packs the parts, asks the head for as much as their sampling needs, and `next_tokens`
runs the model: a decode step from its recorded program, the rest directly.

A program is recorded for each shape of decode step (how many tokens of each sequence, how wide
their table of pages) when the shape comes a second time, and filled and replayed from then on: the
same kernels, the same bits, without Python between them. It ends before the head, which is one
call that also draws the ids of requests without filters, or a sort in torch where many candidates
are wanted; so a shape is the same whatever a step's sampling needs.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fulmen.engine.request import Part
from fulmen.engine.sampler import (
    Candidates,
    draws_from_all,
    num_candidates,
    uniform_number,
)
from fulmen.engine.stats import timed
from fulmen.engine.steering import Choice
from fulmen.kernels import Draws, HeadOutput, Program
from fulmen.models import Cache, Model, Packed
from fulmen.sampling import Mask

MAX_PROGRAMS: Final = 64
"""Number of shapes that keep their program; the one unused for longest goes."""
MAX_STEP_TOKENS: Final = 16
"""Most tokens of one sequence in a decode step: one, and guesses after it."""
MASKED_CANDIDATES: Final = 256
"""Candidates that a draw under a mask looks among before it asks for the whole vocabulary; the most
that the head finds without sorting it"""


SCORED_TOKENS: Final = 256
"""Tokens of prompts whose likeliest ids are held at a time"""


class _Shape(NamedTuple):
    lens: tuple[int, ...]
    """Number of tokens of each sequence"""
    table_width: int
    """Columns of its table of pages"""


class _Step:
    """A decode step whose tensors keep their addresses, and its program."""

    def __init__(self, model: Model, cache: Cache, shape: _Shape, packed: Packed) -> None:
        lens, width = shape
        count = len(lens)
        self.packed = Packed(
            input_ids=packed.input_ids.clone(),
            positions=packed.positions.clone(),
            lengths=packed.lengths.clone(),
            block_table=torch.zeros(count, width, dtype=torch.int32),
            slot_mapping=torch.zeros(sum(lens), dtype=torch.int64),
        )
        self.fill(packed)
        self.program = Program(lambda: model.hidden_states(self.packed, cache))

    def fill(self, packed: Packed) -> None:
        """Copy a batch into the fixed tensors."""
        own = self.packed
        assert own.block_table is not None
        assert packed.block_table is not None
        own.lengths.fill(packed.lengths)
        own.block_table[:, : packed.block_table.shape[1]] = packed.block_table
        for fixed, given in (
            (own.input_ids, packed.input_ids),
            (own.positions, packed.positions),
            (own.slot_mapping, packed.slot_mapping),
        ):
            assert fixed is not None
            assert given is not None
            fixed.copy_(given)


class Runner:
    """A model and its cache, and the programs recorded on them."""

    def __init__(self, model: Model, cache: Cache) -> None:
        self.model = model
        self.cache = cache
        self.seconds = 0.0
        """Time spent in `run`"""
        self._steps: OrderedDict[_Shape, _Step | None] = OrderedDict()
        """Recorded steps; None for a shape that was seen once"""
        # A plain matrix is packed anew for every call, at an address of that call.
        self._can_record = model.is_packed

    @property
    def records_steps(self) -> bool:
        """True while decode steps are recorded: not where torch works between the kernels."""
        return self._can_record

    @timed("seconds")
    def run(self, parts: Sequence[Part]) -> list[list[Candidates]]:
        """Run one forward pass, and return the candidates for the token after the last one of each
        part and after each of its guesses.

        Before them come the candidates after those of its scored tokens that are not its last; each
        has the logit of the token that follows in the prompt.
        """
        if not parts:
            return []
        counts = [part.num_tokens - 1 if part.num_scored else 0 for part in parts]
        packed = self._packed(parts, counts)
        with torch.inference_mode():
            hidden_states = self._hidden_states(packed)
            if not any(counts):
                rows = self._candidates(parts, hidden_states)
                return [list(islice(rows, part.num_places)) for part in parts]
            sizes = [count + part.num_places for count, part in zip(counts, parts, strict=True)]
            pieces = torch.split(hidden_states, sizes)
            places = [piece[count:] for count, piece in zip(counts, pieces, strict=True)]
            rows = self._candidates(parts, torch.cat(places))
            return [
                [*self._scores(part, piece[:count]), *islice(rows, part.num_places)]
                for part, count, piece in zip(parts, counts, pieces, strict=True)
            ]

    def _scores(self, part: Part, hidden_states: Tensor) -> Iterator[Candidates]:
        """Return the candidates after scored tokens.

        hidden_states  (L, C), the last norm's output at all tokens of the part but the last
        """
        ids = torch.tensor(part.scored_ids[: len(hidden_states)], device=hidden_states.device)
        top_k = part.request.params.prompt_logprobs or 0
        states = torch.split(hidden_states[: len(ids)], SCORED_TOKENS)
        for some, targets in zip(states, torch.split(ids, SCORED_TOKENS), strict=True):
            if len(some):
                yield from _rows(self.model.next_tokens_of(some, targets=targets, top_k=top_k))

    def _candidates(self, parts: Sequence[Part], hidden_states: Tensor) -> Iterator[Candidates]:
        """Return the candidates of every place of the parts, given the last norm's output there."""
        places = [_Place(part, i, part.choice(i)) for part in parts for i in range(part.num_places)]
        vocab_size = self.model.config.vocab_size
        top_k = max(place.num_wanted(vocab_size) for place in places)
        masked = [
            (row, place.choice.mask, place.num_wanted(int(place.choice.mask.allowed.sum())))
            for row, place in enumerate(places)
            if place.choice.mask is not None and not place.draws_from_all
        ]
        if masked:  # the allowed ids are mostly among the best
            top_k = max(top_k, min(MASKED_CANDIDATES, vocab_size))
        device = hidden_states.device
        targets = torch.tensor([place.target for place in places], device=device)
        free, held = list[int](), list[int]()  # rows that draw from the whole vocabulary
        for row, place in enumerate(places):
            if place.draws_from_all:
                (held if place.is_held else free).append(row)
        draws = _draws([(row, places[row]) for row in free], device) if free else None
        next_tokens = partial(
            self.model.next_tokens_of, hidden_states, targets=targets, draws=draws
        )
        found = next_tokens(top_k=top_k)
        if masked and not _holds_enough(found, masked):
            found = next_tokens(top_k=vocab_size)
        drawn = _drawn(free, found)
        held += [row for row in free if not places[row].allows(drawn[row][0])]
        all_logits = self.model.logits(hidden_states[held]).cpu() if held else ()
        return _rows(found, drawn, dict(zip(held, all_logits, strict=True)))

    def _packed(self, parts: Sequence[Part], counts: Sequence[int]) -> Packed:
        """Return the batch of a pass, and of how many tokens before its places each part wants the
        logits too."""
        allocations = [part.request.allocation for part in parts]
        owned = [allocation for allocation in allocations if allocation is not None]
        assert len(owned) == len(parts), "a part has no pages"
        return Packed.of(
            [part.ids for part in parts],
            context_lens=[allocation.num_tokens for allocation in owned],
            block_tables=[allocation.pages for allocation in owned],
            slots=[allocation.slot for allocation in owned],
            num_logits=[part.num_places + count for part, count in zip(parts, counts, strict=True)],
            device=self.model.model.embed_tokens.weight.device,
        )

    def next_tokens(self, packed: Packed, *, targets: Tensor, top_k: int) -> HeadOutput:
        """Return the head's output wherever the batch wants logits; see `CausalLM.next_tokens`. The
        batch's ids and positions are the caller's to check."""
        with torch.inference_mode():
            hidden_states = self._hidden_states(packed)
            return self.model.next_tokens_of(hidden_states, targets=targets, top_k=top_k)

    def _hidden_states(self, packed: Packed) -> Tensor:
        """Return the last norm's output (L, C) where logits are wanted."""
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
        """Return the shape that a decode step's program depends on; None for other batches, and for
        those that cannot be recorded."""
        if not self._can_record or packed.block_table is None:
            return None
        count = len(packed.input_ids)
        if packed.logits_indices is not None and len(packed.logits_indices) != count:
            return None  # a piece of a prompt
        if count > MAX_STEP_TOKENS * packed.num_sequences:
            return None
        lens = packed.lengths.host_seqlens
        if max(lens) > MAX_STEP_TOKENS:
            return None
        # Powers of two, so that a growing sequence seldom changes its shape.
        return _Shape(lens, 1 << (packed.block_table.shape[1] - 1).bit_length())

    def _remember(self, shape: _Shape, step: _Step | None) -> None:
        self._steps[shape] = step
        self._steps.move_to_end(shape)
        if len(self._steps) > MAX_PROGRAMS:
            self._steps.popitem(last=False)


class _Place(NamedTuple):
    """A token of a part, after which another may be sampled."""

    part: Part
    num_guesses: int
    """Number of the part's guesses before it"""
    choice: Choice

    def num_wanted(self, vocab_size: int) -> int:
        """Return how many of the best candidates it needs, of so many ids that may come."""
        params = self.part.request.params
        if self.part.scores_last:
            return params.prompt_logprobs or 0
        # A bias may push one of the best out of them, so the next best must be there.
        has_bias = self.choice.logit_bias is not None
        return min(num_candidates(params, vocab_size) + has_bias, vocab_size)

    @property
    def target(self) -> int:
        """Id whose logit is wanted besides the best; any if none is."""
        if self.part.scores_last:
            return self.part.scored_ids[-1]
        if self.choice.forced_id is not None:
            return self.choice.forced_id
        return self.choice.logit_bias[0] if self.choice.logit_bias is not None else 0

    @property
    def draws_from_all(self) -> bool:
        """True if its id is drawn from the whole vocabulary."""
        is_drawn = self.part.is_sampled and self.choice.forced_id is None
        return is_drawn and draws_from_all(self.part.request.params)

    @property
    def is_held(self) -> bool:
        """True if that draw has a bias, or a mask from the start: the head cannot make it."""
        mask = self.choice.mask
        has_mask = mask is not None and not mask.redraw_only
        return has_mask or self.choice.logit_bias is not None

    def allows(self, token_id: int) -> bool:
        """Return whether a drawn id may come."""
        return self.choice.mask is None or bool(self.choice.mask.allowed[token_id])


def _draws(rows: Sequence[tuple[int, _Place]], device: torch.device) -> Draws:
    temperatures, uniforms = [], []
    for _, (part, num_guesses, _) in rows:
        request = part.request
        temperatures.append(float(request.params.temperature))
        uniforms.append(uniform_number(request.seed, request.num_answer_tokens + num_guesses))
    return Draws(
        torch.tensor([row for row, _ in rows], device=device),
        torch.tensor(temperatures, dtype=torch.float64, device=device),
        torch.tensor(uniforms, dtype=torch.float64, device=device),
    )


def _drawn(rows: Sequence[int], found: HeadOutput) -> dict[int, tuple[int, float]]:
    """Return the drawn id and its logit of each row that draws."""
    if found.drawn_ids is None or found.drawn_logits is None:
        return {}
    pairs = zip(found.drawn_ids.tolist(), found.drawn_logits.tolist(), strict=True)
    return dict(zip(rows, pairs, strict=True))


def _holds_enough(found: HeadOutput, masked: Sequence[tuple[int, Mask, int]]) -> bool:
    """Return whether the candidates of each masked row hold as many allowed ids as it needs.

    masked  rows, their masks and how many allowed ids they need
    """
    return all(
        mask.allowed[found.top_ids[row].cpu().numpy()].sum() >= count for row, mask, count in masked
    )


def _rows(
    found: HeadOutput,
    drawn: Mapping[int, tuple[int, float]] | None = None,
    all_logits: Mapping[int, Tensor] | None = None,
) -> Iterator[Candidates]:
    """Return the candidates of each row, given drawn ids and all logits by row."""
    drawn, all_logits = drawn or {}, all_logits or {}
    assert found.target_logits is not None
    sums, targets = found.logsumexp.tolist(), found.target_logits.tolist()
    rows = zip(sums, found.top_logits.cpu(), found.top_ids.cpu(), targets, strict=True)
    return (
        Candidates(*row, drawn=drawn.get(place), all_logits=all_logits.get(place))
        for place, row in enumerate(rows)
    )
