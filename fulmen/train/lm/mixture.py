"""Data of a run: many tasks, each in its own order, mixed so that their shares of tokens hold.

    sources -> a stream of examples a task -> the mixture picks the task that is furthest behind
    -> whole sequences up to a step's tokens -> micro-batches, packed, none crossing another

Nothing here is random: an order is a permutation that seed, task and epoch give, and the next task
follows from the tokens drawn so far. So a few numbers, the cursors, are all that a run needs to go
on with exactly the sequences it would have read.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from fulmen.models import Packed
from fulmen.train.lm.documents import Document, is_held_out
from fulmen.train.lm.examples import Coder, Example
from fulmen.train.lm.ngrams import NGrams
from fulmen.train.lm.sources import Source

_MAX_SKIPPED: Final = 10_000
"""Documents in a row of an endless source that may be of no use"""
_MAX_LOOKED_AT: Final = 50_000
"""Documents of a source among which held-out ones are looked for"""


class Drawn(NamedTuple):
    """One sequence of a step, and the task it is of."""

    task: str
    example: Example


class TaskStream:
    """Examples of one task, one after the other, epoch after epoch."""

    def __init__(
        self,
        name: str,
        source: Source,
        coder: Coder,
        *,
        seed: int = 0,
        held_out: float = 0.0,
        ngrams: NGrams | None = None,
    ) -> None:
        self.name = name
        self._source, self._coder = source, coder
        self._seed, self._held_out, self._ngrams = seed, held_out, ngrams
        self._index = self._part = self._offset = 0
        """Place of the next example: documents drawn so far, example of the document, and tokens of
        that example that are used up"""
        self.num_too_long = self.num_contaminated = 0
        """Documents left out because of their length, or because of an evaluation set"""
        self._order: tuple[int, Sequence[int]] = (-1, ())
        self._examples: tuple[int, list[Example]] = (-1, [])

    def peek(self, length: int) -> Example:
        """Return the next example of at most `length` tokens to read, and stay before it.

        Raises ValueError if no document of the task has one.
        """
        skipped = 0
        # The rest of this epoch and the start of the next may both be of no use.
        most = 2 * (self._source.num_documents or _MAX_SKIPPED)
        while skipped <= most:
            examples = self._current()
            if self._part < len(examples):
                example = examples[self._part]
                if self._offset < example.num_read:
                    if example.can_be_cut:
                        stop = min(self._offset + length + 1, len(example.ids))
                        ids = example.ids[self._offset : stop]
                        return Example(ids, range(1, len(ids)), can_be_cut=True)
                    if example.num_read <= length:
                        return example
                    self.num_too_long += 1
                self._part, self._offset = self._part + 1, 0
            else:
                self._index, self._part, self._offset = self._index + 1, 0, 0
                skipped += 1
        raise ValueError(
            f"task {self.name} has no document of at most {length} tokens that is neither held out "
            f"nor part of an evaluation set ({skipped:,} were looked at)"
        )

    def take(self, example: Example) -> None:
        """Step over the example that `peek` returned."""
        self._offset += example.num_read

    def held_out_documents(self, count: int) -> list[Document]:
        """Return up to `count` different documents that training never sees, from the start of the
        source."""
        found: dict[str, Document] = {}
        num_documents = self._source.num_documents
        most = _MAX_LOOKED_AT if num_documents is None else min(num_documents, _MAX_LOOKED_AT)
        for index in range(most if self._held_out else 0):
            if len(found) >= count:
                break
            document = self._source.document(index)
            if is_held_out(document.key, self._held_out):
                found.setdefault(document.key, document)
        return list(found.values())

    def state(self) -> dict[str, Any]:
        """Return the cursor and the counts, with the fingerprint of the data they are of."""
        return {
            "fingerprint": self._source.fingerprint,
            "index": self._index,
            "part": self._part,
            "offset": self._offset,
            "num_too_long": self.num_too_long,
            "num_contaminated": self.num_contaminated,
        }

    def load_state(self, state: Mapping[str, Any]) -> bool:
        """Take what `state` gave; return False, and stay as it is, where that is of other data."""
        if state["fingerprint"] != self._source.fingerprint:
            return False
        self._index, self._part, self._offset = state["index"], state["part"], state["offset"]
        self.num_too_long = state["num_too_long"]
        self.num_contaminated = state["num_contaminated"]
        self._examples = (-1, [])
        return True

    def _current(self) -> list[Example]:
        """Return the examples of the current document; none if it may not be trained on."""
        if self._examples[0] != self._index:
            document = self._source.document(self._place(self._index))
            examples: list[Example] = []
            if not is_held_out(document.key, self._held_out):
                if self._ngrams is not None and self._ngrams.has(document):
                    self.num_contaminated += 1
                else:
                    examples = document.encode(self._coder)
            self._examples = (self._index, examples)
        return self._examples[1]

    def _place(self, index: int) -> int:
        """Return the document that is drawn at an index: each once an epoch, in its own order."""
        count = self._source.num_documents
        if count is None:
            return index
        epoch, place = divmod(index, count)
        if self._order[0] != epoch:
            order = list(range(count))
            random.Random(f"{self.name} {self._seed} {epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][place]


class Mixture:
    """Sequences of many tasks whose shares of the tokens are given."""

    def __init__(self, streams: Mapping[str, TaskStream]) -> None:
        self.streams = dict(streams)
        self.drawn = dict.fromkeys(self.streams, 0)
        """Tokens read of each task since `restart`"""
        self._shares: dict[str, float] = {}
        """Shares by which they were drawn"""

    @property
    def num_too_long(self) -> int:
        """Documents left out so far because of their length."""
        return sum(stream.num_too_long for stream in self.streams.values())

    @property
    def num_contaminated(self) -> int:
        """Documents left out so far because an evaluation set has them."""
        return sum(stream.num_contaminated for stream in self.streams.values())

    def restart(self) -> None:
        """Count shares anew, as at the start of a stage; the tasks go on where they are."""
        self.drawn = dict.fromkeys(self.streams, 0)

    def draw(self, num_tokens: int, length: int, shares: Mapping[str, float]) -> list[Drawn]:
        """Return whole sequences of at most `length` tokens each and num_tokens together.

        Other shares than those of the last call are counted anew: what was drawn before them is
        not made up for.
        """
        if shares != self._shares:
            self.restart()
            self._shares = dict(shares)
        sequences: list[Drawn] = []
        room = num_tokens
        while True:
            total = sum(self.drawn.values())
            name = max(shares, key=lambda each: shares[each] * total - self.drawn[each])
            if total == 0:
                name = max(shares, key=lambda each: shares[each])
            example = self.streams[name].peek(length)
            if example.num_read > room:
                return sequences
            self.streams[name].take(example)
            self.drawn[name] += example.num_read
            room -= example.num_read
            sequences.append(Drawn(name, example))

    def state(self) -> dict[str, Any]:
        """Return all cursors and counts as JSON values."""
        streams = {name: stream.state() for name, stream in self.streams.items()}
        return {"streams": streams, "drawn": dict(self.drawn), "shares": dict(self._shares)}

    def load_state(self, state: Mapping[str, Any]) -> list[str]:
        """Take what `state` gave; return the tasks whose data are others by now. They begin at
        their start, as a new task does."""
        self.restart()
        self._shares = dict(state["shares"])
        changed: list[str] = []
        for name, cursor in state["streams"].items():
            if name in self.streams:
                if not self.streams[name].load_state(cursor):
                    changed.append(name)
                self.drawn[name] = state["drawn"][name]
        return changed


def shares_of(weights: Mapping[str, float], names: Sequence[str], floor: float) -> dict[str, float]:
    """Return the share of tokens of each task: by weight, and never below the floor.

    A later stage that leaves a task out makes a model forget it in minutes, so a task without a
    weight still has the floor. Without any weight all shares are equal.
    """
    for name, weight in weights.items():
        if name not in names:
            raise ValueError(f"{name} is no task, there are {', '.join(names)}")
        if not weight >= 0:
            raise ValueError(f"{name} is {weight}, a weight must be 0 or more")
    if not 0 <= floor * len(names) <= 1:
        raise ValueError(
            f"floor is {floor}, {len(names)} tasks can have at most {1 / len(names):.3g} each"
        )
    wanted = (
        {name: weights.get(name, 0.0) for name in names} if weights else dict.fromkeys(names, 1.0)
    )
    if not sum(wanted.values()):
        raise ValueError("all weights are 0, at least one must be more")
    low: set[str] = set()
    while True:
        rest = sum(weight for name, weight in wanted.items() if name not in low)
        left = 1 - floor * len(low)
        shares = {
            name: floor if name in low else (weight / rest * left if rest else 0.0)
            for name, weight in wanted.items()
        }
        lower = {name for name, share in shares.items() if share < floor and name not in low}
        if not lower:
            return {name: share for name, share in shares.items() if share > 0}
        low |= lower


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences that one forward and backward pass reads."""

    packed: Packed
    targets: Tensor
    """(L,) int64: the ids that are predicted at packed.logits_indices"""
    tasks: tuple[str, ...]
    """Task of each sequence"""
    num_targets: tuple[int, ...]
    """Targets of each sequence, in their order; they add up to L"""
    groups: tuple[tuple[int, int], ...]
    """Bounds of runs of whole sequences among the T tokens: routers are balanced within each"""

    @property
    def num_tokens(self) -> int:
        """T, the tokens that are read."""
        return len(self.packed.input_ids)


def micro_batches(
    sequences: Sequence[Drawn], max_tokens: int, group_tokens: int | None = None
) -> Iterator[MicroBatch]:
    """Yield a step's sequences in their order, in micro-batches of at most max_tokens tokens, or of
    one sequence or group that is larger.

    group_tokens  most tokens of a group, or one sequence; None makes each sequence a group. Groups
                  do not depend on max_tokens: so what is computed in groups does not either
    """
    sizes = [sequence.example.num_read for sequence in sequences]
    groups = _runs(sizes, 0 if group_tokens is None else group_tokens)
    for batch in _runs([sum(sizes[start:stop]) for start, stop in groups], max_tokens):
        own = groups[slice(*batch)]
        first = own[0][0]
        offsets = [0]
        for size in sizes[first : own[-1][1]]:
            offsets.append(offsets[-1] + size)
        bounds = tuple((offsets[start - first], offsets[stop - first]) for start, stop in own)
        yield _packed(sequences[first : own[-1][1]], bounds)


def _runs(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Return bounds of runs whose sizes add up to at most a limit, or of one that is larger."""
    runs: list[tuple[int, int]] = []
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > limit:
            runs.append((start, index))
            start, total = index, 0
        total += size
    return [*runs, (start, len(sizes))]


def _packed(sequences: Sequence[Drawn], groups: tuple[tuple[int, int], ...]) -> MicroBatch:
    examples = [sequence.example for sequence in sequences]
    targets = [example.ids[target] for example in examples for target in example.targets]
    return MicroBatch(
        packed=Packed.of(
            [example.ids[:-1] for example in examples],
            wanted=[[target - 1 for target in example.targets] for example in examples],
        ),
        targets=torch.tensor(targets, dtype=torch.int64),
        tasks=tuple(sequence.task for sequence in sequences),
        num_targets=tuple(len(example.targets) for example in examples),
        groups=groups,
    )
