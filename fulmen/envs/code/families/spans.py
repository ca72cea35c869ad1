"""Problems with spans of numbers, each a pair of its begin and its end."""

from random import Random
from typing import Any, Final

from fulmen.envs.code import drawing
from fulmen.envs.code.problem import Family, Input, Problem

_SPANS: Final = (
    Input("spans", "rows", "each has two numbers, a begin and a larger end; 0 or more"),
)


def _drawn(draw: Random, size: int) -> tuple[Any, ...]:
    return (drawing.spans(draw, size, 8 + 4 * size),)


def _merge(draw: Random, level: int) -> Problem:
    gap = draw.randint(1, 3) if level >= 3 else 0
    near = "touch or overlap" if not gap else f"overlap or have no more than {gap} between them"
    words = (
        f"Put spans together that {near} (the end of one, the begin of the next), until no two "
        "such are left, so that each becomes a span from the smallest begin to the largest end. "
    )
    body = f"""
merged = []
for begin, end in sorted(spans):
    if merged and begin <= merged[-1][1] + {gap}:
        merged[-1][1] = max(merged[-1][1], end)
    else:
        merged.append([begin, end])
"""
    if level >= 5:
        words += "Keep those of which at least two were put together. "
        body = f"""
merged = []
for begin, end in sorted(spans):
    if merged and begin <= merged[-1][1] + {gap}:
        merged[-1] = [merged[-1][0], max(merged[-1][1], end), merged[-1][2] + 1]
    else:
        merged.append([begin, end, 1])
merged = [[begin, end] for begin, end, count in merged if count > 1]
"""
    name, value, gives = draw.choice(
        (
            ("List the spans, the smallest begin first.", "merged", "rows"),
            (
                "Add up their lengths, an end minus a begin each; of none it is 0.",
                "sum(end - begin for begin, end in merged)",
                "number",
            ),
            (
                "List their lengths, an end minus a begin each, the smallest begin first.",
                "[end - begin for begin, end in merged]",
                "numbers",
            ),
        )
    )
    return Problem("merge_spans", _SPANS, words + name, f"{body}result = {value}", gives, _drawn)


def _overlaps(draw: Random, level: int) -> Problem:
    points = """
most = max([end for _, end in spans], default=0)
depth = [sum(begin <= point < end for begin, end in spans) for point in range(most)]
"""
    intro = "A span holds its begin and all whole numbers after it before its end. "
    wanted = draw.randint(1, 2)
    if level <= 2:
        words = (
            intro + "Find the largest number of spans that hold the same number; of none it is 0."
        )
        end, gives = "result = max(depth, default=0)", "number"
    elif level == 3:
        many = "one span holds" if wanted == 1 else "two spans hold"
        words = intro + f"List the whole numbers that exactly {many}, the smallest first."
        end = f"result = [point for point, n in enumerate(depth) if n == {wanted}]"
        gives = "numbers"
    elif level == 4:
        words = intro + (
            "For every span, in their order, find how many of the other spans hold a number that "
            "it holds too, and list these counts. An equal span counts as another one."
        )
        points = ""
        end = """
result = []
for begin, end in spans:
    result.append(sum(one < end and begin < other for one, other in spans) - 1)
"""
        gives = "numbers"
    else:
        words = intro + (
            f"Find all longest rows of neighbouring whole numbers that more than {wanted} spans "
            "hold, as spans again: the first number, and the last plus 1. List them, the smallest "
            "first."
        )
        end = f"""
result = []
for point, n in enumerate(depth):
    if n > {wanted}:
        if result and result[-1][1] == point:
            result[-1][1] = point + 1
        else:
            result.append([point, point + 1])
"""
        words = words.replace("all longest rows", "every row").replace(
            "hold, as spans", "hold, each as long as can be, as spans"
        )
        gives = "rows"
    return Problem("overlaps", _SPANS, words, f"{points}{end}", gives, _drawn)


def _gaps(draw: Random, level: int) -> Problem:
    inputs = (*_SPANS, Input("day", "number", "all spans end by then"))

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        found = drawing.spans(draw, size, 8 + 5 * size)
        return found, max([end for _, end in found], default=0) + draw.randint(0, 9)

    least = draw.randint(2, 4)
    shortest = 1 if level <= 2 else least
    words = (
        "Each span is taken, from its begin up to its end. Find what is free between 0 and `day`, "
        "as spans that are as long as can be"
    )
    if level >= 3:
        words += f", and keep those that have a length of at least {least}"
    words += ". "
    body = f"""
free, at = [], 0
for begin, end in [*sorted(spans), [day, day]]:
    if begin - at >= {shortest}:
        free.append([at, begin])
    at = max(at, end)
"""
    if level <= 3:
        return Problem(
            "free_spans",
            inputs,
            f"{words}List them, the smallest first.",
            f"{body}result = free",
            "rows",
            drawn,
        )
    if level == 4:
        words += "List the begins of those that are longest, the smallest first."
        body += """
longest = max([end - begin for begin, end in free], default=0)
result = [begin for begin, end in free if end - begin == longest]
"""
    else:
        words += (
            f"Meetings of length {least} are put there, as early as possible and as many as can "
            "be. List their begins, the smallest first."
        )
        body += f"""
result = []
for begin, end in free:
    result += range(begin, end - {least - 1}, {least})
"""
    return Problem("plan_meetings", inputs, words, body, "numbers", drawn)


MERGE: Final = Family("merge", _merge)
OVERLAPS: Final = Family("overlaps", _overlaps)
GAPS: Final = Family("gaps", _gaps)
