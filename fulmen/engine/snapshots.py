"""Snapshots of lightning states at nodes of the tree, within a budget of memory.

A model with lightning layers can start only where a snapshot is. The least recently used go first.
Along one long sequence they are thinned out, so that of n tokens about log n snapshots stay.
"""

from collections import OrderedDict

from fulmen.engine.tree import Node
from fulmen.models import Cache, StateSnapshot


class Snapshots:
    """Nodes that keep a snapshot, the least recently used first."""

    def __init__(self, cache: Cache, max_bytes: int) -> None:
        self._cache = cache
        self._max_bytes = max_bytes
        self._nbytes: OrderedDict[Node, int] = OrderedDict()
        """Size of each node's snapshot"""
        self.used_bytes = 0

    def restore(self, node: Node, slot: int) -> None:
        """Start a slot from a node's snapshot."""
        assert node.state is not None
        self._cache.restore(slot, node.state)
        node.was_hit = True
        self._nbytes.move_to_end(node)

    def take(self, node: Node, slot: int, tail: int) -> None:
        """Keep a copy of a slot at a node without one, if the budget can hold it.

        tail  number of tokens after the last whole chunk
        """
        if self._make_room(self._cache.snapshot_bytes(tail)):
            self._put(node, self._cache.snapshot(slot, tail))

    def learn(self, node: Node, state: StateSnapshot) -> None:
        """Keep a snapshot that was read elsewhere, if the node has none and the budget can hold
        it."""
        if node.state is None and self._make_room(state.nbytes):
            self._put(node, state)

    def drop(self, node: Node) -> None:
        """Drop a node's snapshot, if it has one."""
        node.state = None
        self.used_bytes -= self._nbytes.pop(node, 0)

    def clear(self) -> None:
        """Drop all snapshots."""
        for node in list(self._nbytes):
            self.drop(node)

    def thin_out(self, nodes: list[Node], num_tokens: int) -> list[Node]:
        """Drop snapshots so that their distances grow with the distance from the end, and return
        the nodes that keep one: going back d tokens reads at most about d / 2 again.

        nodes       of one sequence, from the root down
        num_tokens  length of the sequence
        """
        kept = [node for node in nodes if node.state is not None]
        index = 1
        while index < len(kept) - 1:
            gap = kept[index + 1].depth - kept[index - 1].depth
            behind = num_tokens - kept[index + 1].depth
            if gap <= behind // 2 and not kept[index].was_hit:
                self.drop(kept.pop(index))
            else:
                index += 1
        return kept

    def _make_room(self, num_bytes: int) -> bool:
        """Drop older snapshots; return False where the budget is too small for this one alone."""
        if num_bytes > self._max_bytes:
            return False
        while self.used_bytes + num_bytes > self._max_bytes:
            self.drop(next(iter(self._nbytes)))
        return True

    def _put(self, node: Node, state: StateSnapshot) -> None:
        node.state = state
        self._nbytes[node] = state.nbytes
        self.used_bytes += state.nbytes
