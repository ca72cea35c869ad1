"""Problems with lists of numbers."""

from random import Random
from typing import Any, Final

from fulmen.envs.code import drawing
from fulmen.envs.code.problem import Family, Input, Problem

_NUMBERS: Final = (Input("numbers", "numbers"),)


def _draw_numbers(draw: Random, size: int) -> tuple[Any, ...]:
    return (drawing.numbers(draw, size),)


def _windows(draw: Random, level: int) -> Problem:
    size = draw.randint(2, 4)
    name, value = draw.choice(
        (
            ("the sum", "sum(window)"),
            ("the largest number", "max(window)"),
            ("the smallest number", "min(window)"),
            ("the largest number minus the smallest", "max(window) - min(window)"),
        )
    )
    step, words = (
        1,
        (
            f"For every {size} numbers that stand side by side take {name}: first of the numbers "
            f"1 to {size}, then of 2 to {size + 1}, and so on. Where there are fewer than {size} "
            "numbers, the list is empty."
        ),
    )
    if level >= 3:
        step = draw.randint(2, 3)
        words = (
            f"Take {name} of the numbers 1 to {size}, then of {step + 1} to {step + size}, and so "
            f"on, each time {step} further, as long as there are {size} numbers."
        )
    inputs: tuple[Input, ...] = _NUMBERS
    drawn = _draw_numbers
    if level >= 4:
        inputs = (*_NUMBERS, Input("size", "number", "1 or more"))
        words = (
            f"Take {name} of the first `size` numbers, then of as many that begin {step} places "
            f"further, and so on, each time {step} further. At the end of the list there may be "
            "fewer numbers, but never none."
        )

        def drawn(draw: Random, size: int) -> tuple[Any, ...]:
            return drawing.numbers(draw, size), draw.randint(1, 5)

        body = f"""
result = []
for begin in range(0, len(numbers), {step}):
    window = numbers[begin : begin + size]
    result.append({value})
"""
    else:
        body = f"""
result = []
for begin in range(0, len(numbers) - {size - 1}, {step}):
    window = numbers[begin : begin + {size}]
    result.append({value})
"""
    return Problem("windows", inputs, words, body, "numbers", drawn, is_free=True)


def _records(draw: Random, level: int) -> Problem:
    name, sign = draw.choice((("larger", ">"), ("smaller", "<")))
    if level <= 2:
        words = f"Keep the first number, and every one that is {name} than all before it."
        body = f"""
result = []
for number in numbers:
    if all(number {sign} other for other in result):
        result.append(number)
"""
    elif level == 3:
        words = (
            f"For every number find how many of the numbers before it are {name} than it is, and "
            "list these counts in order."
        )
        body = f"""
result = []
for place, number in enumerate(numbers):
    result.append(sum(other {sign} number for other in numbers[:place]))
"""
    else:
        words = (
            f"Replace every number by the nearest one after it that is {name}; where there is "
            f"none, by {'itself' if level == 4 else 'the distance, in places, to the last number'}."
        )
        other = "number" if level == 4 else "len(numbers) - 1 - place"
        body = f"""
result = []
for place, number in enumerate(numbers):
    later = [other for other in numbers[place + 1 :] if other {sign} number]
    result.append(later[0] if later else {other})
"""
    return Problem("compare_numbers", _NUMBERS, words, body, "numbers", _draw_numbers, is_free=True)


def _pair_sums(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        found = drawing.numbers(draw, size + 2, -4, 9)
        one, other = draw.sample(found, 2)
        return found, one + other

    inputs = (*_NUMBERS, Input("target", "number"))
    if level <= 2:
        words = (
            "Count the pairs of places whose numbers add up to `target`. A place is not paired "
            "with itself, and no pair is counted twice."
        )
        test = "one + other == target"
    elif level == 3:
        factor = draw.randint(2, 3)
        words = (
            f"Count the pairs of places, an earlier and a later one, of which the earlier number "
            f"plus {factor} times the later number is at most `target`."
        )
        test = f"one + {factor} * other <= target"
    else:
        words = (
            "Count the triples of different places whose numbers add up to `target`; no triple is "
            "counted twice."
            if level == 4
            else "Count the different sums of three numbers at different places that are less than "
            "`target`."
        )
        body = """
sums = []
for first in range(len(numbers)):
    for second in range(first + 1, len(numbers)):
        for third in range(second + 1, len(numbers)):
            sums.append(numbers[first] + numbers[second] + numbers[third])
"""
        body += (
            "result = sums.count(target)"
            if level == 4
            else "result = len({one for one in sums if one < target})"
        )
        return Problem("count_triples", inputs, words, body, "number", drawn, is_free=level == 5)
    body = f"""
result = 0
for place, one in enumerate(numbers):
    for other in numbers[place + 1 :]:
        if {test}:
            result += 1
"""
    return Problem("count_pairs", inputs, words, body, "number", drawn)


def _order_by(draw: Random, level: int) -> Problem:
    keys = [
        ("distance from 0", "abs(n)"),
        ("last decimal digit (without regard to their sign)", "abs(n) % 10"),
        ("sum of decimal digits (without regard to their sign)", "sum(map(int, str(abs(n))))"),
        ("distance from 10", "abs(n - 10)"),
        ("number of decimal digits (without regard to their sign)", "len(str(abs(n)))"),
    ]
    (name, key), (other, second) = draw.sample(keys, 2)
    if level <= 2:
        words = (
            f"Sort the numbers by their {name}, the smallest first; those that are equal in that "
            "stay in their order."
        )
        order = key
    elif level <= 3:
        words = (
            f"Sort the numbers by their {name}, the smallest first, and those that are equal in "
            "that by size, the largest first."
        )
        order = f"({key}, -n)"
    else:
        words = (
            f"Sort the numbers by their {name}, the largest first; those that are equal in that by "
            f"their {other}, the smallest first; and those that are equal in both by size, the "
            "smallest first."
        )
        order = f"(-{key}, {second}, n)"

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (drawing.numbers(draw, size, -120, 120),)

    body = f"result = sorted(numbers, key=lambda n: {order})"
    return Problem("sort_numbers", _NUMBERS, words, body, "numbers", drawn, is_free=True)


def _rises(draw: Random, level: int) -> Problem:
    name, sign = draw.choice((("larger", ">"), ("smaller", "<")))
    if level <= 2:
        words = (
            f"Find how many numbers the longest piece of the list has, side by side, in which each "
            f"number is {name} than the one before. Of an empty list it is 0."
        )
        body = f"""
result = size = 0
for place, number in enumerate(numbers):
    size = size + 1 if place and number {sign} numbers[place - 1] else 1
    result = max(result, size)
"""
        gives = "number"
    elif level == 3:
        words = (
            f"Cut the list into pieces: a new one begins at the first number, and at each that is "
            f"not {name} than the one before. List the sums of the pieces."
        )
        body = f"""
result = []
for place, number in enumerate(numbers):
    if place and number {sign} numbers[place - 1]:
        result[-1] += number
    else:
        result.append(number)
"""
        gives = "numbers"
    else:
        what = "many numbers can be kept" if level == 4 else "large the sum of the kept ones can be"
        words = (
            "Some numbers may be crossed out, all others stay in their order, and each that is "
            f"kept must be {name} than the one that is kept before it. Find how {what}. "
            "Of an empty list it is 0, and of any other at least one number is kept."
        )
        value = "1" if level == 4 else "number"
        body = f"""
best = []
for place, number in enumerate(numbers):
    before = [best[p] for p in range(place) if number {sign} numbers[p]]
    best.append({value} + max([0, *before]))
result = max(best, default=0)
"""
        gives = "number"
    return Problem("rises", _NUMBERS, words, body, gives, _draw_numbers, is_free=True)


def _chunks(draw: Random, level: int) -> Problem:
    size = draw.randint(2, 4)
    if level <= 2:
        name, value = draw.choice((("sum", "sum(part)"), ("largest number", "max(part)")))
        words = (
            f"Cut the list into parts of {size} numbers (the last part may be shorter), and list "
            f"the {name} of each part."
        )
        body = f"""
result = []
for begin in range(0, len(numbers), {size}):
    part = numbers[begin : begin + {size}]
    result.append({value})
"""
        return Problem("chunks", _NUMBERS, words, body, "numbers", _draw_numbers, is_free=True)
    if level == 3:
        words = (
            f"Deal the numbers out to {size} people, one to each by turns, beginning with the "
            f"first "
            "person. List all numbers of the first person, then those of the second, and so on."
        )
        body = f"""
result = []
for person in range({size}):
    result += numbers[person :: {size}]
"""
        return Problem("deal", _NUMBERS, words, body, "numbers", _draw_numbers, is_free=True)
    limit = draw.randint(20, 30)
    words = (
        "Fill boxes with the weights, one after the other, in the order of the list. A weight goes "
        + (
            f"into the box in use, unless that would then hold more than {limit}: then a new box "
            "is taken for it, and no other one is used again. "
            if level == 4
            else f"into the first box that would then hold no more than {limit}, and into a new "
            "one, behind the others, if there is none. "
        )
        + "List how much the boxes hold."
    )
    searched = "boxes[-1:]" if level == 4 else "boxes"
    body = f"""
boxes = []
for weight in weights:
    for box in {searched}:
        if sum(box) + weight <= {limit}:
            box.append(weight)
            break
    else:
        boxes.append([weight])
result = [sum(box) for box in boxes]
"""

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (drawing.numbers(draw, size, 1, 19),)

    inputs = (Input("weights", "numbers", "from 1 to 19"),)
    return Problem("boxes", inputs, words, body, "numbers", drawn)


WINDOWS: Final = Family("windows", _windows)
RECORDS: Final = Family("records", _records)
PAIR_SUMS: Final = Family("pair_sums", _pair_sums)
ORDER: Final = Family("order", _order_by)
RISES: Final = Family("rises", _rises)
CHUNKS: Final = Family("chunks", _chunks)
