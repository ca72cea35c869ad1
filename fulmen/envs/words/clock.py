"""Stories of events in a day, each so long before or after another one; the answer is a time."""

from itertools import pairwise
from random import Random
from typing import Final

_EVENTS: Final = (
    *("breakfast", "lunch", "dinner", "the concert", "the match", "the parade", "the first bus"),
    *("the last bus", "the meeting", "the phone call", "the lesson", "the fire drill"),
    *("the boat trip", "the film", "the speech", "the race"),
)
_GIVEN: Final = (
    "{Old} is at {time}.",
    "It is known that {old} is at {time}.",
    "The clock shows {time} at {old}.",
)
_APART: Final = (
    "{Late} is {span} after {early}.",
    "{Early} is {span} before {late}.",
    "From {early} to {late} it is {span}.",
    "{Late} has to wait until {early} is {span} past.",
    "{Early} was {span} ago when it is time for {late}.",
)
_ROUNDS: Final = (
    "Between {early} and {late}, in this order, there are {a} rounds of {b} minutes each.",
    "{Early} is followed by {a} songs of {b} minutes each, and then by {late}.",
    "{Late} comes after {a} times {b} minutes of rest that begin at {early}.",
)
_ASKED: Final = (
    "At what time is {new}?",
    "What does the clock show at {new}?",
    "Find the time of {new}.",
)
_DAY: Final = 24 * 60


def clock_story(draw: Random, num_steps: int, level: int) -> tuple[str, int]:
    """Return a story of so many steps, and the minutes from midnight to the time that is asked."""
    events = draw.sample(_EVENTS, num_steps + 1)
    step = 5 if level <= 2 else 1
    minutes = draw.randrange(6 * 60, 20 * 60, step)
    sentences = [_say(draw, _GIVEN, old=events[0], time=written_time(minutes))]
    for old, new in pairwise(events):
        rounds, each = draw.randint(2, 6), draw.randrange(5, 30, step)
        has_rounds = draw.random() < 0.3
        span = rounds * each if has_rounds else draw.randrange(10, 60 + 40 * level, step)
        is_later = draw.random() < 0.5
        if not 0 <= minutes + (span if is_later else -span) < _DAY:
            is_later = not is_later
        minutes += span if is_later else -span
        early, late = (old, new) if is_later else (new, old)
        if has_rounds:
            said = _say(draw, _ROUNDS, early=early, late=late, a=str(rounds), b=str(each))
        else:
            said = _say(draw, _APART, early=early, late=late, span=_span(draw, span, level))
        sentences.append(said)
    return " ".join([*sentences, _say(draw, _ASKED, new=events[-1])]), minutes


def written_time(minutes: int) -> str:
    """Return a time of the day as HH:MM."""
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _span(draw: Random, minutes: int, level: int) -> str:
    hours, rest = divmod(minutes, 60)
    if level >= 4 and rest in (15, 30, 45):
        part = {15: "1/4", 30: "1/2", 45: "3/4"}[rest]
        return f"{hours} {part} hours" if hours else f"{part} of an hour"
    if hours == 0 or draw.random() < 0.5:
        return f"{minutes} minutes"
    said = "1 hour" if hours == 1 else f"{hours} hours"
    return f"{said} and {rest} minutes" if rest > 1 else f"{minutes} minutes"


def _say(draw: Random, ways: tuple[str, ...], **words: str) -> str:
    first = {word.capitalize(): text[0].upper() + text[1:] for word, text in words.items()}
    return draw.choice(ways).format(**words, **first)
