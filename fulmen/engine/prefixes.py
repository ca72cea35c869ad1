"""Pages and slots of the model's cache: who owns them, and which prefixes are known in them.

    begin: longest known prefix, its state -> grow: pages for what comes -> advance: full pages
    become known to all -> end: the last tokens too, and nothing is owned any more

Keys and values never depend on company, so a request whose tokens agree with a node of the tree may
read its page, also while the request that computed it still runs. A model with lightning layers can
start only where a snapshot is, so there a hit ends at one: pages and state, or no hit.

A page that no running request reads stays until its memory is needed: leaf by leaf, the least
recently used first.
"""

import bisect
import heapq
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fulmen.engine.snapshots import Snapshots
from fulmen.engine.tree import NO_PAGE, Ids, Node
from fulmen.kernels import PAGE
from fulmen.models import Cache, StateSnapshot

_WORTH_A_PASS = 4 * PAGE
"""Least number of prompt tokens for which a pass ends at the last full page, to take a snapshot"""


def pages_for(num_tokens: int) -> int:
    """Return how many pages hold num_tokens."""
    return -(-num_tokens // PAGE)


@dataclass(slots=True, eq=False)
class Allocation:
    """Memory of one running request: known pages it shares, pages of its own after them, a slot."""

    slot: int
    nodes: list[Node]
    """Known pages from the root down; each is 64 tokens"""
    pages: list[int]
    """Pages of all tokens: those of the nodes, then its own"""
    num_tokens: int
    """Number of tokens whose keys, values and states are in the cache"""
    snapshot_at: list[int]
    """Page ends ahead, the nearest last, where a pass should end to take a snapshot"""
    spaced: list[Node] = field(default_factory=list)
    """Nodes that got a snapshot on the way, from the root down, without those at snapshot_at"""

    def pass_end(self, num_tokens: int) -> int:
        """Return where a pass should end that could reach num_tokens."""
        return min(num_tokens, self.snapshot_at[-1]) if self.snapshot_at else num_tokens


@dataclass(slots=True)
class _Match:
    """Known beginning of a sequence, as far as a request can start from it."""

    path: list[Node]
    """Whole pages from the root down"""
    partial: Node | None
    """Node after them whose page begins as the next tokens do"""
    num_shared: int
    """Number of those tokens"""
    known_depth: int
    """Tokens that the tree knows in whole pages, with or without a state to start from"""

    @property
    def source(self) -> Node | None:
        """Node that the request starts after, None at the beginning."""
        if self.partial is not None:
            return self.partial
        return self.path[-1] if self.path else None


class PrefixCache:
    """The pages and slots of one `Cache`, and the tree of known prefixes."""

    def __init__(self, cache: Cache, *, snapshot_bytes: int) -> None:
        """snapshot_bytes is memory for snapshots of lightning states, besides the cache's own."""
        self.cache = cache
        self._snapshots = Snapshots(cache, snapshot_bytes)
        self._has_states = bool(cache.states)
        self._free_pages = list(range(cache.num_pages - 1, -1, -1))
        self._free_slots = list(range(cache.num_slots - 1, -1, -1))
        self._root = Node((), NO_PAGE, None, 0)
        self._clock = itertools.count(1)
        self.generation = 0
        """Number of times that all was forgotten: what is known since may have other states"""
        self.num_evicted_pages = 0
        """Known pages that were dropped because their memory was needed"""
        self._num_nodes = 0
        self._num_locked = 0
        """Number of nodes that running requests read; with a node all its parents are"""
        self._leaves: list[tuple[int, int, Node]] = []
        """A heap of (last_used, id, node) of what may be evictable; checked when it comes up"""

    @property
    def num_free_pages(self) -> int:
        """Number of pages that nobody owns and that hold nothing known."""
        return len(self._free_pages)

    @property
    def num_free_slots(self) -> int:
        """Number of slots that nobody owns."""
        return len(self._free_slots)

    @property
    def num_available_pages(self) -> int:
        """Number of pages that can be had now: free, or known but not being read."""
        return len(self._free_pages) + self._num_nodes - self._num_locked

    @property
    def used_snapshot_bytes(self) -> int:
        """Memory that snapshots take now."""
        return self._snapshots.used_bytes

    def begin(
        self, ids: Sequence[int], *, spare: int = 0, most_hits: int | None = None
    ) -> Allocation | None:
        """Return a slot, and the longest known prefix of ids that a request can start from: never
        all of them, and at most most_hits.

        None, and nothing has changed, if no slot is free, or if with `spare` pages left over there
        are too few for ids and a token more.
        """
        if not self._free_slots:
            return None
        match = self._match(ids if most_hits is None else ids[: most_hits + 1])
        for node in match.path:
            self._lock(node)
        missing = pages_for(len(ids) + 1) - len(match.path)
        if missing + spare > self.num_available_pages:
            self._unlock_all(match.path)
            return None
        copied_pages = []
        if match.partial is not None:
            page = self._page_like(match.partial)
            if page is None:  # all others are in use
                match = self._without_partial(match)
            else:
                copied_pages.append(page)
        slot = self._free_slots.pop()
        if self._has_states and match.source is not None:
            self._snapshots.restore(match.source, slot)
        num_tokens = len(match.path) * PAGE + match.num_shared
        return Allocation(
            slot,
            match.path,
            [node.page for node in match.path] + copied_pages,
            num_tokens,
            _snapshot_at(num_tokens, match.known_depth, len(ids)) if self._has_states else [],
        )

    def want_snapshot(self, allocation: Allocation, num_tokens: int) -> None:
        """Have a request leave a snapshot after so many tokens, whole pages that it has yet to
        read; without lightning layers none is needed."""
        if self._has_states and num_tokens not in allocation.snapshot_at:
            bisect.insort(allocation.snapshot_at, num_tokens, key=operator.neg)

    def missing_pages(self, allocation: Allocation, num_tokens: int) -> int:
        """Return how many pages a request still lacks for num_tokens in all."""
        return max(0, pages_for(num_tokens) - len(allocation.pages))

    def grow(self, allocation: Allocation, num_tokens: int) -> bool:
        """Take pages for num_tokens in all, from those that nobody reads if none is free.

        Return False, and take nothing, if there are too few.
        """
        taken = self._take_pages(self.missing_pages(allocation, num_tokens))
        if taken is None:
            return False
        allocation.pages += taken
        return True

    def advance(self, allocation: Allocation, ids: Sequence[int], num_tokens: int) -> None:
        """Take note that the first num_tokens of ids are in the cache: full pages become known."""
        is_wanted = num_tokens in allocation.snapshot_at
        allocation.num_tokens = num_tokens
        while allocation.snapshot_at and allocation.snapshot_at[-1] <= num_tokens:
            allocation.snapshot_at.pop()
        num_before = len(allocation.nodes)
        self._publish(allocation, ids)
        if self._has_states and num_tokens % PAGE == 0 and len(allocation.nodes) > num_before:
            node = allocation.nodes[-1]
            if node.state is None:
                self._snapshots.take(node, allocation.slot, 0)
                if not is_wanted:
                    spaced = [*allocation.spaced, node]
                    allocation.spaced = self._snapshots.thin_out(spaced, num_tokens)

    def end(self, allocation: Allocation, ids: Sequence[int], *, keeps_end: bool = True) -> None:
        """Free all that a request owns; its tokens stay known.

        keeps_end  False if the tokens after the last full page, and the state, are not to stay: a
                   pass that failed leaves them unsure
        """
        if keeps_end:
            self._keep_end(allocation, ids)
        own = allocation.pages[len(allocation.nodes) :]
        self._unlock_all(allocation.nodes)
        self._free_pages += own
        self._free_slots.append(allocation.slot)

    def known(self, ids: Sequence[int]) -> list[Node]:
        """Return the nodes of the longest known beginning of ids; the last may end inside a
        page."""
        path = self._root.known_pages(ids, len(ids))
        node = path[-1] if path else self._root
        rest = tuple(ids[node.depth : node.depth + PAGE])
        return path + list(node.partial_pages(rest))[:1]

    def num_usable(self, ids: Sequence[int]) -> int:
        """Return after how many first tokens of ids a request that goes on from them could
        start."""
        match = self._match([*ids, NO_PAGE])  # a request feeds one token more
        return len(match.path) * PAGE + match.num_shared

    def num_known_pages(self, ids: Sequence[int]) -> int:
        """Return how many first whole pages of ids are known."""
        return len(self._root.known_pages(ids, len(ids)))

    def learn(
        self,
        ids: Sequence[int],
        pages: Iterable[tuple[int, Mapping[str, Tensor]]],
        states: Mapping[int, StateSnapshot],
        *,
        start: int = 0,
    ) -> int:
        """Make a sequence known whose pages were read elsewhere, as far as memory goes; return how
        many of its tokens are.

        pages   how many, and what `Cache.read_pages` gave of them: all pages of ids from the
                start-th on, in order
        states  by the number of tokens before them
        start   number of pages that are known already; where fewer are, nothing is learned
        """
        path = self._root.known_pages(ids, start * PAGE)
        if len(path) < start:
            return len(path) * PAGE
        for node in path:
            self._lock(node)
        try:
            for count, tensors in pages:
                node = path[-1] if path else self._root
                found = self._add_pages(node, ids, count)
                path += [known for known, _ in found]
                rows = [row for row, (_, is_new) in enumerate(found) if is_new]
                try:
                    self.cache.write_pages([found[row][0].page for row in rows], tensors, rows)
                except BaseException:
                    self._forget(found[row][0] for row in reversed(rows))
                    del path[len(path) - len(rows) :]
                    raise
                if len(found) < count:
                    break
        finally:
            self._unlock_all(path)
        for known in path:
            if known.depth in states:
                self._snapshots.learn(known, states[known.depth])
        return path[-1].depth if path else 0

    def clear(self) -> None:
        """Forget all that no running request reads."""
        while self._evict_leaf():
            pass
        self._snapshots.clear()
        self.generation += 1

    def _match(self, ids: Sequence[int]) -> _Match:
        """Return the longest known beginning of ids that a request can start from."""
        most = len(ids) - 1  # one token at least is fed, for its logits
        path = self._root.known_pages(ids, most)
        known_depth = path[-1].depth if path else 0
        while True:
            node = path[-1] if path else self._root
            rest = tuple(ids[node.depth : min(most, node.depth + PAGE)])
            if not self._has_states:
                return _Match(path, *node.most_alike(rest), known_depth)
            for partial in node.partial_pages(rest):
                if partial.state is not None:
                    return _Match(path, partial, len(partial.ids), known_depth)
            if not path or node.state is not None:
                return _Match(path, None, 0, known_depth)
            path.pop()

    def _page_like(self, node: Node) -> int | None:
        """Return a page of the request's own that holds what a node's does; None if no other can
        be had."""
        self._lock(node)  # so that making room does not take it
        taken = self._take_pages(1)
        self._unlock(node)
        if taken is None:
            return None
        self.cache.copy_page(node.page, taken[0])
        return taken[0]

    def _without_partial(self, match: _Match) -> _Match:
        """Return a locked match that ends at a whole page, with a state if the model has any."""
        end = len(match.path)
        while self._has_states and end and match.path[end - 1].state is None:
            end -= 1
        self._unlock_all(match.path[end:])
        return _Match(match.path[:end], None, 0, match.known_depth)

    def _publish(self, allocation: Allocation, ids: Sequence[int]) -> None:
        """Make a request's full pages known."""
        while (len(allocation.nodes) + 1) * PAGE <= allocation.num_tokens:
            index = len(allocation.nodes)
            parent = allocation.nodes[-1] if allocation.nodes else self._root
            node = parent.next_page(ids)
            if node is None:
                key = tuple(ids[index * PAGE : (index + 1) * PAGE])
                node = self._add(parent, key, allocation.pages[index])
            elif node.page != allocation.pages[index]:
                # Another request was here first; its page holds the same bits.
                self._free_pages.append(allocation.pages[index])
                allocation.pages[index] = node.page
            self._lock(node)
            allocation.nodes.append(node)

    def _keep_end(self, allocation: Allocation, ids: Sequence[int]) -> None:
        """Make the last tokens known, and the state after them."""
        node = allocation.nodes[-1] if allocation.nodes else self._root
        tail = tuple(ids[node.depth : allocation.num_tokens])
        if tail:
            known = node.child(tail)
            if known is None:
                known = self._add(node, tail, allocation.pages.pop(len(allocation.nodes)))
                self._note_leaf(known)
            node = known
        if self._has_states and node is not self._root and node.state is None:
            self._snapshots.take(node, allocation.slot, len(tail))

    def _add_pages(self, node: Node, ids: Sequence[int], count: int) -> list[tuple[Node, bool]]:
        """Return the next `count` nodes after one, locked, and which are new, their pages yet to
        be written; fewer where memory or ids end."""
        found: list[tuple[Node, bool]] = []
        while len(found) < count and node.depth < len(ids):
            child = node.next_page(ids)
            is_new = child is None
            if child is None:
                taken = self._take_pages(1)
                if taken is None:
                    break
                child = self._add(node, tuple(ids[node.depth : node.depth + PAGE]), taken[0])
            self._lock(child)
            found.append((child, is_new))
            node = child
        return found

    def _forget(self, nodes: Iterable[Node]) -> None:
        """Take locked nodes without children, or with those before them, out of the tree."""
        for node in nodes:
            self._num_locked -= 1
            node.num_users = 0
            self._drop(node)

    def _add(self, parent: Node, ids: Ids, page: int) -> Node:
        node = parent.add(ids, page)
        node.last_used = next(self._clock)
        self._num_nodes += 1
        return node

    def _drop(self, node: Node) -> Node:
        """Take a leaf out of the tree, free its page, and return its parent."""
        parent = node.detach()
        self._num_nodes -= 1
        self._free_pages.append(node.page)
        self._snapshots.drop(node)
        return parent

    def _lock(self, node: Node) -> None:
        self._num_locked += node.num_users == 0
        node.num_users += 1

    def _unlock(self, node: Node) -> None:
        node.num_users -= 1
        self._num_locked -= node.num_users == 0
        node.last_used = next(self._clock)
        self._note_leaf(node)

    def _unlock_all(self, path: Sequence[Node]) -> None:
        """Unlock children before parents, so that parents count as used later."""
        for node in reversed(path):
            self._unlock(node)

    def _take_pages(self, count: int) -> list[int] | None:
        """Return so many pages, evicting leaves if too few are free; None if there are too few."""
        if count > self.num_available_pages:
            return None
        while len(self._free_pages) < count:
            was_evicted = self._evict_leaf()
            assert was_evicted, "a page counts as available and cannot be had"
            self.num_evicted_pages += 1
        return [self._free_pages.pop() for _ in range(count)]

    def _evict_leaf(self) -> bool:
        """Drop the leaf that was not used for longest; return False if there is none."""
        while self._leaves:
            entry = heapq.heappop(self._leaves)
            if not self._is_evictable(entry):
                continue
            parent = self._drop(entry[2])
            if parent is not self._root:
                self._note_leaf(parent)
            return True
        return False

    def _note_leaf(self, node: Node) -> None:
        if not node.is_leaf or node.num_users:
            return
        heapq.heappush(self._leaves, (node.last_used, id(node), node))
        if len(self._leaves) > 2 * self._num_nodes + 64:  # most are out of date
            self._leaves = [entry for entry in self._leaves if self._is_evictable(entry)]
            heapq.heapify(self._leaves)

    def _is_evictable(self, entry: tuple[int, int, Node]) -> bool:
        last_used, _, node = entry
        return node.is_known and node.is_leaf and not node.num_users and node.last_used == last_used


def _snapshot_at(start: int, known_depth: int, end: int) -> list[int]:
    """Return where a prompt from start to end should leave snapshots, the nearest last.

    Where it diverges from a known prompt, as a third is likely to diverge there too; and at its
    last full page, if that saves enough.
    """
    last = (end - 1) // PAGE * PAGE
    places = {known_depth} if known_depth > start else set()
    if last - start >= _WORTH_A_PASS:
        places.add(last)
    return sorted(places, reverse=True)
