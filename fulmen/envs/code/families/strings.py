"""Problems with texts and words."""

from random import Random
from typing import Any, Final

from fulmen.envs.code import drawing
from fulmen.envs.code.problem import Family, Input, Problem

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_TEXT: Final = (Input("text", "text", "small letters only"),)
_WORDS: Final = (Input("words", "words", "small letters only"),)


def _draw_text(draw: Random, size: int) -> tuple[Any, ...]:
    return (drawing.text(draw, size),)


def _draw_wide_text(draw: Random, size: int) -> tuple[Any, ...]:
    return (drawing.text(draw, size, _LETTERS),)


def _draw_words(draw: Random, size: int) -> tuple[Any, ...]:
    return (drawing.words(draw, size),)


def _letter_shift(draw: Random, level: int) -> Problem:
    shift, other = draw.sample(range(2, 12), 2)
    words = (
        f"Replace every letter by the one {shift} places later in the alphabet; after z comes a "
        "again."
    )
    value = str(shift)
    if level >= 3:
        words = (
            f"Replace the letters at the first, third, fifth place and so on by the ones {shift} "
            f"places later in the alphabet, and all others by the ones {other} places earlier; "
            "after z comes a again, and before a comes z."
        )
        value = f"({shift} if place % 2 == 0 else -{other})"
    if level >= 5:
        words = (
            f"Replace the first letter by the one {shift} places later in the alphabet, the "
            f"second by the one {shift} + {other} places later, and so on: each time {other} "
            "places more. After z comes a again."
        )
        value = f"({shift} + {other} * place)"
    body = f"""
result = ""
for place, letter in enumerate(text):
    result += chr((ord(letter) - 97 + {value}) % 26 + 97)
"""
    return Problem("shift_letters", _TEXT, words, body, "text", _draw_wide_text)


def _runs(draw: Random, level: int) -> Problem:
    begin = """
runs = []
for letter in text:
    if runs and runs[-1][0] == letter:
        runs[-1][1] += 1
    else:
        runs.append([letter, 1])
"""
    if level <= 2:
        order, value = draw.choice(
            (
                ("its letter and its length", "letter + str(size)"),
                ("its length and its letter", "str(size) + letter"),
            )
        )
        example = "a3b1" if value.startswith("letter") else "3a1b"
        words = (
            f"A run is a letter that is repeated as often as can be. Write every run as {order}: "
            f"aaab becomes {example}."
        )
        end, gives = f'result = "".join({value} for letter, size in runs)', "text"
    elif level == 3:
        words = (
            "A run is a letter that is repeated as often as can be: aaab has a run of 3 and one "
            "of 1. List the lengths of all runs from left to right."
        )
        end, gives = "result = [size for _, size in runs]", "numbers"
    else:
        longest = draw.randint(2, 3)
        words = (
            f"Go through the text from left to right and build a new one: put each letter at its "
            f"end, and whenever the new text ends with {longest} equal letters, take these "
            f"{longest} away at once. The new text is what counts."
        )
        begin = 'result = ""'
        end = f"""\
for letter in text:
    result += letter
    if result.endswith(letter * {longest}):
        result = result[:-{longest}]"""
        gives = "text"
    letters = "abc" if level >= 4 else "abcd"

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (drawing.text(draw, size * 2, letters),)

    return Problem("letter_runs", _TEXT, words, f"{begin}\n{end}", gives, drawn, is_free=True)


def _mirrors(draw: Random, level: int) -> Problem:
    def mirrored(draw: Random, size: int) -> tuple[Any, ...]:
        half = drawing.text(draw, size, "ab")
        return (half[: size // 2] + half + half[::-1][1:] + drawing.text(draw, size // 2, "abc"),)

    def mirrored_words(draw: Random, size: int) -> tuple[Any, ...]:
        found = drawing.words(draw, size, "abc", 4)
        return (
            [
                one + one[::-1][draw.randint(0, 1) :] if draw.random() < 0.5 else one
                for one in found
            ],
        )

    if level <= 2:
        words = "Keep only the words that are the same when they are read backward."
        body = "result = [word for word in words if word == word[::-1]]"
        return Problem("mirror_words", _WORDS, words, body, "words", mirrored_words, is_free=True)
    least = draw.randint(2, 3)
    if level <= 3:
        words = (
            f"Count the pieces of the text (letters that stand side by side, {least} or more of "
            "them) that are the same when they are read backward. Equal pieces at different "
            "places count each."
        )
        body = f"""
result = 0
for begin in range(len(text)):
    for end in range(begin + {least}, len(text) + 1):
        piece = text[begin:end]
        result += piece == piece[::-1]
"""
        return Problem("mirror_pieces", _TEXT, words, body, "number", mirrored, is_free=True)
    words = (
        "Find the longest piece of the text (letters that stand side by side) that is the same "
        "when it is read backward; of several that are longest take the "
        f"{'first' if least == 2 else 'last'}."
    )
    sign = ">" if least == 2 else ">="
    body = f"""
result = ""
for begin in range(len(text)):
    for end in range(begin + 1, len(text) + 1):
        piece = text[begin:end]
        if piece == piece[::-1] and len(piece) {sign} len(result):
            result = piece
"""
    return Problem("longest_mirror", _TEXT, words, body, "text", mirrored, is_free=True)


def _word_counts(draw: Random, level: int) -> Problem:
    key, noun = draw.choice(
        (
            ("word[0]", "first letter"),
            ("word[-1]", "last letter"),
            ("word[:2]", "first two letters"),
        )
    )
    if level <= 2:
        words = f"Count the words by their {noun}: a dictionary from what words have to how many."
        if key == "word[:2]":
            words += " Of a word of one letter that letter counts."
        body = f"""
result = {{}}
for word in words:
    key = {key}
    result[key] = result.get(key, 0) + 1
"""
    elif level <= 3:
        words = (
            f"For every {noun} that words have, find how long the longest of these words is: a "
            "dictionary from what words have to a length."
        )
        if key == "word[:2]":
            words += " A word of one letter has that letter alone."
        body = f"""
result = {{}}
for word in words:
    key = {key}
    result[key] = max(result.get(key, 0), len(word))
"""
    else:
        least = draw.randint(1, 2)
        words = (
            f"Count in how many different words each letter occurs "
            f"{'once' if least == 1 else 'twice'} "
            "or more often. A word that is given several times counts once. Letters that occur "
            "so in no word are left out."
        )
        body = f"""
result = {{}}
for word in set(words):
    for letter in set(word):
        if word.count(letter) >= {least}:
            result[letter] = result.get(letter, 0) + 1
"""
    return Problem("count_words", _WORDS, words, body, "counts", _draw_words, is_free=True)


def _anagrams(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        found = drawing.words(draw, size, "abcd", 4)
        for place in range(size):
            if draw.random() < 0.4:
                letters = list(draw.choice(found))
                draw.shuffle(letters)
                found[place] = "".join(letters)
        return (found,)

    intro = (
        "Two words are mixed if one has the same letters as the other, each as often, in any order."
    )
    groups = """
groups = {}
for word in words:
    groups.setdefault("".join(sorted(word)), []).append(word)
"""
    if level <= 2:
        which, sign = draw.choice(
            (
                ("that are mixed with another one in the list", ">"),
                ("that are mixed with no other one in the list", "=="),
            )
        )
        words = f"{intro} Keep only the words {which}; an equal word counts as another one."
        end = f'result = [word for word in words if len(groups["".join(sorted(word))]) {sign} 1]'
        gives = "words"
    elif level <= 3:
        words = (
            f"{intro} Put together all words that are mixed with each other, equal ones too, and "
            "list how many are in each group, in the order in which a word of each comes first."
        )
        end, gives = "result = [len(group) for group in groups.values()]", "numbers"
    else:
        first, noun = draw.choice((("min", "first"), ("max", "last")))
        words = (
            f"{intro} Put together all words that are mixed with each other. Of every group that "
            f"has at least two different words, take the one that is {noun} by the alphabet. List "
            "them in the order in which a word of each group comes first."
        )
        end = f"result = [{first}(group) for group in groups.values() if len(set(group)) > 1]"
        gives = "words"
    return Problem("mixed_words", _WORDS, words, groups + end, gives, drawn, is_free=True)


def _rows_of_text(draw: Random, level: int) -> Problem:
    width = draw.randint(3, 5)
    words = (
        f"Write the text into rows of {width} letters (the last row may be shorter), and read it "
        "column by column: the first letter of every row, then the second of every row, and so on."
    )
    body = f"""
rows = [text[begin : begin + {width}] for begin in range(0, len(text), {width})]
"""
    if level >= 3:
        words = words.replace(
            ", and read",
            ". Turn every second row around: the second, the fourth, and so on. Then read",
        )
        body += "rows = [row[::-1] if place % 2 else row for place, row in enumerate(rows)]\n"
    if level >= 5:
        words += " The columns are read from the last to the first."
        order = f"reversed(range({width}))"
    else:
        order = f"range({width})"
    body += f"""
result = ""
for column in {order}:
    for row in rows:
        result += row[column : column + 1]
"""

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (drawing.text(draw, 2 * size, _LETTERS),)

    return Problem("read_columns", _TEXT, words, body, "text", drawn, is_free=True)


LETTER_SHIFT: Final = Family("letter_shift", _letter_shift)
LETTER_RUNS: Final = Family("letter_runs", _runs)
MIRRORS: Final = Family("mirrors", _mirrors)
WORD_COUNTS: Final = Family("word_counts", _word_counts)
ANAGRAMS: Final = Family("anagrams", _anagrams)
COLUMNS: Final = Family("columns", _rows_of_text)
