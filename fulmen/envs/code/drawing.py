"""Inputs of programs, drawn."""

from random import Random


def numbers(draw: Random, size: int, low: int = -20, high: int = 40) -> list[int]:
    """Return so many numbers, some of which are equal."""
    found = [draw.randint(low, high) for _ in range(size)]
    for place in range(1, size):
        if draw.random() < 0.2:
            found[place] = found[draw.randrange(place)]
    return found


def text(draw: Random, size: int, letters: str = "abcde") -> str:
    """Return a text of so many letters, with runs of equal ones."""
    found = ""
    while len(found) < size:
        found += draw.choice(letters) * draw.choice((1, 1, 1, 2, 3))
    return found[:size]


def words(draw: Random, size: int, letters: str = "abcdeilnrst", longest: int = 6) -> list[str]:
    """Return so many words, some of which are equal."""
    found: list[str] = []
    for _ in range(size):
        if found and draw.random() < 0.25:
            found.append(draw.choice(found))
        else:
            found.append("".join(draw.choice(letters) for _ in range(draw.randint(1, longest))))
    return found


def spans(draw: Random, size: int, high: int = 40) -> list[list[int]]:
    """Return so many pairs of a begin and a later end."""
    found = []
    for _ in range(size):
        begin = draw.randint(0, high)
        found.append([begin, begin + draw.randint(1, 9)])
    return found


def edges(draw: Random, num_nodes: int, count: int) -> list[list[int]]:
    """Return pairs of different nodes, no pair twice in either direction."""
    pairs = [[a, b] for a in range(num_nodes) for b in range(a + 1, num_nodes)]
    found = draw.sample(pairs, min(count, len(pairs)))
    return [pair if draw.random() < 0.5 else pair[::-1] for pair in found]
