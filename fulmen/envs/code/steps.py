"""Steps: small changes of values, in words and in Python."""

from random import Random
from typing import Final

from fulmen.envs.code.problem import Step

_DIGITS: Final = "sum(int(digit) for digit in str(abs({})))"


def _keeps_numbers(draw: Random) -> list[tuple[str, str]]:
    bound, divisor = draw.randint(0, 20), draw.randint(3, 5)
    return [
        ("that are even", "n % 2 == 0"),
        ("that are odd", "n % 2 == 1"),
        (f"that are larger than {bound}", f"n > {bound}"),
        (f"that are smaller than {bound}", f"n < {bound}"),
        (f"that {divisor} does not divide", f"n % {divisor} != 0"),
    ]


def _changes_of_numbers(draw: Random) -> list[tuple[str, str]]:
    added, factor, divisor = draw.randint(2, 9), draw.randint(2, 5), draw.randint(5, 9)
    return [
        (f"Add {added} to every number.", f"n + {added}"),
        (f"Multiply every number by {factor}.", f"n * {factor}"),
        ("Replace every number by its square.", "n * n"),
        (f"Subtract every number from {added * 5}.", f"{added * 5} - n"),
        (
            f"Replace every number by what is left (0 to {divisor - 1}) when {divisor} divides it.",
            f"n % {divisor}",
        ),
        (
            "Replace every number by the sum of its decimal digits, without regard to its sign.",
            _DIGITS.format("n"),
        ),
    ]


def numbers_to_numbers(draw: Random) -> Step:
    """Return a step that changes a list of numbers."""
    kept, condition = draw.choice(_keeps_numbers(draw))
    changed, value = draw.choice(_changes_of_numbers(draw))
    dropped = draw.randint(1, 2)
    choices = [
        (f"Keep only the numbers {kept}.", f"[n for n in {{x}} if {condition}]"),
        (f"Keep only the numbers {kept}.", f"[n for n in {{x}} if {condition}]"),
        (changed, f"[{value} for n in {{x}}]"),
        (changed, f"[{value} for n in {{x}}]"),
        (
            "Of numbers that occur more than once keep only the first.",
            "list(dict.fromkeys({x}))",
        ),
        ("Turn the list around, so that the last comes first.", "{x}[::-1]"),
        ("Sort the numbers, the smallest first.", "sorted({x})"),
        ("Sort the numbers, the largest first.", "sorted({x}, reverse=True)"),
        (
            "Keep every second number only: the first, the third, and so on.",
            "{x}[::2]",
        ),
        (
            f"Leave out the first {'number' if dropped == 1 else f'{dropped} numbers'}; of a "
            "shorter list nothing is left.",
            f"{{x}}[{dropped}:]",
        ),
        (
            "Replace the list by the differences of neighbours: the second number minus the "
            "first, the third minus the second, and so on. Of one number or none nothing is left.",
            "[b - a for a, b in zip({x}, {x}[1:])]",
        ),
        (
            "Replace every number by the sum of all numbers up to and with it.",
            "[sum({x}[: place + 1]) for place in range(len({x}))]",
        ),
    ]
    words, expression = draw.choice(choices)
    return Step("numbers", "numbers", words, expression)


def _numbers_to_number(draw: Random) -> Step:
    divisor = draw.choice((97, 101, 997, 1009))
    words, expression = draw.choice(
        [
            ("Take the sum of the numbers; of none it is 0.", "sum({x})"),
            ("Take the largest number; of none it is 0.", "max({x}, default=0)"),
            ("Take the smallest number; of none it is 0.", "min({x}, default=0)"),
            ("Take the number of different numbers.", "len(set({x}))"),
            (
                "Take the largest number minus the smallest one; of none it is 0.",
                "max({x}, default=0) - min({x}, default=0)",
            ),
            (
                "Add and subtract by turns: the first number, minus the second, plus the third, "
                "and so on; of none it is 0.",
                "sum({x}[::2]) - sum({x}[1::2])",
            ),
            (
                "Multiply each number by its place, counted from 1, and add all that up; take "
                f"what is left (0 to {divisor - 1}) when {divisor} divides the sum.",
                f"sum(p * n for p, n in enumerate({{x}}, start=1)) % {divisor}",
            ),
        ]
    )
    return Step("numbers", "number", words, expression)


def _numbers_to_text(draw: Random) -> Step:
    mark, name = draw.choice((("-", "a hyphen"), (",", "a comma"), ("/", "a slash")))
    return Step(
        "numbers",
        "text",
        f"Write the numbers one after the other as a text, with {name} between them.",
        f'"{mark}".join(map(str, {{x}}))',
    )


def words_to_words(draw: Random) -> Step:
    """Return a step that changes a list of words."""
    size, letter = draw.randint(2, 3), draw.choice("abcde")
    words, expression = draw.choice(
        [
            (
                f"Keep only the words that have more than {size} letters.",
                f"[w for w in {{x}} if len(w) > {size}]",
            ),
            (
                f"Leave out the words that have the letter {letter}.",
                f'[w for w in {{x}} if "{letter}" not in w]',
            ),
            (
                f"Keep only the words that have the letter {letter}.",
                f'[w for w in {{x}} if "{letter}" in w]',
            ),
            ("Write every word backward.", "[w[::-1] for w in {x}]"),
            ("Sort the words by the alphabet.", "sorted({x})"),
            (
                "Sort the words by length, the shortest first, and those of one length by the "
                "alphabet.",
                "sorted({x}, key=lambda w: (len(w), w))",
            ),
            ("Turn the list around, so that the last comes first.", "{x}[::-1]"),
            ("Of words that occur more than once keep only the first.", "list(dict.fromkeys({x}))"),
            (
                "Move the first letter of every word to its end.",
                "[w[1:] + w[:1] for w in {x}]",
            ),
        ]
    )
    return Step("words", "words", words, expression)


def _words_to_other(draw: Random) -> Step:
    gives, words, expression = draw.choice(
        [
            ("numbers", "Replace every word by its number of letters.", "[len(w) for w in {x}]"),
            (
                "text",
                "Join the first letters of the words to a text.",
                '"".join(w[0] for w in {x})',
            ),
            ("text", "Join the words to a text, with a hyphen between them.", '"-".join({x})'),
            (
                "counts",
                "Count how many of the words begin with each letter. Letters with which no word "
                "begins are left out.",
                "{letter: sum(w[0] == letter for w in {x}) for letter in {w[0] for w in {x}}}",
            ),
        ]
    )
    return Step("words", gives, words, expression)


def text_to_text(draw: Random) -> Step:
    """Return a step that changes a text."""
    letter, other = draw.sample("abcde", 2)
    words, expression = draw.choice(
        [
            ("Write the text backward.", "{x}[::-1]"),
            ("Make all letters large.", "{x}.upper()"),
            (
                "Leave out all vowels (a, e, i, o, u).",
                '"".join(c for c in {x} if c not in "aeiou")',
            ),
            ("Write every character twice.", '"".join(c + c for c in {x})'),
            (
                "Of equal characters that stand side by side keep only the first.",
                '"".join(c for p, c in enumerate({x}) if p == 0 or {x}[p - 1] != c)',
            ),
            (f"Replace every {letter} by {other}.", f'{{x}}.replace("{letter}", "{other}")'),
            (
                "Keep every second character only: the first, the third, and so on.",
                "{x}[::2]",
            ),
            ("Move the first three characters to the end.", "{x}[3:] + {x}[:3]"),
        ]
    )
    return Step("text", "text", words, expression)


def _text_to_other(draw: Random) -> Step:
    gives, words, expression = draw.choice(
        [
            ("number", "Count the different characters of the text.", "len(set({x}))"),
            ("number", "Take the length of the text.", "len({x})"),
            (
                "number",
                "Count the places at which a character is the same as the one before.",
                "sum(a == b for a, b in zip({x}, {x}[1:]))",
            ),
            (
                "counts",
                "Count how often each character occurs.",
                "{c: {x}.count(c) for c in set({x})}",
            ),
        ]
    )
    return Step("text", gives, words, expression)


def _number_to_other(draw: Random) -> Step:
    factor, added, divisor = draw.randint(2, 9), draw.randint(1, 50), draw.choice((89, 103, 211))
    gives, words, expression = draw.choice(
        [
            (
                "number",
                f"Multiply the number by {factor} and add {added}.",
                f"{{x}} * {factor} + {added}",
            ),
            (
                "number",
                f"Take the square of the number, and what is left of that (0 to {divisor - 1}) "
                f"when {divisor} "
                "divides it.",
                f"{{x}} * {{x}} % {divisor}",
            ),
            ("number", f"Subtract the number from {added * 10}.", f"{added * 10} - {{x}}"),
            (
                "text",
                "Write the number in binary, without regard to its sign and without anything "
                "before the "
                "first digit.",
                'format(abs({x}), "b")',
            ),
        ]
    )
    return Step("number", gives, words, expression)


def _counts_to_other(draw: Random) -> Step:
    bound = draw.randint(2, 4)
    gives, words, expression = draw.choice(
        [
            (
                "counts",
                f"Of the dictionary keep only the keys whose number is at least {bound}.",
                f"{{key: n for key, n in {{x}}.items() if n >= {bound}}}",
            ),
            (
                "counts",
                f"Multiply every number of the dictionary by {bound}.",
                f"{{key: n * {bound} for key, n in {{x}}.items()}}",
            ),
            (
                "words",
                "Make a list of the keys of the dictionary, those with the largest number "
                "first, and those of one "
                "number in the order in which Python sorts texts.",
                "sorted({x}, key=lambda key: (-{x}[key], key))",
            ),
            (
                "numbers",
                "Make a list of the numbers of the dictionary, in the order in which Python "
                "sorts their keys.",
                "[{x}[key] for key in sorted({x})]",
            ),
            (
                "number",
                "Take the largest number of the dictionary; of none it is 0.",
                "max({x}.values(), default=0)",
            ),
        ]
    )
    return Step("counts", gives, words, expression)


def _rows_to_other(draw: Random) -> Step:
    gives, words, expression = draw.choice(
        [
            ("numbers", "Replace every inner list by its sum.", "[sum(row) for row in {x}]"),
            (
                "numbers",
                "Replace every inner list by its last number minus its first one.",
                "[row[-1] - row[0] for row in {x}]",
            ),
            ("rows", "Turn every inner list around.", "[row[::-1] for row in {x}]"),
            (
                "rows",
                "Sort the inner lists by their last number, the largest first; those that have the "
                "same one stay in their order.",
                "sorted({x}, key=lambda row: -row[-1])",
            ),
            ("rows", "Turn the outer list around, so that the last comes first.", "{x}[::-1]"),
            (
                "numbers",
                "Make one list of all numbers, those of the first inner list first.",
                "[n for row in {x} for n in row]",
            ),
        ]
    )
    return Step("rows", gives, words, expression)


def step_before(form: str, draw: Random) -> Step | None:
    """Return a step that leaves a value in its form; None for forms that have none."""
    make = {"numbers": numbers_to_numbers, "words": words_to_words, "text": text_to_text}.get(form)
    return make and make(draw)


def step_after(form: str, draw: Random) -> Step | None:
    """Return a step for a value of a form; None for forms that have none."""
    makers = {
        "numbers": (numbers_to_numbers, numbers_to_numbers, _numbers_to_number, _numbers_to_text),
        "words": (words_to_words, _words_to_other),
        "text": (text_to_text, text_to_text, _text_to_other),
        "number": (_number_to_other,),
        "counts": (_counts_to_other,),
        "rows": (_rows_to_other,),
    }
    return draw.choice(makers[form])(draw) if form in makers else None
