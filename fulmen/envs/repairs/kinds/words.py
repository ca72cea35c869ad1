"""Text: words, counts of them, and a report."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_TOKENS = '''"""Words and sentences of a text."""


def words_of(text):
    """Return the words of a text in small letters; a word is letters with ' or - inside."""
    words, word = [], ""
    for char in text.lower() + " ":
        if char.isalpha() or (char in "'-" and word):
            word += char
        elif word:
            words.append(word.rstrip("'-"))
            word = ""
    return words


def sentences_of(text):
    """Return the sentences of a text that are not empty, without the . ! or ? at their end."""
    found, start = [], 0
    for place, char in enumerate(text):
        if char in ".!?":
            found.append(text[start:place].strip())
            start = place + 1
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def wrap(words, width):
    """Return lines of words with one space between, each as long as fits into the width.

    A word that is longer than the width has a line of its own.
    """
    lines = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def shorten(text, width):
    """Return the text if it fits into the width, else its beginning with "..." at the end."""
    if len(text) <= width:
        return text
    return text[: max(width - 3, 0)] + "..."
'''

_COUNTS = '''"""Counts of words and sentences."""

from .tokens import sentences_of, shorten, words_of, wrap


def frequencies(text):
    """Return how often each word stands in a text, the most frequent first, then by alphabet."""
    counts = {}
    for word in words_of(text):
        counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def longest_words(text, count):
    """Return so many different words of a text, the longest first, then by alphabet."""
    return sorted(frequencies(text), key=lambda word: (-len(word), word))[:count]


def words_per_sentence(text):
    """Return the numbers of words of the sentences, in their order."""
    return [len(words_of(sentence)) for sentence in sentences_of(text)]


def repeated(text):
    """Return the words that stand twice in a row, each time they do."""
    words = words_of(text)
    return [word for word, after in zip(words, words[1:]) if word == after]


def column(text, width):
    """Return the words of a text as lines of the width, filled with spaces on the right."""
    return [shorten(line, width).ljust(width) for line in wrap(words_of(text), width)]
'''

_REPORT = '''"""A report on a text."""

from .counts import column, frequencies, longest_words, repeated, words_per_sentence


def top(text, count, without=()):
    """Return the most frequent words of a text, so many of them, without some that do not count."""
    return [word for word in frequencies(text) if word not in without][:count]


def reading_level(text):
    """Return words a sentence, rounded down, plus the number of words of seven letters or more."""
    lengths = words_per_sentence(text)
    if not lengths:
        return 0
    hard = [word for word in longest_words(text, 1000) if len(word) >= 7]
    return sum(lengths) // len(lengths) + len(hard)


def remarks(text):
    """Return remarks on a text: words said twice, then sentences of more than eight words."""
    found = [f"twice: {word}" for word in repeated(text)]
    for number, length in enumerate(words_per_sentence(text), 1):
        if length > 8:
            found.append(f"sentence {number} has {length} words")
    return found


def two_columns(left, right, width):
    """Return lines with two texts side by side, " | " between them."""
    first, second = column(left, width), column(right, width)
    height = max(len(first), len(second))
    blank = " " * width
    first += [blank] * (height - len(first))
    second += [blank] * (height - len(second))
    return [f"{one} | {two}" for one, two in zip(first, second)]


def similarity(first, second):
    """Return the percent, rounded down, of the different words of both that both texts have."""
    one, two = frequencies(first), frequencies(second)
    both = sum(word in two for word in one)
    every = len(one) + len(two) - both
    return 100 * both // every if every else 100
'''

_WORDS = (
    *("the", "The", "the", "river", "old", "well-known", "don't", "bridge", "is", "is", "of"),
    *("mountains", "a", "green", "everything", "and", "small", "it's", "under", "yesterday"),
)


def _text(draw: random.Random, most: int = 24) -> str:
    text = ""
    for _ in range(draw.randint(1, most)):
        text += draw.choice(_WORDS) + draw.choice(
            (" ", " ", " ", " ", ", ", ". ", "! ", " - ", "? ")
        )
    return text.strip() if draw.random() < 0.7 else text + "."


def _probes(draw: random.Random) -> list[Probe]:
    text, other, short = _text(draw), _text(draw), _text(draw, 6)
    words = [draw.choice(_WORDS) for _ in range(draw.randint(0, 9))]
    width = draw.randint(4, 16)
    return [
        probe(2, f"words_of({short!r})"),
        probe(2, f"words_of({draw.choice(_WORDS) + draw.choice(('-', chr(39), '--', '.'))!r})"),
        probe(2, f"sentences_of({text!r})"),
        probe(2, f"wrap({words}, {width})"),
        probe(2, f"wrap(['ab', 'cd', 'e'], {draw.randint(1, 8)})"),
        probe(2, f"shorten({short!r}, {draw.randint(2, 30)})"),
        probe(2, f"shorten('{'x' * width}', {width + draw.randint(-1, 1)})"),
        probe(1, f"frequencies({text!r})"),
        probe(1, f"longest_words({text!r}, {draw.randint(0, 5)})"),
        probe(1, f"words_per_sentence({text!r})"),
        probe(1, f"repeated({text!r})"),
        probe(1, f"column({short!r}, {width})"),
        probe(
            0, f"top({text!r}, {draw.randint(1, 4)}, {tuple(draw.sample(('the', 'is', 'of'), 2))})"
        ),
        probe(0, f"reading_level({draw.choice(('', text, text))!r})"),
        probe(0, f"remarks({text.replace('. ', ' ') + ' is is'!r})"),
        probe(0, f"two_columns({short!r}, {_text(draw, 6)!r}, {width})"),
        probe(0, f"similarity({text!r}, {draw.choice((text, other, ''))!r})"),
    ]


KIND = Kind(
    "texts",
    (("report", _REPORT), ("counts", _COUNTS), ("tokens", _TOKENS)),
    _probes,
    {
        "frequencies": ("word_counts", "tally"),
        "longest_words": ("long_words", "by_length"),
        "repeated": ("doubled", "said_twice"),
        "reading_level": ("difficulty", "hardness"),
        "remarks": ("notes", "comments"),
        "similarity": ("likeness", "overlap"),
        "two_columns": ("side_by_side", "in_columns"),
        "words_of": ("split_words", "find_words"),
        "sentences_of": ("split_sentences", "find_sentences"),
        "shorten": ("cut", "abbreviate"),
    },
)
