"""The tree of known prefixes: a node is a page of 64 tokens that follow those of its parents.

A tree holds no memory of the model's cache itself; `prefixes.py` says who owns the pages that its
nodes name, `snapshots.py` which of them keep a lightning state.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from fulmen.kernels import PAGE
from fulmen.models import StateSnapshot

Ids = tuple[int, ...]

NO_PAGE: Final = -1
"""Page of the root, which has no tokens"""


@dataclass(slots=True, eq=False)
class Node:
    """A page of tokens that are known, after those of its parents."""

    ids: Ids
    """64 tokens; fewer where a request ended inside a page, then without children"""
    page: int
    parent: "Node | None"
    depth: int
    """Number of tokens up to the end of this node"""
    state: StateSnapshot | None = None
    """Lightning states after the last of its tokens; always None without lightning layers"""
    num_users: int = 0
    """Number of running requests that read the page"""
    last_used: int = 0
    was_hit: bool = False
    """True once a request has started from the snapshot"""
    _children: "dict[Ids, Node]" = field(default_factory=dict)
    _order: list[Ids] = field(default_factory=list)
    """Keys of the children, sorted: those with the same beginning stand side by side"""

    @property
    def is_leaf(self) -> bool:
        """True if it has no children."""
        return not self._children

    @property
    def is_known(self) -> bool:
        """True as long as it stands in the tree."""
        return self.parent is not None and self.parent._children.get(self.ids) is self

    def child(self, ids: Ids) -> "Node | None":
        """Return the child with exactly these tokens."""
        return self._children.get(ids)

    def next_page(self, ids: Sequence[int]) -> "Node | None":
        """Return the child whose whole page comes next in ids, a sequence from the root."""
        return self._children.get(tuple(ids[self.depth : self.depth + PAGE]))

    def add(self, ids: Ids, page: int) -> "Node":
        """Return a new child."""
        child = Node(ids, page, self, self.depth + len(ids))
        self._children[ids] = child
        bisect.insort(self._order, ids)
        return child

    def detach(self) -> "Node":
        """Take a leaf out of the tree, and return its parent."""
        parent = self.parent
        assert parent is not None
        assert self.is_leaf
        del parent._children[self.ids]
        del parent._order[bisect.bisect_left(parent._order, self.ids)]
        return parent

    def partial_pages(self, ids: Ids) -> "Iterator[Node]":
        """Yield the children of less than a page that ids begin with, the longest first."""
        for length in range(min(len(ids), PAGE - 1), 0, -1):
            child = self._children.get(ids[:length])
            if child is not None:
                yield child

    def most_alike(self, ids: Ids) -> "tuple[Node | None, int]":
        """Return the child that shares the most first tokens with ids, and how many."""
        place = bisect.bisect_left(self._order, ids)
        best, longest = None, 0
        for key in self._order[max(0, place - 1) : place + 1]:
            shared = next(
                (i for i, (known, id) in enumerate(zip(key, ids, strict=False)) if known != id),
                min(len(key), len(ids)),
            )
            if shared > longest:
                best, longest = self._children[key], shared
        return best, longest

    def known_pages(self, ids: Sequence[int], limit: int) -> "list[Node]":
        """Return the nodes below this root that hold the first whole pages of ids, up to `limit`
        tokens."""
        path: list[Node] = []
        node = self
        while node.depth + PAGE <= limit:
            child = node.next_page(ids)
            if child is None:
                break
            path.append(child)
            node = child
        return path
