"""Graphs: edges, searches, and a map of towns."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_EDGES = '''"""Edges of a graph, written as lines such as "a-b 4"."""


def read_edges(lines):
    """Return (from, to, length) of each line; the length is 1 if it is left out."""
    edges = []
    for line in lines:
        ends, _, length = line.partition(" ")
        start, _, end = ends.partition("-")
        if not start or not end:
            raise ValueError("an edge has two ends")
        edges.append((start, end, int(length) if length else 1))
    return edges


def neighbours(edges):
    """Return a dict of each node with its neighbours and their lengths; edges go both ways.

    Where two edges join the same nodes the shorter one counts.
    """
    found = {}
    for start, end, length in edges:
        for one, other in ((start, end), (end, start)):
            known = found.setdefault(one, {})
            known[other] = min(length, known.get(other, length))
    return found


def degree(edges, node):
    """Return the number of different neighbours of a node, 0 if there is no such node."""
    return len(neighbours(edges).get(node, {}))


def without(edges, node):
    """Return the edges that do not touch a node."""
    return [edge for edge in edges if node not in edge[:2]]
'''

_SEARCH = '''"""Searches in a graph of edges (from, to, length)."""

from .edges import degree, neighbours, without


def distances(edges, start):
    """Return the length of the shortest way from a start to each node that can be reached."""
    graph = neighbours(edges)
    found, waiting = {}, {start: 0}
    while waiting:
        node = min(waiting, key=lambda one: (waiting[one], one))
        found[node] = waiting.pop(node)
        for other, length in graph.get(node, {}).items():
            total = found[node] + length
            if other not in found and total < waiting.get(other, total + 1):
                waiting[other] = total
    return dict(sorted(found.items()))


def hops(edges, start):
    """Return the fewest edges from a start to each node that can be reached."""
    graph, found, now = neighbours(edges), {start: 0}, [start]
    while now:
        later = []
        for node in now:
            for other in graph.get(node, {}):
                if other not in found:
                    found[other] = found[node] + 1
                    later.append(other)
        now = later
    return dict(sorted(found.items()))


def groups(edges):
    """Return the nodes that hang together, each group and all of them in order."""
    found, seen = [], []
    for node in sorted(neighbours(edges)):
        if node not in seen:
            group = sorted(distances(edges, node))
            seen += group
            found.append(group)
    return found


def is_bridge_node(edges, node):
    """Return True if there are more groups once a node, which has neighbours, is taken out."""
    left = sum(len(group) for group in groups(without(edges, node)))
    alone = len(neighbours(edges)) - 1 - left
    return len(groups(without(edges, node))) + alone > len(groups(edges))


def busiest(edges):
    """Return the nodes with the most neighbours, in order."""
    counts = {node: degree(edges, node) for node in neighbours(edges)}
    return sorted(node for node in counts if counts[node] == max(counts.values()))
'''

_TOWNS = '''"""A map of towns and roads."""

from .search import busiest, distances, groups, hops, is_bridge_node


class RoadMap:
    """Roads between towns, each with a length."""

    def __init__(self, roads):
        self.roads = list(roads)

    def way(self, start, end):
        """Return the length of the shortest way, None if there is none."""
        return distances(self.roads, start).get(end)

    def changes(self, start, end):
        """Return how many towns lie between both on the way with the fewest roads, None if there
        is no way."""
        count = hops(self.roads, start).get(end)
        return None if count is None else max(count - 1, 0)

    def within(self, start, limit):
        """Return the other towns at most so far from a start, the nearest first, then by name."""
        found = [(far, town) for town, far in distances(self.roads, start).items() if town != start]
        return [town for far, town in sorted(found) if far <= limit]

    def islands(self):
        """Return the number of groups of towns that no road joins."""
        return len(groups(self.roads))

    def key_towns(self):
        """Return the towns without which others could no longer reach each other, in order."""
        towns = {town for road in self.roads for town in road[:2]}
        return [town for town in sorted(towns) if is_bridge_node(self.roads, town)]


def meeting_point(roads, towns):
    """Return the town with the smallest sum of ways from all of some towns, then by name.

    None if no town can be reached from all of them.
    """
    sums = {}
    for town in busiest(roads) + [one for group in groups(roads) for one in group]:
        ways = [distances(roads, start).get(town) for start in towns]
        if None not in ways:
            sums[town] = sum(ways)
    return min(sums, key=lambda town: (sums[town], town)) if sums else None
'''


def _edges(draw: random.Random) -> list[tuple[str, str, int]]:
    nodes = "abcdefgh"[: draw.randint(4, 8)]
    edges = []
    for _ in range(draw.randint(3, 9)):
        start, end = draw.sample(nodes, 2)
        edges.append((start, end, draw.randint(1, 9)))
    return edges


def _probes(draw: random.Random) -> list[Probe]:
    edges = _edges(draw)
    lines = [f"{start}-{end}" + draw.choice(("", f" {length}")) for start, end, length in edges[:4]]
    start, other = edges[0][0], draw.choice("abcdefgh")
    roads = f"roads = RoadMap({edges})"
    path = [("a", "b", 2), ("b", "c", draw.randint(1, 4)), ("c", "d", 1), ("a", "d", 9)]
    return [
        probe(2, f"read_edges({lines})"),
        probe(2, f"read_edges([{draw.choice(('a', '-a 3', 'a-', ''))!r}])"),
        probe(2, f"neighbours({edges})"),
        probe(
            2, f"neighbours([('a', 'b', {draw.randint(1, 5)}), ('b', 'a', {draw.randint(1, 5)})])"
        ),
        probe(2, f"degree({edges}, {other!r})"),
        probe(2, f"without({edges}, {other!r})"),
        probe(1, f"distances({edges}, {start!r})"),
        probe(1, f"distances({path}, {draw.choice('abcd')!r})"),
        probe(1, f"hops({edges}, {start!r})"),
        probe(1, f"groups({edges})"),
        probe(1, f"is_bridge_node({edges}, {start!r})"),
        probe(1, f"busiest({edges})"),
        probe(0, roads, f"roads.way({start!r}, {other!r})"),
        probe(0, roads, f"roads.changes({start!r}, {other!r})"),
        probe(0, roads, f"roads.within({start!r}, {draw.randint(1, 12)})"),
        probe(0, roads, "roads.islands()"),
        probe(0, roads, "roads.key_towns()"),
        probe(0, f"RoadMap({path}).within({draw.choice('abcd')!r}, {draw.randint(1, 6)})"),
        probe(0, f"meeting_point({edges}, {[start, other]})"),
        probe(0, f"meeting_point({path}, {draw.sample('abcd', 2)})"),
    ]


KIND = Kind(
    "roadmap",
    (("towns", _TOWNS), ("search", _SEARCH), ("edges", _EDGES)),
    _probes,
    {
        "RoadMap": ("Network", "Atlas"),
        "changes": ("stops", "transfers"),
        "within": ("nearby", "reachable"),
        "key_towns": ("cut_towns", "hubs"),
        "meeting_point": ("centre_of", "best_place"),
        "distances": ("shortest", "lengths_from"),
        "degree": ("num_neighbours", "valence"),
    },
)
