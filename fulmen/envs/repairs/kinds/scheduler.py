"""Queues: a heap, a queue of jobs, and a scheduler."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_HEAP = '''"""A heap: a list in which no item is smaller than its parent."""


def push(heap, item):
    """Add an item to a heap."""
    heap.append(item)
    place = len(heap) - 1
    while place > 0:
        parent = (place - 1) // 2
        if heap[parent] <= heap[place]:
            break
        heap[parent], heap[place] = heap[place], heap[parent]
        place = parent


def pop(heap):
    """Take the smallest item out of a heap and return it; IndexError if it is empty."""
    last = heap.pop()
    if not heap:
        return last
    smallest, heap[0] = heap[0], last
    place = 0
    while 2 * place + 1 < len(heap):
        child = 2 * place + 1
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[place] <= heap[child]:
            break
        heap[place], heap[child] = heap[child], heap[place]
        place = child
    return smallest


def is_heap(items):
    """Return True if no item is smaller than its parent."""
    return all(items[(place - 1) // 2] <= items[place] for place in range(1, len(items)))


def smallest(items, count):
    """Return the smallest items in order, so many of them or all there are."""
    heap = []
    for item in items:
        push(heap, item)
    return [pop(heap) for _ in range(min(count, len(items)))]
'''

_JOBS = '''"""A queue of jobs: urgent ones first, equals in the order they came."""

from .heap import pop, push, smallest


class JobQueue:
    """Jobs with an urgency; the smallest number is the most urgent."""

    def __init__(self):
        self.heap = []
        self.count = 0
        self.dropped = []

    def add(self, name, urgency=5):
        """Add a job."""
        push(self.heap, (urgency, self.count, name))
        self.count += 1

    def drop(self, name):
        """Drop all jobs of a name; return how many there were."""
        before = len(self)
        self.dropped.append(name)
        return before - len(self)

    def __len__(self):
        return sum(name not in self.dropped for _, _, name in self.heap)

    def next(self):
        """Take out the next job and return its name; None if there is none."""
        while self.heap:
            _, _, name = pop(self.heap)
            if name not in self.dropped:
                return name
        return None

    def ahead_of(self, name):
        """Return the names of the jobs that come before the first one of a name; all if none is."""
        found = []
        for _, _, other in smallest(self.heap, len(self.heap)):
            if other == name and name not in self.dropped:
                break
            if other not in self.dropped:
                found.append(other)
        return found


def drain(queue):
    """Take out all jobs and return their names in order."""
    names = []
    while (name := queue.next()) is not None:
        names.append(name)
    return names
'''

_SCHEDULER = '''"""A scheduler: jobs with lengths on several workers."""

from .jobs import JobQueue, drain


def order(jobs):
    """Return the names of jobs, pairs of a name and an urgency, in the order they are done."""
    queue = JobQueue()
    for name, urgency in jobs:
        queue.add(name, urgency)
    return drain(queue)


def assign(jobs, lengths, num_workers):
    """Return the names that each worker does: the next job goes to the one that is free first.

    The first of equal workers takes it.
    """
    busy = [0] * num_workers
    work = [[] for _ in range(num_workers)]
    for name in order(jobs):
        worker = busy.index(min(busy))
        work[worker].append(name)
        busy[worker] += lengths[name]
    return work


def finish_times(jobs, lengths):
    """Return when each job is done if one worker does all of them, from 0 on."""
    time, times = 0, {}
    for name in order(jobs):
        time += lengths[name]
        times[name] = time
    return times


def late(jobs, lengths, due):
    """Return the names of the jobs that one worker finishes too late, in order of names."""
    times = finish_times(jobs, lengths)
    return sorted(name for name in times if times[name] > due.get(name, times[name]))


def with_cancelled(jobs, cancelled):
    """Return the order without cancelled names, and how many jobs that leaves out."""
    queue = JobQueue()
    for name, urgency in jobs:
        queue.add(name, urgency)
    count = sum(queue.drop(name) for name in cancelled)
    return drain(queue), count
'''

_NAMES = ("mail", "build", "test", "copy", "scan", "print")


def _probes(draw: random.Random) -> list[Probe]:
    items = [draw.randint(0, 9) for _ in range(draw.randint(1, 8))]
    heaped = [0, *sorted(draw.randint(1, 9) for _ in range(draw.randint(0, 6)))]
    fill = ["heap = []", *(f"push(heap, {item})" for item in items)]
    names = draw.sample(_NAMES, draw.randint(3, 6))
    jobs = [(name, draw.choice((1, 2, 5, 5, 5, 9))) for name in names]
    lengths = {name: draw.randint(1, 9) for name in names}
    due = {name: draw.randint(1, 25) for name in names[:4]}
    queue = ["queue = JobQueue()", *(f"queue.add({name!r}, {level})" for name, level in jobs)]
    queue.append(f"queue.add({names[0]!r})")
    name = draw.choice(names)
    return [
        probe(2, *fill, "heap"),
        probe(2, *fill, "[pop(heap) for _ in range(len(heap))]"),
        probe(2, f"heap = {heaped}", "[pop(heap), heap]"),
        probe(2, "pop([])"),
        probe(2, f"is_heap({draw.choice((items, heaped))})"),
        probe(2, f"smallest({items}, {draw.randint(0, 9)})"),
        probe(1, *queue, "[queue.next(), queue.next(), len(queue)]"),
        probe(1, *queue, f"[queue.drop({name!r}), len(queue), queue.next()]"),
        probe(1, *queue, f"[queue.drop({name!r}), queue.drop({name!r})]"),
        probe(1, *queue, f"queue.ahead_of({name!r})"),
        probe(1, *queue, f"queue.drop({names[0]!r})", f"queue.ahead_of({name!r})"),
        probe(1, *queue, "drain(queue)"),
        probe(1, "queue = JobQueue()", "[queue.next(), len(queue), queue.drop('x')]"),
        probe(0, f"order({jobs})"),
        probe(0, f"assign({jobs}, {lengths}, {draw.randint(1, 3)})"),
        probe(0, f"finish_times({jobs}, {lengths})"),
        probe(0, f"late({jobs}, {lengths}, {due})"),
        probe(0, f"with_cancelled({jobs}, {draw.sample(_NAMES, 2)})"),
    ]


KIND = Kind(
    "scheduler",
    (("scheduler", _SCHEDULER), ("jobs", _JOBS), ("heap", _HEAP)),
    _probes,
    {
        "JobQueue": ("WaitingLine", "Inbox"),
        "ahead_of": ("preceding", "in_front_of"),
        "drain": ("take_all", "empty_out"),
        "drop": ("cancel", "remove"),
        "assign": ("distribute", "share_work"),
        "finish_times": ("end_times", "done_at"),
        "late": ("overdue", "missed"),
        "smallest": ("lowest", "least"),
        "is_heap": ("is_ordered", "heap_holds"),
        "urgency": ("priority", "rank"),
    },
)
