"""sort, extreme and compare: numbers and words in their order."""

from random import Random
from typing import Final

from fulmen.envs.basics.letters import read_words
from fulmen.envs.basics.question import BasicKind, Question, read_value
from fulmen.envs.logic.words import WORDS

_SORT_NUMBERS: Final = (
    "Sort these numbers: {items}",
    "Sort {items}.",
    "Please put {items} in order.",
    "Order these numbers from smallest to largest: {items}",
    "Sortiere diese Zahlen: {items}",
    "Ordne {items} der Größe nach.",
)
_SORT_WORDS: Final = (
    "Sort these words: {items}",
    "Sort {items}.",
    "Put these words in alphabetical order: {items}",
    "Please sort the words {items} from A to Z.",
    "Sortiere diese Wörter: {items}",
    "Ordne {items} nach dem Alphabet.",
)
_LARGEST: Final = (
    "What is the largest of {items}?",
    "Which number is the largest: {items}",
    "Find the largest number: {items}",
    "What is the maximum of {items}?",
    "Was ist die größte Zahl: {items}",
    "Welche Zahl ist am größten: {items}",
)
_SMALLEST: Final = (
    "What is the smallest of {items}?",
    "Which number is the smallest: {items}",
    "Find the smallest number: {items}",
    "What is the minimum of {items}?",
    "Was ist die kleinste Zahl: {items}",
    "Welche Zahl ist am kleinsten: {items}",
)
_LARGER: Final = (
    "Which is larger, {a} or {b}?",
    "Which number is larger: {a} or {b}?",
    "What is more, {a} or {b}?",
    "Compare {a} and {b}. Which one is larger?",
    "Welche Zahl ist größer, {a} oder {b}?",
    "Was ist mehr, {a} oder {b}?",
)
_SMALLER: Final = (
    "Which is smaller, {a} or {b}?",
    "Which number is smaller: {a} or {b}?",
    "What is less, {a} or {b}?",
    "Compare {a} and {b}. Which one is smaller?",
    "Welche Zahl ist kleiner, {a} oder {b}?",
    "Was ist weniger, {a} oder {b}?",
)


def _sort(draw: Random) -> Question:
    if draw.random() < 0.3:
        return _sorted_words(draw)
    numbers = [draw.randint(0, 99) for _ in range(draw.randint(3, 6))]
    left, steps = list(numbers), []
    while left:
        smallest = min(left)
        steps.append(f"{' '.join(map(str, left))}>{smallest}")
        left.remove(smallest)
    text = draw.choice(_SORT_NUMBERS).format(items=_listed(numbers))
    return Question(text, "; ".join(steps), _listed(sorted(numbers)), read_words)


def _sorted_words(draw: Random) -> Question:
    """Return words with different first letters: what is left of these, then the first word."""
    short = [word for word in WORDS if len(word) <= 6]
    letters = draw.sample(sorted({word[0] for word in short}), draw.randint(3, 4))
    words = [draw.choice([word for word in short if word[0] == letter]) for letter in letters]
    left, steps = list(words), []
    while left:
        first = min(left)
        steps.append(f'{" ".join(word[0] for word in left)}>{first[0]}"{first}"')
        left.remove(first)
    shown, answer = (", ".join(f'"{word}"' for word in each) for each in (words, sorted(words)))
    text = draw.choice(_SORT_WORDS).format(items=shown)
    return Question(text, "; ".join(steps), answer, read_words)


def _extreme(draw: Random) -> Question:
    """Return a list whose largest or smallest number is asked for: each number is held against the
    best one before it."""
    is_largest = draw.random() < 0.5
    largest = draw.choice((99, 999))
    numbers = draw.sample(range(largest + 1), draw.randint(3, 6))
    best, steps = numbers[0], [str(numbers[0])]
    for number in numbers[1:]:
        sign = ">" if number > best else "<"
        better = max(best, number) if is_largest else min(best, number)
        steps.append(f"{number}{sign}{best}:{better}")
        best = better
    text = draw.choice(_LARGEST if is_largest else _SMALLEST).format(items=_listed(numbers))
    return Question(text, " ".join(steps), str(best), read_value)


def _compare(draw: Random) -> Question:
    """Return two numbers: their lengths, then their digits from the left up to the first
    difference."""
    a, b = _decimals(draw) if draw.random() < 0.4 else _wholes(draw)
    is_larger_asked = draw.random() < 0.5
    whole_a, _, part_a = a.partition(".")
    whole_b, _, part_b = b.partition(".")
    steps = [f"{len(whole_a)}{_sign(len(whole_a), len(whole_b))}{len(whole_b)}"]
    if len(whole_a) == len(whole_b):
        places = max(len(part_a), len(part_b))
        digits_a, digits_b = (
            f"{whole}{part:0<{places}}" for whole, part in ((whole_a, part_a), (whole_b, part_b))
        )
        steps.append(":")
        for x, y in zip(digits_a, digits_b, strict=True):
            steps.append(f"{x}{_sign(int(x), int(y))}{y}")
            if x != y:
                break
    is_a = (float(a) > float(b)) == is_larger_asked
    sign = ">" if float(a) > float(b) else "<"
    text = draw.choice(_LARGER if is_larger_asked else _SMALLER).format(a=a, b=b)
    return Question(text, f"{' '.join(steps)}; {a}{sign}{b}", a if is_a else b, read_value)


def _wholes(draw: Random) -> tuple[str, str]:
    """Return two numbers of one to six digits that are often of one length, or begin alike."""
    size = draw.randint(1, 6)
    a = draw.randrange(10 ** (size - 1) if size > 1 else 0, 10**size)
    while True:
        if draw.random() < 0.4:
            b = draw.randrange(10 ** draw.randint(1, 6))
        else:
            scale = 10 ** draw.randint(1, size)
            b = a - a % scale + draw.randrange(scale)
        if a != b:
            return (str(a), str(b))


def _decimals(draw: Random) -> tuple[str, str]:
    """Return two decimal numbers; the longer one is as often the smaller one."""
    while True:
        whole = draw.randrange(100)
        other = whole if draw.random() < 0.7 else draw.randrange(100)
        parts = [
            f"{draw.randrange(10**places):0{places}}"
            for places in (draw.randint(1, 3), draw.randint(1, 3))
        ]
        a, b = f"{whole}.{parts[0]}", f"{other}.{parts[1]}"
        if float(a) != float(b):
            return a, b


def _sign(a: int, b: int) -> str:
    return "<" if a < b else ">" if a > b else "="


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


ORDERS: Final = (
    BasicKind("sort", _sort),
    BasicKind("extreme", _extreme, chance=0.06),
    BasicKind("compare", _compare, chance=0.03),
)
