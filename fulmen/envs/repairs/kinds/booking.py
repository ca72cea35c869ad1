"""Spans of time: clock times, spans, and rooms that are booked."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_CLOCK = '''"""Times of a day, held as minutes."""


def minutes(text):
    """Return the minutes of "9:05" or "24:00" since midnight; ValueError for anything else."""
    hour, colon, minute = text.partition(":")
    if not (hour.isdigit() and minute.isdigit() and len(minute) == 2):
        raise ValueError("no time")
    total = int(hour) * 60 + int(minute)
    if int(minute) > 59 or total > 24 * 60:
        raise ValueError("no time of a day")
    return total


def clock(total):
    """Return minutes as "09:05"."""
    hour, minute = divmod(total, 60)
    return f"{hour:02d}:{minute:02d}"


def overlap(first, second):
    """Return the minutes that two spans, pairs of minutes, have in common."""
    return max(0, min(first[1], second[1]) - max(first[0], second[0]))


def round_up(total, step):
    """Return minutes rounded up to the next multiple of a step."""
    return (total + step - 1) // step * step


def long_form(total):
    """Return a length as "2 h 5 min", "2 h" or "5 min"."""
    hour, minute = divmod(total, 60)
    parts = []
    if hour:
        parts.append(f"{hour} h")
    if minute or not hour:
        parts.append(f"{minute} min")
    return " ".join(parts)
'''

_SPANS = '''"""Spans of time such as "9:00-10:30"."""

from .clock import clock, long_form, minutes, overlap, round_up


def read_span(text):
    """Return the pair of minutes of a span; ValueError if it does not end after it begins."""
    begin, _, end = text.partition("-")
    span = minutes(begin), minutes(end)
    if span[0] >= span[1]:
        raise ValueError("a span must end after it begins")
    return span


def show_span(span):
    """Return a span as "09:00-10:30"."""
    return f"{clock(span[0])}-{clock(span[1])}"


def merge(spans):
    """Return spans in order, with those made one that overlap or touch."""
    merged = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def gaps(spans, day):
    """Return the spans of a day, itself a span, that no span takes."""
    free, place = [], day[0]
    for begin, end in merge(spans):
        if begin > place:
            free.append((place, min(begin, day[1])))
        place = max(place, end)
    if place < day[1]:
        free.append((place, day[1]))
    return free


def clashes(spans):
    """Return the pairs of places in a list of spans that have time in common."""
    return [
        (one, two)
        for one in range(len(spans))
        for two in range(one + 1, len(spans))
        if overlap(spans[one], spans[two]) > 0
    ]


def billed(text, step):
    """Return how long a span such as "9:00-9:50" is billed, rounded up to a step, as a text."""
    begin, end = read_span(text)
    return long_form(round_up(end - begin, step))
'''

_ROOMS = '''"""Rooms and their bookings."""

from .spans import billed, clashes, gaps, merge, read_span, show_span


class Room:
    """A room that is open on a span of the day."""

    def __init__(self, opening):
        self.opening = read_span(opening)
        self.booked = []

    def book(self, text):
        """Book a span; False, and nothing happens, if it is taken or outside the opening."""
        span = read_span(text)
        if span[0] < self.opening[0] or span[1] > self.opening[1]:
            return False
        if clashes([*self.booked, span]):
            return False
        self.booked.append(span)
        return True

    def free(self):
        """Return the free spans as texts."""
        return [show_span(span) for span in gaps(self.booked, self.opening)]

    def first_free(self, length):
        """Return the first span of so many minutes that is free, None if there is none."""
        for begin, end in gaps(self.booked, self.opening):
            if end - begin >= length:
                return show_span((begin, begin + length))
        return None

    def busy(self):
        """Return the times without a pause, as texts."""
        return [show_span(span) for span in merge(self.booked)]


def bill(texts, step):
    """Return a line for each span: the span, and how long it is billed."""
    return [f"{text}: {billed(text, step)}" for text in sorted(texts, key=read_span)]


def num_clashes(texts):
    """Return how many of the spans clash with at least one other."""
    pairs = clashes([read_span(text) for text in texts])
    return len({place for pair in pairs for place in pair})
'''


def _time(draw: random.Random) -> int:
    return 5 * draw.randint(96, 216)


def _span(draw: random.Random) -> str:
    begin = _time(draw)
    end = begin + draw.choice((5, 25, 30, 60, 120))
    return f"{begin // 60}:{begin % 60:02d}-{end // 60}:{end % 60:02d}"


def _pair(draw: random.Random) -> tuple[int, int]:
    begin = draw.randint(0, 20)
    return begin, begin + draw.randint(1, 8)


def _probes(draw: random.Random) -> list[Probe]:
    wrong = draw.choice(("9", "9:5", "x:00", "24:01", "9:60", "25:00", ":10"))
    pairs = [_pair(draw) for _ in range(draw.randint(1, 5))]
    spans = [_span(draw) for _ in range(5)]
    room = ["room = Room('9:00-17:30')"]
    books = [f"room.book({one!r})" for one in spans]
    total = draw.choice((draw.randint(0, 59), 60 * draw.randint(0, 9), draw.randint(60, 900)))
    return [
        probe(2, f"minutes('{draw.randint(0, 23)}:{draw.randint(0, 59):02d}')"),
        probe(2, f"minutes({draw.choice((wrong, wrong, '24:00', '0:00'))!r})"),
        probe(2, f"clock({total})"),
        probe(2, f"overlap({_pair(draw)}, {_pair(draw)})"),
        probe(2, f"round_up({draw.choice((0, 15, 30, total))}, {draw.choice((5, 15, 30))})"),
        probe(2, f"long_form({total})"),
        probe(1, f"read_span({spans[0]!r})"),
        probe(1, f"read_span({draw.choice(('9:00-9:00', '10:00-9:00', '9:00'))!r})"),
        probe(1, f"show_span(({total}, {total + 35}))"),
        probe(1, f"merge({pairs})"),
        probe(1, f"merge([(1, 3), (3, {draw.randint(4, 6)}), (8, 9), (2, 5)])"),
        probe(1, f"gaps({pairs}, (2, 24))"),
        probe(1, f"clashes({pairs})"),
        probe(1, f"billed({spans[1]!r}, {draw.choice((10, 15, 30))})"),
        probe(0, *room, f"[{', '.join(books)}]"),
        probe(0, *room, *books, "room.free()"),
        probe(0, *room, *books, f"room.first_free({draw.choice((5, 30, 45, 90, 600))})"),
        probe(0, *room, *books, "room.busy()"),
        probe(0, *room, "[room.book('9:00-9:30'), room.book('9:30-10:00'), room.busy()]"),
        probe(0, f"bill({spans[:3]}, {draw.choice((15, 30, 60))})"),
        probe(0, f"num_clashes({spans})"),
    ]


KIND = Kind(
    "booking",
    (("rooms", _ROOMS), ("spans", _SPANS), ("clock", _CLOCK)),
    _probes,
    {
        "Room": ("Court", "Desk"),
        "book": ("reserve", "take"),
        "first_free": ("next_free", "earliest"),
        "busy": ("occupied", "taken"),
        "bill": ("charges", "invoice"),
        "num_clashes": ("count_clashes", "conflicts_in"),
        "clashes": ("conflicts", "collisions"),
        "gaps": ("free_spans", "holes"),
        "round_up": ("ceil_to", "up_to_step"),
    },
)
