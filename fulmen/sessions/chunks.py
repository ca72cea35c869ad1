"""Tensors in a store: what a cache knows of a sequence, as chunks on disk, and back.

A chunk holds pages of keys and values, or one snapshot of lightning states, as safetensors. All of
it can be computed again from the tokens. So a chunk that is gone, damaged or of another shape is no
error: a warning says so, and the tokens are read again.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fulmen.engine import (
    Between,
    KnownStates,
    PrefixCache,
    check_pages,
    check_snapshot,
    is_of_use,
    max_snapshot_bytes,
)
from fulmen.kernels import PAGE
from fulmen.models import StateSnapshot
from fulmen.sessions.objects import DamagedError, Objects
from fulmen.sessions.records import PageSpan, StoredTurn

logger = logging.getLogger(__name__)

CHUNK_BYTES: Final = 64 * 2**20
"""Size of a chunk of pages, about: the memory that a save needs."""
RESTORED_BYTES: Final = 256 * 2**20
"""Snapshots are read back up to this size, the latest first and always one: the last serves to
continue, the others to rewind."""
_HEADER_BYTES: Final = 2**20

T = TypeVar("T")


class Chunks:
    """The chunks of a store."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._useless: set[str] = set()
        """Chunks that could not be used: no further turn names them"""

    def has(self, chunk: str) -> bool:
        """Return whether a chunk is there, as far as is known."""
        return chunk not in self._useless and self.objects.size(chunk) > 0

    def save(
        self, known: KnownStates, parent: StoredTurn | None, num_shared: int
    ) -> tuple[tuple[PageSpan, ...], dict[int, str], int]:
        """Write what is known of a sequence; returns its pages, its snapshots by the number of
        tokens before each, and the number of tokens they hold.

        parent      a turn with the same states, whose chunks need not be written again
        num_shared  number of tokens that the sequence shares with it
        """
        spans: list[PageSpan] = []
        snapshots: dict[int, str] = {}
        if parent is not None:
            spans = self._first_pages(parent.spans, min(num_shared, parent.num_known) // PAGE)
        num_kept = sum(span.count for span in spans)
        if parent is not None:
            snapshots = {
                num_tokens: chunk
                for num_tokens, chunk in parent.states.items()
                if num_tokens <= num_kept * PAGE and self.has(chunk)
            }
        for count, tensors in known.pages(num_kept, CHUNK_BYTES):
            spans.append(PageSpan(self._put(tensors), 0, count))
        for num_tokens, tensors in known.snapshots(snapshots.keys()):
            snapshots[num_tokens] = self._put(tensors)
        return tuple(spans), snapshots, max(num_kept * PAGE, known.num_tokens)

    def restore(
        self, turn: StoredTurn, ids: Sequence[int], prefixes: PrefixCache, between: Between
    ) -> int:
        """Make a cache know what is stored of ids, the first tokens of a turn; returns of how many
        tokens. Nothing is read that a request needs not to start."""
        ids = ids[: turn.num_known]
        num_usable = between(lambda: prefixes.num_usable(ids))
        most = self._num_usable(turn, len(ids), has_states=bool(prefixes.cache.states))
        if num_usable and num_usable >= most:
            return num_usable
        snapshots = self._snapshots(turn, len(ids), prefixes)
        start = between(lambda: prefixes.num_known_pages(ids))

        def learn(*pages: tuple[int, dict[str, Tensor]]) -> int:
            return prefixes.learn(ids, pages, snapshots, start=start)

        num_known = between(learn)
        for count, tensors in self._pages(turn, len(ids), start, prefixes):
            num_known = between(partial(learn, (count, tensors)))
            start += count
            if num_known < min(start * PAGE, len(ids)):  # the memory is full
                break
        return num_known

    def _num_usable(self, turn: StoredTurn, num_tokens: int, *, has_states: bool) -> int:
        """Return after how many first tokens of a turn a request could start, were all of it in a
        cache."""
        if has_states:
            places = [place for place in turn.states if is_of_use(place, num_tokens)]
            return max((place for place in places if self.has(turn.states[place])), default=0)
        spans = self._first_pages(turn.spans, -(-num_tokens // PAGE))
        return min(num_tokens, PAGE * sum(span.count for span in spans))

    def _first_pages(self, spans: Sequence[PageSpan], num_pages: int) -> list[PageSpan]:
        """Return the first pages of spans, up to the first chunk that is no longer there."""
        kept: list[PageSpan] = []
        for span in spans:
            count = min(span.count, num_pages)
            if not count or not self.has(span.chunk):
                break
            kept.append(replace(span, count=count))
            num_pages -= count
        return kept

    def _pages(
        self, turn: StoredTurn, num_tokens: int, start: int, prefixes: PrefixCache
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Read the pages of a turn's first tokens from the start-th on."""
        cache = prefixes.cache
        max_bytes = max(CHUNK_BYTES, cache.page_bytes) + _HEADER_BYTES
        left = -(-num_tokens // PAGE)
        skipped = start
        for span in turn.spans:
            count = min(span.count, left)
            if not count:
                return
            left -= count
            known = min(count, skipped)
            skipped -= known
            if known == count:
                continue
            end = span.first + count

            def read(tensors: dict[str, Tensor], end: int = end) -> dict[str, Tensor]:
                check_pages(cache, tensors, end)
                return tensors

            tensors = self._get(span.chunk, max_bytes, read)
            if tensors is None:
                return
            rows = slice(span.first + known, end)
            yield count - known, {name: tensor[rows] for name, tensor in tensors.items()}

    def _snapshots(
        self, turn: StoredTurn, num_tokens: int, prefixes: PrefixCache
    ) -> dict[int, StateSnapshot]:
        cache = prefixes.cache
        max_bytes = max_snapshot_bytes(cache) + _HEADER_BYTES
        found: dict[int, StateSnapshot] = {}
        left = RESTORED_BYTES
        for position in sorted(turn.states, reverse=True):
            if not is_of_use(position, num_tokens):
                continue
            chunk = turn.states[position]
            left -= self.objects.size(chunk)
            if found and left < 0:
                break

            def read(tensors: dict[str, Tensor], position: int = position) -> StateSnapshot:
                return check_snapshot(cache, tensors, position)

            snapshot = self._get(chunk, max_bytes, read)
            if snapshot is not None:
                found[position] = snapshot
        return found

    def _put(self, tensors: dict[str, Tensor]) -> str:
        chunk = self.objects.put(safetensors.torch.save(tensors))
        self._useless.discard(chunk)
        return chunk

    def _get(self, chunk: str, max_bytes: int, read: Callable[[dict[str, Tensor]], T]) -> T | None:
        """Read a chunk; None, with a warning, where that cannot be."""
        path = self.objects.path(chunk)
        try:
            return read(load_tensors(self.objects.get(chunk, max_bytes)))
        except FileNotFoundError:
            reason = f"{path} is gone"
        except DamagedError as error:
            self.objects.delete(chunk)  # so that it is written anew
            reason = str(error)
        except ValueError as error:
            reason = f"{path} cannot be used: {error}"
        self._useless.add(chunk)
        logger.warning("%s, the tokens that it held are read again", reason)
        return None


def load_tensors(content: bytes) -> dict[str, Tensor]:
    """Read the tensors of a chunk. Raises ValueError for content that is none."""
    header = int.from_bytes(content[:8], "little")
    if header > _HEADER_BYTES:
        raise ValueError(f"its header has {header} bytes, at most {_HEADER_BYTES} can be right")
    try:
        return dict(safetensors.torch.load(content))
    # Beside its own error, for dtypes and shapes that torch does not know.
    except (SafetensorError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"it is no safetensors file: {error}") from None
