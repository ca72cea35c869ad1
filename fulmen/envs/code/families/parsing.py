"""Problems with texts that have a grammar: formulas, brackets, settings, times."""

from random import Random
from typing import Any, Final

from fulmen.envs.code.problem import Family, Input, Problem


def _formulas(draw: Random, level: int) -> Problem:
    has_brackets = level >= 4
    signs = "+-" if level <= 2 else "+-*"
    odd = draw.choice(("~", "#", "@")) if level >= 5 else ""

    def made(draw: Random, size: int) -> str:
        parts = [str(draw.randint(0, 12))]
        for _ in range(size):
            parts.append(draw.choice(signs + odd))
            if has_brackets and draw.random() < 0.35:
                parts.append(f"({made(draw, draw.randint(1, 2))})")
            else:
                parts.append(str(draw.randint(0, 12)))
        return "".join(parts)

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (made(draw, draw.randint(0, 1) + min(size, 7)),)

    shown = ", ".join([*signs, *odd]) + (", ( and )" if has_brackets else "")
    inputs = (Input("formula", "text", f"whole numbers and the signs {shown}, without spaces"),)
    if level == 3:
        words = (
            "Work out the formula strictly from left to right: * does not come before + and -, so "
            "1+2*3 is 9."
        )
    else:
        words = "Work out the formula as usual" + (
            ": * comes before + and -." if level == 4 else "."
        )
    if level >= 5:
        words = (
            "Work out the formula. * comes first, + and - come after it, and "
            f"{odd} comes last of all: a{odd}b is the larger one of a and b. Signs that come "
            "equally early are worked out from left to right, and brackets before what is around "
            "them."
        )
    if level <= 3:
        body = """
result, number, sign = 0, "", "+"
for character in formula + "+":
    if character.isdigit():
        number += character
    else:
        value = int(number)
        if sign == "*":
            result *= value
        else:
            result += value if sign == "+" else -value
        number, sign = "", character
"""
        return Problem("work_out", inputs, words, body, "number", drawn)
    before = '''
import re


def value_of(tokens, least=0):
    """Return the value of what stands first; only signs with at least that rank belong to it."""
    ranks = {"ODD": 1, "+": 2, "-": 2, "*": 3}
    token = tokens.pop(0)
    if token == "(":
        value = value_of(tokens)
        tokens.pop(0)
    else:
        value = int(token)
    while tokens and tokens[0] != ")" and ranks[tokens[0]] > least:
        sign = tokens.pop(0)
        other = value_of(tokens, ranks[sign])
        if sign == "+":
            value += other
        elif sign == "-":
            value -= other
        elif sign == "*":
            value *= other
        else:
            value = max(value, other)
    return value
'''.replace("ODD", odd)
    body = 'result = value_of(re.findall(r"[0-9]+|[^0-9]", formula))'
    return Problem("work_out", inputs, words, body, "number", drawn, before=before)


def _brackets(draw: Random, level: int) -> Problem:
    kinds: tuple[str, ...] = draw.choice((("()", "[]"), ("()", "<>"), ("[]", "{}")))
    if level <= 2:
        kinds = kinds[:1]

    def made(draw: Random, size: int) -> str:
        text = ""
        while len(text) < size:
            inner = made(draw, draw.randint(0, size - len(text) - 1))
            one = draw.choice(kinds)
            text += f"{one[0]}{inner}{one[1]}"
        return text

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        text = made(draw, 2 * size)
        if level >= 2 and text and draw.random() < 0.6:
            place = draw.randrange(len(text))
            text = text[:place] + draw.choice(("", *"".join(kinds))) + text[place + 1 :]
        return (text,)

    shown = " ".join("".join(kinds))
    inputs = (Input("text", "text", f"only the characters {shown}"),)
    closing = {one[1]: one[0] for one in kinds}
    begin = f"partner = {closing!r}\nopen_places = []\n"
    if level == 1:
        words = (
            "The brackets of the text belong together in pairs. Find the largest number of pairs "
            "that are in each other, such as 2 for (()()); of none it is 0."
            if kinds[0] == "()"
            else "The brackets of the text belong together in pairs. Find the largest number of "
            "pairs that are in each other, such as 2 for [[][]]; of none it is 0."
        )
        body = f"""
result = depth = 0
for character in text:
    depth += 1 if character == "{kinds[0][0]}" else -1
    result = max(result, depth)
"""
        return Problem("nest_depth", inputs, words, body, "number", drawn)
    intro = (
        "Read the text from left to right. A closing bracket belongs to the last opening one that "
        "has no partner yet, and must be of its kind. "
    )
    if level <= 3:
        words = intro + (
            "Find the place, counted from 0, of the first closing bracket for which that is "
            "not so. "
            "Without one, the length of the text if an opening bracket stays without a "
            "partner, and "
            "-1 if all have one."
        )
        body = (
            begin
            + """
result = None
for place, character in enumerate(text):
    if character not in partner:
        open_places.append(place)
    elif not open_places or text[open_places.pop()] != partner[character]:
        result = place
        break
if result is None:
    result = len(text) if open_places else -1
"""
        )
        return Problem("check_brackets", inputs, words, body, "number", drawn)
    if level == 4:
        words = (
            "Read the text from left to right. A closing bracket whose kind is that of the last "
            "opening one that has no partner yet becomes its partner; any other closing bracket is "
            "left out and changes nothing. Opening brackets that stay without a partner are left "
            "out too. Give the text of what is left."
        )
        end = 'result = "".join(text[place] for place in sorted(kept))'
        gives = "text"
    else:
        words = (
            "Read the text from left to right. A closing bracket whose kind is that of the last "
            "opening one that has no partner yet becomes its partner; any other closing bracket "
            "stays without one and changes nothing. For every pair, in the order of the opening "
            "brackets, take the number of characters between the two, and list these numbers."
        )
        end = "result = [pairs[place] - place - 1 for place in sorted(pairs)]"
        gives = "numbers"
    body = (
        begin
        + """
kept, pairs = [], {}
for place, character in enumerate(text):
    if character not in partner:
        open_places.append(place)
    elif open_places and text[open_places[-1]] == partner[character]:
        pairs[open_places[-1]] = place
        kept += [open_places.pop(), place]
"""
        + end
    )
    return Problem("mend_brackets", inputs, words, body, gives, drawn)


def _settings(draw: Random, level: int) -> Problem:
    between, equals = draw.choice(((";", "="), (",", ":"), ("&", "=")))
    keys = ("a", "b", "cd", "key", "size")

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        parts = []
        for _ in range(size):
            key, number = draw.choice(keys), draw.randint(0, 30)
            if level >= 3 and draw.random() < 0.3:
                parts.append(draw.choice((key, f"{key}{equals}", f"{equals}{number}", "")))
            elif level >= 4 and draw.random() < 0.4:
                parts.append(f"{key}+{equals}{number}")
            elif level >= 5 and draw.random() < 0.3:
                parts.append(f"{key}{equals}{draw.choice(keys)}")
            else:
                parts.append(f"{key}{equals}{number}")
        return (between.join(parts),)

    inputs = (
        Input(
            "text",
            "text",
            f"parts such as key{equals}12, with {between} between them; may be empty",
        ),
    )
    last = draw.random() < 0.5 or level >= 4
    words = (
        f"Read the parts KEY{equals}NUMBER, and give a dictionary from keys to numbers. Of a key "
        f"that is there several times the {'last' if last else 'first'} number counts."
    )
    if level >= 3:
        words += (
            f" Parts without a key, without {equals} or without anything after it are left out."
        )
    if level >= 4:
        words += (
            f" A part KEY+{equals}NUMBER adds to the number that the key has so far (0 if it has "
            "none)."
        )
    if level >= 5:
        words += (
            f" After {equals} there may be a key in place of a number: then the number that this "
            "key has so far is taken; if it has none, the part is left out."
        )
    body = f"""
result = {{}}
for part in text.split("{between}"):
    key, sign, value = part.partition("{equals}")
    if not (key and sign and value):
        continue
"""
    if level >= 5:
        body += """
    if not value.isdigit():
        if value not in result:
            continue
        value = result[value]
""".lstrip("\n")
    if level >= 4:
        body += """
    if key.endswith("+"):
        key = key[:-1]
        value = result.get(key, 0) + int(value)
""".lstrip("\n")
    body += "    result[key] = int(value)" if last else "    result.setdefault(key, int(value))"
    return Problem("read_settings", inputs, words, body, "counts", drawn)


def _times(draw: Random, level: int) -> Problem:
    def clock(minute: int) -> str:
        return f"{minute // 60:02}:{minute % 60:02}"

    if level <= 2:
        step = draw.choice((15, 25, 45, 50))

        def one(draw: Random, size: int) -> tuple[Any, ...]:
            return clock(draw.randrange(1440)), draw.randint(0, 5 + size * 4)

        inputs = (
            Input("begin", "text", "a time such as 09:05, from 00:00 to 23:59"),
            Input("count", "number", "0 or more"),
        )
        words = (
            f"Find the time that is `count` times {step} minutes after `begin`, written in the "
            f"same "
            "way; after 23:59 comes 00:00."
        )
        body = f"""
hour, minute = begin.split(":")
total = (int(hour) * 60 + int(minute) + {step} * count) % 1440
result = f"{{total // 60:02}}:{{total % 60:02}}"
"""
        return Problem("later", inputs, words, body, "text", one)

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        found = []
        for _ in range(size):
            begin, length = draw.randrange(1440), draw.randint(1, 500)
            found.append(f"{clock(begin)}-{clock((begin + length) % 1440)}")
        return (found,)

    shifts = (
        Input(
            "shifts",
            "lines",
            "each is a begin and an end, such as 09:05-17:30; one whose end is earlier goes on to "
            "the next day",
        ),
    )
    minutes = """
lengths = []
for shift in shifts:
    times = []
    for time in shift.split("-"):
        hour, minute = time.split(":")
        times.append(int(hour) * 60 + int(minute))
    lengths.append((times[1] - times[0]) % 1440)
"""
    limit, pause = draw.choice((180, 240, 300)), draw.choice((15, 20, 30))
    if level == 3:
        words = "List how many minutes each shift takes."
        end, gives = "result = lengths", "numbers"
    elif level == 4:
        words = (
            f"From a shift that takes more than {limit} minutes, {pause} minutes are taken "
            f"away for "
            "a pause. Add up all shifts, and write the sum as hours and minutes, such as 7:05 or "
            "31:40; of none it is 0:00."
        )
        end = f"""
total = sum(length - {pause} if length > {limit} else length for length in lengths)
result = f"{{total // 60}}:{{total % 60:02}}"
"""
        gives = "text"
    else:
        words = (
            f"Find for each hour of the day, from 0 to 23, how many shifts are at work at its "
            f"beginning (at 05:00 for hour 5): a shift is at work from its begin on, and no "
            f"more at "
            f"its end. Shifts of no more than {limit} minutes do not count. List the hours at "
            f"whose "
            "beginning most are at work, the smallest first; of no shifts at all all hours."
        )
        minutes = minutes.replace("lengths = []", "counts = [0] * 24").replace(
            "    lengths.append((times[1] - times[0]) % 1440)\n",
            f"""\
    length = (times[1] - times[0]) % 1440
    for hour in range(24):
        if length > {limit} and (hour * 60 - times[0]) % 1440 < length:
            counts[hour] += 1
""",
        )
        end = "result = [hour for hour in range(24) if counts[hour] == max(counts)]"
        gives = "numbers"
    return Problem("read_shifts", shifts, words, minutes + end, gives, drawn)


FORMULAS: Final = Family("formulas", _formulas)
BRACKETS: Final = Family("brackets", _brackets)
SETTINGS: Final = Family("settings", _settings)
TIMES: Final = Family("times", _times)
