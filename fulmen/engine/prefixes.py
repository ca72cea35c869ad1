"""Who owns which pages and slots of the model's cache, and what finished requests leave for others.

    begin: longest known prefix, its state -> grow: pages for what comes -> advance: full pages
    become known to all -> end: the rest too, nothing is owned any more

Known prefixes form a tree: a node is 64 tokens, the page with their keys and values and, where one
was taken, a snapshot of the lightning states after them. Keys and values never depend on company,
so any request whose tokens agree may read the page. A model with lightning layers can go on only
where a snapshot is, so there a hit ends at one: pages and state, or no hit.

What no running request reads stays until its memory is needed: pages go leaf by leaf, snapshots one
by one, the least recently used first.
"""

import bisect
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fulmen.kernels import PAGE
from fulmen.models import Cache, StateSnapshot

Ids = tuple[int, ...]

_WORTH_A_PASS = 4 * PAGE
"""Tokens of a prompt from which on its last page ends a pass, so that a snapshot can be taken."""


def pages_for(num_tokens: int) -> int:
    """Pages that hold num_tokens."""
    return -(-num_tokens // PAGE)


@dataclass(slots=True, eq=False)
class Node:
    """A page of tokens that are known, after those of its parents."""

    ids: Ids
    """64 tokens; fewer where a request ended inside a page, then without children"""
    page: int
    parent: "Node | None"
    depth: int
    """Tokens up to the end of this node"""
    state: StateSnapshot | None = None
    """After the last of its tokens; always None without lightning layers"""
    children: "dict[Ids, Node]" = field(default_factory=dict)
    order: list[Ids] = field(default_factory=list)
    """The keys of children, sorted: those that begin alike stand side by side"""
    num_users: int = 0
    """Running requests that read the page"""
    last_used: int = 0
    was_hit: bool = False
    """Whether a request went on from the snapshot"""


@dataclass(slots=True, eq=False)
class Allocation:
    """What one running request owns: known pages it shares, pages of its own after them, a slot."""

    slot: int
    nodes: list[Node]
    """From the root down; each is 64 tokens"""
    pages: list[int]
    """Of all tokens: those of the nodes, then its own"""
    num_tokens: int
    """Tokens whose keys, values and states are in the cache"""
    stops: list[int]
    """Page ends ahead, the nearest last, where a snapshot is wanted: a pass should end there"""
    spaced: list[Node] = field(default_factory=list)
    """Nodes that got a snapshot on the way, from the root down, without those at stops"""

    def pass_end(self, num_tokens: int) -> int:
        """Where a pass that would end at num_tokens had better end."""
        return min(num_tokens, self.stops[-1]) if self.stops else num_tokens


class PrefixCache:
    """The pages and slots of one `Cache`, and the tree of known prefixes."""

    def __init__(self, cache: Cache, *, snapshot_bytes: int) -> None:
        """snapshot_bytes: memory for snapshots of lightning states, besides the cache's own"""
        self.cache = cache
        self.snapshot_bytes = snapshot_bytes
        self._has_states = bool(cache.states)
        self._free_pages = list(range(cache.num_pages - 1, -1, -1))
        self._free_slots = list(range(cache.num_slots - 1, -1, -1))
        self._root = Node((), -1, None, 0)
        self._clock = itertools.count(1)
        self._num_nodes = 0
        self._num_locked = 0
        """Nodes that running requests read; with a node all its parents are"""
        self._leaves: list[tuple[int, int, Node]] = []
        """A heap of (last_used, id, node) of what may be evictable; checked when it comes up"""
        self._snapshots: OrderedDict[Node, int] = OrderedDict()
        """Nodes with a snapshot and its bytes, the least recently used first"""
        self._snapshot_bytes = 0

    @property
    def num_free_pages(self) -> int:
        """Pages that nobody owns and that hold nothing known."""
        return len(self._free_pages)

    @property
    def num_free_slots(self) -> int:
        """Slots that nobody owns."""
        return len(self._free_slots)

    @property
    def num_available_pages(self) -> int:
        """Pages that can be had now: free, or known but not being read."""
        return len(self._free_pages) + self._num_nodes - self._num_locked

    @property
    def used_snapshot_bytes(self) -> int:
        """Memory that snapshots take now."""
        return self._snapshot_bytes

    def begin(self, ids: Sequence[int], *, spare: int = 0) -> Allocation | None:
        """A slot, and what is known of the longest usable prefix of ids (not all of them).

        None, and nothing has changed, if no slot is free, or if with `spare` pages left over there
        are too few for ids and a token more.
        """
        if not self._free_slots:
            return None
        path, partial, shared, deepest = self._match(ids)
        for node in path:
            self._lock(node)
        missing = pages_for(len(ids) + 1) - len(path)
        if missing + spare > self.num_available_pages:
            self._unlock_all(path)
            return None
        pages = [node.page for node in path]
        if partial is not None:
            page = self._page_like(partial)
            if page is None:  # all others are in use: what is known inside a page is given up
                partial, shared = None, 0
                path, pages = self._cut_to_state(path)
            else:
                pages.append(page)
        slot = self._free_slots.pop()
        num_tokens = len(path) * PAGE + shared
        source = partial or (path[-1] if path else None)
        if self._has_states and source is not None:
            assert source.state is not None
            self.cache.restore(slot, source.state)
            source.was_hit = True
            self._snapshots.move_to_end(source)
        stops = self._stops(num_tokens, deepest, len(ids)) if self._has_states else []
        return Allocation(slot, path, pages, num_tokens, stops)

    def missing_pages(self, allocation: Allocation, num_tokens: int) -> int:
        """Pages that a request still lacks for num_tokens in all."""
        return max(0, pages_for(num_tokens) - len(allocation.pages))

    def _page_like(self, node: Node) -> int | None:
        """A page of one's own that holds what a node's does; None if no other can be had."""
        self._lock(node)  # so that making room does not take it
        taken = self._take_pages(1)
        self._unlock(node)
        if taken is None:
            return None
        self.cache.copy_page(node.page, taken[0])
        return taken[0]

    def _cut_to_state(self, path: list[Node]) -> tuple[list[Node], list[int]]:
        """The beginning of a locked path from which a request can go on."""
        end = len(path)
        while self._has_states and end and path[end - 1].state is None:
            end -= 1
        self._unlock_all(path[end:])
        return path[:end], [node.page for node in path[:end]]

    def _unlock_all(self, path: Sequence[Node]) -> None:
        for node in reversed(path):
            self._unlock(node)

    def grow(self, allocation: Allocation, num_tokens: int) -> bool:
        """Pages for num_tokens in all, from what nobody reads if none is free; False if there are
        too few, then nothing is taken."""
        missing = pages_for(num_tokens) - len(allocation.pages)
        if missing <= 0:
            return True
        taken = self._take_pages(missing)
        if taken is None:
            return False
        allocation.pages += taken
        return True

    def advance(self, allocation: Allocation, ids: Sequence[int], num_tokens: int) -> None:
        """The first num_tokens of ids are in the cache now: full pages become known."""
        is_stop = num_tokens in allocation.stops
        allocation.num_tokens = num_tokens
        while allocation.stops and allocation.stops[-1] <= num_tokens:
            allocation.stops.pop()
        before = len(allocation.nodes)
        self._publish(allocation, ids)
        if self._has_states and num_tokens % PAGE == 0 and len(allocation.nodes) > before:
            node = allocation.nodes[-1]
            if node.state is None:
                self._keep_state(node, allocation.slot, 0)
                if not is_stop:
                    allocation.spaced.append(node)
                    self._thin_out(allocation)

    def end(self, allocation: Allocation, ids: Sequence[int], *, keeps_end: bool = True) -> None:
        """Gives everything back; what was computed stays known.

        keeps_end: False where the tokens after the last full page, and the state, are not to stay:
        a pass that failed leaves them unsure
        """
        if keeps_end:
            self._keep_end(allocation, ids)
        own = allocation.pages[len(allocation.nodes) :]
        self._unlock_all(allocation.nodes)
        self._free_pages += own
        self._free_slots.append(allocation.slot)

    def known(self, ids: Sequence[int]) -> list[Node]:
        """The nodes of the longest known beginning of ids; the last may end inside a page."""
        path: list[Node] = []
        node = self._root
        while True:
            child = node.children.get(tuple(ids[node.depth : node.depth + PAGE]))
            if child is None:
                break
            path.append(child)
            node = child
        rest = tuple(ids[node.depth : node.depth + PAGE])
        return path + list(_tails(node, rest))[:1]

    def learn(
        self,
        ids: Sequence[int],
        pages: Iterable[tuple[int, Mapping[str, Tensor]]],
        states: Mapping[int, StateSnapshot],
    ) -> int:
        """Makes a sequence known whose pages were read elsewhere, as far as memory goes; returns
        how many of its tokens are.

        pages   how many, and what `Cache.read_pages` gave of them: all pages of ids, in order
        states  by the number of tokens before them
        """
        path: list[Node] = []
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
            state = states.get(known.depth)
            if state is not None and known.state is None and self._make_room(state.nbytes):
                self._put_state(known, state)
        return path[-1].depth if path else 0

    def _add_pages(self, node: Node, ids: Sequence[int], count: int) -> list[tuple[Node, bool]]:
        """The next `count` nodes after one, locked, and which are new, their pages yet to be
        written; fewer where memory or ids end."""
        found: list[tuple[Node, bool]] = []
        while len(found) < count and node.depth < len(ids):
            key = tuple(ids[node.depth : node.depth + PAGE])
            child = node.children.get(key)
            is_new = child is None
            if child is None:
                taken = self._take_pages(1)
                if taken is None:
                    break
                child = self._add(node, key, taken[0])
            self._lock(child)
            found.append((child, is_new))
            node = child
        return found

    def _forget(self, nodes: Iterable[Node]) -> None:
        """Takes locked nodes without children, or with those before them, out of the tree."""
        for node in nodes:
            self._num_locked -= 1
            node.num_users = 0
            self._drop_node(node)

    def clear(self) -> None:
        """Forgets all that no running request reads."""
        while self._evict_leaf():
            pass
        for node in list(self._snapshots):
            self._drop_snapshot(node)

    # ---- the tree ----------------------------------------------------------------------------

    def _match(self, ids: Sequence[int]) -> tuple[list[Node], Node | None, int, int]:
        """The nodes a request with these ids can go on from; a node whose page begins as the next
        tokens do, and for how many of them; and how deep the tree knows the ids, in whole pages."""
        most = len(ids) - 1  # one token at least is fed, for its logits
        path: list[Node] = []
        node = self._root
        while node.depth + PAGE <= most:
            child = node.children.get(tuple(ids[node.depth : node.depth + PAGE]))
            if child is None:
                break
            path.append(child)
            node = child
        deepest = node.depth
        if not self._has_states:
            rest = ids[node.depth : min(most, node.depth + PAGE)]
            return path, *_longest_beginning(node, rest), deepest
        while True:  # up to the last place whose state is known
            node = path[-1] if path else self._root
            rest = ids[node.depth : min(most, node.depth + PAGE)]
            tail = _longest_with_state(node, rest)
            if tail is not None:
                return path, tail, len(tail.ids), deepest
            if not path or node.state is not None:
                return path, None, 0, deepest
            path.pop()

    @staticmethod
    def _stops(start: int, deepest: int, end: int) -> list[int]:
        """Where a prompt from start to end should leave snapshots: where it parts from another one,
        for a third will part there too, and at its last page, if it is worth a pass of its own."""
        last = (end - 1) // PAGE * PAGE
        found = {deepest} if deepest > start else set()
        return sorted(found | ({last} if last - start >= _WORTH_A_PASS else set()), reverse=True)

    def _publish(self, allocation: Allocation, ids: Sequence[int]) -> None:
        while (len(allocation.nodes) + 1) * PAGE <= allocation.num_tokens:
            index = len(allocation.nodes)
            parent = allocation.nodes[-1] if allocation.nodes else self._root
            key = tuple(ids[index * PAGE : (index + 1) * PAGE])
            node = parent.children.get(key)
            if node is None:
                node = self._add(parent, key, allocation.pages[index])
            elif node.page != allocation.pages[index]:
                # Another request was here first; its page holds the same bits.
                self._free_pages.append(allocation.pages[index])
                allocation.pages[index] = node.page
            self._lock(node)
            allocation.nodes.append(node)

    def _add(self, parent: Node, ids: Ids, page: int) -> Node:
        node = Node(ids, page, parent, parent.depth + len(ids))
        node.last_used = next(self._clock)
        parent.children[ids] = node
        bisect.insort(parent.order, ids)
        self._num_nodes += 1
        return node

    def _lock(self, node: Node) -> None:
        self._num_locked += node.num_users == 0
        node.num_users += 1

    def _unlock(self, node: Node) -> None:
        """Children before parents, so that parents count as used later."""
        node.num_users -= 1
        self._num_locked -= node.num_users == 0
        node.last_used = next(self._clock)
        self._note_leaf(node)

    def _note_leaf(self, node: Node) -> None:
        if node.children or node.num_users:
            return
        heapq.heappush(self._leaves, (node.last_used, id(node), node))
        if len(self._leaves) > 2 * self._num_nodes + 64:  # most are out of date
            self._leaves = [entry for entry in self._leaves if self._is_evictable(entry)]
            heapq.heapify(self._leaves)

    def _is_evictable(self, entry: tuple[int, int, Node]) -> bool:
        last_used, _, node = entry
        is_known = node.parent is not None and node.parent.children.get(node.ids) is node
        is_leaf = not node.children and not node.num_users
        return is_known and is_leaf and node.last_used == last_used

    def _keep_end(self, allocation: Allocation, ids: Sequence[int]) -> None:
        """Makes the last tokens known, and the state after them."""
        node = allocation.nodes[-1] if allocation.nodes else self._root
        tail = tuple(ids[node.depth : allocation.num_tokens])
        if tail and tail not in node.children:
            page = allocation.pages.pop(len(allocation.nodes))
            node = self._add(node, tail, page)
            self._note_leaf(node)
        elif tail:
            node = node.children[tail]
        if self._has_states and node is not self._root and node.state is None:
            self._keep_state(node, allocation.slot, len(tail))

    def _take_pages(self, count: int) -> list[int] | None:
        if count > self.num_available_pages:
            return None
        while len(self._free_pages) < count:
            was_evicted = self._evict_leaf()
            assert was_evicted, "a page counts as available and cannot be had"
        return [self._free_pages.pop() for _ in range(count)]

    def _evict_leaf(self) -> bool:
        while self._leaves:
            entry = heapq.heappop(self._leaves)
            if not self._is_evictable(entry):
                continue
            node = entry[2]
            parent = self._drop_node(node)
            if parent is not self._root:
                self._note_leaf(parent)
            return True
        return False

    def _drop_node(self, node: Node) -> Node:
        """Takes a node without children out of the tree and returns its parent."""
        parent = node.parent
        assert parent is not None
        del parent.children[node.ids]
        del parent.order[bisect.bisect_left(parent.order, node.ids)]
        self._num_nodes -= 1
        self._free_pages.append(node.page)
        self._drop_snapshot(node)
        return parent

    # ---- snapshots ---------------------------------------------------------------------------

    def _keep_state(self, node: Node, slot: int, tail: int) -> None:
        """Takes a snapshot, if the budget holds it at all."""
        if self._make_room(self.cache.snapshot_bytes(tail)):
            self._put_state(node, self.cache.snapshot(slot, tail))

    def _make_room(self, num_bytes: int) -> bool:
        """Drops older snapshots; False where the budget is too small for this one alone."""
        if num_bytes > self.snapshot_bytes:
            return False
        while self._snapshot_bytes + num_bytes > self.snapshot_bytes:
            self._drop_snapshot(next(iter(self._snapshots)))
        return True

    def _put_state(self, node: Node, state: StateSnapshot) -> None:
        node.state = state
        self._snapshots[node] = state.nbytes
        self._snapshot_bytes += state.nbytes

    def _drop_snapshot(self, node: Node) -> None:
        node.state = None
        self._snapshot_bytes -= self._snapshots.pop(node, 0)

    def _thin_out(self, allocation: Allocation) -> None:
        """Drops snapshots on the way so that their distances grow with the distance from the end:
        of n tokens some log n stay, and going back d tokens reads at most about d / 2 again."""
        kept = [node for node in allocation.spaced if node.state is not None]
        index = 1
        while index < len(kept) - 1:
            gap = kept[index + 1].depth - kept[index - 1].depth
            behind = allocation.num_tokens - kept[index + 1].depth
            if gap <= behind // 2 and not kept[index].was_hit:
                self._drop_snapshot(kept.pop(index))
            else:
                index += 1
        allocation.spaced = kept


def _longest_beginning(parent: Node, ids: Sequence[int]) -> tuple[Node | None, int]:
    """The child that shares the most first tokens with ids, and how many."""
    wanted = tuple(ids)
    place = bisect.bisect_left(parent.order, wanted)
    best, longest = None, 0
    for key in parent.order[max(0, place - 1) : place + 1]:
        shared = next(
            (i for i, (known, id) in enumerate(zip(key, wanted, strict=False)) if known != id),
            min(len(key), len(wanted)),
        )
        if shared > longest:
            best, longest = parent.children[key], shared
    return best, longest


def _tails(parent: Node, ids: Ids) -> Iterator[Node]:
    """The children inside a page that ids begin with, the longest first."""
    for length in range(min(len(ids), PAGE - 1), 0, -1):
        child = parent.children.get(ids[:length])
        if child is not None:
            yield child


def _longest_with_state(parent: Node, ids: Sequence[int]) -> Node | None:
    """The longest child inside a page that ids begin with and whose state is known."""
    return next((tail for tail in _tails(parent, tuple(ids)) if tail.state is not None), None)
